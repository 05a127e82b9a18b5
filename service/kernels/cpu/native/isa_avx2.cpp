#define SERPENTINE_ISA avx2
#include "table.inl.h"

namespace serpentine {
const Kernels* avx2_kernels() { return &avx2::kTable; }
}  // namespace serpentine

#define SERPENTINE_ISA avx512
#include "table.inl.h"

namespace serpentine {
const Kernels* avx512_kernels() { return &avx512::kTable; }
}  // namespace serpentine

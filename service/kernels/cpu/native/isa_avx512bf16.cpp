#define SERPENTINE_ISA avx512bf16
#include "table.inl.h"

namespace serpentine {
const Kernels* avx512bf16_kernels() { return &avx512bf16::kTable; }
}  // namespace serpentine

#define SERPENTINE_ISA portable
#include "table.inl.h"

namespace serpentine {
const Kernels* portable_kernels() { return &portable::kTable; }
}  // namespace serpentine

#define SERPENTINE_ISA amx
#define SERPENTINE_TILES
#include "table.inl.h"

namespace serpentine {
const Kernels* amx_kernels() { return &amx::kTable; }
}  // namespace serpentine

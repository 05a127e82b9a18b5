// The loop over tiles on a processor without tiles, for tests. Slow.
#define SERPENTINE_ISA amx_emulated
#define SERPENTINE_TILES
#define SERPENTINE_EMULATE_TILES
#include "table.inl.h"

namespace serpentine {
const Kernels* amx_emulated_kernels() { return &amx_emulated::kTable; }
}  // namespace serpentine

// The table of one instruction set: include after defining SERPENTINE_ISA.
#include "kernels.h"
#include "simd.h"
// simd.h first: the others are written in its terms.
#include "linear.inl.h"
#include "linear_squeezed.inl.h"
#include "pointwise.inl.h"
#include "scan.inl.h"
#if defined(SERPENTINE_TILES)
#include "linear_tiles.inl.h"
#endif

namespace serpentine::SERPENTINE_ISA {

#define SERPENTINE_TEXT(x) #x
#define SERPENTINE_NAME(x) SERPENTINE_TEXT(x)
#if defined(SERPENTINE_TILES)
// A product of tiles takes less time than to unpack its weights, and a step of many rows would wait for that.
constexpr auto kLinearBf16 = linear_tiles;
constexpr bool kSqueezed = false;
#else
constexpr auto kLinearBf16 = linear_bf16;
constexpr bool kSqueezed = kUnpacks;
#endif

inline constexpr Kernels kTable = {
    SERPENTINE_NAME(SERPENTINE_ISA), kSqueezed, linear_f32, kLinearBf16, rms_norm, layer_norm,
    round_row,                       widen_row, convolve,   selective,   coupled,
};

}  // namespace serpentine::SERPENTINE_ISA

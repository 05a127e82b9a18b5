// Linear layers in bf16 by tiles: up to 16 rows by a panel of outputs, 16 pairs of inputs a time.
//
// One row takes the same instructions as sixteen: another instruction beside them would change bits with the batch.
#include "tiles.h"

namespace serpentine::SERPENTINE_ISA {

// Elements from row to row where those of a block lie evenly apart; 0 where they do not.
inline ptrdiff_t even_stride(const PanelArgs& a, int begin, int rows) {
    const int apart = rows > 1 ? row_of(a.rows, begin + 1) - row_of(a.rows, begin) : 1;
    for (int r = 2; r < rows; ++r)
        if (row_of(a.rows, begin + r) - row_of(a.rows, begin + r - 1) != apart) return 0;
    return apart * a.x_stride;
}

template <int P>
void tile_rows(const PanelArgs& a, int begin, int rows) {
    const auto* x = static_cast<const uint16_t*>(a.x);
    const auto* w = static_cast<const uint16_t*>(a.w);
    const ptrdiff_t stride = even_stride(a, begin, rows), w_stride = a.width * 2 * kVector;
    alignas(64) uint16_t x_here[kTileRows16][2 * kTilePairs], w_here[kTilePairs][2 * kVector];
    alignas(64) float sums[kTileRows16][kPanel * kVector];
    Tiles tiles(rows);
    for (int p = 0; p < P; ++p) tiles.clear(p);
    for (int k = 0; k < a.depth; k += kTilePairs) {
        const int pairs = a.depth - k < kTilePairs ? a.depth - k : kTilePairs;
        if (stride && pairs == kTilePairs) {
            tiles.load_x(x + row_of(a.rows, begin) * a.x_stride + 2 * k, stride);
        } else {  // rows from here and there, or what is left of the depth, zeros after it
            memset(x_here, 0, sizeof x_here);
            for (int r = 0; r < rows; ++r)
                memcpy(x_here[r], x + row_of(a.rows, begin + r) * a.x_stride + 2 * k,
                       sizeof(uint16_t) * 2 * static_cast<size_t>(pairs));
            tiles.load_x(x_here[0], 2 * kTilePairs);
        }
        for (int p = 0; p < P; ++p) {
            const uint16_t* from = w + k * w_stride + p * 2 * kVector;
            if (pairs == kTilePairs) {
                tiles.load_weights(p % kTileWeights, from, w_stride);
            } else {
                memset(w_here, 0, sizeof w_here);
                for (int j = 0; j < pairs; ++j) memcpy(w_here[j], from + j * w_stride, sizeof w_here[j]);
                tiles.load_weights(p % kTileWeights, w_here[0], 2 * kVector);
            }
            tiles.multiply(p, p % kTileWeights);
        }
    }
    for (int p = 0; p < P; ++p) tiles.store(p, sums[0] + p * kVector, kPanel * kVector);
    for (int r = 0; r < rows; ++r) {
        F16 acc[P];
        for (int p = 0; p < P; ++p) acc[p] = load(sums[r] + p * kVector);
        finish<P>(a, begin + r, 0, acc);
    }
}

inline void linear_tiles(const PanelArgs& a) {
    for (int begin = 0; begin < a.count; begin += kTileRows16) {
        const int rows = a.count - begin < kTileRows16 ? a.count - begin : kTileRows16;
        switch (a.width) {
            case 1: tile_rows<1>(a, begin, rows); break;
            case 2: tile_rows<2>(a, begin, rows); break;
            case 3: tile_rows<3>(a, begin, rows); break;
            default: tile_rows<4>(a, begin, rows);
        }
    }
}

}  // namespace serpentine::SERPENTINE_ISA

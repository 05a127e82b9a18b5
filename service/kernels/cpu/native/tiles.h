// The tile registers of AMX as the linear layers use them: sums [rows][16] fp32, x [rows][16 pairs] and weights
// [16 pairs][16] in pairs of bf16. Included once an instruction set, like simd.h.
//
// With SERPENTINE_EMULATE_TILES the registers are memory and the product is TDPBF16PS as Intel's manual defines it, so
// that the loop over tiles can be tested on a processor that has none.

namespace serpentine::SERPENTINE_ISA {

constexpr int kTileRows16 = 16, kTilePairs = 16, kTileSums = kPanel, kTileWeights = 3;

#if defined(SERPENTINE_EMULATE_TILES)

// Denormals are taken as zero and made zero.
inline float flushed(float x) { return __builtin_fabsf(x) < 1.17549435e-38f ? __builtin_copysignf(0.0f, x) : x; }
inline float widened(uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return flushed(value);
}

class Tiles {
  public:
    explicit Tiles(int rows) : rows_(rows) {}
    void clear(int sum) { memset(sums_[sum], 0, sizeof sums_[sum]); }
    void load_x(const uint16_t* x, ptrdiff_t stride) {
        for (int r = 0; r < rows_; ++r) memcpy(x_[r], x + r * stride, sizeof x_[r]);
    }
    void load_weights(int tile, const uint16_t* w, ptrdiff_t stride) {
        for (int k = 0; k < kTilePairs; ++k) memcpy(w_[tile][k], w + k * stride, sizeof w_[tile][k]);
    }
    // The products of the first and of the second of the pairs are summed apart, in fused multiply-adds, then together.
    void multiply(int sum, int tile) {
        for (int r = 0; r < rows_; ++r) {
            float even[kVector] = {}, odd[kVector] = {};
            for (int k = 0; k < kTilePairs; ++k) {
                const float first = widened(x_[r][2 * k]), second = widened(x_[r][2 * k + 1]);
                for (int i = 0; i < kVector; ++i) {
                    even[i] = flushed(__builtin_fmaf(first, widened(w_[tile][k][2 * i]), even[i]));
                    odd[i] = flushed(__builtin_fmaf(second, widened(w_[tile][k][2 * i + 1]), odd[i]));
                }
            }
            for (int i = 0; i < kVector; ++i)
                sums_[sum][r][i] = flushed(sums_[sum][r][i] + flushed(even[i] + odd[i]));
        }
    }
    void store(int sum, float* y, ptrdiff_t stride) const {
        for (int r = 0; r < rows_; ++r) memcpy(y + r * stride, sums_[sum][r], sizeof sums_[sum][r]);
    }

  private:
    int rows_;
    float sums_[kTileSums][kTileRows16][kVector];
    uint16_t x_[kTileRows16][2 * kTilePairs], w_[kTileWeights][kTilePairs][2 * kVector];
};

#else

// Registers 0 to 3 are sums, 4 is x, 5 to 7 are weights. Their numbers are part of the instructions.
// Compilers do not see that the instructions read what lies at an address: everything must be in memory by then.
inline void settle(const void* p) { asm volatile("" : : "r"(p) : "memory"); }

#define SERPENTINE_OF_SUMS(number, f) \
    switch (number) {                 \
        case 0: f(0); break;          \
        case 1: f(1); break;          \
        case 2: f(2); break;          \
        default: f(3);                \
    }

class Tiles {
  public:
    explicit Tiles(int rows) {
        struct alignas(64) {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes_of_row[16] = {};
            uint8_t rows[16] = {};
        } config;
        for (int t = 0; t < 8; ++t) {
            config.bytes_of_row[t] = 64;
            config.rows[t] = static_cast<uint8_t>(t < 5 ? rows : kTilePairs);
        }
        settle(&config);
        _tile_loadconfig(&config);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

    void clear(int sum) { SERPENTINE_OF_SUMS(sum, _tile_zero) }
    void load_x(const uint16_t* x, ptrdiff_t stride) {
        settle(x);
        _tile_loadd(4, x, stride * 2);
    }
    void load_weights(int tile, const uint16_t* w, ptrdiff_t stride) {
        settle(w);
        switch (tile) {
            case 0: _tile_loadd(5, w, stride * 2); break;
            case 1: _tile_loadd(6, w, stride * 2); break;
            default: _tile_loadd(7, w, stride * 2);
        }
    }
    void multiply(int sum, int tile) {
        switch (sum * kTileWeights + tile) {
            case 0: _tile_dpbf16ps(0, 4, 5); break;
            case 1: _tile_dpbf16ps(0, 4, 6); break;
            case 2: _tile_dpbf16ps(0, 4, 7); break;
            case 3: _tile_dpbf16ps(1, 4, 5); break;
            case 4: _tile_dpbf16ps(1, 4, 6); break;
            case 5: _tile_dpbf16ps(1, 4, 7); break;
            case 6: _tile_dpbf16ps(2, 4, 5); break;
            case 7: _tile_dpbf16ps(2, 4, 6); break;
            case 8: _tile_dpbf16ps(2, 4, 7); break;
            case 9: _tile_dpbf16ps(3, 4, 5); break;
            case 10: _tile_dpbf16ps(3, 4, 6); break;
            default: _tile_dpbf16ps(3, 4, 7);
        }
    }
    void store(int sum, float* y, ptrdiff_t stride) const {
#define SERPENTINE_STORE(number) _tile_stored(number, y, stride * 4)
        SERPENTINE_OF_SUMS(sum, SERPENTINE_STORE)
#undef SERPENTINE_STORE
    }
};

#undef SERPENTINE_OF_SUMS

#endif

}  // namespace serpentine::SERPENTINE_ISA

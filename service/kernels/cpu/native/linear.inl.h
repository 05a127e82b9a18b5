// Linear layers: tiles of R rows by P registers of outputs, each output one chain of multiply-adds in the order of k.

namespace serpentine::SERPENTINE_ISA {

#if defined(__AVX512F__)
constexpr int kTileRows = 6, kTileWidth = 4;
#elif defined(__AVX2__)
constexpr int kTileRows = 4, kTileWidth = 1;
#else
constexpr int kTileRows = 1, kTileWidth = 1;
#endif

inline int row_of(const int* rows, int i) { return rows ? rows[i] : i; }

template <int P>
inline void finish(const PanelArgs& a, int i, int column, F16* acc) {
    const int row = a.y_rows ? a.y_rows[i] : row_of(a.rows, i);
    for (int p = 0; p < P; ++p) {
        const int at = (column + p) * kVector;
        const int left = a.outputs - at;
        float* y = a.y + row * a.y_stride + at;
        F16 v = acc[p];
        if (a.bias) v = add(v, load(a.bias + at, left));
        switch (a.then) {
            case Then::store: break;
            case Then::add: v = add(load(y, left), v); break;
            case Then::softplus: v = softplus(v); break;
            case Then::relu: v = max(zero(), v); break;
        }
        store(y, v, left);
        if (a.y16) store_bf16(a.y16 + row * a.y16_stride + at, v, left < kVector ? left : kVector);
    }
}

struct F32Step {
    using X = float;
    static constexpr int kPerDepth = 1;  // elements of x, and of w in a lane
    template <int R, int P>
    static inline void apply(F16 (&acc)[R][P], const float* const (&x)[R], int k, const float* w) {
        F16 weight[P];
        for (int p = 0; p < P; ++p) weight[p] = load(w + p * kVector);
        for (int r = 0; r < R; ++r) {
            const F16 v = broadcast(x[r][k]);
            for (int p = 0; p < P; ++p) acc[r][p] = fma(v, weight[p], acc[r][p]);
        }
    }
};

struct Bf16Step {
    using X = uint16_t;
    static constexpr int kPerDepth = 2;
    template <int R, int P>
    static inline void apply(F16 (&acc)[R][P], const uint16_t* const (&x)[R], int k, const uint16_t* w) {
#if defined(__AVX512BF16__)
        __m512bh weight[P];
        for (int p = 0; p < P; ++p) weight[p] = (__m512bh)_mm512_loadu_si512(w + p * 2 * kVector);
        for (int r = 0; r < R; ++r) {
            int32_t pair;
            memcpy(&pair, x[r] + 2 * k, sizeof pair);
            const __m512bh v = (__m512bh)_mm512_set1_epi32(pair);
            for (int p = 0; p < P; ++p) acc[r][p] = _mm512_dpbf16_ps(acc[r][p], v, weight[p]);
        }
#else
        for (int half = 0; half < 2; ++half) {
            F16 weight[P];
            for (int p = 0; p < P; ++p)
                weight[p] = half ? second_of_pairs(w + p * 2 * kVector) : first_of_pairs(w + p * 2 * kVector);
            for (int r = 0; r < R; ++r) {
                const uint32_t bits = static_cast<uint32_t>(x[r][2 * k + half]) << 16;
                float value;
                memcpy(&value, &bits, sizeof value);
                const F16 v = broadcast(value);
                for (int p = 0; p < P; ++p) acc[r][p] = fma(v, weight[p], acc[r][p]);
            }
        }
#endif
    }
};

// Which of the row blocks of a panel this is.
struct RowBlock {
    int begin, index, of;
};

template <class Step, int R, int P>
void tile(const PanelArgs& a, RowBlock block, int column) {
    const int begin = block.begin;
    using X = typename Step::X;
    const X* x[R];
    for (int r = 0; r < R; ++r) x[r] = static_cast<const X*>(a.x) + row_of(a.rows, begin + r) * a.x_stride;
    F16 acc[R][P];
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) acc[r][p] = zero();
    const X* w = static_cast<const X*>(a.w) + column * kVector * Step::kPerDepth;
    const ptrdiff_t step = static_cast<ptrdiff_t>(a.width) * kVector * Step::kPerDepth;
    for (int k = 0; k < a.depth; ++k, w += step) {
#if defined(__AVX2__)
        // A lone block of rows reads each weight once, from memory: ask for it before the core's prefetcher dares to.
        // Several ask for the next panel between them, while they compute on this one out of the cache.
        constexpr ptrdiff_t line = 64 / sizeof(X);
        if (block.of == 1) {
            for (int p = 0; p < P; ++p)
                _mm_prefetch(reinterpret_cast<const char*>(w + p * line + 8 * step), _MM_HINT_T0);
        } else if (k % block.of == block.index) {
            for (int p = 0; p < P; ++p)
                _mm_prefetch(reinterpret_cast<const char*>(w + p * line + a.depth * step), _MM_HINT_T1);
        }
#endif
        Step::template apply<R, P>(acc, x, k, w);
    }
    for (int r = 0; r < R; ++r) finish<P>(a, begin + r, column, acc[r]);
}

template <class Step, int P>
void rows_by(const PanelArgs& a, RowBlock block, int rows, int column) {
    if constexpr (kTileRows >= 6) {
        if (rows == 6) return tile<Step, 6, P>(a, block, column);
        if (rows == 5) return tile<Step, 5, P>(a, block, column);
    }
    if constexpr (kTileRows >= 4) {
        if (rows == 4) return tile<Step, 4, P>(a, block, column);
        if (rows == 3) return tile<Step, 3, P>(a, block, column);
        if (rows == 2) return tile<Step, 2, P>(a, block, column);
    }
    tile<Step, 1, P>(a, block, column);
}

template <class Step>
void panel(const PanelArgs& a) {
    // Row blocks of nearly equal size: 8 rows are 4 and 4, not 6 and 2.
    const int blocks = (a.count + kTileRows - 1) / kTileRows;
    for (int block = 0; block < blocks; ++block) {
        const int begin = static_cast<int>(static_cast<int64_t>(a.count) * block / blocks);
        const int rows = static_cast<int>(static_cast<int64_t>(a.count) * (block + 1) / blocks) - begin;
        for (int column = 0; column < a.width; column += kTileWidth) {
            const int width = a.width - column < kTileWidth ? a.width - column : kTileWidth;
            if constexpr (kTileWidth == 4) {
                if (width == 4) rows_by<Step, 4>(a, {begin, block, blocks}, rows, column);
                if (width == 3) rows_by<Step, 3>(a, {begin, block, blocks}, rows, column);
                if (width == 2) rows_by<Step, 2>(a, {begin, block, blocks}, rows, column);
            }
            if (width == 1) rows_by<Step, 1>(a, {begin, block, blocks}, rows, column);
        }
    }
}

inline void linear_f32(const PanelArgs& a) { panel<F32Step>(a); }
inline void linear_bf16(const PanelArgs& a) { panel<Bf16Step>(a); }

}  // namespace serpentine::SERPENTINE_ISA

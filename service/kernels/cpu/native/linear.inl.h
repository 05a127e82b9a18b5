// Linear layers: tiles of R rows by P registers of outputs, each output one chain of multiply-adds in the order of k.

namespace serpentine::SERPENTINE_ISA {

#if defined(__AVX512F__)
constexpr int kTileRows = 6, kTileWidth = 4;
#elif defined(__AVX2__)
constexpr int kTileRows = 4, kTileWidth = 1;
#else
constexpr int kTileRows = 1, kTileWidth = 1;
#endif

constexpr int kSlice = 64;      // in depth
constexpr int kMostSliced = 2;  // blocks of rows, where slicing spares the caches only

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
#if defined(__AVX512F__)
    template <int R, int P>
    static inline void apply(F16 (&acc)[R][P], const uint16_t* const (&x)[R], int k, const uint16_t* w) {
        __m512i weight[P];
        for (int p = 0; p < P; ++p) weight[p] = _mm512_loadu_si512(w + p * 2 * kVector);
        multiply(acc, x, k, weight);
    }
    template <int R, int P>
    static inline void multiply(F16 (&acc)[R][P], const uint16_t* const (&x)[R], int k, const __m512i (&weight)[P]) {
#if defined(__AVX512BF16__)
        for (int r = 0; r < R; ++r) {
            int32_t pair;
            memcpy(&pair, x[r] + 2 * k, sizeof pair);
            const __m512bh v = (__m512bh)_mm512_set1_epi32(pair);
            for (int p = 0; p < P; ++p) acc[r][p] = _mm512_dpbf16_ps(acc[r][p], v, (__m512bh)weight[p]);
        }
#else
        for (int half = 0; half < 2; ++half) {
            F16 part[P];
            for (int p = 0; p < P; ++p) part[p] = half ? second_of_pairs(weight[p]) : first_of_pairs(weight[p]);
            multiply_half(acc, x, 2 * k + half, part);
        }
#endif
    }
#else
    template <int R, int P>
    static inline void apply(F16 (&acc)[R][P], const uint16_t* const (&x)[R], int k, const uint16_t* w) {
        for (int half = 0; half < 2; ++half) {
            F16 part[P];
            for (int p = 0; p < P; ++p)
                part[p] = half ? second_of_pairs(w + p * 2 * kVector) : first_of_pairs(w + p * 2 * kVector);
            multiply_half(acc, x, 2 * k + half, part);
        }
    }
#endif
    template <int R, int P>
    static inline void multiply_half(F16 (&acc)[R][P], const uint16_t* const (&x)[R], int k, const F16 (&weight)[P]) {
        for (int r = 0; r < R; ++r) {
            const uint32_t bits = static_cast<uint32_t>(x[r][k]) << 16;
            float value;
            memcpy(&value, &bits, sizeof value);
            const F16 v = broadcast(value);
            for (int p = 0; p < P; ++p) acc[r][p] = fma(v, weight[p], acc[r][p]);
        }
    }
};

// Weights that are asked for while others are multiplied: each is wanted once, and from memory.
struct Ahead {
    const void* at;    // for the part's first step in depth
    ptrdiff_t step;    // bytes
    int turn, turns;   // of them this one of so many parts, at every so many steps in depth
};

// A part of the work on a panel: some rows, through some of its depth.
struct Part {
    int begin, rows;       // of the panel's rows
    int from, to;          // in depth
    const void* w;         // weights of `from`
    Ahead ahead;
    float* sums;           // [rows][width][16], kept between parts; null: the part is all of the depth
};

// What a panel asks for beside its weights, spread over its depth.
class Asked {
  public:
    Asked(const PanelArgs& a, ptrdiff_t depth, int column) {
        if (!a.soon.at || column) return;
        end_ = a.soon.at + a.soon.count;
        lines_ = static_cast<int>((a.soon.count + kLine * a.depth - 1) / (kLine * a.depth));
        at_ = a.soon.at + depth * lines_ * kLine;
    }
    void some() {
        for (int i = 0; at_ < end_ && i < lines_; ++i, at_ += kLine) __builtin_prefetch(at_, 1, 2);
    }

  private:
    static constexpr ptrdiff_t kLine = 16;  // of the cache, in elements
    const float *at_ = nullptr, *end_ = nullptr;
    int lines_ = 0;
};

template <class Step, int R, int P>
void tile(const PanelArgs& a, const Part& part, int column) {
    using X = typename Step::X;
    const X* x[R];
    for (int r = 0; r < R; ++r) x[r] = static_cast<const X*>(a.x) + row_of(a.rows, part.begin + r) * a.x_stride;
    F16 acc[R][P];
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p)
            acc[r][p] = part.from ? load(part.sums + (r * a.width + column + p) * kVector) : zero();
    const ptrdiff_t step = static_cast<ptrdiff_t>(a.width) * kVector * Step::kPerDepth;
    const X* w = static_cast<const X*>(part.w) + column * kVector * Step::kPerDepth;
    // Asked for before the core's prefetcher dares to, line after line.
    constexpr ptrdiff_t line = kVector * Step::kPerDepth * sizeof(X);
    const ptrdiff_t done = part.ahead.turn * ((part.to - part.from + part.ahead.turns - 1) / part.ahead.turns);
    [[maybe_unused]] const char* ahead = static_cast<const char*>(part.ahead.at) + done * part.ahead.step + column * line;
    [[maybe_unused]] Asked soon(a, part.from + done, column);
    [[maybe_unused]] int turn = part.ahead.turn;
    for (int k = part.from; k < part.to; ++k, w += step) {
#if defined(__AVX2__)
        if (turn == 0) {
            for (int p = 0; p < P; ++p) _mm_prefetch(ahead + p * line, _MM_HINT_T0);
            ahead += part.ahead.step;
            soon.some();
            turn = part.ahead.turns;
        }
        --turn;
#endif
        Step::template apply<R, P>(acc, x, k, w);
    }
    for (int r = 0; r < R; ++r)
        if (part.to == a.depth)
            finish<P>(a, part.begin + r, column, acc[r]);
        else
            for (int p = 0; p < P; ++p) store(part.sums + (r * a.width + column + p) * kVector, acc[r][p]);
}

template <class Step, int R, int P>
void tile_of(const PanelArgs& a, const Part& part, int column) {
    if constexpr (R > 1)
        if (part.rows < R) return tile_of<Step, R - 1, P>(a, part, column);
    tile<Step, R, P>(a, part, column);
}

template <class Step>
void run(const PanelArgs& a, const Part& part) {
    for (int column = 0; column < a.width; column += kTileWidth) {
        const int width = a.width - column < kTileWidth ? a.width - column : kTileWidth;
        if constexpr (kTileWidth == 4) {
            if (width == 4) tile_of<Step, kTileRows, 4>(a, part, column);
            if (width == 3) tile_of<Step, kTileRows, 3>(a, part, column);
            if (width == 2) tile_of<Step, kTileRows, 2>(a, part, column);
        }
        if (width == 1) tile_of<Step, kTileRows, 1>(a, part, column);
    }
}

// Several blocks of rows take a slice of the depth in turn, while it is in the first-level cache, and ask for the next.
template <class Step>
void panel(const PanelArgs& a) {
    // Row blocks of nearly equal size: 8 rows are 4 and 4, not 6 and 2.
    const int blocks = (a.count + kTileRows - 1) / kTileRows;
    const bool sliced = blocks > 1 && blocks <= kMostSliced;
    const int depth = sliced ? kSlice : a.depth;
    const ptrdiff_t step = static_cast<ptrdiff_t>(a.width) * kVector * Step::kPerDepth;
    float sums[kMostSliced * kTileRows * kPanel * kVector];
    for (int from = 0; from < a.depth; from += depth)
        for (int block = 0; block < blocks; ++block) {
            const int begin = static_cast<int>(static_cast<int64_t>(a.count) * block / blocks);
            const int end = static_cast<int>(static_cast<int64_t>(a.count) * (block + 1) / blocks);
            const auto* w = static_cast<const typename Step::X*>(a.w) + from * step;
            run<Step>(a, {.begin = begin,
                          .rows = end - begin,
                          .from = from,
                          .to = from + depth < a.depth ? from + depth : a.depth,
                          .w = w,
                          .ahead = {.at = w + (blocks == 1 ? 8 : depth) * step,
                                    .step = step * static_cast<ptrdiff_t>(sizeof *w),
                                    .turn = block,
                                    .turns = blocks},
                          .sums = sliced ? sums + begin * kPanel * kVector : nullptr});
        }
}

inline void linear_f32(const PanelArgs& a) { panel<F32Step>(a); }

}  // namespace serpentine::SERPENTINE_ISA

// Linear layers whose panels are squeezed (squeezed.h): weights are unpacked on their way to the same tiles.
//
// A block of rows unpacks in registers, beside its multiply-adds; with several, the first leaves the weights in a cache for
// the others, which ask for the next meanwhile. With AVX2, whose tiles read a panel once a register of outputs, a slice of
// the depth is unpacked before any block takes it.

#include "squeezed.h"

namespace serpentine::SERPENTINE_ISA {

#if defined(__AVX2__)

// Where in a squeezed panel the next step is.
struct Squeezed {
    explicit Squeezed(const void* panel) : upper(static_cast<const uint8_t*>(panel)) {
        int32_t begin;
        memcpy(&begin, upper + 16, sizeof begin);
        step = upper + begin;
        whole = reinterpret_cast<const int32_t*>(upper + 16) + 1;
    }
    const uint8_t* upper;
    const uint8_t* step;
    const int32_t* whole;  // the next step in depth that stays whole, and those after it
};

// The sixteen upper bytes, and what they are with lower ones.
class Unpacker {
  public:
#if defined(__AVX512F__)
    explicit Unpacker(const uint8_t* upper)
        : upper_(_mm512_maskz_broadcast_i32x4(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(upper)))) {}
    void operator()(const uint8_t* from, __m512i (&weight)[kPanel]) const {
        const __m512i mask = _mm512_set1_epi8(15);
        const __m512i first = _mm512_loadu_si512(from), second = _mm512_loadu_si512(from + 64);
        const __m512i index = _mm512_loadu_si512(from + 128);
        const __m512i first_upper = _mm512_shuffle_epi8(upper_, _mm512_and_si512(index, mask));
        const __m512i second_upper =
            _mm512_shuffle_epi8(upper_, _mm512_and_si512(_mm512_srli_epi16(index, 4), mask));
        weight[0] = _mm512_unpacklo_epi8(first, first_upper);
        weight[1] = _mm512_unpackhi_epi8(first, first_upper);
        weight[2] = _mm512_unpacklo_epi8(second, second_upper);
        weight[3] = _mm512_unpackhi_epi8(second, second_upper);
    }

  private:
    __m512i upper_;
#elif defined(__AVX2__)
    explicit Unpacker(const uint8_t* upper)
        : upper_(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(upper)))) {}
    void operator()(const uint8_t* from, uint16_t* to) const {
        const __m256i mask = _mm256_set1_epi8(15);
        for (int part = 0; part < 2; ++part, from += 32, to += kVector) {
            const __m256i first = bytes(from), second = bytes(from + 64), index = bytes(from + 128);
            const __m256i first_upper = _mm256_shuffle_epi8(upper_, _mm256_and_si256(index, mask));
            const __m256i second_upper =
                _mm256_shuffle_epi8(upper_, _mm256_and_si256(_mm256_srli_epi16(index, 4), mask));
            keep(to, _mm256_unpacklo_epi8(first, first_upper));
            keep(to + 2 * kVector, _mm256_unpackhi_epi8(first, first_upper));
            keep(to + 4 * kVector, _mm256_unpacklo_epi8(second, second_upper));
            keep(to + 6 * kVector, _mm256_unpackhi_epi8(second, second_upper));
        }
    }

  private:
    static __m256i bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static void keep(uint16_t* p, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
    __m256i upper_;
#endif
};

// Steps in depth that are unpacked at once: into the first-level cache for two blocks of rows, which leave little time
// for the sums' way to memory and back to matter; else into the second.
constexpr int kFewUnpacked = kSlice, kMostUnpacked = 384;
constexpr int kMostRows = 96;  // that share what is unpacked: their sums are kept meanwhile

#if defined(__AVX512F__)

// As a tile, from squeezed weights, which are unpacked in registers; and kept for the other blocks of rows where `to`
// is given.
template <bool kKept, int R>
void unpacking_tile(const PanelArgs& a, const Part& part, Squeezed& at, const Unpacker& unpacker, uint16_t* to) {
    if constexpr (R > 1)
        if (part.rows < R) return unpacking_tile<kKept, R - 1>(a, part, at, unpacker, to);
    const uint16_t* x[R];
    for (int r = 0; r < R; ++r)
        x[r] = static_cast<const uint16_t*>(a.x) + row_of(a.rows, part.begin + r) * a.x_stride;
    F16 acc[R][kPanel];
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < kPanel; ++p)
            acc[r][p] = part.from ? load(part.sums + (r * kPanel + p) * kVector) : zero();
    const auto* ahead = static_cast<const char*>(part.ahead.at);
    Asked soon(a, part.from, 0);
    const int turns = part.ahead.turns, depth = part.to;
    const uint8_t* from = at.step;
    const int32_t* next = at.whole;
    int turn = 1;
    for (int k = part.from; k < depth; ++next) {
        const int end = *next < depth ? *next : depth;
        for (; k < end; ++k, from += kSqueezedStep) {
            if (--turn == 0) {
                for (int line = 0; line < kSqueezedStep; line += 64) _mm_prefetch(ahead + line, _MM_HINT_T0);
                ahead += kSqueezedStep;
                soon.some();
                turn = turns;
            }
            __m512i weight[kPanel];
            unpacker(from, weight);
            if constexpr (kKept)
                for (int p = 0; p < kPanel; ++p, to += 2 * kVector) _mm512_storeu_si512(to, weight[p]);
            Bf16Step::multiply(acc, x, k, weight);
        }
        if (k == depth) break;
        Bf16Step::apply(acc, x, k++, reinterpret_cast<const uint16_t*>(from));
        if constexpr (kKept) {
            memcpy(to, from, kWholeStep);
            to += kStepWeights;
        }
        from += kWholeStep;
    }
    at.step = from;
    at.whole = next;
    for (int r = 0; r < R; ++r)
        if (part.to == a.depth)
            finish<kPanel>(a, part.begin + r, 0, acc[r]);
        else
            for (int p = 0; p < kPanel; ++p) store(part.sums + (r * kPanel + p) * kVector, acc[r][p]);
}

#else

// The next `steps` in depth from `k` on, as an unsqueezed panel has them.
inline void unpack(Squeezed& at, const Unpacker& unpacker, int k, int steps, uint16_t* to) {
    for (const int end = k + steps; k < end; ++k, to += kStepWeights) {
        if (k == *at.whole) {
            memcpy(to, at.step, kWholeStep);
            at.step += kWholeStep;
            ++at.whole;
        } else {
            unpacker(at.step, to);
            at.step += kSqueezedStep;
        }
    }
}

#endif

// Several blocks of rows. A function by itself: of one block, no room is made on the stack.
[[gnu::noinline]] inline void squeezed_blocks(const PanelArgs& a, int first, int count) {
    alignas(64) uint16_t here[kMostUnpacked * kStepWeights];
    float sums[kMostRows * kPanel * kVector];
    const int blocks = (count + kTileRows - 1) / kTileRows;
    const int most = blocks <= kMostSliced ? kFewUnpacked : kMostUnpacked;
    Squeezed at(a.w);
    const Unpacker unpacker(at.upper);
    for (int from = 0; from < a.depth; from += most) {
        const int to = from + most < a.depth ? from + most : a.depth;
#if !defined(__AVX512F__)
        unpack(at, unpacker, from, to - from, here);
#endif
        const uint8_t* next = at.step + (to - from) * kSqueezedStep;
        for (int block = 0; block < blocks; ++block) {
            const int begin = count * block / blocks, end = count * (block + 1) / blocks;
            const Part part{.begin = first + begin,
                            .rows = end - begin,
                            .from = from,
                            .to = to,
                            .w = here,
                            .ahead = {.at = next, .step = kSqueezedStep, .turn = block, .turns = blocks},
                            .sums = sums + begin * kPanel * kVector};
#if defined(__AVX512F__)
            if (block == 0) {
                unpacking_tile<true, kTileRows>(a, part, at, unpacker, here);
                continue;
            }
#endif
            run<Bf16Step>(a, part);
        }
    }
}

inline void squeezed_panel(const PanelArgs& a) {
#if defined(__AVX512F__)
    if (a.count <= kTileRows) {
        constexpr int kStepsAhead = 16;
        Squeezed at(a.w);
        const Ahead ahead{.at = at.step + kStepsAhead * kSqueezedStep, .step = kSqueezedStep, .turn = 0, .turns = 1};
        const Part all{
            .begin = 0, .rows = a.count, .from = 0, .to = a.depth, .w = nullptr, .ahead = ahead, .sums = nullptr};
        return unpacking_tile<false, kTileRows>(a, all, at, Unpacker(at.upper), nullptr);
    }
#endif
    for (int first = 0; first < a.count; first += kMostRows)
        squeezed_blocks(a, first, a.count - first < kMostRows ? a.count - first : kMostRows);
}

constexpr bool kUnpacks = true;

#else

constexpr bool kUnpacks = false;  // a look-up a weight would take longer than the weight from memory
inline void squeezed_panel(const PanelArgs&) {}

#endif

[[maybe_unused]] inline void linear_bf16(const PanelArgs& a) { a.squeezed ? squeezed_panel(a) : panel<Bf16Step>(a); }

}  // namespace serpentine::SERPENTINE_ISA

// Sixteen floats, and the functions of them that the kernels use, for the instruction set this file is compiled for.
//
// Included by one translation unit an instruction set, each in a namespace of its own: a function shared between them
// could be linked in the form that the processor at hand cannot run. For the same reason nothing here or in the
// kernels calls the standard library's templates.
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace serpentine::SERPENTINE_ISA {

constexpr int kLanes = 16;

#if defined(__AVX512F__)

using F16 = __m512;

inline __mmask16 first(int count) { return static_cast<__mmask16>((1u << count) - 1u); }
inline F16 load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F16 v) { _mm512_storeu_ps(p, v); }
inline F16 load_some(const float* p, int count) { return _mm512_maskz_loadu_ps(first(count), p); }
inline void store_some(float* p, F16 v, int count) { _mm512_mask_storeu_ps(p, first(count), v); }
inline F16 broadcast(float x) { return _mm512_set1_ps(x); }
inline F16 add(F16 a, F16 b) { return _mm512_add_ps(a, b); }
inline F16 sub(F16 a, F16 b) { return _mm512_sub_ps(a, b); }
inline F16 mul(F16 a, F16 b) { return _mm512_mul_ps(a, b); }
inline F16 div(F16 a, F16 b) { return _mm512_div_ps(a, b); }
inline F16 fma(F16 a, F16 b, F16 c) { return _mm512_fmadd_ps(a, b, c); }
// max and min give b where either is NaN.
inline F16 max(F16 a, F16 b) { return _mm512_max_ps(a, b); }
inline F16 min(F16 a, F16 b) { return _mm512_min_ps(a, b); }
inline bool any_less(F16 a, F16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ) != 0; }
// Pairs of bf16 [16][2]: the first and the second of each pair.
inline F16 first_of_pairs(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
inline F16 second_of_pairs(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xffff0000)));
}
inline void store_bf16(uint16_t* p, F16 v, int count) {
    __m512i bits = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    _mm512_mask_cvtepi32_storeu_epi16(p, first(count), bits);
}

#elif defined(__AVX2__) && defined(__FMA__)

struct F16 {
    __m256 low, high;
};

inline F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F16 v) {
    _mm256_storeu_ps(p, v.low);
    _mm256_storeu_ps(p + 8, v.high);
}
inline F16 load_some(const float* p, int count) {
    float all[kLanes] = {};
    memcpy(all, p, sizeof(float) * static_cast<size_t>(count));
    return load(all);
}
inline void store_some(float* p, F16 v, int count) {
    float all[kLanes];
    store(all, v);
    memcpy(p, all, sizeof(float) * static_cast<size_t>(count));
}
inline F16 broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F16 add(F16 a, F16 b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline F16 sub(F16 a, F16 b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline F16 mul(F16 a, F16 b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline F16 div(F16 a, F16 b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
inline F16 fma(F16 a, F16 b, F16 c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline F16 max(F16 a, F16 b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline F16 min(F16 a, F16 b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline bool any_less(F16 a, F16 b) {
    return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ),
                                           _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ))) != 0;
}
// p * 2^n, where `shifted` is n + 1.5 * 2^23: its low bits are n, moved up to the exponent.
inline __m256 scale(__m256 p, __m256 shifted) {
    return _mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(shifted), 23)));
}
inline F16 scale(F16 p, F16 shifted) { return {scale(p.low, shifted.low), scale(p.high, shifted.high)}; }
inline __m256i load_bits(const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline F16 first_of_pairs(const uint16_t* p) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(load_bits(p), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(load_bits(p + 16), 16))};
}
inline F16 second_of_pairs(const uint16_t* p) {
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm256_castsi256_ps(_mm256_and_si256(load_bits(p), upper)),
            _mm256_castsi256_ps(_mm256_and_si256(load_bits(p + 16), upper))};
}

#else

struct F16 {
    float lane[kLanes];
};

#define SERPENTINE_LANES(expression)                        \
    F16 out;                                                \
    for (int i = 0; i < kLanes; ++i) out.lane[i] = expression; \
    return out;
inline F16 load(const float* p) { SERPENTINE_LANES(p[i]) }
inline void store(float* p, const F16& v) { memcpy(p, v.lane, sizeof v.lane); }
inline F16 load_some(const float* p, int count) { SERPENTINE_LANES(i < count ? p[i] : 0.0f) }
inline void store_some(float* p, const F16& v, int count) {
    memcpy(p, v.lane, sizeof(float) * static_cast<size_t>(count));
}
inline F16 broadcast(float x) { SERPENTINE_LANES(x) }
inline F16 add(const F16& a, const F16& b) { SERPENTINE_LANES(a.lane[i] + b.lane[i]) }
inline F16 sub(const F16& a, const F16& b) { SERPENTINE_LANES(a.lane[i] - b.lane[i]) }
inline F16 mul(const F16& a, const F16& b) { SERPENTINE_LANES(a.lane[i] * b.lane[i]) }
inline F16 div(const F16& a, const F16& b) { SERPENTINE_LANES(a.lane[i] / b.lane[i]) }
inline F16 fma(const F16& a, const F16& b, const F16& c) { SERPENTINE_LANES(a.lane[i] * b.lane[i] + c.lane[i]) }
inline F16 max(const F16& a, const F16& b) { SERPENTINE_LANES(a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]) }
inline F16 min(const F16& a, const F16& b) { SERPENTINE_LANES(a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]) }
inline bool any_less(const F16& a, const F16& b) {
    bool any = false;
    for (int i = 0; i < kLanes; ++i) any |= a.lane[i] < b.lane[i];
    return any;
}
inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
// p * 2^n, where `shifted` is n + 1.5 * 2^23: its low bits are n, moved up to the exponent.
inline F16 scale(const F16& p, const F16& shifted) {
    SERPENTINE_LANES(float_of(bits_of(p.lane[i]) + (bits_of(shifted.lane[i]) << 23)))
}
inline F16 first_of_pairs(const uint16_t* p) { SERPENTINE_LANES(float_of(static_cast<uint32_t>(p[2 * i]) << 16)) }
inline F16 second_of_pairs(const uint16_t* p) { SERPENTINE_LANES(float_of(static_cast<uint32_t>(p[2 * i + 1]) << 16)) }
#undef SERPENTINE_LANES

#endif

#if !defined(__AVX512F__)
inline void store_bf16(uint16_t* p, const F16& v, int count) {
    float all[kLanes];
    store(all, v);
    for (int i = 0; i < count; ++i) {
        uint32_t bits;
        memcpy(&bits, all + i, sizeof bits);
        p[i] = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
}
#endif

inline F16 load(const float* p, int count) { return count >= kLanes ? load(p) : load_some(p, count); }
inline void store(float* p, F16 v, int count) {
    if (count >= kLanes)
        store(p, v);
    else
        store_some(p, v, count);
}
inline F16 zero() { return broadcast(0.0f); }

// The sum of all lanes, always in the same order.
inline float sum(F16 v) {
    float s[kLanes];
    store(s, v);
    for (int half = kLanes / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) s[i] += s[i + half];
    return s[0];
}

constexpr float kLog2e = 1.44269502f, kLog2eRest = 1.92596303e-8f;

#if defined(__AVX512F__)

// 2^(i / 32), less i steps of the exponent's field divided by 32, which `power` adds with the integer part.
alignas(64) inline constexpr uint32_t kPowers[32] = {
    0x3f800000, 0x3f7ecd87, 0x3f7daac3, 0x3f7c980f, 0x3f7b95c2, 0x3f7aa43a, 0x3f79c3d3, 0x3f78f4f0,
    0x3f7837f0, 0x3f778d3a, 0x3f76f532, 0x3f767043, 0x3f75fed7, 0x3f75a15b, 0x3f75583f, 0x3f7523f6,
    0x3f7504f3, 0x3f74fbaf, 0x3f7508a4, 0x3f752c4d, 0x3f75672a, 0x3f75b9be, 0x3f76248c, 0x3f76a81e,
    0x3f7744fd, 0x3f77fbb8, 0x3f78ccdf, 0x3f79b907, 0x3f7ac0c7, 0x3f7be4ba, 0x3f7d257d, 0x3f7e83b3,
};
constexpr float kShift = 393216.0f;  // 1.5 * 2^18: adding it leaves the nearest multiple of 1/32 in the low bits

// 2^(n + f), `shifted` being n + kShift, n a multiple of 1/32, |f| <= 1/64; 1 at 0. Relative error 1.1e-7.
inline F16 power(F16 f, F16 shifted) {
    const __m512i index = _mm512_castps_si512(shifted);
    const __m512i root = _mm512_permutex2var_epi32(_mm512_load_si512(kPowers), index, _mm512_load_si512(kPowers + 16));
    const F16 scale = _mm512_castsi512_ps(_mm512_add_epi32(root, _mm512_slli_epi32(index, 18)));
    const F16 p = fma(broadcast(0.24022706f), f, broadcast(0.69315731f));
    return mul(fma(p, f, broadcast(1.0f)), scale);
}

#else

constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits

// 2^(n + f), `shifted` being n + kShift, n an integer, |f| <= 1/2; 1 at 0. A minimax polynomial: 2e-9 before rounding.
inline F16 power(F16 f, F16 shifted) {
    F16 p = broadcast(1.53533618e-4f);
    p = fma(p, f, broadcast(1.33988744e-3f));
    p = fma(p, f, broadcast(9.61843736e-3f));
    p = fma(p, f, broadcast(5.55033247e-2f));
    p = fma(p, f, broadcast(2.40226479e-1f));
    p = fma(p, f, broadcast(6.93147203e-1f));
    return scale(fma(p, f, broadcast(1.0f)), shifted);
}

#endif

constexpr float kLeast = -125.0f;  // 2^t of less is denormal, which is slow

// 2^t for t in [kLeast, 127]; NaN stays NaN.
inline F16 exp2_inside(F16 t) {
    const F16 shifted = add(t, broadcast(kShift));
    return power(sub(t, sub(shifted, broadcast(kShift))), shifted);
}

// 2^t for t <= 127, less than kLeast taken as that.
inline F16 exp2(F16 t) { return exp2_inside(max(broadcast(kLeast), t)); }

// e^x, x clamped to [-86, 88].
inline F16 exp(F16 x) {
    x = min(broadcast(88.0f), max(broadcast(-86.0f), x));
    const F16 shifted = add(mul(x, broadcast(kLog2e)), broadcast(kShift));
    const F16 n = sub(shifted, broadcast(kShift));
    const F16 f = fma(x, broadcast(kLog2eRest), fma(x, broadcast(kLog2e), sub(zero(), n)));
    return power(f, shifted);
}

inline F16 silu(F16 x) { return div(x, add(broadcast(1.0f), exp(sub(zero(), x)))); }

// log(1 + e^x) as max(x, 0) + 2 artanh(u / (2 + u)), u = e^-|x|: small values keep their relative precision.
inline F16 softplus(F16 x) {
    const F16 minus = sub(zero(), x);
    const F16 u = exp(min(x, minus));
    const F16 s = div(u, add(broadcast(2.0f), u));
    const F16 s2 = mul(s, s);
    F16 p = broadcast(1.0f / 13);
    p = fma(p, s2, broadcast(1.0f / 11));
    p = fma(p, s2, broadcast(1.0f / 9));
    p = fma(p, s2, broadcast(1.0f / 7));
    p = fma(p, s2, broadcast(1.0f / 5));
    p = fma(p, s2, broadcast(1.0f / 3));
    p = fma(p, s2, broadcast(1.0f));
    return fma(add(s, s), p, max(zero(), x));
}

}  // namespace serpentine::SERPENTINE_ISA

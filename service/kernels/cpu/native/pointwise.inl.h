// Norms and conversions, a row a call, and the causal convolution, 16 channels a call.

namespace serpentine::SERPENTINE_ISA {

inline int lanes_left(int d, int at) { return d - at < kVector ? d - at : kVector; }

inline void put(F16 v, int count, float* y, uint16_t* y16) {
    if (y) store(y, v, count);
    if (y16) store_bf16(y16, v, count);
}

inline void rms_norm(const float* x, const float* weight, int d, float eps, float* y, uint16_t* y16) {
    F16 squares = zero();
    for (int i = 0; i < d; i += kVector) {
        const F16 v = load(x + i, d - i);
        squares = fma(v, v, squares);
    }
    const F16 factor = broadcast(1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(d) + eps));
    for (int i = 0; i < d; i += kVector) {
        const F16 v = mul(mul(load(x + i, d - i), factor), load(weight + i, d - i));
        put(v, lanes_left(d, i), y ? y + i : nullptr, y16 ? y16 + i : nullptr);
    }
}

inline void layer_norm(const float* x, const float* weight, const float* bias, int d, float eps, float* y,
                       uint16_t* y16) {
    F16 total = zero();
    for (int i = 0; i < d; i += kVector) total = add(total, load(x + i, d - i));
    const F16 mean = broadcast(sum(total) / static_cast<float>(d));
    F16 squares = zero();
    for (int i = 0; i < d; i += kVector) {
        float centred[kVector];
        store(centred, sub(load(x + i, d - i), mean));
        const F16 v = load(centred, d - i);  // lanes past the end back to zero
        squares = fma(v, v, squares);
    }
    const F16 factor = broadcast(1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(d) + eps));
    for (int i = 0; i < d; i += kVector) {
        const F16 v = fma(mul(sub(load(x + i, d - i), mean), factor), load(weight + i, d - i), load(bias + i, d - i));
        put(v, lanes_left(d, i), y ? y + i : nullptr, y16 ? y16 + i : nullptr);
    }
}

inline void round_row(const float* x, int d, uint16_t* y16) {
    for (int i = 0; i < d; i += kVector) store_bf16(y16 + i, load(x + i, d - i), lanes_left(d, i));
}

inline void widen_row(const uint16_t* x16, int d, float* x) {
    for (int i = 0; i < d; ++i) {
        const uint32_t bits = static_cast<uint32_t>(x16[i]) << 16;
        memcpy(x + i, &bits, sizeof bits);
    }
}

constexpr int kWeightsAhead = 4;  // blocks of channels, at which their taps are asked for

// Taps: the number where it is known when compiling, so that the window stays in registers; 0 where it is not.
template <int Taps>
void convolve_taps(const ConvArgs& a) {
    const int taps = Taps ? Taps : a.taps;
    F16 weight[Taps ? Taps : kMaxWindow], window[Taps ? Taps : kMaxWindow];
    for (int j = 0; j < taps; ++j) weight[j] = load(a.weight + j * kVector);
    for (int j = 0; a.next && j + 1 < taps; ++j) __builtin_prefetch(a.next + j * a.window_stride, 1);
    for (int j = 0; a.next && j < taps; ++j) __builtin_prefetch(a.weight + (kWeightsAhead * taps + j) * kVector);
    for (int j = 0; j + 1 < taps; ++j)
        window[j] = a.fresh ? zero() : load(a.window + j * a.window_stride, a.channels);
    const F16 bias = load(a.bias);
    for (int t = 0; t < a.rows; ++t) {
        F16 y = zero();
        if (!a.present || (a.present[t] >> a.chain & 1)) {
            window[taps - 1] = load(a.u + t * a.u_stride, a.channels);
            y = bias;
            for (int j = 0; j < taps; ++j) y = fma(weight[j], window[j], y);
            for (int j = 0; j + 1 < taps; ++j) window[j] = window[j + 1];
            if (a.silu) y = silu(y);
        }
        put(y, a.channels, a.x + t * a.x_stride, a.x16 ? a.x16 + t * a.x16_stride : nullptr);
    }
    for (int j = 0; j + 1 < taps; ++j) store(a.window + j * a.window_stride, window[j], a.channels);
}

inline void convolve(const ConvArgs& a) {
    if (a.taps == 4)
        convolve_taps<4>(a);
    else
        convolve_taps<0>(a);
}

}  // namespace serpentine::SERPENTINE_ISA

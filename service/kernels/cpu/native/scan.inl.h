// The recurrences, 16 channels and one sequence a call.

namespace serpentine::SERPENTINE_ISA {

constexpr int kLocalStates = 512;  // most states that are moved next to each other, for a long sequence
constexpr int kLongRows = 4;

struct State {
    float* h;
    ptrdiff_t stride;
    int count;  // channels
};

// Moves a slot's states into `local` where they are used often enough, so that their stride does no harm in the cache.
inline State open_state(float* h, ptrdiff_t stride, int states, int channels, bool fresh, int rows, float* local) {
    const bool moved = rows >= kLongRows && states <= kLocalStates;
    const State state = moved ? State{local, kVector, kVector} : State{h, stride, channels};
    if (!fresh && !moved) return state;
    for (int n = 0; n < states; ++n)
        store(state.h + n * state.stride, fresh ? zero() : load(h + n * stride, channels), state.count);
    return state;
}

inline void close_state(const State& state, float* h, ptrdiff_t stride, int states, int channels) {
    if (state.h == h) return;
    for (int n = 0; n < states; ++n) store(h + n * stride, load(state.h + n * state.stride), channels);
}

inline void put_gated(const ChainArgs& c, const ScanStrides& s, ptrdiff_t t, int channels, F16 y) {
    if (c.z) y = mul(y, silu(load(c.z + t * s.z, channels)));
    put(y, channels, c.y ? c.y + t * s.y : nullptr, c.y16 ? c.y16 + t * s.y16 : nullptr);
}

inline void selective(const SelectiveArgs& a) {
    float local[kLocalStates * kVector];
    const State state = open_state(a.h, a.h_stride, a.states, a.channels, a.fresh, a.rows, local);
    const ChainArgs& c = a.chain;
    for (ptrdiff_t t = 0; t < a.rows; ++t) {
        const F16 x = load(c.x + t * a.stride.x, a.channels);
        const F16 dt = load(c.dt + t * a.stride.dt, a.channels);
        const F16 dtx = mul(dt, x);
        const float *B = c.B + t * a.stride.BC, *C = c.C + t * a.stride.BC;
        F16 y = mul(load(c.D), x);
        for (int n = 0; n < a.states; ++n) {
            float* h = state.h + n * state.stride;
            const F16 decay = exp2(mul(dt, load(c.A + n * kVector)));
            const F16 next = fma(decay, load(h, state.count), mul(dtx, broadcast(B[n])));
            store(h, next, state.count);
            y = fma(broadcast(C[n]), next, y);
        }
        put_gated(c, a.stride, t, a.channels, y);
    }
    close_state(state, a.h, a.h_stride, a.states, a.channels);
}

// The weights of the sum over the chains `before`, one row a chain of `after`; rows of the others are zero.
inline void mixing_weights(const CoupledArgs& a, uint8_t before, uint8_t after, float* weights) {
    for (int m = 0; m < a.count; ++m) {
        float total = 0.0f;
        for (int i = 0; i < a.count; ++i) {
            const bool counts = (after >> m & 1) && (before >> i & 1);
            const float weight = counts ? a.coupling[m * a.count + i] : 0.0f;
            weights[m * a.count + i] = weight;
            total += weight;
        }
        if (a.renormalise && total > 0.0f)
            for (int i = 0; i < a.count; ++i) weights[m * a.count + i] /= total;
    }
}

// M chains; the loop over chains is unrolled for the usual numbers.
template <int M>
void coupled_chains(const CoupledArgs& a) {
    const int count = M ? M : a.count;
    constexpr int kRoom = M ? M : kMaxChains;
    const int kept = a.rank_one ? 1 : count;
    float local[kLocalStates * kVector];
    const bool moved = a.rows >= kLongRows && kept * a.states <= kLocalStates;
    float* const h = moved ? local : a.h;
    const ptrdiff_t stride = moved ? kept * kVector : a.h_stride, chain = moved ? kVector : a.h_chain;
    const int channels = moved ? kVector : a.channels;
    if (moved || a.fresh)
        for (int n = 0; n < a.states; ++n)
            for (int m = 0; m < kept; ++m)
                store(h + n * stride + m * chain,
                      a.fresh ? zero() : load(a.h + n * a.h_stride + m * a.h_chain, a.channels), channels);

    float weights[kMaxChains * kMaxChains];
    uint8_t before = a.fresh ? 0 : a.started, weights_before = 0, weights_after = 0;
    mixing_weights(a, 0, 0, weights);
    for (ptrdiff_t t = 0; t < a.rows; ++t) {
        const uint8_t here = a.present[t], after = before | here;
        if (before != weights_before || after != weights_after) mixing_weights(a, before, after, weights);
        weights_before = before, weights_after = after;
        F16 dt[kRoom], dtx[kRoom], y[kRoom];
        float sigma[kRoom];
        for (int m = 0; m < count; ++m) {
            const ChainArgs& c = a.chains[m];
            sigma[m] = 0.0f;
            for (int i = 0; i < count; ++i)
                if (weights[m * count + i] > sigma[m]) sigma[m] = weights[m * count + i];
            dt[m] = dtx[m] = y[m] = zero();
            if (!(here >> m & 1)) continue;
            const F16 x = load(c.x + t * a.stride.x, a.channels);
            dt[m] = load(c.dt + t * a.stride.dt, a.channels);
            dtx[m] = mul(dt[m], x);
            y[m] = mul(load(c.D), x);
        }
        for (int n = 0; n < a.states; ++n) {
            float* const old = h + n * stride;
            F16 past[kRoom], next = zero();
            for (int m = 0; m < kept; ++m) past[m] = load(old + m * chain, channels);
            for (int m = 0; m < count; ++m) {
                if (!(after >> m & 1)) continue;
                F16 state;
                if (a.rank_one) {
                    state = mul(broadcast(sigma[m]), past[0]);
                } else {
                    state = zero();
                    for (int i = 0; i < count; ++i) state = fma(broadcast(weights[m * count + i]), past[i], state);
                }
                if (here >> m & 1) {
                    const ChainArgs& c = a.chains[m];
                    const F16 decay = exp2(mul(dt[m], load(c.A + n * kVector)));
                    state = fma(decay, state, mul(dtx[m], broadcast(c.B[t * a.stride.BC + n])));
                    y[m] = fma(broadcast(c.C[t * a.stride.BC + n]), state, y[m]);
                }
                if (a.rank_one)
                    next = add(next, state);
                else
                    store(old + m * chain, state, channels);
            }
            if (a.rank_one) store(old, next, channels);
        }
        for (int m = 0; m < count; ++m) {
            if (here >> m & 1)
                put_gated(a.chains[m], a.stride, t, a.channels, y[m]);
            else
                put(zero(), a.channels, a.chains[m].y ? a.chains[m].y + t * a.stride.y : nullptr,
                    a.chains[m].y16 ? a.chains[m].y16 + t * a.stride.y16 : nullptr);
        }
        before = after;
    }
    if (moved)
        for (int n = 0; n < a.states; ++n)
            for (int m = 0; m < kept; ++m)
                store(a.h + n * a.h_stride + m * a.h_chain, load(h + n * stride + m * chain), a.channels);
}

inline void coupled(const CoupledArgs& a) {
    switch (a.count) {
        case 1: return coupled_chains<1>(a);
        case 2: return coupled_chains<2>(a);
        case 3: return coupled_chains<3>(a);
        default: return coupled_chains<0>(a);
    }
}

}  // namespace serpentine::SERPENTINE_ISA

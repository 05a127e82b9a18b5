// The recurrences, 16 channels and one sequence a call.

namespace serpentine::SERPENTINE_ISA {

constexpr int kLocalStates = 512;  // most states that are moved next to each other, for a long sequence
constexpr int kLongRows = 4;
constexpr int kRatesAhead = 4;     // blocks of channels, at which a single step asks for their rates of decay

struct State {
    float* h;
    ptrdiff_t stride;
    int count;  // channels
    const float* next = nullptr;
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

// The most negative rate of each channel: no decay of the call is less than 2^(dt * it).
inline F16 least_rate(const float* A, int states) {
    F16 least = load(A);
    for (int n = 1; n < states; ++n) least = min(least, load(A + n * kVector));
    return least;
}

// kInside: dt A is known not to lie under kLeast. The same bits either way where it does not.
template <bool kInside>
inline F16 decay(F16 dt, const float* A) {
    const F16 t = mul(dt, load(A));
    return kInside ? exp2_inside(t) : exp2(t);
}

// One step of a chain by itself; kWhole: of 16 channels. The sum over the states is two sums, of the even and the odd.
template <bool kInside, bool kWhole>
inline F16 step(const State& state, int states, F16 dt, F16 dtx, const float* A, const float* B, const float* C,
                F16 y) {
    const int count = kWhole ? kVector : state.count;
    const auto advance = [&](int n, F16 sum) {
        float* h = state.h + n * state.stride;
        if (state.next) {
            __builtin_prefetch(state.next + n * state.stride, 1);
            __builtin_prefetch(A + (kRatesAhead * states + n) * kVector);
        }
        const F16 next = fma(decay<kInside>(dt, A + n * kVector), load(h, count), mul(dtx, broadcast(B[n])));
        store(h, next, count);
        return fma(broadcast(C[n]), next, sum);
    };
    F16 odd = zero();
    int n = 0;
    for (; n + 2 <= states; n += 2) {
        y = advance(n, y);
        odd = advance(n + 1, odd);
    }
    if (n < states) y = advance(n, y);
    return add(y, odd);
}

inline void selective(const SelectiveArgs& a) {
    float local[kLocalStates * kVector];
    State state = open_state(a.h, a.h_stride, a.states, a.channels, a.fresh, a.rows, local);
    if (a.rows == 1) state.next = a.next;
    const ChainArgs& c = a.chain;
    const bool whole = state.count == kVector, looks = whole && a.rows >= kLongRows;
    const F16 least = looks ? least_rate(c.A, a.states) : zero();
    for (ptrdiff_t t = 0; t < a.rows; ++t) {
        if (a.present && !(a.present[t] >> a.bit & 1)) {
            put(zero(), a.channels, c.y ? c.y + t * a.stride.y : nullptr, c.y16 ? c.y16 + t * a.stride.y16 : nullptr);
            continue;
        }
        const F16 x = load(c.x + t * a.stride.x, a.channels);
        const F16 dt = load(c.dt + t * a.stride.dt, a.channels);
        const F16 dtx = mul(dt, x);
        const float *B = c.B + t * a.stride.BC, *C = c.C + t * a.stride.BC;
        F16 y = mul(load(c.D), x);
        if (looks && !any_less(mul(dt, least), broadcast(kLeast)))
            y = step<true, true>(state, a.states, dt, dtx, c.A, B, C, y);
        else if (whole)
            y = step<false, true>(state, a.states, dt, dtx, c.A, B, C, y);
        else
            y = step<false, false>(state, a.states, dt, dtx, c.A, B, C, y);
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

// Whether every chain goes on from its own past alone.
inline bool uncoupled(const CoupledArgs& a) {
    if (a.rank_one && a.count > 1) return false;
    for (int m = 0; m < a.count; ++m)
        for (int i = 0; i < a.count; ++i)
            if (a.coupling[m * a.count + i] != (m == i ? 1.0f : 0.0f)) return false;
    return true;
}

// What a step of coupled chains reads of each chain.
template <int kRoom>
struct Inputs {
    F16 dt[kRoom], dtx[kRoom];
    const float *A[kRoom], *B[kRoom], *C[kRoom];
};

// A step at which every chain has input and has had some before, of 16 channels; y is added to.
template <int M, bool kRankOne, bool kInside>
inline void full_step(const Inputs<M>& in, float* h, ptrdiff_t stride, ptrdiff_t chain, int states,
                      const float* weights, F16* y) {
    for (int n = 0; n < states; ++n, h += stride) {
        F16 past[M], next = zero();
        if (kRankOne)
            past[0] = mul(broadcast(weights[0]), load(h));
        else
            for (int i = 0; i < M; ++i) past[i] = load(h + i * chain);
        for (int m = 0; m < M; ++m) {
            F16 sum = past[0];
            if (!kRankOne) {
                sum = mul(broadcast(weights[m * M]), past[0]);
                for (int i = 1; i < M; ++i) sum = fma(broadcast(weights[m * M + i]), past[i], sum);
            }
            const F16 state = fma(decay<kInside>(in.dt[m], in.A[m] + n * kVector), sum,
                                  mul(in.dtx[m], broadcast(in.B[m][n])));
            y[m] = fma(broadcast(in.C[m][n]), state, y[m]);
            if (kRankOne)
                next = m ? add(next, state) : state;
            else
                store(h + m * chain, state);
        }
        if (kRankOne) store(h, next);
    }
}

// Any other step: chains outside `after` are untouched, of those outside `here` the past is mixed and nothing is read.
template <int kRoom>
inline void partial_step(const CoupledArgs& a, const Inputs<kRoom>& in, float* h, ptrdiff_t stride, ptrdiff_t chain,
                         int channels, uint8_t here, uint8_t after, const float* weights, F16* y) {
    const int kept = a.rank_one ? 1 : a.count;
    for (int n = 0; n < a.states; ++n, h += stride) {
        F16 past[kRoom], next = zero();
        for (int m = 0; m < kept; ++m) past[m] = load(h + m * chain, channels);
        for (int m = 0; m < a.count; ++m) {
            if (!(after >> m & 1)) continue;
            F16 state = zero();
            if (a.rank_one) {
                float weight = 0.0f;  // that of every chain that counts
                for (int i = 0; i < a.count; ++i)
                    if (weights[m * a.count + i] > weight) weight = weights[m * a.count + i];
                state = mul(broadcast(weight), past[0]);
            } else {
                for (int i = 0; i < a.count; ++i) state = fma(broadcast(weights[m * a.count + i]), past[i], state);
            }
            if (here >> m & 1) {
                state = fma(decay<false>(in.dt[m], in.A[m] + n * kVector), state,
                            mul(in.dtx[m], broadcast(in.B[m][n])));
                y[m] = fma(broadcast(in.C[m][n]), state, y[m]);
            }
            if (a.rank_one)
                next = add(next, state);
            else
                store(h + m * chain, state, channels);
        }
        if (a.rank_one) store(h, next, channels);
    }
}

// M chains, their loop unrolled; 0: any number.
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

    Inputs<kRoom> in;
    F16 least[kRoom];
    const bool looks = a.rows >= kLongRows;
    for (int m = 0; m < count; ++m) {
        in.A[m] = a.chains[m].A;
        least[m] = looks ? least_rate(in.A[m], a.states) : zero();
    }
    float weights[kMaxChains * kMaxChains];
    const uint8_t all = static_cast<uint8_t>((1u << count) - 1u);
    uint8_t before = a.fresh ? 0 : a.started, weights_before = 0, weights_after = 0;
    mixing_weights(a, 0, 0, weights);
    for (ptrdiff_t t = 0; t < a.rows; ++t) {
        const uint8_t here = a.present[t], after = before | here;
        if (before != weights_before || after != weights_after) mixing_weights(a, before, after, weights);
        weights_before = before, weights_after = after;
        F16 y[kRoom];
        bool inside = looks;
        for (int m = 0; m < count; ++m) {
            const ChainArgs& c = a.chains[m];
                in.dt[m] = in.dtx[m] = y[m] = zero();
            if (!(here >> m & 1)) continue;
            const F16 x = load(c.x + t * a.stride.x, a.channels);
            in.dt[m] = load(c.dt + t * a.stride.dt, a.channels);
            in.dtx[m] = mul(in.dt[m], x);
            in.B[m] = c.B + t * a.stride.BC;
            in.C[m] = c.C + t * a.stride.BC;
            y[m] = mul(load(c.D), x);
            inside = inside && !any_less(mul(in.dt[m], least[m]), broadcast(kLeast));
        }
        bool done = false;
        if constexpr (M > 0) {
            done = here == all && before == all && channels == kVector;
            if (done && a.rank_one) {
                if (inside)
                    full_step<M, true, true>(in, h, stride, chain, a.states, weights, y);
                else
                    full_step<M, true, false>(in, h, stride, chain, a.states, weights, y);
            } else if (done) {
                if (inside)
                    full_step<M, false, true>(in, h, stride, chain, a.states, weights, y);
                else
                    full_step<M, false, false>(in, h, stride, chain, a.states, weights, y);
            }
        }
        if (!done) partial_step<kRoom>(a, in, h, stride, chain, channels, here, after, weights, y);
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
    if (uncoupled(a)) {
        for (int m = 0; m < a.count; ++m)
            selective({
                .chain = a.chains[m],
                .stride = a.stride,
                .rows = a.rows,
                .present = a.present,
                .bit = m,
                .states = a.states,
                .h = a.h + m * a.h_chain,
                .h_stride = a.h_stride,
                .channels = a.channels,
                .fresh = a.fresh || !(a.started >> m & 1),
                .next = nullptr,
            });
        return;
    }
    switch (a.count) {
        case 2: return coupled_chains<2>(a);
        case 3: return coupled_chains<3>(a);
        default: return coupled_chains<0>(a);
    }
}

}  // namespace serpentine::SERPENTINE_ISA

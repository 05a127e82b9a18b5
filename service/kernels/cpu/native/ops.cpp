#include "ops.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "channels.h"
#include "packed.h"

namespace serpentine {
namespace {

// f(segment, channel, channels of the block) for every sequence and every 16 channels; `work` is that of a channel.
template <class F>
void each_block(int threads, int64_t work, const std::vector<Segment>& segments, int d, F&& f) {
    const int blocks = (d + kVector - 1) / kVector;
    Pool::shared().run(threads_for(threads, work * d), [&](Team& team) {
        team.each(static_cast<int>(segments.size()) * blocks, [&](int item) {
            const int c = item % blocks * kVector;
            f(segments[static_cast<size_t>(item / blocks)], c, std::min(kVector, d - c));
        });
    });
}

std::vector<Segment> whole(const char* op, const Packing& packing) {
    PackingCheck()(op, packing);
    std::vector<Segment> segments;
    segments_of(packing, 0, packing.rows, segments);
    return segments;
}

ChainArgs chain_at(const ScanTensors& s, int64_t rows, int chain, int64_t row, int c, const Channels& A,
                   const Channels& D) {
    const int64_t at = (chain * rows + row) * s.d + c, states = (chain * rows + row) * s.n;
    return {.x = s.x + at, .dt = s.dt + at, .B = s.B + states, .C = s.C + states, .A = A.at(c), .D = D.at(c),
            .z = nullptr, .y = s.y + at, .y16 = nullptr};
}

}  // namespace

void selective_scan(const Kernels& kernels, const Packing& packing, const ScanTensors& s, PoolOf<float> state,
                    int threads) {
    const std::vector<Segment> segments = whole("selective_scan", packing);
    const Channels A(s.A, s.n, s.d, kLog2e), D(s.D, 1, s.d);
    each_block(threads, packing.rows * s.n * 8, segments, s.d, [&](const Segment& segment, int c, int channels) {
        kernels.selective({
            .chain = chain_at(s, packing.rows, 0, segment.begin, c, A, D),
            .stride = {.x = s.d, .dt = s.d, .BC = s.n, .z = 0, .y = s.d, .y16 = 0},
            .rows = segment.rows,
            .present = nullptr,
            .bit = 0,
            .states = s.n,
            .h = state.data + segment.slot * state.stride + c,
            .h_stride = s.d,
            .channels = channels,
            .fresh = segment.fresh,
            .next = nullptr,
        });
    });
}

std::vector<uint8_t> presence_bits(const bool* present, int chains, int64_t rows) {
    std::vector<uint8_t> bits(static_cast<size_t>(rows), 0);
    for (int m = 0; m < chains; ++m)
        for (int64_t t = 0; t < rows; ++t)
            if (!present || present[m * rows + t]) bits[static_cast<size_t>(t)] |= static_cast<uint8_t>(1u << m);
    return bits;
}

void coupled_scan(const Kernels& kernels, const Packing& packing, const ScanTensors& s, const Coupling& coupling,
                  const bool* present, PoolOf<float> state, PoolOf<bool> started, int threads) {
    const ptrdiff_t weights = static_cast<ptrdiff_t>(s.chains) * s.chains;
    if (coupling.rank_one && std::count(coupling.weights, coupling.weights + weights, coupling.weights[0]) != weights)
        throw std::invalid_argument("coupled_scan: a state of one chain needs a coupling whose weights are all equal");
    const std::vector<Segment> segments = whole("coupled_scan", packing);
    const std::vector<uint8_t> bits = presence_bits(present, s.chains, packing.rows);
    std::vector<Channels> A, D;
    for (int m = 0; m < s.chains; ++m) {
        A.emplace_back(s.A + static_cast<ptrdiff_t>(m) * s.n * s.d, s.n, s.d, kLog2e);
        D.emplace_back(s.D + static_cast<ptrdiff_t>(m) * s.d, 1, s.d);
    }
    const int64_t work = packing.rows * s.chains * s.n * 8;
    each_block(threads, work, segments, s.d, [&](const Segment& segment, int c, int channels) {
        ChainArgs chains[kMaxChains];
        uint8_t begun = 0;
        for (int m = 0; m < s.chains; ++m) {
            const size_t at = static_cast<size_t>(m);
            chains[m] = chain_at(s, packing.rows, m, segment.begin, c, A[at], D[at]);
            begun |= static_cast<uint8_t>(started.data[segment.slot * started.stride + m] << m);
        }
        kernels.coupled({
            .chains = chains,
            .stride = {.x = s.d, .dt = s.d, .BC = s.n, .z = 0, .y = s.d, .y16 = 0},
            .count = s.chains,
            .coupling = coupling.weights,
            .renormalise = coupling.renormalise,
            .rank_one = coupling.rank_one,
            .rows = segment.rows,
            .present = bits.data() + segment.begin,
            .states = s.n,
            .h = state.data + segment.slot * state.stride + c,
            .h_stride = s.d,
            .h_chain = static_cast<ptrdiff_t>(s.n) * s.d,
            .channels = channels,
            .fresh = segment.fresh,
            .started = begun,
        });
    });
    for (const Segment& segment : segments) {
        uint8_t heard = 0;
        for (int t = 0; t < segment.rows; ++t) heard |= bits[static_cast<size_t>(segment.begin + t)];
        for (int m = 0; m < s.chains; ++m) {
            bool& flag = started.data[segment.slot * started.stride + m];
            flag = (flag && !segment.fresh) || (heard >> m & 1);
        }
    }
}

void causal_conv1d(const Kernels& kernels, const Packing& packing, const ConvTensors& s, const bool* present,
                   PoolOf<float> state, int threads) {
    if (s.taps > kMaxWindow)
        throw std::invalid_argument("causal_conv1d: weight has " + std::to_string(s.taps) + " taps, expected up to " +
                                    std::to_string(kMaxWindow));
    const std::vector<Segment> segments = whole("causal_conv1d", packing);
    const std::vector<uint8_t> bits = presence_bits(present, s.chains, packing.rows);
    for (int m = 0; m < s.chains; ++m) {
        const ptrdiff_t chain = m;
        const Channels weight(s.weight + chain * s.taps * s.d, s.taps, s.d), bias(s.bias + chain * s.d, 1, s.d);
        each_block(threads, packing.rows * s.taps, segments, s.d, [&](const Segment& segment, int c, int channels) {
            const ptrdiff_t at = (chain * packing.rows + segment.begin) * s.d + c;
            kernels.convolve({
                .u = s.x + at,
                .u_stride = s.d,
                .rows = segment.rows,
                .present = bits.data() + segment.begin,
                .chain = m,
                .taps = s.taps,
                .weight = weight.at(c),
                .bias = bias.at(c),
                .window = state.data + segment.slot * state.stride + chain * (s.taps - 1) * s.d + c,
                .window_stride = s.d,
                .next = nullptr,
                .channels = channels,
                .fresh = segment.fresh,
                .silu = false,
                .x = s.y + at,
                .x_stride = s.d,
                .x16 = nullptr,
                .x16_stride = 0,
            });
        });
    }
}

void routed_linear(const Kernels& kernels, const LinearTensors& s, Dtype dtype, int threads) {
    std::vector<std::vector<int>> rows_of(static_cast<size_t>(s.copies));
    for (int t = 0; t < s.rows; ++t) {
        const int64_t route = s.copies == 1 ? 0 : s.route[t];
        if (route < 0 || route >= s.copies)
            throw std::invalid_argument("routed_linear: route must be in 0.." + std::to_string(s.copies - 1) +
                                        ", got " + std::to_string(route));
        rows_of[static_cast<size_t>(route)].push_back(t);
    }
    const Packed weight(kernels, s.weight, s.bias, s.copies, s.outputs, s.inputs, dtype);
    const ptrdiff_t stride = s.inputs + s.inputs % 2;
    Buffer<uint16_t> x16(dtype == Dtype::bf16 ? static_cast<size_t>(s.rows * stride) : 0);
    if (dtype == Dtype::bf16)
        for (ptrdiff_t t = 0; t < s.rows; ++t) kernels.round(s.x + t * s.inputs, s.inputs, x16.data() + t * stride);
    const Rows x = dtype == Dtype::bf16 ? Rows{x16.data(), stride} : Rows{s.x, s.inputs};
    const int64_t work = static_cast<int64_t>(s.rows) * s.outputs * s.inputs;
    Pool::shared().run(threads_for(threads, work), [&](Team& team) {
        weight.apply(team, kernels, rows_of, x, {.y = s.y, .stride = s.outputs});
    });
}

}  // namespace serpentine

#include "coupled.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace serpentine {
namespace {

ptrdiff_t padded(int count) { return (count + kVector - 1) / kVector * kVector; }

Buffer<float> copied(const float* values, int count) {
    Buffer<float> out(static_cast<size_t>(count));
    if (values) std::copy_n(values, count, out.data());
    return out;
}

}  // namespace

Coupled::Coupled(const CoupledSizes& sizes, Dtype dtype, const Kernels& kernels, int block_rows)
    : sizes_(sizes), dtype_(dtype), kernels_(kernels), block_rows_(block_rows) {
    if (sizes.d_conv > kMaxWindow || sizes.modalities > kMaxChains)
        throw std::invalid_argument("d_conv and modalities: the cpu backend takes up to " + std::to_string(kMaxWindow) +
                                    " and " + std::to_string(kMaxChains) + ", got " + std::to_string(sizes.d_conv) +
                                    " and " + std::to_string(sizes.modalities));
    model_ = padded(sizes.d_model);
    inner_ = padded(sizes.d_inner);
    head_ = padded(sizes.d_head);
    const size_t steps = static_cast<size_t>(block_rows), rows = steps * static_cast<size_t>(sizes.modalities);
    const auto of = [](size_t count, ptrdiff_t stride) { return Buffer<float>(count * static_cast<size_t>(stride)); };
    e_ = of(rows, model_);
    uz_ = of(rows, 2 * inner_);
    dt_ = of(rows, inner_);
    activation_ = Operands(dtype, rows, std::max(model_, inner_), false);
    x_ = Operands(dtype, rows, inner_, true);
    projected_ = Operands(dtype, rows, padded(sizes.dt_rank + 2 * sizes.d_state), true);
    if (sizes.dense) mixed_ = Operands(dtype, rows, sizes.modalities * model_, false);
    read_features_ = of(steps, 2 * model_);
    head_rows_ = of(steps, head_);
    outputs_ = of(steps, padded(sizes.outputs));
    present_.resize(steps);
    rows_of_.resize(static_cast<size_t>(sizes.modalities));
    for (auto& list : rows_of_) list.reserve(steps);
    reads_.reserve(steps);
    read_rows_.resize(1);
    read_rows_[0].reserve(steps);
}

Packed Coupled::packed(const float* weight, const float* bias, int copies, int outputs, int inputs) const {
    return Packed(kernels_, weight, bias, copies, outputs, inputs, dtype_);
}

void Coupled::add_input(const CoupledInputTensors& t) {
    const int d = sizes_.d_model, first = t.hidden ? t.hidden : d;
    Input input{.features = t.features, .hidden = t.hidden, .mean = copied(t.mean, t.features),
                .scale = copied(t.scale, t.features), .linear = packed(t.linear.weight, t.linear.bias, 1, first, t.features),
                .second = {}, .norm = {}, .second_norm = {}};
    if (t.hidden) {
        input.norm = {copied(t.norm.weight, t.hidden), copied(t.norm.bias, t.hidden)};
        input.second = packed(t.second.weight, t.second.bias, 1, d, t.hidden);
        input.second_norm = {copied(t.second_norm.weight, d), copied(t.second_norm.bias, d)};
    }
    inputs_.push_back(std::move(input));
    features_ = std::max(features_, padded(t.features));
    hidden_ = std::max(hidden_, padded(t.hidden));
    const size_t rows = static_cast<size_t>(block_rows_ * sizes_.modalities);
    values_ = Operands(dtype_, rows, features_, true);
    hidden_rows_ = Operands(dtype_, rows, hidden_, true);
}

void Coupled::add_layer(const CoupledLayerTensors& t) {
    const CoupledSizes& s = sizes_;
    const int m = s.modalities, projected = s.dt_rank + 2 * s.d_state;
    Layer layer{.norm = {copied(t.norm.weight, m * s.d_model), copied(t.norm.bias, m * s.d_model)},
                .in_proj = packed(t.in_proj, nullptr, m, 2 * s.d_inner, s.d_model),
                .x_proj = packed(t.x_proj, nullptr, m, projected, s.d_inner),
                .dt_proj = packed(t.dt_proj.weight, t.dt_proj.bias, m, s.d_inner, s.dt_rank),
                .out_proj = packed(t.out_proj, nullptr, m, s.d_model, s.d_inner),
                .conv_weight = {}, .conv_bias = {}, .A = {}, .D = {}, .coupling = copied(t.coupling, m * m)};
    for (ptrdiff_t i = 0; i < m; ++i) {
        layer.conv_weight.emplace_back(t.conv_weight + i * s.d_conv * s.d_inner, s.d_conv, s.d_inner);
        layer.conv_bias.emplace_back(t.conv_bias + i * s.d_inner, 1, s.d_inner);
        layer.A.emplace_back(t.A + i * s.d_state * s.d_inner, s.d_state, s.d_inner, kLog2e);
        layer.D.emplace_back(t.D + i * s.d_inner, 1, s.d_inner);
    }
    layers_.push_back(std::move(layer));
}

void Coupled::add_ends(const CoupledEndTensors& t) {
    const CoupledSizes& s = sizes_;
    norm_f_ = {copied(t.norm_f.weight, s.modalities * s.d_model), copied(t.norm_f.bias, s.modalities * s.d_model)};
    if (s.dense)
        cross_ = packed(t.cross.weight, t.cross.bias, s.modalities, s.d_model, s.modalities * s.d_model);
    const auto head = [&](const Affine& map, int outputs, int inputs) {
        return Packed(kernels_, map.weight, map.bias, 1, outputs, inputs, Dtype::f32);
    };
    dense_ = head(t.dense, s.d_head, (s.maximum + s.mean) * s.d_model);
    out_proj_ = head(t.out_proj, s.outputs, s.d_head);
    weights_.assign(t.weights, t.weights + s.modalities);
}

size_t Coupled::weight_bytes() const {
    size_t bytes = cross_.bytes() + dense_.bytes() + out_proj_.bytes() + norm_f_.weight.bytes() * 2;
    for (const Input& i : inputs_)
        bytes += i.mean.bytes() * 2 + i.linear.bytes() + i.second.bytes() + i.norm.weight.bytes() * 2 +
                 i.second_norm.weight.bytes() * 2;
    for (const Layer& l : layers_) {
        bytes += l.norm.weight.bytes() * 2 + l.in_proj.bytes() + l.x_proj.bytes() + l.dt_proj.bytes() +
                 l.out_proj.bytes() + l.coupling.bytes();
        for (const auto* channels : {&l.conv_weight, &l.conv_bias, &l.A, &l.D})
            for (const Channels& c : *channels) bytes += c.bytes();
    }
    return bytes;
}

size_t Coupled::work_of_a_row() const {
    size_t weights = 0;
    for (const Layer& l : layers_)
        weights += l.in_proj.weights_of_a_row() + l.x_proj.weights_of_a_row() + l.dt_proj.weights_of_a_row() +
                   l.out_proj.weights_of_a_row() + static_cast<size_t>(sizes_.d_inner * sizes_.d_state) * 8;
    return weights;
}

void Coupled::run(const Packing& packing, std::span<const float* const> inputs, const bool* present,
                  const CoupledState& state, bool alone, float* outputs, int threads) {
    check_packing_("CoupledMambaProgram", packing);
    const int64_t work = packing.rows * sizes_.modalities * static_cast<int64_t>(work_of_a_row());
    Pool::shared().run(threads_for(threads, work), [&](Team& team) {
        int64_t first = 0;
        do {
            const Block block{first, static_cast<int>(std::min<int64_t>(block_rows_, packing.rows - first))};
            // One thread of the team sorts the rows; the others wait at the end of `each`.
            team.each(1, [&](int) { open_block(packing, present, block); });
            run_inputs(team, inputs, block);
            for (size_t index = 0; index < layers_.size(); ++index) run_layer(team, index, state);
            if (!sizes_.dense)
                each_row(team, [&](int row, int m) {
                    float* e = e_.data() + row * model_;
                    const ptrdiff_t at = static_cast<ptrdiff_t>(m) * sizes_.d_model;
                    kernels_.layer_norm(e, norm_f_.weight.data() + at, norm_f_.bias.data() + at, sizes_.d_model,
                                        sizes_.eps, e, nullptr);
                });
            team.each(static_cast<int>(segments_.size()),
                      [&](int i) { pool(segments_[static_cast<size_t>(i)], state); });
            const ptrdiff_t stride = sizes_.outputs * (alone ? 2 : 1);
            run_head(team, outputs, stride);
            if (alone) {
                team.each(static_cast<int>(read_rows_[0].size()),
                          [&](int i) { read_alone(read_rows_[0][static_cast<size_t>(i)]); });
                run_head(team, outputs + sizes_.outputs, stride);
            }
            team.each(1, [&](int) { close_block(state); });
            first += block.rows;
        } while (first < packing.rows);
    });
}

void Coupled::open_block(const Packing& packing, const bool* present, Block block) {
    segments_of(packing, block.first, block.rows, segments_);
    for (auto& rows : rows_of_) rows.clear();
    std::fill_n(present_.begin(), block.rows, uint8_t{0});
    for (int m = 0; m < sizes_.modalities; ++m) {
        const bool* here = present + m * packing.rows + block.first;
        for (int t = 0; t < block.rows; ++t) {
            if (here[t]) present_[static_cast<size_t>(t)] |= static_cast<uint8_t>(1u << m);
            if (here[t] || sizes_.dense) rows_of_[static_cast<size_t>(m)].push_back(row_of(m, t));
        }
    }
    reads_.clear();
    read_rows_[0].clear();
    for (int64_t i = 0; i < packing.reads; ++i) {
        const int64_t row = packing.read[i] - block.first;
        if (row >= 0 && row < block.rows) reads_.push_back({static_cast<int>(row), i});
    }
    std::sort(reads_.begin(), reads_.end(), [](const Read& a, const Read& b) { return a.row < b.row; });
    for (const Read& read : reads_)
        if (read_rows_[0].empty() || read_rows_[0].back() != read.row) read_rows_[0].push_back(read.row);
}

template <class F>
void Coupled::each_row(Team& team, F&& f) {
    constexpr int kRows = 16;  // that one thread takes at a time
    int items = 0;
    for (const auto& rows : rows_of_) items += (static_cast<int>(rows.size()) + kRows - 1) / kRows;
    team.each(items, [&](int item) {
        for (size_t m = 0; m < rows_of_.size(); ++m) {
            const int count = static_cast<int>(rows_of_[m].size()), chunks = (count + kRows - 1) / kRows;
            if (item < chunks) {
                for (int i = item * kRows; i < std::min(count, (item + 1) * kRows); ++i)
                    f(rows_of_[m][static_cast<size_t>(i)], static_cast<int>(m));
                return;
            }
            item -= chunks;
        }
    });
}

void Coupled::run_inputs(Team& team, std::span<const float* const> inputs, Block block) {
    each_row(team, [&](int row, int m) {
        const Input& input = inputs_[static_cast<size_t>(m)];
        const int t = row - row_of(m, 0);
        const float* from = inputs[static_cast<size_t>(m)] + (block.first + t) * input.features;
        float* to = values_.f32(row);
        const bool here = present_[static_cast<size_t>(t)] >> m & 1;
        for (int i = 0; i < input.features; ++i)
            to[i] = ((here ? from[i] : 0.0f) - input.mean.data()[i]) * input.scale.data()[i];
        if (uint16_t* rounded = values_.bf16(row)) kernels_.round(to, input.features, rounded);
    });
    const Result e{.y = e_.data(), .stride = model_};
    for (size_t m = 0; m < inputs_.size(); ++m) {
        const Input& input = inputs_[m];
        const Result hidden{.y = hidden_rows_.f32(), .stride = hidden_};
        input.linear.apply(team, kernels_, {&rows_of_[m], 1}, values_.rows(), input.hidden ? hidden : e);
    }
    if (!inputs_[0].hidden) return;
    each_row(team, [&](int row, int m) {
        const Input& input = inputs_[static_cast<size_t>(m)];
        float* h = hidden_rows_.f32(row);
        kernels_.layer_norm(h, input.norm.weight.data(), input.norm.bias.data(), input.hidden, sizes_.eps, h, nullptr);
        for (int i = 0; i < input.hidden; ++i) h[i] = h[i] < 0.0f ? 0.0f : h[i];
        if (uint16_t* rounded = hidden_rows_.bf16(row)) kernels_.round(h, input.hidden, rounded);
    });
    for (size_t m = 0; m < inputs_.size(); ++m)
        inputs_[m].second.apply(team, kernels_, {&rows_of_[m], 1}, hidden_rows_.rows(), e);
    each_row(team, [&](int row, int m) {
        const Norm& norm = inputs_[static_cast<size_t>(m)].second_norm;
        float* to = e_.data() + row * model_;
        kernels_.layer_norm(to, norm.weight.data(), norm.bias.data(), sizes_.d_model, sizes_.eps, to, nullptr);
    });
}

void Coupled::run_layer(Team& team, size_t index, const CoupledState& state) {
    const CoupledSizes& s = sizes_;
    const Layer& layer = layers_[index];
    each_row(team, [&](int row, int m) {
        const ptrdiff_t at = static_cast<ptrdiff_t>(m) * s.d_model;
        kernels_.layer_norm(e_.data() + row * model_, layer.norm.weight.data() + at, layer.norm.bias.data() + at,
                            s.d_model, s.eps, activation_.f32(row), activation_.bf16(row));
    });
    layer.in_proj.apply(team, kernels_, rows_of_, activation_.rows(), {.y = uz_.data(), .stride = 2 * inner_});
    convolve(team, index, state);
    layer.x_proj.apply(team, kernels_, rows_of_, x_.rows(),
                       {.y = projected_.f32(), .stride = projected_.stride(), .y16 = projected_.bf16(),
                        .stride16 = projected_.stride()});
    scan(team, index, state);
    if (!s.dense) {
        layer.out_proj.apply(team, kernels_, rows_of_, activation_.rows(),
                             {.y = e_.data(), .stride = model_, .then = Then::add});
        return;
    }
    layer.out_proj.apply(team, kernels_, rows_of_, activation_.rows(), {.y = x_.f32(), .stride = inner_});
    mix_streams(team, index + 1 == layers_.size());
}

void Coupled::convolve(Team& team, size_t index, const CoupledState& state) {
    const CoupledSizes& s = sizes_;
    const Layer& layer = layers_[index];
    const int blocks = (s.d_inner + kChannelsOfItem - 1) / kChannelsOfItem;
    const ptrdiff_t kept = s.d_conv - 1, layers = static_cast<ptrdiff_t>(layers_.size());
    team.each(static_cast<int>(segments_.size()) * s.modalities * blocks, [&](int item) {
        const Segment& segment = segments_[static_cast<size_t>(item / blocks / s.modalities)];
        const int m = item / blocks % s.modalities;
        const ptrdiff_t row = row_of(m, segment.begin);
        const ptrdiff_t chain = (segment.slot * layers + static_cast<ptrdiff_t>(index)) * s.modalities + m;
        const int begin = item % blocks * kChannelsOfItem, end = std::min(begin + kChannelsOfItem, s.d_inner);
        for (int c = begin; c < end; c += kVector)
            kernels_.convolve({
                .u = uz_.data() + row * 2 * inner_ + c,
                .u_stride = 2 * inner_,
                .rows = segment.rows,
                .present = present_.data() + segment.begin,
                .chain = m,
                .taps = s.d_conv,
                .weight = layer.conv_weight[static_cast<size_t>(m)].at(c),
                .bias = layer.conv_bias[static_cast<size_t>(m)].at(c),
                .window = state.conv + chain * kept * s.d_inner + c,
                .window_stride = s.d_inner,
                .next = nullptr,
                .channels = std::min(kVector, end - c),
                .fresh = segment.fresh,
                .silu = true,
                .x = x_.f32(row) + c,
                .x_stride = inner_,
                .x16 = x_.bf16() ? x_.bf16(row) + c : nullptr,
                .x16_stride = inner_,
            });
    });
}

void Coupled::scan(Team& team, size_t index, const CoupledState& state) {
    const CoupledSizes& s = sizes_;
    const Layer& layer = layers_[index];
    const ptrdiff_t layers = static_cast<ptrdiff_t>(layers_.size()), kept = s.rank_one ? 1 : s.modalities;
    const ptrdiff_t chain_size = static_cast<ptrdiff_t>(s.d_state) * s.d_inner;
    // dt and the scan of the same channels, so that dt stays in this thread's cache.
    team.each(layer.dt_proj.panels(), [&](int panel) {
        for (int m = 0; m < s.modalities; ++m)
            layer.dt_proj.panel(kernels_, m, panel, rows_of_[static_cast<size_t>(m)],
                                projected_.rows(), {.y = dt_.data(), .stride = inner_, .then = Then::softplus});
        const int end = std::min(layer.dt_proj.panel_begin(panel + 1), s.d_inner);
        for (const Segment& segment : segments_) {
            const ptrdiff_t slot = segment.slot * layers + static_cast<ptrdiff_t>(index);
            uint8_t started = 0;
            for (int m = 0; m < s.modalities; ++m)
                started |= static_cast<uint8_t>(state.started[slot * s.modalities + m] << m);
            for (int c = layer.dt_proj.panel_begin(panel); c < end; c += kVector) {
                ChainArgs chains[kMaxChains];
                for (int m = 0; m < s.modalities; ++m) {
                    const ptrdiff_t row = row_of(m, segment.begin);
                    const float* projected = projected_.f32(row);
                    chains[m] = {.x = x_.f32(row) + c,
                                 .dt = dt_.data() + row * inner_ + c,
                                 .B = projected + s.dt_rank,
                                 .C = projected + s.dt_rank + s.d_state,
                                 .A = layer.A[static_cast<size_t>(m)].at(c),
                                 .D = layer.D[static_cast<size_t>(m)].at(c),
                                 .z = uz_.data() + row * 2 * inner_ + s.d_inner + c,
                                 .y = activation_.f32() ? activation_.f32(row) + c : nullptr,
                                 .y16 = activation_.bf16() ? activation_.bf16(row) + c : nullptr};
                }
                kernels_.coupled({
                    .chains = chains,
                    .stride = {.x = inner_, .dt = inner_, .BC = projected_.stride(), .z = 2 * inner_,
                               .y = activation_.stride(), .y16 = activation_.stride()},
                    .count = s.modalities,
                    .coupling = layer.coupling.data(),
                    .renormalise = s.renormalise,
                    .rank_one = s.rank_one,
                    .rows = segment.rows,
                    .present = present_.data() + segment.begin,
                    .states = s.d_state,
                    .h = state.ssm + slot * kept * chain_size + c,
                    .h_stride = s.d_inner,
                    .h_chain = chain_size,
                    .channels = std::min(kVector, end - c),
                    .fresh = segment.fresh,
                    .started = started,
                });
            }
        }
    });
}

// e <- e + norm(mixer), and between layers e <- e + cross[all e]; the mixer's output is in x_.
void Coupled::mix_streams(Team& team, bool last) {
    const CoupledSizes& s = sizes_;
    each_row(team, [&](int row, int m) {
        float *out = x_.f32(row), *e = e_.data() + row * model_;
        const ptrdiff_t at = static_cast<ptrdiff_t>(m) * s.d_model;
        kernels_.layer_norm(out, norm_f_.weight.data() + at, norm_f_.bias.data() + at, s.d_model, s.eps, out, nullptr);
        for (int i = 0; i < s.d_model; ++i) e[i] += out[i];
    });
    if (last) return;
    each_row(team, [&](int row, int m) {
        for (int other = 0; other < s.modalities; ++other) {
            const float* from = e_.data() + (row + static_cast<ptrdiff_t>(other - m) * block_rows_) * model_;
            const ptrdiff_t to = static_cast<ptrdiff_t>(other) * s.d_model;
            if (uint16_t* rounded = mixed_.bf16(row))
                kernels_.round(from, s.d_model, rounded + to);
            else
                std::copy_n(from, s.d_model, mixed_.f32(row) + to);
        }
    });
    cross_.apply(team, kernels_, rows_of_, mixed_.rows(), {.y = e_.data(), .stride = model_, .then = Then::add});
}

void Coupled::pool(const Segment& segment, const CoupledState& state) {
    const ptrdiff_t d = sizes_.d_model, slot = segment.slot * sizes_.modalities;
    float *maximum = state.pool_max + slot * d, *total = state.pool_sum + slot * d;
    int64_t* count = state.pool_count + slot;
    if (segment.fresh) {
        std::fill_n(maximum, sizes_.modalities * d, -std::numeric_limits<float>::infinity());
        std::fill_n(total, sizes_.modalities * d, 0.0f);
        std::fill_n(count, sizes_.modalities, int64_t{0});
    }
    auto next = std::lower_bound(read_rows_[0].begin(), read_rows_[0].end(), segment.begin);
    for (int t = segment.begin; t < segment.begin + segment.rows; ++t) {
        for (int m = 0; m < sizes_.modalities; ++m) {
            if (!(present_[static_cast<size_t>(t)] >> m & 1)) continue;
            const float* e = e_.data() + row_of(m, t) * model_;
            float *most = maximum + m * d, *sum = total + m * d;
            for (ptrdiff_t i = 0; i < d; ++i) {
                most[i] = e[i] > most[i] || std::isnan(e[i]) ? e[i] : most[i];
                sum[i] += e[i];
            }
            ++count[m];
        }
        if (next != read_rows_[0].end() && *next == t) {
            read(maximum, total, count, t);
            ++next;
        }
    }
}

// The weighted mean over the modalities that have had input of what the head reads; NaN where none has.
void Coupled::read(const float* maximum, const float* total, const int64_t* count, int row) {
    const CoupledSizes& s = sizes_;
    float* features = read_features_.data() + row * 2 * model_;
    std::fill_n(features, (s.maximum + s.mean) * s.d_model, 0.0f);
    float sum = 0.0f;
    for (int m = 0; m < s.modalities; ++m) sum += count[m] ? weights_[static_cast<size_t>(m)] : 0.0f;
    float* most = features + (s.maximum && s.mean && s.mean_first ? s.d_model : 0);
    float* mean = features + (s.maximum && s.mean && !s.mean_first ? s.d_model : 0);
    for (int m = 0; m < s.modalities; ++m) {
        const float weight = (count[m] ? weights_[static_cast<size_t>(m)] : 0.0f) / sum;
        const float each = 1.0f / static_cast<float>(std::max<int64_t>(count[m], 1));
        const ptrdiff_t at = static_cast<ptrdiff_t>(m) * s.d_model;
        for (ptrdiff_t i = 0; s.maximum && i < s.d_model; ++i)
            most[i] += weight * (count[m] ? maximum[at + i] : 0.0f);
        for (ptrdiff_t i = 0; s.mean && i < s.d_model; ++i)
            mean[i] += weight * (count[m] ? total[at + i] * each : 0.0f);
    }
}

// The same of a row by itself, whatever was pooled before it; NaN where nothing is present.
void Coupled::read_alone(int row) {
    const CoupledSizes& s = sizes_;
    float* features = read_features_.data() + row * 2 * model_;
    const ptrdiff_t kinds = s.maximum + s.mean;
    std::fill_n(features, kinds * s.d_model, 0.0f);
    const auto here = [&](int m) { return (present_[static_cast<size_t>(row)] >> m & 1) != 0; };
    float sum = 0.0f;
    for (int m = 0; m < s.modalities; ++m) sum += here(m) ? weights_[static_cast<size_t>(m)] : 0.0f;
    for (int m = 0; m < s.modalities; ++m) {
        const float weight = (here(m) ? weights_[static_cast<size_t>(m)] : 0.0f) / sum;
        const float* e = e_.data() + row_of(m, row) * model_;
        for (ptrdiff_t kind = 0; kind < kinds; ++kind)
            for (ptrdiff_t i = 0; i < s.d_model; ++i)
                features[kind * s.d_model + i] += weight * (here(m) ? e[i] : 0.0f);
    }
}

void Coupled::run_head(Team& team, float* outputs, ptrdiff_t output_stride) {
    const ptrdiff_t stride = padded(sizes_.outputs);
    dense_.apply(team, kernels_, read_rows_, {read_features_.data(), 2 * model_},
                 {.y = head_rows_.data(), .stride = head_, .then = Then::relu});
    out_proj_.apply(team, kernels_, read_rows_, {head_rows_.data(), head_}, {.y = outputs_.data(), .stride = stride});
    team.each(1, [&](int) {
        for (const Read& read : reads_)
            std::copy_n(outputs_.data() + read.row * stride, sizes_.outputs, outputs + read.output * output_stride);
    });
}

// Which chains have had input: after all layers, for every part of them reads it.
void Coupled::close_block(const CoupledState& state) {
    const ptrdiff_t layers = static_cast<ptrdiff_t>(layers_.size());
    for (const Segment& segment : segments_) {
        uint8_t heard = 0;
        for (int t = 0; t < segment.rows; ++t) heard |= present_[static_cast<size_t>(segment.begin + t)];
        for (ptrdiff_t layer = 0; layer < layers; ++layer)
            for (int m = 0; m < sizes_.modalities; ++m) {
                bool& flag = state.started[(segment.slot * layers + layer) * sizes_.modalities + m];
                flag = (flag && !segment.fresh) || (heard >> m & 1);
            }
    }
}

}  // namespace serpentine

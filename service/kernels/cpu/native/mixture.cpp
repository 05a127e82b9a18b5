#include "mixture.h"

#include <algorithm>
#include <stdexcept>

namespace serpentine {
namespace {

constexpr int kLongRows = 4;         // a sequence, above which what is between the stages outweighs the state
constexpr int kChannelsOfScan = 256;  // of one slot that one thread takes at a time
constexpr int kAhead = 64;            // channels
constexpr size_t kMostAhead = size_t{2} << 20;  // of states, while a layer's first map is computed: they stay in a cache

ptrdiff_t padded(int count) { return (count + 31) / 32 * 32; }

Buffer<float> copied(const float* values, size_t count, Room* room = nullptr) {
    Buffer<float> out(count, room);
    std::copy_n(values, count, out.data());
    return out;
}

}  // namespace

Mixture::Mixture(const MixtureSizes& sizes, const float* embedding, const float* norm_f, const float* head,
                 const int64_t* borders, Dtype dtype, const Kernels& kernels, int block_rows)
    : sizes_(sizes), dtype_(dtype), kernels_(kernels), block_rows_(block_rows),
      borders_(borders, borders + sizes.modalities - 1) {
    if (sizes.d_conv > kMaxWindow)
        throw std::invalid_argument("d_conv: the cpu backend takes up to " + std::to_string(kMaxWindow) + ", got " +
                                    std::to_string(sizes.d_conv));
    const size_t table = static_cast<size_t>(sizes.vocabulary) * static_cast<size_t>(sizes.d_model);
    if (dtype == Dtype::bf16) {
        embedding16_ = Buffer<uint16_t>(table);
        for (int v = 0; v < sizes.vocabulary; ++v) {
            const ptrdiff_t at = static_cast<ptrdiff_t>(v) * sizes.d_model;
            kernels.round(embedding + at, sizes.d_model, embedding16_.data() + at);
        }
    } else {
        embedding_ = copied(embedding, table);
    }
    norm_f_ = copied(norm_f, static_cast<size_t>(sizes.d_model));
    head_ = Packed(kernels, head ? head : embedding, nullptr, 1, sizes.vocabulary, sizes.d_model, dtype);

    model_stride_ = padded(sizes.d_model);
    inner_stride_ = padded(sizes.d_inner);
    projected_stride_ = padded(sizes.dt_rank + 2 * sizes.d_state + 1);
    activation_stride_ = std::max(model_stride_, inner_stride_);
    const size_t rows = static_cast<size_t>(block_rows);
    const auto of = [&](ptrdiff_t stride) { return rows * static_cast<size_t>(stride); };
    e_ = Buffer<float>(of(model_stride_));
    uz_ = Buffer<float>(of(2 * inner_stride_));
    x_ = Buffer<float>(of(inner_stride_));
    projected_ = Buffer<float>(of(projected_stride_));
    dt_ = Buffer<float>(of(inner_stride_));
    if (dtype == Dtype::bf16) {
        x16_ = Buffer<uint16_t>(of(inner_stride_));
        projected16_ = Buffer<uint16_t>(of(projected_stride_));
        activation16_ = Buffer<uint16_t>(of(activation_stride_));
    } else {
        activation_ = Buffer<float>(of(activation_stride_));
    }
    rows_of_.resize(static_cast<size_t>(sizes.modalities));
    for (auto& rows_of : rows_of_) rows_of.reserve(rows);
    all_rows_.resize(1);
    all_rows_[0].reserve(rows);
    reads_.reserve(rows);
    read_rows_.reserve(rows);
}

void Mixture::add_layer(const MixtureLayerTensors& t) {
    const MixtureSizes& s = sizes_;
    const int projected = s.dt_rank + 2 * s.d_state;
    Layer layer;
    layer.norm = copied(t.norm, static_cast<size_t>(s.d_model), &room_);
    layer.in_proj = Packed(kernels_, t.in_proj, nullptr, t.in_copies, 2 * s.d_inner, s.d_model, dtype_, &room_);
    layer.x_proj = Packed(kernels_, t.x_proj, nullptr, t.x_copies, projected, s.d_inner, dtype_, &room_);
    layer.dt_proj = Packed(kernels_, t.dt_proj, t.dt_bias, t.dt_copies, s.d_inner, s.dt_rank, dtype_, &room_);
    layer.out_proj = Packed(kernels_, t.out_proj, nullptr, t.out_copies, s.d_model, s.d_inner, dtype_, &room_);
    layer.conv_weight = Channels(t.conv_weight, s.d_conv, s.d_inner, 1.0f, &room_);
    layer.conv_bias = Channels(t.conv_bias, 1, s.d_inner, 1.0f, &room_);
    layer.A = Channels(t.A, s.d_state, s.d_inner, kLog2e, &room_);
    layer.D = Channels(t.D, 1, s.d_inner, 1.0f, &room_);
    layers_.push_back(std::move(layer));
}

size_t Mixture::weight_bytes() const {
    size_t bytes = embedding_.bytes() + embedding16_.bytes() + norm_f_.bytes() + head_.bytes();
    for (const Layer& l : layers_)
        bytes += l.norm.bytes() + l.in_proj.bytes() + l.x_proj.bytes() + l.dt_proj.bytes() + l.out_proj.bytes() +
                 l.conv_weight.bytes() + l.conv_bias.bytes() + l.A.bytes() + l.D.bytes();
    return bytes;
}

int64_t Mixture::work_of_a_row() const {
    size_t weights = 0;
    for (const Layer& l : layers_)
        weights += l.in_proj.weights_of_a_row() + l.x_proj.weights_of_a_row() + l.dt_proj.weights_of_a_row() +
                   l.out_proj.weights_of_a_row() + static_cast<size_t>(sizes_.d_inner * sizes_.d_state) * 4;
    return static_cast<int64_t>(weights);
}

void Mixture::check(const Packing& packing, const int64_t* tokens) {
    check_packing_("MixtureOfMambaProgram", packing);
    for (int64_t t = 0; t < packing.rows; ++t)
        if (tokens[t] < 0 || tokens[t] >= sizes_.vocabulary)
            throw std::invalid_argument("MixtureOfMambaProgram: tokens must be in 0.." +
                                        std::to_string(sizes_.vocabulary - 1) + ", got " + std::to_string(tokens[t]));
}

void Mixture::run(const Packing& packing, const int64_t* tokens, float* conv, float* ssm, float* logits, int threads) {
    check(packing, tokens);
    const int64_t head = packing.reads * static_cast<int64_t>(head_.weights_of_a_row());
    const int64_t work = packing.rows * work_of_a_row() + head;
    Pool::shared().run(threads_for(threads, work), [&](Team& team) {
        int64_t first = 0;
        do {
            const Block block{first, static_cast<int>(std::min<int64_t>(block_rows_, packing.rows - first))};
            // One thread of the team sorts the rows; the others wait at the end of `each`.
            team.each(1, [&](int) { open_block(packing, tokens, block, ssm); });
            run_block(team, packing, tokens, block, conv, ssm, logits);
            first += block.rows;
        } while (first < packing.rows);
    });
}

void Mixture::open_block(const Packing& packing, const int64_t* tokens, Block block, float* ssm) {
    segments_of(packing, block.first, block.rows, segments_);
    const ptrdiff_t slot = static_cast<ptrdiff_t>(layers_.size()) * sizes_.d_state * sizes_.d_inner;
    states_.clear();
    for (const Segment& segment : segments_) states_.push_back(ssm + segment.slot * slot);
    for (auto& rows : rows_of_) rows.clear();
    all_rows_[0].clear();
    for (int t = 0; t < block.rows; ++t) {
        const auto border = std::upper_bound(borders_.begin(), borders_.end(), tokens[block.first + t]);
        rows_of_[static_cast<size_t>(border - borders_.begin())].push_back(t);
        all_rows_[0].push_back(t);
    }
}

void Mixture::embed(int64_t token, float* e) const {
    const ptrdiff_t at = static_cast<ptrdiff_t>(token) * sizes_.d_model;
    if (dtype_ == Dtype::bf16)
        kernels_.widen(embedding16_.data() + at, sizes_.d_model, e);
    else
        std::copy_n(embedding_.data() + at, sizes_.d_model, e);
}

Routes Mixture::routes(const Packed& weight) const { return weight.copies() == 1 ? all_rows_ : rows_of_; }

Rows Mixture::activation() const {
    return {dtype_ == Dtype::bf16 ? static_cast<const void*>(activation16_.data()) : activation_.data(),
            activation_stride_};
}

void Mixture::norm(const float* e, const float* weight, ptrdiff_t row) {
    const bool bf16 = dtype_ == Dtype::bf16;
    const ptrdiff_t at = row * activation_stride_;
    kernels_.rms_norm(e, weight, sizes_.d_model, sizes_.eps, bf16 ? nullptr : activation_.data() + at,
                      bf16 ? activation16_.data() + at : nullptr);
}

void Mixture::run_block(Team& team, const Packing& packing, const int64_t* tokens, Block block, float* conv,
                        float* ssm, float* logits) {
    team.each(block.rows, [&](int t) { embed(tokens[block.first + t], e_.data() + t * model_stride_); });
    for (size_t index = 0; index < layers_.size(); ++index) run_layer(team, index, block.rows, conv, ssm);
    // Reads of this block, as many at a time as the activations have rows.
    for (int64_t done = 0; done < packing.reads;) {
        team.each(1, [&](int) {
            reads_.clear();
            read_rows_.clear();
            int64_t next = done;
            for (; next < packing.reads && static_cast<int>(reads_.size()) < block_rows_; ++next) {
                const int64_t row = packing.read[next] - block.first;
                if (row < 0 || row >= block.rows) continue;
                read_rows_.push_back(static_cast<int>(reads_.size()));
                reads_.push_back({static_cast<int>(row), next});
            }
            reads_until_ = next;
        });
        const int64_t next = reads_until_;
        const int count = static_cast<int>(reads_.size());
        team.each(count, [&](int i) {
            norm(e_.data() + reads_[static_cast<size_t>(i)].row * model_stride_, norm_f_.data(), i);
        });
        team.each(head_.panels(), [&](int panel) {
            // Outputs lie apart in the caller's order: runs of neighbours go in one call.
            for (int begin = 0; begin < count;) {
                int end = begin + 1;
                const int64_t output = reads_[static_cast<size_t>(begin)].output;
                while (end < count && reads_[static_cast<size_t>(end)].output == output + end - begin) ++end;
                const std::span<const int> rows(read_rows_.data() + begin, static_cast<size_t>(end - begin));
                const Result to{.y = logits + (output - begin) * sizes_.vocabulary, .stride = sizes_.vocabulary};
                head_.panel(kernels_, 0, panel, rows, activation(), to);
                begin = end;
            }
        });
        done = next;
    }
}

void Mixture::run_layer(Team& team, size_t index, int rows, float* conv, float* ssm) {
    const MixtureSizes& s = sizes_;
    const Layer& layer = layers_[index];
    const bool bf16 = dtype_ == Dtype::bf16;
    const int blocks = (s.d_inner + kChannelsOfItem - 1) / kChannelsOfItem;
    const int segments = static_cast<int>(segments_.size());
    const ptrdiff_t layers = static_cast<ptrdiff_t>(layers_.size()), layer_index = static_cast<ptrdiff_t>(index);
    const ptrdiff_t uz_stride = 2 * inner_stride_;

    team.each(rows, [&](int t) { norm(e_.data() + t * model_stride_, layer.norm.data(), t); });
    const ptrdiff_t state = static_cast<ptrdiff_t>(s.d_state) * s.d_inner;
    const size_t ahead = kMostAhead / static_cast<size_t>(state);
    layer.in_proj.apply(team, kernels_, routes(layer.in_proj), activation(), {.y = uz_.data(), .stride = uz_stride},
                        {.places = std::span(states_).first(std::min(states_.size(), ahead)),
                         .offset = layer_index * state, .count = state});

    const auto window = [&](int segment) {
        const ptrdiff_t slot = segments_[static_cast<size_t>(segment)].slot;
        return conv + (slot * layers + layer_index) * (s.d_conv - 1) * s.d_inner;
    };
    team.each(segments * blocks, [&](int item) {
        const int of = item / blocks, begin = item % blocks * kChannelsOfItem;
        const Segment& segment = segments_[static_cast<size_t>(of)];
        const int end = std::min(begin + kChannelsOfItem, s.d_inner);
        for (int c = begin; c < end; c += kVector) {
            const ptrdiff_t at = segment.begin * inner_stride_ + c;
            const int ahead = c + kAhead;
            const float* next = ahead < s.d_inner ? window(of) + ahead
                                : of + 1 == segments ? nullptr : window(of + 1) + ahead - s.d_inner;
            kernels_.convolve({
                .u = uz_.data() + segment.begin * uz_stride + c,
                .u_stride = uz_stride,
                .rows = segment.rows,
                .present = nullptr,
                .chain = 0,
                .taps = s.d_conv,
                .weight = layer.conv_weight.at(c),
                .bias = layer.conv_bias.at(c),
                .window = window(of) + c,
                .window_stride = s.d_inner,
                .next = next,
                .channels = std::min(kVector, end - c),
                .fresh = segment.fresh,
                .silu = true,
                .x = x_.data() + at,
                .x_stride = inner_stride_,
                .x16 = bf16 ? x16_.data() + at : nullptr,
                .x16_stride = inner_stride_,
            });
        }
    });

    const Rows x{bf16 ? static_cast<const void*>(x16_.data()) : x_.data(), inner_stride_};
    const Result projected{.y = projected_.data(), .stride = projected_stride_,
                           .y16 = bf16 ? projected16_.data() : nullptr, .stride16 = projected_stride_};
    layer.x_proj.apply(team, kernels_, routes(layer.x_proj), x, projected);

    const Rows r{bf16 ? static_cast<const void*>(projected16_.data()) : projected_.data(), projected_stride_};
    const Result dt{.y = dt_.data(), .stride = inner_stride_, .then = Then::softplus};
    if (rows >= kLongRows * segments) {
        // dt and the scan of the same channels, so that dt stays in this thread's cache.
        team.each(layer.dt_proj.panels(), [&](int panel) {
            for (int m = 0; m < s.modalities; ++m)
                layer.dt_proj.panel(kernels_, m, panel, rows_of_[static_cast<size_t>(m)], r, dt);
            const int begin = layer.dt_proj.panel_begin(panel);
            const int end = std::min(layer.dt_proj.panel_begin(panel + 1), s.d_inner);
            for (int i = 0; i < segments; ++i) scan(index, i, begin, end, ssm);
        });
    } else {
        // A slot at a time, for its state is what has to come from memory.
        layer.dt_proj.apply(team, kernels_, rows_of_, r, dt);
        const int blocks = (s.d_inner + kChannelsOfScan - 1) / kChannelsOfScan;
        team.each(segments * blocks, [&](int item) {
            const int begin = item % blocks * kChannelsOfScan;
            scan(index, item / blocks, begin, std::min(begin + kChannelsOfScan, s.d_inner), ssm);
        });
    }

    layer.out_proj.apply(team, kernels_, routes(layer.out_proj), activation(),
                         {.y = e_.data(), .stride = model_stride_, .then = Then::add});
}

void Mixture::scan(size_t index, int of, int begin, int end, float* ssm) {
    const MixtureSizes& s = sizes_;
    const Layer& layer = layers_[index];
    const Segment& segment = segments_[static_cast<size_t>(of)];
    const bool bf16 = dtype_ == Dtype::bf16;
    const ptrdiff_t row = segment.begin, uz_stride = 2 * inner_stride_;
    const float* projected = projected_.data() + row * projected_stride_;
    const auto state = [&](int segment) {
        const ptrdiff_t slot = segments_[static_cast<size_t>(segment)].slot;
        const ptrdiff_t layers = static_cast<ptrdiff_t>(layers_.size());
        return ssm + (slot * layers + static_cast<ptrdiff_t>(index)) * s.d_state * s.d_inner;
    };
    float* const h = state(of);
    const bool last = of + 1 == static_cast<int>(segments_.size());
    for (int c = begin; c < end; c += kVector) {
        // Some blocks ahead, then of the next slot: no prefetcher of the processor's follows so many rows.
        const int ahead = c + kAhead;
        const float* next = ahead < s.d_inner ? h + ahead : last ? nullptr : state(of + 1) + ahead - s.d_inner;
        kernels_.selective({
            .chain = {.x = x_.data() + row * inner_stride_ + c,
                      .dt = dt_.data() + row * inner_stride_ + c,
                      .B = projected + s.dt_rank,
                      .C = projected + s.dt_rank + s.d_state,
                      .A = layer.A.at(c),
                      .D = layer.D.at(c),
                      .z = uz_.data() + row * uz_stride + s.d_inner + c,
                      .y = bf16 ? nullptr : activation_.data() + row * activation_stride_ + c,
                      .y16 = bf16 ? activation16_.data() + row * activation_stride_ + c : nullptr},
            .stride = {.x = inner_stride_, .dt = inner_stride_, .BC = projected_stride_, .z = uz_stride,
                       .y = activation_stride_, .y16 = activation_stride_},
            .rows = segment.rows,
            .present = nullptr,
            .bit = 0,
            .states = s.d_state,
            .h = h + c,
            .h_stride = s.d_inner,
            .channels = std::min(kVector, end - c),
            .fresh = segment.fresh,
            .next = next,
        });
    }
}

}  // namespace serpentine

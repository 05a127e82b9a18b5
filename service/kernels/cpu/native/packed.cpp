#include "packed.h"

#include <algorithm>
#include <bit>

#include "squeezed.h"

namespace serpentine {
namespace {

uint16_t rounded(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace

Packed::Packed(const Kernels& kernels, const float* weight, const float* bias, int copies, int outputs, int inputs,
               Dtype dtype, Room* room)
    : dtype_(dtype), copies_(copies), outputs_(outputs), inputs_(inputs) {
    panels_ = (vectors() + kPanel - 1) / kPanel;
    dtype == Dtype::bf16 ? pack_bf16(weight, kernels.squeezed, room) : pack_f32(weight, room);
    if (!bias) return;
    bias_ = Buffer<float>(static_cast<size_t>(copies) * static_cast<size_t>(outputs), room);
    std::copy_n(bias, bias_.size(), bias_.data());
}

void Packed::pack_f32(const float* weight, Room* room) {
    const size_t inputs = static_cast<size_t>(inputs_);
    f32_ = Buffer<float>(static_cast<size_t>(copies_) * vectors() * kVector * inputs, room);
    float* to = f32_.data();
    for (int m = 0; m < copies_; ++m, weight += weights_of_a_row())
        for (int panel = 0; panel < panels_; ++panel) {
            const int begin = panel_begin(panel), end = panel_begin(panel + 1);
            const size_t width = static_cast<size_t>(end - begin);
            for (int o = begin; o < std::min(end, outputs_); ++o)
                for (size_t k = 0; k < inputs; ++k)
                    to[k * width + static_cast<size_t>(o - begin)] = weight[static_cast<size_t>(o) * inputs + k];
            to += width * inputs;
        }
}

// One panel of one copy, [pairs of inputs][outputs][2].
std::vector<uint16_t> Packed::pairs_of(const float* weight, int panel) const {
    const int begin = panel_begin(panel), end = panel_begin(panel + 1);
    const size_t inputs = static_cast<size_t>(inputs_), width = static_cast<size_t>(end - begin);
    std::vector<uint16_t> pairs(static_cast<size_t>(depth()) * width * 2);
    for (int o = begin; o < std::min(end, outputs_); ++o) {
        const size_t lane = static_cast<size_t>(o - begin);
        for (size_t k = 0; k < inputs; ++k)
            pairs[k / 2 * width * 2 + lane * 2 + k % 2] = rounded(weight[static_cast<size_t>(o) * inputs + k]);
    }
    return pairs;
}

// All panels, one behind the other; sets where they are.
std::vector<uint8_t> Packed::bytes_of(const float* weight, bool squeeze) {
    std::vector<uint8_t> bytes;
    squeezed_ = squeeze;
    panel_at_.clear();
    for (int m = 0; m < copies_; ++m, weight += weights_of_a_row())
        for (int panel = 0; panel < panels_; ++panel) {
            const std::vector<uint16_t> pairs = pairs_of(weight, panel);
            panel_at_.push_back(bytes.size());
            if (squeeze && width_of(panel) == kPanel) {
                const std::vector<uint8_t> fewer = squeezed(pairs.data(), depth());
                bytes.insert(bytes.end(), fewer.begin(), fewer.end());
            } else {
                const auto* all = reinterpret_cast<const uint8_t*>(pairs.data());
                bytes.insert(bytes.end(), all, all + sizeof(uint16_t) * pairs.size());
            }
        }
    return bytes;
}

void Packed::pack_bf16(const float* weight, bool squeeze, Room* room) {
    std::vector<uint8_t> bytes = bytes_of(weight, squeeze);
    // Of narrow panels, few inputs, or weights of many magnitudes squeezing spares next to nothing.
    const size_t rows = static_cast<size_t>(copies_) * static_cast<size_t>(vectors()) * kVector;
    if (squeeze && bytes.size() > rows * static_cast<size_t>(depth()) * sizeof(uint16_t) * 2 / 8 * 7)
        bytes = bytes_of(weight, false);
    bf16_ = Buffer<uint8_t>(bytes.size(), room);
    std::copy(bytes.begin(), bytes.end(), bf16_.data());
}

int Packed::panel_begin(int panel) const { return vectors() * panel / panels_ * kVector; }

void Packed::panel(const Kernels& kernels, int route, int panel, std::span<const int> rows, Rows x, Result y,
                   Soon soon) const {
    if (rows.empty()) return;
    const int copy = copies_ == 1 ? 0 : route, begin = panel_begin(panel), end = panel_begin(panel + 1);
    const bool pairs = dtype_ == Dtype::bf16;
    const auto weights = [&]() -> const void* {
        if (pairs) return bf16_.data() + panel_at_[static_cast<size_t>(copy * panels_ + panel)];
        const size_t outputs = static_cast<size_t>(copy) * vectors() * kVector + static_cast<size_t>(begin);
        return f32_.data() + outputs * static_cast<size_t>(inputs_);
    };
    PanelArgs args{
        .x = x.data,
        .x_stride = x.stride,
        .rows = rows.data(),
        .y_rows = nullptr,
        .count = static_cast<int>(rows.size()),
        .w = weights(),
        .depth = depth(),
        .width = width_of(panel),
        .squeezed = squeezed_ && width_of(panel) == kPanel,
        .outputs = std::min(end, outputs_) - begin,
        .bias = bias_.size() ? bias_.data() + static_cast<size_t>(copy) * outputs_ + begin : nullptr,
        .y = y.y + begin,
        .y_stride = y.stride,
        .y16 = y.y16 ? y.y16 + begin : nullptr,
        .y16_stride = y.stride16,
        .then = y.then,
        .soon = soon,
    };
    (pairs ? kernels.linear_bf16 : kernels.linear_f32)(args);
}

void Packed::apply(Team& team, const Kernels& kernels, Routes routes, Rows x, Result y, Wanted wanted) const {
    const auto blocks_of = [&](size_t group) {
        return (static_cast<int>(routes[group].size()) + kRowsOfItem - 1) / kRowsOfItem;
    };
    int items = 0;
    for (size_t g = 0; g < routes.size(); ++g) items += panels_ * blocks_of(g);
    // Of every place as many parts as there are panels for it.
    const int places = std::min(static_cast<int>(wanted.places.size()), items);
    const int parts = places ? items / places : 1;
    const auto soon_of = [&](int item) -> Soon {
        const int place = item / parts;
        if (place >= places) return {};
        const ptrdiff_t begin = wanted.count * (item % parts) / parts, end = wanted.count * (item % parts + 1) / parts;
        return {wanted.places[static_cast<size_t>(place)] + wanted.offset + begin, end - begin};
    };
    const auto run = [&](int item) {
        const Soon soon = soon_of(item);
        size_t g = 0;
        for (; item >= panels_ * blocks_of(g); ++g) item -= panels_ * blocks_of(g);
        const std::span<const int> rows = routes[g];
        const int blocks = blocks_of(g), count = static_cast<int>(rows.size());
        const int begin = count * (item % blocks) / blocks, end = count * (item % blocks + 1) / blocks;
        panel(kernels, static_cast<int>(g), item / blocks,
              rows.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)), x, y, soon);
    };
    team.each(items, run);
}

}  // namespace serpentine

#include "packed.h"

#include <algorithm>
#include <bit>

namespace serpentine {
namespace {

uint16_t rounded(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace

Packed::Packed(const float* weight, const float* bias, int copies, int outputs, int inputs, Dtype dtype,
               Room* room)
    : dtype_(dtype), copies_(copies), outputs_(outputs), inputs_(inputs) {
    panels_ = (vectors() + kPanel - 1) / kPanel;
    const bool pairs = dtype == Dtype::bf16;
    const size_t depth = static_cast<size_t>(pairs ? (inputs + 1) / 2 * 2 : inputs);
    copy_size_ = static_cast<size_t>(vectors()) * kVector * depth;
    if (pairs)
        bf16_ = Buffer<uint16_t>(copy_size_ * static_cast<size_t>(copies), room);
    else
        f32_ = Buffer<float>(copy_size_ * static_cast<size_t>(copies), room);
    for (int m = 0; m < copies; ++m) {
        for (int panel = 0; panel < panels_; ++panel) {
            const int begin = panel_begin(panel), end = panel_begin(panel + 1);
            const size_t base = static_cast<size_t>(m) * copy_size_ + static_cast<size_t>(begin) * depth;
            const size_t width = static_cast<size_t>(end - begin);
            for (int o = begin; o < std::min(end, outputs); ++o) {
                const float* row = weight + (static_cast<size_t>(m) * outputs + o) * static_cast<size_t>(inputs);
                const size_t lane = static_cast<size_t>(o - begin);
                for (size_t k = 0; k < static_cast<size_t>(inputs); ++k) {
                    if (pairs)
                        bf16_.data()[base + k / 2 * width * 2 + lane * 2 + k % 2] = rounded(row[k]);
                    else
                        f32_.data()[base + k * width + lane] = row[k];
                }
            }
        }
    }
    if (!bias) return;
    bias_ = Buffer<float>(static_cast<size_t>(copies) * static_cast<size_t>(outputs), room);
    std::copy_n(bias, bias_.size(), bias_.data());
}

int Packed::panel_begin(int panel) const { return vectors() * panel / panels_ * kVector; }

void Packed::panel(const Kernels& kernels, int route, int panel, std::span<const int> rows, Rows x, Result y,
                   Soon soon) const {
    if (rows.empty()) return;
    const int copy = copies_ == 1 ? 0 : route, begin = panel_begin(panel), end = panel_begin(panel + 1);
    const bool pairs = dtype_ == Dtype::bf16;
    const size_t depth = static_cast<size_t>(pairs ? (inputs_ + 1) / 2 * 2 : inputs_);
    const size_t at = static_cast<size_t>(copy) * copy_size_ + static_cast<size_t>(begin) * depth;
    PanelArgs args{
        .x = x.data,
        .x_stride = x.stride,
        .rows = rows.data(),
        .y_rows = nullptr,
        .count = static_cast<int>(rows.size()),
        .w = pairs ? static_cast<const void*>(bf16_.data() + at) : f32_.data() + at,
        .depth = static_cast<int>(pairs ? depth / 2 : depth),
        .width = (end - begin) / kVector,
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

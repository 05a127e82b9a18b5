// Weights in the order in which the kernels read them, and the layer that they make.
#pragma once

#include <span>
#include <vector>

#include "buffer.h"
#include "kernels.h"
#include "pool.h"

namespace serpentine {

// Rows by the weight that each takes: one list a copy of the weights.
using Routes = std::span<const std::vector<int>>;

// Input rows of a linear layer, in the dtype of its weights.
struct Rows {
    const void* data = nullptr;
    ptrdiff_t stride = 0;
};

// Rows of a workspace that linear layers read, in the dtype of their weights.
class Operands {
  public:
    Operands() = default;
    // kept: as fp32 too, for others that read them
    Operands(Dtype dtype, size_t rows, ptrdiff_t stride, bool kept) : stride_(stride) {
        const size_t size = rows * static_cast<size_t>(stride);
        if (dtype == Dtype::f32 || kept) f32_ = Buffer<float>(size);
        if (dtype == Dtype::bf16) bf16_ = Buffer<uint16_t>(size);
    }
    ptrdiff_t stride() const { return stride_; }
    // A row; null where there is none of that kind.
    float* f32(ptrdiff_t row = 0) const { return f32_.size() ? f32_.data() + row * stride_ : nullptr; }
    uint16_t* bf16(ptrdiff_t row = 0) const { return bf16_.size() ? bf16_.data() + row * stride_ : nullptr; }
    Rows rows() const { return {bf16_.size() ? static_cast<const void*>(bf16_.data()) : f32_.data(), stride_}; }

  private:
    ptrdiff_t stride_ = 0;
    Buffer<float> f32_;
    Buffer<uint16_t> bf16_;
};

// Where a linear layer writes: fp32, and bf16 beside it where `y16` is given.
struct Result {
    float* y = nullptr;
    ptrdiff_t stride = 0;
    uint16_t* y16 = nullptr;
    ptrdiff_t stride16 = 0;
    Then then = Then::store;
};

// What the stages after a linear layer read and write: at each of these places, from `offset` on, in their order.
struct Wanted {
    std::span<const float* const> places = {};
    ptrdiff_t offset = 0, count = 0;  // elements
};

// One linear map, or one a modality.
class Packed {
  public:
    Packed() = default;
    // weight [copies][outputs][inputs], bias [copies][outputs] or null; room: for what is small, or null. The kernels
    // are those that will read it.
    Packed(const Kernels& kernels, const float* weight, const float* bias, int copies, int outputs, int inputs,
           Dtype dtype, Room* room = nullptr);

    int outputs() const { return outputs_; }
    int copies() const { return copies_; }
    int panels() const { return panels_; }
    // First output of a panel, a multiple of 16; panels() gives the end.
    int panel_begin(int panel) const;
    size_t bytes() const { return f32_.bytes() + bf16_.bytes() + bias_.bytes(); }
    size_t weights_of_a_row() const { return static_cast<size_t>(outputs_) * static_cast<size_t>(inputs_); }

    // Some rows through one panel of the copy of modality `route`.
    void panel(const Kernels& kernels, int route, int panel, std::span<const int> rows, Rows x, Result y,
               Soon soon = {}) const;

    // The rows through all panels, each by the weight of its list; y rows lie as x rows do.
    void apply(Team& team, const Kernels& kernels, Routes routes, Rows x, Result y, Wanted wanted = {}) const;

  private:
    static constexpr int kRowsOfItem = 96;
    int vectors() const { return (outputs_ + kVector - 1) / kVector; }
    int width_of(int panel) const { return (panel_begin(panel + 1) - panel_begin(panel)) / kVector; }
    // Rows of a panel in the order of its kernel: inputs, or pairs of them.
    int depth() const { return dtype_ == Dtype::bf16 ? (inputs_ + 1) / 2 : inputs_; }
    std::vector<uint16_t> pairs_of(const float* weight, int panel) const;
    void pack_f32(const float* weight, Room* room);
    void pack_bf16(const float* weight, bool squeeze, Room* room);
    std::vector<uint8_t> bytes_of(const float* weight, bool squeeze);

    Dtype dtype_ = Dtype::f32;
    int copies_ = 0, outputs_ = 0, inputs_ = 0, panels_ = 0;
    bool squeezed_ = false;         // the panels of kPanel registers are
    std::vector<size_t> panel_at_;  // [copies * panels] in bf16_
    Buffer<float> f32_, bias_;
    Buffer<uint8_t> bf16_;
};

}  // namespace serpentine

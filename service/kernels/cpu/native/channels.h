// Parameters that exist once a channel, in blocks of 16 channels: [block][rows][16], zeros past the last channel.
#pragma once

#include "buffer.h"
#include "kernels.h"

namespace serpentine {

class Channels {
  public:
    Channels() = default;
    // values [rows][channels]
    Channels(const float* values, int rows, int channels, float factor = 1.0f) : rows_(rows) {
        const int blocks = (channels + kVector - 1) / kVector;
        packed_ = Buffer<float>(static_cast<size_t>(blocks) * static_cast<size_t>(rows) * kVector);
        for (int c = 0; c < channels; ++c)
            for (int r = 0; r < rows; ++r)
                packed_.data()[(static_cast<size_t>(c / kVector) * static_cast<size_t>(rows) +
                                static_cast<size_t>(r)) * kVector + static_cast<size_t>(c % kVector)] =
                    values[static_cast<size_t>(r) * static_cast<size_t>(channels) + static_cast<size_t>(c)] * factor;
    }
    // The block that holds `channel`, a multiple of 16.
    const float* at(int channel) const {
        return packed_.data() + static_cast<ptrdiff_t>(channel) * rows_;
    }
    size_t bytes() const { return packed_.bytes(); }

  private:
    int rows_ = 0;
    Buffer<float> packed_;
};

constexpr float kLog2e = 1.44269504f;
constexpr int kChannelsOfItem = 64;  // that one thread takes at a time

}  // namespace serpentine

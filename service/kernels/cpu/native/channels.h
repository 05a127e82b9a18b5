// Parameters that exist once a channel, in blocks of 16 channels: [block][rows][16], zeros past the last channel.
#pragma once

#include "buffer.h"
#include "kernels.h"

namespace serpentine {

class Channels {
  public:
    Channels() = default;
    // values [rows][channels]; room: for what is small, or null
    Channels(const float* values, int rows, int channels, float factor = 1.0f, Room* room = nullptr) : rows_(rows) {
        const int blocks = (channels + kVector - 1) / kVector;
        packed_ = Buffer<float>(static_cast<size_t>(blocks) * static_cast<size_t>(rows) * kVector, room);
        for (int r = 0; r < rows; ++r)
            for (int block = 0; block < blocks; ++block) {
                const float* from = values + static_cast<ptrdiff_t>(r) * channels + block * kVector;
                float* to = packed_.data() + (static_cast<ptrdiff_t>(block) * rows + r) * kVector;
                const int lanes = channels - block * kVector;
                if (lanes >= kVector)
                    for (int lane = 0; lane < kVector; ++lane) to[lane] = from[lane] * factor;
                else
                    for (int lane = 0; lane < lanes; ++lane) to[lane] = from[lane] * factor;
            }
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

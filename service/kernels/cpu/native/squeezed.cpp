#include "squeezed.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <span>

#include "buffer.h"

namespace serpentine {
namespace {

constexpr int kUppers = 16, kHalf = kStepWeights / 2;
constexpr uint8_t kNone = 255;

// The most frequent upper bytes, in their order.
std::array<uint8_t, kUppers> frequent(std::span<const uint16_t> weights) {
    std::array<size_t, 256> count{};
    for (const uint16_t w : weights) ++count[w >> 8];
    std::array<uint8_t, 256> bytes{};
    std::iota(bytes.begin(), bytes.end(), uint8_t{0});
    std::stable_sort(bytes.begin(), bytes.end(), [&](uint8_t a, uint8_t b) { return count[a] > count[b]; });
    std::array<uint8_t, kUppers> found;
    std::copy_n(bytes.begin(), kUppers, found.begin());
    std::sort(found.begin(), found.end());
    return found;
}

// Where each weight of half a step lies among its bytes.
constexpr std::array<uint8_t, kHalf> places() {
    std::array<uint8_t, kHalf> at{};
    for (int i = 0; i < kHalf; ++i) {
        const int vector = i / (2 * kVector), weight = i % (2 * kVector);
        at[static_cast<size_t>(i)] = static_cast<uint8_t>(weight / 8 * 16 + vector * 8 + weight % 8);
    }
    return at;
}
constexpr auto kPlaces = places();

}  // namespace

std::vector<uint8_t> squeezed(const uint16_t* panel, int depth) {
    const std::span<const uint16_t> weights(panel, static_cast<size_t>(depth) * kStepWeights);
    const auto upper = frequent(weights);
    std::array<uint8_t, 256> index;
    index.fill(kNone);
    for (int i = 0; i < kUppers; ++i) index[upper[static_cast<size_t>(i)]] = static_cast<uint8_t>(i);

    std::vector<int32_t> whole;
    for (int k = 0; k < depth; ++k) {
        uint8_t any = 0;
        for (const uint16_t w : weights.subspan(static_cast<size_t>(k) * kStepWeights, kStepWeights)) any |= index[w >> 8];
        if (any == kNone) whole.push_back(k);
    }
    whole.push_back(depth);

    const size_t head = kUppers + sizeof(int32_t) * (1 + whole.size());
    const size_t begin = (head + kCacheLine - 1) / kCacheLine * kCacheLine, wholes = whole.size() - 1;
    std::vector<uint8_t> out(begin + wholes * kWholeStep + (static_cast<size_t>(depth) - wholes) * kSqueezedStep);
    const auto first_step = static_cast<int32_t>(begin);
    std::memcpy(out.data(), upper.data(), kUppers);
    std::memcpy(out.data() + kUppers, &first_step, sizeof first_step);
    std::memcpy(out.data() + kUppers + sizeof first_step, whole.data(), sizeof(int32_t) * whole.size());
    uint8_t* to = out.data() + begin;
    for (int k = 0, next = 0; k < depth; ++k) {
        const uint16_t* step = panel + static_cast<ptrdiff_t>(k) * kStepWeights;
        if (k == whole[static_cast<size_t>(next)]) {
            std::memcpy(to, step, kWholeStep);
            to += kWholeStep;
            ++next;
            continue;
        }
        for (int half = 0; half < 2; ++half, step += kHalf)
            for (int i = 0; i < kHalf; ++i) {
                const size_t at = kPlaces[static_cast<size_t>(i)];
                to[static_cast<size_t>(half * kHalf) + at] = static_cast<uint8_t>(step[i]);
                to[2 * kHalf + at] |= static_cast<uint8_t>(index[step[i] >> 8] << (4 * half));
            }
        to += kSqueezedStep;
    }
    return out;
}

}  // namespace serpentine

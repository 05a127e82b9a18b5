#include "packing.h"

#include <algorithm>
#include <stdexcept>

namespace serpentine {
namespace {

std::string listed(const int64_t* values, int64_t count) {
    std::string text = "[";
    for (int64_t i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(values[i]);
    return text + "]";
}

}  // namespace

void PackingCheck::operator()(const char* op, const Packing& p) {
    const bool rise = std::is_sorted(p.offsets, p.offsets + p.sequences + 1);
    if (!rise || p.offsets[0] != 0 || p.offsets[p.sequences] != p.rows)
        throw std::invalid_argument(std::string(op) + ": offsets must rise from 0 to " + std::to_string(p.rows) + ", got " +
                                    listed(p.offsets, p.sequences + 1));
    if (taken_.size() < static_cast<size_t>(p.slots_of_pool)) taken_.resize(static_cast<size_t>(p.slots_of_pool), 0);
    int64_t good = 0;
    for (; good < p.sequences; ++good) {
        const int64_t slot = p.slots[good];
        if (slot < 0 || slot >= p.slots_of_pool || taken_[static_cast<size_t>(slot)]) break;
        taken_[static_cast<size_t>(slot)] = 1;
    }
    for (int64_t i = 0; i < good; ++i) taken_[static_cast<size_t>(p.slots[i])] = 0;
    if (good < p.sequences)
        throw std::invalid_argument(std::string(op) + ": slots must be distinct and in 0.." + std::to_string(p.slots_of_pool - 1) +
                                    ", got " + listed(p.slots, p.sequences));
    for (int64_t i = 0; i < p.reads; ++i)
        if (p.read[i] < 0 || p.read[i] >= p.rows)
            throw std::invalid_argument(std::string(op) + ": reads must be in 0.." + std::to_string(p.rows - 1) + ", got " +
                                        listed(p.read, p.reads));
}

void segments_of(const Packing& p, int64_t first, int64_t count, std::vector<Segment>& out) {
    out.clear();
    for (int64_t i = 0; i < p.sequences; ++i) {
        const int64_t begin = p.offsets[i], end = p.offsets[i + 1];
        const int64_t from = std::max(begin, first), to = std::min(end, first + count);
        const bool starts = begin == end ? first == 0 : from == begin;
        if (from < to || (begin == end && first == 0 && p.fresh[i]))
            out.push_back({p.slots[i], static_cast<int>(std::max<int64_t>(from - first, 0)),
                           static_cast<int>(std::max<int64_t>(to - from, 0)), p.fresh[i] && starts});
    }
}

}  // namespace serpentine

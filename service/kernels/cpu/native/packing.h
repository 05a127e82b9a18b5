// Packed sequences: what comes from the caller, checked, and cut into blocks of rows that fit the workspace.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace serpentine {

// As the ops' contract has it; all pointers are the caller's.
struct Packing {
    int64_t rows, sequences, slots_of_pool, reads;
    const int64_t* offsets;  // [sequences + 1]
    const int64_t* slots;    // [sequences]
    const bool* fresh;       // [sequences]
    const int64_t* read;     // [reads], or null
};

// Rows of one sequence within a block. `begin` counts from the block's first row.
struct Segment {
    int64_t slot;
    int begin, rows;
    bool fresh;
};

// Throws std::invalid_argument, naming the argument of `op`, unless the packing describes distinct slots.
class PackingCheck {
  public:
    void operator()(const char* op, const Packing& packing);

  private:
    std::vector<uint8_t> taken_;
};

// The parts of sequences among rows first..first+count-1 of the whole. Empty fresh ones are parts of the first block:
// their slots have to be cleared.
void segments_of(const Packing& packing, int64_t first, int64_t count, std::vector<Segment>& out);

}  // namespace serpentine

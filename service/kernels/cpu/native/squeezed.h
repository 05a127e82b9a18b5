// Weights in bf16 in three quarters of their bytes, without loss.
//
// The upper byte of a bf16 is its sign and all but the last bit of its exponent. In a panel of weights nearly all of
// them are one of sixteen: either sign, and magnitudes a factor of 2^16 apart. So a weight is its lower byte, and four
// bits that say which upper byte; a step in depth that has some other upper byte stays as it is.
//
// A squeezed panel is kPanel registers of outputs wide:
//   upper [16] bytes; int32: bytes from the panel's begin to its first step; int32 []: the steps that stay whole,
//   rising, the depth at their end; zeros up to a cache line. Then the steps: a whole one as in an unsqueezed panel,
//   [kPanel][16][2] bf16; another one as two times 64 lower bytes and 64 bytes of which 4 bits a weight.
// Of those the first 64 lower bytes are of registers 0 and 1, eight of the one and eight of the other in turn, the
// second of 2 and 3; the lower and the upper half of byte i name the upper bytes that belong to byte i of either.
// Unpacking is then a look-up in a register and two interleavings: this file's format is the one that processors like.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace serpentine {

// A step in depth, in weights; and in bytes, whole and squeezed.
constexpr int kStepWeights = kPanel * kVector * 2;
constexpr int kWholeStep = 2 * kStepWeights, kSqueezedStep = kStepWeights + kStepWeights / 2;

// panel [depth][kPanel][16][2] -> the same squeezed, whole cache lines.
std::vector<uint8_t> squeezed(const uint16_t* panel, int depth);

}  // namespace serpentine

// How weights lie in memory, and the numbers that the library and native.py share.
//
// A weight (N, K) is cut into panels of 64 output features. A panel is a sequence of steps; a step
// holds, for each of the 64 outputs, one 32-bit word: one float32, two bfloat16 or four int8 weights
// that follow each other along K. A panel is therefore read front to back, once, as one stream:
//
//     step 0:  word of output 0, word of output 1, ..., word of output 63
//     step 1:  ...                                                            K / (weights a word) steps
//
// In int8 panels, 64 such steps (256 weights of each output) are a group, which begins with one more
// step: for each output the whole number that its sum starts from, -128 times the group's weights,
// because activations are stored as unsigned numbers, 128 too large.
//
// N is padded to whole panels and K to whole words, both with zeros. One layout serves one row and a
// thousand: a tile of rows keeps 64 sums a row in registers (or a part of the 64 where registers are
// fewer) and walks the steps in order. So every output adds its K products in the same order, whatever
// the number of rows, and a row's bits do not depend on its neighbours.
#pragma once
#include <stdint.h>

namespace visiongate {

constexpr int64_t kPanel = 64;   // outputs of a panel
constexpr int64_t kGroup = 256;  // int8: activations that share one scale
constexpr int64_t kGroupSteps = kGroup / 4;
constexpr int kMaxRows = 6;      // rows of the largest register tile

inline int64_t round_up(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

}  // namespace visiongate

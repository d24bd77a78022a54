// Where keys and values lie: rows of a picture, or the paged cache (blocks, Hkv, block size, D).
#pragma once
#include "tile.h"

namespace visiongate {
namespace {

constexpr int kKeys = 256;  // keys of a block of attention: four panels
constexpr float kRoom = 8;  // probabilities may reach 2 ** kRoom
constexpr int64_t kRowsAhead = 16;  // rows of a head come from far away, each from another page

// Fetches `count` numbers that are read soon.
template <class T>
inline void expect_row(const T* row, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / (int64_t)sizeof(T)) __builtin_prefetch(row + i);
}

// Those of one sequence and one key head.
struct Keys {
  const AttentionCall& call;
  int64_t sequence, head, first_row;  // first_row: of a picture

  // Where a row of `k` or `v` begins, whose rows are `stride` apart.
  int64_t place_of(int64_t position, int64_t stride) const {
    if (!call.block_table) return (first_row + position) * stride + head * call.D;
    const uint32_t at = (uint32_t)position, size = (uint32_t)call.block_size;  // short to divide
    const int64_t block = call.block_table[sequence * call.table_width + at / size];
    return ((block * call.Hkv + head) * size + at % size) * stride;
  }
  template <class T>
  const T* key(int64_t position) const {
    return (const T*)call.k + place_of(position, call.kv_stride);
  }
  template <class T>
  const T* value(int64_t position) const {
    return (const T*)call.v + place_of(position, call.v_stride);
  }
};

}  // namespace
}  // namespace visiongate

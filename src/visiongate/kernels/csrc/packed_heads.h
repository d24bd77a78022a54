// A picture's keys and values in int8, as attention_int8.h reads them.
//
// What all keys of a picture have in common is taken off them: it moves all scores of a query alike,
// which changes no probability, and would take most of the eight bits. Each key has a scale of its own.
// Values go without their mean, too, which is added to the results; of a block of 256 keys, each of
// their D numbers has a scale. What they lose by rounding is added to the mean, so that it is exact.
#pragma once
#include "keys.h"
#include "packing.h"

namespace visiongate {
namespace {

// One head's keys and values of one picture, packed, in memory that `num_bytes` measures.
struct PackedHead {
  struct Block {
    int8_t* keys;        // 4 panels of 64
    int8_t* values;      // (64 steps of 4 keys, padded D)
    int32_t* start;      // (256), as in layout.h
    float* key_scale;    // (256)
    float* value_scale;  // (padded D)
  };

  int64_t D, padded_D;
  float* mean;  // (padded D) of the values
  char* blocks;

  PackedHead(char* memory, int64_t D)
      : D(D), padded_D(round_up(D, Simd::kLanes)), mean((float*)memory),
        blocks((char*)(mean + padded_D)) {}

  static int64_t block_bytes(int64_t D) {
    const int64_t padded_D = round_up(D, Simd::kLanes);
    return kKeys * (D + padded_D + 8) + padded_D * 4;
  }
  static int64_t num_bytes(int64_t D, int64_t num_keys) {
    const int64_t num_blocks = (num_keys + kKeys - 1) / kKeys;
    return round_up(round_up(D, Simd::kLanes) * 4 + num_blocks * block_bytes(D), 64);
  }

  Block block(int64_t index) const {
    int8_t* keys = (int8_t*)blocks + index * block_bytes(D);
    int8_t* values = keys + kKeys * D;
    int32_t* start = (int32_t*)(values + kKeys * padded_D);
    float* key_scale = (float*)(start + kKeys);
    return {keys, values, start, key_scale, key_scale + kKeys};
  }
};

// Packs the keys and values of one picture's head. V is the type of values.
template <class V>
struct Packing {
  const uint16_t* k;
  const V* v;
  int64_t k_stride, v_stride, num_keys;
  PackedHead head;
  float *key_mean, *rounding, *inverse;  // (padded D); rounding: what values lost, summed
  float* row;                            // (padded D)
  int8_t* rows;                          // (256, padded D)

  void take_memory() {
    const int64_t row_bytes = head.padded_D * 4;
    const int64_t sizes[] = {row_bytes, row_bytes, row_bytes, row_bytes,
                             kKeys * head.padded_D};
    char* parts[5];
    scratch_parts(kAttention, sizes, parts);
    key_mean = (float*)parts[0];
    rounding = (float*)parts[1];
    inverse = (float*)parts[2];
    row = (float*)parts[3];
    rows = (int8_t*)parts[4];
    float* const sums[] = {key_mean, rounding, head.mean};
    for (float* row_of_sums : sums) memset(row_of_sums, 0, row_bytes);
  }

  // A part of a value without the mean.
  Simd::Float moved_value(int64_t key, int64_t d) const {
    return Simd::sub(load_part(v + key * v_stride + d, head.D - d), Simd::load(head.mean + d));
  }

  void find_means() const {
    const int64_t D = head.D;
    for (int64_t key = 0; key < num_keys; ++key) {
      const uint16_t* one = k + key * k_stride;
      const V* value = v + key * v_stride;
      for (int64_t d = 0; d < D; d += 64 / (int64_t)sizeof(V)) {
        __builtin_prefetch(one + kRowsAhead * k_stride + d);
        __builtin_prefetch(value + kRowsAhead * v_stride + d);
      }
      for (int64_t d = 0; d < D; d += Simd::kLanes) {
        add_to(key_mean + d, load_part(one + d, D - d));
        add_to(head.mean + d, load_part(value + d, D - d));
      }
    }
    for (int64_t d = 0; d < D; d += Simd::kLanes) {
      divide_by_count(key_mean + d);
      divide_by_count(head.mean + d);
    }
  }
  static void add_to(float* sums, Simd::Float x) {
    Simd::store(sums, Simd::add(Simd::load(sums), x));
  }
  void divide_by_count(float* sums) const {
    Simd::store(sums, Simd::mul(Simd::load(sums), Simd::set1(1.0f / (float)num_keys)));
  }

  void pack_keys(const PackedHead::Block& block, int64_t begin, int64_t count) const {
    const int64_t D = head.D;
    for (int64_t key = 0; key < count; ++key) {
      const uint16_t* from = k + (begin + key) * k_stride;
      for (int64_t d = 0; d < D; d += Simd::kLanes) {
        __builtin_prefetch(from + kRowsAhead * k_stride + d);
        Simd::store(row + d, Simd::sub(load_part(from + d, D - d), Simd::load(key_mean + d)));
      }
      block.key_scale[key] = quantize_weights(row, rows + key * D, D);
      block.start[key] = -128 * sum_of(rows + key * D, D);
    }
    for (int64_t key = count; key < kKeys; ++key) {  // scores of missing keys: -3e37
      block.key_scale[key] = 3e28f;
      block.start[key] = -1000000000;
    }
    for (int64_t first = 0; first < kKeys; first += kPanel)
      pack_panel((const char*)rows + first * D, D, smaller(kPanel, count - first), D,
                 (uint32_t*)block.keys + first * D / 4);
  }

  // One scale for each number of the block's values.
  void scale_values(const PackedHead::Block& block, int64_t begin, int64_t count) const {
    for (int64_t d = 0; d < head.D; d += Simd::kLanes)
      Simd::store(block.value_scale + d, Simd::set1(1e-30f));
    for (int64_t key = begin; key < begin + count; ++key)
      for (int64_t d = 0; d < head.D; d += Simd::kLanes) {
        __builtin_prefetch(v + (key + kRowsAhead) * v_stride + d);
        const Simd::Float top = Simd::load(block.value_scale + d);
        Simd::store(block.value_scale + d, Simd::max(top, Simd::abs(moved_value(key, d))));
      }
    for (int64_t d = 0; d < head.D; d += Simd::kLanes) {
      const Simd::Float top = Simd::load(block.value_scale + d), range = Simd::set1(127.0f);
      Simd::store(inverse + d, Simd::div(range, top));
      Simd::store(block.value_scale + d, Simd::div(top, range));
    }
  }

  // Missing keys weigh nothing: their values may be anything.
  void pack_values(const PackedHead::Block& block, int64_t begin, int64_t count) const {
    const int64_t width = head.padded_D;
    for (int64_t key = 0; key < count; ++key)
      for (int64_t d = 0; d < head.D; d += Simd::kLanes) {
        const Simd::Float value = moved_value(begin + key, d);
        const Simd::Float whole = Simd::round(Simd::mul(value, Simd::load(inverse + d)));
        Simd::store_quantized((uint8_t*)rows + key * width + d, whole);
        const Simd::Float kept = Simd::mul(whole, Simd::load(block.value_scale + d));
        add_to(rounding + d, Simd::sub(value, kept));
      }
    const uint8_t* from = (const uint8_t*)rows;
    uint32_t* quads = (uint32_t*)block.values;
    for (int64_t key = 0; key < count; key += 4, from += 4 * width, quads += width)
      for (int64_t d = 0; d < width; ++d)
        quads[d] = (from[d] | (uint32_t)from[width + d] << 8 |
                    (uint32_t)from[2 * width + d] << 16 | (uint32_t)from[3 * width + d] << 24) ^
                   0x80808080u;
  }

  void run() {
    take_memory();
    find_means();
    for (int64_t begin = 0; begin < num_keys; begin += kKeys) {
      const PackedHead::Block block = head.block(begin / kKeys);
      const int64_t count = smaller(kKeys, num_keys - begin);
      pack_keys(block, begin, count);
      scale_values(block, begin, count);
      pack_values(block, begin, count);
    }
    for (int64_t d = 0; d < head.D; d += Simd::kLanes) {
      divide_by_count(rounding + d);
      add_to(head.mean + d, Simd::load(rounding + d));
    }
  }
};

}  // namespace
}  // namespace visiongate

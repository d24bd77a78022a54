// Weights into panels, and single rows back out of them.
#pragma once
#include "common.h"

namespace visiongate {
namespace {

constexpr int64_t weights_a_word(Product product) {
  return product == kFloat32OverFloat32 ? 1 : product == kInt8OverInt8 ? 4 : 2;
}

// Turns up to 64 rows of `row_bytes` bytes into the steps of a panel. Missing rows are zeros.
inline void pack_panel(const char* rows, int64_t row_stride, int64_t num_rows, int64_t row_bytes,
                       uint32_t* panel) {
  constexpr int64_t kBlock = Simd::kLanes;  // words taken from each row at a time
  static const uint32_t zeros[kBlock] = {};
  const int64_t num_steps = (row_bytes + 3) / 4, num_whole = row_bytes / 4 / kBlock * kBlock;
  for (int64_t step = 0; step < num_whole; step += kBlock) {
    for (int64_t first = 0; first < kPanel; first += kBlock) {
      const uint32_t* block[kBlock];
      for (int64_t r = 0; r < kBlock; ++r) {
        const char* row = rows + (first + r) * row_stride + step * 4;
        block[r] = first + r < num_rows ? (const uint32_t*)row : zeros;
        __builtin_prefetch(row + 256);
      }
      Simd::transpose(block, panel + step * kPanel + first, kPanel);
    }
  }
  for (int64_t step = num_whole; step < num_steps; ++step)
    for (int64_t r = 0; r < kPanel; ++r) {
      uint32_t word = 0;
      if (r < num_rows)
        memcpy(&word, rows + r * row_stride + step * 4, smaller(4, row_bytes - step * 4));
      panel[step * kPanel + r] = word;
    }
}

// Quantises one row of a weight; returns its scale.
template <class T>
float quantize_weights(const T* weights, int8_t* row, int64_t K) {
  const float scale = quantize_group(weights, (uint8_t*)row, K);
  for (int64_t k = 0; k < K; ++k) row[k] = (int8_t)(row[k] ^ 0x80);
  return scale;
}

inline int32_t sum_of(const int8_t* row, int64_t count) {
  int32_t sum = 0;
  for (int64_t k = 0; k < count; ++k) sum += row[k];
  return sum;
}

// Steps of an int8 panel: those of the weights and one for each group.
inline int64_t num_int8_steps(int64_t K) {
  const int64_t num_steps = (K + 3) / 4;
  return num_steps + (num_steps + kGroupSteps - 1) / kGroupSteps;
}

inline void pack_int8_panel(const PackCall& call, int64_t panel) {
  const int64_t padded_K = round_up(call.K, 4);
  const int64_t first = panel * kPanel, num_rows = smaller(kPanel, call.N - first);
  int8_t* rows = (int8_t*)scratch(kRow, kPanel * padded_K + 64);
  memset(rows, 0, kPanel * padded_K);
  for (int64_t r = 0; r < kPanel; ++r) {
    int8_t* row = rows + r * padded_K;
    call.scale[first + r] = 0;
    if (r < num_rows)
      with_type(call.type, call.weight, [&](auto* weight) {
        call.scale[first + r] = quantize_weights(weight + (first + r) * call.K, row, call.K);
      });
  }
  uint32_t* out = (uint32_t*)call.panels + panel * kPanel * num_int8_steps(call.K);
  for (int64_t begin = 0; begin < padded_K; begin += kGroup) {
    const int64_t count = smaller(kGroup, padded_K - begin);
    for (int64_t r = 0; r < kPanel; ++r)
      out[r] = (uint32_t)(-128 * sum_of(rows + r * padded_K + begin, count));
    pack_panel((const char*)rows + begin, padded_K, kPanel, count, out + kPanel);
    out += kPanel * (1 + count / 4);
  }
}

inline void pack(const PackCall& call, Product product) {
  const int64_t num_panels = round_up(call.N, kPanel) / kPanel;
  parallel(num_panels, [&](int64_t panel) {
    if (product == kInt8OverInt8) return pack_int8_panel(call, panel);
    const int64_t row_bytes = call.K * 4 / weights_a_word(product);
    const int64_t first = panel * kPanel, num_steps = (row_bytes + 3) / 4;
    pack_panel((const char*)call.weight + first * row_bytes, row_bytes,
               smaller(kPanel, call.N - first), row_bytes,
               (uint32_t*)call.panels + panel * kPanel * num_steps);
  });
}

// One weight of one word as float32.
inline float weight_of(uint32_t word, int64_t unit, Product product) {
  if (product == kInt8OverInt8) return (float)(int8_t)(word >> 8 * unit);
  const uint32_t bits = product == kFloat32OverFloat32 ? word : word >> 16 * unit << 16;
  float wide;
  memcpy(&wide, &bits, sizeof wide);
  return wide;
}

inline void embedding(const EmbeddingCall& call) {
  const int64_t unit = weights_a_word(call.product);
  const bool is_int8 = call.product == kInt8OverInt8;
  const int64_t num_steps = is_int8 ? num_int8_steps(call.K) : (call.K + unit - 1) / unit;
  parallel_rows(call.T, call.K * 4, [&](int64_t t) {
    const int64_t n = call.ids[t];
    const uint32_t* words = (const uint32_t*)call.panels + n / kPanel * kPanel * num_steps;
    const float scale = is_int8 ? call.scale[n] : 1.0f;
    float* row = (float*)scratch(kRow, (call.K + Simd::kLanes) * sizeof(float));
    for (int64_t k = 0; k < call.K; ++k) {
      const int64_t step = k / unit + (is_int8 ? k / kGroup + 1 : 0);
      row[k] = scale * weight_of(words[step * kPanel + n % kPanel], k % unit, call.product);
    }
    with_type(call.type, call.rows, [&](auto* rows) {
      for (int64_t k = 0; k < call.K; k += Simd::kLanes)
        store_part(rows + t * call.K + k, Simd::load(row + k), call.K - k);
    });
  });
}

}  // namespace
}  // namespace visiongate

// The machine's limits, for benchmarks: how fast memory can be read, and registers multiplied.
#pragma once
#include "common.h"

namespace visiongate {
namespace {

// Reads a buffer once with every thread; returns something that depends on all of it.
inline float probe_read(const void* buffer, int64_t num_bytes) {
  constexpr int64_t kPiece = 1 << 20;
  const int64_t num_pieces = num_bytes / kPiece;
  float* results = (float*)scratch(kSums, (num_pieces + 1) * sizeof(float));
  parallel(num_pieces, [&](int64_t piece) {
    const char* bytes = (const char*)buffer + piece * kPiece;
    Simd::Float sums[4] = {Simd::zero(), Simd::zero(), Simd::zero(), Simd::zero()};
    constexpr int64_t kVector = Simd::kLanes * 4;
    for (int64_t i = 0; i < kPiece; i += 4 * kVector) {
      for (int64_t line = 0; line < 4 * kVector; line += 64)
        __builtin_prefetch(bytes + i + line + 4096);
#pragma GCC unroll 4
      for (int64_t v = 0; v < 4; ++v)
        sums[v] = Simd::max(sums[v], Simd::load((const float*)(bytes + i + v * kVector)));
    }
    results[piece] = Simd::largest(
        Simd::max(Simd::max(sums[0], sums[1]), Simd::max(sums[2], sums[3])));
  });
  float all = 0;
  for (int64_t piece = 0; piece < num_pieces; ++piece) all += results[piece];
  return all;
}

// Multiplies and adds in registers, on 16 items of `num_rounds` each; returns operations done.
inline double probe_products(Product product, int64_t num_rounds) {
  constexpr int kSums = 12;
  constexpr int64_t kItems = 16;
  parallel(kItems, [&](int64_t item) {
    Simd::Float sums[kSums];
    Simd::Int whole[kSums];
    const float seed[Simd::kLanes] = {(float)item * 1e-30f};
    const Simd::Float x = Simd::load(seed);
    for (int i = 0; i < kSums; ++i) sums[i] = x, whole[i] = Simd::load_int(seed);
    for (int64_t round = 0; round < num_rounds; ++round)
#pragma GCC unroll 12
      for (int i = 0; i < kSums; ++i) {
        if (product == kInt8OverInt8)
          whole[i] = Simd::add_quads(whole[i], Simd::load_int(seed), (uint32_t)item);
        else if (product == kBfloat16OverBfloat16)
          sums[i] = Simd::add_pairs(sums[i], Simd::load_pairs((const uint16_t*)seed),
                                    (uint32_t)item);
        else
          sums[i] = Simd::fma(x, x, sums[i]);
      }
    volatile float sink = 0;
    for (int i = 0; i < kSums; ++i)
      sink = sink + Simd::sum(Simd::add(sums[i], Simd::to_float(whole[i])));
  });
  const int unit = product == kInt8OverInt8 ? 4 : product == kBfloat16OverBfloat16 ? 2 : 1;
  return 2.0 * unit * Simd::kLanes * kSums * (double)(kItems * num_rounds);
}

}  // namespace
}  // namespace visiongate

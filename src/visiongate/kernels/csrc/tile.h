// The register tiles: a few rows times one panel, or a part of its width, step by step.
//
// `Product::multiply<Rows, Vectors, kFromZero>` adds to sums (Rows, Vectors * kLanes), or to zero. It reads row r's step s at
// x + r * x_row + s * x_step and the weights' step s at w + s * w_step, in units of their types. Every
// product of one output is added in the order of the steps, for every Rows and Vectors.
#pragma once
#include "common.h"

namespace visiongate {
namespace {

// What a tile reads ahead while it computes: each step fetches `stride` bytes more from `next` on. A
// lone tile reads its own weights a little ahead, into the first cache. Tiles that share a chunk of a
// panel, which lies in the second cache by then, each fetch their part of the chunk after it into the
// second cache; doing that through the first one costs a third of the speed of 8 rows.
template <int Cache>
struct Ahead {
  const char* next;
  int64_t stride;  // at most kPanel * 4, a whole step
  inline __attribute__((always_inline)) void fetch() {
    const int64_t quarter = stride / 4;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) __builtin_prefetch(next + i * quarter, 0, Cache == 1 ? 3 : 2);
    next += stride;
  }
};

// For operands that are in the cache already.
struct Nothing {
  void fetch() {}
};

// float32 rows over bfloat16 pairs: exact products, float32 sums.
struct ExactPairs {
  using X = float;
  using W = uint16_t;
  using Sum = float;
  static constexpr int kUnit = 2;  // weights of one output in a step

  template <int Rows, int Vectors, bool kFromZero, class Fetch>
  static inline __attribute__((always_inline)) void multiply(
      const X* x, int64_t x_row, int64_t x_step, const W* w, int64_t w_step, Sum* sums,
      int64_t sums_row, int64_t num_steps, Fetch ahead) {
    Simd::Float acc[Rows][Vectors];
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v)
        acc[r][v] = kFromZero ? Simd::zero() : Simd::load(sums + r * sums_row + v * Simd::kLanes);
    for (int64_t step = 0; step < num_steps; ++step, w += w_step, x += x_step) {
      ahead.fetch();
      Simd::Float weights[Vectors];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v)
        weights[v] = Simd::first_of_pairs(w + v * Simd::kLanes * 2);
#pragma GCC unroll 6
      for (int r = 0; r < Rows; ++r) {
        const Simd::Float one = Simd::set1(x[r * x_row]);
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) acc[r][v] = Simd::fma(weights[v], one, acc[r][v]);
      }
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v)
        weights[v] = Simd::second_of_pairs(w + v * Simd::kLanes * 2);
#pragma GCC unroll 6
      for (int r = 0; r < Rows; ++r) {
        const Simd::Float one = Simd::set1(x[r * x_row + 1]);
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) acc[r][v] = Simd::fma(weights[v], one, acc[r][v]);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v)
        Simd::store(sums + r * sums_row + v * Simd::kLanes, acc[r][v]);
  }
};

// float32 rows over float32 weights.
struct Exact {
  using X = float;
  using W = float;
  using Sum = float;
  static constexpr int kUnit = 1;

  template <int Rows, int Vectors, bool kFromZero, class Fetch>
  static inline __attribute__((always_inline)) void multiply(
      const X* x, int64_t x_row, int64_t x_step, const W* w, int64_t w_step, Sum* sums,
      int64_t sums_row, int64_t num_steps, Fetch ahead) {
    Simd::Float acc[Rows][Vectors];
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v)
        acc[r][v] = kFromZero ? Simd::zero() : Simd::load(sums + r * sums_row + v * Simd::kLanes);
    for (int64_t step = 0; step < num_steps; ++step, w += w_step, x += x_step) {
      ahead.fetch();
      Simd::Float weights[Vectors];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) weights[v] = Simd::load(w + v * Simd::kLanes);
#pragma GCC unroll 6
      for (int r = 0; r < Rows; ++r) {
        const Simd::Float one = Simd::set1(x[r * x_row]);
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) acc[r][v] = Simd::fma(weights[v], one, acc[r][v]);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v)
        Simd::store(sums + r * sums_row + v * Simd::kLanes, acc[r][v]);
  }
};

inline uint32_t load_word(const void* p) {
  uint32_t word;
  memcpy(&word, p, sizeof word);
  return word;
}

// bfloat16 rows over bfloat16 pairs, float32 sums.
struct Bfloat16Pairs {
  using X = uint16_t;
  using W = uint16_t;
  using Sum = float;
  static constexpr int kUnit = 2;

  template <int Rows, int Vectors, bool kFromZero, class Fetch>
  static inline __attribute__((always_inline)) void multiply(
      const X* x, int64_t x_row, int64_t x_step, const W* w, int64_t w_step, Sum* sums,
      int64_t sums_row, int64_t num_steps, Fetch ahead) {
    Simd::Float acc[Rows][Vectors];
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v)
        acc[r][v] = kFromZero ? Simd::zero() : Simd::load(sums + r * sums_row + v * Simd::kLanes);
    for (int64_t step = 0; step < num_steps; ++step, w += w_step, x += x_step) {
      ahead.fetch();
      Simd::Pairs weights[Vectors];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) weights[v] = Simd::load_pairs(w + v * Simd::kLanes * 2);
#pragma GCC unroll 6
      for (int r = 0; r < Rows; ++r) {
        const uint32_t pair = load_word(x + r * x_row);
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v)
          acc[r][v] = Simd::add_pairs(acc[r][v], weights[v], pair);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v)
        Simd::store(sums + r * sums_row + v * Simd::kLanes, acc[r][v]);
  }
};

// One group of unsigned 8-bit rows over int8 quads: whole sums start at `start` (minus what the
// offset of 128 adds), and are scaled by each row's `x_scale` into the float32 sums.
struct Int8Quads {
  using X = uint8_t;
  using W = int8_t;
  static constexpr int kUnit = 4;

  template <int Rows, int Vectors, class Fetch>
  static inline __attribute__((always_inline)) void multiply_group(
      const X* x, int64_t x_row, int64_t x_step, const W* w, int64_t w_step, const int32_t* start,
      const float* x_scale, int64_t x_scale_row, float* sums, int64_t sums_row,
      int64_t num_steps, bool from_zero, Fetch ahead) {
    Simd::Int acc[Rows][Vectors];
    add_up(x, x_row, x_step, w, w_step, start, num_steps, ahead, acc);
    const auto add = [&](const auto& sum_at) __attribute__((always_inline)) {
#pragma GCC unroll 6
      for (int r = 0; r < Rows; ++r) {
        const Simd::Float scale = Simd::set1(x_scale[r * x_scale_row]);
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
          float* sum = sums + r * sums_row + v * Simd::kLanes;
          Simd::store(sum, Simd::fma(Simd::to_float(acc[r][v]), scale, sum_at(sum)));
        }
      }
    };
    if (from_zero)
      add([](const float*) { return Simd::zero(); });
    else
      add([](const float* sum) { return Simd::load(sum); });
  }

  template <int Rows, int Vectors, class Fetch>
  static inline __attribute__((always_inline)) void add_up(
      const X* x, int64_t x_row, int64_t x_step, const W* w, int64_t w_step, const int32_t* start,
      int64_t num_steps, Fetch ahead, Simd::Int (&acc)[Rows][Vectors]) {
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) acc[r][v] = Simd::load_int(start + v * Simd::kLanes);
    for (int64_t step = 0; step < num_steps; ++step, w += w_step, x += x_step) {
      ahead.fetch();
      Simd::Int weights[Vectors];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) weights[v] = Simd::load_int(w + v * Simd::kLanes * 4);
#pragma GCC unroll 6
      for (int r = 0; r < Rows; ++r) {
        const uint32_t quad = load_word(x + r * x_row);
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v)
          acc[r][v] = Simd::add_quads(acc[r][v], weights[v], quad);
      }
    }
  }
};

// Calls f.template operator()<rows>() through a constant, so that tiles are compiled per row count.
template <int N>
struct Count {
  static constexpr int value = N;
};
template <class F>
inline void with_rows(int64_t rows, const F& f) {
  switch (rows) {
    case 1: return f(Count<1>());
    case 2: return f(Count<2>());
    case 3: return f(Count<3>());
    case 4: return f(Count<4>());
    case 5: return f(Count<5>());
    case 6: return f(Count<6>());
  }
}

// `multiply` over num_columns outputs (a multiple of kLanes): the widest tiles first, then single
// vectors. Only the first tile fetches ahead. Distances in x are constants, which saves registers.
template <class Product, int Rows, int XRow, int XStep, bool kFromZero, class Fetch>
void multiply_columns(const typename Product::X* x, const typename Product::W* w, int64_t w_step,
                      float* sums, int64_t sums_row, int64_t num_columns, int64_t num_steps,
                      Fetch ahead) {
  constexpr int kVectors = Simd::kTileVectors;
  constexpr int64_t kWide = kVectors * Simd::kLanes;
  int64_t column = 0;
  if (kWide <= num_columns) {
    Product::template multiply<Rows, kVectors, kFromZero>(x, XRow, XStep, w, w_step, sums,
                                                          sums_row, num_steps, ahead);
    column = kWide;
  }
  for (; column + kWide <= num_columns; column += kWide)
    Product::template multiply<Rows, kVectors, kFromZero>(x, XRow, XStep,
                                                          w + column * Product::kUnit, w_step,
                                                          sums + column, sums_row, num_steps,
                                                          Nothing());
  for (; column < num_columns; column += Simd::kLanes)
    Product::template multiply<Rows, 1, kFromZero>(x, XRow, XStep, w + column * Product::kUnit,
                                                   w_step, sums + column, sums_row, num_steps,
                                                   Nothing());
}

}  // namespace
}  // namespace visiongate

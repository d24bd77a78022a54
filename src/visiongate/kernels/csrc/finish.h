// What a linear layer's sums become on their way to memory: scaled, biased, bent, added, rounded.
#pragma once
#include <type_traits>

#include "tile.h"

namespace visiongate {
namespace {

// Fetches the places of a tile's outputs before they are written: each row's lie in another page, and
// waiting for them took a seventh of a large product's time.
inline void expect_outputs(const LinearCall& call, int64_t first_row, int64_t num_rows,
                           int64_t panel) {
  const int64_t size = bytes_of(call.y_type), begin = panel * kPanel;
  const int64_t num_bytes = smaller(kPanel, call.N - begin) * size;
  for (int64_t r = 0; r < num_rows; ++r) {
    const char* y = (const char*)call.y + ((first_row + r) * call.N + begin) * size;
    for (int64_t place = 0; place < num_bytes; place += 64) Simd::expect_write(y + place);
  }
}

// Columns `begin` to `begin + 2 * kLanes` of some rows; kIsWhole: all of them are outputs.
template <bool kHasScale, Gelu kGelu, bool kAdds, bool kIsWhole, class T>
void finish_columns(const LinearCall& call, const float* sums, int64_t num_rows, int64_t begin,
                    T* y) {
  constexpr int kLanes = Simd::kLanes;
  const int64_t counts[2] = {call.N - begin, larger(0, call.N - begin - kLanes)};
  const auto count = [&](int v) { return kIsWhole ? (int64_t)kLanes : counts[v]; };
  Simd::Float scale[2], bias[2];
#pragma GCC unroll 2
  for (int v = 0; v < 2; ++v) {
    if (kHasScale) scale[v] = Simd::load(call.scale + begin + v * kLanes);  // padded
    bias[v] = call.bias && count(v) > 0 ? load_part(call.bias + begin + v * kLanes, count(v))
                                        : Simd::zero();
  }
  for (int64_t r = 0; r < num_rows; ++r, sums += kPanel, y += call.N) {
    Simd::Float out[2];
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      out[v] = Simd::load(sums + v * kLanes);
      if (kHasScale) out[v] = Simd::mul(out[v], scale[v]);
      if (call.bias) out[v] = Simd::add(out[v], bias[v]);
      if (kGelu == kTanhGelu) out[v] = tanh_gelu_of(out[v]);
      if (kGelu == kErfGelu) out[v] = erf_gelu_of(out[v]);
      if (kAdds && count(v) > 0) out[v] = Simd::add(load_part(y + v * kLanes, count(v)), out[v]);
    }
    if (kIsWhole) {
      store_two(y, out[0], out[1]);
    } else {
      for (int v = 0; v < 2; ++v)
        if (count(v) > 0) store_part(y + v * kLanes, out[v], count(v));
    }
  }
}

template <bool kHasScale, Gelu kGelu, bool kAdds>
void finish_panel(const LinearCall& call, const float* sums, int64_t first_row, int64_t num_rows,
                  int64_t panel) {
  with_type(call.y_type, call.y, [&](auto* y) {
    const int64_t end = smaller(call.N, (panel + 1) * kPanel);
    for (int64_t begin = panel * kPanel; begin < end; begin += 2 * Simd::kLanes) {
      auto* to = y + first_row * call.N + begin;
      const float* from = sums + begin % kPanel;
      if (begin + 2 * Simd::kLanes <= end)
        finish_columns<kHasScale, kGelu, kAdds, true>(call, from, num_rows, begin, to);
      else
        finish_columns<kHasScale, kGelu, kAdds, false>(call, from, num_rows, begin, to);
    }
  });
}

// Writes one panel's outputs for some rows, whose sums are 64 apart.
template <class Product>
void finish_rows(const LinearCall& call, const float* sums, int64_t first_row, int64_t num_rows,
                 int64_t panel) {
  constexpr bool kHasScale = Product::kUnit == 4;  // int8
  const auto finish = [&](auto gelu) {
    constexpr Gelu kGelu = decltype(gelu)::value;
    return call.adds ? finish_panel<kHasScale, kGelu, true>(call, sums, first_row, num_rows, panel)
                     : finish_panel<kHasScale, kGelu, false>(call, sums, first_row, num_rows, panel);
  };
  switch (call.gelu) {
    case kNoGelu: return finish(std::integral_constant<Gelu, kNoGelu>());
    case kTanhGelu: return finish(std::integral_constant<Gelu, kTanhGelu>());
    case kErfGelu: return finish(std::integral_constant<Gelu, kErfGelu>());
  }
}

}  // namespace
}  // namespace visiongate

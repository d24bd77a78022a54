// Norms, activations, rotation and the cache's writes: one pass over memory each.
#pragma once
#include "common.h"

namespace visiongate {
namespace {

// Sum over a row of f(c, count), a vector of numbers made from elements c to c + count.
template <class F>
float sum_row(int64_t C, const F& f) {
  Simd::Float sum = Simd::zero();
  for (int64_t c = 0; c < C; c += Simd::kLanes) {
    const Simd::Float part = f(c, smaller(Simd::kLanes, C - c));
    sum = Simd::add(sum, Simd::first_lanes((int)smaller(Simd::kLanes, C - c), part, Simd::zero()));
  }
  return Simd::sum(sum);
}

inline float inverse_root(float x) { return 1.0f / __builtin_sqrtf(x); }

template <class X, class Y>
void rms_norm_row(const NormCall& call, const X* x, Y* y) {
  const float square = sum_row(call.C, [&](int64_t c, int64_t n) {
    const Simd::Float part = load_part(x + c, n);
    return Simd::mul(part, part);
  });
  const Simd::Float scale = Simd::set1(inverse_root(square / (float)call.C + call.eps));
  for (int64_t c = 0; c < call.C; c += Simd::kLanes) {
    const int64_t n = call.C - c;
    const Simd::Float part = Simd::mul(load_part(x + c, n), scale);
    store_part(y + c, Simd::mul(part, load_part(call.weight + c, n)), n);
  }
}

template <class X, class Y>
void layer_norm_row(const NormCall& call, const X* x, Y* y) {
  const float sum = sum_row(call.C, [&](int64_t c, int64_t n) { return load_part(x + c, n); });
  const Simd::Float mean = Simd::set1(sum / (float)call.C);
  const float square = sum_row(call.C, [&](int64_t c, int64_t n) {
    const Simd::Float part = Simd::sub(load_part(x + c, n), mean);
    return Simd::mul(part, part);
  });
  const Simd::Float scale = Simd::set1(inverse_root(square / (float)call.C + call.eps));
  for (int64_t c = 0; c < call.C; c += Simd::kLanes) {
    const int64_t n = call.C - c;
    const Simd::Float part = Simd::mul(Simd::sub(load_part(x + c, n), mean), scale);
    const Simd::Float weight = load_part(call.weight + c, n), bias = load_part(call.bias + c, n);
    store_part(y + c, Simd::fma(part, weight, bias), n);
  }
}

// Calls f(x, y) with each row of x and y, as the types say.
template <class F>
void with_rows_of(const NormCall& call, const F& f) {
  parallel_rows(call.T, call.C, [&](int64_t t) {
    with_type(call.type, call.x, [&](auto* x) {
      with_type(call.y_type, call.y, [&](auto* y) { f(x + t * call.C, y + t * call.C); });
    });
  });
}

inline void rms_norm(const NormCall& call) {
  with_rows_of(call, [&](auto* x, auto* y) { rms_norm_row(call, x, y); });
}

inline void layer_norm(const NormCall& call) {
  with_rows_of(call, [&](auto* x, auto* y) { layer_norm_row(call, x, y); });
}

inline void silu_mul(const void* gate_up, Type type, void* y, Type y_type, int64_t T, int64_t I) {
  parallel_rows(T, 2 * I, [&](int64_t t) {
    with_type(type, gate_up, [&](auto* from) {
      with_type(y_type, y, [&](auto* to) {
        const auto* gate = from + t * 2 * I;
        const auto* up = gate + I;
        auto* row = to + t * I;
        for (int64_t i = 0; i < I; i += Simd::kLanes) {
          const Simd::Float g = load_part(gate + i, I - i);
          store_part(row + i, Simd::mul(sigmoid_times(g, g), load_part(up + i, I - i)), I - i);
        }
      });
    });
  });
}

// One head of one token: y = x_normalised * cos + (-second half, first half) * sin.
template <class T, class Y>
void norm_rope_head(const RopeCall& call, const T* x, const float* cos, const float* sin, Y* y) {
  const int64_t D = call.D, half = D / 2;
  float scale = 1.0f;
  if (call.weight) {
    const float square = sum_row(D, [&](int64_t d, int64_t n) {
      const Simd::Float part = load_part(x + d, n);
      return Simd::mul(part, part);
    });
    scale = inverse_root(square / (float)D + call.eps);
  }
  const auto normalised = [&](int64_t d, int64_t n) {
    const Simd::Float part = load_part(x + d, n);
    if (!call.weight) return part;
    return Simd::mul(Simd::mul(part, Simd::set1(scale)), load_part(call.weight + d, n));
  };
  for (int64_t d = 0; d < half; d += Simd::kLanes) {
    const int64_t n = half - d;
    const Simd::Float first = normalised(d, n), second = normalised(half + d, n);
    const Simd::Float first_sin = Simd::mul(second, load_part(sin + d, n));
    const Simd::Float second_sin = Simd::mul(first, load_part(sin + half + d, n));
    const Simd::Float first_cos = Simd::mul(first, load_part(cos + d, n));
    const Simd::Float second_cos = Simd::mul(second, load_part(cos + half + d, n));
    store_part(y + d, Simd::sub(first_cos, first_sin), n);
    store_part(y + half + d, Simd::add(second_cos, second_sin), n);
  }
}

inline void norm_rope(const RopeCall& call) {
  parallel_rows(call.T, call.H * call.D, [&](int64_t t) {
    with_type(call.type, call.x, [&](auto* x) {
      with_type(call.y_type, call.y, [&](auto* y) {
        const int64_t D = call.D;
        for (int64_t h = 0; h < call.H; ++h)
          norm_rope_head(call, x + t * call.x_stride + h * D, call.cos + t * D, call.sin + t * D,
                         y + (t * call.H + h) * D);
      });
    });
  });
}

template <class From, class To>
void copy_row(const From* from, To* to, int64_t count) {
  for (int64_t i = 0; i < count; i += Simd::kLanes)
    store_part(to + i, load_part(from + i, count - i), count - i);
}

// Writes a token's heads, which lie side by side, to a cache, where those of a block's tokens do.
template <class From, class To>
void store_heads(const StoreCall& call, const From* heads, int64_t slot, To* cache) {
  const int64_t block = slot / call.block_size, place = slot % call.block_size;
  for (int64_t h = 0; h < call.Hkv; ++h)
    copy_row(heads + h * call.D,
             cache + ((block * call.Hkv + h) * call.block_size + place) * call.D, call.D);
}

inline void store_kv(const StoreCall& call) {
  parallel_rows(call.T, 2 * call.Hkv * call.D, [&](int64_t t) {
    with_type(call.k_type, call.k, [&](auto* k) {
      with_type(call.cache_type, call.key_cache, [&](auto* cache) {
        store_heads(call, k + t * call.k_stride, call.slots[t], cache);
      });
    });
    with_type(call.v_type, call.v, [&](auto* v) {
      with_type(call.cache_type, call.value_cache, [&](auto* cache) {
        store_heads(call, v + t * call.v_stride, call.slots[t], cache);
      });
    });
  });
}

}  // namespace
}  // namespace visiongate

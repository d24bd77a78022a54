// Norms, activations, rotation and the cache's writes: one pass over memory each.
#pragma once
#include "common.h"

namespace visiongate {
namespace {

// Sum over a row of f(c, count), a vector of numbers made from elements c to c + count; kIsWhole: all of
// these are whole vectors.
template <bool kIsWhole = false, class F>
float sum_row(int64_t C, const F& f) {
  Simd::Float sum = Simd::zero();
  for (int64_t c = 0; c < C; c += Simd::kLanes) {
    const int64_t count = kIsWhole ? (int64_t)Simd::kLanes : smaller(Simd::kLanes, C - c);
    sum = Simd::add(sum, Simd::first_lanes((int)count, f(c, count), Simd::zero()));
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

// One vector of both halves of a head: y = x * cos + (-second half, first half) * sin.
struct Angles {
  Simd::Float first_cos, first_sin, second_cos, second_sin;

  Angles(const float* cos, const float* sin, int64_t half, int64_t n)
      : first_cos(load_part(cos, n)), first_sin(load_part(sin, n)),
        second_cos(load_part(cos + half, n)), second_sin(load_part(sin + half, n)) {}

  template <class Y>
  void turn(Simd::Float first, Simd::Float second, Y* y, int64_t half, int64_t n) const {
    const Simd::Float x = Simd::mul(first, first_cos), x_other = Simd::mul(second, first_sin);
    const Simd::Float z = Simd::mul(second, second_cos), z_other = Simd::mul(first, second_sin);
    store_part(y, Simd::sub(x, x_other), n);
    store_part(y + half, Simd::add(z, z_other), n);
  }
};

// The heads of one token, (H, D); kIsWhole: half a head is whole vectors. Angles are read once.
template <bool kIsWhole, class T, class Y>
void rope_heads(const RopeCall& call, const T* x, const float* cos, const float* sin, Y* y) {
  const int64_t D = call.D, half = D / 2;
  for (int64_t d = 0; d < half; d += Simd::kLanes) {
    const int64_t n = kIsWhole ? (int64_t)Simd::kLanes : half - d;
    const Angles angles(cos + d, sin + d, half, n);
    for (int64_t place = d; place < call.H * D; place += D) {
      __builtin_prefetch(x + call.x_stride + place);  // the next token's lies in another page
      __builtin_prefetch(x + call.x_stride + place + half);
      angles.turn(load_part(x + place, n), load_part(x + place + half, n), y + place, half, n);
    }
  }
}

// The same, after each head's root mean square and the weight.
template <bool kIsWhole, class T, class Y>
void norm_rope_heads(const RopeCall& call, const T* x, const float* cos, const float* sin, Y* y) {
  const int64_t D = call.D, half = D / 2;
  for (const T* end = x + call.H * D; x < end; x += D, y += D) {
    const float square = sum_row<kIsWhole>(D, [&](int64_t d, int64_t n) {
      const Simd::Float part = load_part(x + d, n);
      return Simd::mul(part, part);
    });
    const Simd::Float scale = Simd::set1(inverse_root(square / (float)D + call.eps));
    const auto normalised = [&](int64_t d, int64_t n) {
      return Simd::mul(Simd::mul(load_part(x + d, n), scale), load_part(call.weight + d, n));
    };
    for (int64_t d = 0; d < half; d += Simd::kLanes) {
      const int64_t n = kIsWhole ? (int64_t)Simd::kLanes : half - d;
      const Angles angles(cos + d, sin + d, half, n);
      angles.turn(normalised(d, n), normalised(half + d, n), y + d, half, n);
    }
  }
}

template <bool kIsWhole>
void norm_rope_rows(const RopeCall& call) {
  parallel_rows(call.T, call.H * call.D, [&](int64_t t) {
    const float *cos = call.cos + t * call.D, *sin = call.sin + t * call.D;
    with_type(call.type, call.x, [&](auto* x) {
      with_type(call.y_type, call.y, [&](auto* y) {
        x += t * call.x_stride;
        y += t * call.H * call.D;
        if (call.weight)
          norm_rope_heads<kIsWhole>(call, x, cos, sin, y);
        else
          rope_heads<kIsWhole>(call, x, cos, sin, y);
      });
    });
  });
}

inline void norm_rope(const RopeCall& call) {
  call.D % (2 * Simd::kLanes) == 0 ? norm_rope_rows<true>(call) : norm_rope_rows<false>(call);
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

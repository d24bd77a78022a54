// A decoder's layers in one call: what `DecoderLayer` of model/text.py does for a few rows, by the same
// kernels in the same order. A step of one token has a few hundred of them, and calling each from
// Python took a seventh of its time.
#pragma once
#include "attention.h"
#include "linear.h"
#include "small.h"

namespace visiongate {
namespace {

// What lies between the kernels of a layer.
struct DecoderRows {
  float* normed;   // (T, C)
  float* qkv;      // (T, (Hq + 2 * Hkv) * D)
  char* q;         // (T, Hq, D), of the cache's type, as are k and attended
  char* k;         // (T, Hkv, D)
  char* attended;  // (T, Hq, D)
  float* gate_up;  // (T, 2 * inner)
  char* inner;     // (T, inner), of inner_type

  explicit DecoderRows(const DecoderCall& call) {
    const int64_t T = call.T, head = T * call.D;
    const int64_t cached = bytes_of((Type)call.cache_type);
    const int64_t sizes[] = {
        T * call.C * 4,
        head * (call.Hq + 2 * call.Hkv) * 4,
        head * call.Hq * cached,
        head * call.Hkv * cached,
        head * call.Hq * cached,
        T * call.inner * 8,
        T * call.inner * bytes_of((Type)call.inner_type),
    };
    char* parts[7];
    scratch_parts(kDecoder, sizes, parts);
    normed = (float*)parts[0];
    qkv = (float*)parts[1];
    q = parts[2];
    k = parts[3];
    attended = parts[4];
    gate_up = (float*)parts[5];
    inner = parts[6];
  }
};

inline void apply_map(const MapWeights& map, const void* x, Type x_type, int64_t T, int64_t K,
                      float* y, bool adds) {
  linear({(Product)map.product, x, x_type, K, map.panels, map.scale, map.bias, y, kFloat32,
          kNoGelu, adds, T, map.N, K});
}

// Adds attention of the normed rows to the stream, and their keys and values to the cache.
inline void add_attention(const DecoderCall& call, const DecoderLayer& layer, int64_t index,
                          const DecoderRows& rows) {
  const int64_t T = call.T, Hq = call.Hq, Hkv = call.Hkv, D = call.D;
  const int64_t width = (Hq + 2 * Hkv) * D;
  const Type cached = (Type)call.cache_type;
  const int64_t place = index * call.num_blocks * call.block_size * Hkv * D * bytes_of(cached);
  char *keys = (char*)call.keys + place, *values = (char*)call.values + place;
  const float *k = rows.qkv + Hq * D, *v = k + Hkv * D;
  apply_map(layer.qkv, rows.normed, kFloat32, T, call.C, rows.qkv, false);
  norm_rope({rows.qkv, width, layer.q_norm, call.cos, call.sin, rows.q, kFloat32, cached, T, Hq, D,
             call.eps});
  norm_rope({k, width, layer.k_norm, call.cos, call.sin, rows.k, kFloat32, cached, T, Hkv, D,
             call.eps});
  store_kv({rows.k, Hkv * D, cached, v, width, kFloat32, keys, values, cached, call.slots, T,
            Hkv, D, call.block_size});
  attention({rows.q, cached, keys, values, cached, false, cached, rows.attended,
             call.num_sequences, Hq, Hkv, D, Hq * D, D, D, call.bounds, call.lengths,
             call.block_table, call.table_width, call.block_size, true, call.scale});
  apply_map(layer.o, rows.attended, cached, T, Hq * D, call.x, true);
}

// Adds SwiGLU of the normed rows to the stream.
inline void add_inner(const DecoderCall& call, const DecoderLayer& layer, const DecoderRows& rows) {
  const Type type = (Type)call.inner_type;
  apply_map(layer.gate_up, rows.normed, kFloat32, call.T, call.C, rows.gate_up, false);
  silu_mul(rows.gate_up, kFloat32, rows.inner, type, call.T, call.inner);
  apply_map(layer.down, rows.inner, type, call.T, call.inner, call.x, true);
}

inline void decoder(const DecoderCall& call) {
  const DecoderRows rows(call);
  for (int64_t index = 0; index < call.num_layers; ++index) {
    const DecoderLayer& layer = call.layers[index];
    const auto norm = [&](const float* weight) {
      rms_norm({call.x, kFloat32, weight, nullptr, rows.normed, kFloat32, call.T, call.C,
                call.eps});
    };
    norm(layer.input_norm);
    add_attention(call, layer, index, rows);
    norm(layer.inner_norm);
    add_inner(call, layer, rows);
  }
}

}  // namespace
}  // namespace visiongate

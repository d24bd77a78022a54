// What a level (one instruction set) offers to api.cpp: plain functions over plain structures.
#pragma once
#include <stdint.h>

namespace visiongate {

enum Type { kFloat32 = 0, kBfloat16 = 1 };

// Arithmetic and storage of a linear layer; native.py names them too.
enum Product {
  kFloat32OverBfloat16 = 0,  // float32 products of float32 rows and bfloat16 weights
  kFloat32OverFloat32 = 1,   // the same over float32 weights
  kBfloat16OverBfloat16 = 2,             // bfloat16 products, float32 sums
  kInt8OverInt8 = 3,                 // int8 products, int32 sums, float32 scales
};

// Which GELU a linear layer's results go through; native.py names them too.
enum Gelu { kNoGelu = 0, kTanhGelu = 1, kErfGelu = 2 };

struct PackCall {
  const void* weight;  // (N, K)
  Type type;
  void* panels;
  float* scale;  // int8: (padded N)
  int64_t N, K;
};

struct LinearCall {
  Product product;
  const void* x;  // (M, K), rows x_stride elements apart
  Type x_type;
  int64_t x_stride;
  const void* panels;
  const float* scale;
  const float* bias;  // (N) or null
  void* y;            // (M, N)
  Type y_type;
  Gelu gelu;      // of what is written
  bool adds;      // to what y holds
  int64_t M, N, K;
};

struct EmbeddingCall {
  Product product;
  const int64_t* ids;
  const void* panels;
  const float* scale;
  void* rows;  // (T, K)
  Type type;
  int64_t T, N, K;
};

// Sequence b has the query rows [bounds[b], bounds[b + 1]). Without a block table its keys are the
// same rows of k and v (pictures); with one they are the first lengths[b] positions of the cache.
// There, too, rows stand kv_stride apart, but only within a block: (blocks, Hkv, block_size, D).
struct AttentionCall {
  const void* q;  // (T, Hq, D), rows q_stride elements apart; out is like it, packed
  Type q_type;
  const void* k;  // (rows, Hkv, D), kv_stride elements apart, or the cache
  const void* v;
  Type kv_type;  // of k, and of the products
  bool is_int8;  // all products are of int8 (of pictures; kv_type is bfloat16)
  Type v_type;
  void* out;
  int64_t num_sequences, Hq, Hkv, D, q_stride, kv_stride, v_stride;
  const int32_t* bounds;
  const int32_t* lengths;
  const int32_t* block_table;  // (num_sequences, table_width)
  int64_t table_width, block_size;
  bool is_causal;
  float scale;
};

struct NormCall {
  const void* x;  // (T, C)
  Type type;
  const float* weight;
  const float* bias;  // layer norm only
  void* y;
  Type y_type;
  int64_t T, C;
  float eps;
};

struct RopeCall {
  const void* x;  // (T, H, D), rows x_stride elements apart
  int64_t x_stride;
  const float* weight;  // (D) or null for no normalisation
  const float* cos;     // (T, D)
  const float* sin;
  void* y;  // (T, H, D)
  Type type, y_type;
  int64_t T, H, D;
  float eps;
};

struct StoreCall {
  const void* k;
  int64_t k_stride;
  Type k_type;
  const void* v;
  int64_t v_stride;
  Type v_type;
  void* key_cache;
  void* value_cache;
  Type cache_type;
  const int64_t* slots;
  int64_t T, Hkv, D, block_size;
};

// A picture's patches: (height, width, channels) to (patches, channels, patch, patch).
struct PatchesCall {
  const uint8_t* pixels;
  const float* levels;  // (channels, 256), what a pixel's number stands for
  float* patches;
  int64_t height, width, channels, patch, merge;
};

// Adds to each row of y (T, C) some rows of a table (rows, C), weighted.
struct WeightedRowsCall {
  float* y;
  const void* table;
  Type type;             // of the table
  const int64_t* ids;    // (T, num_taps)
  const float* weights;  // (T, num_taps)
  int64_t T, C, num_taps;
};

// A linear map of a decoder layer; decoder.py has the same fields.
struct MapWeights {
  const void* panels;
  const float* scale;
  const float* bias;
  int64_t N, product;
};

struct DecoderLayer {
  MapWeights qkv, o, gate_up, down;
  const float *input_norm, *q_norm, *k_norm, *inner_norm;
};

// All layers of a decoder over T tokens of some sequences, as an AttentionCall has them. The stream
// x (T, C) is written over; layer i's keys and values are the i-th `num_blocks` blocks of the caches.
struct DecoderCall {
  const DecoderLayer* layers;
  float* x;
  const float* cos;  // (T, D)
  const float* sin;
  const int64_t* slots;  // (T)
  const int32_t* bounds;
  const int32_t* lengths;
  const int32_t* block_table;
  void* keys;
  void* values;
  int64_t num_layers, T, C, inner, Hq, Hkv, D;
  int64_t num_sequences, table_width, block_size, num_blocks;
  int64_t cache_type, inner_type;  // inner_type: of the rows that `down` multiplies
  float eps, scale;
};

struct Level {
  const char* name;
  void (*pack)(const PackCall&, Product);
  void (*linear)(const LinearCall&);
  void (*embedding)(const EmbeddingCall&);
  void (*attention)(const AttentionCall&);
  void (*rms_norm)(const NormCall&);
  void (*layer_norm)(const NormCall&);
  void (*silu_mul)(const void* gate_up, Type type, void* y, Type y_type, int64_t T, int64_t I);
  void (*norm_rope)(const RopeCall&);
  void (*store_kv)(const StoreCall&);
  void (*cut_patches)(const PatchesCall&);
  void (*add_weighted_rows)(const WeightedRowsCall&);
  void (*decoder)(const DecoderCall&);
  float (*probe_read)(const void* buffer, int64_t num_bytes);
  double (*probe_products)(Product product, int64_t num_rounds);
};

// Null when the library was built for a processor family without the level.
const Level* avx512_level();
const Level* avx2_level();
const Level* scalar_level();

}  // namespace visiongate

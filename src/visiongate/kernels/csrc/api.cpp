// The library's C functions, as native.py calls them, and the choice of a level at run time.
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "level.h"
#include "pool.h"

using namespace visiongate;

namespace {

bool can_avx512() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

bool can_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

const Level* find_level(const char* name) {
  const Level* const levels[] = {
      can_avx512() ? avx512_level() : nullptr,
      can_avx2() ? avx2_level() : nullptr,
      scalar_level(),
  };
  for (const Level* level : levels)
    if (level && (name[0] == 0 || strcmp(name, level->name) == 0)) return level;
  return nullptr;
}

const Level* level = find_level("");

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

// Picks a level by name, or the best one for ""; 0 when this processor has it.
API int vg_select(const char* name) {
  const Level* found = find_level(name);
  if (found) level = found;
  return found ? 0 : -1;
}

API const char* vg_level() { return level->name; }

API void vg_set_num_threads(int count) { set_num_threads(count); }

// Drops the whole pages inside [address, address + num_bytes) from this process.
API void vg_release_pages(void* address, int64_t num_bytes) {
  const uintptr_t size = (uintptr_t)sysconf(_SC_PAGESIZE), first = (uintptr_t)address;
  const uintptr_t begin = (first + size - 1) / size * size;
  const uintptr_t end = (first + (uintptr_t)num_bytes) / size * size;
  if (begin < end) madvise((void*)begin, end - begin, MADV_DONTNEED);
}

API void vg_pack_bf16(const void* weight, void* panels, int64_t N, int64_t K) {
  level->pack({weight, kBfloat16, panels, nullptr, N, K}, kBfloat16OverBfloat16);
}

API void vg_pack_f32(const void* weight, void* panels, int64_t N, int64_t K) {
  level->pack({weight, kFloat32, panels, nullptr, N, K}, kFloat32OverFloat32);
}

API void vg_pack_int8(const void* weight, int type, void* panels, float* scale,
                      int64_t N, int64_t K) {
  level->pack({weight, (Type)type, panels, scale, N, K}, kInt8OverInt8);
}

API void vg_linear(int product, const void* x, int type, int64_t x_stride, const void* panels,
                   const float* scale, const float* bias, void* y, int64_t M, int64_t N,
                   int64_t K, int y_type, int gelu, int adds) {
  level->linear({(Product)product, x, (Type)type, x_stride, panels, scale, bias, y, (Type)y_type,
                 (Gelu)gelu, adds != 0, M, N, K});
}

API void vg_embedding(int product, const int64_t* ids, const void* panels, const float* scale,
                      void* rows, int type, int64_t T, int64_t N, int64_t K) {
  level->embedding({(Product)product, ids, panels, scale, rows, (Type)type, T, N, K});
}

API void vg_attention(const void* q, int q_type, const void* k, const void* v, int kv_type,
                      void* out, int64_t num_sequences, int64_t Hq, int64_t Hkv, int64_t D,
                      int64_t q_stride, int64_t kv_stride, const int32_t* bounds,
                      const int32_t* lengths, const int32_t* block_table, int64_t table_width,
                      int64_t block_size, int is_causal, float scale,
                      int v_type, int64_t v_stride, int is_int8) {
  level->attention({q, (Type)q_type, k, v, (Type)kv_type, is_int8 != 0, (Type)v_type, out,
                    num_sequences, Hq,
                    Hkv, D, q_stride, kv_stride, v_stride, bounds, lengths, block_table,
                    table_width, block_size, is_causal != 0, scale});
}

API void vg_rms_norm(const void* x, int type, const float* weight, void* y, int y_type, int64_t T,
                     int64_t C, float eps) {
  level->rms_norm({x, (Type)type, weight, nullptr, y, (Type)y_type, T, C, eps});
}

API void vg_layer_norm(const void* x, int type, const float* weight, const float* bias, void* y,
                       int y_type, int64_t T, int64_t C, float eps) {
  level->layer_norm({x, (Type)type, weight, bias, y, (Type)y_type, T, C, eps});
}

API void vg_silu_mul(const void* gate_up, void* y, int type, int64_t T, int64_t I, int y_type) {
  level->silu_mul(gate_up, (Type)type, y, (Type)y_type, T, I);
}

API void vg_norm_rope(const void* x, int64_t x_stride, const float* weight, const float* cos,
                      const float* sin, void* y, int type, int64_t T, int64_t H, int64_t D,
                      float eps, int y_type) {
  level->norm_rope({x, x_stride, weight, cos, sin, y, (Type)type, (Type)y_type, T, H, D, eps});
}

API void vg_cut_patches(const uint8_t* pixels, const float* levels, float* patches, int64_t height,
                        int64_t width, int64_t channels, int64_t patch, int64_t merge) {
  level->cut_patches({pixels, levels, patches, height, width, channels, patch, merge});
}

API void vg_add_weighted_rows(float* y, const void* table, int type, const int64_t* ids,
                              const float* weights, int64_t T, int64_t C, int64_t num_taps) {
  level->add_weighted_rows({y, table, (Type)type, ids, weights, T, C, num_taps});
}

API float vg_probe_read(const void* buffer, int64_t num_bytes) {
  return level->probe_read(buffer, num_bytes);
}

API double vg_probe_products(int product, int64_t num_rounds) {
  return level->probe_products((Product)product, num_rounds);
}

API void vg_decoder(const DecoderCall* call) { level->decoder(*call); }

API void vg_store_kv(const void* k, int64_t k_stride, int k_type, const void* v, int64_t v_stride,
                     int v_type, void* key_cache, void* value_cache, int cache_type,
                     const int64_t* slots, int64_t T, int64_t Hkv, int64_t D,
                     int64_t block_size) {
  level->store_kv({k, k_stride, (Type)k_type, v, v_stride, (Type)v_type, key_cache, value_cache,
                   (Type)cache_type, slots, T, Hkv, D, block_size});
}

// Every kernel at the level "avx512". Nothing here may be shared with another level: all of it has
// internal linkage, since the same code is compiled for different processors.
#include "level.h"

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#include "simd_avx512.h"
// simd first: the kernels are written over its `Simd`
#include "attention.h"
#include "decoder.h"
#include "linear.h"
#include "packing.h"
#include "pictures.h"
#include "probe.h"
#include "small.h"

namespace visiongate {

const Level* avx512_level() {
  static const Level level = {
      "avx512", pack,     linear,   embedding, attention, rms_norm,
      layer_norm, silu_mul, norm_rope, store_kv, cut_patches, add_weighted_rows,
      decoder,
      probe_read, probe_products,
  };
  return &level;
}

}  // namespace visiongate
#else
namespace visiongate {
const Level* avx512_level() { return nullptr; }
}  // namespace visiongate
#endif

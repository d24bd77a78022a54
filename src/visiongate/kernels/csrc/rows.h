// Rows as a product wants them: float32, bfloat16, or quantised, in tiles of at most 6 rows whose
// words lie interleaved: step 0 of each row, step 1 of each row, ...
#pragma once
#include "tile.h"

namespace visiongate {
namespace {

struct Rows {
  int64_t M, num_tiles;
  explicit Rows(int64_t M) : M(M), num_tiles((M + kMaxRows - 1) / kMaxRows) {}
  int64_t begin(int64_t tile) const { return M * tile / num_tiles; }  // tiles of nearly equal size
};

struct Prepared {
  void* x;       // tiles, one after another
  float* scale;  // int8: (groups, M) so that a tile's rows lie together
};

// Interleaves the words of up to 6 rows.
template <class Word>
void interleave_tile(const void* const rows[kMaxRows], int64_t num_rows, void* tile,
                     int64_t num_words) {
  if (num_rows == 1 && rows[0] == tile) return;
  int64_t word = 0;
  if (sizeof(Word) == 4) {
    constexpr int64_t kBlock = 8;
    const uint32_t* block[kBlock];
    for (int64_t r = 0; r < kBlock; ++r) block[r] = (const uint32_t*)rows[smaller(r, num_rows - 1)];
    // A column is written with the words of 8 rows; what is too much the next one writes over.
    for (; word + 2 * kBlock <= num_words; word += kBlock) {
      Simd::transpose8(block, (uint32_t*)tile + word * num_rows, num_rows);
      for (const uint32_t*& row : block) row += kBlock;
    }
  }
  for (int64_t r = 0; r < num_rows; ++r)
    interleave<Word>((const Word*)rows[r] + word, (Word*)tile + word * num_rows, r, num_rows,
                     num_words - word);
}

// `convert(row index, memory)` makes one row, there or elsewhere, and returns where it is. Tiles are
// made of words of Word.
template <class Word, class Convert>
void prepare_rows(const LinearCall& call, const Rows& rows, int64_t num_words, void* tiles,
                  const Convert& convert) {
  const int64_t room = round_up(num_words * sizeof(Word) + 64, 64);  // whole vectors are written
  parallel_rows(rows.num_tiles, call.K * kMaxRows, [&](int64_t tile) {
    const int64_t begin = rows.begin(tile), count = rows.begin(tile + 1) - begin;
    char* memory = (char*)scratch(kRow, kMaxRows * room);
    const void* made[kMaxRows];
    Word* out = (Word*)tiles + begin * num_words;
    for (int64_t r = 0; r < count; ++r)
      made[r] = convert(begin + r, count == 1 ? (void*)out : memory + r * room);
    interleave_tile<Word>(made, count, out, num_words);
  });
}

// One row as numbers of X, zeros after K up to padded_K; in `row`, or where it lies.
template <class X, class T>
const void* converted_row(const T* x, X* row, int64_t K, int64_t padded_K) {
  for (int64_t k = 0; k < K; k += Simd::kLanes)
    store_part(row + k, load_part(x + k, K - k), K - k);
  for (int64_t k = K; k < padded_K; ++k) row[k] = 0;
  return row;
}
template <class X>
const void* converted_row(const X* x, X* row, int64_t K, int64_t padded_K) {
  if (K == padded_K) return x;
  memcpy(row, x, K * sizeof(X));
  for (int64_t k = K; k < padded_K; ++k) row[k] = 0;
  return row;
}

template <class Product>
Prepared prepare(const LinearCall& call, const Rows& rows) {
  constexpr int64_t kUnit = Product::kUnit;
  using X = typename Product::X;
  const int64_t num_steps = (call.K + kUnit - 1) / kUnit, padded_K = num_steps * kUnit;
  Prepared prepared{scratch(kActivations, call.M * padded_K * sizeof(X) + 64), nullptr};
  struct Word {
    X units[kUnit];
  };
  prepare_rows<Word>(call, rows, num_steps, prepared.x, [&](int64_t m, void* row) {
    const void* made = nullptr;
    with_type(call.x_type, call.x, [&](auto* x) {
      made = converted_row(x + m * call.x_stride, (X*)row, call.K, padded_K);
    });
    return made;
  });
  return prepared;
}

template <>
inline Prepared prepare<Int8Quads>(const LinearCall& call, const Rows& rows) {
  const int64_t num_steps = (call.K + 3) / 4, num_groups = (call.K + kGroup - 1) / kGroup;
  Prepared prepared{scratch(kActivations, call.M * num_steps * 4 + 64),
                    (float*)scratch(kActivationScales, call.M * num_groups * sizeof(float))};
  prepare_rows<uint32_t>(call, rows, num_steps, prepared.x, [&](int64_t m, void* row) {
    uint8_t* bytes = (uint8_t*)row;
    with_type(call.x_type, call.x, [&](auto* x) {
      for (int64_t g = 0; g < num_groups; ++g) {
        const int64_t begin = g * kGroup, count = smaller(kGroup, call.K - begin);
        prepared.scale[g * call.M + m] =
            quantize_group(x + m * call.x_stride + begin, bytes + begin, count);
      }
    });
    for (int64_t k = call.K; k < num_steps * 4; ++k) bytes[k] = 0;
    return row;
  });
  return prepared;
}

}  // namespace
}  // namespace visiongate

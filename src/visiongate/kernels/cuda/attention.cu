// Decode's attention: one new token for each of B rows over its paged cache, B = 1..64. attention.py compiles
// this file at run time and defines
//
//   D head size (64, 128)    GROUP query heads of a key-value head (1..8)    HKV key-value heads
//   BLOCK tokens of a cache block    PART tokens of a part (128)
//
// A row's context is cut in parts of PART tokens, from its first on; the parts of all rows stand in one line. A
// team of HKV blocks, one for each key-value head, owns a stretch of that line. For each part a block brings keys
// and values of its head to shared memory (64 KB at D = 128), each of its 4 warps attends to 32 of the tokens for
// all query heads of the group, and the next part's keys are on their way while this one's still multiply: memory
// never rests. The last block to end of those that had parts of a row merges them.
//
//   line of parts   row 0: 0 1 2 .. | row 1: 0 1 .. | row 2 ..      first_parts: where each row begins
//   teams           [  team 0  ][  team 1  ][  team 2  ] ..         as equal as can be
//
// The cache is (blocks, HKV, BLOCK, D): what a head reads of a block lies together. The new token's key is normed and turned here, stored in the cache, and put beside the old ones.
//
// Order of additions: tokens of a warp by the tensor cores' order, warps 0..3, parts ascending. Only the row's own
// length decides it: a row's result has the same bits in every batch.
//
// Programmatic dependent launch: what earlier steps stored is fetched before the kernel ahead of this one ends;
// nothing of this step is read before `wait_for_dependencies`.

#define HALF (D / 2)
#define UNITS (D / 8)             // 16-byte units of a row; unit u of row r lies at u ^ (r % 8)
#define ROW (D * 2)               // bytes of a row
#define STEP (128 / UNITS)        // rows that the threads copy at a time
#define KV_BYTES (PART * ROW)
#define PAIR (HALF / 32)          // dimensions of each half that a lane turns
#define WARP_TOKENS (PART / 4)
#define LOG2E 1.4426950408889634f
static_assert(D == 64 || D == 128, "head size");
static_assert(GROUP >= 1 && GROUP <= 8 && BLOCK % STEP == 0 && PART % 64 == 0, "the shape");

__device__ __forceinline__ float from_bf16(bf16 v) { return __uint_as_float((unsigned)v << 16); }

__device__ __forceinline__ unsigned pack(float low, float high) {
    return (unsigned)to_bf16(low) | (unsigned)to_bf16(high) << 16;
}

__device__ __forceinline__ void load_matrix4_transposed(unsigned (&r)[4], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

// 8 x 8 sums: the upper half of the tensor core's 16 rows, the lower half of the queries being nobody's.
__device__ __forceinline__ void multiply_add_upper(float (&c)[2], const unsigned (&a)[2], unsigned b0, unsigned b1) {
    float none0, none1;
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%5}, {%7,%8}, "
        "{%0,%1,%9,%9};"
        : "+f"(c[0]), "+f"(c[1]), "=f"(none0), "=f"(none1)
        : "r"(a[0]), "r"(0u), "r"(a[1]), "r"(b0), "r"(b1), "f"(0.f));
}

__device__ __forceinline__ float sum_of_warp(float v) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}

// A head's vector, normed and turned by the whole warp: lane -> PAIR dimensions of each half, in bfloat16.
struct Turned {
    bf16 left[PAIR], right[PAIR];

    __device__ __forceinline__ Turned(const bf16* from, const bf16* weight, const float (&c)[PAIR],
                                      const float (&s)[PAIR], int lane, float eps) {
        float l[PAIR], r[PAIR], square = 0.f;
#pragma unroll
        for (int i = 0; i < PAIR; i++) {
            l[i] = from_bf16(__ldcg(from + lane * PAIR + i));
            r[i] = from_bf16(__ldcg(from + HALF + lane * PAIR + i));
            square += l[i] * l[i] + r[i] * r[i];
        }
        const float inverse = rsqrtf(sum_of_warp(square) / D + eps);
#pragma unroll
        for (int i = 0; i < PAIR; i++) {
            const float a = l[i] * inverse * from_bf16(weight[lane * PAIR + i]);
            const float b = r[i] * inverse * from_bf16(weight[HALF + lane * PAIR + i]);
            left[i] = to_bf16(a * c[i] - b * s[i]);
            right[i] = to_bf16(b * c[i] + a * s[i]);
        }
    }
    // Into a row of 16-byte units in shared memory, row r of its matrix.
    __device__ __forceinline__ void put(char* matrix, int r, int lane) const {
#pragma unroll
        for (int i = 0; i < PAIR; i++) {
            const int at = lane * PAIR + i;
            *(bf16*)(matrix + r * ROW + ((at / 8 ^ (r & 7)) << 4) + at % 8 * 2) = left[i];
            *(bf16*)(matrix + r * ROW + (((HALF + at) / 8 ^ (r & 7)) << 4) + at % 8 * 2) = right[i];
        }
    }
    __device__ __forceinline__ void put(bf16* to, int lane) const {
#pragma unroll
        for (int i = 0; i < PAIR; i++) {
            to[lane * PAIR + i] = left[i];
            to[HALF + lane * PAIR + i] = right[i];
        }
    }
};

// A part in the line.
struct Part {
    int row, index, place, last;  // its place in the row; the new token's place, and the part that holds it

    __device__ __forceinline__ Part(int at, const int* places, const int* first_parts, int B, int lane) {
        const bool low = lane < B && first_parts[lane] <= at;
        const bool high = lane + 32 < B && first_parts[lane + 32] <= at;
        row = __popc(__ballot_sync(0xffffffffu, low)) + __popc(__ballot_sync(0xffffffffu, high)) - 1;
        index = at - first_parts[row];
        place = places[row];
        last = place / PART;
    }
    __device__ __forceinline__ void advance(const int* places) {
        if (index++ < last) return;
        row++;
        index = 0;
        place = places[row];
        last = place / PART;
    }
    __device__ __forceinline__ bool has_new() const { return index == last; }
    // Tokens of the part that are in the cache already.
    __device__ __forceinline__ int old() const { return min(PART, place - index * PART); }
};

// The old tokens' keys or values to shared memory; rows beyond them become zero, but for the new token's own row.
__device__ __forceinline__ void fetch(unsigned to, const bf16* cache, const Part& part, const int* tables,
                                      int table_stride, int head, int tid) {
    constexpr int SPAN = BLOCK < PART ? BLOCK : PART;  // tokens with one entry of the table
    const int r = tid / UNITS, u = tid % UNITS, old = part.old(), first = part.index * PART;
    const int* table = tables + (size_t)part.row * table_stride;
    to += r * ROW + ((u ^ (r & 7)) << 4);
#pragma unroll
    for (int span = 0; span < PART; span += SPAN) {
        const size_t entry = span < old ? table[(first + span) / BLOCK] : 0;
        const bf16* from = cache + ((entry * HKV + head) * BLOCK + first % BLOCK + r) * D + u * 8;
#pragma unroll 4
        for (int i = 0; i < SPAN; i += STEP) {
            const int offset = span + i + r;
            const bool is_old = offset < old;
            if (is_old || !part.has_new() || offset != old)
                copy_or_zero(to + (span + i) * ROW, (const char*)(from + i * D), is_old);
        }
    }
}

// D / 32 numbers of a lane, side by side.
struct Lanes {
    float v[D / 32];

    __device__ __forceinline__ explicit Lanes(const float* from) {
        if (D == 128) {
            const float4 four = __ldcg((const float4*)from);
            v[0] = four.x, v[1] = four.y, v[D / 32 - 2] = four.z, v[D / 32 - 1] = four.w;
        } else {
            const float2 two = __ldcg((const float2*)from);
            v[0] = two.x, v[1] = two.y;
        }
    }
};

// The parts of a row and head to its result, in order; warp -> query heads.
__device__ __forceinline__ void merge(bf16* out, const float* sums, const float2* stats, int num_parts, int warp,
                                      int lane) {
    for (int g = warp; g < GROUP; g += 4) {
        float most = -1e30f;
        for (int p = lane; p < num_parts; p += 32) most = fmaxf(most, __ldcg(stats + p * HKV * GROUP + g).x);
#pragma unroll
        for (int d = 16; d > 0; d >>= 1) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, d));
        float total = 0.f, value[D / 32];
#pragma unroll
        for (int e = 0; e < D / 32; e++) value[e] = 0.f;
        for (int first = 0; first < num_parts; first += 32) {
            float shrink = 0.f;
            if (first + lane < num_parts) {
                const float2 stat = __ldcg(stats + (first + lane) * HKV * GROUP + g);
                shrink = exp2f(stat.x - most);
                total += stat.y * shrink;
            }
            const int count = min(32, num_parts - first);
#pragma unroll 1
            for (int p = 0; p < count; p += 8) {  // eight reads under way
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const int at = min(first + p + i, num_parts - 1);
                    const Lanes part(sums + ((size_t)at * HKV * GROUP + g) * D + lane * (D / 32));
                    const float factor = __shfl_sync(0xffffffffu, shrink, p + i);
#pragma unroll
                    for (int e = 0; e < D / 32; e++) value[e] += part.v[e] * factor;
                }
            }
        }
        total = sum_of_warp(total);
        unsigned* const to = (unsigned*)(out + g * D + lane * (D / 32));
#pragma unroll
        for (int e = 0; e < D / 64; e++) to[e] = pack(value[2 * e] / total, value[2 * e + 1] / total);
    }
}

// Adds to a counter for all that this block wrote, and sees what others wrote that added before.
__device__ __forceinline__ int add_for_block(int* counter, int value) {
    int before;
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(value) : "memory");
    return before;
}

extern "C" __global__ void __launch_bounds__(128, 3)
decode_attention(const bf16* __restrict__ qkv, bf16* keys, bf16* values, const float* __restrict__ cosines,
                 const float* __restrict__ sines, const bf16* __restrict__ q_weight,
                 const bf16* __restrict__ k_weight, const int* __restrict__ places,
                 const int* __restrict__ ropes, const int* __restrict__ first_parts,
                 const int* __restrict__ tables, bf16* out, float* sums, float2* stats, int* arrived, int B,
                 int table_stride, float scale, float eps) {
    launch_dependents();
    extern __shared__ __align__(1024) char shared[];
    char* const key_rows = shared;
    char* const value_rows = shared + KV_BYTES;
    char* const query_rows = shared + 2 * KV_BYTES;                   // 8 rows
    float* const parts = (float*)(query_rows + 8 * ROW);              // [4 warps][GROUP][D]
    float2* const part_stats = (float2*)(parts + 4 * GROUP * D);      // [4 warps][GROUP]: maximum, weight
    int* const is_last_block = (int*)(part_stats + 4 * GROUP);
    const unsigned key_at = shared_address(key_rows), value_at = shared_address(value_rows);
    const unsigned query_at = shared_address(query_rows);
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const int num_parts = first_parts[B - 1] + places[B - 1] / PART + 1;
    const int num_teams = min((int)gridDim.x / HKV, num_parts), team = blockIdx.x / HKV, head = blockIdx.x % HKV;
    if (team >= num_teams) return;
    const int begin = (long long)num_parts * team / num_teams, end = (long long)num_parts * (team + 1) / num_teams;

    for (int i = tid; i < 8 * ROW / 4; i += 128) ((unsigned*)query_rows)[i] = 0;

    Part part(begin, places, first_parts, B, lane);
    fetch(key_at, keys, part, tables, table_stride, head, tid);
    commit();
    fetch(value_at, values, part, tables, table_stride, head, tid);
    commit();
    __syncthreads();
    wait_for_dependencies();

    int num_done = 0;  // parts of this row
#pragma unroll 1
    for (int at = begin; at < end; at++) {
        const int row = part.row, count = part.old() + (part.has_new() ? 1 : 0);
        if (num_done == 0 || part.has_new()) {
            const bf16* const token = qkv + (size_t)row * (GROUP + 2) * HKV * D;
            float c[PAIR], s[PAIR];
            const int rope = ropes[row];
#pragma unroll
            for (int i = 0; i < PAIR; i++) {
                c[i] = cosines[(size_t)rope * HALF + lane * PAIR + i];
                s[i] = sines[(size_t)rope * HALF + lane * PAIR + i];
            }
#pragma unroll
            for (int g = 0; g < (GROUP + 3) / 4; g++)
                if (num_done == 0 && g * 4 + warp < GROUP)
                    Turned(token + (head * GROUP + g * 4 + warp) * D, q_weight, c, s, lane, eps)
                        .put(query_rows, g * 4 + warp, lane);
            if (part.has_new()) {
                const int old = part.old(), entry = tables[(size_t)row * table_stride + part.place / BLOCK];
                const size_t to = (((size_t)entry * HKV + head) * BLOCK + part.place % BLOCK) * D;
                if (warp == 3) {
                    const Turned key(token + (GROUP * HKV + head) * D, k_weight, c, s, lane, eps);
                    key.put(key_rows, old, lane);
                    key.put(keys + to, lane);
                }
                if (warp == 2 && lane < UNITS) {
                    const uint4 value = __ldcg((const uint4*)(token + ((GROUP + 1) * HKV + head) * D) + lane);
                    *(uint4*)(value_rows + old * ROW + ((lane ^ (old & 7)) << 4)) = value;
                    *((uint4*)(values + to) + lane) = value;
                }
            }
        }
        wait_group<1>();
        __syncthreads();  // keys and queries are here

        // Scores of this warp's tokens: c0, c1 are query head lane / 4, tokens 2 (lane % 4) + 0, 1 of each 8.
        const int first = warp * WARP_TOKENS;
        float score[WARP_TOKENS / 8][2];
#pragma unroll
        for (int t = 0; t < WARP_TOKENS / 8; t++)
#pragma unroll
            for (int e = 0; e < 2; e++) score[t][e] = 0.f;
        const bool has_tokens = first < count;
        if (has_tokens) {
#pragma unroll
            for (int k = 0; k < D / 16; k++) {
                unsigned a[2];
                load_matrix2(a, query_at + (lane & 7) * ROW + (((k * 2 + (lane >> 3 & 1)) ^ (lane & 7)) << 4));
                #pragma unroll
                for (int t = 0; t < WARP_TOKENS / 16; t++) {
                    unsigned b[4];
                    const int r = first + t * 16 + (lane & 7) + (lane >> 4) * 8;
                    load_matrix4(b, key_at + r * ROW + (((k * 2 + (lane >> 3 & 1)) ^ (r & 7)) << 4));
                    multiply_add_upper(score[2 * t], a, b[0], b[1]);
                    multiply_add_upper(score[2 * t + 1], a, b[2], b[3]);
                }
            }
        }
        float m = -1e30f;
#pragma unroll
        for (int t = 0; t < WARP_TOKENS / 8; t++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int offset = first + t * 8 + (lane & 3) * 2 + e;
                score[t][e] = offset < count ? score[t][e] * (scale * LOG2E) : -1e30f;
                m = fmaxf(m, score[t][e]);
            }
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
        float weight = 0.f;
#pragma unroll
        for (int t = 0; t < WARP_TOKENS / 8; t++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                score[t][e] = score[t][e] > -1e29f ? exp2f(score[t][e] - m) : 0.f;
                weight += score[t][e];
            }
        weight += __shfl_xor_sync(0xffffffffu, weight, 1);
        weight += __shfl_xor_sync(0xffffffffu, weight, 2);

        wait_group<0>();
        __syncthreads();  // values are here, and the keys are nobody's
        Part coming = part;
        if (at + 1 < end) {
            coming.advance(places);
            fetch(key_at, keys, coming, tables, table_stride, head, tid);
        }
        commit();

        float sum[D / 8][2];
#pragma unroll
        for (int d = 0; d < D / 8; d++)
#pragma unroll
            for (int e = 0; e < 2; e++) sum[d][e] = 0.f;
        if (has_tokens) {
#pragma unroll
            for (int t = 0; t < WARP_TOKENS / 16; t++) {
                const unsigned a[2] = {pack(score[2 * t][0], score[2 * t][1]),
                                       pack(score[2 * t + 1][0], score[2 * t + 1][1])};
#pragma unroll
                for (int d = 0; d < D / 16; d++) {
                    unsigned b[4];
                    const int r = first + t * 16 + (lane & 15);
                    load_matrix4_transposed(b, value_at + r * ROW + (((d * 2 + (lane >> 4)) ^ (r & 7)) << 4));
                    multiply_add_upper(sum[2 * d], a, b[0], b[1]);
                    multiply_add_upper(sum[2 * d + 1], a, b[2], b[3]);
                }
            }
        }
        if (lane / 4 < GROUP) {
            float* to = parts + (warp * GROUP + lane / 4) * D + (lane & 3) * 2;
#pragma unroll
            for (int d = 0; d < D / 8; d++) *(float2*)(to + d * 8) = make_float2(sum[d][0], sum[d][1]);
            if ((lane & 3) == 0) part_stats[warp * GROUP + lane / 4] = make_float2(m, weight);
        }
        __syncthreads();  // the warps' sums are here, and the values are nobody's
        if (at + 1 < end) fetch(value_at, values, coming, tables, table_stride, head, tid);
        commit();

        const bool is_whole = part.last == 0;
        const size_t base = ((size_t)at * HKV + head) * GROUP;
#pragma unroll
        for (int i = tid; i < GROUP * D; i += 128) {
            const int g = i / D, d = i % D;
            float2 stat[4];
            float most = -1e30f, total = 0.f, value = 0.f;
#pragma unroll
            for (int w = 0; w < 4; w++) {
                stat[w] = part_stats[w * GROUP + g];
                most = fmaxf(most, stat[w].x);
            }
#pragma unroll
            for (int w = 0; w < 4; w++) {
                const float shrink = exp2f(stat[w].x - most);
                total += stat[w].y * shrink;
                value += parts[(w * GROUP + g) * D + d] * shrink;
            }
            if (is_whole) {
                out[((size_t)row * HKV + head) * GROUP * D + g * D + d] = to_bf16(value / total);
            } else {
                sums[(base + g) * D + d] = value;
                if (d == 0) stats[base + g] = make_float2(most, total);
            }
        }
        num_done++;
        const bool leaves_row = at + 1 == end || coming.row != row;
        if (leaves_row && !is_whole) {
            __syncthreads();
            if (tid == 0)
                *is_last_block = add_for_block(arrived + row * HKV + head, num_done) + num_done == part.last + 1;
            __syncthreads();
            if (*is_last_block) {
                if (tid == 0) arrived[row * HKV + head] = 0;
                const size_t first = ((size_t)first_parts[row] * HKV + head) * GROUP;
                merge(out + ((size_t)row * HKV + head) * GROUP * D, sums + first * D, stats + first, part.last + 1,
                      warp, lane);
            }
        }
        if (leaves_row) num_done = 0;
        // Whoever comes here early writes queries and the new token only: their readers are behind two barriers.
        part = coming;
    }
}

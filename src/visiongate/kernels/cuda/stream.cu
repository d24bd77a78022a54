// Decode's matrix products, y[B, N] = x[B, K] W[N, K]^T for B = 1..64: weights are read once, at the speed
// of device memory. stream.py compiles this file at run time, one kernel each, and defines
//
//   NT tokens / 8    XR rows of x kept (1, or 8 NT)    WT groups of tokens (1 or 2)
//   P panels of 16 weight rows in one pass    KC columns of a chunk (64, 128, 256)
//   D chunks in the rings of weights and tokens    EPI 0 bf16, 1 float32, 2 silu(gate) up
//   MINB blocks, of this kernel and the next, that share a multiprocessor
//
// Work: the columns are cut in S slices, each slice has one unit per panel, and a block of threads owns a
// contiguous range of units, up to P at a time (a pass). Through all its passes it streams chunks of KC columns
// in two rings in shared memory, weights (P panels) and tokens. With WT = 2, half of the threads copy weights
// and half tokens.
//
//   columns | 0..15 | 16..31 | 32..47 | 48..63 | 64..79 | ...    which warp multiplies them
//   warp    |   0   |    1   |    2   |    3   |    0   |        (+ 4 for the second group of tokens)
//
// Order of additions: of a slice, warp w adds the 16 columns whose index / 16 % 4 is w, ascending; the sum is
// (((0 + warp 0) + warp 1) + warp 2) + warp 3. It knows nothing of NT, WT, P, KC, the rings, B and the grid:
// a token's result has the same bits in every batch.
//
// Programmatic dependent launch: a kernel lets the next one start at once. That one fills its ring with
// weights, which nobody writes, and only then waits for all before it. Of small matrices two blocks fit on a
// multiprocessor, so that one kernel streams while the next fills its ring. Activations are read past L1
// (cp.async.cg, ld.cg): lines that an earlier kernel left there may be old.

#ifdef NORM  // NORM: threads; NI: float4 of a thread; S: partials

__device__ __forceinline__ unsigned scaled(float v, unsigned scale) { return to_bf16(v * __uint_as_float(scale)); }

// h[B, C] += partials[0] + ... + partials[S - 1], one after the other; y = bf16(h / rms(h) * g).
extern "C" __global__ void
add_norm(float* h, const float* partials, const bf16* g, bf16* y, int B, int C, float eps) {
    launch_dependents();
    __shared__ float sums[32];
    const int tid = threadIdx.x;
    uint2 scale[NI];
#pragma unroll
    for (int i = 0; i < NI; i++) {
        const int c = (i * NORM + tid) * 4;
        if (c < C) scale[i] = *(const uint2*)(g + c);
    }
    wait_for_dependencies();
    const size_t row = (size_t)blockIdx.x * C;
    float4 v[NI], part[NI][S > 0 ? S : 1];
#pragma unroll
    for (int i = 0; i < NI; i++) {
        const int c = (i * NORM + tid) * 4;
        if (c < C) {
            v[i] = __ldcg((const float4*)(h + row + c));
#pragma unroll
            for (int s = 0; s < S; s++)
                part[i][s] = __ldcg((const float4*)(partials + (size_t)s * B * C + row + c));
        } else {
            v[i] = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
            for (int s = 0; s < S; s++) part[i][s] = v[i];
        }
    }
    float square = 0.f;
#pragma unroll
    for (int i = 0; i < NI; i++) {
#pragma unroll
        for (int s = 0; s < S; s++) {
            v[i].x += part[i][s].x;
            v[i].y += part[i][s].y;
            v[i].z += part[i][s].z;
            v[i].w += part[i][s].w;
        }
        square += v[i].x * v[i].x + v[i].y * v[i].y + v[i].z * v[i].z + v[i].w * v[i].w;
    }
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) square += __shfl_xor_sync(0xffffffffu, square, d);
    if ((tid & 31) == 0) sums[tid >> 5] = square;
    __syncthreads();
    float total = 0.f;
#pragma unroll
    for (int w = 0; w < NORM / 32; w++) total += sums[w];
    const float r = rsqrtf(total / C + eps);
#pragma unroll
    for (int i = 0; i < NI; i++) {
        const int c = (i * NORM + tid) * 4;
        if (c < C) {
            if (S > 0) *(float4*)(h + row + c) = v[i];
            uint2 out;
            out.x = scaled(v[i].x * r, scale[i].x << 16) | scaled(v[i].y * r, scale[i].x & 0xffff0000u) << 16;
            out.y = scaled(v[i].z * r, scale[i].y << 16) | scaled(v[i].w * r, scale[i].y & 0xffff0000u) << 16;
            *(uint2*)(y + row + c) = out;
        }
    }
}

#else

#define THREADS (WT * 128)
#define NTW (NT / WT)
#define ROW (KC * 2)                   // bytes of a row of a chunk
#define UNITS (KC / 8)                 // 16-byte units of it; unit u of row r lies at u ^ (r % 8)
#define STEP (128 / UNITS)             // rows that 128 threads copy at a time
#define W_STAGE (P * 16 * ROW)
#define X_STAGE (XR * ROW)
#define TILE_PITCH 20                  // floats between tokens of a 16 x 8 tile of sums: no bank conflict
#define TILE (8 * TILE_PITCH)
#define TILES_BYTES (W_STAGE > X_STAGE ? W_STAGE : X_STAGE)
#define TILES_AT_ONCE (TILES_BYTES / (WT * TILE * 16))  // of each group of tokens, from all its 4 warps
static_assert(TILES_AT_ONCE > 0 && NT % WT == 0 && D >= 2, "the plan");

__device__ __forceinline__ unsigned long long streaming_policy() {
    unsigned long long policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

__device__ __forceinline__ void copy_weights(unsigned to, const char* from, unsigned long long policy) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "l"(policy)
                 : "memory");
}

// Where in its block's units a reader stands; the same walk for copies and products.
struct Walk {
    int unit, end, panels, slices, blocks64;      // blocks64: columns / 64
    int slice, panel, count, column, columns_left;  // the pass, and the columns still to come

    __device__ __forceinline__ void start_pass() {
        slice = unit / panels;
        panel = unit - slice * panels;
        const int n = min(end, (slice + 1) * panels) - unit;
        const int passes = (n + P - 1) / P;
        count = passes > 0 ? (n + passes - 1) / passes : 0;
        column = slice * blocks64 / slices * 64;
        columns_left = (slice + 1) * blocks64 / slices * 64 - column;
    }
    __device__ __forceinline__ bool done() const { return unit >= end; }
    __device__ __forceinline__ bool at_last_chunk() const { return columns_left <= KC; }
    __device__ __forceinline__ void advance() {
        if (done()) return;
        column += KC;
        columns_left -= KC;
        if (columns_left > 0) return;
        unit += count;
        if (unit < end) start_pass();
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, MINB)
stream_linear(const bf16* __restrict__ weight, const bf16* __restrict__ x, void* __restrict__ y, int B, int N, int K,
              int S, int x_stride) {
    launch_dependents();
    extern __shared__ __align__(1024) char ring[];
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const bool copies_weights = WT == 1 || tid < 128, copies_tokens = WT == 1 || tid >= 128;

    Walk products;
    products.panels = N / 16;
    products.slices = S;
    products.blocks64 = K / 64;
    const long long units = (long long)S * products.panels;
    products.unit = (int)(units * blockIdx.x / gridDim.x);
    products.end = (int)(units * (blockIdx.x + 1) / gridDim.x);
    products.start_pass();
    Walk copies = products;

    // Copying: thread -> row load_row of each STEP rows, unit load_unit.
    const int load_row = tid % 128 / UNITS, load_unit = tid % UNITS;
    const unsigned w_ring = shared_address(ring), x_ring = w_ring + D * W_STAGE;
    // Where this thread's next copies go. Kept a thread: ptxas 13.0 makes illegal code of slot * W_STAGE here
    // (LDGSTS with a uniform register both in the address and in the policy).
    const unsigned in_stage = load_row * ROW + ((load_unit ^ (load_row & 7)) << 4);
    unsigned w_to = w_ring + in_stage, x_to = x_ring + in_stage;
    const unsigned long long policy = streaming_policy();
    const size_t row_bytes = (size_t)K * 2;

    auto load_weights = [&](const Walk& at) {
        if (!at.done() && (KC == 64 || load_unit * 8 < at.columns_left)) {
            const char* from = (const char*)weight + (size_t)at.column * 2 + load_unit * 16;
            if (EPI == 2)
                from += (size_t)(at.panel * 8) * row_bytes;
            else
                from += (size_t)(at.panel * 16) * row_bytes;
#pragma unroll
            for (int i = 0; i < P * 16 / STEP; i++) {
                const int r = i * STEP + load_row;
                if (i * STEP < at.count * 16) {
                    // A silu panel holds 8 gate rows, then the up rows that belong to them.
                    const int source = EPI == 2 ? (r >> 4) * 8 + (r & 7) + (r & 8 ? N / 2 : 0) : r;
                    copy_weights((w_to + i * STEP * ROW) ^ (i * STEP % 8 << 4), from + source * row_bytes, policy);
                }
            }
        }
        w_to = w_to - in_stage + W_STAGE >= x_ring ? w_ring + in_stage : w_to + W_STAGE;
    };
    auto load_tokens = [&](const Walk& at) {
        if (!at.done() && (KC == 64 || load_unit * 8 < at.columns_left)) {
            const char* from = (const char*)(x + at.column) + load_unit * 16;
#pragma unroll
            for (int i = 0; i < (XR + STEP - 1) / STEP; i++) {
                const int r = i * STEP + load_row;
                if (XR % STEP == 0 || r < XR)
                    copy_or_zero((x_to + i * STEP * ROW) ^ (i * STEP % 8 << 4),
                                 from + (size_t)(r < B ? r : 0) * x_stride * 2, r < B);
            }
        }
        x_to = x_to - in_stage + X_STAGE >= x_ring + D * X_STAGE ? x_ring + in_stage : x_to + X_STAGE;
    };

#pragma unroll 1
    for (int i = 0; i < D - 1; i++) {
        if (copies_weights) load_weights(copies);
        if (WT == 2) commit();
        copies.advance();
    }
    wait_for_dependencies();
    copies = products;
#pragma unroll 1
    for (int i = 0; i < D - 1; i++) {
        if (copies_tokens) {
            load_tokens(copies);
            commit();
        }
        copies.advance();
    }

    // Fragments: lane -> row and half of 16 columns that it gives the address of.
    const int quarter = warp & 3, group = warp >> 2;
    const int a_row = lane & 15, a_half = lane >> 4;
    const int b_row = group * NTW * 8 + (lane & 7) + (NTW > 1 ? (lane >> 4) * 8 : 0), b_half = (lane >> 3) & 1;
    const int x_row = XR == 1 ? 0 : b_row;

    float sum[P][NTW][4];
#pragma unroll
    for (int p = 0; p < P; p++)
#pragma unroll
        for (int t = 0; t < NTW; t++)
#pragma unroll
            for (int e = 0; e < 4; e++) sum[p][t][e] = 0.f;

    int slot = 0;
#pragma unroll 1
    while (!products.done()) {
        wait_group<D - 2>();
        __syncthreads();  // this chunk is here for all, and all have left the one before it
        if (copies_weights) load_weights(copies);
        if (copies_tokens) load_tokens(copies);
        copies.advance();
        commit();

#pragma unroll
        for (int s = 0; s < KC / 64; s++) {
            if (s > 0 && s * 64 >= products.columns_left) break;
            const int unit = (s * 4 + quarter) * 2;
            const unsigned a_at =
                w_ring + slot * W_STAGE + a_row * ROW + (((unit + a_half) ^ (a_row & 7)) << 4);
            const unsigned b_at =
                x_ring + slot * X_STAGE + x_row * ROW + (((unit + b_half) ^ (x_row & 7)) << 4);
            unsigned b[NTW][2];
            if (NTW == 1) {
                load_matrix2(b[0], b_at);
            } else {
#pragma unroll
                for (int t = 0; t + 1 < NTW; t += 2) {
                    unsigned two[4];
                    load_matrix4(two, b_at + t * 8 * ROW);
                    b[t][0] = two[0];
                    b[t][1] = two[1];
                    b[t + 1][0] = two[2];
                    b[t + 1][1] = two[3];
                }
            }
#pragma unroll
            for (int p = 0; p < P; p++) {
                unsigned a[4];
                load_matrix4(a, a_at + p * 16 * ROW);
#pragma unroll
                for (int t = 0; t < NTW; t++) multiply_add(sum[p][t], a, b[t][0], b[t][1]);
            }
        }

        if (products.at_last_chunk()) {
            // The chunk's own slot is nobody's until the next barrier of the loop: the warps exchange their sums there.
            float* tiles = (float*)(ring + (W_STAGE >= X_STAGE ? slot * W_STAGE : D * W_STAGE + slot * X_STAGE));
#pragma unroll
            for (int first = 0; first < P * NTW; first += TILES_AT_ONCE) {
                const int last = first + TILES_AT_ONCE < P * NTW ? first + TILES_AT_ONCE : P * NTW;
                __syncthreads();
#pragma unroll
                for (int i = first; i < last; i++) {
                    float* at = tiles + ((i - first) * WT * 4 + warp) * TILE + (lane & 3) * 2 * TILE_PITCH + (lane >> 2);
                    at[0] = sum[i / NTW][i % NTW][0];
                    at[TILE_PITCH] = sum[i / NTW][i % NTW][1];
                    at[8] = sum[i / NTW][i % NTW][2];
                    at[TILE_PITCH + 8] = sum[i / NTW][i % NTW][3];
#pragma unroll
                    for (int e = 0; e < 4; e++) sum[i / NTW][i % NTW][e] = 0.f;
                }
                __syncthreads();
                const int per_tile = EPI == 2 ? 64 : 128, rows = per_tile / 8;
#pragma unroll 2
                for (int j = tid; j < (last - first) * WT * per_tile; j += THREADS) {
                    const int tile = j / per_tile, row = j % rows, in_tile = j % per_tile / rows;
                    const int i = first + tile / WT, p = i / NTW;
                    const int token = (tile % WT * NTW + i % NTW) * 8 + in_tile;
                    if (p >= products.count || token >= B) continue;
                    const float* at = tiles + tile * 4 * TILE + in_tile * TILE_PITCH + row;
                    float value = 0.f;
#pragma unroll
                    for (int w = 0; w < 4; w++) value += at[w * TILE];
                    if (EPI == 2) {
                        float up = 0.f;
#pragma unroll
                        for (int w = 0; w < 4; w++) up += at[w * TILE + 8];
                        value = value / (1.f + __expf(-value)) * up;
                        ((bf16*)y)[(size_t)token * (N / 2) + (products.panel + p) * 8 + row] = to_bf16(value);
                    } else {
                        const size_t column = (size_t)(products.panel + p) * 16 + row;
                        if (EPI == 1)
                            ((float*)y)[((size_t)products.slice * B + token) * N + column] = value;
                        else
                            ((bf16*)y)[(size_t)token * N + column] = to_bf16(value);
                    }
                }
            }
        }
        products.advance();
        slot = slot + 1 == D ? 0 : slot + 1;
    }
}

#endif

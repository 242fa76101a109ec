// Attention on tensor cores (mma.sync m16n8k16, sums in f32) for one 16-bit type; the head size HEAD, and whether there is a
// SOFTCAP, are fixed at compile time.
// 4 warps; a warp has 16 rows (forward: 16·TALL) of one side and streams tiles of the other through shared memory by cp.async.
//
// Fragments, with g = lane/4 and t = lane%4. C (16 rows, 8 columns): c[0..1] are row g, columns 2t, 2t+1; c[2..3] are row g+8.
// A (16x16) is two C side by side, so a product's result, rounded in pairs, is the next product's A.
#include "tensor.cuh"
#define INFINITY __uint_as_float(0x7f800000u)
#define LOG2E 1.4426950408889634f
typedef T_q T;

constexpr int LD = HEAD + 8; // elements between rows in shared memory: an odd multiple of 16 bytes, free of bank conflicts
constexpr int TALL = HEAD <= 128 ? 2 : 1;
constexpr int BM = 64 * TALL;               // forward: queries of a block
constexpr int BN = HEAD <= 128 ? 64 : 32;   // keys of a tile
constexpr int BQ = HEAD <= 64 ? 64 : 32;    // backward by keys: queries of a tile
constexpr int BUFFERS = HEAD <= 128 ? 2 : 1; // backward by keys: tiles in flight
constexpr int PARTS = HEAD <= 128 ? 1 : 2;  // backward by keys: blocks that share the columns of dk and dv

extern __shared__ __align__(16) u8 memory[];

INLINE u32 address(u32 tile, u32 row, u32 column) { return tile + (row * LD + column) * 2; }
// A: rows row..row+16, columns column..column+16.
INLINE void load_a(u32 (&x)[4], u32 tile, u32 row, u32 column) {
    u32 lane = threadIdx.x % 32;
    ldmatrix(x, address(tile, row + lane % 16, column + lane / 16 * 8));
}
// Two B of a product with the tile's transpose: its rows row..row+16 are the columns n; x[0..1] the first 8, x[2..3] the rest.
INLINE void load_b_of_rows(u32 (&x)[4], u32 tile, u32 row, u32 column) {
    u32 lane = threadIdx.x % 32;
    ldmatrix(x, address(tile, row + lane / 16 * 8 + lane % 8, column + lane / 8 % 2 * 8));
}
// Two B of a product with the tile itself: its rows are k, its columns column..column+16 are the columns n.
INLINE void load_b(u32 (&x)[4], u32 tile, u32 row, u32 column) {
    u32 lane = threadIdx.x % 32;
    ldmatrix_trans(x, address(tile, row + lane % 16, column + lane / 16 * 8));
}

INLINE float exp2_fast(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }

// x becomes cap·tanh(scale·x/cap)/scale: what is scaled later is the capped score. Returns the derivative.
struct Cap { float inner, outer; };
INLINE Cap cap_of(const Params& p) { return SOFTCAP ? Cap{2.f * LOG2E * p.scale / p.softcap, p.softcap / p.scale} : Cap{}; }
INLINE float soften(float& x, Cap cap) {
    if (!SOFTCAP) return 1.f;
    float tanh = 1.f - __fdividef(2.f, 1.f + exp2_fast(x * cap.inner));
    x = tanh * cap.outer;
    return 1.f - tanh * tanh;
}

// ROWS rows of a head from row `first` on, zeros from row `end` on.
template <int ROWS> INLINE void load_tile(u32 tile, const T* from, u64 ld, u32 first, u32 end) {
    constexpr int CHUNKS = HEAD / 8;
#pragma unroll
    for (int e = threadIdx.x; e < ROWS * CHUNKS; e += 128) {
        u32 r = e / CHUNKS, c = e % CHUNKS * 8, n = first + r;
        const T* source = from + (u64)min(n, end - 1) * ld + c;
        copy16(address(tile, r, c), source, n < end);
    }
}
// What the rows of one thread (g and g+8 of each 16) see, and what that means for its warp and its block.
template <int COUNT> struct Seen {
    u32 lo[COUNT], hi[COUNT];
    u32 first, end;           // warp: all that any row sees
    u32 full_first, full_end; // warp: what every row sees
    u32 block_first, block_end;
};
template <int COUNT> INLINE Seen<COUNT> look(const u32* pairs, u32 row, u32 rows, u32 limit) {
    Seen<COUNT> s;
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    s.first = ~0u, s.end = 0, s.full_first = 0, s.full_end = ~0u;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        u32 n = row + lane / 4 + i * 8;
        s.lo[i] = n < rows ? pairs[2 * n] : 0, s.hi[i] = n < rows ? pairs[2 * n + 1] : 0;
        if (s.lo[i] < s.hi[i]) s.first = min(s.first, s.lo[i]), s.end = max(s.end, s.hi[i]);
        s.full_first = max(s.full_first, s.lo[i]), s.full_end = min(s.full_end, s.hi[i]);
    }
    s.first = __reduce_min_sync(~0u, s.first), s.end = __reduce_max_sync(~0u, s.end);
    s.full_first = __reduce_max_sync(~0u, s.full_first), s.full_end = __reduce_min_sync(~0u, s.full_end);
    u32* ends = (u32*)memory;
    if (lane == 0) ends[warp] = s.first, ends[4 + warp] = s.end;
    __syncthreads();
    s.block_first = min(min(ends[0], ends[1]), min(ends[2], ends[3]));
    s.block_end = max(max(ends[4], ends[5]), max(ends[6], ends[7]));
    __syncthreads(); // tiles are loaded over it
    REQUIRE(s.block_end <= limit);
    return s;
}
// One row of a 16-row C in place: pairs of values packed.
INLINE void store_pairs(T* row, const float (&c)[4], int half, float factor, u32 column) {
    *(u32*)(row + column) = pack<T>(c[2 * half] * factor, c[2 * half + 1] * factor);
}
// The A of 16 columns from two C side by side.
INLINE void as_a(u32 (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = pack<T>(left[0], left[1]), a[1] = pack<T>(left[2], left[3]);
    a[2] = pack<T>(right[0], right[1]), a[3] = pack<T>(right[2], right[3]);
}
// c[COLUMNS/8] += A·Bᵀ with A's 16 rows from `row` of one tile and B the COLUMNS first rows of another.
template <int COLUMNS> INLINE void scores(float (&c)[COLUMNS / 8][4], u32 a_tile, u32 row, u32 b_tile) {
#pragma unroll
    for (int k = 0; k < HEAD; k += 16) {
        u32 a[4];
        load_a(a, a_tile, row, k);
#pragma unroll
        for (int j = 0; j < COLUMNS; j += 16) {
            u32 b[4];
            load_b_of_rows(b, b_tile, j, k);
            mma<T>(c[j / 8], a, b[0], b[1]);
            mma<T>(c[j / 8 + 1], a, b[2], b[3]);
        }
    }
}
// o[COLUMNS/8] += P·B with P's DEEP columns in C form and B the tile's first DEEP rows, its COLUMNS columns from `column` on.
template <int DEEP, int COLUMNS> INLINE void weigh(float (&o)[COLUMNS / 8][4], const float (&p)[DEEP / 8][4], u32 tile, u32 column) {
#pragma unroll
    for (int k = 0; k < DEEP; k += 16) {
        u32 a[4];
        as_a(a, p[k / 8], p[k / 8 + 1]);
#pragma unroll
        for (int d = 0; d < COLUMNS; d += 16) {
            u32 b[4];
            load_b(b, tile, k, column + d);
            mma<T>(o[d / 8], a, b[0], b[1]);
            mma<T>(o[d / 8 + 1], a, b[2], b[3]);
        }
    }
}

// op attention_forward grid(H, ceil(N, 64*(1 + min(1, 128/D)))) block(128) shared(256*(D + 8)*(1 + min(1, 128/D)))
extern "C" __global__ void __launch_bounds__(128) attention_forward(T_out* out, T_lse* lse, const T_q* q, const T_k* k, const T_v* v, const T_span* span, Params p) {
    u32 h = blockIdx.x, kv = h / (p.H / p.K), lane = threadIdx.x % 32, warp = threadIdx.x / 32, t = lane % 4;
    // later rows see more keys: they start first
    u32 n0 = (gridDim.y - 1 - blockIdx.y) * BM, row = warp * 16 * TALL;
    Seen<2 * TALL> seen = look<2 * TALL>(span, n0 + row, p.N, p.T);
    u32 qs = (u32)__cvta_generic_to_shared(memory), ks = address(qs, BM, 0), vs = address(ks, BN, 0);
    const T *keys = k + kv * HEAD, *values = v + kv * HEAD;
    float o[TALL][HEAD / 8][4] = {}, max[2 * TALL], sum[2 * TALL] = {}, scale2 = p.scale * LOG2E;
    Cap cap = cap_of(p);
#pragma unroll
    for (int i = 0; i < 2 * TALL; i++) max[i] = -INFINITY;
    if (seen.block_first < seen.block_end) {
        load_tile<BM>(qs, q + h * HEAD, p.ld_q, n0, p.N);
        load_tile<BN>(ks, keys, p.ld_k, seen.block_first, p.T);
    }
    commit();
    for (u32 j0 = seen.block_first; j0 < seen.block_end; j0 += BN) {
        bool mine = j0 < seen.end && j0 + BN > seen.first;
        load_tile<BN>(vs, values, p.ld_v, j0, p.T);
        commit();
        arrive<1>(); // the keys are here
        float s[TALL][BN / 8][4] = {};
        if (mine) {
#pragma unroll
            for (int d = 0; d < HEAD; d += 16) {
                u32 a[TALL][4];
#pragma unroll
                for (int m = 0; m < TALL; m++) load_a(a[m], qs, row + m * 16, d);
#pragma unroll
                for (int j = 0; j < BN; j += 16) {
                    u32 b[4];
                    load_b_of_rows(b, ks, j, d);
#pragma unroll
                    for (int m = 0; m < TALL; m++) mma<T>(s[m][j / 8], a[m], b[0], b[1]), mma<T>(s[m][j / 8 + 1], a[m], b[2], b[3]);
                }
            }
        }
        __syncthreads();
        if (j0 + BN < seen.block_end) load_tile<BN>(ks, keys, p.ld_k, j0 + BN, p.T);
        commit();
        bool whole = j0 >= seen.full_first && j0 + BN <= seen.full_end;
#pragma unroll
        for (int i = 0; i < 2 * TALL; i++) {
            int m = i / 2, half = i % 2 * 2; // row g + 8i of the warp
            float top = max[i], part = 0.f;
#pragma unroll
            for (int c = 0; c < BN / 4; c++) {
                u32 j = j0 + c / 2 * 8 + 2 * t + c % 2;
                float& x = s[m][c / 2][half + c % 2];
                soften(x, cap);
                if (!whole && (j < seen.lo[i] || j >= seen.hi[i])) x = -INFINITY;
                top = fmaxf(top, x);
            }
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
            // a row that has seen nothing yet stays at -inf, and its differences are taken from 0
            float base = top == -INFINITY ? 0.f : top * scale2, shrink = exp2_fast(max[i] * scale2 - base);
            max[i] = top;
#pragma unroll
            for (int c = 0; c < BN / 4; c++) {
                float& x = s[m][c / 2][half + c % 2];
                x = exp2_fast(x * scale2 - base);
                part += x;
            }
            sum[i] = sum[i] * shrink + part;
#pragma unroll
            for (int d = 0; d < HEAD / 8; d++) o[m][d][half] *= shrink, o[m][d][half + 1] *= shrink;
        }
        arrive<1>(); // the values are here
        if (mine) {
#pragma unroll
            for (int j = 0; j < BN; j += 16) {
                u32 a[TALL][4];
#pragma unroll
                for (int m = 0; m < TALL; m++) as_a(a[m], s[m][j / 8], s[m][j / 8 + 1]);
#pragma unroll
                for (int d = 0; d < HEAD; d += 16) {
                    u32 b[4];
                    load_b(b, vs, j, d);
#pragma unroll
                    for (int m = 0; m < TALL; m++) mma<T>(o[m][d / 8], a[m], b[0], b[1]), mma<T>(o[m][d / 8 + 1], a[m], b[2], b[3]);
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 2 * TALL; i++) {
        u32 n = n0 + row + lane / 4 + i * 8;
        sum[i] += __shfl_xor_sync(~0u, sum[i], 1);
        sum[i] += __shfl_xor_sync(~0u, sum[i], 2);
        if (n >= p.N) continue;
        float factor = sum[i] == 0.f ? 0.f : 1.f / sum[i];
#pragma unroll
        for (int d = 0; d < HEAD / 8; d++)
            store_pairs(out + ((u64)n * p.H + h) * HEAD, o[i / 2][d], i % 2, factor, d * 8 + 2 * t);
        if (t == 0) lse[(u64)n * p.H + h] = max[i] * p.scale + logf(sum[i]);
    }
}

// op attention_backward__dot grid(ceil(N*H, 8)) block(256)
extern "C" __global__ void __launch_bounds__(256) attention_backward__dot(T_dq* dq, T_dk* dk, T_dv* dv, T_dot* dot, const T_dout* dout, const T_out* out, const T_lse* lse, const T_q* q, const T_k* k, const T_v* v, const T_span* span, const T_reach* reach, Params p) {
    u64 row = blockIdx.x * 8ull + threadIdx.x / 32;
    if (row >= (u64)p.N * p.H) return;
    float sum = 0.f;
    u32 d = threadIdx.x % 32 * 8;
    if (d < HEAD) {
        float x[8], y[8];
        load8(x, dout + row * HEAD + d), load8(y, out + row * HEAD + d);
#pragma unroll
        for (int i = 0; i < 8; i++) sum += x[i] * y[i];
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) dot[row] = sum;
}

// dq: 64 queries of one head, tiles of keys. ds = p·(dout·vᵀ − dot), dq = scale·ds·k.
// op attention_backward__q grid(H, ceil(N, 64)) block(128) shared(2*(D + 8)*(192 + 64*min(1, 128/D)))
extern "C" __global__ void __launch_bounds__(128) attention_backward__q(T_dq* dq, T_dk* dk, T_dv* dv, T_dot* dot, const T_dout* dout, const T_out* out, const T_lse* lse, const T_q* q, const T_k* k, const T_v* v, const T_span* span, const T_reach* reach, Params p) {
    u32 h = blockIdx.x, kv = h / (p.H / p.K), lane = threadIdx.x % 32, t = lane % 4, row = threadIdx.x / 32 * 16;
    u32 n0 = (gridDim.y - 1 - blockIdx.y) * 64;
    Seen<2> seen = look<2>(span, n0 + row, p.N, p.T);
    u32 qs = (u32)__cvta_generic_to_shared(memory), dys = address(qs, 64, 0), ks = address(dys, 64, 0), vs = address(ks, BN, 0);
    const T *keys = k + kv * HEAD, *values = v + kv * HEAD;
    float own[HEAD / 8][4] = {}, lse2[2], mean[2], scale2 = p.scale * LOG2E;
    Cap cap = cap_of(p);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        u64 at = (u64)min(n0 + row + lane / 4 + i * 8, p.N - 1) * p.H + h;
        lse2[i] = lse[at] * LOG2E, mean[i] = dot[at];
    }
    if (seen.block_first < seen.block_end) {
        load_tile<64>(qs, q + h * HEAD, p.ld_q, n0, p.N);
        load_tile<64>(dys, dout + h * HEAD, (u64)p.H * HEAD, n0, p.N);
        load_tile<BN>(vs, values, p.ld_v, seen.block_first, p.T);
        commit();
        load_tile<BN>(ks, keys, p.ld_k, seen.block_first, p.T);
        commit();
    }
    for (u32 j0 = seen.block_first; j0 < seen.block_end; j0 += BN) {
        bool more = j0 + BN < seen.block_end, whole = j0 >= seen.full_first && j0 + BN <= seen.full_end;
        float s[BN / 8][4] = {}, dp[BN / 8][4] = {};
        arrive<1>(); // the values are here
        scores<BN>(dp, dys, row, vs);
        __syncthreads();
        if (more) load_tile<BN>(vs, values, p.ld_v, j0 + BN, p.T);
        commit();
        arrive<1>(); // the keys are here
        scores<BN>(s, qs, row, ks);
#pragma unroll
        for (int c = 0; c < BN / 8; c++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                u32 j = j0 + c * 8 + 2 * t + e % 2;
                float slope = soften(s[c][e], cap);
                float prob = exp2_fast(s[c][e] * scale2 - lse2[e / 2]);
                bool visible = whole || (j >= seen.lo[e / 2] && j < seen.hi[e / 2]);
                s[c][e] = visible ? prob * (dp[c][e] - mean[e / 2]) * slope : 0.f;
            }
        weigh<BN, HEAD>(own, s, ks, 0);
        __syncthreads();
        if (more) load_tile<BN>(ks, keys, p.ld_k, j0 + BN, p.T);
        commit();
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        u32 n = n0 + row + lane / 4 + i * 8;
        if (n >= p.N) continue;
#pragma unroll
        for (int d = 0; d < HEAD / 8; d++) store_pairs(dq + (u64)n * p.ld_q + h * HEAD, own[d], i, p.scale, d * 8 + 2 * t);
    }
}

// dk, dv: 64 keys of one kv head, tiles of the queries of all its heads. Everything is transposed: rows are keys.
// op attention_backward__kv grid(K, ceil(T, 64), 2 - min(1, 128/D)) block(128) shared(2*(D + 8)*(192 + 64*min(1, 128/D) + 128*min(1, 64/D)))
extern "C" __global__ void __launch_bounds__(128) attention_backward__kv(T_dq* dq, T_dk* dk, T_dv* dv, T_dot* dot, const T_dout* dout, const T_out* out, const T_lse* lse, const T_q* q, const T_k* k, const T_v* v, const T_span* span, const T_reach* reach, Params p) {
    constexpr int WIDE = HEAD / PARTS; // columns of dk and dv that this block makes
    u32 kv = blockIdx.x, group = p.H / p.K, lane = threadIdx.x % 32, t = lane % 4, row = threadIdx.x / 32 * 16;
    u32 j0 = blockIdx.y * 64, column = blockIdx.z * WIDE;
    Seen<2> seen = look<2>(reach, j0 + row, p.T, p.N);
    u32 ks = (u32)__cvta_generic_to_shared(memory), vs = address(ks, 64, 0), tiles = address(vs, 64, 0);
    float own_k[WIDE / 8][4] = {}, own_v[WIDE / 8][4] = {}, scale2 = p.scale * LOG2E;
    Cap cap = cap_of(p);
    u32 rounds = seen.block_first < seen.block_end ? (seen.block_end - seen.block_first + BQ - 1) / BQ : 0;
    // round i: queries from n0 on of head h; q's tile, then dout's
    auto load_round = [&](u32 i) {
        u32 h = kv * group + i / rounds, n0 = seen.block_first + i % rounds * BQ, at = address(tiles, i % BUFFERS * 2 * BQ, 0);
        load_tile<BQ>(at, q + h * HEAD, p.ld_q, n0, p.N);
        load_tile<BQ>(address(at, BQ, 0), dout + h * HEAD, (u64)p.H * HEAD, n0, p.N);
    };
    if (rounds) {
        load_tile<64>(ks, k + kv * HEAD, p.ld_k, j0, p.T);
        load_tile<64>(vs, v + kv * HEAD, p.ld_v, j0, p.T);
        load_round(0);
    }
    commit();
    for (u32 i = 0; i < rounds * group; i++) {
        u32 h = kv * group + i / rounds, n0 = seen.block_first + i % rounds * BQ;
        u32 qs = address(tiles, i % BUFFERS * 2 * BQ, 0), dys = address(qs, BQ, 0);
        float s[BQ / 8][4] = {}, dp[BQ / 8][4] = {}, lse2[BQ / 4], mean[BQ / 4];
#pragma unroll
        for (int c = 0; c < BQ / 4; c++) {
            u64 at = (u64)min(n0 + c / 2 * 8 + 2 * t + c % 2, p.N - 1) * p.H + h;
            lse2[c] = lse[at] * LOG2E, mean[c] = dot[at];
        }
        if (BUFFERS == 2 && i + 1 < rounds * group) load_round(i + 1);
        commit();
        arrive<BUFFERS == 2 ? 1 : 0>(); // this round is here
        bool whole = n0 >= seen.full_first && n0 + BQ <= seen.full_end;
        scores<BQ>(s, ks, row, qs);
        scores<BQ>(dp, vs, row, dys);
#pragma unroll
        for (int c = 0; c < BQ / 8; c++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                u32 n = n0 + c * 8 + 2 * t + e % 2;
                float slope = soften(s[c][e], cap);
                float prob = exp2_fast(s[c][e] * scale2 - lse2[2 * c + e % 2]);
                bool visible = whole || (n >= seen.lo[e / 2] && n < seen.hi[e / 2]);
                s[c][e] = visible ? prob : 0.f;
                dp[c][e] = visible ? prob * (dp[c][e] - mean[2 * c + e % 2]) * slope : 0.f;
            }
        weigh<BQ, WIDE>(own_v, s, dys, column);
        weigh<BQ, WIDE>(own_k, dp, qs, column);
        __syncthreads();
        if (BUFFERS == 1 && i + 1 < rounds * group) load_round(i + 1);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        u32 j = j0 + row + lane / 4 + i * 8;
        if (j >= p.T) continue;
#pragma unroll
        for (int d = 0; d < WIDE / 8; d++) {
            u32 c = column + d * 8 + 2 * t;
            store_pairs(dk + (u64)j * p.ld_k + kv * HEAD, own_k[d], i, p.scale, c);
            store_pairs(dv + (u64)j * p.ld_v + kv * HEAD, own_v[d], i, 1.f, c);
        }
    }
}

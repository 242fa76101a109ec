// Products by group on tensor cores (mma.sync m16n8k16, sums in f32) for one 16-bit type; out is that type or f32. J and Q are
// multiples of 8 and a, b, out start at multiples of 16 bytes, so that 8 elements are one copy, inside or outside as a whole.
//
// A block of 8 warps makes a 128x128 tile of out, a warp 64x32 of it, 32 steps of the inner length at a time; while one step is
// multiplied, the next comes by cp.async. Fragments, with g = lane/4 and t = lane%4: C (16 rows, 8 columns) has c[0..1] in row g,
// columns 2t, 2t+1, and c[2..3] in row g+8.
//
// With FP8 the same for rows in e4m3, with mma.sync m16n8k32: their fragments lie as those of pairs of codes, so that T is a pair.
#include "tensor.cuh"
#ifdef FP8
struct T { u16 bits; };
#else
typedef T_a T;
#endif

constexpr u32 BM = 128, BN = 128, BK = 32;
// Elements between rows in shared memory: odd multiples of 16 bytes, free of bank conflicts.
constexpr u32 LD_ROWS = BK + 8, LD_COLUMNS = BM + 8;
constexpr u32 TILE = BM * LD_ROWS; // of either layout; two of a and two of b are the 40,960 bytes of shared memory

extern __shared__ __align__(16) u8 memory[];

#ifdef FP8
MMA(T, "m16n8k32", "e4m3")
#endif

// A: rows i..i+16 over the inner k..k+16 of a tile that holds [i][k], or with COLUMNS [k][i].
template <bool COLUMNS> INLINE void load_a(u32 (&x)[4], u32 tile, u32 i, u32 k) {
    u32 lane = threadIdx.x % 32;
    if constexpr (COLUMNS) ldmatrix_trans(x, tile + ((k + lane / 16 * 8 + lane % 8) * LD_COLUMNS + i + lane / 8 % 2 * 8) * 2);
    else ldmatrix(x, tile + ((i + lane % 16) * LD_ROWS + k + lane / 16 * 8) * 2);
}
// Two B: columns j..j+8 in x[0..1], the next 8 in x[2..3], over k..k+16 of a tile that holds [j][k], or with COLUMNS [k][j].
template <bool COLUMNS> INLINE void load_b(u32 (&x)[4], u32 tile, u32 j, u32 k) {
    u32 lane = threadIdx.x % 32;
    if constexpr (COLUMNS) ldmatrix_trans(x, tile + ((k + lane % 16) * LD_COLUMNS + j + lane / 16 * 8) * 2);
    else ldmatrix(x, tile + ((j + lane / 16 * 8 + lane % 8) * LD_ROWS + k + lane / 8 % 2 * 8) * 2);
}
// 128 rows from i0 and BK of the inner length from k0 on their way into a tile; zeros from I and from K on. Element (i, k) is
// from[i·ld + k], with COLUMNS from[k·ld + i].
template <bool COLUMNS> INLINE void fetch_tile(u32 tile, const T* from, u64 ld, u32 i0, u32 I, u32 k0, u32 K) {
#pragma unroll
    for (u32 e = threadIdx.x; e < BM * BK / 8; e += 256) {
        u32 r = COLUMNS ? e / (BM / 8) : e / (BK / 8), c = COLUMNS ? e % (BM / 8) * 8 : e % (BK / 8) * 8;
        u32 i = i0 + (COLUMNS ? c : r), k = k0 + (COLUMNS ? r : c);
        bool inside = i < I && k < K;
        const T* source = inside ? from + (COLUMNS ? k * ld + i : i * ld + k) : from;
        copy16(tile + (r * (COLUMNS ? LD_COLUMNS : LD_ROWS) + c) * 2, source, inside);
    }
}
INLINE void store2(float* at, float x, float y) { *(float2*)at = make_float2(x, y); }
template <typename X> INLINE void store2(X* at, float x, float y) { *(u32*)at = pack<X>(x, y); }

// out[i,j] over q0 <= q < q1, rows up to I, columns up to J.
struct Part {
    u32 i0, I, j0, J, q0, q1;
    u64 ld_a, ld_b, ld_out;
};

// `scale(m, n)` times the sum of row m and column n.
template <bool A_COLUMNS, bool B_COLUMNS, bool ADD, typename Scale>
INLINE void product(T_out* out, const T* a, const T* b, const Part& g, Scale scale) {
    u32 base = (u32)__cvta_generic_to_shared(memory), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 row = warp % 2 * 64, column = warp / 2 * 32, stage = 0;
    auto start = [&](u32 stage, u32 q) {
        u32 tile = base + stage * 2 * TILE * 2;
        fetch_tile<A_COLUMNS>(tile, a, g.ld_a, g.i0, g.I, q, g.q1);
        fetch_tile<B_COLUMNS>(tile + TILE * 2, b, g.ld_b, g.j0, g.J, q, g.q1);
        commit();
    };
    float sum[4][4][4] = {};
    if (g.q0 < g.q1) start(0, g.q0);
    for (u32 q = g.q0; q < g.q1; q += BK, stage ^= 1) {
        if (q + BK < g.q1) {
            start(stage ^ 1, q + BK);
            arrive<1>();
        } else arrive<0>();
        u32 as = base + stage * 2 * TILE * 2, bs = as + TILE * 2;
#pragma unroll
        for (u32 k = 0; k < BK; k += 16) {
            u32 x[4][4], y[2][4];
#pragma unroll
            for (int i = 0; i < 4; i++) load_a<A_COLUMNS>(x[i], as, row + i * 16, k);
#pragma unroll
            for (int j = 0; j < 2; j++) load_b<B_COLUMNS>(y[j], bs, column + j * 16, k);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) mma<T>(sum[i][j], x[i], y[j / 2][j % 2 * 2], y[j / 2][j % 2 * 2 + 1]);
        }
        __syncthreads(); // before the next step's copies go over it
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                u32 m = g.i0 + row + i * 16 + half * 8 + lane / 4, n = g.j0 + column + j * 8 + lane % 4 * 2;
                if (m >= g.I || n >= g.J) continue;
                T_out* at = out + m * g.ld_out + n;
                float u = scale(m, n) * sum[i][j][2 * half], v = scale(m, n + 1) * sum[i][j][2 * half + 1];
                if (ADD) u += widen(at[0]), v += widen(at[1]);
                store2(at, u, v);
            }
}

#ifndef FP8
// The tiles of all experts' rows stand in one list; ceil(M, 128) + E are always enough.
template <bool B_COLUMNS, bool ADD> INLINE void rows(T_out* out, const T* a, const T* b, const T_offsets* offsets, const Params& p) {
    u32 tile = blockIdx.y, e = 0, first = 0, end = 0, before = 0;
    for (; e < p.E; e++) {
        first = offsets[e], end = offsets[e + 1];
        u32 tiles = (end - first + BM - 1) / BM;
        if (tile < before + tiles) break;
        before += tiles;
    }
    if (e == p.E) return;
    REQUIRE(end <= p.M);
    Part g = {first + (tile - before) * BM, end, blockIdx.x * BN, p.J, 0, p.Q, p.Q, B_COLUMNS ? p.J : p.Q, p.J};
    product<false, B_COLUMNS, ADD>(out, a, b + (u64)e * p.J * p.Q, g, [&](u32, u32) { return p.alpha; });
}
#else
template <bool ADD> INLINE void rows(T_out* out, const u8* a, const float* a_scales, const u8* b, const float* b_scales, const Params& p) {
    Part g = {blockIdx.y * BM, p.I, blockIdx.x * BN, p.J, 0, p.Q / 2, p.Q / 2, p.Q / 2, p.J};
    product<false, false, ADD>(out, (const T*)a, (const T*)b, g, [&](u32 m, u32 n) { return a_scales[m] * b_scales[n]; });
}
#endif

// op grouped_nt grid(ceil(J, 128), ceil(M, 128) + E) block(256) shared(40960)
extern "C" __global__ void __launch_bounds__(256) grouped_nt(T_out* out, const T_a* a, const T_b* b, const T_offsets* offsets, Params p) {
    rows<false, false>(out, a, b, offsets, p);
}
// op grouped_nt_add grid(ceil(J, 128), ceil(M, 128) + E) block(256) shared(40960)
extern "C" __global__ void __launch_bounds__(256) grouped_nt_add(T_out* out, const T_a* a, const T_b* b, const T_offsets* offsets, Params p) {
    rows<false, true>(out, a, b, offsets, p);
}
// op grouped_nn grid(ceil(J, 128), ceil(M, 128) + E) block(256) shared(40960)
extern "C" __global__ void __launch_bounds__(256) grouped_nn(T_out* out, const T_a* a, const T_b* b, const T_offsets* offsets, Params p) {
    rows<true, false>(out, a, b, offsets, p);
}
// op grouped_nn_add grid(ceil(J, 128), ceil(M, 128) + E) block(256) shared(40960)
extern "C" __global__ void __launch_bounds__(256) grouped_nn_add(T_out* out, const T_a* a, const T_b* b, const T_offsets* offsets, Params p) {
    rows<true, true>(out, a, b, offsets, p);
}
// op grouped_tn_add grid(ceil(Q, 128), ceil(J, 128), E) block(256) shared(40960)
// The expert's rows are the inner length.
extern "C" __global__ void __launch_bounds__(256) grouped_tn_add(T_out* out, const T_a* a, const T_b* b, const T_offsets* offsets, Params p) {
    u32 e = blockIdx.z, first = offsets[e], end = offsets[e + 1];
    REQUIRE(first <= end && end <= p.M);
    if (first == end) return;
    Part g = {blockIdx.y * BM, p.J, blockIdx.x * BN, p.Q, first, end, p.J, p.Q, p.Q};
    product<true, true, true>(out + (u64)e * p.J * p.Q, a, b, g, [&](u32, u32) { return p.alpha; });
}

// op fp8_matmul grid(ceil(J, 128), ceil(I, 128)) block(256) shared(40960)
extern "C" __global__ void __launch_bounds__(256) fp8_matmul(T_out* out, const T_a* a, const T_a_scales* a_scales, const T_b* b, const T_b_scales* b_scales, Params p) {
    rows<false>(out, a, a_scales, b, b_scales, p);
}
// op fp8_matmul_add grid(ceil(J, 128), ceil(I, 128)) block(256) shared(40960)
extern "C" __global__ void __launch_bounds__(256) fp8_matmul_add(T_out* out, const T_a* a, const T_a_scales* a_scales, const T_b* b, const T_b_scales* b_scales, Params p) {
    rows<true>(out, a, a_scales, b, b_scales, p);
}

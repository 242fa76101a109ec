// Products with a short inner length (Q <= 64), for one 16-bit type; out is that type or f32: what an adapter adds to a layer's
// outputs, T·Bᵀ, and to its input's gradient, P·A. They are as fast as memory takes out. Q and J are multiples of 8; rows of a, b
// and out start at multiples of 16 bytes.
//
// A block of 8 warps makes a 128x64 tile of out, a warp 32x32 of it, from operands that are there as a whole. The tile passes
// through shared memory once more, so that its rows are written 16 bytes at a time.
typedef T_a T;

constexpr u32 BM = 128, BN = 64, LD_OUT = BN + 4;

template <bool B_COLUMNS, bool ADD, u32 DEPTH> INLINE void product(T_out* out, const T* a, const T* b, const Params& p) {
    // bytes between rows: odd multiples of 16
    constexpr u32 LD_A = DEPTH * 2 + 16, LD_B = B_COLUMNS ? BN * 2 + 16 : LD_A;
    u32 as = (u32)__cvta_generic_to_shared(memory), bs = as + BM * LD_A, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 i0 = blockIdx.y * BM, j0 = blockIdx.x * BN, row = warp % 4 * 32, column = warp / 4 * 32;
    for (u32 e = threadIdx.x; e < BM * DEPTH / 8; e += 256) {
        u32 r = e / (DEPTH / 8), k = e % (DEPTH / 8) * 8;
        bool inside = i0 + r < p.I && k < p.Q;
        copy16(as + r * LD_A + k * 2, inside ? a + (u64)(i0 + r) * p.ld_a + k : a, inside);
    }
    for (u32 e = threadIdx.x; e < BN * DEPTH / 8; e += 256) {
        constexpr u32 CHUNKS = B_COLUMNS ? BN / 8 : DEPTH / 8;
        u32 r = e / CHUNKS, c = e % CHUNKS * 8, k = B_COLUMNS ? r : c, j = j0 + (B_COLUMNS ? c : r);
        bool inside = k < p.Q && j < p.J;
        const T* from = B_COLUMNS ? b + (u64)k * p.ld_b + j : b + (u64)j * p.ld_b + k;
        copy16(bs + r * LD_B + c * 2, inside ? from : b, inside);
    }
    commit();
    arrive<0>();
    float sum[2][4][4] = {};
#pragma unroll
    for (u32 k = 0; k < DEPTH; k += 16) {
        u32 x[2][4], y[2][4];
#pragma unroll
        for (int i = 0; i < 2; i++) ldmatrix(x[i], as + (row + i * 16 + lane % 16) * LD_A + (k + lane / 16 * 8) * 2);
#pragma unroll
        for (int j = 0; j < 2; j++) {
            if constexpr (B_COLUMNS) ldmatrix_trans(y[j], bs + (k + lane % 16) * LD_B + (column + j * 16 + lane / 16 * 8) * 2);
            else ldmatrix(y[j], bs + (column + j * 16 + lane / 16 * 8 + lane % 8) * LD_B + (k + lane / 8 % 2 * 8) * 2);
        }
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) mma<T>(sum[i][j], x[i], y[j / 2][j % 2 * 2], y[j / 2][j % 2 * 2 + 1]);
    }
    __syncthreads();
    float* tile = (float*)memory;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                u32 at = (row + i * 16 + half * 8 + lane / 4) * LD_OUT + column + j * 8 + lane % 4 * 2;
                *(float2*)(tile + at) = make_float2(sum[i][j][2 * half], sum[i][j][2 * half + 1]);
            }
    __syncthreads();
#pragma unroll
    for (u32 e = threadIdx.x; e < BM * BN / 8; e += 256) {
        u32 r = e / (BN / 8), c = e % (BN / 8) * 8;
        if (i0 + r >= p.I || j0 + c >= p.J) continue;
        T_out* at = out + (u64)(i0 + r) * p.ld_out + j0 + c;
        float x[8], old[8];
        load8(x, tile + r * LD_OUT + c);
        if (ADD) load8(old, at);
#pragma unroll
        for (int k = 0; k < 8; k++) x[k] = p.alpha * x[k] + (ADD ? old[k] : 0.f);
        store8(at, x);
    }
}

template <bool B_COLUMNS, bool ADD> INLINE void by_depth(T_out* out, const T* a, const T* b, const Params& p) {
    if (p.Q <= 16) product<B_COLUMNS, ADD, 16>(out, a, b, p);
    else if (p.Q <= 32) product<B_COLUMNS, ADD, 32>(out, a, b, p);
    else product<B_COLUMNS, ADD, 64>(out, a, b, p);
}

// op matmul_nt grid(ceil(J, 64), ceil(I, 128)) block(256) shared(34816)
extern "C" __global__ void __launch_bounds__(256) matmul_nt(T_out* out, const T_a* a, const T_b* b, Params p) {
    by_depth<false, false>(out, a, b, p);
}
// op matmul_nt_add grid(ceil(J, 64), ceil(I, 128)) block(256) shared(34816)
extern "C" __global__ void __launch_bounds__(256) matmul_nt_add(T_out* out, const T_a* a, const T_b* b, Params p) {
    by_depth<false, true>(out, a, b, p);
}
// op matmul_nn grid(ceil(J, 64), ceil(I, 128)) block(256) shared(34816)
extern "C" __global__ void __launch_bounds__(256) matmul_nn(T_out* out, const T_a* a, const T_b* b, Params p) {
    by_depth<true, false>(out, a, b, p);
}
// op matmul_nn_add grid(ceil(J, 64), ceil(I, 128)) block(256) shared(34816)
extern "C" __global__ void __launch_bounds__(256) matmul_nn_add(T_out* out, const T_a* a, const T_b* b, Params p) {
    by_depth<true, true>(out, a, b, p);
}

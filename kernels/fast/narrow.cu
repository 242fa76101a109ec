// Products with few columns (J <= 64) and a long inner length, for one 16-bit type: an adapter's T = X·Aᵀ and P = G·B. They are as
// fast as memory gives a, which is read once. Q is a multiple of 8, for nn J too; rows of a and b start at multiples of 16 bytes.
//
// A block of 8 warps makes BM rows of all columns: BM/16 warps side by side, the others along the inner length, whose sums are
// added in their order. Steps of 64 of the inner length come by cp.async, as many ahead as shared memory holds. The 16-byte
// chunks of a row of 128 bytes are exchanged by its number, free of bank conflicts.
typedef T_a T;

constexpr u32 BK = 64, ROOM = 98304;

INLINE u32 chunk(u32 row, u32 c) { return row * 128 + (c ^ row % 8) * 16; }

template <bool B_COLUMNS, bool ADD, u32 BM, u32 BN> INLINE void product(T_out* out, const T* a, const T* b, const Params& p) {
    constexpr u32 GROUPS = BM / 16, SLICES = 8 / GROUPS, LD_B = BN * 2 + 16;
    constexpr u32 A_BYTES = BM * 128, STAGE = A_BYTES + (B_COLUMNS ? BK * LD_B : BN * 128);
    constexpr u32 STAGES = ROOM / STAGE < 12 ? ROOM / STAGE : 12;
    u32 base = (u32)__cvta_generic_to_shared(memory), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 row = warp % GROUPS * 16, slice = warp / GROUPS, i0 = blockIdx.x * BM, steps = (p.Q + BK - 1) / BK;
    auto start = [&](u32 step) {
        u32 to = base + step % STAGES * STAGE, k0 = step * BK;
        for (u32 e = threadIdx.x; step < steps && e < BM * 8; e += 256) {
            u32 r = e / 8, c = e % 8, k = k0 + c * 8;
            bool inside = i0 + r < p.I && k < p.Q;
            copy16(to + chunk(r, c), inside ? a + (u64)(i0 + r) * p.ld_a + k : a, inside);
        }
        to += A_BYTES;
        for (u32 e = threadIdx.x; step < steps && e < BK * BN / 8; e += 256) {
            u32 r = B_COLUMNS ? e / (BN / 8) : e / 8, c = B_COLUMNS ? e % (BN / 8) : e % 8;
            u32 k = k0 + (B_COLUMNS ? r : c * 8), j = B_COLUMNS ? c * 8 : r;
            bool inside = k < p.Q && j < p.J;
            const T* from = B_COLUMNS ? b + (u64)k * p.ld_b + j : b + (u64)j * p.ld_b + k;
            copy16(to + (B_COLUMNS ? r * LD_B + c * 16 : chunk(r, c)), inside ? from : b, inside);
        }
        commit();
    };
    float sum[BN / 8][4] = {};
    for (u32 step = 0; step < STAGES - 1; step++) start(step);
    for (u32 step = 0; step < steps; step++) {
        arrive<STAGES - 2>(); // and all warps are through with the step before, whose place is next
        start(step + STAGES - 1);
        u32 as = base + step % STAGES * STAGE, bs = as + A_BYTES;
#pragma unroll
        for (u32 s = 0; s < 4 / SLICES; s++) {
            u32 k = (slice + s * SLICES) * 16, x[4];
            ldmatrix(x, as + chunk(row + lane % 16, k / 8 + lane / 16));
#pragma unroll
            for (u32 j = 0; j < BN; j += 16) {
                u32 y[4];
                if constexpr (B_COLUMNS) ldmatrix_trans(y, bs + (k + lane % 16) * LD_B + (j + lane / 16 * 8) * 2);
                else ldmatrix(y, bs + chunk(j + lane / 16 * 8 + lane % 8, k / 8 + lane / 8 % 2));
                mma<T>(sum[j / 8], x, y[0], y[1]);
                mma<T>(sum[j / 8 + 1], x, y[2], y[3]);
            }
        }
    }
    arrive<0>();
    float* part = (float*)memory;
#pragma unroll
    for (u32 n = 0; n < BN / 8; n++)
#pragma unroll
        for (int k = 0; k < 4; k++)
            part[(slice * BM + row + lane / 4 + k / 2 * 8) * BN + n * 8 + lane % 4 * 2 + k % 2] = sum[n][k];
    __syncthreads();
    for (u32 e = threadIdx.x; e < BM * BN; e += 256) {
        u32 i = i0 + e / BN, j = e % BN;
        if (i >= p.I || j >= p.J) continue;
        float all = 0.f;
#pragma unroll
        for (u32 s = 0; s < SLICES; s++) all += part[s * BM * BN + e];
        T_out* at = out + (u64)i * p.ld_out + j;
        put(at, p.alpha * all + (ADD ? widen(*at) : 0.f));
    }
}

template <bool B_COLUMNS, bool ADD, u32 BM> INLINE void by_columns(T_out* out, const T* a, const T* b, const Params& p) {
    if (p.J <= 16) product<B_COLUMNS, ADD, BM, 16>(out, a, b, p);
    else if (p.J <= 32) product<B_COLUMNS, ADD, BM, 32>(out, a, b, p);
    else product<B_COLUMNS, ADD, BM, 64>(out, a, b, p);
}
// Rows of a block, as the grid counts them: few, so that there are blocks for a large device; many where there are enough, for
// each block reads b.
template <bool B_COLUMNS, bool ADD> INLINE void by_rows(T_out* out, const T* a, const T* b, const Params& p) {
    if (p.I < 8192) by_columns<B_COLUMNS, ADD, 32>(out, a, b, p);
    else if (p.I < 16384) by_columns<B_COLUMNS, ADD, 64>(out, a, b, p);
    else by_columns<B_COLUMNS, ADD, 128>(out, a, b, p);
}

// op matmul_nt grid(ceil(I, 32*(1 + min(1, I/8192) + 2*min(1, I/16384)))) block(256) shared(98304)
extern "C" __global__ void __launch_bounds__(256) matmul_nt(T_out* out, const T_a* a, const T_b* b, Params p) {
    by_rows<false, false>(out, a, b, p);
}
// op matmul_nt_add grid(ceil(I, 32*(1 + min(1, I/8192) + 2*min(1, I/16384)))) block(256) shared(98304)
extern "C" __global__ void __launch_bounds__(256) matmul_nt_add(T_out* out, const T_a* a, const T_b* b, Params p) {
    by_rows<false, true>(out, a, b, p);
}
// op matmul_nn grid(ceil(I, 32*(1 + min(1, I/8192) + 2*min(1, I/16384)))) block(256) shared(98304)
extern "C" __global__ void __launch_bounds__(256) matmul_nn(T_out* out, const T_a* a, const T_b* b, Params p) {
    by_rows<true, false>(out, a, b, p);
}
// op matmul_nn_add grid(ceil(I, 32*(1 + min(1, I/8192) + 2*min(1, I/16384)))) block(256) shared(98304)
extern "C" __global__ void __launch_bounds__(256) matmul_nn_add(T_out* out, const T_a* a, const T_b* b, Params p) {
    by_rows<true, true>(out, a, b, p);
}

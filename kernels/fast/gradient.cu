// Gradients with few rows or few columns (up to 64), for one 16-bit type: out += alpha·aᵀ·b, an adapter's dA = Pᵀ·X and dB = Gᵀ·T.
// They are as fast as memory gives the wide operand, which is read once. I and J are multiples of 8; rows of a and b start at
// multiples of 16 bytes.
//
// A block of 8 warps has BN columns of the wide operand and all of the thin one; in steps of 128 rows, 16 a warp, which come by
// cp.async as many ahead as shared memory holds. The warps' sums are added in their order.
typedef T_a T;

constexpr u32 BK = 128, ROOM = 98304;

// out[r,c] = Σ_k thin[k,r]·wide[k,c]; TURNED: out[c,r].
template <bool TURNED, u32 BM, u32 BN> INLINE void product(T_out* out, const T* thin, const T* wide, const Params& p) {
    // bytes between rows: odd multiples of 16
    constexpr u32 LD_THIN = BM * 2 + 16, LD_WIDE = BN * 2 + 16, STAGE = BK * (LD_THIN + LD_WIDE);
    constexpr u32 STAGES = ROOM / STAGE < 8 ? ROOM / STAGE : 8, LD_PART = BN + 1;
    u32 base = (u32)__cvta_generic_to_shared(memory), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 R = TURNED ? p.J : p.I, C = TURNED ? p.I : p.J, ld_thin = TURNED ? p.ld_b : p.ld_a, ld_wide = TURNED ? p.ld_a : p.ld_b;
    u32 c0 = blockIdx.x * BN, steps = (p.Q + BK - 1) / BK;
    auto start = [&](u32 step) {
        u32 to = base + step % STAGES * STAGE, k0 = step * BK;
        for (u32 e = threadIdx.x; step < steps && e < BK * BN / 8; e += 256) {
            u32 k = e / (BN / 8), c = e % (BN / 8) * 8;
            bool inside = k0 + k < p.Q && c0 + c < C;
            copy16(to + k * LD_WIDE + c * 2, inside ? wide + (u64)(k0 + k) * ld_wide + c0 + c : wide, inside);
        }
        to += BK * LD_WIDE;
        for (u32 e = threadIdx.x; step < steps && e < BK * BM / 8; e += 256) {
            u32 k = e / (BM / 8), r = e % (BM / 8) * 8;
            bool inside = k0 + k < p.Q && r < R;
            copy16(to + k * LD_THIN + r * 2, inside ? thin + (u64)(k0 + k) * ld_thin + r : thin, inside);
        }
        commit();
    };
    float sum[BM / 16][BN / 8][4] = {};
    for (u32 step = 0; step < STAGES - 1; step++) start(step);
    for (u32 step = 0; step < steps; step++) {
        arrive<STAGES - 2>(); // and all warps are through with the step before, whose place is next
        start(step + STAGES - 1);
        u32 ws = base + step % STAGES * STAGE, ts = ws + BK * LD_WIDE, k = warp * 16, x[BM / 16][4];
#pragma unroll
        for (u32 m = 0; m < BM / 16; m++)
            ldmatrix_trans(x[m], ts + (k + lane / 16 * 8 + lane % 8) * LD_THIN + (m * 16 + lane / 8 % 2 * 8) * 2);
#pragma unroll
        for (u32 n = 0; n < BN / 16; n++) {
            u32 y[4];
            ldmatrix_trans(y, ws + (k + lane % 16) * LD_WIDE + (n * 16 + lane / 16 * 8) * 2);
#pragma unroll
            for (u32 m = 0; m < BM / 16; m++) {
                mma<T>(sum[m][2 * n], x[m], y[0], y[1]);
                mma<T>(sum[m][2 * n + 1], x[m], y[2], y[3]);
            }
        }
    }
    float* part = (float*)memory;
#pragma unroll
    for (u32 m = 0; m < BM / 16; m++) {
        arrive<0>();
#pragma unroll
        for (u32 n = 0; n < BN / 8; n++)
#pragma unroll
            for (int k = 0; k < 4; k++)
                part[(warp * 16 + lane / 4 + k / 2 * 8) * LD_PART + n * 8 + lane % 4 * 2 + k % 2] = sum[m][n][k];
        __syncthreads();
        for (u32 e = threadIdx.x; e < 16 * BN; e += 256) {
            u32 i = TURNED ? e % 16 : e / BN, c = TURNED ? e / 16 : e % BN, r = m * 16 + i;
            if (r >= R || c0 + c >= C) continue;
            float all = 0.f;
#pragma unroll
            for (u32 w = 0; w < 8; w++) all += part[(w * 16 + i) * LD_PART + c];
            T_out* at = out + (TURNED ? (u64)(c0 + c) * p.ld_out + r : (u64)r * p.ld_out + c0 + c);
            put(at, widen(*at) + p.alpha * all);
        }
    }
}

// Columns of a block, as the grid counts them: few, so that there are blocks for a large device.
template <bool TURNED, u32 BM> INLINE void by_columns(T_out* out, const T* thin, const T* wide, const Params& p) {
    if (max(p.I, p.J) < 8192) product<TURNED, BM, 32>(out, thin, wide, p);
    else product<TURNED, BM, 64>(out, thin, wide, p);
}
template <bool TURNED> INLINE void by_rows(T_out* out, const T* thin, const T* wide, const Params& p) {
    u32 R = min(p.I, p.J);
    if (R <= 16) by_columns<TURNED, 16>(out, thin, wide, p);
    else if (R <= 32) by_columns<TURNED, 32>(out, thin, wide, p);
    else by_columns<TURNED, 64>(out, thin, wide, p);
}

// op matmul_tn_add grid(ceil(max(I, J), 32*(1 + min(1, max(I, J)/8192)))) block(256) shared(98304)
extern "C" __global__ void __launch_bounds__(256) matmul_tn_add(T_out* out, const T_a* a, const T_b* b, Params p) {
    if (p.I <= p.J) by_rows<false>(out, a, b, p);
    else by_rows<true>(out, b, a, p);
}

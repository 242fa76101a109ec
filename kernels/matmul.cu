// Matrix products, plainly: a block makes a 64x64 tile of out, a thread 4x4 of it, 16 steps of q at a time through shared
// memory. The oracle of cuBLASLt's products, and what runs where cuBLASLt refuses.

// a(i,q) = a[i·rows_a + q·cols_a], b(q,j) = b[q·rows_b + j·cols_b].
template <bool ADD> INLINE void product(T_out* out, const T_a* a, const T_b* b, const Params& p, u64 rows_a, u64 cols_a, u64 rows_b, u64 cols_b) {
    __shared__ float as[16][65], bs[16][65];
    u32 t = threadIdx.x, tx = t % 16, ty = t / 16;
    u64 i0 = blockIdx.y * 64ull, j0 = blockIdx.x * 64ull;
    float sum[4][4] = {};
    for (u64 q0 = 0; q0 < p.Q; q0 += 16) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            u32 e = k * 256 + t;
            // neighbouring threads read neighbouring addresses, whichever way the matrix lies
            u32 q = cols_a == 1 ? e % 16 : e / 64, i = cols_a == 1 ? e / 16 : e % 64;
            as[q][i] = q0 + q < p.Q && i0 + i < p.I ? widen(a[(i0 + i) * rows_a + (q0 + q) * cols_a]) : 0.f;
            u32 qb = rows_b == 1 ? e % 16 : e / 64, j = rows_b == 1 ? e / 16 : e % 64;
            bs[qb][j] = q0 + qb < p.Q && j0 + j < p.J ? widen(b[(q0 + qb) * rows_b + (j0 + j) * cols_b]) : 0.f;
        }
        __syncthreads();
#pragma unroll
        for (int q = 0; q < 16; q++) {
            float x[4], y[4];
#pragma unroll
            for (int k = 0; k < 4; k++) x[k] = as[q][ty * 4 + k], y[k] = bs[q][tx + k * 16];
#pragma unroll
            for (int k = 0; k < 4; k++)
#pragma unroll
                for (int l = 0; l < 4; l++) sum[k][l] += x[k] * y[l];
        }
        __syncthreads();
    }
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
        for (int l = 0; l < 4; l++) {
            u64 i = i0 + ty * 4 + k, j = j0 + tx + l * 16;
            if (i >= p.I || j >= p.J) continue;
            T_out* at = out + i * p.ld_out + j;
            put(at, p.alpha * sum[k][l] + (ADD ? widen(*at) : 0.f));
        }
}

// op matmul_nt grid(ceil(J, 64), ceil(I, 64)) block(256)
extern "C" __global__ void __launch_bounds__(256) matmul_nt(T_out* out, const T_a* a, const T_b* b, Params p) {
    product<false>(out, a, b, p, p.ld_a, 1, 1, p.ld_b);
}
// op matmul_nt_add grid(ceil(J, 64), ceil(I, 64)) block(256)
extern "C" __global__ void __launch_bounds__(256) matmul_nt_add(T_out* out, const T_a* a, const T_b* b, Params p) {
    product<true>(out, a, b, p, p.ld_a, 1, 1, p.ld_b);
}
// op matmul_nn grid(ceil(J, 64), ceil(I, 64)) block(256)
extern "C" __global__ void __launch_bounds__(256) matmul_nn(T_out* out, const T_a* a, const T_b* b, Params p) {
    product<false>(out, a, b, p, p.ld_a, 1, p.ld_b, 1);
}
// op matmul_nn_add grid(ceil(J, 64), ceil(I, 64)) block(256)
extern "C" __global__ void __launch_bounds__(256) matmul_nn_add(T_out* out, const T_a* a, const T_b* b, Params p) {
    product<true>(out, a, b, p, p.ld_a, 1, p.ld_b, 1);
}
// op matmul_tn grid(ceil(J, 64), ceil(I, 64)) block(256)
extern "C" __global__ void __launch_bounds__(256) matmul_tn(T_out* out, const T_a* a, const T_b* b, Params p) {
    product<false>(out, a, b, p, 1, p.ld_a, p.ld_b, 1);
}
// op matmul_tn_add grid(ceil(J, 64), ceil(I, 64)) block(256)
extern "C" __global__ void __launch_bounds__(256) matmul_tn_add(T_out* out, const T_a* a, const T_b* b, Params p) {
    product<true>(out, a, b, p, 1, p.ld_a, p.ld_b, 1);
}

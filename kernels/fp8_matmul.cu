// Products of rows in e4m3, plainly: a block makes a 64x64 tile of out, a thread 4x4 of it, 16 steps of q at a time through shared
// memory. The oracle of cuBLASLt's products, and what runs where cuBLASLt refuses.
template <bool ADD> INLINE void product(T_out* out, const T_a* a, const float* a_scales, const T_b* b, const float* b_scales, const Params& p) {
    __shared__ float as[16][65], bs[16][65];
    u32 t = threadIdx.x, tx = t % 16, ty = t / 16;
    u64 i0 = blockIdx.y * 64ull, j0 = blockIdx.x * 64ull, Q = p.Q;
    float sum[4][4] = {};
    for (u64 q0 = 0; q0 < Q; q0 += 16) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            u32 q = t % 16, r = k * 16 + t / 16;
            as[q][r] = q0 + q < Q && i0 + r < p.I ? e4m3_value(a[(i0 + r) * Q + q0 + q]) : 0.f;
            bs[q][r] = q0 + q < Q && j0 + r < p.J ? e4m3_value(b[(j0 + r) * Q + q0 + q]) : 0.f;
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
            T_out* at = out + i * p.J + j;
            put(at, sum[k][l] * a_scales[i] * b_scales[j] + (ADD ? widen(*at) : 0.f));
        }
}

// op fp8_matmul grid(ceil(J, 64), ceil(I, 64)) block(256)
extern "C" __global__ void __launch_bounds__(256) fp8_matmul(T_out* out, const T_a* a, const T_a_scales* a_scales, const T_b* b, const T_b_scales* b_scales, Params p) {
    product<false>(out, a, a_scales, b, b_scales, p);
}
// op fp8_matmul_add grid(ceil(J, 64), ceil(I, 64)) block(256)
extern "C" __global__ void __launch_bounds__(256) fp8_matmul_add(T_out* out, const T_a* a, const T_a_scales* a_scales, const T_b* b, const T_b_scales* b_scales, Params p) {
    product<true>(out, a, a_scales, b, b_scales, p);
}

// Products by group, plainly: tiles and steps as in matmul.cu. The oracle of the tensor cores' products.

// out[i,j] over q0 <= q < q1; a(i,q) = a[i·rows_a + q·cols_a], b(q,j) = b[q·rows_b + j·cols_b]; rows up to I, columns up to J.
struct Part {
    u64 i0, I, j0, J, q0, q1, rows_a, cols_a, rows_b, cols_b, ld_out;
};

template <bool ADD> INLINE void product(T_out* out, const T_a* a, const T_b* b, const Part& g, float alpha) {
    __shared__ float as[16][65], bs[16][65];
    u32 t = threadIdx.x, tx = t % 16, ty = t / 16;
    float sum[4][4] = {};
    for (u64 q0 = g.q0; q0 < g.q1; q0 += 16) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            u32 e = k * 256 + t;
            // neighbouring threads read neighbouring addresses, whichever way the matrix lies
            u32 q = g.cols_a == 1 ? e % 16 : e / 64, i = g.cols_a == 1 ? e / 16 : e % 64;
            as[q][i] = q0 + q < g.q1 && g.i0 + i < g.I ? widen(a[(g.i0 + i) * g.rows_a + (q0 + q) * g.cols_a]) : 0.f;
            u32 qb = g.rows_b == 1 ? e % 16 : e / 64, j = g.rows_b == 1 ? e / 16 : e % 64;
            bs[qb][j] = q0 + qb < g.q1 && g.j0 + j < g.J ? widen(b[(q0 + qb) * g.rows_b + (g.j0 + j) * g.cols_b]) : 0.f;
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
            u64 i = g.i0 + ty * 4 + k, j = g.j0 + tx + l * 16;
            if (i >= g.I || j >= g.J) continue;
            T_out* at = out + i * g.ld_out + j;
            put(at, alpha * sum[k][l] + (ADD ? widen(*at) : 0.f));
        }
}

// The tiles of all experts' rows stand in one list; ceil(M, 64) + E are always enough. b's rows lie `rows_b`, `cols_b` apart.
template <bool ADD> INLINE void rows(T_out* out, const T_a* a, const T_b* b, const T_offsets* offsets, const Params& p, u64 rows_b, u64 cols_b) {
    u32 tile = blockIdx.y, e = 0, first = 0, end = 0, before = 0;
    for (; e < p.E; e++) {
        first = offsets[e], end = offsets[e + 1];
        u32 tiles = (end - first + 63) / 64;
        if (tile < before + tiles) break;
        before += tiles;
    }
    if (e == p.E) return;
    REQUIRE(end <= p.M);
    Part g = {first + (tile - before) * 64ull, end, blockIdx.x * 64ull, p.J, 0, p.Q, p.Q, 1, rows_b, cols_b, p.J};
    product<ADD>(out, a, b + (u64)e * p.J * p.Q, g, p.alpha);
}

// op grouped_nt grid(ceil(J, 64), ceil(M, 64) + E) block(256)
extern "C" __global__ void __launch_bounds__(256) grouped_nt(T_out* out, const T_a* a, const T_b* b, const T_offsets* offsets, Params p) {
    rows<false>(out, a, b, offsets, p, 1, p.Q);
}
// op grouped_nt_add grid(ceil(J, 64), ceil(M, 64) + E) block(256)
extern "C" __global__ void __launch_bounds__(256) grouped_nt_add(T_out* out, const T_a* a, const T_b* b, const T_offsets* offsets, Params p) {
    rows<true>(out, a, b, offsets, p, 1, p.Q);
}
// op grouped_nn grid(ceil(J, 64), ceil(M, 64) + E) block(256)
extern "C" __global__ void __launch_bounds__(256) grouped_nn(T_out* out, const T_a* a, const T_b* b, const T_offsets* offsets, Params p) {
    rows<false>(out, a, b, offsets, p, p.J, 1);
}
// op grouped_nn_add grid(ceil(J, 64), ceil(M, 64) + E) block(256)
extern "C" __global__ void __launch_bounds__(256) grouped_nn_add(T_out* out, const T_a* a, const T_b* b, const T_offsets* offsets, Params p) {
    rows<true>(out, a, b, offsets, p, p.J, 1);
}
// op grouped_tn_add grid(ceil(Q, 64), ceil(J, 64), E) block(256)
// The expert's rows are the inner length.
extern "C" __global__ void __launch_bounds__(256) grouped_tn_add(T_out* out, const T_a* a, const T_b* b, const T_offsets* offsets, Params p) {
    u32 e = blockIdx.z, first = offsets[e], end = offsets[e + 1];
    REQUIRE(first <= end && end <= p.M);
    if (first == end) return;
    Part g = {blockIdx.y * 64ull, p.J, blockIdx.x * 64ull, p.Q, first, end, 1, p.J, p.Q, 1, p.Q};
    product<true>(out + (u64)e * p.J * p.Q, a, b, g, p.alpha);
}

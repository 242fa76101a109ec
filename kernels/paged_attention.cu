// A block has one query and kv head, and the query heads that share it, up to GROUP of them at a time. Its 8 warps take keys in
// turns of 4; a lane owns the channels lane*8.. of a head of up to 256. In the end the warps' sums are put together in order.
#define INFINITY __uint_as_float(0x7f800000u)
// Below every finite score, and finite: START - START is 0.
#define START -3.402823466e38f
#define WARPS 8
#define GROUP 4
#define KEYS 4

// Sums and maximum of one query head over the keys of one warp.
struct Part {
    float out[8], top, sum;
};
INLINE void join(Part& a, float s, const float (&v)[8]) {
    float top = fmaxf(a.top, s), shrink = __expf(a.top - top), e = expf(s - top);
    a.sum = a.sum * shrink + e;
    a.top = top;
#pragma unroll
    for (int i = 0; i < 8; i++) a.out[i] = a.out[i] * shrink + e * v[i];
}

// op paged_attention_forward grid(K, N*Z) block(256)
extern "C" __global__ void __launch_bounds__(256) paged_attention_forward(T_out* out, T_lse* lse, const T_q* q, const T_k* k, const T_v* v, const T_span* span, const T_starts* starts, const T_pages* pages, Params p) {
    __shared__ float outs[WARPS][256], tops[WARPS], sums[WARPS];
    u32 D = p.D, kv = blockIdx.x, n = blockIdx.y, group = p.H / p.K, warp = threadIdx.x / 32, lane = threadIdx.x % 32, d = lane * 8;
    u32 lo = span[2 * n], hi = span[2 * n + 1], first = starts[n / p.Z];
    REQUIRE(lo >= hi || first + (hi - 1) / p.page < p.P);
    bool aligned = wide(k, D) && wide(v, D), aligned_q = wide(q, D);
    for (u32 h0 = 0; h0 < group; h0 += GROUP) {
        float qs[GROUP][8];
        Part parts[GROUP];
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            u32 h = kv * group + min(h0 + g, group - 1);
            fetch(qs[g], q + ((u64)(n / p.Z) * p.H + h) * D, d, D, aligned_q);
            parts[g].top = START, parts[g].sum = 0.f;
#pragma unroll
            for (int i = 0; i < 8; i++) parts[g].out[i] = 0.f, qs[g][i] *= p.scale;
        }
        for (u32 j0 = lo + warp * KEYS; j0 < hi; j0 += WARPS * KEYS) {
            float ks[KEYS][8], vs[KEYS][8];
            // keys beyond the end read the last one, and are left out below
#pragma unroll
            for (int i = 0; i < KEYS; i++) {
                u32 j = min(j0 + i, hi - 1), page = pages[first + j / p.page];
                REQUIRE(page < p.T / p.page);
                u64 row = ((u64)(page * p.page + j % p.page) * p.K + kv) * D;
                fetch(ks[i], k + row, d, D, aligned);
                fetch(vs[i], v + row, d, D, aligned);
            }
#pragma unroll
            for (int i = 0; i < KEYS; i++)
#pragma unroll
                for (int g = 0; g < GROUP; g++) {
                    float s = 0.f;
#pragma unroll
                    for (int c = 0; c < 8; c++) s += qs[g][c] * ks[i][c];
                    s = softcap(warp_sum(s), p.softcap);
                    if (j0 + i < hi) join(parts[g], s, vs[i]);
                }
        }
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            if (h0 + g >= group) break;
            __syncthreads();
#pragma unroll
            for (int i = 0; i < 8; i++) outs[warp][d + i] = parts[g].out[i];
            if (lane == 0) tops[warp] = parts[g].top, sums[warp] = parts[g].sum;
            __syncthreads();
            float top = START, sum = 0.f, total = 0.f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) top = fmaxf(top, tops[w]);
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                float shrink = expf(tops[w] - top);
                sum += sums[w] * shrink;
                total += outs[w][threadIdx.x] * shrink;
            }
            u64 row = (u64)n * p.H + kv * group + h0 + g;
            if (threadIdx.x < D) put(out + row * D + threadIdx.x, sum == 0.f ? 0.f : total / sum);
            if (threadIdx.x == 0) lse[row] = top + logf(sum);
        }
    }
}

// op paged_attention_join grid(H, N) block(256)
extern "C" __global__ void __launch_bounds__(256) paged_attention_join(T_out* out, T_lse* lse, const T_parts* parts, const T_part_lse* part_lse, Params p) {
    u32 h = blockIdx.x, n = blockIdx.y, d = threadIdx.x;
    const T_part_lse* own = part_lse + (u64)n * p.Z * p.H + h;
    float top = -INFINITY, sum = 0.f, total = 0.f;
    for (u32 z = 0; z < p.Z; z++) top = fmaxf(top, own[(u64)z * p.H]);
    // where nothing is seen, top is no number to subtract
    for (u32 z = 0; z < p.Z && top > -INFINITY; z++) {
        float w = expf(own[(u64)z * p.H] - top);
        sum += w;
        if (d < p.D) total += w * parts[(((u64)n * p.Z + z) * p.H + h) * p.D + d];
    }
    u64 row = (u64)n * p.H + h;
    if (d < p.D) put(out + row * p.D + d, sum > 0.f ? total / sum : 0.f);
    if (d == 0) lse[row] = top + logf(sum);
}

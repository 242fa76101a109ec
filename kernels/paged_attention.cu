// A block has one query and kv head, and the query heads that share it, up to GROUP of them at a time. A key's channels are spread
// over LANES lanes, 8 to each, so a warp has 32/LANES teams; all teams of the block's 8 warps take keys in turns of KEYS. In the end
// the teams' sums are put together, those of a warp first.
#define INFINITY __uint_as_float(0x7f800000u)
// Below every finite score, and finite: START - START is 0.
#define START -3.402823466e38f
#define WARPS 8
#define GROUP 4
#define KEYS 2

// Sums and maximum of one query head over the keys of one team.
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

// The same of both teams o lanes apart, in each.
INLINE void merge(Part& a, int o) {
    float other = __shfl_xor_sync(~0u, a.top, o), top = fmaxf(a.top, other), own = expf(a.top - top), its = expf(other - top);
    a.sum = a.sum * own + __shfl_xor_sync(~0u, a.sum, o) * its;
    a.top = top;
#pragma unroll
    for (int i = 0; i < 8; i++) a.out[i] = a.out[i] * own + __shfl_xor_sync(~0u, a.out[i], o) * its;
}

// The sum over a team.
template <int LANES> INLINE float team_sum(float x) {
#pragma unroll
    for (int o = LANES / 2; o; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
    return x;
}

// op paged_attention_forward grid(K, N*Z) block(256)
template <int LANES> INLINE void attend(float* outs, float* tops, float* sums, T_out* out, T_lse* lse, const T_q* q, const T_k* k, const T_v* v, const T_span* span, const T_starts* starts, const T_pages* pages, const Params& p) {
    constexpr int TEAMS = WARPS * 32 / LANES;
    u32 D = p.D, kv = blockIdx.x, n = blockIdx.y, group = p.H / p.K, team = threadIdx.x / LANES, d = threadIdx.x % LANES * 8;
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
        // the teams of a warp go on together, as long as one of them has keys
        for (u32 j0 = lo; j0 + team / (32 / LANES) * (32 / LANES) * KEYS < hi; j0 += TEAMS * KEYS) {
            float ks[KEYS][8], vs[KEYS][8];
            u32 own = j0 + team * KEYS;
            // keys beyond the end read the last one, and are left out below
#pragma unroll
            for (int i = 0; i < KEYS; i++) {
                u32 j = min(own + i, hi - 1), page = pages[first + j / p.page];
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
                    s = softcap(team_sum<LANES>(s), p.softcap);
                    if (own + i < hi) join(parts[g], s, vs[i]);
                }
        }
#pragma unroll
        for (int g = 0; g < GROUP; g++)
#pragma unroll
            for (int o = LANES; o < 32; o *= 2) merge(parts[g], o);
        __syncthreads();
        if (threadIdx.x % 32 < LANES)
#pragma unroll
            for (int g = 0; g < GROUP; g++) {
                u32 row = threadIdx.x / 32 * GROUP + g;
                if (d == 0) tops[row] = parts[g].top, sums[row] = parts[g].sum;
#pragma unroll
                for (int i = 0; i < 8; i++)
                    if (d + i < D) outs[row * D + d + i] = parts[g].out[i];
            }
        __syncthreads();
        for (u32 e = threadIdx.x; e < min(group - h0, (u32)GROUP) * D; e += 256) {
            u32 g = e / D;
            float top = START, sum = 0.f, total = 0.f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) top = fmaxf(top, tops[w * GROUP + g]);
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                float shrink = expf(tops[w * GROUP + g] - top);
                sum += sums[w * GROUP + g] * shrink;
                total += outs[w * GROUP * D + e] * shrink;
            }
            u64 row = (u64)n * p.H + kv * group + h0 + g;
            put(out + row * D + e % D, sum == 0.f ? 0.f : total / sum);
            if (e % D == 0) lse[row] = top + logf(sum);
        }
        __syncthreads();
    }
}
extern "C" __global__ void __launch_bounds__(256, 2) paged_attention_forward(T_out* out, T_lse* lse, const T_q* q, const T_k* k, const T_v* v, const T_span* span, const T_starts* starts, const T_pages* pages, Params p) {
    __shared__ float outs[WARPS * GROUP * 256], tops[WARPS * GROUP], sums[WARPS * GROUP];
    if (p.D <= 64) attend<8>(outs, tops, sums, out, lse, q, k, v, span, starts, pages, p);
    else if (p.D <= 128) attend<16>(outs, tops, sums, out, lse, q, k, v, span, starts, pages, p);
    else attend<32>(outs, tops, sums, out, lse, q, k, v, span, starts, pages, p);
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

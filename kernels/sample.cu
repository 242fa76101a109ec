// A block of 1024 threads has a row of logits, which stays in the L2 cache while it is gone over again and again.
#define LOWEST -3.402823466e38f
#define WARPS 32

// In the order of the floats.
INLINE u32 rank(float z) {
    u32 u = __float_as_uint(z);
    return u >= 0x80000000u ? ~u : u | 0x80000000u;
}
// -ln(-ln u), u from pcg3d of Jarzynski & Olano 2020.
INLINE float gumbel(u32 i, u32 a, u32 b) {
    u32 x = i * 1664525u + 1013904223u, y = a * 1664525u + 1013904223u, z = b * 1664525u + 1013904223u;
    x += y * z, y += z * x, z += x * y;
    x ^= x >> 16, y ^= y >> 16, z ^= z >> 16;
    x += y * z;
    return -logf(-logf(((float)(x >> 8) + 0.5f) / 16777216.f));
}
INLINE float block_max(float x) {
    __shared__ float part[WARPS];
    x = warp_max(x);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    x = part[0];
#pragma unroll
    for (int w = 1; w < WARPS; w++) x = fmaxf(x, part[w]);
    __syncthreads();
    return x;
}
// How many z, or what sum of weights, have a rank of `least` or more.
INLINE float above(const float* z, u32 V, u32 least, float top, float T, bool weighed) {
    float sum = 0.f;
    for (u32 v = threadIdx.x; v < V; v += 1024)
        if (rank(z[v]) >= least) sum += weighed ? expf((z[v] - top) / T) : 1.f;
    return block_sum<WARPS>(sum);
}
// The greatest rank, `floor` at least, with `want` at or above it.
INLINE u32 search(const float* z, u32 V, u32 floor, float want, float top, float T, bool weighed) {
    u32 found = 0;
    for (u32 bit = 0x80000000u; bit; bit >>= 1)
        if (above(z, V, max(found | bit, floor), top, T, weighed) >= want) found |= bit;
    return max(found, floor);
}

// op sample_token grid(N) block(1024)
extern "C" __global__ void __launch_bounds__(1024) sample_token(T_token* token, T_logp* logp, const T_logits* logits, const T_controls* controls, const T_keys* keys, Params p) {
    u32 n = blockIdx.x, V = p.V, a = keys[3 * n], b = keys[3 * n + 1], top_k = keys[3 * n + 2];
    const float* z = logits + (u64)n * p.ld_logits;
    float T = controls[3 * n], top_p = controls[3 * n + 1], min_p = controls[3 * n + 2];
    float most = LOWEST, sum = 0.f;
    for (u32 v = threadIdx.x; v < V; v += 1024) most = fmaxf(most, z[v]);
    float top = block_max(most);
    for (u32 v = threadIdx.x; v < V; v += 1024) sum += expf(z[v] - top);
    float lse = logf(block_sum<WARPS>(sum));
    u32 least = 0;
    if (T > 0.f && top_k > 0 && top_k < V) least = search(z, V, 0, (float)top_k, top, T, false);
    if (T > 0.f && top_p < 1.f) least = search(z, V, least, top_p * above(z, V, least, top, T, true), top, T, true);
    float best = LOWEST;
    u32 chosen = ~0u;
    for (u32 v = threadIdx.x; v < V; v += 1024) {
        float x = z[v];
        if (T > 0.f) {
            bool kept = rank(x) >= least && expf((x - top) / T) >= min_p;
            x = kept ? x / T + gumbel(v, a, b) : LOWEST;
        }
        if (x > best) best = x, chosen = v;
    }
    float winner = block_max(best);
    // the first of equals: indices as negative floats are exact below 2^24
    float first = -block_max(best == winner && chosen != ~0u ? -(float)chosen : LOWEST);
    if (threadIdx.x == 0) {
        u32 v = first < (float)V ? (u32)first : V - 1;
        token[n] = v;
        logp[n] = z[v] - top - lse;
    }
}

// op sample_adjust grid(ceil(P, 256)) block(256)
extern "C" __global__ void __launch_bounds__(256) sample_adjust(T_logits* logits, const T_at* at, const T_change* change, Params p) {
    u64 e = blockIdx.x * 256ull + threadIdx.x;
    if (e >= p.P) return;
    REQUIRE(at[2 * e] < p.N && at[2 * e + 1] < p.V);
    float* z = logits + (u64)at[2 * e] * p.ld_logits + at[2 * e + 1];
    float factor = change[2 * e];
    *z = (*z < 0.f ? *z * factor : *z / factor) + change[2 * e + 1];
}

// op sample_softcap grid(ceil(N*V, 256)) block(256)
extern "C" __global__ void __launch_bounds__(256) sample_softcap(T_logits* logits, Params p) {
    u64 e = blockIdx.x * 256ull + threadIdx.x;
    if (e >= (u64)p.N * p.V) return;
    float* z = logits + e / p.V * p.ld_logits + e % p.V;
    *z = softcap(*z, p.softcap);
}

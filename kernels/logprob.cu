// Log-probability of each token's label: one pass over its logits with a running maximum, and the way back.
#define IGNORE 0xffffffffu
// Below every finite logit, and finite: exp(-inf - START) is 0 where exp(-inf - -inf) would be NaN.
#define START -3.402823466e38f
#define INFINITY __uint_as_float(0x7f800000u)

// A running maximum and the sum of exp(z - max) so far.
struct Running { float max, sum; };
INLINE Running join(Running a, Running b) {
    float max = fmaxf(a.max, b.max);
    return {max, a.sum * __expf(a.max - max) + b.sum * __expf(b.max - max)};
}
INLINE Running join_warp(Running r) {
#pragma unroll
    for (int o = 16; o; o >>= 1) r = join(r, {__shfl_xor_sync(~0u, r.max, o), __shfl_xor_sync(~0u, r.sum, o)});
    return r;
}

// op logprob_forward grid(N) block(512)
extern "C" __global__ void __launch_bounds__(512) logprob_forward(T_logp* logp, T_lse* lse, const T_logits* logits, const T_labels* labels, Params p) {
    __shared__ Running part[16];
    u64 n = blockIdx.x;
    const T_logits* z = logits + n * p.ld_logits;
    bool fast = wide(logits, p.ld_logits);
    Running r = {START, 0.f};
    auto absorb = [&](float (&x)[8]) {
        float max = r.max, sum = 0.f;
#pragma unroll
        for (int k = 0; k < 8; k++) max = fmaxf(max, x[k]);
#pragma unroll
        for (int k = 0; k < 8; k++) sum += __expf(x[k] - max);
        r = {max, r.sum * __expf(r.max - max) + sum};
    };
    auto soften = [&](float (&x)[8]) {
        if (p.softcap == 0.f) return;
#pragma unroll
        for (int k = 0; k < 8; k++) x[k] = softcap(x[k], p.softcap);
    };
    u64 v = threadIdx.x * 8, step = 512 * 8, V = p.V;
    // two loads in flight per thread
    for (; fast && v + step + 8 <= V; v += 2 * step) {
        float x[8], y[8];
        load8(x, z + v), load8(y, z + v + step);
        soften(x), soften(y);
        absorb(x), absorb(y);
    }
    for (; v < V; v += step) {
        float x[8];
        fetch(x, z, v, V, fast);
        soften(x);
#pragma unroll
        for (int k = 0; k < 8; k++) x[k] = v + k < V ? x[k] : -INFINITY;
        absorb(x);
    }
    r = join_warp(r);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = r;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    r = threadIdx.x < 16 ? part[threadIdx.x] : Running{START, 0.f};
    r = join_warp(r);
    if (threadIdx.x) return;
    lse[n] = r.max + logf(r.sum);
    u32 label = labels[n];
    REQUIRE(label < p.V || label == IGNORE);
    logp[n] = label == IGNORE ? 0.f : softcap(widen(z[label]), p.softcap) - lse[n];
}

// op logprob_backward grid(N, ceil(V, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) logprob_backward(T_dlogits* dlogits, const T_coef* coef, const T_lse* lse, const T_logits* logits, const T_labels* labels, Params p) {
    u64 n = blockIdx.x;
    u32 v = (blockIdx.y * 256 + threadIdx.x) * 8, label = labels[n];
    float x[8] = {}, c = coef[n], l = lse[n];
    if (label != IGNORE) {
        fetch(x, logits + n * p.ld_logits, v, p.V, wide(logits, p.ld_logits));
#pragma unroll
        for (int k = 0; k < 8; k++) {
            float z = softcap(x[k], p.softcap);
            x[k] = c * ((v + k == label ? 1.f : 0.f) - __expf(z - l)) * softcap_slope(z, p.softcap);
        }
    }
    stash(dlogits + n * p.ld_dlogits, v, p.V, wide(dlogits, p.ld_dlogits), x);
}

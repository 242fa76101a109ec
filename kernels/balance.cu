// The router's balance: counts and probabilities of each expert over all tokens, in fixed orders.

// log Σ exp of a token's logits, in every lane of its warp.
template <typename T> INLINE float log_sum(const T* logits, u32 E, u32 lane) {
    float top = widen(logits[0]), total = 0.f;
    for (u32 e = lane; e < E; e += 32) top = fmaxf(top, widen(logits[e]));
    top = warp_max(top);
    for (u32 e = lane; e < E; e += 32) total += expf(widen(logits[e]) - top);
    return top + logf(warp_sum(total));
}

// op balance_forward grid(ceil(N, 8)) block(256)
extern "C" __global__ void __launch_bounds__(256) balance_forward(T_prob* prob, T_lse* lse, const T_logits* logits, const T_mask* mask, Params p) {
    u64 n = blockIdx.x * 8ull + threadIdx.x / 32;
    if (n >= p.N) return;
    float x = log_sum(logits + n * p.E, p.E, threadIdx.x % 32);
    if (threadIdx.x % 32 == 0) lse[n] = x;
}

// 32 experts by 32 lanes of tokens; each lane sums every 32nd token, then the lanes of an expert are added in order.
// op balance_forward__sums grid(ceil(E, 32)) block(1024)
extern "C" __global__ void __launch_bounds__(1024) balance_forward__sums(T_prob* prob, T_lse* lse, const T_logits* logits, const T_mask* mask, Params p) {
    __shared__ float part[32][33];
    u32 lane = threadIdx.x % 32, tokens = threadIdx.x / 32, e = blockIdx.x * 32 + lane;
    float sum = 0.f;
    if (e < p.E)
        for (u32 n = tokens; n < p.N; n += 32) sum += mask[n] * expf(widen(logits[(u64)n * p.E + e]) - lse[n]);
    part[lane][tokens] = sum;
    __syncthreads();
    // now a warp has one expert, a lane one part of it
    sum = warp_sum(part[tokens][lane]);
    e = blockIdx.x * 32 + tokens;
    if (lane == 0 && e < p.E) prob[e] += sum;
}

// op balance_backward grid(ceil(N, 8)) block(256)
extern "C" __global__ void __launch_bounds__(256) balance_backward(T_dlogits* dlogits, const T_dprob* dprob, const T_logits* logits, const T_mask* mask, Params p) {
    u64 n = blockIdx.x * 8ull + threadIdx.x / 32;
    u32 lane = threadIdx.x % 32;
    if (n >= p.N) return;
    const T_logits* x = logits + n * p.E;
    float lse = log_sum(x, p.E, lane), dot = 0.f;
    for (u32 e = lane; e < p.E; e += 32) dot += expf(widen(x[e]) - lse) * dprob[e];
    dot = warp_sum(dot);
    float factor = p.scale * mask[n];
    for (u32 e = lane; e < p.E; e += 32) {
        T_dlogits* at = dlogits + n * p.E + e;
        put(at, widen(*at) + factor * expf(widen(x[e]) - lse) * (dprob[e] - dot));
    }
}

// Top-k routing. A warp takes a token: each choice is a maximum over the lanes, of equal values the lowest index.

// Whether (x, e) comes before (y, f) in the order of the choice; index E stands for nothing.
INLINE bool before(float x, u32 e, float y, u32 f, u32 E) { return e < E && (f >= E || x > y || (x == y && e < f)); }

// op router_forward grid(ceil(N, 8)) block(256)
extern "C" __global__ void __launch_bounds__(256) router_forward(T_weights* weights, T_experts* experts, const T_logits* logits, Params p) {
    u64 n = blockIdx.x * 8ull + threadIdx.x / 32;
    u32 lane = threadIdx.x % 32, E = p.E;
    if (n >= p.N) return;
    const T_logits* x = logits + n * E;
    float last = 0.f, top = 0.f, total = 0.f;
    u32 last_e = E;
    for (u32 a = 0; a < p.S; a++) {
        float best = 0.f;
        u32 best_e = E;
        for (u32 e = lane; e < E; e += 32) {
            float y = widen(x[e]);
            bool after = last_e == E || y < last || (y == last && e > last_e);
            // a NaN is never chosen
            if (after && y == y && before(y, e, best, best_e, E)) best = y, best_e = e;
        }
#pragma unroll
        for (int o = 16; o; o >>= 1) {
            float y = __shfl_xor_sync(~0u, best, o);
            u32 e = __shfl_xor_sync(~0u, best_e, o);
            if (before(y, e, best, best_e, E)) best = y, best_e = e;
        }
        // with NaNs the weights are NaN; the experts stay experts
        u32 chosen = best_e < E ? best_e : a;
        last = best, last_e = best_e;
        float value = widen(x[chosen]);
        if (a == 0) top = value;
        float weight = expf(value - top);
        total += weight;
        if (lane == 0) experts[n * p.S + a] = chosen, weights[n * p.S + a] = weight;
    }
    if (!p.norm) {
        total = 0.f;
        for (u32 e = lane; e < E; e += 32) total += expf(widen(x[e]) - top);
        total = warp_sum(total);
    }
    // lane 0 wrote them, lane 0 divides them
    if (lane == 0)
        for (u32 a = 0; a < p.S; a++) weights[n * p.S + a] /= total;
}

// op router_backward grid(ceil(N, 8)) block(256)
extern "C" __global__ void __launch_bounds__(256) router_backward(T_dlogits* dlogits, const T_dweights* dweights, const T_weights* weights, const T_experts* experts, const T_logits* logits, Params p) {
    u64 n = blockIdx.x * 8ull + threadIdx.x / 32;
    u32 lane = threadIdx.x % 32, E = p.E, S = p.S;
    if (n >= p.N) return;
    const T_weights* w = weights + n * S;
    const T_dweights* dw = dweights + n * S;
    const T_experts* own = experts + n * S;
    float dot = 0.f;
    for (u32 a = 0; a < S; a++) dot += w[a] * dw[a];
    float top = widen(logits[n * E + own[0]]), first = p.norm ? 0.f : w[0];
    for (u32 e = lane; e < E; e += 32) {
        float d = first == 0.f ? 0.f : -(first * expf(widen(logits[n * E + e]) - top) * dot);
        for (u32 a = 0; a < S; a++)
            if (own[a] == e) d = w[a] * (dw[a] - dot);
        put(dlogits + n * E + e, d);
    }
}

// Top-k routing by sigmoids within the best groups. A warp takes a token.

INLINE float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }
template <typename T> INLINE float choice(const T* logits, const float* bias, u32 e) { return sigmoid(widen(logits[e])) + bias[e]; }

// Whether (x, i) comes before (y, j) in the order of the choice; index `none` stands for nothing.
INLINE bool before(float x, u32 i, float y, u32 j, u32 none) { return i < none && (j >= none || x > y || (x == y && i < j)); }

// The first of all lanes' candidates, in every lane.
INLINE void first_of(float& x, u32& i, u32 none) {
#pragma unroll
    for (int o = 16; o; o >>= 1) {
        float y = __shfl_xor_sync(~0u, x, o);
        u32 j = __shfl_xor_sync(~0u, i, o);
        if (before(y, j, x, i, none)) x = y, i = j;
    }
}

// The sum of a group's two greatest, far below all others where there is no number.
template <typename T> INLINE float worth(const T* logits, const float* bias, u32 first_e, u32 size) {
    float first = 0.f, second = 0.f;
    u32 count = 0;
    for (u32 e = first_e; e < first_e + size; e++) {
        float c = choice(logits, bias, e);
        if (c != c) continue;
        if (count == 0 || c > first) second = first, first = c;
        else if (count == 1 || c > second) second = c;
        count++;
    }
    return count == 0 ? -3e38f : count == 1 ? first : first + second;
}

// op group_router_forward grid(ceil(N, 8)) block(256)
extern "C" __global__ void __launch_bounds__(256) group_router_forward(T_weights* weights, T_experts* experts, const T_logits* logits, const T_bias* bias, Params p) {
    __shared__ float worths[8][256];
    u64 n = blockIdx.x * 8ull + threadIdx.x / 32;
    u32 lane = threadIdx.x % 32, E = p.E, G = p.groups, size = E / G;
    float* own = worths[threadIdx.x / 32];
    const T_logits* x = logits + n * E;
    if (n >= p.N) return;
    for (u32 g = lane; g < G; g += 32) own[g] = worth(x, bias, g * size, size);
    __syncwarp();

    // the last of the kept groups: those not after it are kept
    float limit = 0.f;
    u32 limit_g = G;
    for (u32 j = 0; j < p.kept; j++) {
        float best = 0.f;
        u32 best_g = G;
        for (u32 g = lane; g < G; g += 32)
            if ((limit_g == G || before(limit, limit_g, own[g], g, G)) && before(own[g], g, best, best_g, G)) best = own[g], best_g = g;
        first_of(best, best_g, G);
        limit = best, limit_g = best_g;
    }
    // what stands for numbers that are not there
    float same = 0.f;
    u32 nan = E;
    for (u32 e = lane; e < E && nan == E; e += 32) {
        float c = choice(x, bias, e);
        if (c != c) nan = e;
    }
    first_of(same, nan, E);

    float last = 0.f, total = 1e-20f;
    u32 last_e = E;
    for (u32 a = 0; a < p.S; a++) {
        float best = 0.f;
        u32 best_e = E;
        for (u32 e = lane; e < E; e += 32) {
            if (before(limit, limit_g, own[e / size], e / size, G)) continue;
            float c = choice(x, bias, e);
            // a NaN is never chosen
            if (c == c && (last_e == E || before(last, last_e, c, e, E)) && before(c, e, best, best_e, E)) best = c, best_e = e;
        }
        first_of(best, best_e, E);
        if (best_e < E) last = best, last_e = best_e;
        u32 chosen = best_e < E ? best_e : nan;
        float score = sigmoid(widen(x[chosen]));
        total += score;
        if (lane == 0) experts[n * p.S + a] = chosen, weights[n * p.S + a] = p.scale * score;
    }
    // lane 0 wrote them, lane 0 divides them
    if (lane == 0 && p.norm)
        for (u32 a = 0; a < p.S; a++) weights[n * p.S + a] /= total;
}

// op group_router_backward grid(ceil(N, 8)) block(256)
extern "C" __global__ void __launch_bounds__(256) group_router_backward(T_dlogits* dlogits, const T_dweights* dweights, const T_weights* weights, const T_experts* experts, const T_logits* logits, Params p) {
    u64 n = blockIdx.x * 8ull + threadIdx.x / 32;
    u32 lane = threadIdx.x % 32, E = p.E, S = p.S;
    if (n >= p.N) return;
    const T_weights* w = weights + n * S;
    const T_dweights* dw = dweights + n * S;
    const T_experts* own = experts + n * S;
    float by = p.norm ? 1e-20f : 1.f;
    if (p.norm)
        for (u32 a = 0; a < S; a++) by += sigmoid(widen(logits[n * E + own[a]]));
    for (u32 e = lane; e < E; e += 32) {
        float d = 0.f, s = sigmoid(widen(logits[n * E + e]));
        for (u32 a = 0; a < S; a++) {
            if (own[a] != e) continue;
            // scale·dw[a] − Σ w·dw, the expert's own share taken together: alone, it has no gradient at all
            float sum = (p.norm ? p.scale - w[a] : p.scale) * dw[a];
            for (u32 b = 0; b < S; b++)
                if (p.norm && b != a) sum -= w[b] * dw[b];
            d = sum / by * (s * (1.f - s));
        }
        put(dlogits + n * E + e, d);
    }
}

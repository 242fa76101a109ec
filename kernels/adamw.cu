// AdamW, with moments in f32 or in 8 bits. scale[0] comes from the gradient norm and never visits the host.

struct Moments { float m, v; };
INLINE Moments advance(float m, float v, float g, const Params& p) {
    return {p.beta1 * m + p.rest1 * g, p.beta2 * v + p.rest2 * g * g};
}
INLINE float update(Moments s, const Params& p) {
    return p.lr * s.m * p.correct1 / (sqrtf(s.v * p.correct2) + p.eps);
}

// op adamw_step grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) adamw_step(T_weight* weight, T_m* m, T_v* v, const T_grad* grad, const T_scale* scale, Params p) {
    u64 i = (blockIdx.x * 256ull + threadIdx.x) * 8, P = p.P;
    bool fast = wide(weight, 0) && wide(m, 0) && wide(v, 0) && wide(grad, 0);
    float w[8], x[8], y[8], g[8], keep = 1.f - p.lr * p.decay, clip = scale[0];
    fetch(w, weight, i, P, fast), fetch(x, m, i, P, fast), fetch(y, v, i, P, fast), fetch(g, grad, i, P, fast);
#pragma unroll
    for (int k = 0; k < 8; k++) {
        Moments s = advance(x[k], y[k], g[k] * clip, p);
        w[k] = w[k] * keep - update(s, p);
        x[k] = s.m, y[k] = s.v;
    }
    stash(weight, i, P, fast, w), stash(m, i, P, fast, x), stash(v, i, P, fast, y);
}

// A warp has one block of 256 values, 8 to a lane. bitsandbytes' order: update, then decay.
// op adamw_step_8bit grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) adamw_step_8bit(T_weight* weight, T_m* m, T_v* v, T_absmax1* absmax1, T_absmax2* absmax2, const T_grad* grad, const T_scale* scale, const T_map1* map1, const T_map2* map2, Params p) {
    __shared__ float levels1[256], levels2[256];
    levels1[threadIdx.x] = map1[threadIdx.x], levels2[threadIdx.x] = map2[threadIdx.x];
    __syncthreads();
    u64 b = blockIdx.x * 8ull + threadIdx.x / 32, i = (blockIdx.x * 256ull + threadIdx.x) * 8, P = p.P;
    if (b * 256 >= P) return;
    bool fast = wide(weight, 0) && wide(grad, 0);
    float w[8], g[8], old1 = absmax1[b], old2 = absmax2[b], clip = scale[0], keep = 1.f - p.lr * p.decay;
    fetch(w, weight, i, P, fast), fetch(g, grad, i, P, fast);
    uint2 c1 = fetch_codes(m, i, P), c2 = fetch_codes(v, i, P);
    Moments s[8];
    float max1 = 0.f, max2 = 0.f;
#pragma unroll
    for (int k = 0; k < 8; k++) {
        u32 code1 = (k < 4 ? c1.x : c1.y) >> k % 4 * 8 & 255, code2 = (k < 4 ? c2.x : c2.y) >> k % 4 * 8 & 255;
        s[k] = advance(levels1[code1] * old1, levels2[code2] * old2, g[k] * clip, p);
        w[k] = (w[k] - update(s[k], p)) * keep;
        if (i + k < P) max1 = fmaxf(max1, fabsf(s[k].m)), max2 = fmaxf(max2, s[k].v);
    }
    stash(weight, i, P, fast, w);
    max1 = warp_max(max1), max2 = warp_max(max2);
    if (threadIdx.x % 32 == 0) absmax1[b] = max1, absmax2[b] = max2;
    const float TINY = 1.17549435e-38f;
    u32 new1[2] = {}, new2[2] = {};
#pragma unroll
    for (int k = 0; k < 8; k++) {
        new1[k / 4] |= nearest_signed(levels1, s[k].m / fmaxf(max1, TINY)) << k % 4 * 8;
        new2[k / 4] |= nearest_level(levels2, s[k].v / fmaxf(max2, TINY)) << k % 4 * 8;
    }
    stash_codes(m, i, P, new1), stash_codes(v, i, P, new2);
}

// Lion, with its momentum in f32 or in 8 bits. scale[0] comes from the gradient norm and never visits the host.

// The weight after this step; m moves on.
INLINE float advance(float w, float& m, float g, const Params& p) {
    float c = p.beta1 * m + p.rest1 * g;
    m = p.beta2 * m + p.rest2 * g;
    return w * (1.f - p.lr * p.decay) - p.lr * (float)((c > 0.f) - (c < 0.f));
}

// op lion_step grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) lion_step(T_weight* weight, T_m* m, const T_grad* grad, const T_scale* scale, Params p) {
    u64 i = (blockIdx.x * 256ull + threadIdx.x) * 8, P = p.P;
    bool fast = wide(weight, 0) && wide(m, 0) && wide(grad, 0);
    float w[8], x[8], g[8], clip = scale[0];
    fetch(w, weight, i, P, fast), fetch(x, m, i, P, fast), fetch(g, grad, i, P, fast);
#pragma unroll
    for (int k = 0; k < 8; k++) w[k] = advance(w[k], x[k], g[k] * clip, p);
    by_chance(w, i, p);
    stash(weight, i, P, fast, w), stash(m, i, P, fast, x);
}

// A warp has one block of 256 values at a time, 8 to a lane; eight of them, for what is looked up is made once.
// op lion_step_8bit grid(ceil(P, 16384)) block(256)
extern "C" __global__ void __launch_bounds__(256) lion_step_8bit(T_weight* weight, T_m* m, T_absmax* absmax, const T_grad* grad, const T_scale* scale, const T_map* map, Params p) {
    __shared__ float levels[256];
    __shared__ Finder<5, true> finder;
    levels[threadIdx.x] = map[threadIdx.x];
    finder.fill(map);
    bool fast = wide(weight, 0) && wide(grad, 0);
    float clip = scale[0];
    u64 P = p.P;
    for (u32 turn = 0; turn < 8; turn++) {
        u64 i = ((blockIdx.x * 8ull + turn) * 256 + threadIdx.x) * 8, b = i / 256;
        if (b * 256 >= P) return;
        float w[8], g[8], x[8], old = absmax[b], top = 0.f;
        fetch(w, weight, i, P, fast), fetch(g, grad, i, P, fast);
        uint2 c = fetch_codes(m, i, P);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            x[k] = levels[(k < 4 ? c.x : c.y) >> k % 4 * 8 & 255] * old;
            w[k] = advance(w[k], x[k], g[k] * clip, p);
            if (i + k < P) top = fmaxf(top, fabsf(x[k]));
        }
        by_chance(w, i, p);
        stash(weight, i, P, fast, w);
        top = warp_max(top);
        if (threadIdx.x % 32 == 0) absmax[b] = top;
        u32 codes[2] = {};
        float unit = 1.f / fmaxf(top, 1.17549435e-38f);
#pragma unroll
        for (int k = 0; k < 8; k++) codes[k / 4] |= finder.nearest(x[k] * unit) << k % 4 * 8;
        stash_codes(m, i, P, codes);
    }
}

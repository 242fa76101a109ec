// AdamW, with moments in f32 or in 8 bits. scale[0] comes from the gradient norm and never visits the host.

struct Moments { float m, v; };
INLINE Moments advance(float m, float v, float g, const Params& p) {
    return {p.beta1 * m + p.rest1 * g, p.beta2 * v + p.rest2 * g * g};
}
INLINE float update(Moments s, const Params& p) {
    return p.lr * s.m * p.correct1 / (sqrtf(s.v * p.correct2) + p.eps);
}

// The same to a few units in the last place, in a third of the instructions: with 8-bit moments the step is bound by them.
INLINE float quick_update(Moments s, const Params& p) {
    float root;
    asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(s.v * p.correct2));
    return __fdividef(s.m * (p.lr * p.correct1), root + p.eps);
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
    by_chance(w, i, p);
    stash(weight, i, P, fast, w), stash(m, i, P, fast, x), stash(v, i, P, fast, y);
}

// A warp has one block of 256 values at a time, 8 to a lane; eight of them, for what is looked up is made once. bitsandbytes' order:
// update, then decay.
// op adamw_step_8bit grid(ceil(P, 16384)) block(256)
extern "C" __global__ void __launch_bounds__(256) adamw_step_8bit(T_weight* weight, T_m* m, T_v* v, T_absmax1* absmax1, T_absmax2* absmax2, const T_grad* grad, const T_scale* scale, const T_map1* map1, const T_map2* map2, Params p) {
    __shared__ float levels1[256], levels2[256];
    __shared__ Finder<5, true> finder1;
    __shared__ Finder<6, false> finder2;
    levels1[threadIdx.x] = map1[threadIdx.x], levels2[threadIdx.x] = map2[threadIdx.x];
    finder1.fill(map1), finder2.fill(map2);
    bool fast = wide(weight, 0) && wide(grad, 0);
    float clip = scale[0], keep = 1.f - p.lr * p.decay;
    u64 P = p.P;
    for (u32 turn = 0; turn < 8; turn++) {
        u64 i = ((blockIdx.x * 8ull + turn) * 256 + threadIdx.x) * 8, b = i / 256;
        if (b * 256 >= P) return;
        float w[8], g[8], old1 = absmax1[b], old2 = absmax2[b];
        fetch(w, weight, i, P, fast), fetch(g, grad, i, P, fast);
        uint2 c1 = fetch_codes(m, i, P), c2 = fetch_codes(v, i, P);
        Moments s[8];
        float max1 = 0.f, max2 = 0.f;
        bool whole = i + 8 <= P;
#pragma unroll
        for (int k = 0; k < 8; k++) {
            u32 code1 = (k < 4 ? c1.x : c1.y) >> k % 4 * 8 & 255, code2 = (k < 4 ? c2.x : c2.y) >> k % 4 * 8 & 255;
            s[k] = advance(levels1[code1] * old1, levels2[code2] * old2, g[k] * clip, p);
            w[k] = (w[k] - quick_update(s[k], p)) * keep;
            if (whole || i + k < P) max1 = fmaxf(max1, fabsf(s[k].m)), max2 = fmaxf(max2, s[k].v);
        }
        by_chance(w, i, p);
        stash(weight, i, P, fast, w);
        max1 = warp_max(max1), max2 = warp_max(max2);
        if (threadIdx.x % 32 == 0) absmax1[b] = max1, absmax2[b] = max2;
        const float TINY = 1.17549435e-38f;
        float unit1 = 1.f / fmaxf(max1, TINY), unit2 = 1.f / fmaxf(max2, TINY);
        u32 new1[2] = {}, new2[2] = {};
#pragma unroll
        for (int k = 0; k < 8; k++) {
            new1[k / 4] |= finder1.nearest(s[k].m * unit1) << k % 4 * 8;
            new2[k / 4] |= finder2.nearest(s[k].v * unit2) << k % 4 * 8;
        }
        stash_codes(m, i, P, new1), stash_codes(v, i, P, new2);
    }
}

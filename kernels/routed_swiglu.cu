// SwiGLU of an expert's rows, each by its routing weight. Threads take 8 values of one row at a time.

// The fast exponential is good to 1e-6 relative at |x| = 10, and this is memory traffic all the same.
INLINE float sigmoid(float x) { return __fdividef(1.f, 1.f + __expf(-x)); }

// op routed_swiglu_forward grid(M, ceil(F, 1024)) block(128)
extern "C" __global__ void __launch_bounds__(128) routed_swiglu_forward(T_out* out, const T_gate* gate, const T_up* up, const T_weights* weights, const T_rows* rows, Params p) {
    u64 m = blockIdx.x, f = (blockIdx.y * 128 + threadIdx.x) * 8;
    float w = weights[rows[m]], g[8], u[8];
    fetch(g, gate + m * p.F, f, p.F, wide(gate, p.F));
    fetch(u, up + m * p.F, f, p.F, wide(up, p.F));
#pragma unroll
    for (int k = 0; k < 8; k++) g[k] = w * (g[k] * sigmoid(g[k]) * u[k]);
    stash(out + m * p.F, f, p.F, wide(out, p.F), g);
}

// op routed_swiglu_backward grid(M) block(128)
// A block per row, for the sum over it.
extern "C" __global__ void __launch_bounds__(128) routed_swiglu_backward(T_dout* dout, T_gate* gate, T_up* up, T_dweights* dweights, const T_weights* weights, const T_rows* rows, Params p) {
    u64 m = blockIdx.x;
    bool fast_d = wide(dout, p.F), fast_g = wide(gate, p.F), fast_u = wide(up, p.F);
    u32 slot = rows[m];
    float w = weights[slot], dot = 0.f;
    for (u32 f = threadIdx.x * 8; f < p.F; f += 1024) {
        float d[8], g[8], u[8];
        fetch(d, dout + m * p.F, f, p.F, fast_d);
        fetch(g, gate + m * p.F, f, p.F, fast_g);
        fetch(u, up + m * p.F, f, p.F, fast_u);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            float x = g[k], s = sigmoid(x), h = x * s * u[k], dy = w * d[k];
            dot += d[k] * h;
            d[k] = w * h;
            g[k] = dy * u[k] * s * (1.f + x * (1.f - s));
            u[k] = dy * x * s;
        }
        stash(dout + m * p.F, f, p.F, fast_d, d);
        stash(gate + m * p.F, f, p.F, fast_g, g);
        stash(up + m * p.F, f, p.F, fast_u, u);
    }
    dot = block_sum<4>(dot);
    if (threadIdx.x == 0) dweights[slot] = dot;
}

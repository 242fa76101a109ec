// SwiGLU and GeGLU. Each thread takes 8 values of one row.

// op swiglu_forward grid(N, ceil(F, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) swiglu_forward(T_out* out, const T_gate* gate, const T_up* up, Params p) {
    u64 n = blockIdx.x, f = (blockIdx.y * 256 + threadIdx.x) * 8;
    float g[8], u[8];
    fetch(g, gate + n * p.ld_gate, f, p.F, wide(gate, p.ld_gate));
    fetch(u, up + n * p.ld_up, f, p.F, wide(up, p.ld_up));
#pragma unroll
    for (int k = 0; k < 8; k++) g[k] = g[k] * gating(g[k], p.act, p.slope, p.cubic).s * u[k];
    stash(out + n * p.F, f, p.F, wide(out, p.F), g);
}

// op swiglu_backward grid(N, ceil(F, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) swiglu_backward(T_dout* dout, T_gate* gate, T_up* up, Params p) {
    u64 n = blockIdx.x, f = (blockIdx.y * 256 + threadIdx.x) * 8;
    bool fast_d = wide(dout, p.F), fast_g = wide(gate, p.ld_gate), fast_u = wide(up, p.ld_up);
    float d[8], g[8], u[8];
    fetch(d, dout + n * p.F, f, p.F, fast_d);
    fetch(g, gate + n * p.ld_gate, f, p.F, fast_g);
    fetch(u, up + n * p.ld_up, f, p.F, fast_u);
#pragma unroll
    for (int k = 0; k < 8; k++) {
        float dy = d[k], x = g[k];
        Gate act = gating(x, p.act, p.slope, p.cubic);
        d[k] = x * act.s * u[k];
        g[k] = dy * u[k] * act.slope;
        u[k] = dy * x * act.s;
    }
    stash(dout + n * p.F, f, p.F, fast_d, d);
    stash(gate + n * p.ld_gate, f, p.F, fast_g, g);
    stash(up + n * p.ld_up, f, p.F, fast_u, u);
}

// Activations without a gate. Each thread takes 8 values.

// op activation_forward grid(ceil(N*F, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) activation_forward(T_out* out, const T_inp* inp, Params p) {
    u64 i = (blockIdx.x * 256ull + threadIdx.x) * 8, end = (u64)p.N * p.F;
    float x[8];
    fetch(x, inp, i, end, wide(inp, 0));
#pragma unroll
    for (int k = 0; k < 8; k++) x[k] *= gating(x[k], p.act, p.slope, p.cubic).s;
    stash(out, i, end, wide(out, 0), x);
}

// op activation_backward grid(ceil(N*F, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) activation_backward(T_dout* dout, T_inp* inp, Params p) {
    u64 i = (blockIdx.x * 256ull + threadIdx.x) * 8, end = (u64)p.N * p.F;
    bool fast_d = wide(dout, 0), fast_x = wide(inp, 0);
    float d[8], x[8];
    fetch(d, dout, i, end, fast_d);
    fetch(x, inp, i, end, fast_x);
#pragma unroll
    for (int k = 0; k < 8; k++) {
        Gate g = gating(x[k], p.act, p.slope, p.cubic);
        float dy = d[k];
        d[k] = x[k] * g.s;
        x[k] = dy * g.slope;
    }
    stash(dout, i, end, fast_d, d);
    stash(inp, i, end, fast_x, x);
}

// Residual connection. Each thread takes 8 values.

// op residual_forward grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) residual_forward(T_out* out, const T_a* a, const T_b* b, Params p) {
    u64 i = (blockIdx.x * 256ull + threadIdx.x) * 8;
    float x[8], y[8];
    fetch(x, a, i, p.P, wide(a, 0));
    fetch(y, b, i, p.P, wide(b, 0));
#pragma unroll
    for (int k = 0; k < 8; k++) x[k] += p.scale * y[k];
    stash(out, i, p.P, wide(out, 0), x);
}

// op residual_backward grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) residual_backward(T_dinp* dinp, const T_dout* dout, Params p) {
    u64 i = (blockIdx.x * 256ull + threadIdx.x) * 8;
    float x[8], y[8];
    fetch(x, dinp, i, p.P, wide(dinp, 0));
    fetch(y, dout, i, p.P, wide(dout, 0));
#pragma unroll
    for (int k = 0; k < 8; k++) x[k] += p.scale * y[k];
    stash(dinp, i, p.P, wide(dinp, 0), x);
}

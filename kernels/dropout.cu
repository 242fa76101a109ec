// Dropout by a hash of seeds and index. Each thread takes 8 values.

// scale where element i is kept, else 0.
INLINE float kept(const Params& p, u32 i) { return random_bits(i, p.seed, p.stream) >= p.drop ? p.scale : 0.f; }

// op dropout_forward grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) dropout_forward(T_out* out, const T_inp* inp, Params p) {
    u64 i = (blockIdx.x * 256ull + threadIdx.x) * 8;
    float x[8];
    fetch(x, inp, i, p.P, wide(inp, 0));
#pragma unroll
    for (int k = 0; k < 8; k++) x[k] *= kept(p, (u32)i + k);
    stash(out, i, p.P, wide(out, 0), x);
}

// op dropout_backward grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) dropout_backward(T_dinp* dinp, const T_dout* dout, Params p) {
    u64 i = (blockIdx.x * 256ull + threadIdx.x) * 8;
    float x[8], y[8];
    fetch(x, dinp, i, p.P, wide(dinp, 0));
    fetch(y, dout, i, p.P, wide(dout, 0));
#pragma unroll
    for (int k = 0; k < 8; k++) x[k] += y[k] * kept(p, (u32)i + k);
    stash(dinp, i, p.P, wide(dinp, 0), x);
}

// Cast: the same values in another storage type. Each thread takes 8 values.

// op cast_forward grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) cast_forward(T_out* out, const T_inp* inp, Params p) {
    u64 i = (blockIdx.x * 256ull + threadIdx.x) * 8;
    float x[8];
    fetch(x, inp, i, p.P, wide(inp, 0));
    stash(out, i, p.P, wide(out, 0), x);
}

// Gradient norm in two fixed stages: the same gradients always give the same bits.

// op gradnorm_partial grid(ceil(P, 4096)) block(256)
extern "C" __global__ void __launch_bounds__(256) gradnorm_partial(T_partial* partial, const T_inp* inp, Params p) {
    u64 first = blockIdx.x * 4096ull;
    bool fast = wide(inp, 0);
    float x[2][8], sum = 0.f;
#pragma unroll
    for (int i = 0; i < 2; i++) fetch(x[i], inp, first + (i * 256 + threadIdx.x) * 8, p.P, fast);
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int k = 0; k < 8; k++) sum += x[i][k] * x[i][k];
    sum = block_sum<8>(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// op gradnorm_finish grid(1) block(1024)
extern "C" __global__ void __launch_bounds__(1024) gradnorm_finish(T_norm* norm, T_scale* scale, const T_partial* partial, Params p) {
    float sum = 0.f;
#pragma unroll 8
    for (u32 i = threadIdx.x; i < p.P; i += 1024) sum += partial[i];
    sum = block_sum<32>(sum);
    if (threadIdx.x) return;
    norm[0] = p.unscale * sqrtf(sum);
    float factor = p.max_norm / (norm[0] + 1e-6f);
    scale[0] = p.unscale * (p.max_norm > 0.f && factor < 1.f ? factor : 1.f);
}

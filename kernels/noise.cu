// Uniform noise by a hash of seeds and index. Each thread takes 8 values.

// op noise_forward grid(ceil(N*C, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) noise_forward(T_x* x, const T_magnitude* magnitude, Params p) {
    u64 i = (blockIdx.x * 256ull + threadIdx.x) * 8, end = (u64)p.N * p.C;
    float y[8];
    fetch(y, x, i, end, wide(x, 0));
#pragma unroll
    for (int k = 0; k < 8; k++) {
        if (i + k >= end) break;
        float u = (float)(random_bits((u32)(i + k), p.seed, p.stream) >> 8) * (1.f / 8388608.f) - 1.f;
        y[k] += magnitude[(i + k) / p.C] * u;
    }
    stash(x, i, end, wide(x, 0), y);
}

// Block-wise 8-bit quantization: a warp holds one block of 256 values, 8 to a lane.

// op dyn8_quantize grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) dyn8_quantize(T_codes* codes, T_absmax* absmax, const T_inp* inp, const T_map* map, Params p) {
    __shared__ Midpoints<false> between;
    between.fill(map);
    u64 i = (blockIdx.x * 256ull + threadIdx.x) * 8, P = p.P;
    float x[8], max = 0.f;
    fetch(x, inp, i, P, wide(inp, 0));
#pragma unroll
    for (int k = 0; k < 8; k++) max = fmaxf(max, fabsf(x[k]));
    max = warp_max(max);
    if (i >= P) return;
    if (threadIdx.x % 32 == 0) absmax[i / 256] = max;
    // a block of zeros has no scale: 0·1/tiny stays 0
    float scale = __frcp_rn(fmaxf(max, 1.17549435e-38f));
#pragma unroll
    for (int k = 0; k < 8; k++)
        if (i + k < P) codes[i + k] = (u8)between.nearest(__fmul_rn(x[k], scale));
}

// op dyn8_dequantize grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) dyn8_dequantize(T_out* out, const T_codes* codes, const T_absmax* absmax, const T_map* map, Params p) {
    __shared__ float levels[256];
    levels[threadIdx.x] = map[threadIdx.x];
    __syncthreads();
    u64 i = (blockIdx.x * 256ull + threadIdx.x) * 8, P = p.P;
    if (i >= P) return;
    float x[8], scale = absmax[i / 256];
    bool whole = ((u64)codes & 7) == 0 && i + 8 <= P;
    uint2 word = whole ? *(const uint2*)(codes + i) : make_uint2(0, 0);
#pragma unroll
    for (int k = 0; k < 8; k++) {
        u32 code = whole ? (k < 4 ? word.x : word.y) >> (k % 4 * 8) & 255 : i + k < P ? codes[i + k] : 0;
        x[k] = levels[code] * scale;
    }
    stash(out, i, P, wide(out, 0), x);
}

// 8-bit weights with one scale a row; 8 values to a thread at a time.

// op int8_quantize grid(O) block(256)
extern "C" __global__ void __launch_bounds__(256) int8_quantize(T_codes* codes, T_scb* scb, const T_inp* inp, Params p) {
    __shared__ float part[8];
    u64 o = blockIdx.x, C = p.C;
    const T_inp* row = inp + o * C;
    bool fast = wide(inp, p.C);
    float x[8], max = 0.f;
    for (u64 c = threadIdx.x * 8; c < C; c += 2048) {
        fetch(x, row, c, C, fast);
#pragma unroll
        for (int k = 0; k < 8; k++) max = fmaxf(max, fabsf(x[k]));
    }
    max = warp_max(max);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = max;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < 8; w++) max = fmaxf(max, part[w]);
    if (threadIdx.x == 0) scb[o] = max;
    // a row of zeros has no scale: its codes are 0
    float scale = max > 0.f ? __fdiv_rn(127.f, max) : 0.f;
    for (u64 c = threadIdx.x * 8; c < C; c += 2048) {
        fetch(x, row, c, C, fast);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            int code = __float2int_rn(fminf(fmaxf(__fmul_rn(x[k], scale), -127.f), 127.f));
            if (c + k < C) codes[o * C + c + k] = (u8)(code & 255);
        }
    }
}

// op int8_dequantize grid(O, ceil(C, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) int8_dequantize(T_out* out, const T_codes* codes, const T_scb* scb, Params p) {
    u64 o = blockIdx.x, C = p.C, c = blockIdx.y * 2048ull + threadIdx.x * 8;
    if (c >= C) return;
    const T_codes* at = codes + o * C + c;
    float x[8], scale = scb[o];
    bool whole = ((u64)at & 7) == 0 && c + 8 <= C;
    uint2 word = whole ? *(const uint2*)at : make_uint2(0, 0);
#pragma unroll
    for (int k = 0; k < 8; k++) {
        u32 code = whole ? (k < 4 ? word.x : word.y) >> (k % 4 * 8) & 255 : c + k < C ? at[k] : 0;
        x[k] = __fdiv_rn(__fmul_rn((float)(signed char)code, scale), 127.f);
    }
    stash(out + o * C, c, C, wide(out, p.C), x);
}

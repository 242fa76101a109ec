// MXFP4: 8 values, 4 bytes of codes, to a thread at a time.

// By bits: an f32 of exponent e2 - 1 and the mantissa bit on top; 1 is the half; 0 is 0.
INLINE float level(u32 code) {
    u32 e2 = (code >> 1) & 3, size = e2 ? ((e2 + 126) << 23) | (code & 1) << 22 : (code & 1) * 0x3f000000u;
    return __uint_as_float(size | (code & 8) << 28);
}
INLINE float scale(u32 byte) {
    return __uint_as_float(byte == 255 ? 0x7fc00000u : byte ? byte << 23 : 1u << 22);
}

// The 4 bytes that hold values i..i+8 of P, zeros beyond the end; codes start at a multiple of 4 bytes, i is one of 8.
INLINE u32 codes_at(const u8* codes, u64 i, u64 P) {
    if (i + 8 <= P) return ((const u32*)codes)[i / 8];
    u32 word = 0;
    for (u64 k = i / 2; k < (P + 1) / 2; k++) word |= (u32)codes[k] << (k - i / 2) * 8;
    return word;
}

// op mxfp4_dequantize grid(ceil(P, 8192)) block(256)
// 4 rounds of 8 values per thread, each round's loads and stores side by side in a warp.
extern "C" __global__ void __launch_bounds__(256) mxfp4_dequantize(T_out* out, const T_codes* codes, const T_scales* scales, Params p) {
    u64 first = blockIdx.x * 8192ull + threadIdx.x * 8, P = p.P;
    bool fast = wide(out, 0);
    u32 word[4];
    float size[4];
#pragma unroll
    for (int r = 0; r < 4; r++) {
        u64 i = first + r * 2048;
        word[r] = i < P ? codes_at(codes, i, P) : 0;
        size[r] = i < P ? scale(scales[i / 32]) : 0.f;
    }
#pragma unroll
    for (int r = 0; r < 4; r++) {
        float x[8];
#pragma unroll
        for (int k = 0; k < 8; k++) x[k] = level(word[r] >> 4 * k) * size[r];
        stash(out, first + r * 2048, P, fast, x);
    }
}

// ggml's block formats: 8 values to a thread. Blocks have even sizes, so that codes are read by halves of words.
// Products and sums are rounded one by one, as the reference does.

INLINE float half_at(const u8* at) { return widen(*(const f16*)at); }
// Four bytes from an even place.
INLINE u32 word(const u8* at) { return ((const u16*)at)[0] | (u32)((const u16*)at)[1] << 16; }
INLINE u32 code(u32 w, int k, u32 bits) { return w >> k * 8 & ((1u << bits) - 1); }
INLINE float affine(float d, float q, float m) { return __fadd_rn(__fmul_rn(d, q), m); }

// The 8 values from i on are x[k] = value(k); i is a multiple of 8, and P is one of 32.
template <typename T, typename F> INLINE void each(T* out, u64 i, u64 P, F value) {
    float x[8];
#pragma unroll
    for (int k = 0; k < 8; k++) x[k] = value(k);
    stash(out, i, P, wide(out, 0), x);
}

// The codes of 8 values of a block: two words, of which the bits from `shift` on count.
struct Codes {
    u32 word[2];
    __device__ __forceinline__ u32 at(int k, u32 bits) const { return code(word[k / 4], k % 4, bits); }
};
INLINE Codes codes(const u8* at, u32 shift) { return {{word(at) >> shift, word(at + 4) >> shift}}; }
// Of a block of 32: its 4-bit codes, the low halves of 16 bytes, then the high ones.
INLINE Codes nibbles(const u8* q, u32 j) { return codes(q + j % 16, j / 16 * 4); }

// Scale and minimum of part s < 8 from 12 bytes: 6 bits each, those of the last four split between two bytes.
INLINE void scale_min(const u8* sm, u32 s, float& scale, float& min) {
    u32 a = sm[s], b = sm[s + 4];
    u32 top = s < 4 ? 0 : sm[s - 4] >> 6 << 4;
    scale = (float)(s < 4 ? a & 63 : (b & 15) | top);
    min = (float)(s < 4 ? b & 63 : b >> 4 | a >> 6 << 4);
}

// op q4_0_dequantize grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) q4_0_dequantize(T_out* out, const T_blocks* blocks, Params p) {
    u64 i = (blockIdx.x * 256ull + threadIdx.x) * 8;
    if (i >= p.P) return;
    const u8* block = blocks + i / 32 * 18;
    float d = half_at(block);
    Codes q = nibbles(block + 2, i % 32);
    each(out, i, p.P, [&](int k) { return d * ((float)q.at(k, 4) - 8.f); });
}

// op q4_1_dequantize grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) q4_1_dequantize(T_out* out, const T_blocks* blocks, Params p) {
    u64 i = (blockIdx.x * 256ull + threadIdx.x) * 8;
    if (i >= p.P) return;
    const u8* block = blocks + i / 32 * 20;
    float d = half_at(block), m = half_at(block + 2);
    Codes q = nibbles(block + 4, i % 32);
    each(out, i, p.P, [&](int k) { return affine(d, (float)q.at(k, 4), m); });
}

// op q5_0_dequantize grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) q5_0_dequantize(T_out* out, const T_blocks* blocks, Params p) {
    u64 i = (blockIdx.x * 256ull + threadIdx.x) * 8;
    if (i >= p.P) return;
    const u8* block = blocks + i / 32 * 22;
    float d = half_at(block);
    u32 h = word(block + 2) >> i % 32;
    Codes q = nibbles(block + 6, i % 32);
    each(out, i, p.P, [&](int k) { return d * ((float)(q.at(k, 4) | (h >> k & 1) << 4) - 16.f); });
}

// op q5_1_dequantize grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) q5_1_dequantize(T_out* out, const T_blocks* blocks, Params p) {
    u64 i = (blockIdx.x * 256ull + threadIdx.x) * 8;
    if (i >= p.P) return;
    const u8* block = blocks + i / 32 * 24;
    float d = half_at(block), m = half_at(block + 2);
    u32 h = word(block + 4) >> i % 32;
    Codes q = nibbles(block + 8, i % 32);
    each(out, i, p.P, [&](int k) { return affine(d, (float)(q.at(k, 4) | (h >> k & 1) << 4), m); });
}

// op q8_0_dequantize grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) q8_0_dequantize(T_out* out, const T_blocks* blocks, Params p) {
    u64 i = (blockIdx.x * 256ull + threadIdx.x) * 8;
    if (i >= p.P) return;
    const u8* block = blocks + i / 32 * 34;
    float d = half_at(block);
    Codes q = codes(block + 2 + i % 32, 0);
    each(out, i, p.P, [&](int k) { return d * (float)(signed char)q.at(k, 8); });
}

// op q4_k_dequantize grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) q4_k_dequantize(T_out* out, const T_blocks* blocks, Params p) {
    u64 i = (blockIdx.x * 256ull + threadIdx.x) * 8;
    if (i >= p.P) return;
    const u8* block = blocks + i / 256 * 144;
    u32 s = i % 256 / 32;
    float scale, min;
    scale_min(block + 4, s, scale, min);
    scale *= half_at(block), min *= half_at(block + 2);
    Codes q = codes(block + 16 + s / 2 * 32 + i % 32, s % 2 * 4);
    each(out, i, p.P, [&](int k) { return affine(scale, (float)q.at(k, 4), -min); });
}

// op q5_k_dequantize grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) q5_k_dequantize(T_out* out, const T_blocks* blocks, Params p) {
    u64 i = (blockIdx.x * 256ull + threadIdx.x) * 8;
    if (i >= p.P) return;
    const u8* block = blocks + i / 256 * 176;
    u32 s = i % 256 / 32;
    float scale, min;
    scale_min(block + 4, s, scale, min);
    scale *= half_at(block), min *= half_at(block + 2);
    Codes q = codes(block + 48 + s / 2 * 32 + i % 32, s % 2 * 4), h = codes(block + 16 + i % 32, s);
    each(out, i, p.P, [&](int k) { return affine(scale, (float)(q.at(k, 4) | h.at(k, 1) << 4), -min); });
}

// op q6_k_dequantize grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) q6_k_dequantize(T_out* out, const T_blocks* blocks, Params p) {
    u64 i = (blockIdx.x * 256ull + threadIdx.x) * 8;
    if (i >= p.P) return;
    const u8* block = blocks + i / 256 * 210;
    // halves of 128, quarters of 32 in them: two quarters share the low halves of 64 bytes, two the high ones
    u32 n = i % 256 / 128, quarter = i % 128 / 32, l = i % 32;
    float scale = half_at(block + 208) * (float)(signed char)block[192 + i % 256 / 16];
    Codes q = codes(block + n * 64 + quarter % 2 * 32 + l, quarter / 2 * 4);
    Codes h = codes(block + 128 + n * 32 + l, quarter * 2);
    each(out, i, p.P, [&](int k) { return scale * ((float)(q.at(k, 4) | h.at(k, 2) << 4) - 32.f); });
}

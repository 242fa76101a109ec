// ggml's block formats: 8 values to a thread. Blocks have even sizes, so that codes are read by halves of words.
// Products and sums are rounded one by one, as the reference does.

INLINE float half_at(const u8* at) { return widen(*(const f16*)at); }
// Four bytes from an even place.
INLINE u32 word(const u8* at) { return ((const u16*)at)[0] | (u32)((const u16*)at)[1] << 16; }
INLINE u32 code(u32 w, int k, u32 bits) { return w >> k * 8 & ((1u << bits) - 1); }
INLINE float affine(float d, float q, float m) { return __fadd_rn(__fmul_rn(d, q), m); }

// x[k] = value(k).
template <typename F> INLINE void each(float (&x)[8], F value) {
#pragma unroll
    for (int k = 0; k < 8; k++) x[k] = value(k);
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

// The 8 values from i on, by format; i is a multiple of 8.
INLINE void q4_0(float (&x)[8], const u8* blocks, u64 i) {
    const u8* block = blocks + i / 32 * 18;
    float d = half_at(block);
    Codes q = nibbles(block + 2, i % 32);
    each(x, [&](int k) { return d * ((float)q.at(k, 4) - 8.f); });
}
INLINE void q4_1(float (&x)[8], const u8* blocks, u64 i) {
    const u8* block = blocks + i / 32 * 20;
    float d = half_at(block), m = half_at(block + 2);
    Codes q = nibbles(block + 4, i % 32);
    each(x, [&](int k) { return affine(d, (float)q.at(k, 4), m); });
}
INLINE void q5_0(float (&x)[8], const u8* blocks, u64 i) {
    const u8* block = blocks + i / 32 * 22;
    float d = half_at(block);
    u32 h = word(block + 2) >> i % 32;
    Codes q = nibbles(block + 6, i % 32);
    each(x, [&](int k) { return d * ((float)(q.at(k, 4) | (h >> k & 1) << 4) - 16.f); });
}
INLINE void q5_1(float (&x)[8], const u8* blocks, u64 i) {
    const u8* block = blocks + i / 32 * 24;
    float d = half_at(block), m = half_at(block + 2);
    u32 h = word(block + 4) >> i % 32;
    Codes q = nibbles(block + 8, i % 32);
    each(x, [&](int k) { return affine(d, (float)(q.at(k, 4) | (h >> k & 1) << 4), m); });
}
INLINE void q8_0(float (&x)[8], const u8* blocks, u64 i) {
    const u8* block = blocks + i / 32 * 34;
    float d = half_at(block);
    Codes q = codes(block + 2 + i % 32, 0);
    each(x, [&](int k) { return d * (float)(signed char)q.at(k, 8); });
}
INLINE void q4_k(float (&x)[8], const u8* blocks, u64 i) {
    const u8* block = blocks + i / 256 * 144;
    u32 s = i % 256 / 32;
    float scale, min;
    scale_min(block + 4, s, scale, min);
    scale *= half_at(block), min *= half_at(block + 2);
    Codes q = codes(block + 16 + s / 2 * 32 + i % 32, s % 2 * 4);
    each(x, [&](int k) { return affine(scale, (float)q.at(k, 4), -min); });
}
INLINE void q5_k(float (&x)[8], const u8* blocks, u64 i) {
    const u8* block = blocks + i / 256 * 176;
    u32 s = i % 256 / 32;
    float scale, min;
    scale_min(block + 4, s, scale, min);
    scale *= half_at(block), min *= half_at(block + 2);
    Codes q = codes(block + 48 + s / 2 * 32 + i % 32, s % 2 * 4), h = codes(block + 16 + i % 32, s);
    each(x, [&](int k) { return affine(scale, (float)(q.at(k, 4) | h.at(k, 1) << 4), -min); });
}
INLINE void q6_k(float (&x)[8], const u8* blocks, u64 i) {
    const u8* block = blocks + i / 256 * 210;
    // halves of 128, quarters of 32 in them: two quarters share the low halves of 64 bytes, two the high ones
    u32 n = i % 256 / 128, quarter = i % 128 / 32, l = i % 32;
    float scale = half_at(block + 208) * (float)(signed char)block[192 + i % 256 / 16];
    Codes q = codes(block + n * 64 + quarter % 2 * 32 + l, quarter / 2 * 4);
    Codes h = codes(block + 128 + n * 32 + l, quarter * 2);
    each(x, [&](int k) { return scale * ((float)(q.at(k, 4) | h.at(k, 2) << 4) - 32.f); });
}

typedef void (*Eight)(float (&)[8], const u8*, u64);

template <Eight EIGHT, typename T> INLINE void unpack(T* out, const u8* blocks, u64 P) {
    u64 i = (blockIdx.x * 256ull + threadIdx.x) * 8;
    if (i >= P) return;
    float x[8];
    EIGHT(x, blocks, i);
    stash(out, i, P, wide(out, 0), x);
}

// A warp makes ROWS outputs of up to TOKENS rows of inp, 8 values of a row to a lane.
#define ROWS 2
#define TOKENS 8
template <Eight EIGHT, typename O, typename I, typename S> INLINE void few(O* out, const I* inp, const u8* blocks, const S& p) {
    u32 lane = threadIdx.x % 32, o0 = (blockIdx.x * 8 + threadIdx.x / 32) * ROWS, n0 = blockIdx.y * TOKENS;
    if (o0 >= p.O) return;
    bool aligned = wide(inp, p.C);
    float sum[ROWS][TOKENS] = {};
    for (u32 c = lane * 8; c < p.C; c += 256) {
        float w[ROWS][8];
#pragma unroll
        for (int r = 0; r < ROWS; r++) EIGHT(w[r], blocks, (u64)(p.first + min(o0 + r, p.O - 1)) * p.C + c);
#pragma unroll
        for (int k = 0; k < TOKENS; k++) {
            if (n0 + k >= p.N) break;
            float x[8];
            fetch(x, inp + (u64)(n0 + k) * p.C, c, p.C, aligned);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int i = 0; i < 8; i++) sum[r][k] += w[r][i] * x[i];
        }
    }
#pragma unroll
    for (int k = 0; k < TOKENS; k++)
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float all = warp_sum(sum[r][k]);
            if (lane == 0 && n0 + k < p.N && o0 + r < p.O) put(out + (u64)(n0 + k) * p.O + o0 + r, all);
        }
}

// op q4_0_dequantize grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) q4_0_dequantize(T_out* out, const T_blocks* blocks, Params p) { unpack<q4_0>(out, blocks, p.P); }

// op q4_1_dequantize grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) q4_1_dequantize(T_out* out, const T_blocks* blocks, Params p) { unpack<q4_1>(out, blocks, p.P); }

// op q5_0_dequantize grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) q5_0_dequantize(T_out* out, const T_blocks* blocks, Params p) { unpack<q5_0>(out, blocks, p.P); }

// op q5_1_dequantize grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) q5_1_dequantize(T_out* out, const T_blocks* blocks, Params p) { unpack<q5_1>(out, blocks, p.P); }

// op q8_0_dequantize grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) q8_0_dequantize(T_out* out, const T_blocks* blocks, Params p) { unpack<q8_0>(out, blocks, p.P); }

// op q4_k_dequantize grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) q4_k_dequantize(T_out* out, const T_blocks* blocks, Params p) { unpack<q4_k>(out, blocks, p.P); }

// op q5_k_dequantize grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) q5_k_dequantize(T_out* out, const T_blocks* blocks, Params p) { unpack<q5_k>(out, blocks, p.P); }

// op q6_k_dequantize grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) q6_k_dequantize(T_out* out, const T_blocks* blocks, Params p) { unpack<q6_k>(out, blocks, p.P); }

// op thin_gguf grid(ceil(O, 16), ceil(N, 8)) block(256)
extern "C" __global__ void __launch_bounds__(256) thin_gguf(T_out* out, const T_inp* inp, const T_blocks* blocks, Params p) {
    switch (p.format) {
    case 0: return few<q4_0>(out, inp, blocks, p);
    case 1: return few<q4_1>(out, inp, blocks, p);
    case 2: return few<q5_0>(out, inp, blocks, p);
    case 3: return few<q5_1>(out, inp, blocks, p);
    case 4: return few<q8_0>(out, inp, blocks, p);
    case 5: return few<q4_k>(out, inp, blocks, p);
    case 6: return few<q5_k>(out, inp, blocks, p);
    case 7: return few<q6_k>(out, inp, blocks, p);
    }
}

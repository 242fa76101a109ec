// Rows in e4m3 with a scale a row: made, read, and turned.

// e4m3 of two values, the first in the low byte.
INLINE u32 e4m3_pair(float lo, float hi) {
#if __CUDA_ARCH__ >= 890
    u16 pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(hi), "f"(lo));
    return pair;
#else
    u32 pair = 0;
#pragma unroll
    for (int k = 0; k < 2; k++) {
        u32 bits = __float_as_uint(k ? hi : lo), a = bits & 0x7fffffffu;
        u32 normal = (a - 0x3c000000u + 0x7ffffu + ((a >> 20) & 1u)) >> 20;
        // 2^14 has the last place of a subnormal code
        u32 small = __float_as_uint(__fadd_rn(__uint_as_float(a), 16384.f)) - 0x46800000u;
        u32 code = a < 0x3c800000u ? small : a > 0x43e00000u ? 0x7eu : normal;
        if (a > 0x7f800000u) code = 0x7fu;
        pair |= (code | ((bits >> 24) & 0x80u)) << 8 * k;
    }
    return pair;
#endif
}

// 8 values as they are stored.
template <typename T> struct __align__(16) Eight { T at[8]; };

// x times the 8 factors from c on.
INLINE void times(float (&x)[8], const float* by, u64 c, u64 C) {
    float y[8];
    fetch(y, by, c, C, wide(by, 8));
#pragma unroll
    for (int k = 0; k < 8; k++) x[k] = __fmul_rn(x[k], y[k]);
}

INLINE void put_codes(u8* row, u64 c, u64 C, const float (&x)[8], float inverse) {
    u32 word[2];
#pragma unroll
    for (int k = 0; k < 2; k++) {
        u32 lo = e4m3_pair(__fmul_rn(x[4 * k], inverse), __fmul_rn(x[4 * k + 1], inverse));
        u32 hi = e4m3_pair(__fmul_rn(x[4 * k + 2], inverse), __fmul_rn(x[4 * k + 3], inverse));
        word[k] = lo | hi << 16;
    }
    stash_codes(row, c, C, word);
}

// op fp8_quantize grid(N) block(256)
// A row is read once where it is short enough to be held: KEPT times 2048 values. Few by more blocks at a time.
#ifndef KEPT
#define KEPT 8
#endif
extern "C" __global__ void __launch_bounds__(256, KEPT == 2 && sizeof(T_inp) == 2 ? 6 : 1) fp8_quantize(T_codes* codes, T_scales* scales, const T_inp* inp, const T_by* by, Params p) {
    __shared__ float part[8];
    u64 C = p.C, n = blockIdx.x, c0 = threadIdx.x * 8ull;
    const T_inp* row = inp + n * C;
    bool fast = wide(inp, p.C);
    Eight<T_inp> kept[KEPT];
    float x[8], most = 1e-30f;
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        u64 c = i * 2048 + c0;
        if (c >= C) continue;
        if (fast) kept[i] = *(const Eight<T_inp>*)(row + c);
        else {
#pragma unroll
            for (int k = 0; k < 8; k++) kept[i].at[k] = row[c + k < C ? c + k : C - 1];
        }
    }
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        u64 c = i * 2048 + c0;
        if (c >= C) continue;
        load8(x, kept[i].at);
        if (p.by) times(x, by, c, C);
#pragma unroll
        for (int k = 0; k < 8; k++) most = fmaxf(most, fabsf(x[k]));
    }
    for (u64 c = KEPT * 2048 + c0; c < C; c += 2048) {
        fetch(x, row, c, C, fast);
        if (p.by) times(x, by, c, C);
#pragma unroll
        for (int k = 0; k < 8; k++) most = fmaxf(most, fabsf(x[k]));
    }
    most = warp_max(most);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = most;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < 8; w++) most = fmaxf(most, part[w]);
    float scale = __fdiv_rn(most, 448.f), inverse = __fdiv_rn(1.f, scale);
    if (threadIdx.x == 0) scales[n] = scale;
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        u64 c = i * 2048 + c0;
        if (c >= C) continue;
        load8(x, kept[i].at);
        if (p.by) times(x, by, c, C);
        put_codes(codes + n * C, c, C, x, inverse);
    }
    for (u64 c = KEPT * 2048 + c0; c < C; c += 2048) {
        fetch(x, row, c, C, fast);
        if (p.by) times(x, by, c, C);
        put_codes(codes + n * C, c, C, x, inverse);
    }
}

// op fp8_dequantize grid(N, ceil(C, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) fp8_dequantize(T_out* out, const T_codes* codes, const T_scales* scales, Params p) {
    u64 n = blockIdx.x, C = p.C, c = blockIdx.y * 2048ull + threadIdx.x * 8;
    if (c >= C) return;
    uint2 word = fetch_codes(codes + n * C, c, C);
    float x[8], scale = scales[n];
#pragma unroll
    for (int k = 0; k < 8; k++) x[k] = __fmul_rn(e4m3_value((k < 4 ? word.x : word.y) >> k % 4 * 8 & 255), scale);
    stash(out + n * C, c, C, wide(out, p.C), x);
}

// op fp8_transpose grid(ceil(C, 128), ceil(N, 128)) block(256)
// A tile of 128 x 128 bytes, turned in blocks of 4 x 4. Word i of the tile's column c lies at i ^ c/4, in another bank for every lane.
INLINE u32 word_at(const u8* row, u64 c, u64 C, bool whole) {
    if (whole && c + 4 <= C) return *(const u32*)(row + c);
    u32 word = 0;
#pragma unroll
    for (int k = 0; k < 4; k++)
        if (c + k < C) word |= (u32)row[c + k] << 8 * k;
    return word;
}
extern "C" __global__ void __launch_bounds__(256) fp8_transpose(T_out* out, const T_inp* inp, Params p) {
    __shared__ u32 tile[128 * 32];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u64 N = p.N, C = p.C, n0 = blockIdx.y * 128ull, c0 = blockIdx.x * 128ull;
    bool whole = ((u64)inp & 3) == 0 && C % 4 == 0;
    for (u32 i = warp; i < 32; i += 8) {
        u32 r[4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            u64 n = n0 + 4 * i + k;
            r[k] = n < N ? word_at(inp + n * C, c0 + 4 * lane, C, whole) : 0u;
        }
        u32 low01 = __byte_perm(r[0], r[1], 0x5140), high01 = __byte_perm(r[0], r[1], 0x7362);
        u32 low23 = __byte_perm(r[2], r[3], 0x5140), high23 = __byte_perm(r[2], r[3], 0x7362);
        u32* at = tile + 4 * lane * 32 + (i ^ lane);
        at[0] = __byte_perm(low01, low23, 0x5410), at[32] = __byte_perm(low01, low23, 0x7632);
        at[64] = __byte_perm(high01, high23, 0x5410), at[96] = __byte_perm(high01, high23, 0x7632);
    }
    __syncthreads();
    bool fits = ((u64)out & 3) == 0 && N % 4 == 0;
    for (u32 j = warp; j < 128; j += 8) {
        u64 c = c0 + j, n = n0 + 4 * lane;
        if (c >= C) break;
        u32 word = tile[j * 32 + (lane ^ j / 4)];
        if (fits && n + 4 <= N) *(u32*)(out + c * N + n) = word;
        else {
#pragma unroll
            for (int k = 0; k < 4; k++)
                if (n + k < N) out[c * N + n + k] = (u8)(word >> 8 * k);
        }
    }
}

// Storage types and their conversions, loads and stores of 8 values, reductions. No CUDA header: a user's machine has none.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
struct bf16 { u16 bits; };
struct f16 { u16 bits; };

#define INLINE static __device__ __forceinline__
#define INLINE_METHOD __device__ __forceinline__
// Stops the program loudly where data (an id, a label, a position) points outside its table.
#define REQUIRE(condition) do { if (!(condition)) __trap(); } while (0)

// What every kernel begins with (src/backend/cuda_text.rs). Where its launch allows it, its blocks are there while those of the kernel
// before it still end; here they wait until that one is done and what it wrote is seen, and then let the next one come.
INLINE void begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

INLINE float widen(float x) { return x; }
INLINE float widen(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
INLINE float widen(f16 x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits)); return y; }

INLINE u32 bf16_bits(float x) {
#if __CUDA_ARCH__ >= 800
    u16 h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return h;
#else
    u32 bits = __float_as_uint(x);
    bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
#endif
}
INLINE u32 f16_bits(float x) { u16 h; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x)); return h; }

INLINE void put(float* at, float x) { *at = x; }
INLINE void put(bf16* at, float x) { at->bits = (u16)bf16_bits(x); }
INLINE void put(f16* at, float x) { at->bits = (u16)f16_bits(x); }

// x as a T holds it.
template <typename T> INLINE float stored(float x) {
    T y;
    put(&y, x);
    return widen(y);
}

// Two values in a word, the first in the low half.
template <typename T> INLINE u32 pack(float lo, float hi);
template <> __device__ __forceinline__ u32 pack<bf16>(float lo, float hi) {
#if __CUDA_ARCH__ >= 800
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(hi), "f"(lo));
    return word;
#else
    return bf16_bits(lo) | bf16_bits(hi) << 16;
#endif
}
template <> __device__ __forceinline__ u32 pack<f16>(float lo, float hi) {
#if __CUDA_ARCH__ >= 800
    u32 word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(hi), "f"(lo));
    return word;
#else
    return f16_bits(lo) | f16_bits(hi) << 16;
#endif
}
template <typename T> INLINE void unpack(u32 word, float& lo, float& hi) {
    T a, b;
    a.bits = (u16)word, b.bits = (u16)(word >> 16);
    lo = widen(a), hi = widen(b);
}

// The same of 8 values.
template <typename T> INLINE uint4 pack8(const float (&x)[8]) {
    return make_uint4(pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(x[4], x[5]), pack<T>(x[6], x[7]));
}
template <typename T> INLINE void unpack8(float (&x)[8], uint4 w) {
    unpack<T>(w.x, x[0], x[1]), unpack<T>(w.y, x[2], x[3]), unpack<T>(w.z, x[4], x[5]), unpack<T>(w.w, x[6], x[7]);
}

// 8 values at an address that is a multiple of 16 bytes.
INLINE void load8(float (&x)[8], const float* at) {
    float4 a = ((const float4*)at)[0], b = ((const float4*)at)[1];
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}
template <typename T> INLINE void load8(float (&x)[8], const T* at) { unpack8<T>(x, *(const uint4*)at); }
INLINE void store8(float* at, const float (&x)[8]) {
    ((float4*)at)[0] = make_float4(x[0], x[1], x[2], x[3]);
    ((float4*)at)[1] = make_float4(x[4], x[5], x[6], x[7]);
}
template <typename T> INLINE void store8(T* at, const float (&x)[8]) {
    *(uint4*)at = pack8<T>(x);
}

// Elements i..i+8 of a row that ends at `end`, zeros beyond; `wide` says that the row starts at a multiple of 16 bytes.
template <typename T> INLINE void fetch(float (&x)[8], const T* row, u64 i, u64 end, bool wide) {
    if (wide && i + 8 <= end) return load8(x, row + i);
#pragma unroll
    for (int k = 0; k < 8; k++) x[k] = i + k < end ? widen(row[i + k]) : 0.f;
}
template <typename T> INLINE void stash(T* row, u64 i, u64 end, bool wide, const float (&x)[8]) {
    if (wide && i + 8 <= end) return store8(row + i, x);
#pragma unroll
    for (int k = 0; k < 8; k++)
        if (i + k < end) put(row + i + k, x[k]);
}
// Can rows from `at`, a multiple of `ld` elements apart, be read 16 bytes at a time?
INLINE bool wide(const void* at, u32 ld) { return ((u64)at & 15) == 0 && ld % 8 == 0; }

INLINE float warp_sum(float x) {
#pragma unroll
    for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
    return x;
}
INLINE float warp_max(float x) {
#pragma unroll
    for (int o = 16; o; o >>= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, o));
    return x;
}
// The sum over all threads of a block of WARPS warps, in every thread. May be called again at once.
template <int WARPS> INLINE float block_sum(float x) {
    __shared__ float part[WARPS];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) x += part[w];
    __syncthreads();
    return x;
}

// How a block of 256 threads is cut up where each row is reduced: a row belongs to a warp when it is short (C <= 1024), else to the
// block. Threads per row, and this thread's row and place in it.
struct Rows {
    u32 width, n, lane;
};
INLINE Rows rows_of(u32 C) {
    Rows r;
    r.width = C <= 1024 ? 32 : 256;
    r.n = blockIdx.x * (256 / r.width) + threadIdx.x / r.width;
    r.lane = threadIdx.x % r.width;
    return r;
}
// Every thread of the block comes here.
INLINE float row_sum(float x, u32 width) { return width == 32 ? warp_sum(x) : block_sum<8>(x); }

// The first word of pcg3d, Jarzynski & Olano 2020.
INLINE u32 random_bits(u32 x, u32 y, u32 z) {
    x = x * 1664525u + 1013904223u, y = y * 1664525u + 1013904223u, z = z * 1664525u + 1013904223u;
    x += y * z, y += z * x, z += x * y;
    x ^= x >> 16, y ^= y >> 16, z ^= z >> 16;
    return x + y * z;
}

// x as bf16 holds it, up or down by the upper half of `word`.
INLINE float toss(float x, u32 word) {
    u32 bits = __float_as_uint(x);
    return (bits & 0x7f800000u) == 0x7f800000u ? x : __uint_as_float((bits + (word >> 16)) & 0xffff0000u);
}
// Weights i..i+8 of a call, as they are stored: where p.chance is 1, rounded to bf16 up or down so that their means are w
// (src/ops/adamw.rs).
template <typename P> INLINE void by_chance(float (&w)[8], u64 i, const P& p) {
    if (p.chance == 0) return;
#pragma unroll
    for (int k = 0; k < 8; k += 2) {
        u32 word = random_bits(((u32)i + k + p.first) / 2, p.seed, p.stream);
        w[k] = toss(w[k], word), w[k + 1] = toss(w[k + 1], word << 16);
    }
}

// Of an activation act(x) = x·s(x): s and act′. `act` is a constant of src/ops/activation.rs.
struct Gate {
    float s, slope;
};
INLINE Gate gating(float x, u32 act, float slope, float cubic) {
    // the fast exponential is good to 1e-6 relative at |x| = 10, and this is memory traffic all the same
    if (act == 1) {
        float s = 0.5f * erfcf(-0.70710678f * x);
        return {s, s + x * __expf(-0.5f * x * x) * 0.3989423f};
    }
    if (act == 2) return x > 0.f ? Gate{1.f, 1.f} : Gate{0.f, 0.f};
    if (act == 3) return x > 0.f ? Gate{x, 2.f * x} : Gate{0.f, 0.f};
    float bow = cubic * x * x, s = __fdividef(1.f, 1.f + __expf(-x * (slope + bow)));
    return {s, s * (1.f + x * (1.f - s) * (slope + 3.f * bow))};
}

// cap·tanh(x/cap), or x where cap is 0; and the derivative, from the result.
INLINE float softcap(float x, float cap) { return cap == 0.f ? x : cap * tanhf(x / cap); }
INLINE float softcap_slope(float y, float cap) { return cap == 0.f ? 1.f : 1.f - (y / cap) * (y / cap); }

// The midpoints between the levels of a rising map of 256. With KEEP_SIGN only what is below zero goes to a level below zero.
template <bool KEEP_SIGN> struct Midpoints {
    float mid[256];
    // By all of 256 threads.
    INLINE_METHOD void fill(const float* map) {
        u32 t = threadIdx.x;
        float low = map[t], high = t < 255 ? map[t + 1] : 0.f, middle = KEEP_SIGN && low < 0.f && high >= 0.f ? -1.4e-45f : (low + high) * 0.5f;
        mid[t] = t < 255 ? middle : __uint_as_float(0x7f800000u);
        __syncthreads();
    }
    // The nearest level's index; a tie goes down.
    INLINE_METHOD u32 nearest(float x) const {
        u32 code = 0;
#pragma unroll
        for (u32 step = 128; step; step /= 2) code += x > mid[code + step - 1] ? step : 0;
        return code;
    }
};
// The same for many values: `start` has for each range of them (a binade in 2^PARTS parts, down to 2^-23; below zero once more) the
// level of its least one, from which a step or two remain in bitsandbytes' maps.
template <int PARTS, bool SIGNED> struct Finder {
    static const u32 LOW = 104u << PARTS, RANGES = (23u << PARTS) + 1;
    Midpoints<SIGNED> between;
    u8 start[RANGES * (SIGNED ? 2 : 1)];
    // By all of 256 threads.
    INLINE_METHOD void fill(const float* map) {
        between.fill(map);
        for (u32 r = threadIdx.x; r < sizeof(start); r += 256) {
            u32 k = r % RANGES + LOW;
            float below = -__uint_as_float(((k + 1) << (23 - PARTS)) - 1), above = k == LOW ? 0.f : __uint_as_float(k << (23 - PARTS));
            start[r] = (u8)between.nearest(r < RANGES ? above : below);
        }
        __syncthreads();
    }
    INLINE_METHOD u32 nearest(float x) const {
        u32 bits = __float_as_uint(x), k = (bits & 0x7fffffffu) >> (23 - PARTS);
        k = k < LOW ? 0 : k - LOW;
        k = k < RANGES ? k : RANGES - 1;
        u32 code = start[SIGNED && bits >> 31 ? k + RANGES : k];
        while (x > between.mid[code]) code++;
        return code;
    }
};

// Codes i..i+8, zeros beyond P.
INLINE uint2 fetch_codes(const u8* codes, u64 i, u64 P) {
    if (((u64)codes & 7) == 0 && i + 8 <= P) return *(const uint2*)(codes + i);
    u32 word[2] = {};
#pragma unroll
    for (int k = 0; k < 8; k++)
        if (i + k < P) word[k / 4] |= (u32)codes[i + k] << k % 4 * 8;
    return make_uint2(word[0], word[1]);
}
INLINE void stash_codes(u8* codes, u64 i, u64 P, const u32 (&word)[2]) {
    if (((u64)codes & 7) == 0 && i + 8 <= P) {
        *(uint2*)(codes + i) = make_uint2(word[0], word[1]);
        return;
    }
#pragma unroll
    for (int k = 0; k < 8; k++)
        if (i + k < P) codes[i + k] = (u8)(word[k / 4] >> k % 4 * 8);
}

// What a code in e4m3 stands for (src/ops/fp8.rs).
INLINE float e4m3_value(u32 code) {
    u32 m = code & 0x7fu;
    float x = m < 8u ? (float)m * (1.f / 512.f) : __uint_as_float(m == 0x7fu ? 0x7fc00000u : (m << 20) + 0x3c000000u);
    return code & 0x80u ? -x : x;
}

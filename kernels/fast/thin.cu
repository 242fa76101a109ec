// Up to 8·TILES rows of one 16-bit type times a packed weight, on tensor cores (mma.sync m16n8k16, sums in f32), the weight unpacked
// in registers to the type it would have been unpacked to in memory; or times a weight of that type itself (DENSE). C is a multiple
// of 128; inp and weights start at multiples of 16 bytes.
//
// A block makes 16 outputs of all rows for each of its GROUPS; the warps of a group take turns of 128 of the inner length, and their
// sums are added in order. More groups read inp less often, from the L1 cache the others; fewer make more blocks.
// The order within a sum is free: lane (g, t) = (lane/4, lane%4) has 32 values of rows g and g+8, 8 of each PART of a turn, as A's
// columns {2t, 2t+1, 2t+8, 2t+9} of 8 products, and the same 32 values of row g of inp as B's. So both are whole 16-byte loads. C (16
// outputs, 8 rows of inp) has c[0..1] in output g, rows 2t, 2t+1, and c[2..3] in output g+8.
#include "tensor.cuh"
#if DENSE
typedef T_a T;
#else
typedef T_inp T;
#endif

constexpr u32 STEP = 128, SLICES = WARPS / GROUPS, THREADS = 32 * WARPS;
constexpr u32 BLOCKS = WARPS > 8 ? 1 : TILES == 1 ? (DENSE ? 3 : 4) : TILES == 2 ? 3 : 2;
// From a lane's values to the next lane's, and from one part to the next: 32 neighbours are 16 bytes of codes.
constexpr u32 LANE = DENSE ? 8 : 32, PART = DENSE ? 32 : 8;

extern __shared__ float memory[];

__device__ const float LEVELS[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f,
    -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

// 32 values of NF4 from i on, as 16 bytes and their scale.
struct Four {
    uint4 codes;
    float scale;
    // Values 4s.. as two words.
    __device__ __forceinline__ void get(int s, u32& lo, u32& hi, const float* levels) const {
        u32 word = s / 2 == 0 ? codes.x : s / 2 == 1 ? codes.y : s / 2 == 2 ? codes.z : codes.w;
        word >>= s % 2 * 16;
        lo = pack<T>(levels[word >> 4 & 15] * scale, levels[word & 15] * scale);
        hi = pack<T>(levels[word >> 12 & 15] * scale, levels[word >> 8 & 15] * scale);
    }
};
// 32 values in 8 bits.
struct Eight {
    uint4 codes[2];
    float scale;
    __device__ __forceinline__ void get(int s, u32& lo, u32& hi, const float*) const {
        const uint4& part = codes[s / 4];
        u32 word = s % 4 == 0 ? part.x : s % 4 == 1 ? part.y : s % 4 == 2 ? part.z : part.w;
        auto value = [&](int k) { return (float)(signed char)(word >> k * 8) * scale; };
        lo = pack<T>(value(0), value(1)), hi = pack<T>(value(2), value(3));
    }
};

// 32 values as they are.
struct Plain {
    uint4 parts[4];
    __device__ __forceinline__ void get(int s, u32& lo, u32& hi, const float*) const {
        const uint4& part = parts[s / 2];
        lo = s % 2 == 0 ? part.x : part.z, hi = s % 2 == 0 ? part.y : part.w;
    }
};

// What NF4's values lie in.
struct Single {
    uint4 codes;
    float absmax;
};
struct Double {
    uint4 codes;
    u32 qabsmax;
    float nested;
};

struct Sizes {
    u32 N, O, C, first, ld_inp, ld_out;
    float alpha;
};
INLINE Sizes sizes(u32 N, u32 O, u32 C, u32 first) { return {N, O, C, first, C, O, 1.f}; }

// fetch(row, c) gives what the 32 values from c on of a row of the weight lie in, open(..) the values.
template <typename F, typename G> INLINE void product(T_out* out, const T* inp, Sizes p, const float* levels, F fetch, G open) {
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    u32 o0 = (blockIdx.x * GROUPS + warp % GROUPS) * 16, c = warp / GROUPS * STEP;
    u32 row0 = p.first + min(o0 + g, p.O - 1), row1 = p.first + min(o0 + g + 8, p.O - 1);
    float sum[TILES][4] = {};
    // the next turn's weights are on their way while this one's are multiplied; there is one turn at least, if not of this warp
    auto next0 = fetch(row0, min(c, p.C - STEP) + LANE * t), next1 = fetch(row1, min(c, p.C - STEP) + LANE * t);
    for (; c < p.C; c += SLICES * STEP) {
        auto w0 = open(next0), w1 = open(next1);
        if (c + SLICES * STEP < p.C) {
            next0 = fetch(row0, c + SLICES * STEP + LANE * t);
            next1 = fetch(row1, c + SLICES * STEP + LANE * t);
        }
#pragma unroll
        for (int h = 0; h < 4; h++) {
            u32 a[2][4];
#pragma unroll
            for (int s = 0; s < 2; s++) {
                w0.get(2 * h + s, a[s][0], a[s][2], levels);
                w1.get(2 * h + s, a[s][1], a[s][3], levels);
            }
#pragma unroll
            for (int n = 0; n < TILES; n++) {
                uint4 x = *(const uint4*)(inp + (u64)min(n * 8 + g, p.N - 1) * p.ld_inp + c + LANE * t + PART * h);
                mma<T>(sum[n], a[0], x.x, x.y);
                mma<T>(sum[n], a[1], x.z, x.w);
            }
        }
    }
    float* own = memory + warp * TILES * 128;
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int k = 0; k < 4; k++) own[n * 128 + (2 * t + k % 2) * 16 + g + k / 2 * 8] = sum[n][k];
    __syncthreads();
    for (u32 e = threadIdx.x; e < GROUPS * TILES * 128; e += THREADS) {
        u32 n = e / 16 % (TILES * 8), group = e / (TILES * 128), o = (blockIdx.x * GROUPS + group) * 16 + e % 16;
        if (n >= p.N || o >= p.O) continue;
        float all = 0.f;
#pragma unroll
        for (u32 w = 0; w < SLICES; w++) all += memory[(w * GROUPS + group) * TILES * 128 + e % (TILES * 128)];
        put(out + (u64)n * p.ld_out + o, p.alpha * all);
    }
}

// op thin_nf4 grid(ceil(O, 16*GROUPS)) block(32*WARPS) shared(512*WARPS*TILES)
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) thin_nf4(T_out* out, const T_inp* inp, const T_codes* codes, const T_absmax* absmax, Params p) {
    __shared__ float levels[16];
    if (threadIdx.x < 16) levels[threadIdx.x] = LEVELS[threadIdx.x];
    __syncthreads();
    auto fetch = [&](u32 row, u32 c) {
        u64 i = (u64)row * p.C + c;
        return Single{*(const uint4*)(codes + i / 2), absmax[i / 64]};
    };
    product(out, inp, sizes(p.N, p.O, p.C, p.first), levels, fetch, [&](const Single& w) { return Four{w.codes, w.absmax}; });
}

// op thin_nf4_double grid(ceil(O, 16*GROUPS)) block(32*WARPS) shared(512*WARPS*TILES)
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) thin_nf4_double(T_out* out, const T_inp* inp, const T_codes* codes, const T_qabsmax* qabsmax, const T_nested* nested, const T_map* map, Params p) {
    __shared__ float levels[16], scales[256];
    if (threadIdx.x < 16) levels[threadIdx.x] = LEVELS[threadIdx.x];
    for (u32 i = threadIdx.x; i < 256; i += THREADS) scales[i] = map[i];
    __syncthreads();
    auto fetch = [&](u32 row, u32 c) {
        u64 i = (u64)row * p.C + c, b = i / 64;
        return Double{*(const uint4*)(codes + i / 2), qabsmax[b], nested[b / 256]};
    };
    auto open = [&](const Double& w) { return Four{w.codes, __fadd_rn(__fmul_rn(scales[w.qabsmax], w.nested), p.offset)}; };
    product(out, inp, sizes(p.N, p.O, p.C, p.first), levels, fetch, open);
}

// op thin_int8 grid(ceil(O, 16*GROUPS)) block(32*WARPS) shared(512*WARPS*TILES)
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) thin_int8(T_out* out, const T_inp* inp, const T_codes* codes, const T_scb* scb, Params p) {
    auto fetch = [&](u32 row, u32 c) {
        const uint4* at = (const uint4*)(codes + (u64)row * p.C + c);
        return Eight{{at[0], at[1]}, scb[row]};
    };
    product(out, inp, sizes(p.N, p.O, p.C, p.first), nullptr, fetch, [](const Eight& w) { return Eight{{w.codes[0], w.codes[1]}, __fdiv_rn(w.scale, 127.f)}; });
}

// op matmul_nt grid(ceil(J, 16*GROUPS)) block(32*WARPS) shared(512*WARPS*TILES)
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) matmul_nt(T_out* out, const T_a* a, const T_b* b, Params p) {
    auto fetch = [&](u32 row, u32 c) {
        const T_b* at = b + (u64)row * p.ld_b + c;
        Plain w;
#pragma unroll
        for (u32 h = 0; h < 4; h++) w.parts[h] = *(const uint4*)(at + PART * h);
        return w;
    };
    product(out, a, Sizes{p.I, p.J, p.Q, 0, p.ld_a, p.ld_out, p.alpha}, nullptr, fetch, [](const Plain& w) { return w; });
}

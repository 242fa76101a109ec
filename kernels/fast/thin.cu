// Up to 64 rows of one 16-bit type times a packed weight, on tensor cores (mma.sync m16n8k16, sums in f32), the weight unpacked
// in registers to the type it would have been unpacked to in memory. C is a multiple of 128; inp starts at a multiple of 16 bytes,
// codes at one of 16.
//
// A block of 8 warps makes 16 outputs of all rows; the warps take turns of 128 of the inner length, and their sums are added in
// order. The order within a sum is free: lane (g, t) = (lane/4, lane%4) has the 32 neighbouring values 32t.. of rows g and g+8,
// as A's columns {2t, 2t+1, 2t+8, 2t+9} of 8 products, and the same 32 values of row g of inp as B's. So both are whole 16-byte
// loads. C (16 outputs, 8 rows of inp) has c[0..1] in output g, rows 2t, 2t+1, and c[2..3] in output g+8.
typedef T_inp T;

constexpr u32 WARPS = 8, STEP = 128;

extern __shared__ float memory[];

template <typename T> INLINE void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1);
#define MMA(TYPE, NAME)                                                                                                     \
    template <> __device__ __forceinline__ void mma<TYPE>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {               \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME                                                 \
                     ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                           \
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                       \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                       \
    }
MMA(bf16, "bf16")
MMA(f16, "f16")

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

// load(row, c) gives the 32 values from c on of a row of the weight.
template <u32 TILES, typename F> INLINE void product(T_out* out, const T* inp, const Params& p, const float* levels, F load) {
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4, o0 = blockIdx.x * 16;
    u32 row0 = p.first + min(o0 + g, p.O - 1), row1 = p.first + min(o0 + g + 8, p.O - 1);
    float sum[TILES][4] = {};
    for (u32 c = warp * STEP; c < p.C; c += WARPS * STEP) {
        auto w0 = load(row0, c + 32 * t), w1 = load(row1, c + 32 * t);
#pragma unroll
        for (int h = 0; h < 4; h++) {
            u32 a[2][4];
#pragma unroll
            for (int s = 0; s < 2; s++) {
                w0.get(2 * h + s, a[s][0], a[s][2], levels);
                w1.get(2 * h + s, a[s][1], a[s][3], levels);
            }
#pragma unroll
            for (u32 n = 0; n < TILES; n++) {
                uint4 x = *(const uint4*)(inp + (u64)min(n * 8 + g, p.N - 1) * p.C + c + 32 * t + 8 * h);
                mma<T>(sum[n], a[0], x.x, x.y);
                mma<T>(sum[n], a[1], x.z, x.w);
            }
        }
    }
    float* own = memory + warp * TILES * 128;
#pragma unroll
    for (u32 n = 0; n < TILES; n++)
#pragma unroll
        for (int k = 0; k < 4; k++) own[n * 128 + (2 * t + k % 2) * 16 + g + k / 2 * 8] = sum[n][k];
    __syncthreads();
    for (u32 e = threadIdx.x; e < TILES * 128; e += 256) {
        u32 n = e / 16, o = o0 + e % 16;
        if (n >= p.N || o >= p.O) continue;
        float all = 0.f;
#pragma unroll
        for (u32 w = 0; w < WARPS; w++) all += memory[w * TILES * 128 + e];
        put(out + (u64)n * p.O + o, all);
    }
}
template <typename F> INLINE void by_tiles(T_out* out, const T* inp, const Params& p, const float* levels, F load) {
    if (p.N <= 8) product<1>(out, inp, p, levels, load);
    else if (p.N <= 16) product<2>(out, inp, p, levels, load);
    else if (p.N <= 32) product<4>(out, inp, p, levels, load);
    else product<8>(out, inp, p, levels, load);
}

// op thin_nf4 grid(ceil(O, 16)) block(256) shared(32768)
extern "C" __global__ void __launch_bounds__(256) thin_nf4(T_out* out, const T_inp* inp, const T_codes* codes, const T_absmax* absmax, Params p) {
    __shared__ float levels[16];
    if (threadIdx.x < 16) levels[threadIdx.x] = LEVELS[threadIdx.x];
    __syncthreads();
    by_tiles(out, inp, p, levels, [&](u32 row, u32 c) {
        u64 i = (u64)row * p.C + c;
        return Four{*(const uint4*)(codes + i / 2), absmax[i / 64]};
    });
}

// op thin_nf4_double grid(ceil(O, 16)) block(256) shared(32768)
extern "C" __global__ void __launch_bounds__(256) thin_nf4_double(T_out* out, const T_inp* inp, const T_codes* codes, const T_qabsmax* qabsmax, const T_nested* nested, const T_map* map, Params p) {
    __shared__ float levels[16], scales[256];
    if (threadIdx.x < 16) levels[threadIdx.x] = LEVELS[threadIdx.x];
    scales[threadIdx.x] = map[threadIdx.x];
    __syncthreads();
    by_tiles(out, inp, p, levels, [&](u32 row, u32 c) {
        u64 i = (u64)row * p.C + c, b = i / 64;
        return Four{*(const uint4*)(codes + i / 2), __fadd_rn(__fmul_rn(scales[qabsmax[b]], nested[b / 256]), p.offset)};
    });
}

// op thin_int8 grid(ceil(O, 16)) block(256) shared(32768)
extern "C" __global__ void __launch_bounds__(256) thin_int8(T_out* out, const T_inp* inp, const T_codes* codes, const T_scb* scb, Params p) {
    by_tiles(out, inp, p, nullptr, [&](u32 row, u32 c) {
        const uint4* at = (const uint4*)(codes + (u64)row * p.C + c);
        return Eight{{at[0], at[1]}, __fdiv_rn(scb[row], 127.f)};
    });
}

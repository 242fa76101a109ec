// NF4: 8 values, 4 bytes of codes, to a thread at a time; 8 neighbouring threads hold one block of 64.

__device__ const float LEVELS[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f,
    -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

// How many midpoints lie below x: the nearest level's index. NaN gives 0, as every comparison with it is false.
INLINE u32 nearest(float x) {
    const float MIDPOINTS[15] = {
        -0.8480964004993439f, -0.6106329262256622f, -0.4599952697753906f, -0.33967943489551544f, -0.23460738360881805f,
        -0.13791173323988914f, -0.045525018125772476f, 0.03979014977812767f, 0.1202552504837513f, 0.2035212516784668f,
        0.2920137718319893f, 0.3893125355243683f, 0.5016634166240692f, 0.6427869200706482f, 0.8614784181118011f};
    u32 code = 0;
#pragma unroll
    for (int i = 0; i < 15; i++) code += x > MIDPOINTS[i];
    return code;
}

// out = levels of 8 codes · absmax; a byte's high half comes first.
INLINE void decode(float (&x)[8], u32 word, const float* levels, float absmax) {
#pragma unroll
    for (int k = 0; k < 8; k++) x[k] = levels[(word >> (k / 2 * 8 + (k % 2 ? 0 : 4))) & 15] * absmax;
}

// The 4 bytes that hold values i..i+8 of P, zeros beyond the end; codes start at a multiple of 4 bytes, i is one of 8.
INLINE u32 codes_at(const u8* codes, u64 i, u64 P) {
    if (i + 8 <= P) return ((const u32*)codes)[i / 8];
    u32 word = 0;
    for (u64 k = i / 2; k < (P + 1) / 2; k++) word |= (u32)codes[k] << (k - i / 2) * 8;
    return word;
}

// 4 rounds of 8 values per thread, each round's loads and stores side by side in a warp. load(b) reads what block b's absmax is
// made of; when it is there, and the tables are, scale() makes it.
template <typename Parts, typename T, typename L, typename S, typename F>
INLINE void dequantize(T* out, const u8* codes, u64 P, const float* levels, L load, S tables, F scale) {
    bool fast = wide(out, 0);
    u64 first = blockIdx.x * 8192ull + threadIdx.x * 8;
    u32 word[4];
    Parts parts[4];
#pragma unroll
    for (int r = 0; r < 4; r++) {
        u64 i = first + r * 2048;
        word[r] = i < P ? codes_at(codes, i, P) : 0;
        parts[r] = load(i < P ? i / 64 : 0);
    }
    tables();
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 4; r++) {
        float x[8];
        decode(x, word[r], levels, scale(parts[r]));
        stash(out, first + r * 2048, P, fast, x);
    }
}

// Of an absmax with double quantization.
struct Double {
    u32 code;
    float nested;
};

// op nf4_quantize grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) nf4_quantize(T_codes* codes, T_absmax* absmax, const T_inp* inp, Params p) {
    u64 i = (blockIdx.x * 256ull + threadIdx.x) * 8, P = p.P;
    float x[8], max = 0.f;
    fetch(x, inp, i, P, wide(inp, 0));
#pragma unroll
    for (int k = 0; k < 8; k++) max = fmaxf(max, fabsf(x[k]));
#pragma unroll
    for (int o = 1; o < 8; o *= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, o));
    if (i >= P) return;
    if (i % 64 == 0) absmax[i / 64] = max;
    // 1/absmax first, as bitsandbytes does: another rounding would move values across a midpoint
    float scale = __frcp_rn(max);
    u32 word = 0;
#pragma unroll
    for (int k = 0; k < 8; k++)
        word |= (i + k < P ? nearest(__fmul_rn(x[k], scale)) : 0u) << (k / 2 * 8 + (k % 2 ? 0 : 4));
    if (i + 8 <= P) {
        ((u32*)codes)[i / 8] = word;
        return;
    }
    for (u64 k = i / 2; k < (P + 1) / 2; k++) codes[k] = (u8)(word >> (k - i / 2) * 8);
}

// op nf4_dequantize grid(ceil(P, 8192)) block(256)
extern "C" __global__ void __launch_bounds__(256) nf4_dequantize(T_out* out, const T_codes* codes, const T_absmax* absmax, Params p) {
    __shared__ float levels[16];
    auto tables = [&] { if (threadIdx.x < 16) levels[threadIdx.x] = LEVELS[threadIdx.x]; };
    dequantize<float>(out, codes, p.P, levels, [&](u64 b) { return absmax[b]; }, tables, [](float x) { return x; });
}

// op nf4_dequantize_double grid(ceil(P, 8192)) block(256)
// products and sums are rounded one by one, as bitsandbytes does: a fused one would give other bits
extern "C" __global__ void __launch_bounds__(256) nf4_dequantize_double(T_out* out, const T_codes* codes, const T_qabsmax* qabsmax, const T_nested* nested, const T_map* map, Params p) {
    __shared__ float levels[16], scales[256];
    float own = map[threadIdx.x];
    auto tables = [&] {
        if (threadIdx.x < 16) levels[threadIdx.x] = LEVELS[threadIdx.x];
        scales[threadIdx.x] = own;
    };
    auto load = [&](u64 b) { return Double{qabsmax[b], nested[b / 256]}; };
    auto scale = [&](Double d) { return __fadd_rn(__fmul_rn(scales[d.code], d.nested), p.offset); };
    dequantize<Double>(out, codes, p.P, levels, load, tables, scale);
}

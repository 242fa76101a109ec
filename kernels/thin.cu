// A warp makes 2 outputs of up to 8 rows of inp at a time, for any sizes and types; kernels/fast/thin.cu is for the usual ones.
#define ROWS 2
#define TOKENS 8

__device__ const float LEVELS[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f,
    -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

INLINE float level(const u8* codes, u64 i, const float* levels) { return levels[codes[i / 2] >> (i % 2 ? 0 : 4) & 15]; }

// value(i) is the weight's; scale(o) is what all of a row are multiplied with in the end.
template <typename F, typename S> INLINE void product(T_out* out, const T_inp* inp, const Params& p, F value, S scale) {
    u32 lane = threadIdx.x % 32, o0 = (blockIdx.x * 8 + threadIdx.x / 32) * ROWS, n0 = blockIdx.y * TOKENS;
    if (o0 >= p.O) return;
    float sum[ROWS][TOKENS] = {};
    for (u32 c = lane; c < p.C; c += 32) {
        float w[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) w[r] = value((u64)(p.first + min(o0 + r, p.O - 1)) * p.C + c);
#pragma unroll
        for (int k = 0; k < TOKENS; k++) {
            float x = n0 + k < p.N ? widen(inp[(u64)(n0 + k) * p.C + c]) : 0.f;
#pragma unroll
            for (int r = 0; r < ROWS; r++) sum[r][k] += w[r] * x;
        }
    }
#pragma unroll
    for (int k = 0; k < TOKENS; k++)
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float all = warp_sum(sum[r][k]);
            if (lane == 0 && n0 + k < p.N && o0 + r < p.O) put(out + (u64)(n0 + k) * p.O + o0 + r, all * scale(p.first + o0 + r));
        }
}

// op thin_nf4 grid(ceil(O, 16), ceil(N, 8)) block(256)
extern "C" __global__ void __launch_bounds__(256) thin_nf4(T_out* out, const T_inp* inp, const T_codes* codes, const T_absmax* absmax, Params p) {
    __shared__ float levels[16];
    if (threadIdx.x < 16) levels[threadIdx.x] = LEVELS[threadIdx.x];
    __syncthreads();
    product(out, inp, p, [&](u64 i) { return level(codes, i, levels) * absmax[i / 64]; }, [](u32) { return 1.f; });
}

// op thin_nf4_double grid(ceil(O, 16), ceil(N, 8)) block(256)
extern "C" __global__ void __launch_bounds__(256) thin_nf4_double(T_out* out, const T_inp* inp, const T_codes* codes, const T_qabsmax* qabsmax, const T_nested* nested, const T_map* map, Params p) {
    __shared__ float levels[16], scales[256];
    if (threadIdx.x < 16) levels[threadIdx.x] = LEVELS[threadIdx.x];
    scales[threadIdx.x] = map[threadIdx.x];
    __syncthreads();
    auto absmax = [&](u64 b) { return __fadd_rn(__fmul_rn(scales[qabsmax[b]], nested[b / 256]), p.offset); };
    product(out, inp, p, [&](u64 i) { return level(codes, i, levels) * absmax(i / 64); }, [](u32) { return 1.f; });
}

// op thin_int8 grid(ceil(O, 16), ceil(N, 8)) block(256)
extern "C" __global__ void __launch_bounds__(256) thin_int8(T_out* out, const T_inp* inp, const T_codes* codes, const T_scb* scb, Params p) {
    product(out, inp, p, [&](u64 i) { return (float)(signed char)codes[i]; }, [&](u32 o) { return scb[o] / 127.f; });
}

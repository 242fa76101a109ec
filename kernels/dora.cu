// DoRA: norms of the adapted rows, their scaling, and the gradient of the magnitudes.

// to = from·magnitude/norm, 8 values of a row to a thread.
template <typename To, typename From> INLINE void scale_rows(To* to, const From* from, const float* magnitude, const float* norm, u32 O) {
    u32 o = (blockIdx.y * 256 + threadIdx.x) * 8;
    u64 row = (u64)blockIdx.x * O;
    float x[8], m[8], r[8];
    fetch(x, from + row, o, O, wide(from, O));
    fetch(m, magnitude, o, O, wide(magnitude, 0));
    fetch(r, norm, o, O, wide(norm, 0));
#pragma unroll
    for (int k = 0; k < 8; k++) x[k] *= o + k < O ? m[k] / r[k] : 0.f;
    stash(to + row, o, O, wide(to, O), x);
}

// op dora_norm grid(O) block(256)
extern "C" __global__ void __launch_bounds__(256) dora_norm(T_norm* norm, const T_weight* weight, const T_wa* wa, const T_b* b, const T_gram* gram, Params p) {
    u64 o = blockIdx.x;
    const T_weight* row = weight + o * p.C;
    const T_b* bs = b + o * p.R;
    bool fast = wide(weight, p.C);
    float x[8], sum = 0.f, cross = 0.f, square = 0.f;
    for (u32 c = threadIdx.x * 8; c < p.C; c += 2048) {
        fetch(x, row, c, p.C, fast);
#pragma unroll
        for (int k = 0; k < 8; k++) sum += x[k] * x[k];
    }
    for (u32 r = threadIdx.x; r < p.R; r += 256) cross += widen(wa[o * p.R + r]) * widen(bs[r]);
    for (u32 i = threadIdx.x; i < p.R * p.R; i += 256) square += widen(bs[i / p.R]) * widen(gram[i]) * widen(bs[i % p.R]);
    float total = block_sum<8>(sum + 2.f * p.scale * cross + p.scale * p.scale * square);
    if (threadIdx.x == 0) norm[o] = sqrtf(total);
}

// op dora_forward grid(N, ceil(O, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) dora_forward(T_out* out, const T_magnitude* magnitude, const T_norm* norm, Params p) {
    scale_rows(out, out, magnitude, norm, p.O);
}

// op dora_backward grid(N, ceil(O, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) dora_backward(T_dinp* dinp, const T_dout* dout, const T_magnitude* magnitude, const T_norm* norm, Params p) {
    scale_rows(dinp, dout, magnitude, norm, p.O);
}

// 32 columns by 32 row lanes, as bias_backward.
// op dora_backward_weight grid(ceil(O, 32)) block(1024)
extern "C" __global__ void __launch_bounds__(1024) dora_backward_weight(T_dmagnitude* dmagnitude, const T_dout* dout, const T_inp* inp, const T_norm* norm, Params p) {
    __shared__ float part[32][33];
    u32 lane = threadIdx.x % 32, rows = threadIdx.x / 32, o = blockIdx.x * 32 + lane;
    float sum = 0.f;
    if (o < p.O) {
#pragma unroll 8
        for (u32 n = rows; n < p.N; n += 32) sum += widen(dout[(u64)n * p.O + o]) * widen(inp[(u64)n * p.O + o]);
    }
    part[lane][rows] = sum;
    __syncthreads();
    sum = warp_sum(part[rows][lane]);
    u32 column = blockIdx.x * 32 + rows;
    if (lane == 0 && column < p.O) dmagnitude[column] += sum / norm[column];
}

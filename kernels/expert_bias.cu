// Bias of each expert on its own rows, maybe weighted by the routing; its gradients.

// The expert that has row m: the last one whose rows begin at or before it.
INLINE u32 expert_of(const T_offsets* offsets, u32 E, u32 m) {
    u32 e = 0, end = E;
    while (end - e > 1) {
        u32 middle = (e + end) / 2;
        if (offsets[middle] <= m) e = middle;
        else end = middle;
    }
    return e;
}

// op expert_bias_forward grid(M, ceil(O, 1024)) block(128)
extern "C" __global__ void __launch_bounds__(128) expert_bias_forward(T_out* out, const T_bias* bias, const T_offsets* offsets, const T_weights* weights, const T_rows* rows, Params p) {
    u64 m = blockIdx.x, o = (blockIdx.y * 128 + threadIdx.x) * 8, e = expert_of(offsets, p.E, blockIdx.x);
    float w = p.weighted ? weights[rows[m]] : 1.f, x[8], b[8];
    bool fast = wide(out, p.O);
    fetch(x, out + m * p.O, o, p.O, fast);
    fetch(b, bias + e * p.O, o, p.O, wide(bias, p.O));
#pragma unroll
    for (int k = 0; k < 8; k++) x[k] += w * b[k];
    stash(out + m * p.O, o, p.O, fast, x);
}

// op expert_bias_backward grid(ceil(O, 32), E) block(1024)
// 32 columns by 32 row lanes; each lane sums every 32nd of the expert's rows, then the lanes of a column are added in order.
extern "C" __global__ void __launch_bounds__(1024) expert_bias_backward(T_dbias* dbias, const T_dout* dout, const T_offsets* offsets, const T_weights* weights, const T_rows* rows, Params p) {
    __shared__ float part[32][33];
    u32 lane = threadIdx.x % 32, row = threadIdx.x / 32, o = blockIdx.x * 32 + lane, e = blockIdx.y, end = offsets[e + 1];
    REQUIRE(end <= p.M);
    float sum = 0.f;
    if (o < p.O) {
#pragma unroll 4
        for (u32 m = offsets[e] + row; m < end; m += 32) {
            float x = widen(dout[(u64)m * p.O + o]);
            sum += p.weighted ? weights[rows[m]] * x : x;
        }
    }
    part[lane][row] = sum;
    __syncthreads();
    // now a warp has one column, a lane one part of it
    sum = warp_sum(part[row][lane]);
    u32 column = blockIdx.x * 32 + row;
    T_dbias* at = dbias + (u64)e * p.O + column;
    if (lane == 0 && column < p.O) put(at, widen(*at) + sum);
}

// op expert_bias_backward_weights grid(M) block(128)
// A block per row.
extern "C" __global__ void __launch_bounds__(128) expert_bias_backward_weights(T_dweights* dweights, const T_dout* dout, const T_bias* bias, const T_offsets* offsets, const T_rows* rows, Params p) {
    u64 m = blockIdx.x, e = expert_of(offsets, p.E, blockIdx.x);
    bool fast_d = wide(dout, p.O), fast_b = wide(bias, p.O);
    float dot = 0.f;
    for (u32 o = threadIdx.x * 8; o < p.O; o += 1024) {
        float d[8], b[8];
        fetch(d, dout + m * p.O, o, p.O, fast_d);
        fetch(b, bias + e * p.O, o, p.O, fast_b);
#pragma unroll
        for (int k = 0; k < 8; k++) dot += d[k] * b[k];
    }
    dot = block_sum<4>(dot);
    if (threadIdx.x == 0) dweights[rows[m]] += dot;
}

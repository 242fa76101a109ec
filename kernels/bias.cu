// Bias: one vector added to every row; its gradient sums the rows.

// op bias_forward grid(N, ceil(O, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) bias_forward(T_out* out, const T_bias* bias, Params p) {
    u32 o = (blockIdx.y * 256 + threadIdx.x) * 8;
    T_out* row = out + (u64)blockIdx.x * p.ld_out;
    bool fast = wide(out, p.ld_out);
    float x[8], b[8];
    fetch(x, row, o, p.O, fast);
    fetch(b, bias, o, p.O, wide(bias, 0));
#pragma unroll
    for (int k = 0; k < 8; k++) x[k] += b[k];
    stash(row, o, p.O, fast, x);
}

// 32 columns by 32 row lanes; each lane sums every 32nd row, then the lanes of a column are added in order.
// op bias_backward grid(ceil(O, 32)) block(1024)
extern "C" __global__ void __launch_bounds__(1024) bias_backward(T_dbias* dbias, const T_dout* dout, Params p) {
    __shared__ float part[32][33];
    u32 lane = threadIdx.x % 32, rows = threadIdx.x / 32, o = blockIdx.x * 32 + lane;
    float sum = 0.f;
    if (o < p.O) {
#pragma unroll 8
        for (u32 n = rows; n < p.N; n += 32) sum += widen(dout[(u64)n * p.ld_dout + o]);
    }
    part[lane][rows] = sum;
    __syncthreads();
    // now a warp has one column, a lane one part of it
    sum = warp_sum(part[rows][lane]);
    u32 column = blockIdx.x * 32 + rows;
    if (lane == 0 && column < p.O) put(dbias + column, widen(dbias[column]) + sum);
}

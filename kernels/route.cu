// Places of the slots, and rows to their places and back.

// Σ over the threads before this one of a block of 256, and Σ over all.
INLINE u32 scan(u32 x, u32& total) {
    __shared__ u32 part[8];
    u32 lane = threadIdx.x % 32, sum = x;
#pragma unroll
    for (int o = 1; o < 32; o *= 2) {
        u32 y = __shfl_up_sync(~0u, sum, o);
        if (lane >= o) sum += y;
    }
    if (lane == 31) part[threadIdx.x / 32] = sum;
    __syncthreads();
    u32 before = 0;
    total = 0;
#pragma unroll
    for (int w = 0; w < 8; w++) {
        if (w < threadIdx.x / 32) before += part[w];
        total += part[w];
    }
    __syncthreads();
    return before + sum - x;
}

// op route_index grid(E) block(256)
// A block per expert; a thread looks at a stretch of the slots, so that places rise with the slots.
extern "C" __global__ void __launch_bounds__(256) route_index(T_rows* rows, T_places* places, T_offsets* offsets, const T_experts* experts, Params p) {
    u32 M = p.N * p.S, expert = blockIdx.x;
    u32 stretch = (M + 255) / 256, first = min(threadIdx.x * stretch, M), end = min(first + stretch, M);
    u32 lower = 0, own = 0;
#pragma unroll 8
    for (u32 i = first; i < end; i++) {
        u32 e = experts[i];
        REQUIRE(e < p.E);
        lower += e < expert, own += e == expert;
    }
    u32 start, count;
    scan(lower, start);
    u32 m = start + scan(own, count);
    if (threadIdx.x == 0) {
        offsets[expert] = start;
        if (expert == 0) offsets[p.E] = M;
    }
    for (u32 i = first; i < end; i++)
        if (experts[i] == expert) rows[m] = i, places[i] = m++;
}

// op route_gather_forward grid(N, ceil(C, 1024)) block(128)
extern "C" __global__ void __launch_bounds__(128) route_gather_forward(T_out* out, const T_inp* inp, const T_places* places, Params p) {
    u64 n = blockIdx.x, c = (blockIdx.y * 128 + threadIdx.x) * 8;
    float x[8];
    fetch(x, inp + n * p.C, c, p.C, wide(inp, p.C));
    bool fast = wide(out, p.C);
    for (u32 a = 0; a < p.S; a++) stash(out + (u64)places[n * p.S + a] * p.C, c, p.C, fast, x);
}

// op route_gather_backward grid(N, ceil(C, 1024)) block(128)
extern "C" __global__ void __launch_bounds__(128) route_gather_backward(T_dinp* dinp, const T_dout* dout, const T_places* places, Params p) {
    u64 n = blockIdx.x, c = (blockIdx.y * 128 + threadIdx.x) * 8;
    bool fast = wide(dout, p.C), fast_d = wide(dinp, p.C);
    float sum[8] = {}, x[8];
#pragma unroll 4
    for (u32 a = 0; a < p.S; a++) {
        fetch(x, dout + (u64)places[n * p.S + a] * p.C, c, p.C, fast);
#pragma unroll
        for (int k = 0; k < 8; k++) sum[k] += x[k];
    }
    fetch(x, dinp + n * p.C, c, p.C, fast_d);
#pragma unroll
    for (int k = 0; k < 8; k++) sum[k] += x[k];
    stash(dinp + n * p.C, c, p.C, fast_d, sum);
}

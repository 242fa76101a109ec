// Embedding: a row of the table per token; its gradient has one owner per id, so that no atomics are needed.

// op embedding_forward grid(N, ceil(C, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) embedding_forward(T_out* out, const T_ids* ids, const T_weight* weight, Params p) {
    u64 n = blockIdx.x, c = (blockIdx.y * 256 + threadIdx.x) * 8, id = ids[n];
    REQUIRE(id < p.V);
    float x[8];
    fetch(x, weight + id * p.C, c, p.C, wide(weight, p.C));
#pragma unroll
    for (int k = 0; k < 8; k++) x[k] *= p.scale;
    stash(out + n * p.C, c, p.C, wide(out, p.C), x);
}

// Block x looks at the x-th token in the order of ids and works only if it is the first of its id.
// op embedding_backward grid(N, ceil(C, 1024)) block(128)
extern "C" __global__ void __launch_bounds__(128) embedding_backward(T_dweight* dweight, const T_dout* dout, const T_ids* ids, const T_order* order, Params p) {
    u32 first = blockIdx.x, id = ids[order[first]];
    REQUIRE(id < p.V);
    if (first > 0 && ids[order[first - 1]] == id) return;
    // the run's length, 32 tokens at a time
    u32 end = first + 1, lane = threadIdx.x % 32;
    for (u32 others = 0; !others;) {
        others = __ballot_sync(~0u, end + lane >= p.N || ids[order[end + lane]] != id);
        end += others ? __ffs(others) - 1 : 32;
    }
    u32 c = (blockIdx.y * 128 + threadIdx.x) * 8;
    bool fast = wide(dout, p.C), fast_w = wide(dweight, p.C);
    float sum[8] = {};
#pragma unroll 4
    for (u32 i = first; i < end; i++) {
        float x[8];
        fetch(x, dout + (u64)order[i] * p.C, c, p.C, fast);
#pragma unroll
        for (int k = 0; k < 8; k++) sum[k] += x[k];
    }
    float w[8];
    T_dweight* row = dweight + (u64)id * p.C;
    fetch(w, row, c, p.C, fast_w);
#pragma unroll
    for (int k = 0; k < 8; k++) w[k] += sum[k] * p.scale;
    stash(row, c, p.C, fast_w, w);
}

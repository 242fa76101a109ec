// Rows of new tokens into their slots, 8 values to a thread.

// op pages_write grid(N, ceil(C, 1024)) block(128)
extern "C" __global__ void __launch_bounds__(128) pages_write(T_pool* pool, const T_inp* inp, const T_slots* slots, Params p) {
    u64 n = blockIdx.x, c = (blockIdx.y * 128 + threadIdx.x) * 8, slot = slots[n];
    REQUIRE(slot < p.T);
    float x[8];
    fetch(x, inp + n * p.C, c, p.C, wide(inp, p.C));
    stash(pool + slot * p.C, c, p.C, wide(pool, p.C), x);
}

// Rows of bytes by id, a word at a time where rows are whole words.

// op rows_gather grid(N, ceil(C, 1024)) block(256)
extern "C" __global__ void __launch_bounds__(256) rows_gather(T_out* out, const T_ids* ids, const T_weight* weight, Params p) {
    u64 n = blockIdx.x, C = p.C, c = blockIdx.y * 1024ull + threadIdx.x * 4, id = ids[n];
    REQUIRE(id < p.V);
    const u8* from = weight + id * C + c;
    u8* to = out + n * C + c;
    if (c >= C) return;
    if (C % 4 == 0 && (((u64)from | (u64)to) & 3) == 0) {
        *(u32*)to = *(const u32*)from;
        return;
    }
#pragma unroll
    for (int k = 0; k < 4; k++)
        if (c + k < C) to[k] = from[k];
}

// How many tokens each expert has: a block per expert, in a fixed order.

// op expert_count grid(E) block(256)
extern "C" __global__ void __launch_bounds__(256) expert_count(T_count* count, const T_experts* experts, const T_mask* mask, Params p) {
    u32 e = blockIdx.x;
    float sum = 0.f;
    for (u64 i = threadIdx.x; i < (u64)p.N * p.S; i += 256)
        if (experts[i] == e) sum += mask[i / p.S];
    sum = block_sum<8>(sum);
    if (threadIdx.x == 0) count[e] += sum;
}

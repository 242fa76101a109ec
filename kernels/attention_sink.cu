// A sink of each head: one more score in its softmax. A warp has a head of a token, 8 channels a lane.

// log(exp(a) + exp(b)); a may be -inf.
INLINE float log_add(float a, float b) {
    float top = fmaxf(a, b);
    return top + logf(expf(a - top) + expf(b - top));
}

// op attention_sink_forward grid(ceil(N*H, 8)) block(256)
// First what reads lse: several lanes do.
extern "C" __global__ void __launch_bounds__(256) attention_sink_forward(T_out* out, T_lse* lse, const T_sinks* sinks, Params p) {
    u64 row = blockIdx.x * 8ull + threadIdx.x / 32;
    if (row >= (u64)p.N * p.H) return;
    float old = lse[row], factor = expf(old - log_add(old, widen(sinks[row % p.H])));
    T_out* own = out + row * p.D;
    bool fast = wide(out, p.D);
    for (u32 d = threadIdx.x % 32 * 8; d < p.D; d += 256) {
        float x[8];
        fetch(x, own, d, p.D, fast);
#pragma unroll
        for (int k = 0; k < 8; k++) x[k] *= factor;
        stash(own, d, p.D, fast, x);
    }
}

// op attention_sink_forward__lse grid(ceil(N*H, 256)) block(256)
extern "C" __global__ void __launch_bounds__(256) attention_sink_forward__lse(T_out* out, T_lse* lse, const T_sinks* sinks, Params p) {
    u64 row = blockIdx.x * 256ull + threadIdx.x;
    if (row < (u64)p.N * p.H) lse[row] = log_add(lse[row], widen(sinks[row % p.H]));
}

// op attention_sink_backward grid(H) block(1024)
// A block per head, a warp per token at a time; the lanes' sums meet once, at the end.
extern "C" __global__ void __launch_bounds__(1024) attention_sink_backward(T_dsinks* dsinks, const T_dout* dout, const T_out* out, const T_lse* lse, const T_sinks* sinks, Params p) {
    u32 h = blockIdx.x;
    float sink = widen(sinks[h]), sum = 0.f;
    bool fast_d = wide(dout, p.D), fast = wide(out, p.D);
    for (u64 n = threadIdx.x / 32; n < p.N; n += 32) {
        u64 row = n * p.H + h;
        float part = 0.f;
        for (u32 d = threadIdx.x % 32 * 8; d < p.D; d += 256) {
            float x[8], y[8];
            fetch(x, dout + row * p.D, d, p.D, fast_d);
            fetch(y, out + row * p.D, d, p.D, fast);
#pragma unroll
            for (int k = 0; k < 8; k++) part += x[k] * y[k];
        }
        sum += expf(sink - lse[row]) * part;
    }
    sum = block_sum<32>(sum);
    if (threadIdx.x == 0) put(dsinks + h, widen(dsinks[h]) - sum);
}

// gpt-oss's gated unit: gate_up holds gates and ups in turn. A thread takes 4 of each of one row at a time.

// The fast exponential is good to 1e-6 relative at |x| = 10, and this is memory traffic all the same.
INLINE float sigmoid(float x) { return __fdividef(1.f, 1.f + __expf(-x)); }
// Selects, not fminf: a NaN stays one.
INLINE float below(float x, float limit) { return x > limit ? limit : x; }

// op clamped_swiglu_forward grid(M, ceil(F, 512)) block(128)
extern "C" __global__ void __launch_bounds__(128) clamped_swiglu_forward(T_out* out, const T_gate_up* gate_up, const T_weights* weights, const T_rows* rows, Params p) {
    u64 m = blockIdx.x;
    u32 f = (blockIdx.y * 128 + threadIdx.x) * 4;
    float w = weights[rows[m]], x[8];
    fetch(x, gate_up + m * 2 * p.F, 2 * f, 2 * p.F, wide(gate_up, 2 * p.F));
#pragma unroll
    for (int k = 0; k < 4; k++) {
        float g = below(x[2 * k], p.limit), u = -below(-below(x[2 * k + 1], p.limit), p.limit);
        if (f + k < p.F) put(out + m * p.F + f + k, w * (g * sigmoid(p.alpha * g) * (u + 1.f)));
    }
}

// op clamped_swiglu_backward grid(M) block(128)
// A block per row, for the sum over it.
extern "C" __global__ void __launch_bounds__(128) clamped_swiglu_backward(T_dout* dout, T_gate_up* gate_up, T_dweights* dweights, const T_weights* weights, const T_rows* rows, Params p) {
    u64 m = blockIdx.x;
    bool fast = wide(gate_up, 2 * p.F);
    u32 slot = rows[m];
    float w = weights[slot], dot = 0.f;
    for (u32 f = threadIdx.x * 4; f < p.F; f += 512) {
        float x[8];
        fetch(x, gate_up + m * 2 * p.F, 2 * f, 2 * p.F, fast);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            T_dout* at = dout + m * p.F + f + k;
            float d = f + k < p.F ? widen(*at) : 0.f, dy = w * d;
            float g = below(x[2 * k], p.limit), u = -below(-below(x[2 * k + 1], p.limit), p.limit);
            float s = sigmoid(p.alpha * g), h = g * s * (u + 1.f);
            bool gate_moves = !(x[2 * k] > p.limit), up_moves = !(fabsf(x[2 * k + 1]) > p.limit);
            dot += d * h;
            x[2 * k] = gate_moves ? dy * (u + 1.f) * s * (1.f + p.alpha * g * (1.f - s)) : 0.f;
            x[2 * k + 1] = up_moves ? dy * g * s : 0.f;
            if (f + k < p.F) put(at, w * h);
        }
        stash(gate_up + m * 2 * p.F, 2 * f, 2 * p.F, fast, x);
    }
    dot = block_sum<4>(dot);
    if (threadIdx.x == 0) dweights[slot] = dot;
}

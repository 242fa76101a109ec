// Stochastic gradient descent; the decay is part of the gradient. Each thread takes 8 values.

// op sgd_step grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) sgd_step(T_weight* weight, const T_grad* grad, const T_scale* scale, Params p) {
    u64 i = (blockIdx.x * 256ull + threadIdx.x) * 8, P = p.P;
    bool fast = wide(weight, 0) && wide(grad, 0);
    float w[8], g[8], clip = scale[0];
    fetch(w, weight, i, P, fast), fetch(g, grad, i, P, fast);
#pragma unroll
    for (int k = 0; k < 8; k++) w[k] -= p.lr * (g[k] * clip + p.decay * w[k]);
    by_chance(w, i, p);
    stash(weight, i, P, fast, w);
}

// op sgd_step_momentum grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) sgd_step_momentum(T_weight* weight, T_m* m, const T_grad* grad, const T_scale* scale, Params p) {
    u64 i = (blockIdx.x * 256ull + threadIdx.x) * 8, P = p.P;
    bool fast = wide(weight, 0) && wide(m, 0) && wide(grad, 0);
    float w[8], x[8], g[8], clip = scale[0];
    fetch(w, weight, i, P, fast), fetch(x, m, i, P, fast), fetch(g, grad, i, P, fast);
#pragma unroll
    for (int k = 0; k < 8; k++) {
        float step = g[k] * clip + p.decay * w[k];
        x[k] = p.momentum * x[k] + p.rest * step;
        w[k] -= p.lr * (p.nesterov ? step + p.momentum * x[k] : x[k]);
    }
    by_chance(w, i, p);
    stash(weight, i, P, fast, w), stash(m, i, P, fast, x);
}

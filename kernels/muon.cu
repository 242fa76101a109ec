// Muon's elementwise parts; the products between them are those of the linear layers.

// op muon_momentum grid(ceil(N, 1 + 7*min(1, 1024/max(C, 1)))) block(256)
extern "C" __global__ void __launch_bounds__(256) muon_momentum(T_m* m, T_out* out, T_square* square, const T_grad* grad, const T_scale* scale, Params p) {
    Rows r = rows_of(p.C);
    u32 C = p.C;
    bool live = r.n < p.N, fast = wide(m, C) && wide(grad, C), fast_out = wide(out, C);
    u64 row = (u64)r.n * C;
    float clip = scale[0], sum = 0.f;
    for (u32 c = live ? r.lane * 8 : C; c < C; c += r.width * 8) {
        float x[8], g[8];
        fetch(x, m + row, c, C, fast), fetch(g, grad + row, c, C, fast);
#pragma unroll
        for (int k = 0; k < 8; k++) g[k] *= clip, x[k] += p.rest * (g[k] - x[k]);
        stash(m + row, c, C, fast, x);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            if (p.nesterov) x[k] = g[k] + p.momentum * (x[k] - g[k]);
            sum += x[k] * x[k];
        }
        stash(out + row, c, C, fast_out, x);
    }
    sum = row_sum(sum, r.width);
    if (live && r.lane == 0) square[r.n] = sum;
}

// Every block sums its matrix's squares once more: they are few, and near.
// op muon_normalize grid(ceil(N*C, 4096), E) block(256)
extern "C" __global__ void __launch_bounds__(256) muon_normalize(T_x* x, const T_square* square, Params p) {
    u64 size = (u64)p.N * p.C;
    const T_square* of = square + (u64)blockIdx.y * p.N;
    float sum = 0.f;
    for (u32 n = threadIdx.x; n < p.N; n += 256) sum += of[n];
    float factor = 1.f / fmaxf(sqrtf(block_sum<8>(sum)), p.eps);
    T_x* y = x + blockIdx.y * size;
    bool fast = wide(y, 0);
#pragma unroll
    for (int part = 0; part < 2; part++) {
        u64 i = blockIdx.x * 4096ull + (part * 256 + threadIdx.x) * 8;
        float v[8];
        fetch(v, y, i, size, fast);
#pragma unroll
        for (int k = 0; k < 8; k++) v[k] *= factor;
        stash(y, i, size, fast, v);
    }
}

// op muon_step grid(ceil(P, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) muon_step(T_weight* weight, const T_update* update, Params p) {
    u64 i = (blockIdx.x * 256ull + threadIdx.x) * 8, P = p.P;
    float w[8], u[8];
    fetch(w, weight, i, P, wide(weight, 0)), fetch(u, update, i, P, wide(update, 0));
#pragma unroll
    for (int k = 0; k < 8; k++) w[k] = w[k] * p.keep - p.lr * u[k];
    by_chance(w, i, p);
    stash(weight, i, P, wide(weight, 0), w);
}

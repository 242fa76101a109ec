// LayerNorm of N*H rows of C. A row is kept in registers between the passes over it, as far as KEEP chunks reach.

// op layernorm_forward grid(ceil(N*H, 1 + 7*min(1, 1024/max(C, 1)))) block(256)
extern "C" __global__ void __launch_bounds__(256) layernorm_forward(T_out* out, T_mean* mean, T_rstd* rstd, const T_inp* inp, const T_weight* weight, const T_bias* bias, Params p) {
    constexpr int KEEP = 4;
    Rows r = rows_of(p.C);
    u32 C = p.C, step = r.width * 8;
    u64 own = (u64)(r.n % p.H) * C;
    bool live = r.n < p.N * p.H, fast = wide(inp, C) && wide(out, C), fast_w = wide(weight, C), fast_b = p.bias && wide(bias, C);
    const T_inp* x = inp + (u64)r.n * C;
    float kept[KEEP][8], sum = 0.f, square = 0.f;
    u32 first = live ? r.lane * 8 : C, c = first;
#pragma unroll
    for (int i = 0; i < KEEP; i++, c += step)
        if (c < C) {
            fetch(kept[i], x, c, C, fast);
#pragma unroll
            for (int k = 0; k < 8; k++) sum += kept[i][k];
        }
    for (; c < C; c += step) {
        float more[8];
        fetch(more, x, c, C, fast);
#pragma unroll
        for (int k = 0; k < 8; k++) sum += more[k];
    }
    float m = row_sum(sum, r.width) / C;
    auto spread = [&](const float (&v)[8], u32 c) {
#pragma unroll
        for (int k = 0; k < 8; k++) square += c + k < C ? (v[k] - m) * (v[k] - m) : 0.f;
    };
    c = first;
#pragma unroll
    for (int i = 0; i < KEEP; i++, c += step)
        if (c < C) spread(kept[i], c);
    for (; c < C; c += step) {
        float more[8];
        fetch(more, x, c, C, fast);
        spread(more, c);
    }
    float scale = 1.f / sqrtf(row_sum(square, r.width) / C + p.eps);
    if (!live) return;
    if (r.lane == 0) mean[r.n] = m, rstd[r.n] = scale;
    T_out* y = out + (u64)r.n * C;
    auto finish = [&](float (&v)[8], u32 c) {
        float w[8], b[8] = {};
        fetch(w, weight + own, c, C, fast_w);
        if (p.bias) fetch(b, bias + own, c, C, fast_b);
#pragma unroll
        for (int k = 0; k < 8; k++) v[k] = (v[k] - m) * scale * w[k] + b[k];
        stash(y, c, C, fast, v);
    };
    c = first;
#pragma unroll
    for (int i = 0; i < KEEP; i++, c += step)
        if (c < C) finish(kept[i], c);
    for (; c < C; c += step) {
        float more[8];
        fetch(more, x, c, C, fast);
        finish(more, c);
    }
}

// op layernorm_backward grid(ceil(N*H, 1 + 7*min(1, 1024/max(C, 1)))) block(256)
extern "C" __global__ void __launch_bounds__(256) layernorm_backward(T_dinp* dinp, const T_dout* dout, const T_inp* inp, const T_weight* weight, const T_mean* mean, const T_rstd* rstd, Params p) {
    constexpr int KEEP = 2;
    Rows r = rows_of(p.C);
    u32 C = p.C, step = r.width * 8;
    bool live = r.n < p.N * p.H, fast = wide(inp, C) && wide(dout, C) && wide(dinp, C), fast_w = wide(weight, C);
    const T_inp* x = inp + (u64)r.n * C;
    const T_dout* dy = dout + (u64)r.n * C;
    const T_weight* own = weight + (u64)(r.n % p.H) * C;
    float m = live ? mean[r.n] : 0.f, scale = live ? rstd[r.n] : 0.f, sum = 0.f, product = 0.f;
    // g = dout·weight and x̂ of one chunk; their share of the row's sums
    auto read = [&](float (&g)[8], float (&v)[8], u32 c) {
        float w[8];
        fetch(v, x, c, C, fast), fetch(g, dy, c, C, fast), fetch(w, own, c, C, fast_w);
#pragma unroll
        for (int k = 0; k < 8; k++) g[k] *= w[k], v[k] = (v[k] - m) * scale;
    };
    auto count = [&](const float (&g)[8], const float (&v)[8]) {
#pragma unroll
        for (int k = 0; k < 8; k++) sum += g[k], product += g[k] * v[k];
    };
    float g[KEEP][8], v[KEEP][8];
    u32 first = live ? r.lane * 8 : C, c = first;
#pragma unroll
    for (int i = 0; i < KEEP; i++, c += step)
        if (c < C) read(g[i], v[i], c), count(g[i], v[i]);
    for (; c < C; c += step) {
        float g_more[8], v_more[8];
        read(g_more, v_more, c), count(g_more, v_more);
    }
    float g_mean = row_sum(sum, r.width) / C, dot = row_sum(product, r.width) / C;
    if (!live) return;
    T_dinp* dx = dinp + (u64)r.n * C;
    auto finish = [&](const float (&g)[8], const float (&v)[8], u32 c) {
        float d[8];
        fetch(d, dx, c, C, fast);
#pragma unroll
        for (int k = 0; k < 8; k++) d[k] += scale * (g[k] - g_mean - v[k] * dot);
        stash(dx, c, C, fast, d);
    };
    c = first;
#pragma unroll
    for (int i = 0; i < KEEP; i++, c += step)
        if (c < C) finish(g[i], v[i], c);
    for (; c < C; c += step) {
        float g_more[8], v_more[8];
        read(g_more, v_more, c);
        finish(g_more, v_more, c);
    }
}

// 32 columns by 32 row lanes, as bias_backward.
// op layernorm_backward_weight grid(ceil(H*C, 32)) block(1024)
extern "C" __global__ void __launch_bounds__(1024) layernorm_backward_weight(T_dweight* dweight, const T_dout* dout, const T_inp* inp, const T_mean* mean, const T_rstd* rstd, Params p) {
    __shared__ float part[32][33];
    u32 row = p.H * p.C, lane = threadIdx.x % 32, rows = threadIdx.x / 32, c = blockIdx.x * 32 + lane, h = c / p.C;
    float sum = 0.f;
    if (c < row) {
#pragma unroll 8
        for (u32 n = rows; n < p.N; n += 32) {
            u64 i = (u64)n * row + c, j = (u64)n * p.H + h;
            sum += widen(dout[i]) * (widen(inp[i]) - mean[j]) * rstd[j];
        }
    }
    part[lane][rows] = sum;
    __syncthreads();
    sum = warp_sum(part[rows][lane]);
    u32 column = blockIdx.x * 32 + rows;
    if (lane == 0 && column < row) dweight[column] += sum;
}

// RMSNorm. A row is kept in registers between the two passes over it, as far as KEEP chunks reach.

// out and rstd of row r.n; `take` gives chunks of it as they are stored: at first (true), and again (false).
template <typename O, typename Rstd, typename Weight, typename Take> INLINE void normed(O* out, Rstd* rstd, const Weight* weight, const Params& p, bool fast, const Take& take) {
    constexpr int KEEP = 4;
    Rows r = rows_of(p.C);
    u32 C = p.C, step = r.width * 8;
    bool live = r.n < p.N, fast_w = wide(weight, 0);
    float kept[KEEP][8], sum = 0.f;
    u32 c = live ? r.lane * 8 : C;
#pragma unroll
    for (int i = 0; i < KEEP; i++, c += step)
        if (c < C) {
            take(kept[i], r.n, c, true);
#pragma unroll
            for (int k = 0; k < 8; k++) sum += kept[i][k] * kept[i][k];
        }
    for (; c < C; c += step) {
        float more[8];
        take(more, r.n, c, true);
#pragma unroll
        for (int k = 0; k < 8; k++) sum += more[k] * more[k];
    }
    float scale = 1.f / sqrtf(row_sum(sum, r.width) / C + p.eps);
    if (!live) return;
    if (r.lane == 0) rstd[r.n] = scale;
    O* y = out + (u64)r.n * C;
    c = r.lane * 8;
    auto finish = [&](float (&v)[8]) {
        float w[8];
        fetch(w, weight, c, C, fast_w);
#pragma unroll
        for (int k = 0; k < 8; k++) v[k] = v[k] * scale * (w[k] + p.shift);
        stash(y, c, C, fast, v);
    };
#pragma unroll
    for (int i = 0; i < KEEP; i++, c += step)
        if (c < C) finish(kept[i]);
    for (; c < C; c += step) {
        float more[8];
        take(more, r.n, c, false);
        finish(more);
    }
}

// op rmsnorm_forward grid(ceil(N, 1 + 7*min(1, 1024/max(C, 1)))) block(256)
extern "C" __global__ void __launch_bounds__(256) rmsnorm_forward(T_out* out, T_rstd* rstd, const T_inp* inp, const T_weight* weight, Params p) {
    bool fast = wide(inp, p.C) && wide(out, p.C);
    normed(out, rstd, weight, p, fast, [&](float (&x)[8], u32 n, u32 c, bool) { fetch(x, inp + (u64)n * p.C, c, p.C, fast); });
}

// op rmsnorm_residual_forward grid(ceil(N, 1 + 7*min(1, 1024/max(C, 1)))) block(256)
extern "C" __global__ void __launch_bounds__(256) rmsnorm_residual_forward(T_out* out, T_rstd* rstd, T_sum* sum, const T_a* a, const T_b* b, const T_weight* weight, Params p) {
    bool fast = wide(a, p.C) && wide(b, p.C) && wide(sum, p.C) && wide(out, p.C);
    normed(out, rstd, weight, p, fast, [&](float (&x)[8], u32 n, u32 c, bool first) {
        u64 row = (u64)n * p.C;
        if (first) {
            float y[8];
            fetch(x, a + row, c, p.C, fast), fetch(y, b + row, c, p.C, fast);
#pragma unroll
            for (int k = 0; k < 8; k++) x[k] = stored<T_sum>(x[k] + p.scale * y[k]);
            stash(sum + row, c, p.C, fast, x);
        } else {
            fetch(x, sum + row, c, p.C, fast);
        }
    });
}

// op rmsnorm_backward grid(ceil(N, 1 + 7*min(1, 1024/max(C, 1)))) block(256)
extern "C" __global__ void __launch_bounds__(256) rmsnorm_backward(T_dinp* dinp, const T_dout* dout, const T_inp* inp, const T_weight* weight, const T_rstd* rstd, Params p) {
    constexpr int KEEP = 2;
    Rows r = rows_of(p.C);
    u32 C = p.C, step = r.width * 8;
    bool live = r.n < p.N, fast = wide(inp, C) && wide(dout, C) && wide(dinp, C), fast_w = wide(weight, 0);
    const T_inp* x = inp + (u64)r.n * C;
    const T_dout* dy = dout + (u64)r.n * C;
    // g = dout·(weight + shift) and x of one chunk; their share of the row's dot product
    auto read = [&](float (&g)[8], float (&v)[8], u32 c) {
        float w[8], sum = 0.f;
        fetch(v, x, c, C, fast), fetch(g, dy, c, C, fast), fetch(w, weight, c, C, fast_w);
#pragma unroll
        for (int k = 0; k < 8; k++) g[k] *= w[k] + p.shift, sum += g[k] * v[k];
        return sum;
    };
    float g[KEEP][8], v[KEEP][8], sum = 0.f;
    u32 c = live ? r.lane * 8 : C;
#pragma unroll
    for (int i = 0; i < KEEP; i++, c += step)
        if (c < C) sum += read(g[i], v[i], c);
    for (; c < C; c += step) {
        float g_more[8], v_more[8];
        sum += read(g_more, v_more, c);
    }
    float dot = row_sum(sum, r.width) / C;
    if (!live) return;
    float scale = rstd[r.n], slope = scale * scale * dot;
    T_dinp* dx = dinp + (u64)r.n * C;
    c = r.lane * 8;
    auto finish = [&](float (&g)[8], float (&v)[8]) {
        float d[8];
        fetch(d, dx, c, C, fast);
#pragma unroll
        for (int k = 0; k < 8; k++) d[k] += scale * (g[k] - v[k] * slope);
        stash(dx, c, C, fast, d);
    };
#pragma unroll
    for (int i = 0; i < KEEP; i++, c += step)
        if (c < C) finish(g[i], v[i]);
    for (; c < C; c += step) {
        float g_more[8], v_more[8];
        read(g_more, v_more, c);
        finish(g_more, v_more);
    }
}

// 32 columns by 32 row lanes, as bias_backward.
// op rmsnorm_backward_weight grid(ceil(C, 32)) block(1024)
extern "C" __global__ void __launch_bounds__(1024) rmsnorm_backward_weight(T_dweight* dweight, const T_dout* dout, const T_inp* inp, const T_rstd* rstd, Params p) {
    __shared__ float part[32][33];
    u32 lane = threadIdx.x % 32, rows = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
    float sum = 0.f;
    if (c < p.C) {
#pragma unroll 8
        for (u32 n = rows; n < p.N; n += 32) {
            u64 i = (u64)n * p.C + c;
            sum += widen(dout[i]) * widen(inp[i]) * rstd[n];
        }
    }
    part[lane][rows] = sum;
    __syncthreads();
    sum = warp_sum(part[rows][lane]);
    u32 column = blockIdx.x * 32 + rows;
    if (lane == 0 && column < p.C) dweight[column] += sum;
}

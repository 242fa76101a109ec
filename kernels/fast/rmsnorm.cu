// RMSNorm of rows of up to THREADS·8·KEEP elements in a 16-bit type, C a multiple of 8, rows that start at multiples of 16 bytes. A
// row belongs to THREADS threads of a block of 128: it is read once, all of it at the same time, and stays in registers as it lies
// in memory. With a warp for a row nobody waits for another warp.
typedef T_weight T;

// Of this thread: its row, and its place among the row's threads.
INLINE u32 own_row() { return blockIdx.x * (128 / THREADS) + threadIdx.x / THREADS; }
INLINE float sum_of_row(float x) { return THREADS == 32 ? warp_sum(x) : block_sum<4>(x); }

template <typename F> INLINE void each_chunk(u32 C, F then) {
    u32 c = threadIdx.x % THREADS * 8;
#pragma unroll
    for (int i = 0; i < KEEP; i++, c += THREADS * 8)
        if (c < C) then(i, c);
}

// The row out, from what is kept of the row that went in.
template <typename O, typename R, typename W> INLINE void finish(O* out, R* rstd, const W* weight, float scale, const uint4 (&kept)[KEEP], const Params& p) {
    if (threadIdx.x % THREADS == 0) rstd[own_row()] = scale;
    each_chunk(p.C, [&](int i, u32 c) {
        float x[8], w[8];
        unpack8<T>(x, kept[i]), load8(w, weight + c);
#pragma unroll
        for (int k = 0; k < 8; k++) x[k] = x[k] * scale * (w[k] + p.shift);
        store8(out + c, x);
    });
}

// op rmsnorm_forward grid(ceil(N, 128/THREADS)) block(128)
extern "C" __global__ void __launch_bounds__(128) rmsnorm_forward(T_out* out, T_rstd* rstd, const T_inp* inp, const T_weight* weight, Params p) {
    u32 C = p.C, n = min(own_row(), p.N - 1);
    uint4 kept[KEEP];
    float x[8], sum = 0.f;
    each_chunk(C, [&](int i, u32 c) { kept[i] = *(const uint4*)(inp + (u64)n * C + c); });
    each_chunk(C, [&](int i, u32) {
        unpack8<T>(x, kept[i]);
#pragma unroll
        for (int k = 0; k < 8; k++) sum += x[k] * x[k];
    });
    float scale = 1.f / sqrtf(sum_of_row(sum) / C + p.eps);
    if (own_row() < p.N) finish(out + (u64)n * C, rstd, weight, scale, kept, p);
}

// op rmsnorm_residual_forward grid(ceil(N, 128/THREADS)) block(128)
extern "C" __global__ void __launch_bounds__(128) rmsnorm_residual_forward(T_out* out, T_rstd* rstd, T_sum* sum, const T_a* a, const T_b* b, const T_weight* weight, Params p) {
    u64 row = (u64)min(own_row(), p.N - 1) * p.C;
    bool live = own_row() < p.N;
    uint4 kept[KEEP], more[KEEP];
    each_chunk(p.C, [&](int i, u32 c) {
        kept[i] = *(const uint4*)(a + row + c);
        more[i] = *(const uint4*)(b + row + c);
    });
    float squares = 0.f;
    each_chunk(p.C, [&](int i, u32 c) {
        float x[8], y[8];
        unpack8<T>(x, kept[i]), unpack8<T>(y, more[i]);
#pragma unroll
        for (int k = 0; k < 8; k++) x[k] += p.scale * y[k];
        // as it is stored, so that the norm made again is the same
        kept[i] = pack8<T>(x);
        if (live) *(uint4*)(sum + row + c) = kept[i];
        unpack8<T>(x, kept[i]);
#pragma unroll
        for (int k = 0; k < 8; k++) squares += x[k] * x[k];
    });
    float scale = 1.f / sqrtf(sum_of_row(squares) / p.C + p.eps);
    if (live) finish(out + row, rstd, weight, scale, kept, p);
}

// op rmsnorm_backward grid(ceil(N, 128/THREADS)) block(128)
extern "C" __global__ void __launch_bounds__(128) rmsnorm_backward(T_dinp* dinp, const T_dout* dout, const T_inp* inp, const T_weight* weight, const T_rstd* rstd, Params p) {
    u32 C = p.C, n = min(own_row(), p.N - 1);
    uint4 xs[KEEP], gs[KEEP];
    float x[8], g[8], w[8], d[8], sum = 0.f;
    each_chunk(C, [&](int i, u32 c) {
        xs[i] = *(const uint4*)(inp + (u64)n * C + c);
        gs[i] = *(const uint4*)(dout + (u64)n * C + c);
    });
    each_chunk(C, [&](int i, u32 c) {
        unpack8<T>(x, xs[i]), unpack8<T>(g, gs[i]);
        load8(w, weight + c);
#pragma unroll
        for (int k = 0; k < 8; k++) sum += g[k] * (w[k] + p.shift) * x[k];
    });
    float scale = rstd[n], slope = scale * scale * (sum_of_row(sum) / C);
    if (own_row() >= p.N) return;
    each_chunk(C, [&](int i, u32 c) {
        T_dinp* at = dinp + (u64)n * C + c;
        unpack8<T>(x, xs[i]), unpack8<T>(g, gs[i]);
        load8(w, weight + c), load8(d, at);
#pragma unroll
        for (int k = 0; k < 8; k++) d[k] += scale * (g[k] * (w[k] + p.shift) - x[k] * slope);
        store8(at, d);
    });
}

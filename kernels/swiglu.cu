// SwiGLU and GeGLU. Each thread takes 8 values of one row. Where all of them are read 16 bytes at a time, nothing stands between
// the loads, so that they are under way together.

template <bool WHOLE, typename T> INLINE void take(float (&x)[8], const T* row, u64 f, u32 F, bool fast) {
    if (WHOLE) load8(x, row + f);
    else fetch(x, row, f, F, fast);
}
template <bool WHOLE, typename T> INLINE void give(T* row, u64 f, u32 F, bool fast, const float (&x)[8]) {
    if (WHOLE) store8(row + f, x);
    else stash(row, f, F, fast, x);
}
// SILU: which activation it is, is known.
template <bool SILU> INLINE Gate gate_at(float x, const Params& p) { return gating(x, SILU ? 0 : p.act, p.slope, p.cubic); }

template <bool WHOLE, bool SILU, typename O, typename G, typename U> INLINE void forward(O* out, const G* gate, const U* up, u64 f, const Params& p) {
    float g[8], u[8];
    take<WHOLE>(g, gate, f, p.F, wide(gate, p.ld_gate));
    take<WHOLE>(u, up, f, p.F, wide(up, p.ld_up));
#pragma unroll
    for (int k = 0; k < 8; k++) g[k] = g[k] * gate_at<SILU>(g[k], p).s * u[k];
    give<WHOLE>(out, f, p.F, wide(out, p.F), g);
}

template <bool WHOLE, bool SILU, typename D, typename G, typename U> INLINE void backward(D* dout, G* gate, U* up, u64 f, const Params& p) {
    float d[8], g[8], u[8];
    take<WHOLE>(d, dout, f, p.F, wide(dout, p.F));
    take<WHOLE>(g, gate, f, p.F, wide(gate, p.ld_gate));
    take<WHOLE>(u, up, f, p.F, wide(up, p.ld_up));
#pragma unroll
    for (int k = 0; k < 8; k++) {
        float dy = d[k], x = g[k];
        Gate act = gate_at<SILU>(x, p);
        d[k] = x * act.s * u[k];
        g[k] = dy * u[k] * act.slope;
        u[k] = dy * x * act.s;
    }
    give<WHOLE>(dout, f, p.F, wide(dout, p.F), d);
    give<WHOLE>(gate, f, p.F, wide(gate, p.ld_gate), g);
    give<WHOLE>(up, f, p.F, wide(up, p.ld_up), u);
}

// op swiglu_forward grid(N, ceil(F, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) swiglu_forward(T_out* out, const T_gate* gate, const T_up* up, Params p) {
    u64 n = blockIdx.x, f = (blockIdx.y * 256 + threadIdx.x) * 8;
    out += n * p.F, gate += n * p.ld_gate, up += n * p.ld_up;
    bool whole = f + 8 <= p.F && wide(out, p.F) && wide(gate, p.ld_gate) && wide(up, p.ld_up);
    if (whole && p.act == 0) forward<true, true>(out, gate, up, f, p);
    else if (whole) forward<true, false>(out, gate, up, f, p);
    else forward<false, false>(out, gate, up, f, p);
}

// op swiglu_backward grid(N, ceil(F, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) swiglu_backward(T_dout* dout, T_gate* gate, T_up* up, Params p) {
    u64 n = blockIdx.x, f = (blockIdx.y * 256 + threadIdx.x) * 8;
    dout += n * p.F, gate += n * p.ld_gate, up += n * p.ld_up;
    bool whole = f + 8 <= p.F && wide(dout, p.F) && wide(gate, p.ld_gate) && wide(up, p.ld_up);
    if (whole && p.act == 0) backward<true, true>(dout, gate, up, f, p);
    else if (whole) backward<true, false>(dout, gate, up, f, p);
    else backward<false, false>(dout, gate, up, f, p);
}

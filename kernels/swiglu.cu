// SwiGLU and GeGLU. Each thread takes 8 values of one row. Where all of them are read 16 bytes at a time, nothing stands between
// the loads, so that they are under way together; and which activation it is, is asked once.

template <bool WHOLE, typename T> INLINE void take(float (&x)[8], const T* row, u64 f, u32 F, bool fast) {
    if (WHOLE) load8(x, row + f);
    else fetch(x, row, f, F, fast);
}
template <bool WHOLE, typename T> INLINE void give(T* row, u64 f, u32 F, bool fast, const float (&x)[8]) {
    if (WHOLE) store8(row + f, x);
    else stash(row, f, F, fast, x);
}
// then(gate) with the gate of p.act.
template <typename F> INLINE void with_gate(const Params& p, F then) {
    if (p.act == 0) then([&](float x) { return gating(x, 0, p.slope, p.cubic); });
    else then([&](float x) { return gating(x, p.act, p.slope, p.cubic); });
}

template <bool WHOLE> INLINE void forward(T_out* out, const T_gate* gate, const T_up* up, u64 f, const Params& p) {
    float g[8], u[8];
    take<WHOLE>(g, gate, f, p.F, wide(gate, p.ld_gate));
    take<WHOLE>(u, up, f, p.F, wide(up, p.ld_up));
    with_gate(p, [&](auto gate_at) {
#pragma unroll
        for (int k = 0; k < 8; k++) g[k] = g[k] * gate_at(g[k]).s * u[k];
    });
    give<WHOLE>(out, f, p.F, wide(out, p.F), g);
}

// op swiglu_forward grid(N, ceil(F, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) swiglu_forward(T_out* out, const T_gate* gate, const T_up* up, Params p) {
    u64 n = blockIdx.x, f = (blockIdx.y * 256 + threadIdx.x) * 8;
    out += n * p.F, gate += n * p.ld_gate, up += n * p.ld_up;
    bool whole = f + 8 <= p.F && wide(out, p.F) && wide(gate, p.ld_gate) && wide(up, p.ld_up);
    if (whole) forward<true>(out, gate, up, f, p);
    else forward<false>(out, gate, up, f, p);
}

template <bool WHOLE> INLINE void backward(T_dout* dout, T_gate* gate, T_up* up, u64 f, const Params& p) {
    float d[8], g[8], u[8];
    take<WHOLE>(d, dout, f, p.F, wide(dout, p.F));
    take<WHOLE>(g, gate, f, p.F, wide(gate, p.ld_gate));
    take<WHOLE>(u, up, f, p.F, wide(up, p.ld_up));
    with_gate(p, [&](auto gate_at) {
#pragma unroll
        for (int k = 0; k < 8; k++) {
            float dy = d[k], x = g[k];
            Gate act = gate_at(x);
            d[k] = x * act.s * u[k];
            g[k] = dy * u[k] * act.slope;
            u[k] = dy * x * act.s;
        }
    });
    give<WHOLE>(dout, f, p.F, wide(dout, p.F), d);
    give<WHOLE>(gate, f, p.F, wide(gate, p.ld_gate), g);
    give<WHOLE>(up, f, p.F, wide(up, p.ld_up), u);
}

// op swiglu_backward grid(N, ceil(F, 2048)) block(256)
extern "C" __global__ void __launch_bounds__(256) swiglu_backward(T_dout* dout, T_gate* gate, T_up* up, Params p) {
    u64 n = blockIdx.x, f = (blockIdx.y * 256 + threadIdx.x) * 8;
    dout += n * p.F, gate += n * p.ld_gate, up += n * p.ld_up;
    bool whole = f + 8 <= p.F && wide(dout, p.F) && wide(gate, p.ld_gate) && wide(up, p.ld_up);
    if (whole) backward<true>(dout, gate, up, f, p);
    else backward<false>(dout, gate, up, f, p);
}

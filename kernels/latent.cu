// Copies between heads of other sizes. A block has one token and 1024 of its channels, neighbouring threads neighbouring ones.

// Where the turning channel d of q and k comes from, and where channel c goes.
INLINE u32 source(u32 d, const Params& p) { return !p.pairs ? d : d < p.A / 2 ? 2 * d : 2 * (d - p.A / 2) + 1; }
INLINE u32 target(u32 c, const Params& p) { return !p.pairs ? c : c / 2 + (c % 2) * (p.A / 2); }

#define EACH(row) u32 at = blockIdx.y * 1024 + threadIdx.x, end = min(blockIdx.y * 1024 + 1024, row); at < end; at += 128

// op latent_query_forward grid(N, ceil(H*D, 1024)) block(128)
extern "C" __global__ void __launch_bounds__(128) latent_query_forward(T_q* q, const T_inp* inp, Params p) {
    u64 n = blockIdx.x;
    inp += n * p.H * (p.U + p.A), q += n * p.H * p.D;
    for (EACH(p.H * p.D)) {
        u32 head = at / p.D * (p.U + p.A), d = at % p.D;
        float x = d < p.A ? widen(inp[head + p.U + source(d, p)]) : d < p.A + p.U ? widen(inp[head + d - p.A]) : 0.f;
        put(q + at, x);
    }
}

// op latent_query_backward grid(N, ceil(H*(U + A), 1024)) block(128)
extern "C" __global__ void __launch_bounds__(128) latent_query_backward(T_dinp* dinp, const T_dq* dq, Params p) {
    u64 n = blockIdx.x;
    dinp += n * p.H * (p.U + p.A), dq += n * p.H * p.D;
    for (EACH(p.H * (p.U + p.A))) {
        u32 head = at / (p.U + p.A) * p.D, c = at % (p.U + p.A);
        put(dinp + at, widen(dq[head + (c < p.U ? p.A + c : target(c - p.U, p))]));
    }
}

// op latent_kv_forward grid(N, ceil(H*D, 1024)) block(128)
extern "C" __global__ void __launch_bounds__(128) latent_kv_forward(T_k* k, T_v* v, const T_kv* kv, const T_rope* rope, Params p) {
    u64 n = blockIdx.x;
    kv += n * p.H * (p.U + p.Y), rope += n * p.A, k += n * p.H * p.D, v += n * p.H * p.D;
    for (EACH(p.H * p.D)) {
        u32 head = at / p.D * (p.U + p.Y), d = at % p.D;
        put(k + at, d < p.A ? widen(rope[source(d, p)]) : d < p.A + p.U ? widen(kv[head + d - p.A]) : 0.f);
        put(v + at, d < p.Y ? widen(kv[head + p.U + d]) : 0.f);
    }
}

// op latent_kv_backward grid(N, ceil(H*(U + Y), 1024)) block(128)
extern "C" __global__ void __launch_bounds__(128) latent_kv_backward(T_dkv* dkv, T_drope* drope, const T_dk* dk, const T_dv* dv, Params p) {
    u64 n = blockIdx.x;
    dkv += n * p.H * (p.U + p.Y), dk += n * p.H * p.D, dv += n * p.H * p.D;
    for (EACH(p.H * (p.U + p.Y))) {
        u32 head = at / (p.U + p.Y) * p.D, c = at % (p.U + p.Y);
        put(dkv + at, c < p.U ? widen(dk[head + p.A + c]) : widen(dv[head + c - p.U]));
    }
}

// op latent_kv_backward__rope grid(N, ceil(A, 128)) block(128)
extern "C" __global__ void __launch_bounds__(128) latent_kv_backward__rope(T_dkv* dkv, T_drope* drope, const T_dk* dk, const T_dv* dv, Params p) {
    u64 n = blockIdx.x;
    u32 c = blockIdx.y * 128 + threadIdx.x;
    if (c >= p.A) return;
    dk += n * p.H * p.D + target(c, p);
    float sum = 0.f;
#pragma unroll 4
    for (u32 h = 0; h < p.H; h++) sum += widen(dk[h * p.D]);
    put(drope + n * p.A + c, sum);
}

// op latent_output_forward grid(N, ceil(H*Y, 1024)) block(128)
extern "C" __global__ void __launch_bounds__(128) latent_output_forward(T_out* out, const T_att* att, Params p) {
    u64 n = blockIdx.x;
    out += n * p.H * p.Y, att += n * p.H * p.D;
    for (EACH(p.H * p.Y)) put(out + at, widen(att[at / p.Y * p.D + at % p.Y]));
}

// op latent_output_backward grid(N, ceil(H*D, 1024)) block(128)
extern "C" __global__ void __launch_bounds__(128) latent_output_backward(T_datt* datt, const T_dout* dout, Params p) {
    u64 n = blockIdx.x;
    datt += n * p.H * p.D, dout += n * p.H * p.Y;
    for (EACH(p.H * p.D)) put(datt + at, at % p.D < p.Y ? widen(dout[at / p.D * p.Y + at % p.D]) : 0.f);
}

// Copies between heads of other sizes. A block has one token and 1024 of its channels; where every part of a head is a multiple
// of 8 channels, a thread takes 8 neighbours, else single ones.

INLINE bool eights(const Params& p) { return p.A % 8 == 0 && p.U % 8 == 0 && p.Y % 8 == 0 && p.D % 8 == 0; }

// 8 elements or one; zeros where there is nothing to copy.
template <typename T, typename F> INLINE void move(T* to, const F* from, bool some, bool fast) {
    if (!fast) return put(to, some ? widen(*from) : 0.f);
    float x[8] = {};
    if (some) load8(x, from);
    store8(to, x);
}

#define EACH(row, fast)                                                                                                     \
    u32 step = (fast) ? 8 : 1, at = blockIdx.y * 1024 + threadIdx.x * step, end = min(blockIdx.y * 1024 + 1024, row); at < end; at += 128 * step

// op latent_query_forward grid(N, ceil(H*D, 1024)) block(128)
extern "C" __global__ void __launch_bounds__(128) latent_query_forward(T_q* q, const T_inp* inp, Params p) {
    u64 n = blockIdx.x;
    bool fast = eights(p) && wide(q, 0) && wide(inp, 0);
    inp += n * p.H * (p.U + p.A), q += n * p.H * p.D;
    for (EACH(p.H * p.D, fast)) {
        u32 head = at / p.D * (p.U + p.A), d = at % p.D;
        move(q + at, inp + head + (d < p.A ? p.U + d : d - p.A), d < p.A + p.U, fast);
    }
}

// op latent_query_backward grid(N, ceil(H*(U + A), 1024)) block(128)
extern "C" __global__ void __launch_bounds__(128) latent_query_backward(T_dinp* dinp, const T_dq* dq, Params p) {
    u64 n = blockIdx.x;
    bool fast = eights(p) && wide(dinp, 0) && wide(dq, 0);
    dinp += n * p.H * (p.U + p.A), dq += n * p.H * p.D;
    for (EACH(p.H * (p.U + p.A), fast)) {
        u32 head = at / (p.U + p.A) * p.D, c = at % (p.U + p.A);
        move(dinp + at, dq + head + (c < p.U ? p.A + c : c - p.U), true, fast);
    }
}

// op latent_kv_forward grid(N, ceil(H*D, 1024)) block(128)
extern "C" __global__ void __launch_bounds__(128) latent_kv_forward(T_k* k, T_v* v, const T_kv* kv, const T_rope* rope, Params p) {
    u64 n = blockIdx.x;
    bool fast = eights(p) && wide(k, 0) && wide(v, 0) && wide(kv, 0) && wide(rope, 0);
    kv += n * p.H * (p.U + p.Y), rope += n * p.A, k += n * p.H * p.D, v += n * p.H * p.D;
    for (EACH(p.H * p.D, fast)) {
        u32 head = at / p.D * (p.U + p.Y), d = at % p.D;
        if (d < p.A) move(k + at, rope + d, true, fast);
        else move(k + at, kv + head + d - p.A, d < p.A + p.U, fast);
        move(v + at, kv + head + p.U + d, d < p.Y, fast);
    }
}

// op latent_kv_backward grid(N, ceil(H*(U + Y), 1024)) block(128)
extern "C" __global__ void __launch_bounds__(128) latent_kv_backward(T_dkv* dkv, T_drope* drope, const T_dk* dk, const T_dv* dv, Params p) {
    u64 n = blockIdx.x;
    bool fast = eights(p) && wide(dkv, 0) && wide(dk, 0) && wide(dv, 0);
    dkv += n * p.H * (p.U + p.Y), dk += n * p.H * p.D, dv += n * p.H * p.D;
    for (EACH(p.H * (p.U + p.Y), fast)) {
        u32 head = at / (p.U + p.Y) * p.D, c = at % (p.U + p.Y);
        if (c < p.U) move(dkv + at, dk + head + p.A + c, true, fast);
        else move(dkv + at, dv + head + c - p.U, true, fast);
    }
}

// op latent_kv_backward__rope grid(N, ceil(A, 128)) block(128)
extern "C" __global__ void __launch_bounds__(128) latent_kv_backward__rope(T_dkv* dkv, T_drope* drope, const T_dk* dk, const T_dv* dv, Params p) {
    u64 n = blockIdx.x;
    u32 d = blockIdx.y * 128 + threadIdx.x;
    if (d >= p.A) return;
    dk += n * p.H * p.D + d;
    float sum = 0.f;
#pragma unroll 4
    for (u32 h = 0; h < p.H; h++) sum += widen(dk[h * p.D]);
    put(drope + n * p.A + d, sum);
}

// op latent_output_forward grid(N, ceil(H*Y, 1024)) block(128)
extern "C" __global__ void __launch_bounds__(128) latent_output_forward(T_out* out, const T_att* att, Params p) {
    u64 n = blockIdx.x;
    bool fast = eights(p) && wide(out, 0) && wide(att, 0);
    out += n * p.H * p.Y, att += n * p.H * p.D;
    for (EACH(p.H * p.Y, fast)) move(out + at, att + at / p.Y * p.D + at % p.Y, true, fast);
}

// op latent_output_backward grid(N, ceil(H*D, 1024)) block(128)
extern "C" __global__ void __launch_bounds__(128) latent_output_backward(T_datt* datt, const T_dout* dout, Params p) {
    u64 n = blockIdx.x;
    bool fast = eights(p) && wide(datt, 0) && wide(dout, 0);
    datt += n * p.H * p.D, dout += n * p.H * p.Y;
    for (EACH(p.H * p.D, fast)) move(datt + at, dout + at / p.D * p.Y + at % p.D, at % p.D < p.Y, fast);
}

// RoPE: element d of a head turns with element d + A/2 (halves), or element 2d with 2d + 1 (interleaved), d < A/2. A thread takes 8
// pairs of a token: at once where rows are aligned and D and A/2 are multiples of 8, so that they are of one head; else one by one.

// 8 pairs, the first of them d; a head begins at `head`.
template <bool INTERLEAVED, typename T> INLINE void rotate8(T* head, u32 d, u32 half, const float* cosine, const float* sine, float sign) {
    T* low = head + (INTERLEAVED ? 2 * d : d);
    T* high = INTERLEAVED ? low + 8 : low + half;
    float x[2][8], c[8], s[8];
    load8(x[0], low), load8(x[1], high), load8(c, cosine + d), load8(s, sine + d);
#pragma unroll
    for (int k = 0; k < 8; k++) {
        float& a = INTERLEAVED ? x[k / 4][2 * k % 8] : x[0][k];
        float& b = INTERLEAVED ? x[k / 4][2 * k % 8 + 1] : x[1][k];
        float turned = a * c[k] - b * (s[k] * sign);
        b = b * c[k] + a * (s[k] * sign);
        a = turned;
    }
    store8(low, x[0]), store8(high, x[1]);
}

// Pairs 8·i..8·i + 8 of a token; i counts on from token to token, so that few heads fill a block, too.
template <typename T> INLINE void rotate(T* x, const float* table, const u32* positions, const Params& p, float sign) {
    u32 half = p.A / 2, pairs = p.H * half, each = (pairs + 7) / 8;
    u32 i = blockIdx.x * 128 + threadIdx.x, n = i / each, first = i % each * 8;
    if (n >= p.N) return;
    u32 position = positions[n];
    REQUIRE(position < p.T);
    const float* cosine = table + (u64)position * p.A;
    const float* sine = cosine + half;
    T* row = x + (u64)n * p.ld_x;
    if (wide(x, p.ld_x) && half % 8 == 0 && p.D % 8 == 0 && wide(table, 0)) {
        T* head = row + first / half * p.D;
        if (p.interleaved) rotate8<true>(head, first % half, half, cosine, sine, sign);
        else rotate8<false>(head, first % half, half, cosine, sine, sign);
        return;
    }
    u32 stride = p.interleaved ? 2 : 1, gap = p.interleaved ? 1 : half;
    for (u32 pair = first; pair < min(first + 8, pairs); pair++) {
        u32 h = pair / half, d = pair % half;
        T* at = row + h * p.D + d * stride;
        float a = widen(at[0]), b = widen(at[gap]), c = cosine[d], s = sine[d] * sign;
        put(at, a * c - b * s);
        put(at + gap, b * c + a * s);
    }
}

// op rope_forward grid(ceil(N*ceil(H*A, 16), 128)) block(128)
extern "C" __global__ void __launch_bounds__(128) rope_forward(T_x* x, const T_table* table, const T_positions* positions, Params p) {
    rotate(x, table, positions, p, 1.f);
}

// op rope_backward grid(ceil(N*ceil(H*A, 16), 128)) block(128)
extern "C" __global__ void __launch_bounds__(128) rope_backward(T_dx* dx, const T_table* table, const T_positions* positions, Params p) {
    rotate(dx, table, positions, p, -1.f);
}

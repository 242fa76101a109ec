// RoPE on halves: element d of a head turns with element d + A/2, d < A/2. A thread takes 8 pairs of one head at a time where rows are
// aligned and D and A/2 are multiples of 8, else single pairs.

template <typename T> INLINE void rotate(T* x, const float* table, const u32* positions, const Params& p, float sign) {
    u32 half = p.A / 2, n = blockIdx.x, position = positions[n];
    REQUIRE(position < p.T);
    const float* cosine = table + (u64)position * p.A;
    const float* sine = cosine + half;
    T* row = x + (u64)n * p.ld_x;
    u32 first = blockIdx.y * 1024, end = min(first + 1024, p.H * half);
    if (wide(x, p.ld_x) && half % 8 == 0 && p.D % 8 == 0 && wide(table, 0)) {
        for (u32 i = first + threadIdx.x * 8; i < end; i += 1024) {
            u32 h = i / half, d = i % half;
            T* at = row + h * p.D + d;
            float a[8], b[8], c[8], s[8];
            load8(a, at), load8(b, at + half), load8(c, cosine + d), load8(s, sine + d);
#pragma unroll
            for (int k = 0; k < 8; k++) {
                float turned = a[k] * c[k] - b[k] * (s[k] * sign);
                b[k] = b[k] * c[k] + a[k] * (s[k] * sign);
                a[k] = turned;
            }
            store8(at, a), store8(at + half, b);
        }
        return;
    }
    for (u32 i = first + threadIdx.x; i < end; i += 128) {
        u32 h = i / half, d = i % half;
        T* at = row + h * p.D + d;
        float a = widen(at[0]), b = widen(at[half]), c = cosine[d], s = sine[d] * sign;
        put(at, a * c - b * s);
        put(at + half, b * c + a * s);
    }
}

// op rope_forward grid(N, ceil(H*A/2, 1024)) block(128)
extern "C" __global__ void __launch_bounds__(128) rope_forward(T_x* x, const T_table* table, const T_positions* positions, Params p) {
    rotate(x, table, positions, p, 1.f);
}

// op rope_backward grid(N, ceil(H*A/2, 1024)) block(128)
extern "C" __global__ void __launch_bounds__(128) rope_backward(T_dx* dx, const T_table* table, const T_positions* positions, Params p) {
    rotate(dx, table, positions, p, -1.f);
}

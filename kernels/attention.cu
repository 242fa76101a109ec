// Attention for any head size and storage type, in f32: 128 threads take 16 rows of one head, and stream the other side
// through shared memory. Thread t has row r = t/8 and columns c = t%8, c+8, …; of a head it owns the elements c, c+8, ….
#define INFINITY __uint_as_float(0x7f800000u)
// Below every finite score, and finite: START - START is 0.
#define START -3.402823466e38f
#define ROWS 16
#define OWN 32 // elements of a head of up to 256 that one of 8 threads owns

extern __shared__ float memory[];

// `count` rows of D values from row `first`, D+1 apart in shared memory, zeros from row `end` on.
template <typename T> INLINE void load_rows(float* to, const T* from, u64 ld, u32 first, u32 count, u32 end, u32 D) {
    for (u32 r = threadIdx.x / 32; r < count; r += 4)
        for (u32 d = threadIdx.x % 32; d < D; d += 32)
            to[r * (D + 1) + d] = first + r < end ? widen(from[(first + r) * ld + d]) : 0.f;
}
// The union of the ranges of rows first..first+ROWS, empty ones left out.
INLINE uint2 covered(const u32* pairs, u32 first, u32 end, u32 limit) {
    uint2 all = make_uint2(~0u, 0);
    for (u32 n = first; n < min(first + ROWS, end); n++) {
        u32 lo = pairs[2 * n], hi = pairs[2 * n + 1];
        if (lo < hi) all = make_uint2(min(all.x, lo), max(all.y, hi));
    }
    REQUIRE(all.y <= limit);
    return all;
}
INLINE float dot_rows(const float* a, const float* b, u32 D) {
    float sum = 0.f;
#pragma unroll 8
    for (u32 d = 0; d < D; d++) sum += a[d] * b[d];
    return sum;
}
// own[i] += Σ_j weights[j]·rows[j][c + 8i].
template <int COUNT> INLINE void accumulate(float (&own)[OWN], const float* weights, const float* rows, u32 c, u32 D) {
    for (u32 j = 0; j < COUNT; j++) {
        float w = weights[j];
#pragma unroll
        for (int i = 0; i < OWN; i++)
            if (c + 8 * i < D) own[i] += w * rows[j * (D + 1) + c + 8 * i];
    }
}
template <typename T> INLINE void store_own(T* at, const float (&own)[OWN], float factor, u32 c, u32 D) {
#pragma unroll
    for (int i = 0; i < OWN; i++)
        if (c + 8 * i < D) put(at + c + 8 * i, own[i] * factor);
}
// Over the 8 threads of a row.
INLINE float row_max(float x) {
#pragma unroll
    for (int o = 1; o < 8; o *= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, o));
    return x;
}
INLINE float row_sum(float x) {
#pragma unroll
    for (int o = 1; o < 8; o *= 2) x += __shfl_xor_sync(~0u, x, o);
    return x;
}

// op attention_forward grid(H, ceil(N, 16)) block(128) shared(4*(48*(D + 1) + 16*33))
extern "C" __global__ void __launch_bounds__(128) attention_forward(T_out* out, T_lse* lse, const T_q* q, const T_k* k, const T_v* v, const T_span* span, Params p) {
    const u32 COLS = 32;
    u32 D = p.D, h = blockIdx.x, kv = h / (p.H / p.K), r = threadIdx.x / 8, c = threadIdx.x % 8;
    // later rows see more keys: they start first
    u32 n0 = (gridDim.y - 1 - blockIdx.y) * ROWS, n = n0 + r;
    float *qs = memory, *rows = qs + ROWS * (D + 1), *probs = rows + COLS * (D + 1);
    uint2 keys = covered(span, n0, p.N, p.T);
    u32 lo = n < p.N ? span[2 * n] : 0, hi = n < p.N ? span[2 * n + 1] : 0;
    float o[OWN] = {}, max = START, sum = 0.f;
    load_rows(qs, q + h * D, p.ld_q, n0, ROWS, p.N, D);
    for (u32 j0 = keys.x; j0 < keys.y; j0 += COLS) {
        __syncthreads();
        load_rows(rows, k + kv * D, p.ld_k, j0, COLS, p.T, D);
        __syncthreads();
        float s[4], top = max, part = 0.f;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 j = j0 + c + 8 * i;
            s[i] = softcap(dot_rows(qs + r * (D + 1), rows + (c + 8 * i) * (D + 1), D) * p.scale, p.softcap);
            if (j < lo || j >= hi) s[i] = -INFINITY;
            top = fmaxf(top, s[i]);
        }
        top = row_max(top);
        float shrink = expf(max - top);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s[i] = expf(s[i] - top);
            part += s[i];
            probs[r * 33 + c + 8 * i] = s[i];
        }
        sum = sum * shrink + row_sum(part);
        max = top;
        __syncthreads();
        load_rows(rows, v + kv * D, p.ld_v, j0, COLS, p.T, D);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < OWN; i++) o[i] *= shrink;
        accumulate<COLS>(o, probs + r * 33, rows, c, D);
    }
    if (n >= p.N) return;
    store_own(out + ((u64)n * p.H + h) * D, o, sum == 0.f ? 0.f : 1.f / sum, c, D);
    if (c == 0) lse[(u64)n * p.H + h] = max + logf(sum);
}

// op attention_backward__dot grid(ceil(N*H, 8)) block(256)
extern "C" __global__ void __launch_bounds__(256) attention_backward__dot(T_dq* dq, T_dk* dk, T_dv* dv, T_dot* dot, const T_dout* dout, const T_out* out, const T_lse* lse, const T_q* q, const T_k* k, const T_v* v, const T_span* span, const T_reach* reach, Params p) {
    u64 row = blockIdx.x * 8ull + threadIdx.x / 32;
    if (row >= (u64)p.N * p.H) return;
    float sum = 0.f;
    for (u32 d = threadIdx.x % 32; d < p.D; d += 32) sum += widen(dout[row * p.D + d]) * widen(out[row * p.D + d]);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) dot[row] = sum;
}

// op attention_backward__q grid(H, ceil(N, 16)) block(128) shared(4*(48*(D + 1) + 16*17))
extern "C" __global__ void __launch_bounds__(128) attention_backward__q(T_dq* dq, T_dk* dk, T_dv* dv, T_dot* dot, const T_dout* dout, const T_out* out, const T_lse* lse, const T_q* q, const T_k* k, const T_v* v, const T_span* span, const T_reach* reach, Params p) {
    const u32 COLS = 16;
    u32 D = p.D, h = blockIdx.x, kv = h / (p.H / p.K), r = threadIdx.x / 8, c = threadIdx.x % 8;
    u32 n0 = (gridDim.y - 1 - blockIdx.y) * ROWS, n = n0 + r;
    float *qs = memory, *dys = qs + ROWS * (D + 1), *rows = dys + ROWS * (D + 1), *ds = rows + COLS * (D + 1);
    uint2 keys = covered(span, n0, p.N, p.T);
    bool live = n < p.N;
    u32 lo = live ? span[2 * n] : 0, hi = live ? span[2 * n + 1] : 0;
    float log_sum = live ? lse[(u64)n * p.H + h] : 0.f, mean = live ? dot[(u64)n * p.H + h] : 0.f, own[OWN] = {};
    load_rows(qs, q + h * D, p.ld_q, n0, ROWS, p.N, D);
    load_rows(dys, dout + h * D, (u64)p.H * D, n0, ROWS, p.N, D);
    for (u32 j0 = keys.x; j0 < keys.y; j0 += COLS) {
        __syncthreads();
        load_rows(rows, v + kv * D, p.ld_v, j0, COLS, p.T, D);
        __syncthreads();
        float dp[2];
#pragma unroll
        for (int i = 0; i < 2; i++) dp[i] = dot_rows(dys + r * (D + 1), rows + (c + 8 * i) * (D + 1), D);
        __syncthreads();
        load_rows(rows, k + kv * D, p.ld_k, j0, COLS, p.T, D);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 2; i++) {
            u32 j = j0 + c + 8 * i;
            float s = softcap(dot_rows(qs + r * (D + 1), rows + (c + 8 * i) * (D + 1), D) * p.scale, p.softcap);
            bool seen = j >= lo && j < hi;
            ds[r * 17 + c + 8 * i] = seen ? expf(s - log_sum) * (dp[i] - mean) * softcap_slope(s, p.softcap) : 0.f;
        }
        __syncwarp(); // a row's 8 threads share a warp
        accumulate<COLS>(own, ds + r * 17, rows, c, D);
    }
    if (live) store_own(dq + (u64)n * p.ld_q + h * D, own, p.scale, c, D);
}

// A block has 16 keys of one kv head and goes through the queries of all its heads.
// op attention_backward__kv grid(K, ceil(T, 16)) block(128) shared(4*(48*(D + 1) + 2*16*17))
extern "C" __global__ void __launch_bounds__(128) attention_backward__kv(T_dq* dq, T_dk* dk, T_dv* dv, T_dot* dot, const T_dout* dout, const T_out* out, const T_lse* lse, const T_q* q, const T_k* k, const T_v* v, const T_span* span, const T_reach* reach, Params p) {
    const u32 COLS = 16;
    u32 D = p.D, kv = blockIdx.x, group = p.H / p.K, r = threadIdx.x / 8, c = threadIdx.x % 8;
    u32 j0 = blockIdx.y * ROWS, j = j0 + r;
    float *ks = memory, *vs = ks + ROWS * (D + 1), *rows = vs + ROWS * (D + 1), *probs = rows + COLS * (D + 1), *ds = probs + ROWS * 17;
    uint2 queries = covered(reach, j0, p.T, p.N);
    bool live = j < p.T;
    u32 lo = live ? reach[2 * j] : 0, hi = live ? reach[2 * j + 1] : 0;
    float own_k[OWN] = {}, own_v[OWN] = {};
    load_rows(ks, k + kv * D, p.ld_k, j0, ROWS, p.T, D);
    load_rows(vs, v + kv * D, p.ld_v, j0, ROWS, p.T, D);
    for (u32 h = kv * group; h < (kv + 1) * group; h++)
        for (u32 n0 = queries.x; n0 < queries.y; n0 += COLS) {
            __syncthreads();
            load_rows(rows, q + h * D, p.ld_q, n0, COLS, p.N, D);
            __syncthreads();
            float prob[2], slope[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                u32 n = n0 + c + 8 * i;
                float s = softcap(dot_rows(ks + r * (D + 1), rows + (c + 8 * i) * (D + 1), D) * p.scale, p.softcap);
                slope[i] = softcap_slope(s, p.softcap);
                prob[i] = n >= lo && n < hi ? expf(s - lse[(u64)n * p.H + h]) : 0.f;
                probs[r * 17 + c + 8 * i] = prob[i];
            }
            __syncthreads();
            load_rows(rows, dout + h * D, (u64)p.H * D, n0, COLS, p.N, D);
            __syncthreads();
#pragma unroll
            for (int i = 0; i < 2; i++) {
                u32 n = n0 + c + 8 * i;
                float dp = dot_rows(vs + r * (D + 1), rows + (c + 8 * i) * (D + 1), D);
                bool seen = n >= lo && n < hi;
                ds[r * 17 + c + 8 * i] = seen ? prob[i] * (dp - dot[(u64)n * p.H + h]) * slope[i] : 0.f;
            }
            accumulate<COLS>(own_v, probs + r * 17, rows, c, D);
            __syncthreads();
            load_rows(rows, q + h * D, p.ld_q, n0, COLS, p.N, D);
            __syncthreads();
            accumulate<COLS>(own_k, ds + r * 17, rows, c, D);
        }
    if (!live) return;
    store_own(dk + (u64)j * p.ld_k + kv * D, own_k, p.scale, c, D);
    store_own(dv + (u64)j * p.ld_v + kv * D, own_v, 1.f, c, D);
}

// Both gradients of an adapter's second product. Each thread takes a value of dt, or of db.
#define RUN 64u

// op low_rank_backward grid(ceil((N + O)*R, 256)) block(256)
extern "C" __global__ void __launch_bounds__(256) low_rank_backward(T_dt* dt, T_db* db, const T_dout* dout, const T_b* b, const T_t* t, Params p) {
    u64 i = blockIdx.x * 256ull + threadIdx.x;
    u64 row = i / p.R, r = i % p.R;
    // in runs: a long sum in one go loses what is small
    float sum = 0.f;
    if (row < p.N) {
        for (u32 o = 0; o < p.O;) {
            float run = 0.f;
            for (u32 end = min(o + RUN, p.O); o < end; o++) run += widen(dout[row * p.O + o]) * widen(b[(u64)o * p.R + r]);
            sum += run;
        }
        put(dt + row * p.ld_dt + r, p.scale * sum);
    } else if (row < (u64)p.N + p.O) {
        u64 o = row - p.N;
        for (u32 n = 0; n < p.N;) {
            float run = 0.f;
            for (u32 end = min(n + RUN, p.N); n < end; n++) run += widen(dout[(u64)n * p.O + o]) * widen(t[(u64)n * p.ld_t + r]);
            sum += run;
        }
        put(db + o * p.R + r, widen(db[o * p.R + r]) + sum);
    }
}

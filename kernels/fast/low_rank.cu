// Both gradients of an adapter's second product in one pass over dout, on tensor cores (mma.sync m16n8k16, sums in f32), for one
// 16-bit type but for db. O is a multiple of 8, R of 8 and at most 16; rows start at multiples of 16 bytes.
//
// A block of WARPS warps owns 64·WARPS columns, and takes a stretch of the rows, ROWS at a time; cp.async brings the next STAGES - 1
// meanwhile. A warp owns 64 columns: its share of db stays in registers, its part of dt goes to shared memory, where the block adds
// the warps' parts up. Sums over blocks go through `parts`, and `finish` adds them up in a fixed order. Transposed, so that the
// adapter's side is the mma's A: dtᵀ = bᵀ·doutᵀ and dbᵀ = tᵀ·dout.
#include "tensor.cuh"
typedef T_dout T;

constexpr u32 OWN = 64, STRIPE = OWN * WARPS;
// Elements between rows in shared memory: odd multiples of 16 bytes, free of bank conflicts.
constexpr u32 LD = STRIPE + 8, LD_T = 16 + 8;
constexpr u32 STAGE = ROWS * (LD + LD_T);
// Values of dt that the block makes at a time, 16 of each row.
constexpr u32 SLOT = ROWS * 16;

extern __shared__ __align__(16) u8 memory[];

// How the work is cut up, the same in both stages.
struct Cut {
    u32 tiles, stripes, stretches, each; // of ROWS rows, of STRIPE columns, of rows, and tiles of a stretch
    u64 dt, db;                          // floats of all parts of dt, and of a stretch's part of db
};
INLINE Cut cut_of(const Params& p) {
    Cut c;
    c.tiles = (p.N + ROWS - 1) / ROWS, c.stripes = (p.O + STRIPE - 1) / STRIPE;
    c.stretches = max(1u, BLOCKS / c.stripes), c.each = (c.tiles + c.stretches - 1) / c.stretches;
    c.dt = (u64)c.stripes * c.tiles * SLOT, c.db = (u64)p.O * 16;
    return c;
}

// op low_rank_backward grid(ceil(O, 64*WARPS), max(1, BLOCKS/ceil(O, 64*WARPS))) block(32*WARPS) shared(2*STAGES*ROWS*(64*WARPS + 32) + 128*WARPS*ROWS)
extern "C" __global__ void __launch_bounds__(32 * WARPS) low_rank_backward(T_dt* dt, T_db* db, const T_dout* dout, const T_b* b, const T_t* t, float* parts, Params p) {
    Cut cut = cut_of(p);
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    u32 stripe = blockIdx.x * STRIPE, column = stripe + warp * OWN;
    u32 first = min(blockIdx.y * cut.each, cut.tiles), last = min(first + cut.each, cut.tiles);
    u32 stages = (u32)__cvta_generic_to_shared(memory);
    float* slots = (float*)(memory + STAGES * STAGE * 2);

    auto fetch_tile = [&](u32 tile) {
        if (tile < last) {
            u32 at = stages + tile % STAGES * STAGE * 2;
#pragma unroll
            for (u32 e = threadIdx.x; e < ROWS * STRIPE / 8; e += 32 * WARPS) {
                u32 r = e / (STRIPE / 8), c = e % (STRIPE / 8) * 8, n = tile * ROWS + r;
                bool inside = n < p.N && stripe + c < p.O;
                copy16(at + (r * LD + c) * 2, inside ? dout + (u64)n * p.O + stripe + c : dout, inside);
            }
            for (u32 e = threadIdx.x; e < ROWS * 2; e += 32 * WARPS) {
                u32 r = e / 2, c = e % 2 * 8, n = tile * ROWS + r;
                bool inside = n < p.N && c < p.R;
                copy16(at + (ROWS * LD + r * LD_T + c) * 2, inside ? t + (u64)n * p.ld_t + c : t, inside);
            }
        }
        commit();
    };
    // The warps' parts of dt of a tile, which all have written.
    auto add_up = [&](u32 tile) {
        const float* slot = slots + tile % 2 * WARPS * SLOT;
        for (u32 e = threadIdx.x; e < SLOT; e += 32 * WARPS) {
            float sum = 0.f;
#pragma unroll
            for (u32 w = 0; w < WARPS; w++) sum += slot[w * SLOT + e];
            parts[((u64)blockIdx.x * cut.tiles + tile) * SLOT + e] = sum;
        }
    };
#pragma unroll
    for (u32 s = 0; s < STAGES - 1; s++) fetch_tile(first + s);

    u32 bt[OWN / 16][4];
#pragma unroll
    for (u32 k = 0; k < OWN / 16; k++)
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 r = g + i % 2 * 8, c = column + k * 16 + i / 2 * 8 + 2 * q;
            auto bits = [&](u32 o) { return o < p.O && r < p.R ? (u32)b[(u64)o * p.R + r].bits : 0u; };
            bt[k][i] = bits(c) | bits(c + 1) << 16;
        }
    float own[OWN / 8][4] = {};
    for (u32 tile = first; tile < last; tile++) {
        arrive<STAGES - 2>();
        fetch_tile(tile + STAGES - 1);
        if (tile > first) add_up(tile - 1);
        u32 at = stages + tile % STAGES * STAGE * 2, at_t = at + ROWS * LD * 2;
        at += warp * OWN * 2;
        float sums[ROWS / 8][4] = {};
        u32 a[4], x[4];
#pragma unroll
        for (u32 k = 0; k < OWN / 16; k++)
#pragma unroll
            for (u32 n = 0; n < ROWS / 16; n++) {
                ldmatrix(x, at + ((n * 16 + lane / 16 * 8 + lane % 8) * LD + k * 16 + lane / 8 % 2 * 8) * 2);
                mma<T>(sums[2 * n], bt[k], x[0], x[1]);
                mma<T>(sums[2 * n + 1], bt[k], x[2], x[3]);
            }
#pragma unroll
        for (u32 k = 0; k < ROWS / 16; k++) {
            ldmatrix_trans(a, at_t + ((k * 16 + lane / 16 * 8 + lane % 8) * LD_T + lane / 8 % 2 * 8) * 2);
#pragma unroll
            for (u32 j = 0; j < OWN / 16; j++) {
                ldmatrix_trans(x, at + ((k * 16 + lane % 16) * LD + j * 16 + lane / 16 * 8) * 2);
                mma<T>(own[2 * j], a, x[0], x[1]);
                mma<T>(own[2 * j + 1], a, x[2], x[3]);
            }
        }
        float* slot = slots + (tile % 2 * WARPS + warp) * SLOT;
#pragma unroll
        for (u32 n = 0; n < ROWS / 8; n++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) slot[(n * 4 + i) * 32 + lane] = sums[n][i];
    }
    __syncthreads();
    if (last > first) add_up(last - 1);
#pragma unroll
    for (u32 j = 0; j < OWN / 8; j++)
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 c = column + j * 8 + 2 * q + i % 2;
            if (c < p.O) parts[cut.dt + blockIdx.y * cut.db + c * 16ull + g + i / 2 * 8] = own[j][i];
        }
}

// op low_rank_backward__finish grid(ceil(16*(ROWS*ceil(N, ROWS) + O), 256)) block(256)
extern "C" __global__ void __launch_bounds__(256) low_rank_backward__finish(T_dt* dt, T_db* db, const T_dout* dout, const T_b* b, const T_t* t, const float* parts, Params p) {
    Cut cut = cut_of(p);
    u64 i = blockIdx.x * 256ull + threadIdx.x, values = (u64)cut.tiles * SLOT;
    float sum = 0.f;
    if (i < values) {
#pragma unroll 8
        for (u32 s = 0; s < cut.stripes; s++) sum += parts[s * values + i];
        // as the mma left it: place `lane` of value k of eight rows
        u32 e = i % SLOT, lane = e % 32, k = e / 32 % 4, r = lane / 4 + k / 2 * 8;
        u64 n = i / SLOT * ROWS + e / 128 * 8 + 2 * (lane % 4) + k % 2;
        if (n < p.N && r < p.R) put(dt + n * p.ld_dt + r, sum * p.scale);
    } else if (i - values < cut.db) {
        u64 o = (i - values) / 16, r = (i - values) % 16;
#pragma unroll 16
        for (u32 s = 0; s < cut.stretches; s++) sum += parts[cut.dt + s * cut.db + (i - values)];
        if (r < p.R) put(db + o * p.R + r, widen(db[o * p.R + r]) + sum);
    }
}

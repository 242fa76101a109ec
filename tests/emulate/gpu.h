// A GPU of one block at a time on the CPU: threads are fibers that hand over at barriers, a warp's exchanges are barriers with
// a table. Slow and exact: it finds wrong indices; a missing barrier shows as a difference between the orders of the threads.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <vector>
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static
#define __CUDA_ARCH__ 700
struct Dim { unsigned x, y, z; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct uint4 { unsigned x, y, z, w; };
struct uint2 { unsigned x, y; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }

struct Fiber { ucontext_t context; Dim index; bool done; uint64_t slot[8]; };
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
extern "C" unsigned reversed;
unsigned reversed = 0; // the order of the threads
static unsigned now, block_size;
static Dim blockIdx, gridDim;
static unsigned char memory_bytes[232448] __attribute__((aligned(16)));
#define threadIdx (fibers[now].index)
static void hand_over() { swapcontext(&fibers[now].context, &scheduler); }

// How often each thread has arrived; a thread goes on when all (living) others of its group have arrived as often.
static unsigned long progress; // waits that ended
static std::vector<unsigned> block_count, warp_count;
static void wait_for(std::vector<unsigned>& count, unsigned first, unsigned end) {
    unsigned mine = ++count[now];
    for (;;) {
        bool all = true;
        for (unsigned t = first; t < end; t++) all &= fibers[t].done || count[t] >= mine;
        if (all) { progress++; return; }
        hand_over();
    }
}
static void __syncthreads() { wait_for(block_count, 0, block_size); }
static void __syncwarp() { unsigned w = now / 32 * 32; wait_for(warp_count, w, w + 32 < block_size ? w + 32 : block_size); }
// Every lane gives `x`, then sees what all lanes gave.
template <typename X, typename F> static auto exchange(const X& x, F see) {
    static_assert(sizeof(X) <= 64);
    memcpy(fibers[now].slot, &x, sizeof x);
    __syncwarp();
    auto lane = [](unsigned l) { X y; memcpy(&y, fibers[now / 32 * 32 + l].slot, sizeof y); return y; };
    auto result = see(lane);
    __syncwarp();
    return result;
}
template <typename X> static X __shfl_xor_sync(unsigned, X x, int o) { return exchange(x, [&](auto lane) { return lane(now % 32 ^ o); }); }
template <typename X> static X __shfl_up_sync(unsigned, X x, int o) { return exchange(x, [&](auto lane) { int l = now % 32; return lane(l >= o ? l - o : l); }); }
static unsigned __ballot_sync(unsigned, bool x) {
    return exchange(x, [](auto lane) { unsigned all = 0; for (int l = 0; l < 32; l++) all |= (unsigned)lane(l) << l; return all; });
}
static unsigned __reduce_min_sync(unsigned, unsigned x) {
    return exchange(x, [](auto lane) { unsigned y = ~0u; for (int l = 0; l < 32; l++) y = lane(l) < y ? lane(l) : y; return y; });
}
static unsigned __reduce_max_sync(unsigned, unsigned x) {
    return exchange(x, [](auto lane) { unsigned y = 0; for (int l = 0; l < 32; l++) y = lane(l) > y ? lane(l) : y; return y; });
}
static inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
static inline unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, 4); return y; }
static inline float __expf(float x) { return expf(x); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float x) { return 1.f / x; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline int __float2int_rn(float x) { return (int)nearbyintf(x); }
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s) {
    uint64_t both = (uint64_t)y << 32 | x;
    unsigned out = 0;
    for (int k = 0; k < 4; k++) out |= (unsigned)(both >> (s >> 4 * k & 7) * 8 & 255) << 8 * k;
    return out;
}
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline void __trap() { fprintf(stderr, "REQUIRE failed\n"); abort(); }
template <typename A, typename B> static inline unsigned min(A a, B b) { return a < b ? a : b; }
template <typename A, typename B> static inline unsigned max(A a, B b) { return a > b ? a : b; }
static inline unsigned __cvta_generic_to_shared(const void* p) { return (unsigned)((const unsigned char*)p - memory_bytes); }

// cp.async: groups of copies of each thread, oldest first. Done at once, or (reversed) when a wait insists.
struct Copy { unsigned to; const void* from; };
static std::vector<std::vector<std::vector<Copy>>> copies;
static void finish(const Copy& c) { c.from ? memcpy(memory_bytes + c.to, c.from, 16) : memset(memory_bytes + c.to, 0, 16); }
static void start_copy(unsigned to, const void* from) {
    if (to % 16 || (uintptr_t)from % 16) __trap();
    if (!reversed) return finish({to, from}), void();
    copies[now].back().push_back({to, from});
}
static void commit_copies() { copies[now].push_back({}); }
static void wait_copies(unsigned pending) {
    auto& groups = copies[now]; // the last one is still open
    while (groups.size() > pending + 1) {
        for (auto& c : groups.front()) finish(c);
        groups.erase(groups.begin());
    }
}
static float half_to_float(uint16_t h) { _Float16 x; memcpy(&x, &h, 2); return (float)x; }
static uint16_t float_to_half(float f) { _Float16 x = (_Float16)f; uint16_t h; memcpy(&h, &x, 2); return h; }

static void (*body)();
static void start() { body(); fibers[now].done = true; for (;;) hand_over(); }
static void run_block(unsigned threads, void (*kernel)()) {
    static std::vector<std::vector<char>> stacks;
    if (stacks.size() < threads) stacks.resize(threads, std::vector<char>(64 << 10));
    body = kernel, block_size = threads;
    fibers.resize(threads), block_count.assign(threads, 0), warp_count.assign(threads, 0);
    copies.assign(threads, {{}});
    memset(memory_bytes, 0xff, sizeof memory_bytes); // NaN: nothing may be read before it is written
    for (unsigned t = 0; t < threads; t++) {
        Fiber& f = fibers[t];
        f.index = {t, 0, 0}, f.done = false;
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = stacks[t].data(), f.context.uc_stack.ss_size = stacks[t].size(), f.context.uc_link = nullptr;
        makecontext(&f.context, start, 0);
    }
    // each warp goes as far as it can before the next one moves: as unequal as a GPU may be
    unsigned warps = (threads + 31) / 32;
    for (bool alive = true; alive;) {
        alive = false;
        for (unsigned i = 0; i < warps; i++) {
            unsigned first = (reversed ? warps - 1 - i : i) * 32, end = first + 32 < threads ? first + 32 : threads;
            for (unsigned long before = ~0ul; before != progress;) {
                before = progress;
                for (unsigned t = first; t < end; t++)
                    if (!fibers[t].done) now = t, swapcontext(&scheduler, &fibers[t].context), alive = true;
            }
        }
    }
}

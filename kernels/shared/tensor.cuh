// Of tensor cores: products of fragments (sums in f32), loads of fragments from shared memory, copies on their way to it.

// c += a·b.
template <typename T> INLINE void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1);
#define MMA(TYPE, SHAPE, NAME)                                                                                              \
    template <> __device__ __forceinline__ void mma<TYPE>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {               \
        asm volatile("mma.sync.aligned." SHAPE ".row.col.f32." NAME "." NAME                                                \
                     ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                           \
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                       \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                       \
    }
MMA(bf16, "m16n8k16", "bf16")
MMA(f16, "m16n8k16", "f16")

// Four 8x8 matrices; each lane names one row of one of them.
INLINE void ldmatrix(u32 (&x)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(at) : "memory");
}
INLINE void ldmatrix_trans(u32 (&x)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(at) : "memory");
}

// 16 bytes on their way to shared memory, or zeros.
INLINE void copy16(u32 to, const void* from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(to), "l"(from), "r"(inside ? 16 : 0) : "memory");
}
INLINE void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most PENDING groups are on their way, in all threads of the block.
template <int PENDING> INLINE void arrive() {
    asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory");
    __syncthreads();
}

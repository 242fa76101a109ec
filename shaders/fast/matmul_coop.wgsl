enable f16;
enable wgpu_cooperative_matrix;
// The products of matmul.wgsl on cooperative matrices (tensor cores): 16-bit operands, f32 sums. The constants say which of the
// six rows it is: A_ROWS (a[i, q], else a[q, i]), B_ROWS (b[j, q], else b[q, j]), ADD.
// A workgroup makes a BM x BN tile of out, its GM x GN subgroups RM x RN fragments of S x S each. The operands pass through
// workgroup memory as f16, laid out as they are stored, in steps of BK along Q; what lies outside the matrices counts as 0.
//
// bf16 reaches further than f16, so with SCALED each operand is staged times 2^-e, which brings its largest finite value to
// 2^14 .. 2^15, and the sums are brought back in f32. bf16's 8 bits are then exact in f16 down to 2^-31 of the largest value;
// what is below 2^-39 of it counts as 0. Infinities and NaNs stay what they are.
// Exponents that are known already, because nothing was written to their operand since, are not looked for again.
// Scratch: `parts` maxima of a, as many of b; from `sums` on the sums of SPLIT.
//
// With PACKED both operands are first written as f16 in the order in which tiles stage them, out of range as 0: block (tile,
// step) after block, a's `a_len` elements, then b's. Each element is converted and checked once, not once for every tile that
// reads it. Columns jfirst .. jfirst + jcount of out are made at a time, which bounds what is packed of b.

// Elements from `at` to `end`, none at or past it.
fn rest(at: u32, end: u32) -> u32 { return select(0u, end - at, at < end); }

// Staged rows: elements of a row of a step's part of a tile, laid out as the operand is.
const COLS_A = BK * A_ROWS + BM * (1u - A_ROWS);
const COLS_B = BK * B_ROWS + BN * (1u - B_ROWS);

// Quad n of what the tile at i0 (j0) stages in the step at q0, up to `end`.
fn read_a(n: u32, i0: u32, q0: u32, end: u32) -> vec2<u32> {
  let row = n / (COLS_A / 4u);
  let col = 4u * (n % (COLS_A / 4u));
#if A_ROWS
  return ldr4_a((i0 + row) * p.ld_a + q0 + col, select(0u, rest(q0 + col, end), i0 + row < p.I));
#end
#if 1 - A_ROWS
  return ldr4_a((q0 + row) * p.ld_a + i0 + col, select(0u, rest(i0 + col, p.I), q0 + row < end));
#end
}
fn read_b(n: u32, j0: u32, q0: u32, end: u32) -> vec2<u32> {
  let row = n / (COLS_B / 4u);
  let col = 4u * (n % (COLS_B / 4u));
#if B_ROWS
  return ldr4_b((j0 + row) * p.ld_b + q0 + col, select(0u, rest(q0 + col, end), j0 + row < p.J));
#end
#if 1 - B_ROWS
  return ldr4_b((q0 + row) * p.ld_b + j0 + col, select(0u, rest(j0 + col, p.J), q0 + row < end));
#end
}

fn finish(i: u32, j: u32, sum: vec4<f32>) {
  let at = i * p.ld_out + j;
  var v = sum;
#if SCALED
  v = scaled(v, i32(ld1_exponents(p.e_a)) + i32(ld1_exponents(p.e_b)));
#end
  v *= p.alpha;
#if ADD
  v += ld4_out(at, p.J - j);
#end
  st4_out(at, v, p.J - j);
}

// op matmul_coop__amax grid(parts, unknown)
// Largest finite |a|, then |b|, of a part of each; a part is every parts-th run of 4 x 256 quads.
fn amax_a(t: u32, part: u32, rows: u32, cols: u32) -> f32 {
  let C4 = ceil_div(cols, 4u);
  var m = 0.0;
  for (var n = part * 1024u + t; n < rows * C4; n += p.parts * 1024u) {
#for k 0 4
    let n$k = n + 256u * $k;
    let h$k = ldr4_a(n$k / C4 * p.ld_a + 4u * (n$k % C4), select(0u, cols - 4u * (n$k % C4), n$k < rows * C4));
#end
    m = max(m, max(max(largest(widen_a(h0)), largest(widen_a(h1))), max(largest(widen_a(h2)), largest(widen_a(h3)))));
  }
  return m;
}
fn amax_b(t: u32, part: u32, rows: u32, cols: u32) -> f32 {
  let C4 = ceil_div(cols, 4u);
  var m = 0.0;
  for (var n = part * 1024u + t; n < rows * C4; n += p.parts * 1024u) {
#for k 0 4
    let n$k = n + 256u * $k;
    let h$k = ldr4_b(n$k / C4 * p.ld_b + 4u * (n$k % C4), select(0u, cols - 4u * (n$k % C4), n$k < rows * C4));
#end
    m = max(m, max(max(largest(widen_b(h0)), largest(widen_b(h1))), max(largest(widen_b(h2)), largest(widen_b(h3)))));
  }
  return m;
}
@compute @workgroup_size(256)
fn matmul_coop__amax(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let which = group.y + p.unknown_from;
  var m = 0.0;
  if (which == 0u) {
    m = amax_a(t, group.x, select(p.Q, p.I, A_ROWS == 1u), select(p.I, p.Q, A_ROWS == 1u));
  } else {
    m = amax_b(t, group.x, select(p.Q, p.J, B_ROWS == 1u), select(p.J, p.Q, B_ROWS == 1u));
  }
  let all = group_max(t, m);
  if (t == 0u) { st1_scratch(which * p.parts + group.x, all); }
}

// op matmul_coop__scale grid(1, unknown)
@compute @workgroup_size(256)
fn matmul_coop__scale(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let which = group.y + p.unknown_from;
  var m = 0.0;
  for (var n = t; n < p.parts; n += 256u) { m = max(m, ld1_scratch(which * p.parts + n)); }
  let all = group_max(t, m);
  if (t == 0u) { st1_exponents(select(p.e_a, p.e_b, which == 1u), f32(f16_scale(all))); }
}

// op matmul_coop__packa grid(ceil(a_len, 1024))
@compute @workgroup_size(256)
fn matmul_coop__packa(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let n = flat(group) * 256u + t;
  if (4u * n >= p.a_len) { return; }
  let steps = ceil_div(p.Q, BK);
  let block = n / (BM * BK / 4u);
  let h = read_a(n % (BM * BK / 4u), block / steps * BM, block % steps * BK, p.Q);
  var scale = 1.0;
#if SCALED
  scale = pow2(-i32(ld1_exponents(p.e_a)));
#end
  sth4_packed(4u * n, vec4<f16>(widen_a(h) * scale));
}

// op matmul_coop__packb grid(ceil(b_len, 1024))
@compute @workgroup_size(256)
fn matmul_coop__packb(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let n = flat(group) * 256u + t;
  if (4u * n >= p.b_len) { return; }
  let steps = ceil_div(p.Q, BK);
  let block = n / (BN * BK / 4u);
  let h = read_b(n % (BN * BK / 4u), p.jfirst + block / steps * BN, block % steps * BK, p.Q);
  var scale = 1.0;
#if SCALED
  scale = pow2(-i32(ld1_exponents(p.e_b)));
#end
  sth4_packed(p.a_len + 4u * n, vec4<f16>(widen_b(h) * scale));
}

// op matmul_coop grid(ceil(jcount, BN), ceil(I, BM), splits)
// From one row to the next: 8 more keep the rows off each other's banks.
const LD_A = COLS_A + 8u;
const LD_B = COLS_B + 8u;
#if VEC / 4
alias Staged = vec4<f16>;
#end
#if 4 / VEC - 1
alias Staged = f16;
#end
var<workgroup> sa: array<Staged, BM * BK / COLS_A * LD_A / VEC>;
var<workgroup> sb: array<Staged, BN * BK / COLS_B * LD_B / VEC>;
// a fragment of each subgroup on its way out
var<workgroup> outgo: array<f32, SUBGROUPS * S * S>;

#if PACKED
// past the last step, where nobody looks, the last one again
fn block(tile: u32, q0: u32) -> u32 { let steps = ceil_div(p.Q, BK); return tile * steps + min(q0 / BK, steps - 1u); }
fn fetch_a(n: u32, i0: u32, q0: u32, end: u32) -> vec4<f16> { return ldh4_packed(block(i0 / BM, q0) * (BM * BK) + 4u * n); }
fn fetch_b(n: u32, j0: u32, q0: u32, end: u32) -> vec4<f16> {
  return ldh4_packed(p.a_len + block((j0 - p.jfirst) / BN, q0) * (BN * BK) + 4u * n);
}
fn half_a(h: vec4<f16>, scale: f32) -> vec4<f16> { return h; }
fn half_b(h: vec4<f16>, scale: f32) -> vec4<f16> { return h; }
#end
#if 1 - PACKED
fn fetch_a(n: u32, i0: u32, q0: u32, end: u32) -> vec2<u32> { return read_a(n, i0, q0, end); }
fn fetch_b(n: u32, j0: u32, q0: u32, end: u32) -> vec2<u32> { return read_b(n, j0, q0, end); }
fn half_a(h: vec2<u32>, scale: f32) -> vec4<f16> { return vec4<f16>(widen_a(h) * scale); }
fn half_b(h: vec2<u32>, scale: f32) -> vec4<f16> { return vec4<f16>(widen_b(h) * scale); }
#end
fn stage_a(n: u32, v: vec4<f16>) {
  let at = (n / (COLS_A / 4u) * LD_A + 4u * (n % (COLS_A / 4u))) / VEC;
#if VEC / 4
  sa[at] = v;
#end
#if 4 / VEC - 1
  sa[at] = v.x; sa[at + 1u] = v.y; sa[at + 2u] = v.z; sa[at + 3u] = v.w;
#end
}
fn stage_b(n: u32, v: vec4<f16>) {
  let at = (n / (COLS_B / 4u) * LD_B + 4u * (n % (COLS_B / 4u))) / VEC;
#if VEC / 4
  sb[at] = v;
#end
#if 4 / VEC - 1
  sb[at] = v.x; sb[at + 1u] = v.y; sb[at + 2u] = v.z; sb[at + 3u] = v.w;
#end
}

fn store(i: u32, j: u32, z: u32, sum: vec4<f32>) {
  if (i >= p.I || j >= p.jfirst + p.jcount) { return; }
#if SPLIT
  st4_scratch(p.sums + ((z * p.I + i) * ceil_div(p.jcount, 4u) + (j - p.jfirst) / 4u) * 4u, sum, 4u);
#end
#if 1 - SPLIT
  finish(i, j, sum);
#end
}

// Tiles in bands of 8 rows, so that those at work together share operands in the cache.
fn banded(tile: vec3<u32>, tiles: vec3<u32>) -> vec2<u32> {
  let n = tile.y * tiles.x + tile.x;
  let band = n / (8u * tiles.x);
  let rows = min(8u, tiles.y - 8u * band);
  let within = n % (8u * tiles.x);
  return vec2(within / rows, 8u * band + within % rows);
}

@compute @workgroup_size(THREADS)
fn matmul_coop(
  @builtin(workgroup_id) tile: vec3<u32>, @builtin(num_workgroups) tiles: vec3<u32>, @builtin(local_invocation_index) t: u32,
  @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) lane: u32, @builtin(subgroup_size) lanes: u32,
) {
  let at = banded(tile, tiles);
  let j0 = p.jfirst + at.x * BN;
  let i0 = at.y * BM;
  // where this subgroup's fragments lie in the tile; where the device chose small subgroups there are more than GM x GN of
  // them, and the last ones repeat the work of the first (no branch may lead around a cooperative operation)
  let i1 = subgroup / GN % GM * (RM * S);
  let j1 = subgroup % GN * (RN * S);
  let first = tile.z * p.part;
  let end = min(p.Q, first + p.part);
  var scale_a = 1.0;
  var scale_b = 1.0;
#if 1 - PACKED
#if SCALED
  scale_a = pow2(-i32(ld1_exponents(p.e_a)));
  scale_b = pow2(-i32(ld1_exponents(p.e_b)));
#end
#end
#for s S S+1
#for i 0 RM
#for j 0 RN
  var c$i$j: coop_mat$sx$s<f32, C>;
#end
#end
#if PREFETCH
#for n 0 BM*BK/4/THREADS
  var a_$n = fetch_a(t + $nu * THREADS, i0, first, end);
#end
#for n 0 BN*BK/4/THREADS
  var b_$n = fetch_b(t + $nu * THREADS, j0, first, end);
#end
#end
  for (var q = first; q < end; q += BK) {
#if 1 - PREFETCH
#for n 0 BM*BK/4/THREADS
    let a_$n = fetch_a(t + $nu * THREADS, i0, q, end);
#end
#for n 0 BN*BK/4/THREADS
    let b_$n = fetch_b(t + $nu * THREADS, j0, q, end);
#end
#end
#for n 0 BM*BK/4/THREADS
    stage_a(t + $nu * THREADS, half_a(a_$n, scale_a));
#end
#for n 0 BN*BK/4/THREADS
    stage_b(t + $nu * THREADS, half_b(b_$n, scale_b));
#end
    workgroupBarrier();
#if PREFETCH
    // the next step's loads run behind this one's products; past the end they bring zeros
#for n 0 BM*BK/4/THREADS
    a_$n = fetch_a(t + $nu * THREADS, i0, q + BK, end);
#end
#for n 0 BN*BK/4/THREADS
    b_$n = fetch_b(t + $nu * THREADS, j0, q + BK, end);
#end
#end
#for k 0 BK/S
      {
#for j 0 RN
#if B_ROWS
        let b$j = coopLoad<coop_mat$sx$s<f16, B>>(&sb[((j1 + $ju * S) * LD_B + $ku * S) / VEC], LD_B / VEC);
#end
#if 1 - B_ROWS
        let b$j = coopLoadT<coop_mat$sx$s<f16, B>>(&sb[($ku * S * LD_B + j1 + $ju * S) / VEC], LD_B / VEC);
#end
#end
#for i 0 RM
#if A_ROWS
        let a$i = coopLoadT<coop_mat$sx$s<f16, A>>(&sa[((i1 + $iu * S) * LD_A + $ku * S) / VEC], LD_A / VEC);
#end
#if 1 - A_ROWS
        let a$i = coopLoad<coop_mat$sx$s<f16, A>>(&sa[($ku * S * LD_A + i1 + $iu * S) / VEC], LD_A / VEC);
#end
#for j 0 RN
        c$i$j = coopMultiplyAdd(a$i, b$j, c$i$j);
#end
#end
      }
#end
    workgroupBarrier();
  }
  // bound by let, because naga looks for the operands of a store among the values it has
  let ours = subgroup * S * S;
  let stride = S;
#for i 0 RM
#for j 0 RN
  coopStoreT(c$i$j, &outgo[ours], stride);
  workgroupBarrier();
  for (var e = lane; e < S * S / 4u && subgroup < GM * GN; e += lanes) {
    let w = ours + 4u * e;
    let i = i0 + i1 + $iu * S + e / (S / 4u);
    let j = j0 + j1 + $ju * S + 4u * (e % (S / 4u));
    store(i, j, tile.z, vec4(outgo[w], outgo[w + 1u], outgo[w + 2u], outgo[w + 3u]));
  }
  workgroupBarrier();
#end
#end
#end
}

// op matmul_coop__join grid(ceil(I*ceil(jcount, 4), 256))
// A thread adds the parts of four outputs, in order.
@compute @workgroup_size(256)
fn matmul_coop__join(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let index = flat(group) * 256u + t;
  let J4 = ceil_div(p.jcount, 4u);
  if (index >= p.I * J4) { return; }
  var sum = vec4<f32>();
  for (var z = 0u; z < p.splits; z++) { sum += ld4_scratch(p.sums + (z * p.I * J4 + index) * 4u, 4u); }
  finish(index / J4, p.jfirst + 4u * (index % J4), sum);
}

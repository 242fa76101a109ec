enable f16;
enable wgpu_cooperative_matrix;
// attention.wgsl on cooperative matrices (tensor cores): 16-bit operands of D = ND·S channels, f32 sums.
//
// Every operand is first packed as f16, times 2^-e that brings its largest finite value to 2^14 .. 2^15 (bf16 reaches further
// than f16); rows past the end are 0. The order is [heads][rows, a multiple of PAD, / S][ND][S][S]: fragments in one piece.
// A workgroup has G subgroups; each owns S rows of a head, whose fragments it holds, and walks over blocks of COLS columns, which
// all of them read from workgroup memory; the next block is on its way while one is worked on. Rows are queries and columns keys,
// or the other way round. What the walks have in common are the parts below, which attention_coop_forward.wgsl and
// attention_coop_backward.wgsl, that continue this file, put together.
// Scores pass through workgroup memory, where each row belongs to some lanes of the subgroup, up to WIDE quads of it to each, and
// go back as f16: probabilities times 2^14, and the scores' gradients in units that their bound |dS| <= 2·D·max|dout|·max|v| keeps
// below 2^15. LANES is 0 where the device chooses the size of subgroups.
// Scratch: 4·parts maxima, then e of q, k, v, dout.
//
// Where the device chose small subgroups there are more than G, and the last ones repeat the work of the first: no branch may
// lead around a cooperative operation.
const COLS = CB * S;
const OWN = G * S; // rows of a workgroup
const DIM = ND * S;
const UNIT = 23; // 2^23 for the scores' gradients: 2·128·2^15·2^15 = 2^38
// of a score that is not seen, and what maxima start from
const HIDDEN = -3.4028234e38;
const LOWEST = -3.0e38;
// Rows in workgroup memory, in quads, are longer than they need to be, off each other's banks: of scores, of f16 scores, of fragments.
const LD = COLS / 4u + 1u;
const LH = COLS / 4u + 2u;
const LF = (S + FRAGMENT_PAD) / 4u;
const STAGED = COLS * ND * LF;

fn padded(rows: u32) -> u32 { return ceil_div(rows, PAD) * PAD; }
fn exponent(which: u32) -> i32 { return i32(ld1_scratch(4u * p.parts + which)); }
// Four channels of tensor `which` (q, k, v, dout): `hd` one of its heads.
fn quad(which: u32, row: u32, hd: u32, d: u32) -> vec4<f32> {
  if (which == 0u) { return ld4_q(row * p.ld_q + hd * p.D + d, 4u); }
  if (which == 1u) { return ld4_k(row * p.ld_k + hd * p.D + d, 4u); }
  if (which == 2u) { return ld4_v(row * p.ld_v + hd * p.D + d, 4u); }
#if BACKWARD
  return ld4_dout((row * p.H + hd) * p.D + d, 4u);
#end
#if 1 - BACKWARD
  return vec4<f32>();
#end
}
fn heads(which: u32) -> u32 { return select(p.K, p.H, which == 0u || which == 3u); }
fn rows(which: u32) -> u32 { return select(p.T, p.N, which == 0u || which == 3u); }
// Elements of a packed tensor.
fn length(which: u32) -> u32 { return heads(which) * padded(rows(which)) * p.D; }
// Where row `row`, a multiple of S, of a head is packed.
fn place(which: u32, hd: u32, row: u32) -> u32 {
  var at = (hd * padded(rows(which)) + row) * DIM;
  for (var w = 0u; w < which; w++) { at += length(w); }
  return at;
}

var<workgroup> lo: atomic<u32>;
var<workgroup> hi: atomic<u32>;
var<workgroup> range: vec2<u32>;
// The keys that query n sees, or the queries that see key n.
fn seen(n: u32, keys: bool) -> vec2<u32> {
#if BACKWARD
  if (keys) {
    if (n >= p.T) { return vec2(0u); }
    return vec2(ld_reach(2u * n), min(ld_reach(2u * n + 1u), p.N));
  }
#end
  if (n >= p.N) { return vec2(0u); }
  return vec2(ld_span(2u * n), ld_span(2u * n + 1u));
}
// The columns that any row of a workgroup sees, from a whole block on; the same in all threads.
fn union_of(t: u32, row0: u32, keys: bool) -> vec2<u32> {
  if (t == 0u) {
    atomicStore(&lo, 0xffffffffu);
    atomicStore(&hi, 0u);
  }
  workgroupBarrier();
  for (var i = t; i < OWN; i += THREADS) {
    let own = seen(row0 + i, keys);
    if (own.x < own.y) {
      atomicMin(&lo, own.x);
      atomicMax(&hi, own.y);
    }
  }
  workgroupBarrier();
  if (t == 0u) {
    let end = atomicLoad(&hi);
    range = vec2(select(0u, atomicLoad(&lo) / COLS * COLS, end > 0u), end);
  }
  return workgroupUniformLoad(&range);
}
// Which of the columns j .. j + 4 a row sees.
fn sees(own: vec2<u32>, j: u32) -> vec4<bool> {
  let js = vec4(j) + vec4(0u, 1u, 2u, 3u);
  return (js >= vec4(own.x)) & (js < vec4(own.y));
}

// x·2^e is x·up.x·up.y: in two halves, because 2^e may lie outside f32 where the product does not.
fn halves(e: i32) -> vec2<f32> {
  let c = clamp(e, -252, 252);
  return vec2(pow2(c / 2), pow2(c - c / 2));
}
// From products of packed q and k to scores: both factors, in halves.
fn score_scale() -> vec2<f32> { return halves(exponent(0u) + exponent(1u)) * vec2(1.0, p.scale); }
fn score(product: vec4<f32>, up: vec2<f32>) -> vec4<f32> {
  let s = product * up.x * up.y;
#if CAPPED
  return vec4(softcap(s.x, p.softcap), softcap(s.y, p.softcap), softcap(s.z, p.softcap), softcap(s.w, p.softcap));
#end
#if 1 - CAPPED
  return s;
#end
}
// What softcap makes of a gradient.
fn slope(s: vec4<f32>) -> vec4<f32> {
#if CAPPED
  return 1.0 - (s / p.softcap) * (s / p.softcap);
#end
#if 1 - CAPPED
  return vec4(1.0);
#end
}
fn lanes_of(size: u32) -> u32 {
#if LANES
  return LANES;
#end
#if 1 - min(LANES,1)
  return size;
#end
}
fn top4(v: vec4<f32>) -> f32 { return max(max(v.x, v.y), max(v.z, v.w)); }

// Quad n of the block of columns at `at`.
const QUADS = COLS * DIM / 4u;
fn fetch(n: u32, at: u32) -> vec4<f16> { return packed_[at4_packed(at + 4u * min(n, QUADS - 1u))]; }
// Where it is staged.
fn slot(n: u32) -> u32 { return n / (S / 4u) * LF + n % (S / 4u); }

// A subgroup's rows: its scores are at `mine`, those in f16 at `half`.
#part rows
  let lanes = lanes_of(size);
  let row0 = group.x * OWN + subgroup % G * S;
  // a row of scores belongs to lanes/S lanes, each has `width` quads of it
  let row = lane % S;
  let width = COLS / 4u / (lanes / S);
  let col = lane / S * width;
  let up = score_scale();
  let mine = subgroup * S * LD;
  let stride = LD;
  let half = subgroup * S * LH;
#end
// Their fragments, packed at `at`.
#part own name at
#for s S S+1
#for d 0 ND
  let $name_$d = coopLoadT<coop_mat$sx$s<f16, A>>(&packed_[at4_packed($at + $du * S * S)], S / 4u);
#end
#end
#end
// A block of columns on its way from where it is packed to workgroup memory.
#part hold name
#for n 0 ceil(CB*S*ND*S/4,THREADS)
    var $name$n: vec4<f16>;
#end
#end
#part fetch name at
#for n 0 ceil(CB*S*ND*S/4,THREADS)
    $name$n = fetch(t + $nu * THREADS, $at);
#end
#end
#part stage name memory
#for n 0 ceil(CB*S*ND*S/4,THREADS)
    if (t + $nu * THREADS < QUADS) { $memory[slot(t + $nu * THREADS)] = $name$n; }
#end
#end
// The products of its rows `own` and a staged block of columns, to `ss`.
#part products sum own memory
#for s S S+1
#for c 0 CB
    var $sum_$c: coop_mat$sx$s<f32, C>;
#for d 0 ND
    let $sum_in$d_$c = coopLoad<coop_mat$sx$s<f16, B>>(&$memory[($cu * ND + $du) * S * LF], LF);
    $sum_$c = coopMultiplyAdd($own_$d, $sum_in$d_$c, $sum_$c);
#end
    let $sum_to$c = mine + $cu * S / 4u;
    coopStoreT($sum_$c, &ss[$sum_to$c], stride);
#end
#end
    workgroupBarrier();
#end
// The sums o over columns weighted by `ps`: as they begin, a block of columns more, and as `store` gets them.
#part sums
#for s S S+1
#for d 0 ND
  var o_$d: coop_mat$sx$s<f32, C>;
#end
#end
#end
#part weigh memory
    workgroupBarrier();
#for s S S+1
#for c 0 CB
    let p_$c = coopLoadT<coop_mat$sx$s<f16, A>>(&ps[half + $cu * S / 4u], LH);
#for d 0 ND
    let w$c_$d = coopLoadT<coop_mat$sx$s<f16, B>>(&$memory[($cu * ND + $du) * S * LF], LF);
    o_$d = coopMultiplyAdd(p_$c, w$c_$d, o_$d);
#end
#end
#end
#end
#part finish
#for d 0 ND
  workgroupBarrier();
  let to_$d = mine;
  coopStoreT(o_$d, &ss[to_$d], stride);
  workgroupBarrier();
  for (var i = lane; i < S * S / 4u && subgroup < G; i += lanes) {
    store(row0 + i / (S / 4u), group.y, $du * S + 4u * (i % (S / 4u)), ss[mine + i / (S / 4u) * LD + i % (S / 4u)]);
  }
#end
#end

// op attention_coop__amax grid(parts, tensors)
@compute @workgroup_size(256)
fn attention_coop__amax(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let hs = heads(group.y);
  let all = rows(group.y) * hs * (p.D / 4u);
  var m = 0.0;
  for (var n = group.x * 256u + t; n < all; n += p.parts * 256u) {
    let line = n / (p.D / 4u);
    m = max(m, largest(quad(group.y, line / hs, line % hs, 4u * (n % (p.D / 4u)))));
  }
  let top = group_max(t, m);
  if (t == 0u) { st1_scratch(group.y * p.parts + group.x, top); }
}

// op attention_coop__scale grid(tensors)
@compute @workgroup_size(256)
fn attention_coop__scale(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  var m = 0.0;
  for (var n = t; n < p.parts; n += 256u) { m = max(m, ld1_scratch(group.x * p.parts + n)); }
  let all = group_max(t, m);
  if (t == 0u) { st1_scratch(4u * p.parts + group.x, f32(f16_scale(all))); }
}

// op attention_coop__pack grid(ceil(len, 1024))
@compute @workgroup_size(256)
fn attention_coop__pack(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let n = 4u * (flat(group) * 256u + t);
  if (n >= p.len) { return; }
  var which = 0u;
  var at = 0u;
  while (n - at >= length(which)) {
    at += length(which);
    which += 1u;
  }
  let fragment = (n - at) / (S * S);
  let line = fragment / ND * S + (n - at) % (S * S) / S;
  let row = line % padded(rows(which));
  var v = vec4<f32>();
  if (row < rows(which)) { v = quad(which, row, line / padded(rows(which)), fragment % ND * S + n % S); }
  sth4_packed(n, vec4<f16>(v * pow2(-exponent(which))));
}

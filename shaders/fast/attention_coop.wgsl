enable f16;
enable wgpu_cooperative_matrix;
// attention.wgsl on cooperative matrices (tensor cores): 16-bit operands of D = ND·S channels, f32 sums.
//
// Every operand is first packed as f16, times 2^-e that brings its largest finite value to 2^14 .. 2^15 (bf16 reaches further
// than f16); rows past the end are 0. The order is [heads][rows, a multiple of PAD, / S][ND][S][S]: fragments in one piece.
// A workgroup has G subgroups; each owns RB x S rows of a head, whose fragments it holds, and walks over blocks of COLS columns,
// which all of them read from workgroup memory; the next block is on its way while one is worked on. Rows are queries and columns
// keys, or with `keys` the other way round:
//   lse   the log-sum-exp of a row, in a walk of its own, so that no sum of the next ones has to be rescaled
//   mix   sums over columns weighted by probabilities: out, or dv
//   grad  sums weighted by the gradients of scores: dq, and in another pass dk
// Scores pass through workgroup memory, where each row belongs to some lanes of the subgroup, up to WIDE quads of it to each, and
// go back as f16: probabilities times 2^14, and the scores' gradients in units that their bound |dS| <= 2·D·max|dout|·max|v| keeps
// below 2^15. LANES is 0 where the device chooses the size of subgroups.
// Scratch: 4·parts maxima, then e of q, k, v, dout.
//
// Where the device chose small subgroups there are more than G, and the last ones repeat the work of the first: no branch may
// lead around a cooperative operation.
const COLS = CB * S;
const OWN = G * RB * S; // rows of a workgroup
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

// op attention_coop__lse grid(ceil(N, G*RB*S), H)
var<workgroup> first: array<vec4<f16>, STAGED>;
var<workgroup> ss: array<vec4<f32>, SUBGROUPS * RB * S * LD>;
var<workgroup> stats: array<vec2<f32>, RB * THREADS>;
@compute @workgroup_size(THREADS)
fn attention_coop__lse(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32, @builtin(subgroup_id) subgroup: u32,
  @builtin(subgroup_invocation_id) lane: u32, @builtin(subgroup_size) size: u32,
) {
  let lanes = lanes_of(size);
  let row0 = group.x * OWN + subgroup % G * (RB * S);
  // a row of scores belongs to lanes/S lanes, each has `width` quads of it
  let row = lane % S;
  let width = COLS / 4u / (lanes / S);
  let col = lane / S * width;
  let up = score_scale();
  let mine = subgroup * (RB * S) * LD;
  let stride = LD;
  let q_at = place(0u, group.y, row0);
  let k_at = place(1u, group.y / (p.H / p.K), 0u);
#for r 0 RB
  let own$r = seen(row0 + $ru * S + row, false);
  var top$r = LOWEST;
  var sum$r = 0.0;
#end
#for s S S+1
#for r 0 RB
#for d 0 ND
  let q$r_$d = coopLoadT<coop_mat$sx$s<f16, A>>(&packed_[at4_packed(q_at + ($ru * ND + $du) * S * S)], S / 4u);
#end
#end
  let all = union_of(t, group.x * OWN, false);
#for n 0 ceil(CB*S*ND*S/4,THREADS)
    var f$n = fetch(t + $nu * THREADS, k_at + all.x * DIM);
#end
  for (var col0 = all.x; col0 < all.y; col0 += COLS) {
    workgroupBarrier();
#for n 0 ceil(CB*S*ND*S/4,THREADS)
    if (t + $nu * THREADS < QUADS) { first[slot(t + $nu * THREADS)] = f$n; }
#end
    workgroupBarrier();
    // past the last block, where nobody looks, the last one again
    let next = k_at + select(col0, col0 + COLS, col0 + COLS < all.y) * DIM;
#for n 0 ceil(CB*S*ND*S/4,THREADS)
    f$n = fetch(t + $nu * THREADS, next);
#end
#for c 0 CB
#for r 0 RB
    var s$r_$c: coop_mat$sx$s<f32, C>;
#end
#for d 0 ND
    let k$d_$c = coopLoad<coop_mat$sx$s<f16, B>>(&first[($cu * ND + $du) * S * LF], LF);
#for r 0 RB
    s$r_$c = coopMultiplyAdd(q$r_$d, k$d_$c, s$r_$c);
#end
#end
#for r 0 RB
    let sto$r_$c = mine + $ru * S * LD + $cu * S / 4u;
    coopStoreT(s$r_$c, &ss[sto$r_$c], stride);
#end
#end
    workgroupBarrier();
#for r 0 RB
    var most$r = top$r;
#for i 0 WIDE
    var z$r_$i = vec4(HIDDEN);
    if ($iu < width) {
      let j = col + $iu;
      z$r_$i = select(z$r_$i, score(ss[mine + ($ru * S + row) * LD + j], up), sees(own$r, col0 + 4u * j));
    }
    most$r = max(most$r, top4(z$r_$i));
#end
    sum$r *= exp(top$r - most$r);
    top$r = most$r;
#for i 0 WIDE
    sum$r += dot(exp(z$r_$i - most$r), vec4(1.0));
#end
#end
  }
#end
#for r 0 RB
  stats[(subgroup * RB + $ru) * lanes + lane] = vec2(top$r, sum$r);
#end
  workgroupBarrier();
#for r 0 RB
  {
    let line = (subgroup * RB + $ru) * lanes + row;
    var top = LOWEST;
    var sum = 0.0;
    for (var i = 0u; i < lanes / S; i++) { top = max(top, stats[line + i * S].x); }
    for (var i = 0u; i < lanes / S; i++) { sum += stats[line + i * S].y * exp(stats[line + i * S].x - top); }
    var infinity = 0x7f800000u;
    let lse = select(-bitcast<f32>(infinity), top + log(sum), sum > 0.0);
    let n = row0 + $ru * S + row;
    if (n < p.N && lane < S && subgroup < G) { st1_lse(n * p.H + group.y, lse); }
  }
#end
}

// op attention_coop__mix grid(blocks, heads)
var<workgroup> first: array<vec4<f16>, STAGED>;
var<workgroup> second: array<vec4<f16>, STAGED>;
var<workgroup> ss: array<vec4<f32>, SUBGROUPS * RB * S * LD>;
var<workgroup> ps: array<vec4<f16>, SUBGROUPS * RB * S * LH>;
#if BACKWARD
var<workgroup> columns: array<vec4<f32>, COLS / 4u>; // lse
fn lse4(n: u32, hd: u32) -> vec4<f32> {
  let last = p.N - 1u;
  return vec4(
    ld1_lse(min(n, last) * p.H + hd), ld1_lse(min(n + 1u, last) * p.H + hd),
    ld1_lse(min(n + 2u, last) * p.H + hd), ld1_lse(min(n + 3u, last) * p.H + hd),
  );
}
#end
@compute @workgroup_size(THREADS)
fn attention_coop__mix(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32, @builtin(subgroup_id) subgroup: u32,
  @builtin(subgroup_invocation_id) lane: u32, @builtin(subgroup_size) size: u32,
) {
  let lanes = lanes_of(size);
  let row0 = group.x * OWN + subgroup % G * (RB * S);
  // a row of scores belongs to lanes/S lanes, each has `width` quads of it
  let row = lane % S;
  let width = COLS / 4u / (lanes / S);
  let col = lane / S * width;
  let up = score_scale();
  let mine = subgroup * (RB * S) * LD;
  let stride = LD;
  let half = subgroup * (RB * S) * LH;
#if 1 - BACKWARD
  let a_at = place(0u, group.y, row0);
  let turns = 1u;
#end
#if BACKWARD
  let a_at = place(1u, group.y, row0);
  let turns = p.H / p.K;
#end
#for r 0 RB
  let own$r = seen(row0 + $ru * S + row, BACKWARD == 1u);
#if 1 - BACKWARD
  let lse$r = vec4(ld1_lse(min(row0 + $ru * S + row, p.N - 1u) * p.H + group.y));
#end
#end
  let all = union_of(t, group.x * OWN, BACKWARD == 1u);
#for s S S+1
#for r 0 RB
#for d 0 ND
  let a$r_$d = coopLoadT<coop_mat$sx$s<f16, A>>(&packed_[at4_packed(a_at + ($ru * ND + $du) * S * S)], S / 4u);
#end
#end
#for r 0 RB
#for d 0 ND
  var o$r_$d: coop_mat$sx$s<f32, C>;
#end
#end
  for (var turn = 0u; turn < turns; turn++) {
#if 1 - BACKWARD
    let hd = group.y / (p.H / p.K);
    let first_at = place(1u, hd, 0u);
    let second_at = place(2u, hd, 0u);
#end
#if BACKWARD
    let hd = group.y * turns + turn;
    let first_at = place(0u, hd, 0u);
    let second_at = place(3u, hd, 0u);
#end
#for n 0 ceil(CB*S*ND*S/4,THREADS)
    var f$n = fetch(t + $nu * THREADS, first_at + all.x * DIM);
#end
#for n 0 ceil(CB*S*ND*S/4,THREADS)
    var g$n = fetch(t + $nu * THREADS, second_at + all.x * DIM);
#end
    for (var col0 = all.x; col0 < all.y; col0 += COLS) {
    workgroupBarrier();
#for n 0 ceil(CB*S*ND*S/4,THREADS)
    if (t + $nu * THREADS < QUADS) { first[slot(t + $nu * THREADS)] = f$n; }
#end
#for n 0 ceil(CB*S*ND*S/4,THREADS)
    if (t + $nu * THREADS < QUADS) { second[slot(t + $nu * THREADS)] = g$n; }
#end
#if BACKWARD
    if (t < COLS / 4u) { columns[t] = lse4(col0 + 4u * t, hd); }
#end
    workgroupBarrier();
    let next = select(col0, col0 + COLS, col0 + COLS < all.y) * DIM;
#for n 0 ceil(CB*S*ND*S/4,THREADS)
    f$n = fetch(t + $nu * THREADS, first_at + next);
#end
#for n 0 ceil(CB*S*ND*S/4,THREADS)
    g$n = fetch(t + $nu * THREADS, second_at + next);
#end
#for c 0 CB
#for r 0 RB
    var s$r_$c: coop_mat$sx$s<f32, C>;
#end
#for d 0 ND
    let k$d_$c = coopLoad<coop_mat$sx$s<f16, B>>(&first[($cu * ND + $du) * S * LF], LF);
#for r 0 RB
    s$r_$c = coopMultiplyAdd(a$r_$d, k$d_$c, s$r_$c);
#end
#end
#for r 0 RB
    let sto$r_$c = mine + $ru * S * LD + $cu * S / 4u;
    coopStoreT(s$r_$c, &ss[sto$r_$c], stride);
#end
#end
    workgroupBarrier();
#for r 0 RB
#for i 0 WIDE
    if ($iu < width) {
      let j = col + $iu;
#if BACKWARD
      let lse$r = columns[j];
#end
      let prob = exp(score(ss[mine + ($ru * S + row) * LD + j], up) - lse$r) * 16384.0;
      ps[half + ($ru * S + row) * LH + j] = vec4<f16>(select(vec4<f32>(), prob, sees(own$r, col0 + 4u * j)));
    }
#end
#end
    workgroupBarrier();
#for c 0 CB
#for r 0 RB
    let p$r_$c = coopLoadT<coop_mat$sx$s<f16, A>>(&ps[half + $ru * S * LH + $cu * S / 4u], LH);
#end
#for d 0 ND
    let v$c_$d = coopLoadT<coop_mat$sx$s<f16, B>>(&second[($cu * ND + $du) * S * LF], LF);
#for r 0 RB
    o$r_$d = coopMultiplyAdd(p$r_$c, v$c_$d, o$r_$d);
#end
#end
#end
    }
  }
#end
#for d 0 ND
  workgroupBarrier();
#for r 0 RB
  let out$r_$d = mine + $ru * S * LD;
  coopStoreT(o$r_$d, &ss[out$r_$d], stride);
#end
  workgroupBarrier();
  for (var i = lane; i < RB * S * S / 4u && subgroup < G; i += lanes) {
    store(row0 + i / (S / 4u), group.y, $du * S + 4u * (i % (S / 4u)), ss[mine + i / (S / 4u) * LD + i % (S / 4u)]);
  }
#end
}
fn store(row: u32, hd: u32, d: u32, sum: vec4<f32>) {
#if 1 - BACKWARD
  if (row < p.N) { st4_out((row * p.H + hd) * p.D + d, scaled(sum, exponent(2u) - 14), 4u); }
#end
#if BACKWARD
  if (row < p.T) { st4_dv(row * p.ld_v + hd * p.D + d, scaled(sum, exponent(3u) - 14), 4u); }
#end
}

// op attention_coop__dot grid(ceil(N*H, 16))
// 16 threads a row
var<workgroup> part: array<f32, 256>;
@compute @workgroup_size(256)
fn attention_coop__dot(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let row = flat(group) * 16u + t / 16u;
  var sum = 0.0;
  if (row < p.N * p.H) {
    for (var d = t % 16u * 4u; d < p.D; d += 64u) { sum += dot(ld4_dout(row * p.D + d, 4u), ld4_out(row * p.D + d, 4u)); }
  }
  part[t] = sum;
  workgroupBarrier();
  if (t % 16u > 0u || row >= p.N * p.H) { return; }
  for (var i = 1u; i < 16u; i++) { sum += part[t + i]; }
  st1_dot(row, sum);
}

// op attention_coop__grad grid(blocks, heads)
// The first factor of a score's gradient is q·k, the second dout·v; both pass through the same memory, one after the other.
var<workgroup> first: array<vec4<f16>, STAGED>;
var<workgroup> second: array<vec4<f16>, STAGED>;
var<workgroup> ss: array<vec4<f32>, SUBGROUPS * RB * S * LD>;
var<workgroup> ps: array<vec4<f16>, SUBGROUPS * RB * S * LH>;
var<workgroup> column_lse: array<vec4<f32>, COLS / 4u>;
var<workgroup> column_dot: array<vec4<f32>, COLS / 4u>;
// lse and dot of a query, the latter in the units of products of packed dout and v.
fn stats(n: u32, hd: u32) -> vec2<f32> {
  let at = min(n, p.N - 1u) * p.H + hd;
  let down = halves(-(exponent(2u) + exponent(3u)));
  return vec2(ld1_lse(at), ld1_dot(at) * down.x * down.y);
}

@compute @workgroup_size(THREADS)
fn attention_coop__grad(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32, @builtin(subgroup_id) subgroup: u32,
  @builtin(subgroup_invocation_id) lane: u32, @builtin(subgroup_size) size: u32,
) {
  let lanes = lanes_of(size);
  let row0 = group.x * OWN + subgroup % G * (RB * S);
  // a row of scores belongs to lanes/S lanes, each has `width` quads of it
  let row = lane % S;
  let width = COLS / 4u / (lanes / S);
  let col = lane / S * width;
  let up = score_scale();
  let mine = subgroup * (RB * S) * LD;
  let stride = LD;
  let half = subgroup * (RB * S) * LH;
  let keys = p.keys == 1u;
  let per_kv = p.H / p.K;
  let turns = select(1u, per_kv, keys);
  let a_at = place(select(0u, 1u, keys), group.y, row0);
  let b_at = place(select(3u, 2u, keys), group.y, row0);
#for r 0 RB
  let own$r = seen(row0 + $ru * S + row, keys);
  let stat$r = stats(row0 + $ru * S + row, select(group.y, 0u, keys));
#end
  let all = union_of(t, group.x * OWN, keys);
#for s S S+1
#for r 0 RB
#for d 0 ND
  let a$r_$d = coopLoadT<coop_mat$sx$s<f16, A>>(&packed_[at4_packed(a_at + ($ru * ND + $du) * S * S)], S / 4u);
#end
#end
#for r 0 RB
#for d 0 ND
  let b$r_$d = coopLoadT<coop_mat$sx$s<f16, A>>(&packed_[at4_packed(b_at + ($ru * ND + $du) * S * S)], S / 4u);
#end
#end
#for r 0 RB
#for d 0 ND
  var o$r_$d: coop_mat$sx$s<f32, C>;
#end
#end
  for (var turn = 0u; turn < turns; turn++) {
    let hd = select(group.y / per_kv, group.y * turns + turn, keys);
    let first_at = place(select(1u, 0u, keys), hd, 0u);
    let second_at = place(select(2u, 3u, keys), hd, 0u);
#for n 0 ceil(CB*S*ND*S/4,THREADS)
    var f$n = fetch(t + $nu * THREADS, first_at + all.x * DIM);
#end
#for n 0 ceil(CB*S*ND*S/4,THREADS)
    var g$n = fetch(t + $nu * THREADS, second_at + all.x * DIM);
#end
    for (var col0 = all.x; col0 < all.y; col0 += COLS) {
    workgroupBarrier();
#for n 0 ceil(CB*S*ND*S/4,THREADS)
    if (t + $nu * THREADS < QUADS) { first[slot(t + $nu * THREADS)] = f$n; }
#end
#for n 0 ceil(CB*S*ND*S/4,THREADS)
    if (t + $nu * THREADS < QUADS) { second[slot(t + $nu * THREADS)] = g$n; }
#end
    if (keys && t < COLS / 4u) {
#for i 0 4
      let stat_$i = stats(col0 + 4u * t + $iu, hd);
#end
      column_lse[t] = vec4(stat_0.x, stat_1.x, stat_2.x, stat_3.x);
      column_dot[t] = vec4(stat_0.y, stat_1.y, stat_2.y, stat_3.y);
    }
    workgroupBarrier();
    let next = select(col0, col0 + COLS, col0 + COLS < all.y) * DIM;
#for n 0 ceil(CB*S*ND*S/4,THREADS)
    f$n = fetch(t + $nu * THREADS, first_at + next);
#end
#for n 0 ceil(CB*S*ND*S/4,THREADS)
    g$n = fetch(t + $nu * THREADS, second_at + next);
#end
#for c 0 CB
#for r 0 RB
    var s$r_$c: coop_mat$sx$s<f32, C>;
#end
#for d 0 ND
    let k$d_$c = coopLoad<coop_mat$sx$s<f16, B>>(&first[($cu * ND + $du) * S * LF], LF);
#for r 0 RB
    s$r_$c = coopMultiplyAdd(a$r_$d, k$d_$c, s$r_$c);
#end
#end
#for r 0 RB
    let sto$r_$c = mine + $ru * S * LD + $cu * S / 4u;
    coopStoreT(s$r_$c, &ss[sto$r_$c], stride);
#end
#end
    workgroupBarrier();
#for r 0 RB
#for i 0 WIDE
    var e$r_$i = vec4<f32>();
    if ($iu < width) {
      let j = col + $iu;
      let s = score(ss[mine + ($ru * S + row) * LD + j], up);
      e$r_$i = exp(s - select(vec4(stat$r.x), column_lse[j], vec4(keys))) * slope(s) * pow2(-UNIT);
    }
#end
#end
    workgroupBarrier();
#for c 0 CB
#for r 0 RB
    var x$r_$c: coop_mat$sx$s<f32, C>;
#end
#for d 0 ND
    let v$d_$c = coopLoad<coop_mat$sx$s<f16, B>>(&second[($cu * ND + $du) * S * LF], LF);
#for r 0 RB
    x$r_$c = coopMultiplyAdd(b$r_$d, v$d_$c, x$r_$c);
#end
#end
#for r 0 RB
    let xto$r_$c = mine + $ru * S * LD + $cu * S / 4u;
    coopStoreT(x$r_$c, &ss[xto$r_$c], stride);
#end
#end
    workgroupBarrier();
#for r 0 RB
#for i 0 WIDE
    if ($iu < width) {
      let j = col + $iu;
      let ds = e$r_$i * (ss[mine + ($ru * S + row) * LD + j] - select(vec4(stat$r.y), column_dot[j], vec4(keys)));
      ps[half + ($ru * S + row) * LH + j] = vec4<f16>(select(vec4<f32>(), ds, sees(own$r, col0 + 4u * j)));
    }
#end
#end
    workgroupBarrier();
#for c 0 CB
#for r 0 RB
    let p$r_$c = coopLoadT<coop_mat$sx$s<f16, A>>(&ps[half + $ru * S * LH + $cu * S / 4u], LH);
#end
#for d 0 ND
    let y$c_$d = coopLoadT<coop_mat$sx$s<f16, B>>(&first[($cu * ND + $du) * S * LF], LF);
#for r 0 RB
    o$r_$d = coopMultiplyAdd(p$r_$c, y$c_$d, o$r_$d);
#end
#end
#end
    }
  }
#end
#for d 0 ND
  workgroupBarrier();
#for r 0 RB
  let out$r_$d = mine + $ru * S * LD;
  coopStoreT(o$r_$d, &ss[out$r_$d], stride);
#end
  workgroupBarrier();
  for (var i = lane; i < RB * S * S / 4u && subgroup < G; i += lanes) {
    store(row0 + i / (S / 4u), group.y, $du * S + 4u * (i % (S / 4u)), ss[mine + i / (S / 4u) * LD + i % (S / 4u)], keys);
  }
#end
}
fn store(row: u32, hd: u32, d: u32, sum: vec4<f32>, keys: bool) {
  let e = UNIT + exponent(select(1u, 0u, keys)) + exponent(2u) + exponent(3u);
  let v = p.scale * scaled(sum, e);
  if (keys) {
    if (row < p.T) { st4_dk(row * p.ld_k + hd * p.D + d, v, 4u); }
  } else if (row < p.N) {
    st4_dq(row * p.ld_q + hd * p.D + d, v, 4u);
  }
}

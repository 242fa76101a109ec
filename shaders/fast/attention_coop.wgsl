enable f16;
enable wgpu_cooperative_matrix;
// attention.wgsl on cooperative matrices (tensor cores): 16-bit operands of D = ND·S channels, f32 sums.
//
// Every operand is first packed as f16, times 2^-e that brings its largest finite value to 2^14 .. 2^15 (bf16 reaches further
// than f16); rows past the end are 0. The order is [heads][rows, a multiple of PAD, / S][ND][S][S]: fragments in one piece.
// A workgroup has G subgroups; each owns S rows of a head, whose fragments it holds, and walks over blocks of COLS columns, which
// all of them read from workgroup memory. Rows are queries and columns keys, or with `keys` the other way round:
//   lse   the log-sum-exp of a row, in a walk of its own, so that no sum of the next ones has to be rescaled
//   mix   sums over columns weighted by probabilities: out, or dv
//   grad  sums weighted by the gradients of scores: dq, and in another pass dk
// Scores pass through workgroup memory, where each row belongs to some lanes of the subgroup, and go back as f16: probabilities
// times 2^14, and the scores' gradients in units that their bound |dS| <= 2·D·max|dout|·max|v| keeps below 2^15.
// Scratch: 4·parts maxima, then e of q, k, v, dout.
//
// Where the device chose small subgroups there are more than G, and the last ones repeat the work of the first: no branch may
// lead around a cooperative operation.
const COLS = CB * S;
const OWN = G * S; // rows of a workgroup
const PAD = 64u;
const DIM = ND * S;
const UNIT = 23; // 2^23 for the scores' gradients: 2·128·2^15·2^15 = 2^38
const LOWEST = -3.4028234e38;
// Rows in workgroup memory are longer than they need to be, off each other's banks: of scores, of f16 scores, of fragments (in quads).
const LD = COLS + 4u;
const LH = COLS + 8u;
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
// The columns that any row sees, from each thread's own stretch, from a whole block on; the same in all threads.
fn union_of(t: u32, own: vec2<u32>) -> vec2<u32> {
  if (t == 0u) {
    atomicStore(&lo, 0xffffffffu);
    atomicStore(&hi, 0u);
  }
  workgroupBarrier();
  if (own.x < own.y) {
    atomicMin(&lo, own.x);
    atomicMax(&hi, own.y);
  }
  workgroupBarrier();
  if (t == 0u) { range = vec2(atomicLoad(&lo) / COLS * COLS, atomicLoad(&hi)); }
  return workgroupUniformLoad(&range);
}
// The keys that query n sees, the queries that see key j.
fn span(n: u32) -> vec2<u32> {
  if (n >= p.N) { return vec2(0u); }
  return vec2(ld_span(2u * n), ld_span(2u * n + 1u));
}
fn reach(j: u32) -> vec2<u32> {
#if BACKWARD
  if (j < p.T) { return vec2(ld_reach(2u * j), min(ld_reach(2u * j + 1u), p.N)); }
#end
  return vec2(0u);
}
fn sees(own: vec2<u32>, j: u32) -> bool { return j >= own.x && j < own.y; }

// x·2^e is x·up.x·up.y: in two halves, because 2^e may lie outside f32 where the product does not.
fn halves(e: i32) -> vec2<f32> {
  let c = clamp(e, -252, 252);
  return vec2(pow2(c / 2), pow2(c - c / 2));
}
// The score of a product of packed q and k.
fn score(product: f32, up: vec2<f32>) -> f32 { return softcap(p.scale * (product * up.x * up.y), p.softcap); }
// What softcap makes of a gradient.
fn slope(s: f32) -> f32 {
  if (p.softcap == 0.0) { return 1.0; }
  return 1.0 - (s / p.softcap) * (s / p.softcap);
}

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

// op attention_coop__lse grid(ceil(N, G*S), H)
var<workgroup> first: array<vec4<f16>, STAGED>;
var<workgroup> ss: array<f32, SUBGROUPS * S * LD>;
var<workgroup> stats: array<vec2<f32>, THREADS>;
// A block of columns to workgroup memory.
fn stage(t: u32, at: u32) {
  for (var i = 0u; i < COLS * DIM / 4u; i += THREADS) {
    let n = i + t;
    if (n < COLS * DIM / 4u) {
      first[n / (S / 4u) * LF + n % (S / 4u)] = packed_[at4_packed(at + 4u * n)];
    }
  }
}
@compute @workgroup_size(THREADS)
fn attention_coop__lse(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32, @builtin(subgroup_id) subgroup: u32,
  @builtin(subgroup_invocation_id) lane: u32, @builtin(subgroup_size) lanes: u32,
) {
  let row0 = group.x * OWN + subgroup % G * S;
  // a row of scores belongs to lanes/S lanes, each has `width` of its columns and starts at another one, off the others' banks
  let row = lane % S;
  let width = COLS / (lanes / S);
  let col = lane / S * width;
  let up = halves(exponent(0u) + exponent(1u));
  let mine = subgroup * S * LD;
  let line = mine + row * LD;
  let stride = LD;
  let q_at = place(0u, group.y, row0);
  let own = span(row0 + row);
#for s S S+1
#for d 0 ND
  let q$d = coopLoadT<coop_mat$sx$s<f16, A>>(&packed_[at4_packed(q_at + $du * S * S)], S / 4u);
#end
  var top = LOWEST;
  var sum = 0.0;
  let all = union_of(t, span(group.x * OWN + t % OWN));
  let k_at = place(1u, group.y / (p.H / p.K), 0u);
  for (var col0 = all.x; col0 < all.y; col0 += COLS) {
    workgroupBarrier();
    stage(t, k_at + col0 * DIM);
    workgroupBarrier();
#for c 0 CB
    var s$c: coop_mat$sx$s<f32, C>;
#for d 0 ND
    let k$d_$c = coopLoad<coop_mat$sx$s<f16, B>>(&first[($cu * ND + $du) * S * LF], LF);
    s$c = coopMultiplyAdd(q$d, k$d_$c, s$c);
#end
    let to$c = mine + $cu * S;
    coopStoreT(s$c, &ss[to$c], stride);
#end
    workgroupBarrier();
    var most = top;
    for (var i = 0u; i < width; i++) {
      let c = col + (i + row) % width;
      let s = score(ss[line + c], up);
      if (sees(own, col0 + c)) { most = max(most, s); }
    }
    var more = 0.0;
    for (var i = 0u; i < width; i++) {
      let c = col + (i + row) % width;
      let s = score(ss[line + c], up);
      if (sees(own, col0 + c)) { more += exp(s - most); }
    }
    sum = sum * exp(top - most) + more;
    top = most;
  }
#end
  stats[subgroup * lanes + lane] = vec2(top, sum);
  workgroupBarrier();
  for (var i = 0u; i < lanes / S; i++) { top = max(top, stats[subgroup * lanes + row + i * S].x); }
  sum = 0.0;
  for (var i = 0u; i < lanes / S; i++) {
    let part = stats[subgroup * lanes + row + i * S];
    sum += part.y * exp(part.x - top);
  }
  var infinity = 0x7f800000u;
  let lse = select(-bitcast<f32>(infinity), top + log(sum), sum > 0.0);
  if (row0 + row < p.N && lane < S && subgroup < G) { st1_lse((row0 + row) * p.H + group.y, lse); }
}

// op attention_coop__mix grid(blocks, heads)
var<workgroup> first: array<vec4<f16>, STAGED>;
var<workgroup> second: array<vec4<f16>, STAGED>;
var<workgroup> ss: array<f32, SUBGROUPS * S * LD>;
var<workgroup> ps: array<f16, SUBGROUPS * S * LH>;
#if BACKWARD
var<workgroup> columns: array<f32, COLS>; // lse
#end
// A block of columns to workgroup memory.
fn stage(t: u32, at: u32, next: u32) {
  for (var i = 0u; i < COLS * DIM / 4u; i += THREADS) {
    let n = i + t;
    if (n < COLS * DIM / 4u) {
      first[n / (S / 4u) * LF + n % (S / 4u)] = packed_[at4_packed(at + 4u * n)];
      second[n / (S / 4u) * LF + n % (S / 4u)] = packed_[at4_packed(next + 4u * n)];
    }
  }
}
@compute @workgroup_size(THREADS)
fn attention_coop__mix(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32, @builtin(subgroup_id) subgroup: u32,
  @builtin(subgroup_invocation_id) lane: u32, @builtin(subgroup_size) lanes: u32,
) {
  let row0 = group.x * OWN + subgroup % G * S;
  // a row of scores belongs to lanes/S lanes, each has `width` of its columns and starts at another one, off the others' banks
  let row = lane % S;
  let width = COLS / (lanes / S);
  let col = lane / S * width;
  let up = halves(exponent(0u) + exponent(1u));
  let mine = subgroup * S * LD;
  let line = mine + row * LD;
  let stride = LD;
  let half = subgroup * S * LH;
#if 1 - BACKWARD
  let own = span(row0 + row);
  let row_lse = ld1_lse(min(row0 + row, p.N - 1u) * p.H + group.y);
  let a_at = place(0u, group.y, row0);
  let all = union_of(t, span(group.x * OWN + t % OWN));
  let turns = 1u;
#end
#if BACKWARD
  let own = reach(row0 + row);
  let a_at = place(1u, group.y, row0);
  let all = union_of(t, reach(group.x * OWN + t % OWN));
  let turns = p.H / p.K;
#end
#for s S S+1
#for d 0 ND
  let a$d = coopLoadT<coop_mat$sx$s<f16, A>>(&packed_[at4_packed(a_at + $du * S * S)], S / 4u);
  var o$d: coop_mat$sx$s<f32, C>;
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
    for (var col0 = all.x; col0 < all.y; col0 += COLS) {
      workgroupBarrier();
      stage(t, first_at + col0 * DIM, second_at + col0 * DIM);
#if BACKWARD
      if (t < COLS) { columns[t] = ld1_lse(min(col0 + t, p.N - 1u) * p.H + hd); }
#end
      workgroupBarrier();
#for c 0 CB
      var s$c: coop_mat$sx$s<f32, C>;
#for d 0 ND
      let k$d_$c = coopLoad<coop_mat$sx$s<f16, B>>(&first[($cu * ND + $du) * S * LF], LF);
      s$c = coopMultiplyAdd(a$d, k$d_$c, s$c);
#end
      let to$c = mine + $cu * S;
      coopStoreT(s$c, &ss[to$c], stride);
#end
      workgroupBarrier();
      for (var i = 0u; i < width; i++) {
        let c = col + (i + row) % width;
#if 1 - BACKWARD
        let lse = row_lse;
#end
#if BACKWARD
        let lse = columns[c];
#end
        let prob = exp(score(ss[line + c], up) - lse) * 16384.0;
        ps[half + row * LH + c] = f16(select(0.0, prob, sees(own, col0 + c)));
      }
      workgroupBarrier();
#for c 0 CB
      let p$c = coopLoadT<coop_mat$sx$s<f16, A>>(&ps[half + $cu * S], LH);
#for d 0 ND
      let v$c_$d = coopLoadT<coop_mat$sx$s<f16, B>>(&second[($cu * ND + $du) * S * LF], LF);
      o$d = coopMultiplyAdd(p$c, v$c_$d, o$d);
#end
#end
    }
  }
#for d 0 ND
  workgroupBarrier();
  coopStoreT(o$d, &ss[mine], stride);
  workgroupBarrier();
  for (var i = lane; i < S * S / 4u && subgroup < G; i += lanes) {
    let at = mine + i / (S / 4u) * LD + 4u * (i % (S / 4u));
    store(row0 + i / (S / 4u), group.y, $du * S + 4u * (i % (S / 4u)), vec4(ss[at], ss[at + 1u], ss[at + 2u], ss[at + 3u]));
  }
#end
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
// The first factor of a score's gradient is q·k, the second dout·v.
var<workgroup> first: array<vec4<f16>, STAGED>;
var<workgroup> second: array<vec4<f16>, STAGED>;
var<workgroup> ss: array<f32, SUBGROUPS * S * LD>;
var<workgroup> gs: array<f32, SUBGROUPS * S * LD>;
var<workgroup> ps: array<f16, SUBGROUPS * S * LH>;
var<workgroup> columns: array<vec2<f32>, COLS>; // lse, dot
// A block of columns to workgroup memory.
fn stage(t: u32, at: u32, next: u32) {
  for (var i = 0u; i < COLS * DIM / 4u; i += THREADS) {
    let n = i + t;
    if (n < COLS * DIM / 4u) {
      first[n / (S / 4u) * LF + n % (S / 4u)] = packed_[at4_packed(at + 4u * n)];
      second[n / (S / 4u) * LF + n % (S / 4u)] = packed_[at4_packed(next + 4u * n)];
    }
  }
}
// lse and dot of a query, the latter in the units of products of packed dout and v.
fn stats(n: u32, hd: u32) -> vec2<f32> {
  let at = min(n, p.N - 1u) * p.H + hd;
  let down = halves(-(exponent(2u) + exponent(3u)));
  return vec2(ld1_lse(at), ld1_dot(at) * down.x * down.y);
}

@compute @workgroup_size(THREADS)
fn attention_coop__grad(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32, @builtin(subgroup_id) subgroup: u32,
  @builtin(subgroup_invocation_id) lane: u32, @builtin(subgroup_size) lanes: u32,
) {
  let row0 = group.x * OWN + subgroup % G * S;
  // a row of scores belongs to lanes/S lanes, each has `width` of its columns and starts at another one, off the others' banks
  let row = lane % S;
  let width = COLS / (lanes / S);
  let col = lane / S * width;
  let up = halves(exponent(0u) + exponent(1u));
  let mine = subgroup * S * LD;
  let line = mine + row * LD;
  let stride = LD;
  let half = subgroup * S * LH;
  let keys = p.keys == 1u;
  let per_kv = p.H / p.K;
  let turns = select(1u, per_kv, keys);
  let own = select(span(row0 + row), reach(row0 + row), vec2(keys));
  let row_stats = stats(row0 + row, select(group.y, 0u, keys));
  let a_at = place(select(0u, 1u, keys), group.y, row0);
  let b_at = place(select(3u, 2u, keys), group.y, row0);
  let edge = group.x * OWN + t % OWN;
  let all = union_of(t, select(span(edge), reach(edge), vec2(keys)));
#for s S S+1
#for d 0 ND
  let a$d = coopLoadT<coop_mat$sx$s<f16, A>>(&packed_[at4_packed(a_at + $du * S * S)], S / 4u);
  let b$d = coopLoadT<coop_mat$sx$s<f16, A>>(&packed_[at4_packed(b_at + $du * S * S)], S / 4u);
  var o$d: coop_mat$sx$s<f32, C>;
#end
  for (var turn = 0u; turn < turns; turn++) {
    let hd = select(group.y / per_kv, group.y * turns + turn, keys);
    let first_at = place(select(1u, 0u, keys), hd, 0u);
    let second_at = place(select(2u, 3u, keys), hd, 0u);
    for (var col0 = all.x; col0 < all.y; col0 += COLS) {
      workgroupBarrier();
      stage(t, first_at + col0 * DIM, second_at + col0 * DIM);
      if (keys && t < COLS) { columns[t] = stats(col0 + t, hd); }
      workgroupBarrier();
#for c 0 CB
      var s$c: coop_mat$sx$s<f32, C>;
      var x$c: coop_mat$sx$s<f32, C>;
#for d 0 ND
      let k$d_$c = coopLoad<coop_mat$sx$s<f16, B>>(&first[($cu * ND + $du) * S * LF], LF);
      s$c = coopMultiplyAdd(a$d, k$d_$c, s$c);
      let v$d_$c = coopLoad<coop_mat$sx$s<f16, B>>(&second[($cu * ND + $du) * S * LF], LF);
      x$c = coopMultiplyAdd(b$d, v$d_$c, x$c);
#end
      let to$c = mine + $cu * S;
      coopStoreT(s$c, &ss[to$c], stride);
      coopStoreT(x$c, &gs[to$c], stride);
#end
      workgroupBarrier();
      for (var i = 0u; i < width; i++) {
        let c = col + (i + row) % width;
        let stat = select(row_stats, columns[c], vec2(keys));
        let s = score(ss[line + c], up);
        let ds = exp(s - stat.x) * slope(s) * (gs[line + c] - stat.y) * pow2(-UNIT);
        ps[half + row * LH + c] = f16(select(0.0, ds, sees(own, col0 + c)));
      }
      workgroupBarrier();
#for c 0 CB
      let p$c = coopLoadT<coop_mat$sx$s<f16, A>>(&ps[half + $cu * S], LH);
#for d 0 ND
      let y$c_$d = coopLoadT<coop_mat$sx$s<f16, B>>(&first[($cu * ND + $du) * S * LF], LF);
      o$d = coopMultiplyAdd(p$c, y$c_$d, o$d);
#end
#end
    }
  }
#for d 0 ND
  workgroupBarrier();
  coopStoreT(o$d, &ss[mine], stride);
  workgroupBarrier();
  for (var i = lane; i < S * S / 4u && subgroup < G; i += lanes) {
    let at = mine + i / (S / 4u) * LD + 4u * (i % (S / 4u));
    store(row0 + i / (S / 4u), group.y, $du * S + 4u * (i % (S / 4u)), vec4(ss[at], ss[at + 1u], ss[at + 2u], ss[at + 3u]), keys);
  }
#end
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

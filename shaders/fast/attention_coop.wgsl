enable f16;
enable wgpu_cooperative_matrix;
// attention.wgsl on cooperative matrices (tensor cores): 16-bit operands of D = ND·S channels, f32 sums.
//
// Every operand is first packed as f16, times 2^-e that brings its largest finite value to 2^14 .. 2^15 (bf16 reaches further
// than f16); rows past the end are 0. The order is [heads][rows, a multiple of PAD, / S][ND][S][S]: a fragment is S·S elements in
// a row, row after row, or column after column in the copies that are right factors of [rows, D]; so its values that a product
// takes together lie together. A workgroup has G subgroups, each owns S rows
// (queries, or keys in the stage dkv) of a head and walks over blocks of CB·S columns. Scores pass through workgroup memory,
// where each row belongs to some lanes of the subgroup, and go back as f16: probabilities times 2^14, and the scores' gradients
// in units that their bound |dS| <= 2·D·max|dout|·max|v| keeps below 2^15.
// The maximum of a row and its sum come from a first walk, so that no sum of the second has to be rescaled.
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
// The tensor that packed copy `copy` is of, and whether its fragments lie column after column.
fn source(copy: u32) -> u32 {
#if BACKWARD
  if (copy == K_TURNED) { return 1u; }
  if (copy == Q_TURNED) { return 0u; }
  if (copy == G_TURNED) { return 3u; }
#end
  return copy;
}
fn turned(copy: u32) -> bool {
#if BACKWARD
  return copy >= K_TURNED;
#end
#if 1 - BACKWARD
  return copy == 2u;
#end
}
const K_TURNED = 4u;
const Q_TURNED = 5u;
const G_TURNED = 6u;
// Elements of a packed copy.
fn length(copy: u32) -> u32 { return heads(source(copy)) * padded(rows(source(copy))) * p.D; }
fn start(copy: u32) -> u32 {
  var at = 0u;
  for (var c = 0u; c < copy; c++) { at += length(c); }
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
fn span(n: u32) -> vec2<u32> {
  if (n >= p.N) { return vec2(0u); }
  return vec2(ld_span(2u * n), ld_span(2u * n + 1u));
}
fn sees(own: vec2<u32>, j: u32) -> bool { return j >= own.x && j < own.y; }
// The score of a product of packed q and k.
fn score(product: f32, e: i32) -> f32 { return softcap(p.scale * scaled1(product, e), p.softcap); }
fn scaled1(x: f32, e: i32) -> f32 { return scaled(vec4(x), e).x; }
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

// op attention_coop__pack grid(ceil(len, 4096))
// A thread packs 4 rows of 4 channels.
@compute @workgroup_size(256)
fn attention_coop__pack(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let n = 16u * (flat(group) * 256u + t);
  if (n >= p.len) { return; }
  var copy = 0u;
  var at = 0u;
  while (n - at >= length(copy)) {
    at += length(copy);
    copy += 1u;
  }
  let which = source(copy);
  let down = pow2(-exponent(which));
  let fragment = (n - at) / (S * S);
  let block = (n - at) % (S * S) / 16u;
  // rows and channels of the fragment, then of the block in it
  let line = fragment / ND * S;
  let row0 = line % padded(rows(which)) + 4u * (block / (S / 4u));
  let d = fragment % ND * S + 4u * (block % (S / 4u));
  var m: mat4x4<f32>;
#for r 0 4
  if (row0 + $ru < rows(which)) { m[$r] = quad(which, row0 + $ru, line / padded(rows(which)), d) * down; }
#end
  let first = at + fragment * S * S;
  var to = first + row0 % S * S + d % S;
  if (turned(copy)) {
    m = transpose(m);
    to = first + d % S * S + row0 % S;
  }
#for r 0 4
  sth4_packed(to + $ru * S, vec4<f16>(m[$r]));
#end
}

// op attention_coop__forward grid(ceil(N, G*S), H)
const LD = COLS + 4u;
const LH = COLS + 8u;
var<workgroup> ss: array<f32, SUBGROUPS * S * LD>;
var<workgroup> ps: array<f16, SUBGROUPS * S * LH>;
var<workgroup> stats: array<vec2<f32>, THREADS>;

@compute @workgroup_size(THREADS)
fn attention_coop__forward(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32, @builtin(subgroup_id) subgroup: u32,
  @builtin(subgroup_invocation_id) lane: u32, @builtin(subgroup_size) lanes: u32,
) {
  let row0 = group.x * OWN + subgroup % G * S;
  let q_at = (group.y * padded(p.N) + row0) * DIM;
  let kv = group.y / (p.H / p.K) * padded(p.T) * DIM;
  let k_at = start(1u) + kv;
  let v_at = start(2u) + kv;
  let e = exponent(0u) + exponent(1u);
  // a row of scores belongs to `per` lanes
  let per = lanes / S;
  let n = row0 + lane / per;
  let own = span(n);
  let mine = subgroup * S * LD;
  let half = subgroup * S * LH;
  let line = lane / per * LD + mine;
  let stride = LD;
#for s S S+1
#for d 0 ND
  let q$d = coopLoadT<coop_mat$sx$s<f16, A>>(&packed_[at4_packed(q_at + $du * S * S)], S / 4u);
  var o$d: coop_mat$sx$s<f32, C>;
#end
  var top = LOWEST;
  var sum = 0.0;
  let all = union_of(t, span(group.x * OWN + t % OWN));
  for (var col0 = all.x; col0 < all.y; col0 += COLS) {
#for c 0 CB
    var s$c: coop_mat$sx$s<f32, C>;
#for d 0 ND
    let k$d_$c = coopLoad<coop_mat$sx$s<f16, B>>(&packed_[at4_packed(k_at + (col0 + $cu * S) * DIM + $du * S * S)], S / 4u);
    s$c = coopMultiplyAdd(q$d, k$d_$c, s$c);
#end
    let to$c = mine + $cu * S;
    coopStoreT(s$c, &ss[to$c], stride);
#end
    workgroupBarrier();
    var most = top;
    for (var c = lane % per; c < COLS; c += per) {
      if (sees(own, col0 + c)) { most = max(most, score(ss[line + c], e)); }
    }
    var more = 0.0;
    for (var c = lane % per; c < COLS; c += per) {
      if (sees(own, col0 + c)) { more += exp(score(ss[line + c], e) - most); }
    }
    sum = sum * exp(top - most) + more;
    top = most;
    workgroupBarrier();
  }
  stats[subgroup * lanes + lane] = vec2(top, sum);
  workgroupBarrier();
  let first = subgroup * lanes + lane / per * per;
  for (var i = 0u; i < per; i++) { top = max(top, stats[first + i].x); }
  sum = 0.0;
  for (var i = 0u; i < per; i++) { sum += stats[first + i].y * exp(stats[first + i].x - top); }
  var infinity = 0x7f800000u;
  let lse = select(-bitcast<f32>(infinity), top + log(sum), sum > 0.0);
  if (n < p.N && lane % per == 0u && subgroup < G) { st1_lse(n * p.H + group.y, lse); }

  for (var col0 = all.x; col0 < all.y; col0 += COLS) {
#for c 0 CB
    var s$c: coop_mat$sx$s<f32, C>;
#for d 0 ND
    let k$d_$c = coopLoad<coop_mat$sx$s<f16, B>>(&packed_[at4_packed(k_at + (col0 + $cu * S) * DIM + $du * S * S)], S / 4u);
    s$c = coopMultiplyAdd(q$d, k$d_$c, s$c);
#end
    let to$c = mine + $cu * S;
    coopStoreT(s$c, &ss[to$c], stride);
#end
    workgroupBarrier();
    for (var c = lane % per; c < COLS; c += per) {
      let prob = exp(score(ss[line + c], e) - lse) * 16384.0;
      ps[half + lane / per * LH + c] = f16(select(0.0, prob, sees(own, col0 + c)));
    }
    workgroupBarrier();
#for c 0 CB
    let p$c = coopLoadT<coop_mat$sx$s<f16, A>>(&ps[half + $cu * S], LH);
#for d 0 ND
    let v$c_$d = coopLoad<coop_mat$sx$s<f16, B>>(&packed_[at4_packed(v_at + (col0 + $cu * S) * DIM + $du * S * S)], S / 4u);
    o$d = coopMultiplyAdd(p$c, v$c_$d, o$d);
#end
#end
  }
#for d 0 ND
  workgroupBarrier();
  coopStoreT(o$d, &ss[mine], stride);
  workgroupBarrier();
  for (var i = lane; i < S * S / 4u && subgroup < G; i += lanes) {
    store(row0 + i / (S / 4u), group.y, $du * S + 4u * (i % (S / 4u)), mine + i / (S / 4u) * LD + 4u * (i % (S / 4u)));
  }
#end
#end
}
fn store(n: u32, hd: u32, d: u32, at: u32) {
  if (n >= p.N) { return; }
  st4_out((n * p.H + hd) * p.D + d, scaled(vec4(ss[at], ss[at + 1u], ss[at + 2u], ss[at + 3u]), exponent(2u) - 14), 4u);
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

// op attention_coop__dq grid(ceil(N, G*S), H)
const LD = COLS + 4u;
const LH = COLS + 8u;
var<workgroup> ss: array<f32, SUBGROUPS * S * LD>;
var<workgroup> gs: array<f32, SUBGROUPS * S * LD>;
var<workgroup> ps: array<f16, SUBGROUPS * S * LH>;

@compute @workgroup_size(THREADS)
fn attention_coop__dq(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32, @builtin(subgroup_id) subgroup: u32,
  @builtin(subgroup_invocation_id) lane: u32, @builtin(subgroup_size) lanes: u32,
) {
  let row0 = group.x * OWN + subgroup % G * S;
  let q_at = (group.y * padded(p.N) + row0) * DIM;
  let g_at = start(3u) + q_at;
  let kv = group.y / (p.H / p.K) * padded(p.T) * DIM;
  let k_at = start(1u) + kv;
  let v_at = start(2u) + kv;
  let turned_at = start(K_TURNED) + kv;
  let e = exponent(0u) + exponent(1u);
  let per = lanes / S;
  let n = row0 + lane / per;
  let own = span(n);
  let saved = min(n, p.N - 1u) * p.H + group.y;
  let lse = ld1_lse(saved);
  let whole = scaled1(ld1_dot(saved), -(exponent(2u) + exponent(3u)));
  let mine = subgroup * S * LD;
  let half = subgroup * S * LH;
  let line = lane / per * LD + mine;
  let stride = LD;
#for s S S+1
#for d 0 ND
  let q$d = coopLoadT<coop_mat$sx$s<f16, A>>(&packed_[at4_packed(q_at + $du * S * S)], S / 4u);
  let g$d = coopLoadT<coop_mat$sx$s<f16, A>>(&packed_[at4_packed(g_at + $du * S * S)], S / 4u);
  var o$d: coop_mat$sx$s<f32, C>;
#end
  let all = union_of(t, span(group.x * OWN + t % OWN));
  for (var col0 = all.x; col0 < all.y; col0 += COLS) {
#for c 0 CB
    var s$c: coop_mat$sx$s<f32, C>;
    var x$c: coop_mat$sx$s<f32, C>;
#for d 0 ND
    let k$d_$c = coopLoad<coop_mat$sx$s<f16, B>>(&packed_[at4_packed(k_at + (col0 + $cu * S) * DIM + $du * S * S)], S / 4u);
    s$c = coopMultiplyAdd(q$d, k$d_$c, s$c);
    let v$d_$c = coopLoad<coop_mat$sx$s<f16, B>>(&packed_[at4_packed(v_at + (col0 + $cu * S) * DIM + $du * S * S)], S / 4u);
    x$c = coopMultiplyAdd(g$d, v$d_$c, x$c);
#end
    let to$c = mine + $cu * S;
    coopStoreT(s$c, &ss[to$c], stride);
    coopStoreT(x$c, &gs[to$c], stride);
#end
    workgroupBarrier();
    for (var c = lane % per; c < COLS; c += per) {
      let s = score(ss[line + c], e);
      let ds = exp(s - lse) * slope(s) * (gs[line + c] - whole) * pow2(-UNIT);
      ps[half + lane / per * LH + c] = f16(select(0.0, ds, sees(own, col0 + c)));
    }
    workgroupBarrier();
#for c 0 CB
    let p$c = coopLoadT<coop_mat$sx$s<f16, A>>(&ps[half + $cu * S], LH);
#for d 0 ND
    let b$c_$d = coopLoad<coop_mat$sx$s<f16, B>>(&packed_[at4_packed(turned_at + (col0 + $cu * S) * DIM + $du * S * S)], S / 4u);
    o$d = coopMultiplyAdd(p$c, b$c_$d, o$d);
#end
#end
  }
#for d 0 ND
  workgroupBarrier();
  coopStoreT(o$d, &ss[mine], stride);
  workgroupBarrier();
  for (var i = lane; i < S * S / 4u && subgroup < G; i += lanes) {
    store(row0 + i / (S / 4u), group.y, $du * S + 4u * (i % (S / 4u)), mine + i / (S / 4u) * LD + 4u * (i % (S / 4u)));
  }
#end
#end
}
fn store(n: u32, hd: u32, d: u32, at: u32) {
  if (n >= p.N) { return; }
  let v = scaled(vec4(ss[at], ss[at + 1u], ss[at + 2u], ss[at + 3u]), UNIT + exponent(1u) + exponent(2u) + exponent(3u));
  st4_dq(n * p.ld_q + hd * p.D + d, p.scale * v, 4u);
}

// op attention_coop__dkv grid(ceil(T, G*S), K)
// Rows of scores are queries here, S keys to each.
const LD = S + 4u;
const LH = COLS + 8u;
var<workgroup> ss: array<f32, SUBGROUPS * COLS * LD>;
var<workgroup> gs: array<f32, SUBGROUPS * COLS * LD>;
// [key][query]
var<workgroup> ps: array<f16, SUBGROUPS * S * LH>;
var<workgroup> ds: array<f16, SUBGROUPS * S * LH>;
fn reach(j: u32) -> vec2<u32> {
  if (j >= p.T) { return vec2(0u); }
  return vec2(ld_reach(2u * j), min(ld_reach(2u * j + 1u), p.N));
}

@compute @workgroup_size(THREADS)
fn attention_coop__dkv(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32, @builtin(subgroup_id) subgroup: u32,
  @builtin(subgroup_invocation_id) lane: u32, @builtin(subgroup_size) lanes: u32,
) {
  let row0 = group.x * OWN + subgroup % G * S;
  let kv = (group.y * padded(p.T) + row0) * DIM;
  let k_at = start(1u) + kv;
  let v_at = start(2u) + kv;
  let e = exponent(0u) + exponent(1u);
  let eg = exponent(2u) + exponent(3u);
  let mine = subgroup * COLS * LD;
  let half = subgroup * S * LH;
  let stride = LD;
  let group_heads = p.H / p.K;
#for s S S+1
#for d 0 ND
  var dk$d: coop_mat$sx$s<f32, C>;
  var dv$d: coop_mat$sx$s<f32, C>;
#end
  let all = union_of(t, reach(group.x * OWN + t % OWN));
  for (var h = 0u; h < group_heads; h++) {
    let hd = group.y * group_heads + h;
    for (var col0 = all.x; col0 < all.y; col0 += COLS) {
      let q_at = (hd * padded(p.N) + col0) * DIM;
      let g_at = start(3u) + q_at;
      let q_turned = start(Q_TURNED) + q_at;
      let g_turned = start(G_TURNED) + q_at;
#for c 0 CB
      var s$c: coop_mat$sx$s<f32, C>;
      var x$c: coop_mat$sx$s<f32, C>;
#for d 0 ND
      let q$d_$c = coopLoadT<coop_mat$sx$s<f16, A>>(&packed_[at4_packed(q_at + $cu * S * DIM + $du * S * S)], S / 4u);
      let k$d_$c = coopLoad<coop_mat$sx$s<f16, B>>(&packed_[at4_packed(k_at + $du * S * S)], S / 4u);
      s$c = coopMultiplyAdd(q$d_$c, k$d_$c, s$c);
      let g$d_$c = coopLoadT<coop_mat$sx$s<f16, A>>(&packed_[at4_packed(g_at + $cu * S * DIM + $du * S * S)], S / 4u);
      let v$d_$c = coopLoad<coop_mat$sx$s<f16, B>>(&packed_[at4_packed(v_at + $du * S * S)], S / 4u);
      x$c = coopMultiplyAdd(g$d_$c, v$d_$c, x$c);
#end
      let to$c = mine + $cu * S * LD;
      coopStoreT(s$c, &ss[to$c], stride);
      coopStoreT(x$c, &gs[to$c], stride);
#end
      workgroupBarrier();
      for (var r = lane; r < COLS; r += lanes) {
        let n = col0 + r;
        let own = span(n);
        let saved = min(n, p.N - 1u) * p.H + hd;
        let lse = ld1_lse(saved);
        let whole = scaled1(ld1_dot(saved), -eg);
        for (var i = 0u; i < S; i++) {
          // each row from another column on, off the others' banks
          let j = (i + r) % S;
          let s = score(ss[mine + r * LD + j], e);
          let prob = select(0.0, exp(s - lse), sees(own, row0 + j));
          ps[half + j * LH + r] = f16(prob * 16384.0);
          ds[half + j * LH + r] = f16(select(0.0, prob * slope(s) * (gs[mine + r * LD + j] - whole) * pow2(-UNIT), prob > 0.0));
        }
      }
      workgroupBarrier();
#for c 0 CB
      let p$c = coopLoadT<coop_mat$sx$s<f16, A>>(&ps[half + $cu * S], LH);
      let d$c = coopLoadT<coop_mat$sx$s<f16, A>>(&ds[half + $cu * S], LH);
#for d 0 ND
      let y$c_$d = coopLoad<coop_mat$sx$s<f16, B>>(&packed_[at4_packed(g_turned + $cu * S * DIM + $du * S * S)], S / 4u);
      dv$d = coopMultiplyAdd(p$c, y$c_$d, dv$d);
      let z$c_$d = coopLoad<coop_mat$sx$s<f16, B>>(&packed_[at4_packed(q_turned + $cu * S * DIM + $du * S * S)], S / 4u);
      dk$d = coopMultiplyAdd(d$c, z$c_$d, dk$d);
#end
#end
    }
  }
#for d 0 ND
  workgroupBarrier();
  coopStoreT(dk$d, &ss[mine], stride);
  coopStoreT(dv$d, &gs[mine], stride);
  workgroupBarrier();
  for (var i = lane; i < S * S / 4u && subgroup < G; i += lanes) {
    store(row0 + i / (S / 4u), group.y, $du * S + 4u * (i % (S / 4u)), mine + i / (S / 4u) * LD + 4u * (i % (S / 4u)));
  }
#end
#end
}
fn store(j: u32, hd: u32, d: u32, at: u32) {
  if (j >= p.T) { return; }
  let k = scaled(vec4(ss[at], ss[at + 1u], ss[at + 2u], ss[at + 3u]), UNIT + exponent(0u) + exponent(2u) + exponent(3u));
  let v = scaled(vec4(gs[at], gs[at + 1u], gs[at + 2u], gs[at + 3u]), exponent(3u) - 14);
  st4_dk(j * p.ld_k + hd * p.D + d, p.scale * k, 4u);
  st4_dv(j * p.ld_v + hd * p.D + d, v, 4u);
}

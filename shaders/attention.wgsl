// Tiles of 64 rows by 32 columns: a workgroup owns the rows (queries, or keys in the stage kv) of a head and walks over the
// columns that they can see. Thread (ty, tx) of 16 x 16 has rows ty + 16r, columns tx + 16c, and channels 64n + 4tx.. of sums.
const ROWS = 64u;
const COLUMNS = 32u;
const LOWEST = -3.4028234e38;
var<workgroup> xs: array<vec4<f32>, 576>; // [row][8 vec4, padded to 9], or [column][16 vec4]
var<workgroup> ys: array<vec4<f32>, 288>; // [column][8 vec4, padded to 9]
var<workgroup> ps: array<f32, 2112>;      // [row][column, padded to 33]
var<workgroup> part: array<f32, 256>;
var<workgroup> factor: array<f32, 64>;    // by row
var<workgroup> lo: atomic<u32>;
var<workgroup> hi: atomic<u32>;
var<workgroup> range: vec2<u32>;
var<private> head: u32;
// s of a product, and ∂s/∂product
fn score(product: f32) -> f32 { return softcap(p.scale * product, p.softcap); }
fn slope(s: f32) -> f32 {
  if (p.softcap == 0.0) { return p.scale; }
  return p.scale * (1.0 - (s / p.softcap) * (s / p.softcap));
}
alias Sums = array<vec4<f32>, 4u * ND>;

// Four channels of this head; zeros past D and past the last row.
fn kv_head() -> u32 { return head / (p.H / p.K); }
fn rest(row: u32, rows: u32, d: u32) -> u32 { return select(0u, p.D - d, row < rows && d < p.D); }
fn q4(n: u32, d: u32) -> vec4<f32> { return ld4_q(n * p.ld_q + head * p.D + d, rest(n, p.N, d)); }
fn k4(j: u32, d: u32) -> vec4<f32> { return ld4_k(j * p.ld_k + kv_head() * p.D + d, rest(j, p.T, d)); }
fn v4(j: u32, d: u32) -> vec4<f32> { return ld4_v(j * p.ld_v + kv_head() * p.D + d, rest(j, p.T, d)); }
fn span(n: u32) -> vec2<u32> {
  if (n >= p.N) { return vec2(0u); }
  return vec2(ld_span(2u * n), ld_span(2u * n + 1u));
}

// The columns that any row sees, from each thread's own stretch; the same in all threads.
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
  if (t == 0u) { range = vec2(atomicLoad(&lo), atomicLoad(&hi)); }
  return workgroupUniformLoad(&range);
}

// s[r, c] = row · column over D, of the pair of tensors `which`.
fn products(t: u32, which: u32, row0: u32, col0: u32) -> array<f32, 8> {
  let tx = t % 16u;
  let ty = t / 16u;
#for i 0 8
  var s$i = 0.0;
#end
  for (var d = 0u; d < p.D; d += 32u) {
    workgroupBarrier();
    for (var b = t; b < ROWS * 8u; b += 256u) { xs[b / 8u * 9u + b % 8u] = row4(which, row0 + b / 8u, d + 4u * (b % 8u)); }
    ys[t / 8u * 9u + t % 8u] = col4(which, col0 + t / 8u, d + 4u * (t % 8u));
    workgroupBarrier();
    let steps = min(8u, ceil_div(p.D - d, 4u));
    for (var i = 0u; i < steps; i++) {
      let y0 = ys[tx * 9u + i];
      let y1 = ys[(tx + 16u) * 9u + i];
#for r 0 4
      let x$r = xs[(ty + 16u * $r) * 9u + i];
#end
      s0 += dot(x0, y0);
      s1 += dot(x0, y1);
      s2 += dot(x1, y0);
      s3 += dot(x1, y1);
      s4 += dot(x2, y0);
      s5 += dot(x2, y1);
      s6 += dot(x3, y0);
      s7 += dot(x3, y1);
    }
  }
  return array(s0, s1, s2, s3, s4, s5, s6, s7);
}

// sums[r, d] += Σ_c ps[r, c]·column[c, d]
fn apply(t: u32, which: u32, col0: u32, sums: ptr<function, Sums>) {
  let tx = t % 16u;
  let ty = t / 16u;
#for n 0 ND
  workgroupBarrier();
  for (var b = t; b < COLUMNS * 16u; b += 256u) { xs[b] = col4(which, col0 + b / 16u, 64u * $n + 4u * (b % 16u)); }
  workgroupBarrier();
  for (var c = 0u; c < COLUMNS; c++) {
    let y = xs[c * 16u + tx];
#for r 0 4
    (*sums)[$r * ND + $n] = fma(vec4(ps[(ty + 16u * $r) * 33u + c]), y, (*sums)[$r * ND + $n]);
#end
  }
#end
}

// op attention_forward grid(ceil(N, 64), H)
fn row4(which: u32, n: u32, d: u32) -> vec4<f32> { return q4(n, d); }
fn col4(which: u32, j: u32, d: u32) -> vec4<f32> { if (which == 0u) { return k4(j, d); } return v4(j, d); }

@compute @workgroup_size(256)
fn attention_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let row0 = group.x * ROWS;
  let tx = t % 16u;
  let ty = t / 16u;
  head = group.y;
#for r 0 4
  let sees$r = span(row0 + ty + 16u * $r);
#end
  var sums: Sums;
  // four threads share a row: its maximum so far, and the sum of exp over the thread's own columns
  let n = row0 + t / 4u;
  let line = t / 4u * 33u + t % 4u;
  var top = LOWEST;
  var sum = 0.0;
  let all = union_of(t, span(n));
  for (var col0 = all.x; col0 < all.y; col0 += COLUMNS) {
    let s = products(t, 0u, row0, col0);
#for r 0 4
#for c 0 2
    let j$r$c = col0 + tx + 16u * $c;
    ps[(ty + 16u * $r) * 33u + tx + 16u * $c] = select(LOWEST, score(s[2 * $r + $c]), j$r$c >= sees$r.x && j$r$c < sees$r.y);
#end
#end
    workgroupBarrier();
    var most = top;
    for (var i = 0u; i < 32u; i += 4u) { most = max(most, ps[line + i]); }
    part[t] = most;
    workgroupBarrier();
    for (var i = 0u; i < 4u; i++) { most = max(most, part[(t & 0xfcu) + i]); }
    var new_sum = 0.0;
    for (var i = 0u; i < 32u; i += 4u) {
      let x = ps[line + i];
      let e = select(exp(x - most), 0.0, x == LOWEST);
      ps[line + i] = e;
      new_sum += e;
    }
    let shrink = exp(top - most);
    sum = sum * shrink + new_sum;
    top = most;
    if (t % 4u == 0u) { factor[t / 4u] = shrink; }
    workgroupBarrier();
#for r 0 4
#for n 0 ND
    sums[$r * ND + $n] *= factor[ty + 16u * $r];
#end
#end
    apply(t, 1u, col0, &sums);
  }
  workgroupBarrier();
  part[t] = sum;
  workgroupBarrier();
  if (t % 4u == 0u) {
    let total = part[t] + part[t + 1u] + part[t + 2u] + part[t + 3u];
    var infinity = 0x7f800000u;
    factor[t / 4u] = select(0.0, 1.0 / total, total > 0.0);
    if (n < p.N) { st1_lse(n * p.H + head, select(-bitcast<f32>(infinity), top + log(total), total > 0.0)); }
  }
  workgroupBarrier();
#for r 0 4
#for n 0 ND
  store(row0 + ty + 16u * $r, 64u * $n + 4u * tx, sums[$r * ND + $n] * factor[ty + 16u * $r]);
#end
#end
}
fn store(n: u32, d: u32, v: vec4<f32>) {
  if (n < p.N && d < p.D) { st4_out((n * p.H + head) * p.D + d, v, p.D - d); }
}

// op attention_backward__dot grid(ceil(N*H, 16))
// 16 threads a row
fn row4(which: u32, n: u32, d: u32) -> vec4<f32> { return vec4<f32>(); }
fn col4(which: u32, j: u32, d: u32) -> vec4<f32> { return vec4<f32>(); }

@compute @workgroup_size(256)
fn attention_backward__dot(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let row = flat(group) * 16u + t / 16u;
  var sum = 0.0;
  if (row < p.N * p.H) {
    for (var d = t % 16u * 4u; d < p.D; d += 64u) { sum += dot(ld4_dout(row * p.D + d, p.D - d), ld4_out(row * p.D + d, p.D - d)); }
  }
  part[t] = sum;
  workgroupBarrier();
  if (t % 16u > 0u || row >= p.N * p.H) { return; }
  for (var i = 1u; i < 16u; i++) { sum += part[t + i]; }
  st1_dot(row, sum);
}

// op attention_backward__q grid(ceil(N, 64), H)
fn dout4(n: u32, d: u32) -> vec4<f32> { return ld4_dout((n * p.H + head) * p.D + d, rest(n, p.N, d)); }
fn row4(which: u32, n: u32, d: u32) -> vec4<f32> { if (which == 0u) { return q4(n, d); } return dout4(n, d); }
fn col4(which: u32, j: u32, d: u32) -> vec4<f32> { if (which == 0u) { return k4(j, d); } return v4(j, d); }

@compute @workgroup_size(256)
fn attention_backward__q(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let row0 = group.x * ROWS;
  let tx = t % 16u;
  let ty = t / 16u;
  head = group.y;
#for r 0 4
  let sees$r = span(row0 + ty + 16u * $r);
  let saved$r = min(row0 + ty + 16u * $r, p.N - 1u) * p.H + head;
  let lse$r = ld1_lse(saved$r);
  let dot$r = ld1_dot(saved$r);
#end
  var sums: Sums;
  let all = union_of(t, span(row0 + t / 4u));
  for (var col0 = all.x; col0 < all.y; col0 += COLUMNS) {
    let s = products(t, 0u, row0, col0);
    let g = products(t, 1u, row0, col0);
#for r 0 4
#for c 0 2
    let j$r$c = col0 + tx + 16u * $c;
    let s$r$c = score(s[2 * $r + $c]);
    let ds$r$c = slope(s$r$c) * exp(s$r$c - lse$r) * (g[2 * $r + $c] - dot$r);
    ps[(ty + 16u * $r) * 33u + tx + 16u * $c] = select(0.0, ds$r$c, j$r$c >= sees$r.x && j$r$c < sees$r.y);
#end
#end
    workgroupBarrier();
    apply(t, 0u, col0, &sums);
  }
#for r 0 4
#for n 0 ND
  store(row0 + ty + 16u * $r, 64u * $n + 4u * tx, sums[$r * ND + $n]);
#end
#end
}
fn store(n: u32, d: u32, v: vec4<f32>) {
  if (n < p.N && d < p.D) { st4_dq(n * p.ld_q + head * p.D + d, v, p.D - d); }
}

// op attention_backward__kv grid(ceil(T, 64), K)
fn dout4(n: u32, d: u32) -> vec4<f32> { return ld4_dout((n * p.H + head) * p.D + d, rest(n, p.N, d)); }
fn row4(which: u32, j: u32, d: u32) -> vec4<f32> { if (which == 0u) { return k4(j, d); } return v4(j, d); }
fn col4(which: u32, n: u32, d: u32) -> vec4<f32> { if (which == 0u) { return q4(n, d); } return dout4(n, d); }
fn reach(j: u32) -> vec2<u32> {
  if (j >= p.T) { return vec2(0u); }
  return vec2(ld_reach(2u * j), min(ld_reach(2u * j + 1u), p.N));
}

@compute @workgroup_size(256)
fn attention_backward__kv(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let row0 = group.x * ROWS;
  let tx = t % 16u;
  let ty = t / 16u;
  let heads = p.H / p.K;
#for r 0 4
  let seen$r = reach(row0 + ty + 16u * $r);
#end
  var dk: Sums;
  var dv: Sums;
  let all = union_of(t, reach(row0 + t / 4u));
  for (var h = 0u; h < heads; h++) {
    head = group.y * heads + h;
    for (var col0 = all.x; col0 < all.y; col0 += COLUMNS) {
      let s = products(t, 0u, row0, col0);
      let g = products(t, 1u, row0, col0);
#for c 0 2
      let n$c = col0 + tx + 16u * $c;
      let saved$c = min(n$c, p.N - 1u) * p.H + head;
      let lse$c = ld1_lse(saved$c);
      let dot$c = ld1_dot(saved$c);
#for r 0 4
      let s$r$c = score(s[2 * $r + $c]);
      let p$r$c = select(0.0, exp(s$r$c - lse$c), n$c >= seen$r.x && n$c < seen$r.y);
      ps[(ty + 16u * $r) * 33u + tx + 16u * $c] = p$r$c;
#end
#end
      workgroupBarrier();
      apply(t, 1u, col0, &dv);
      workgroupBarrier();
#for c 0 2
#for r 0 4
      ps[(ty + 16u * $r) * 33u + tx + 16u * $c] = slope(s$r$c) * p$r$c * (g[2 * $r + $c] - dot$c);
#end
#end
      workgroupBarrier();
      apply(t, 0u, col0, &dk);
    }
  }
#for r 0 4
#for n 0 ND
  store(row0 + ty + 16u * $r, 64u * $n + 4u * tx, dk[$r * ND + $n], dv[$r * ND + $n]);
#end
#end
}
fn store(j: u32, d: u32, k: vec4<f32>, v: vec4<f32>) {
  if (j >= p.T || d >= p.D) { return; }
  st4_dk(j * p.ld_k + kv_head() * p.D + d, k, p.D - d);
  st4_dv(j * p.ld_v + kv_head() * p.D + d, v, p.D - d);
}

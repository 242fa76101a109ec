// A workgroup has one query and head and walks over its keys, 64 at a time: thread t scores key t of them, then sums the values'
// channels 4t.. over all 64.
const LOWEST = -3.4028234e38;
var<workgroup> qs: array<vec4<f32>, 64>;
var<workgroup> ps: array<f32, 64>;
var<workgroup> slots: array<u32, 64>;
var<workgroup> tree64: array<f32, 64>;
var<workgroup> range: vec2<u32>;

// Over the 64 threads; every thread gets the result.
fn all_max(t: u32, x: f32) -> f32 {
  workgroupBarrier();
  tree64[t] = x;
  workgroupBarrier();
  for (var half = 32u; half > 0u; half >>= 1u) {
    if (t < half) { tree64[t] = max(tree64[t], tree64[t + half]); }
    workgroupBarrier();
  }
  return tree64[0];
}
fn all_sum(t: u32, x: f32) -> f32 {
  workgroupBarrier();
  tree64[t] = x;
  workgroupBarrier();
  for (var half = 32u; half > 0u; half >>= 1u) {
    if (t < half) { tree64[t] += tree64[t + half]; }
    workgroupBarrier();
  }
  return tree64[0];
}

// op paged_attention_forward grid(N*Z, H)
@compute @workgroup_size(64)
fn paged_attention_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let n = group.x;
  let row = n * p.H + group.y;
  let kv = group.y / (p.H / p.K) * p.D;
  let first = ld_starts(n / p.Z);
  if (t == 0u) { range = vec2(ld_span(2u * n), ld_span(2u * n + 1u)); }
  let d = 4u * t;
  if (d < p.D) { qs[t] = ld4_q((n / p.Z * p.H + group.y) * p.D + d, p.D - d); }
  let keys = workgroupUniformLoad(&range);
  var out = vec4<f32>();
  var top = LOWEST;
  var sum = 0.0;
  for (var j0 = keys.x; j0 < keys.y; j0 += 64u) {
    let j = j0 + t;
    var s = LOWEST;
    if (j < keys.y) {
      let slot = ld_pages(first + j / p.page) * p.page + j % p.page;
      slots[t] = slot;
      let at = slot * p.K * p.D + kv;
      var product = 0.0;
      for (var c = 0u; c < p.D; c += 4u) { product += dot(qs[c / 4u], ld4_k(at + c, p.D - c)); }
      s = softcap(p.scale * product, p.softcap);
    }
    let most = max(top, all_max(t, s));
    let e = select(exp(s - most), 0.0, j >= keys.y);
    ps[t] = e;
    let shrink = exp(top - most);
    sum = sum * shrink + all_sum(t, e);
    top = most;
    if (d < p.D) {
      out *= shrink;
      let count = min(64u, keys.y - j0);
      for (var i = 0u; i < count; i++) { out += ps[i] * ld4_v(slots[i] * p.K * p.D + kv + d, p.D - d); }
    }
    workgroupBarrier();
  }
  if (d < p.D) { st4_out(row * p.D + d, out * select(0.0, 1.0 / sum, sum > 0.0), p.D - d); }
  var infinity = 0x7f800000u;
  if (t == 0u) { st1_lse(row, select(-bitcast<f32>(infinity), top + log(sum), sum > 0.0)); }
}

// op paged_attention_join grid(H, N)
@compute @workgroup_size(64)
fn paged_attention_join(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let h = group.x;
  let n = group.y;
  let d = 4u * t;
  // the least float and less are parts that see nothing
  var top = LOWEST;
  for (var z = 0u; z < p.Z; z++) { top = max(top, ld1_part_lse((n * p.Z + z) * p.H + h)); }
  var total = vec4<f32>();
  var sum = 0.0;
  for (var z = 0u; z < p.Z; z++) {
    let row = (n * p.Z + z) * p.H + h;
    let s = ld1_part_lse(row);
    let w = select(0.0, exp(s - top), s > LOWEST);
    sum += w;
    if (d < p.D) { total += w * ld4_parts(row * p.D + d, p.D - d); }
  }
  let row = n * p.H + h;
  if (d < p.D) { st4_out(row * p.D + d, total * select(0.0, 1.0 / sum, sum > 0.0), p.D - d); }
  var infinity = 0x7f800000u;
  if (t == 0u) { st1_lse(row, select(-bitcast<f32>(infinity), top + log(sum), sum > 0.0)); }
}

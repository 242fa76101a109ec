const LOWEST = -3.4028234e38;
var<workgroup> settings: vec4<f32>; // T, top_p, min_p, top_k
// In the order of the floats.
fn rank(z: f32) -> u32 {
  let u = bitcast<u32>(z);
  return select(u | 0x80000000u, ~u, u >= 0x80000000u);
}
// -ln(-ln u), u from pcg3d.
fn gumbel(i: u32, a: u32, b: u32) -> f32 {
  var v = vec3(i, a, b) * 1664525u + 1013904223u;
  v.x += v.y * v.z;
  v.y += v.z * v.x;
  v.z += v.x * v.y;
  v ^= v >> vec3(16u);
  v.x += v.y * v.z;
  return -log(-log((f32(v.x >> 8u) + 0.5) / 16777216.0));
}

// op sample_token grid(N)
// How many z, or what sum of weights, have a rank of `least` or more.
fn above(t: u32, row: u32, least: u32, top: f32, T: f32, weighed: bool) -> f32 {
  var sum = 0.0;
  for (var v = t; v < p.V; v += 256u) {
    let z = ld1_logits(row + v);
    if (rank(z) >= least) { sum += select(1.0, exp((z - top) / T), weighed); }
  }
  return group_sum(t, sum);
}
// The greatest rank, `floor` at least, with `want` at or above it.
fn search(t: u32, row: u32, floor: u32, want: f32, top: f32, T: f32, weighed: bool) -> u32 {
  var found = 0u;
  for (var bit = 0x80000000u; bit > 0u; bit >>= 1u) {
    let next = found | bit;
    if (above(t, row, max(next, floor), top, T, weighed) >= want) { found = next; }
  }
  return max(found, floor);
}

@compute @workgroup_size(256)
fn sample_token(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let n = flat(group);
  if (n >= p.N) { return; }
  let row = n * p.ld_logits;
  if (t == 0u) { settings = vec4(ld1_controls(3u * n), ld1_controls(3u * n + 1u), ld1_controls(3u * n + 2u), f32(ld_keys(3u * n + 2u))); }
  let s = workgroupUniformLoad(&settings);
  var most = LOWEST;
  for (var v = t; v < p.V; v += 256u) { most = max(most, ld1_logits(row + v)); }
  let top = group_max(t, most);
  var part = 0.0;
  for (var v = t; v < p.V; v += 256u) { part += exp(ld1_logits(row + v) - top); }
  let lse = log(group_sum(t, part));
  var least = 0u;
  if (s.x > 0.0 && s.w > 0.0 && s.w < f32(p.V)) { least = search(t, row, 0u, s.w, top, s.x, false); }
  if (s.x > 0.0 && s.y < 1.0) { least = search(t, row, least, s.y * above(t, row, least, top, s.x, true), top, s.x, true); }
  let a = ld_keys(3u * n);
  let b = ld_keys(3u * n + 1u);
  var best = LOWEST;
  var chosen = 0xffffffffu;
  for (var v = t; v < p.V; v += 256u) {
    let z = ld1_logits(row + v);
    var x = z;
    if (s.x > 0.0) {
      let kept = rank(z) >= least && exp((z - top) / s.x) >= s.z;
      x = select(LOWEST, z / s.x + gumbel(v, a, b), kept);
    }
    if (x > best) {
      best = x;
      chosen = v;
    }
  }
  let winner = group_max(t, best);
  // the first of equals: indices as negative floats are exact below 2^24
  let first = -group_max(t, select(LOWEST, -f32(chosen), best == winner && chosen != 0xffffffffu));
  if (t == 0u) {
    let token = min(u32(first), p.V - 1u);
    st_token(n, token);
    st1_logp(n, ld1_logits(row + token) - top - lse);
  }
}

// op sample_adjust grid(ceil(P, 256))
@compute @workgroup_size(256)
fn sample_adjust(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let e = flat(group) * 256u + t;
  if (e >= p.P) { return; }
  let i = ld_at(2u * e) * p.ld_logits + ld_at(2u * e + 1u);
  let z = ld1_logits(i);
  let factor = ld1_change(2u * e);
  st1_logits(i, select(z / factor, z * factor, z < 0.0) + ld1_change(2u * e + 1u));
}

// op sample_softcap grid(ceil(N*V, 256))
@compute @workgroup_size(256)
fn sample_softcap(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let e = flat(group) * 256u + t;
  if (e >= p.N * p.V) { return; }
  let i = e / p.V * p.ld_logits + e % p.V;
  st1_logits(i, softcap(ld1_logits(i), p.softcap));
}

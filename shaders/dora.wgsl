// op dora_norm grid(O)
@compute @workgroup_size(256)
fn dora_norm(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let o = flat(group);
  if (o >= p.O) { return; }
  var base = V();
  for (var c = t * W; c < p.C; c += 256u * W) {
    let w = mask(ld_weight(o * p.C + c), p.C - c);
    base += w * w;
  }
  var cross = 0.0;
  for (var r = t; r < p.R; r += 256u) { cross += ld1_wa(o * p.R + r) * ld1_b(o * p.R + r); }
  var square = 0.0;
  for (var i = t; i < p.R * p.R; i += 256u) {
    square += ld1_b(o * p.R + i / p.R) * ld1_gram(i) * ld1_b(o * p.R + i % p.R);
  }
  let total = group_sum(t, sumv(base) + 2.0 * p.scale * cross + p.scale * p.scale * square);
  if (t == 0u) { st1_norm(o, sqrt(total)); }
}

// op dora_forward grid(ceil(N*ceil(O, W), 256))
@compute @workgroup_size(256)
fn dora_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = flat(group) * 256u + t;
  let n = i / ceil_div(p.O, W);
  let o = (i % ceil_div(p.O, W)) * W;
  if (n >= p.N) { return; }
  let at = n * p.O + o;
  st_out(at, ld_out(at) * (ld_magnitude(o) / ld_norm(o)), p.O - o);
}

// op dora_backward grid(ceil(N*ceil(O, W), 256))
@compute @workgroup_size(256)
fn dora_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = flat(group) * 256u + t;
  let n = i / ceil_div(p.O, W);
  let o = (i % ceil_div(p.O, W)) * W;
  if (n >= p.N) { return; }
  let at = n * p.O + o;
  st_dinp(at, ld_dout(at) * (ld_magnitude(o) / ld_norm(o)), p.O - o);
}

// op dora_backward_weight grid(ceil(O, 16*W))
// 16 columns (of W) by 16 slices of rows; the slices are added in order.
var<workgroup> slices: array<V, 256>;

@compute @workgroup_size(256)
fn dora_backward_weight(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let o = (flat(group) * 16u + t % 16u) * W;
  var sum = V();
  if (o < p.O) {
    for (var n = t / 16u; n < p.N; n += 16u) { sum += ld_dout(n * p.O + o) * ld_inp(n * p.O + o); }
  }
  slices[t] = sum;
  workgroupBarrier();
  if (t >= 16u || o >= p.O) { return; }
  for (var s = 1u; s < 16u; s++) { sum += slices[s * 16u + t]; }
  st_dmagnitude(o, ld_dmagnitude(o) + sum / ld_norm(o), p.O - o);
}

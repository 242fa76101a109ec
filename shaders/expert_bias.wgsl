// The expert that has row m: the last one whose rows begin at or before it.
fn expert_of(m: u32) -> u32 {
  var e = 0u;
  var end = p.E;
  while (end - e > 1u) {
    let middle = (e + end) / 2u;
    if (ld_offsets(middle) <= m) { e = middle; } else { end = middle; }
  }
  return e;
}

// op expert_bias_forward grid(ceil(M*ceil(O, W), 256))
@compute @workgroup_size(256)
fn expert_bias_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = flat(group) * 256u + t;
  let m = i / ceil_div(p.O, W);
  let o = (i % ceil_div(p.O, W)) * W;
  if (m >= p.M) { return; }
  var w = 1.0;
  if (p.weighted == 1u) { w = ld1_weights(ld_rows(m)); }
  let at = m * p.O + o;
  st_out(at, ld_out(at) + w * ld_bias(expert_of(m) * p.O + o), p.O - o);
}

// op expert_bias_backward grid(ceil(O, 16*W), E)
// 16 columns (of W) by 16 slices of the expert's rows; the slices are added in order.
var<workgroup> slices: array<V, 256>;

@compute @workgroup_size(256)
fn expert_bias_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let o = (group.x * 16u + t % 16u) * W;
  let end = ld_offsets(group.y + 1u);
  var sum = V();
  if (o < p.O) {
    for (var m = ld_offsets(group.y) + t / 16u; m < end; m += 16u) {
      var w = 1.0;
      if (p.weighted == 1u) { w = ld1_weights(ld_rows(m)); }
      sum += w * ld_dout(m * p.O + o);
    }
  }
  slices[t] = sum;
  workgroupBarrier();
  if (t >= 16u || o >= p.O) { return; }
  for (var s = 1u; s < 16u; s++) { sum += slices[s * 16u + t]; }
  let at = group.y * p.O + o;
  st_dbias(at, ld_dbias(at) + sum, p.O - o);
}

// op expert_bias_backward_weights grid(M)
// A workgroup per row.
@compute @workgroup_size(256)
fn expert_bias_backward_weights(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let m = flat(group);
  if (m >= p.M) { return; }
  let bias = expert_of(m) * p.O;
  var dot = 0.0;
  for (var o = t * W; o < p.O; o += 256u * W) { dot += sumv(mask(ld_dout(m * p.O + o) * ld_bias(bias + o), p.O - o)); }
  let sum = group_sum(t, dot);
  let slot = ld_rows(m);
  if (t == 0u) { st1_dweights(slot, ld1_dweights(slot) + sum); }
}

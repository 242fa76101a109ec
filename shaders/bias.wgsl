// op bias_forward grid(ceil(N*ceil(O, W), 256))
@compute @workgroup_size(256)
fn bias_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = flat(group) * 256u + t;
  let n = i / ceil_div(p.O, W);
  let o = (i % ceil_div(p.O, W)) * W;
  if (n >= p.N) { return; }
  let at = n * p.ld_out + o;
  st_out(at, ld_out(at) + ld_bias(o), p.O - o);
}

// op bias_backward grid(ceil(O, 16*W))
// 16 columns (of W) by 16 slices of rows; the slices are added in order.
var<workgroup> slices: array<V, 256>;

@compute @workgroup_size(256)
fn bias_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let o = (flat(group) * 16u + t % 16u) * W;
  var sum = V();
  if (o < p.O) {
    for (var n = t / 16u; n < p.N; n += 16u) { sum += ld_dout(n * p.ld_dout + o); }
  }
  slices[t] = sum;
  workgroupBarrier();
  if (t >= 16u || o >= p.O) { return; }
  for (var s = 1u; s < 16u; s++) { sum += slices[s * 16u + t]; }
  st_dbias(o, ld_dbias(o) + sum, p.O - o);
}

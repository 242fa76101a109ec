fn sigmoid(x: V) -> V { return 1.0 / (1.0 + exp(-x)); }

// op routed_swiglu_forward grid(ceil(M*ceil(F, W), 256))
@compute @workgroup_size(256)
fn routed_swiglu_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = flat(group) * 256u + t;
  let m = i / ceil_div(p.F, W);
  let f = (i % ceil_div(p.F, W)) * W;
  if (m >= p.M) { return; }
  let g = ld_gate(m * p.F + f);
  st_out(m * p.F + f, ld1_weights(ld_rows(m)) * (g * sigmoid(g) * ld_up(m * p.F + f)), p.F - f);
}

// op routed_swiglu_backward grid(M)
// A workgroup per row.
@compute @workgroup_size(256)
fn routed_swiglu_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let m = flat(group);
  if (m >= p.M) { return; }
  let slot = ld_rows(m);
  let w = ld1_weights(slot);
  var dot = 0.0;
  for (var f = t * W; f < p.F; f += 256u * W) {
    let dy = ld_dout(m * p.F + f);
    let g = ld_gate(m * p.F + f);
    let u = ld_up(m * p.F + f);
    let s = sigmoid(g);
    dot += sumv(mask(dy * (g * s * u), p.F - f));
    st_dout(m * p.F + f, w * (g * s * u), p.F - f);
    st_gate(m * p.F + f, w * dy * u * s * (1.0 + g * (1.0 - s)), p.F - f);
    st_up(m * p.F + f, w * dy * g * s, p.F - f);
  }
  let sum = group_sum(t, dot);
  if (t == 0u) { st1_dweights(slot, sum); }
}

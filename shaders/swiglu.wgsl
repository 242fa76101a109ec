// op swiglu_forward grid(ceil(N*ceil(F, W), 256))
@compute @workgroup_size(256)
fn swiglu_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = flat(group) * 256u + t;
  let n = i / ceil_div(p.F, W);
  let f = (i % ceil_div(p.F, W)) * W;
  if (n >= p.N) { return; }
  let g = ld_gate(n * p.ld_gate + f);
  st_out(n * p.F + f, g * gating(g, p.act, p.slope, p.cubic).s * ld_up(n * p.ld_up + f), p.F - f);
}

// op swiglu_backward grid(ceil(N*ceil(F, W), 256))
@compute @workgroup_size(256)
fn swiglu_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = flat(group) * 256u + t;
  let n = i / ceil_div(p.F, W);
  let f = (i % ceil_div(p.F, W)) * W;
  if (n >= p.N) { return; }
  let dy = ld_dout(n * p.F + f);
  let g = ld_gate(n * p.ld_gate + f);
  let u = ld_up(n * p.ld_up + f);
  let act = gating(g, p.act, p.slope, p.cubic);
  st_dout(n * p.F + f, g * act.s * u, p.F - f);
  st_gate(n * p.ld_gate + f, dy * u * act.slope, p.F - f);
  st_up(n * p.ld_up + f, dy * g * act.s, p.F - f);
}

// op activation_forward grid(ceil(N*F, 256*W))
@compute @workgroup_size(256)
fn activation_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * W;
  if (i >= p.N * p.F) { return; }
  let x = ld_inp(i);
  st_out(i, x * gating(x, p.act, p.slope, p.cubic).s, p.N * p.F - i);
}

// op activation_backward grid(ceil(N*F, 256*W))
@compute @workgroup_size(256)
fn activation_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * W;
  if (i >= p.N * p.F) { return; }
  let dy = ld_dout(i);
  let x = ld_inp(i);
  let g = gating(x, p.act, p.slope, p.cubic);
  st_dout(i, x * g.s, p.N * p.F - i);
  st_inp(i, dy * g.slope, p.N * p.F - i);
}

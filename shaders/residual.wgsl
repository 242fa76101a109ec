// op residual_forward grid(ceil(P, 256*W))
@compute @workgroup_size(256)
fn residual_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * W;
  if (i < p.P) { st_out(i, ld_a(i) + p.scale * ld_b(i), p.P - i); }
}

// op residual_backward grid(ceil(P, 256*W))
@compute @workgroup_size(256)
fn residual_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * W;
  if (i < p.P) { st_dinp(i, ld_dinp(i) + p.scale * ld_dout(i), p.P - i); }
}

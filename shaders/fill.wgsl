// op fill_forward grid(ceil(P, 256*W))
@compute @workgroup_size(256)
fn fill_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * W;
  if (i < p.P) { st_out(i, V(p.value), p.P - i); }
}

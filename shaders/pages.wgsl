// op pages_write grid(ceil(N*ceil(C, W), 256))
@compute @workgroup_size(256)
fn pages_write(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = flat(group) * 256u + t;
  let n = i / ceil_div(p.C, W);
  let c = (i % ceil_div(p.C, W)) * W;
  if (n < p.N) { st_pool(ld_slots(n) * p.C + c, ld_inp(n * p.C + c), p.C - c); }
}

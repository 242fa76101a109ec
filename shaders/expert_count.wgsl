// op expert_count grid(E)
@compute @workgroup_size(256)
fn expert_count(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let e = flat(group);
  if (e >= p.E) { return; }
  var sum = 0.0;
  for (var i = t; i < p.N * p.S; i += 256u) {
    if (ld_experts(i) == e) { sum += ld1_mask(i / p.S); }
  }
  let total = group_sum(t, sum);
  if (t == 0u) { st1_count(e, ld1_count(e) + total); }
}

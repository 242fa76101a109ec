// op gradnorm_partial grid(ceil(P, 4096))
@compute @workgroup_size(256)
fn gradnorm_partial(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let block = flat(group);
  if (block * 4096u >= p.P) { return; }
  let end = min(p.P - block * 4096u, 4096u);
  var sum = V();
  for (var i = t * W; i < end; i += 256u * W) {
    let x = mask(ld_inp(block * 4096u + i), end - i);
    sum += x * x;
  }
  let total = group_sum(t, sumv(sum));
  if (t == 0u) { st1_partial(block, total); }
}

// op gradnorm_finish grid(1)
@compute @workgroup_size(256)
fn gradnorm_finish(@builtin(local_invocation_index) t: u32) {
  var sum = 0.0;
  for (var i = t; i < p.P; i += 256u) { sum += ld1_partial(i); }
  let norm = p.unscale * sqrt(group_sum(t, sum));
  if (t > 0u) { return; }
  let factor = p.max_norm / (norm + 1e-6);
  st1_norm(0u, norm);
  st1_scale(0u, p.unscale * select(1.0, factor, p.max_norm > 0.0 && factor < 1.0));
}

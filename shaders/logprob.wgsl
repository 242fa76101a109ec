const IGNORE = 0xffffffffu;
const LOWEST = -3.4028234e38;
fn z(i: u32) -> V { return softcaps(ld_logits(i), p.softcap); }

// op logprob_forward grid(N)
@compute @workgroup_size(256)
fn logprob_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let n = flat(group);
  if (n >= p.N) { return; }
  let row = n * p.ld_logits;
  var most = V(LOWEST);
  for (var v = t * W; v < p.V; v += 256u * W) { most = max(most, mask_with(z(row + v), LOWEST, p.V - v)); }
  let top = group_max(t, maxv(most));
  var sum = V();
  for (var v = t * W; v < p.V; v += 256u * W) { sum += mask(exp(z(row + v) - top), p.V - v); }
  let lse = top + log(group_sum(t, sumv(sum)));
  if (t > 0u) { return; }
  st1_lse(n, lse);
  let label = ld_labels(n);
  if (label == IGNORE) { st1_logp(n, 0.0); } else { st1_logp(n, softcap(ld1_logits(row + label), p.softcap) - lse); }
}

// op logprob_backward grid(ceil(N*ceil(V, W), 256))
@compute @workgroup_size(256)
fn logprob_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = flat(group) * 256u + t;
  let n = i / ceil_div(p.V, W);
  let v = (i % ceil_div(p.V, W)) * W;
  if (n >= p.N) { return; }
  let label = ld_labels(n);
  var dz = V();
  if (label != IGNORE) {
    let y = z(n * p.ld_logits + v);
    dz = -exp(y - ld1_lse(n));
    dz += one_hot(label - v);
    dz *= ld1_coef(n);
    if (p.softcap != 0.0) { dz *= 1.0 - (y / p.softcap) * (y / p.softcap); }
  }
  st_dlogits(n * p.ld_dlogits + v, dz, p.V - v);
}

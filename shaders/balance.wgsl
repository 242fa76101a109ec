// log Σ exp of a token's logits.
fn log_sum(at: u32) -> f32 {
  var top = ld1_logits(at);
  for (var e = 1u; e < p.E; e++) { top = max(top, ld1_logits(at + e)); }
  var total = 0.0;
  for (var e = 0u; e < p.E; e++) { total += exp(ld1_logits(at + e) - top); }
  return top + log(total);
}

// op balance_forward grid(ceil(N, 64))
@compute @workgroup_size(64)
fn balance_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let n = flat(group) * 64u + t;
  if (n < p.N) { st1_lse(n, log_sum(n * p.E)); }
}

// op balance_forward__sums grid(ceil(E, 16))
// 16 experts by 16 slices of tokens; the slices are added in order.
var<workgroup> slices: array<f32, 256>;

@compute @workgroup_size(256)
fn balance_forward__sums(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let e = flat(group) * 16u + t % 16u;
  var sum = 0.0;
  if (e < p.E) {
    for (var n = t / 16u; n < p.N; n += 16u) { sum += ld1_mask(n) * exp(ld1_logits(n * p.E + e) - ld1_lse(n)); }
  }
  slices[t] = sum;
  workgroupBarrier();
  if (t >= 16u || e >= p.E) { return; }
  for (var s = 1u; s < 16u; s++) { sum += slices[s * 16u + t]; }
  st1_prob(e, ld1_prob(e) + sum);
}

// op balance_backward grid(ceil(N, 64))
// A thread per token, W experts at a time.
@compute @workgroup_size(64)
fn balance_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let n = flat(group) * 64u + t;
  if (n >= p.N) { return; }
  let at = n * p.E;
  let lse = log_sum(at);
  var dot = 0.0;
  for (var e = 0u; e < p.E; e++) { dot += exp(ld1_logits(at + e) - lse) * ld1_dprob(e); }
  let factor = p.scale * ld1_mask(n);
  for (var e = 0u; e < p.E; e += W) {
    let d = factor * exp(ld_logits(at + e) - lse) * (ld_dprob(e) - dot);
    st_dlogits(at + e, ld_dlogits(at + e) + d, p.E - e);
  }
}

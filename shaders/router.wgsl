// A thread per token: each choice is a walk over the logits for the greatest after the last one.

fn weight_of(at: u32, e: u32, top: f32) -> f32 { return exp(ld1_logits(at + e) - top); }

// op router_forward grid(ceil(N, 64))
@compute @workgroup_size(64)
fn router_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let n = flat(group) * 64u + t;
  if (n >= p.N) { return; }
  let at = n * p.E;
  var last = 0.0;
  var last_e = p.E;
  for (var a = 0u; a < p.S; a++) {
    var best = 0.0;
    var best_e = p.E;
    for (var e = 0u; e < p.E; e++) {
      let x = ld1_logits(at + e);
      let after = last_e == p.E || x < last || (x == last && e > last_e);
      // a NaN is never chosen; its exponent is tested, because a comparison with itself may be folded away
      let number = (bitcast<u32>(x) & 0x7fffffffu) <= 0x7f800000u;
      if (after && number && (best_e == p.E || x > best)) {
        best = x;
        best_e = e;
      }
    }
    last = best;
    last_e = best_e;
    // with NaNs the weights are NaN; the experts stay experts
    st_experts(n * p.S + a, select(best_e, a, best_e == p.E));
  }
}

// op router_forward__weights grid(ceil(N*S, 64))
// A thread per choice.
@compute @workgroup_size(64)
fn router_forward__weights(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = flat(group) * 64u + t;
  let n = i / p.S;
  if (n >= p.N) { return; }
  let at = n * p.E;
  let top = ld1_logits(at + ld_experts(n * p.S));
  var total = 0.0;
  if (p.norm == 1u) {
    for (var a = 0u; a < p.S; a++) { total += weight_of(at, ld_experts(n * p.S + a), top); }
  } else {
    for (var e = 0u; e < p.E; e++) { total += weight_of(at, e, top); }
  }
  st1_weights(i, weight_of(at, ld_experts(i), top) / total);
}

// op router_backward grid(ceil(N*ceil(E, W), 256))
// A thread per W experts of a token.
@compute @workgroup_size(256)
fn router_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = flat(group) * 256u + t;
  let n = i / ceil_div(p.E, W);
  let e = (i % ceil_div(p.E, W)) * W;
  if (n >= p.N) { return; }
  var dot = 0.0;
  for (var a = 0u; a < p.S; a++) { dot += ld1_weights(n * p.S + a) * ld1_dweights(n * p.S + a); }
  let at = n * p.E;
  var d = V();
  if (p.norm == 0u) {
    let top = ld1_logits(at + ld_experts(n * p.S));
    d = -(ld1_weights(n * p.S) * exp(ld_logits(at + e) - top) * dot);
  }
  for (var a = 0u; a < p.S; a++) {
    let k = ld_experts(n * p.S + a) - e;
    if (k < W) {
      let x = ld1_weights(n * p.S + a) * (ld1_dweights(n * p.S + a) - dot);
      d = d * (1.0 - one_hot(k)) + x * one_hot(k);
    }
  }
  st_dlogits(at + e, d, p.E - e);
}

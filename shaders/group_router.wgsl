// A thread per token: each choice is a walk for the greatest after the last one, over groups and over the experts of the kept.

fn sigmoid(x: f32) -> f32 { return 1.0 / (1.0 + exp(-x)); }
// By the exponent's bits, because a comparison with itself may be folded away.
fn is_number(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) <= 0x7f800000u; }

// op group_router_forward grid(ceil(N, 64))
fn choice(n: u32, e: u32) -> f32 { return sigmoid(ld1_logits(n * p.E + e)) + ld1_bias(e); }

// The sum of the two greatest, far below all others where there is no number.
fn worth(n: u32, g: u32) -> f32 {
  let size = p.E / p.groups;
  var first = 0.0;
  var second = 0.0;
  var count = 0u;
  for (var e = g * size; e < (g + 1u) * size; e++) {
    let c = choice(n, e);
    if (!is_number(c)) { continue; }
    if (count == 0u || c > first) {
      second = first;
      first = c;
    } else if (count == 1u || c > second) { second = c; }
    count++;
  }
  return select(select(first + second, first, count == 1u), -3.0e38, count == 0u);
}

@compute @workgroup_size(64)
fn group_router_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let n = flat(group) * 64u + t;
  if (n >= p.N) { return; }
  // the last of the kept groups: those not after it are kept
  var limit = 0.0;
  var limit_g = p.groups;
  for (var j = 0u; j < p.kept; j++) {
    var best = 0.0;
    var best_g = p.groups;
    for (var g = 0u; g < p.groups; g++) {
      let x = worth(n, g);
      let after = limit_g == p.groups || x < limit || (x == limit && g > limit_g);
      if (after && (best_g == p.groups || x > best)) {
        best = x;
        best_g = g;
      }
    }
    limit = best;
    limit_g = best_g;
  }
  let size = p.E / p.groups;
  // what stands for numbers that are not there
  var nan = 0u;
  for (var e = p.E; e > 0u; e--) {
    if (!is_number(choice(n, e - 1u))) { nan = e - 1u; }
  }
  var last = 0.0;
  var last_e = p.E;
  for (var a = 0u; a < p.S; a++) {
    var best = 0.0;
    var best_e = p.E;
    for (var g = 0u; g < p.groups; g++) {
      let x = worth(n, g);
      if (x < limit || (x == limit && g > limit_g)) { continue; }
      for (var e = g * size; e < (g + 1u) * size; e++) {
        let c = choice(n, e);
        let after = last_e == p.E || c < last || (c == last && e > last_e);
        if (after && is_number(c) && (best_e == p.E || c > best)) {
          best = c;
          best_e = e;
        }
      }
    }
    st_experts(n * p.S + a, select(best_e, nan, best_e == p.E));
    if (best_e < p.E) {
      last = best;
      last_e = best_e;
    }
  }
}

// op group_router_forward__weights grid(ceil(N*S, 64))
// A thread per choice.
@compute @workgroup_size(64)
fn group_router_forward__weights(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = flat(group) * 64u + t;
  let n = i / p.S;
  if (n >= p.N) { return; }
  var by = 1.0;
  if (p.norm == 1u) {
    by = 1e-20;
    for (var a = 0u; a < p.S; a++) { by += sigmoid(ld1_logits(n * p.E + ld_experts(n * p.S + a))); }
  }
  st1_weights(i, p.scale * sigmoid(ld1_logits(n * p.E + ld_experts(i))) / by);
}

// op group_router_backward grid(ceil(N*ceil(E, W), 256))
// A thread per W experts of a token.
@compute @workgroup_size(256)
fn group_router_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = flat(group) * 256u + t;
  let n = i / ceil_div(p.E, W);
  let e = (i % ceil_div(p.E, W)) * W;
  if (n >= p.N) { return; }
  var by = 1.0;
  if (p.norm == 1u) {
    by = 1e-20;
    for (var a = 0u; a < p.S; a++) { by += sigmoid(ld1_logits(n * p.E + ld_experts(n * p.S + a))); }
  }
  var d = V();
  for (var a = 0u; a < p.S; a++) {
    let k = ld_experts(n * p.S + a) - e;
    if (k < W) {
      let s = sigmoid(ld1_logits(n * p.E + e + k));
      // scale·dw[a] − Σ w·dw, the expert's own share taken together: alone, it has no gradient at all
      var sum = select(p.scale, p.scale - ld1_weights(n * p.S + a), p.norm == 1u) * ld1_dweights(n * p.S + a);
      for (var b = 0u; b < p.S; b++) {
        if (p.norm == 1u && b != a) { sum -= ld1_weights(n * p.S + b) * ld1_dweights(n * p.S + b); }
      }
      d += sum / by * (s * (1.0 - s)) * one_hot(k);
    }
  }
  st_dlogits(n * p.E + e, d, p.E - e);
}

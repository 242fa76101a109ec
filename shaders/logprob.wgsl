const IGNORE = 0xffffffffu;
// of what is past the end, and what maxima start from
const HIDDEN = -3.4028234e38;
const LOWEST = -3.0e38;
const STEP = 256u * W;

// op logprob_forward grid(N)
// One walk: the maximum so far, and the sum of exponentials below it. Eight loads at a time are on their way together.
@compute @workgroup_size(256)
fn logprob_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let n = flat(group);
  if (n >= p.N) { return; }
  let row = n * p.ld_logits;
  let last = (p.V - 1u) / W * W;
  var most = LOWEST;
  var sum = V();
  for (var v = t * W; v < p.V; v += 8u * STEP) {
#for k 0 8
    let x$k = ld_logits(row + min(v + $ku * STEP, last));
#end
    var top = V(most);
#for k 0 8
    let v$k = v + $ku * STEP;
    var z$k = V(HIDDEN);
    if (v$k < p.V) { z$k = mask_with(softcaps(x$k, p.softcap), HIDDEN, p.V - v$k); }
    top = max(top, z$k);
#end
    let new_most = maxv(top);
    sum *= exp(most - new_most);
    most = new_most;
#for k 0 8
    sum += exp(z$k - most);
#end
  }
  let top = group_max(t, most);
  let lse = top + log(group_sum(t, sumv(sum) * exp(most - top)));
  if (t > 0u) { return; }
  st1_lse(n, lse);
  let label = ld_labels(n);
  if (label == IGNORE) { st1_logp(n, 0.0); } else { st1_logp(n, softcap(ld1_logits(row + label), p.softcap) - lse); }
}

// op logprob_backward grid(N*ceil(V, 1024*W))
// A workgroup makes 1024·W values of a row.
@compute @workgroup_size(256)
fn logprob_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let parts = ceil_div(p.V, 4u * STEP);
  let n = flat(group) / parts;
  if (n >= p.N) { return; }
  let label = ld_labels(n);
  let lse = ld1_lse(n);
  let coef = ld1_coef(n);
  let first = flat(group) % parts * (4u * STEP) + t * W;
  let last = (p.V - 1u) / W * W;
#for k 0 4
  let x$k = ld_logits(n * p.ld_logits + min(first + $ku * STEP, last));
#end
#for k 0 4
  let v$k = first + $ku * STEP;
  if (v$k < p.V) {
    var dz = V();
    if (label != IGNORE) {
      let y = softcaps(x$k, p.softcap);
      dz = (one_hot(label - v$k) - exp(y - lse)) * coef;
      if (p.softcap != 0.0) { dz *= 1.0 - (y / p.softcap) * (y / p.softcap); }
    }
    st_dlogits(n * p.ld_dlogits + v$k, dz, p.V - v$k);
  }
#end
}

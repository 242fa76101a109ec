// log(exp(a) + exp(b)); a may be -inf.
fn log_add(a: f32, b: f32) -> f32 {
  let top = max(a, b);
  return top + log(exp(a - top) + exp(b - top));
}

// op attention_sink_forward grid(ceil(N*H*D, 256*W))
// First what reads lse: a thread scales W values of a head.
@compute @workgroup_size(256)
fn attention_sink_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * W;
  let P = p.N * p.H * p.D;
  if (i >= P) { return; }
  let row = i / p.D;
  let old = ld1_lse(row);
  st_out(i, ld_out(i) * exp(old - log_add(old, ld1_sinks(row % p.H))), P - i);
}

// op attention_sink_forward__lse grid(ceil(N*H, 256))
@compute @workgroup_size(256)
fn attention_sink_forward__lse(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let row = flat(group) * 256u + t;
  if (row < p.N * p.H) { st1_lse(row, log_add(ld1_lse(row), ld1_sinks(row % p.H))); }
}

// op attention_sink_backward grid(H)
// A workgroup per head; a thread takes every 256th V of its tokens.
@compute @workgroup_size(256)
fn attention_sink_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let h = flat(group);
  if (h >= p.H) { return; }
  let sink = ld1_sinks(h);
  let words = p.D / W;
  var dot = 0.0;
  for (var i = t; i < p.N * words; i += 256u) {
    let row = i / words * p.H + h;
    let at = row * p.D + i % words * W;
    dot += exp(sink - ld1_lse(row)) * sumv(ld_dout(at) * ld_out(at));
  }
  let total = group_sum(t, dot);
  if (t == 0u) { st1_dsinks(h, ld1_dsinks(h) - total); }
}

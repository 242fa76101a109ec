// act(x) = x·gating(x)
fn gating(x: V) -> V { return 1.0 / (1.0 + exp(-x * (p.slope + p.cubic * x * x))); }

// op swiglu_forward grid(ceil(N*ceil(F, W), 256))
@compute @workgroup_size(256)
fn swiglu_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = flat(group) * 256u + t;
  let n = i / ceil_div(p.F, W);
  let f = (i % ceil_div(p.F, W)) * W;
  if (n >= p.N) { return; }
  let g = ld_gate(n * p.ld_gate + f);
  st_out(n * p.F + f, g * gating(g) * ld_up(n * p.ld_up + f), p.F - f);
}

// op swiglu_backward grid(ceil(N*ceil(F, W), 256))
@compute @workgroup_size(256)
fn swiglu_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = flat(group) * 256u + t;
  let n = i / ceil_div(p.F, W);
  let f = (i % ceil_div(p.F, W)) * W;
  if (n >= p.N) { return; }
  let dy = ld_dout(n * p.F + f);
  let g = ld_gate(n * p.ld_gate + f);
  let u = ld_up(n * p.ld_up + f);
  let s = gating(g);
  st_dout(n * p.F + f, g * s * u, p.F - f);
  st_gate(n * p.ld_gate + f, dy * u * s * (1.0 + g * (1.0 - s) * (p.slope + 3.0 * p.cubic * g * g)), p.F - f);
  st_up(n * p.ld_up + f, dy * g * s, p.F - f);
}

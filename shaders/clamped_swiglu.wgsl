// A thread takes two gates and two ups: gate_up holds them in turn, gate first.
fn sigmoid(x: vec2<f32>) -> vec2<f32> { return 1.0 / (1.0 + exp(-x)); }
// Selects, not min and max: a NaN stays one.
fn below(x: vec2<f32>, limit: f32) -> vec2<f32> { return select(x, vec2(limit), x > vec2(limit)); }

// op clamped_swiglu_forward grid(ceil(M*ceil(F, 2), 256))
@compute @workgroup_size(256)
fn clamped_swiglu_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = flat(group) * 256u + t;
  let m = i / ceil_div(p.F, 2u);
  let f = (i % ceil_div(p.F, 2u)) * 2u;
  if (m >= p.M) { return; }
  let at = m * p.F + f;
  let x = ld4_gate_up(2u * at, 2u * (p.F - f));
  let g = below(x.xz, p.limit);
  let u = -below(-below(x.yw, p.limit), p.limit);
  st2_out(at, ld1_weights(ld_rows(m)) * (g * sigmoid(p.alpha * g) * (u + 1.0)), p.F - f);
}

// op clamped_swiglu_backward grid(M)
// A workgroup per row.
@compute @workgroup_size(256)
fn clamped_swiglu_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let m = flat(group);
  if (m >= p.M) { return; }
  let slot = ld_rows(m);
  let w = ld1_weights(slot);
  var dot = 0.0;
  for (var f = t * 2u; f < p.F; f += 512u) {
    let at = m * p.F + f;
    let rest = p.F - f;
    let x = ld4_gate_up(2u * at, 2u * rest);
    let dy = ld4_dout(at, min(rest, 2u)).xy;
    let g = below(x.xz, p.limit);
    let u = -below(-below(x.yw, p.limit), p.limit);
    let s = sigmoid(p.alpha * g);
    let h = g * s * (u + 1.0);
    dot += dy.x * h.x + dy.y * h.y;
    let dg = w * dy * (u + 1.0) * s * (1.0 + p.alpha * g * (1.0 - s));
    let du = w * dy * g * s;
    let dgate = select(dg, vec2<f32>(), x.xz > vec2(p.limit));
    let dup = select(du, vec2<f32>(), abs(x.yw) > vec2(p.limit));
    st2_dout(at, w * h, rest);
    st4_gate_up(2u * at, vec4(dgate.x, dup.x, dgate.y, dup.y), 2u * rest);
  }
  let sum = group_sum(t, dot);
  if (t == 0u) { st1_dweights(slot, sum); }
}

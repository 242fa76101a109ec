// op sgd_step grid(ceil(P, 256))
@compute @workgroup_size(256)
fn sgd_step(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = flat(group) * 256u + t;
  if (i >= p.P) { return; }
  let w = ld1_weight(i);
  st1_weight(i, w - p.lr * (ld1_grad(i) * ld1_scale(0u) + p.decay * w));
}

// op sgd_step_momentum grid(ceil(P, 256))
@compute @workgroup_size(256)
fn sgd_step_momentum(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = flat(group) * 256u + t;
  if (i >= p.P) { return; }
  let w = ld1_weight(i);
  let g = ld1_grad(i) * ld1_scale(0u) + p.decay * w;
  let m = p.momentum * ld1_m(i) + p.rest * g;
  st1_m(i, m);
  st1_weight(i, w - p.lr * select(m, g + p.momentum * m, p.nesterov == 1u));
}

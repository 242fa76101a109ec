fn stored(w: V, i: u32) -> V { return by_chances(w, p.chance, i + p.first, p.seed, p.stream); }

// op sgd_step grid(ceil(P, 256*W))
@compute @workgroup_size(256)
fn sgd_step(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * W;
  if (i >= p.P) { return; }
  let w = ld_weight(i);
  st_weight(i, stored(w - p.lr * (ld_grad(i) * ld1_scale(0u) + p.decay * w), i), p.P - i);
}

// op sgd_step_momentum grid(ceil(P, 256*W))
@compute @workgroup_size(256)
fn sgd_step_momentum(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * W;
  if (i >= p.P) { return; }
  let w = ld_weight(i);
  let g = ld_grad(i) * ld1_scale(0u) + p.decay * w;
  let m = p.momentum * ld_m(i) + p.rest * g;
  st_m(i, m, p.P - i);
  st_weight(i, stored(w - p.lr * select(m, g + p.momentum * m, p.nesterov == 1u), i), p.P - i);
}

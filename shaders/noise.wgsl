fn spread(i: u32) -> f32 { return f32(random(i, p.seed, p.stream) >> 8u) * (1.0 / 8388608.0) - 1.0; }

// op noise_forward grid(ceil(N*C, 512))
// A thread makes two values: they may share a word.
@compute @workgroup_size(256)
fn noise_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * 2u;
  let end = p.N * p.C;
  if (i >= end) { return; }
  let next = min(i + 1u, end - 1u);
  let noise = vec2(ld1_magnitude(i / p.C) * spread(i), ld1_magnitude(next / p.C) * spread(next));
  st2_x(i, vec2(ld1_x(i), ld1_x(next)) + noise, end - i);
}

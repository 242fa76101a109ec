// scale where element i is kept, else 0.
fn kept(i: u32) -> f32 { return select(0.0, p.scale, random(i, p.seed, p.stream) >= p.drop); }

// op dropout_forward grid(ceil(P, 512))
// A thread makes two values: they may share a word.
@compute @workgroup_size(256)
fn dropout_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * 2u;
  if (i >= p.P) { return; }
  let next = min(i + 1u, p.P - 1u);
  st2_out(i, vec2(ld1_inp(i) * kept(i), ld1_inp(next) * kept(next)), p.P - i);
}

// op dropout_backward grid(ceil(P, 512))
@compute @workgroup_size(256)
fn dropout_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * 2u;
  if (i >= p.P) { return; }
  let next = min(i + 1u, p.P - 1u);
  let old = vec2(ld1_dinp(i), ld1_dinp(next));
  st2_dinp(i, old + vec2(ld1_dout(i) * kept(i), ld1_dout(next) * kept(next)), p.P - i);
}

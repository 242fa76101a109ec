struct Moved { weight: V, m: V }
fn advance(weight: V, m: V, g: V) -> Moved {
  let c = p.beta1 * m + p.rest1 * g;
  return Moved(weight * (1.0 - p.lr * p.decay) - p.lr * sign(c), p.beta2 * m + p.rest2 * g);
}

// op lion_step grid(ceil(P, 256*W))
@compute @workgroup_size(256)
fn lion_step(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * W;
  if (i >= p.P) { return; }
  let moved = advance(ld_weight(i), ld_m(i), ld_grad(i) * ld1_scale(0u));
  st_weight(i, by_chances(moved.weight, p.chance, i + p.first, p.seed, p.stream), p.P - i);
  st_m(i, moved.m, p.P - i);
}

// op lion_step_8bit grid(ceil(P, 256))
// A workgroup a block of 256; new weights and codes meet in workgroup memory, because two or four share a word.
var<workgroup> weights: array<f32, 256>;
var<workgroup> codes: array<u32, 256>;

@compute @workgroup_size(256)
fn lion_step_8bit(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let block = flat(group);
  let i = block * 256u + t;
  if (block * 256u >= p.P) { return; }
  level_map[t] = ld1_map(t);
  workgroupBarrier();
  var m = 0.0;
  if (i < p.P) {
    let moved = advance(V() + ld1_weight(i), V() + level_map[ld_m(i)] * ld1_absmax(block), V() + ld1_grad(i) * ld1_scale(0u));
    weights[t] = by_chance(lane(moved.weight, 0u), p.chance, i + p.first, p.seed, p.stream);
    m = lane(moved.m, 0u);
  }
  let top = group_max(t, abs(m));
  if (t == 0u) { st1_absmax(block, top); }
  codes[t] = nearest_signed(m / max(top, 1.17549435e-38));
  workgroupBarrier();
  if (t % 2u == 0u && i < p.P) { st2_weight(i, vec2(weights[t], weights[t + 1u]), p.P - i); }
  let byte = block * 256u + t * 4u;
  if (t >= 64u || byte >= p.P) { return; }
  let at = t * 4u;
  stw_m(byte / 4u, codes[at] | (codes[at + 1u] << 8u) | (codes[at + 2u] << 16u) | (codes[at + 3u] << 24u), p.P - byte);
}

// op adamw_step grid(ceil(P, 256*W))
@compute @workgroup_size(256)
fn adamw_step(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * W;
  if (i >= p.P) { return; }
  let g = ld_grad(i) * ld1_scale(0u);
  let m = p.beta1 * ld_m(i) + p.rest1 * g;
  let v = p.beta2 * ld_v(i) + p.rest2 * g * g;
  let update = p.lr * m * p.correct1 / (sqrt(v * p.correct2) + p.eps);
  let w = ld_weight(i) * (1.0 - p.lr * p.decay) - update;
  st_weight(i, by_chances(w, p.chance, i + p.first, p.seed, p.stream), p.P - i);
  st_m(i, m, p.P - i);
  st_v(i, v, p.P - i);
}

// op adamw_step_8bit grid(ceil(P, 256))
// A workgroup a block of 256; new weights and codes meet in workgroup memory, because two or four share a word.
var<workgroup> weights: array<f32, 256>;
var<workgroup> map2: array<f32, 256>;
var<workgroup> codes1: array<u32, 256>;
var<workgroup> codes2: array<u32, 256>;

@compute @workgroup_size(256)
fn adamw_step_8bit(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let block = flat(group);
  let i = block * 256u + t;
  if (block * 256u >= p.P) { return; }
  level_map[t] = ld1_map1(t);
  map2[t] = ld1_map2(t);
  workgroupBarrier();
  var m = 0.0;
  var v = 0.0;
  if (i < p.P) {
    let g = ld1_grad(i) * ld1_scale(0u);
    m = p.beta1 * (level_map[ld_m(i)] * ld1_absmax1(block)) + p.rest1 * g;
    v = p.beta2 * (map2[ld_v(i)] * ld1_absmax2(block)) + p.rest2 * g * g;
    let update = p.lr * m * p.correct1 / (sqrt(v * p.correct2) + p.eps);
    let w = (ld1_weight(i) - update) * (1.0 - p.lr * p.decay);
    weights[t] = by_chance(w, p.chance, i + p.first, p.seed, p.stream);
  }
  let top1 = group_max(t, abs(m));
  let top2 = group_max(t, v);
  if (t == 0u) {
    st1_absmax1(block, top1);
    st1_absmax2(block, top2);
  }
  codes1[t] = nearest_signed(m / max(top1, 1.17549435e-38));
  workgroupBarrier();
  if (t % 2u == 0u && i < p.P) { st2_weight(i, vec2(weights[t], weights[t + 1u]), p.P - i); }
  level_map[t] = map2[t];
  workgroupBarrier();
  codes2[t] = nearest(v / max(top2, 1.17549435e-38));
  workgroupBarrier();
  let byte = block * 256u + t * 4u;
  if (t >= 64u || byte >= p.P) { return; }
  let at = t * 4u;
  stw_m(byte / 4u, codes1[at] | (codes1[at + 1u] << 8u) | (codes1[at + 2u] << 16u) | (codes1[at + 3u] << 24u), p.P - byte);
  stw_v(byte / 4u, codes2[at] | (codes2[at + 1u] << 8u) | (codes2[at + 2u] << 16u) | (codes2[at + 3u] << 24u), p.P - byte);
}

// op dyn8_quantize grid(ceil(P, 256))
// A workgroup a block; four codes a word, so they meet in workgroup memory before they are stored.
var<workgroup> codes: array<u32, 256>;

@compute @workgroup_size(256)
fn dyn8_quantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let block = flat(group);
  let i = block * 256u + t;
  if (block * 256u >= p.P) { return; }
  level_map[t] = ld1_map(t);
  var x = 0.0;
  if (i < p.P) { x = ld1_inp(i); }
  let top = group_max(t, abs(x));
  if (t == 0u) { st1_absmax(block, top); }
  // a block of zeros has no scale: 0·1/tiny stays 0
  codes[t] = nearest(x * (1.0 / max(top, 1.17549435e-38)));
  workgroupBarrier();
  let byte = block * 256u + t * 4u;
  if (t >= 64u || byte >= p.P) { return; }
  let at = t * 4u;
  stw_codes(byte / 4u, codes[at] | (codes[at + 1u] << 8u) | (codes[at + 2u] << 16u) | (codes[at + 3u] << 24u), p.P - byte);
}

// op dyn8_dequantize grid(ceil(P, 512))
@compute @workgroup_size(256)
fn dyn8_dequantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  level_map[t] = ld1_map(t);
  workgroupBarrier();
  let i = (flat(group) * 256u + t) * 2u;
  if (i >= p.P) { return; }
  let absmax = ld1_absmax(i / 256u);
  st2_out(i, vec2(level_map[ld_codes(i)], level_map[ld_codes(i + 1u)]) * absmax, p.P - i);
}

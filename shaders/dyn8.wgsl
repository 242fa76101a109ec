// op dyn8_quantize grid(ceil(P, 256))
// A workgroup a block; four codes a word, so they meet in workgroup memory before they are stored.
var<workgroup> map: array<f32, 256>;
var<workgroup> codes: array<u32, 256>;

@compute @workgroup_size(256)
fn dyn8_quantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let block = flat(group);
  let i = block * 256u + t;
  if (block * 256u >= p.P) { return; }
  map[t] = ld1_map(t);
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

// The nearest level's index; a tie goes down.
fn nearest(x: f32) -> u32 {
  var above = 0u; // levels below x, found bit by bit: 255 at most, and no matter
  for (var bit = 128u; bit > 0u; bit >>= 1u) { if (map[above + bit - 1u] < x) { above += bit; } }
  above = max(above, 1u);
  return select(above - 1u, above, x > (map[above - 1u] + map[above]) * 0.5);
}

// op dyn8_dequantize grid(ceil(P, 512))
var<workgroup> map: array<f32, 256>;

@compute @workgroup_size(256)
fn dyn8_dequantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  map[t] = ld1_map(t);
  workgroupBarrier();
  let i = (flat(group) * 256u + t) * 2u;
  if (i >= p.P) { return; }
  let absmax = ld1_absmax(i / 256u);
  st2_out(i, vec2(map[ld_codes(i)], map[ld_codes(i + 1u)]) * absmax, p.P - i);
}

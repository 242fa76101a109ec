// op int8_quantize grid(O)
@compute @workgroup_size(256)
fn int8_quantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let o = flat(group);
  if (o >= p.O) { return; }
  var top = 0.0;
  for (var c = t; c < p.C; c += 256u) { top = max(top, abs(ld1_inp(o * p.C + c))); }
  top = group_max(t, top);
  if (t == 0u) { st1_scb(o, top); }
}

// op int8_quantize__codes grid(ceil(O*C, 1024))
// A thread makes one word: four codes, which may lie in several rows.
@compute @workgroup_size(256)
fn int8_quantize__codes(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let word = flat(group) * 256u + t;
  let i = word * 4u;
  if (i >= p.O * p.C) { return; }
  var codes = 0u;
#for k 0 4
  if (i + $k < p.O * p.C) { codes |= code(i + $k) << (8u * $k); }
#end
  stw_codes(word, codes, p.O * p.C - i);
}
fn code(i: u32) -> u32 {
  let top = ld1_scb(i / p.C);
  // a row of zeros has no scale; round() takes ties to even
  if (top <= 0.0) { return 0u; }
  return bitcast<u32>(i32(clamp(round(ld1_inp(i) * (127.0 / top)), -127.0, 127.0))) & 255u;
}

// op int8_dequantize grid(ceil(O*C, 512))
// A thread makes two values; where a row is odd, they may lie in two rows.
@compute @workgroup_size(256)
fn int8_dequantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * 2u;
  let P = p.O * p.C;
  if (i >= P) { return; }
  let next = min(i + 1u, P - 1u);
  let codes = vec2(signed(ld_codes(i)), signed(ld_codes(next)));
  st2_out(i, codes * vec2(ld1_scb(i / p.C), ld1_scb(next / p.C)) / 127.0, P - i);
}
fn signed(byte: u32) -> f32 { return f32(bitcast<i32>(byte << 24u) >> 24u); }

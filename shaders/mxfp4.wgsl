// By bits: an f32 of exponent e2 - 1 and the mantissa bit on top; 1 is the half; 0 is 0.
fn level(code: u32) -> f32 {
  let e2 = (code >> 1u) & 3u;
  let size = select((code & 1u) * 0x3f000000u, ((e2 + 126u) << 23u) | ((code & 1u) << 22u), e2 > 0u);
  return bitcast<f32>(size | ((code & 8u) << 28u));
}
fn scale(byte: u32) -> f32 { return bitcast<f32>(select(max(byte << 23u, 1u << 22u), 0x7fc00000u, byte == 255u)); }

// op mxfp4_dequantize grid(ceil(P, 512))
// A thread makes the two values of a byte.
@compute @workgroup_size(256)
fn mxfp4_dequantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * 2u;
  if (i >= p.P) { return; }
  let byte = ld_codes(i / 2u);
  st2_out(i, vec2(level(byte), level(byte >> 4u)) * scale(ld_scales(i / 32u)), p.P - i);
}

// ggml's block formats; a thread makes four values. Blocks have even sizes, so that words of codes start at even bytes.

// The f16 in the low half of w. By hand: scales are often subnormal, and drivers may flush those.
fn half(w: u32) -> f32 {
  let magnitude = w & 0x7fffu;
  let normal = bitcast<f32>((magnitude << 13u) + 0x38000000u);
  var x = select(normal, f32(magnitude) * 5.9604644775390625e-8, magnitude < 0x400u);
  if (magnitude >= 0x7c00u) { x = bitcast<f32>((magnitude << 13u) | 0x7f800000u); }
  return select(x, -x, (w & 0x8000u) != 0u);
}

// Four bytes from an even place.
fn word(at: u32) -> u32 {
  let low = ldw_blocks(at / 4u);
  if (at % 4u == 0u) { return low; }
  return (low >> 16u) | (ldw_blocks(at / 4u + 1u) << 16u);
}
fn byte(at: u32) -> u32 { return (ldw_blocks(at / 4u) >> (8u * (at % 4u))) & 255u; }

// The low bits of each byte of w.
fn bytes(w: u32, bits: u32) -> vec4<u32> { return (vec4(w) >> vec4(0u, 8u, 16u, 24u)) & vec4((1u << bits) - 1u); }
fn signed(byte: vec4<u32>) -> vec4<f32> { return vec4<f32>(bitcast<vec4<i32>>(byte << vec4(24u)) >> vec4(24u)); }

// Of a block of 32 with its codes from `at` on: the 4 bits of values j .. j + 4.
fn nibbles(at: u32, j: u32) -> vec4<u32> { return bytes(word(at + j % 16u) >> (j / 16u * 4u), 4u); }
// Their fifth bits, bit j of h for value j.
fn fifths(h: u32, j: u32) -> vec4<u32> { return ((vec4(h >> j) >> vec4(0u, 1u, 2u, 3u)) & vec4(1u)) << vec4(4u); }

// Scale and minimum of part s < 8 from the 12 bytes at `at`: 6 bits each, those of the last four split between two bytes.
fn scale_min(at: u32, s: u32) -> vec2<f32> {
  let a = byte(at + s);
  let b = byte(at + s + 4u);
  if (s < 4u) { return vec2(f32(a & 63u), f32(b & 63u)); }
  return vec2(f32((b & 15u) | ((byte(at + s - 4u) >> 6u) << 4u)), f32((b >> 4u) | ((a >> 6u) << 4u)));
}

// op q4_0_dequantize grid(ceil(P, 1024))
@compute @workgroup_size(256)
fn q4_0_dequantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * 4u;
  if (i >= p.P) { return; }
  let at = i / 32u * 18u;
  st4_out(i, half(word(at)) * (vec4<f32>(nibbles(at + 2u, i % 32u)) - 8.0), 4u);
}

// op q4_1_dequantize grid(ceil(P, 1024))
@compute @workgroup_size(256)
fn q4_1_dequantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * 4u;
  if (i >= p.P) { return; }
  let at = i / 32u * 20u;
  let dm = word(at);
  st4_out(i, half(dm) * vec4<f32>(nibbles(at + 4u, i % 32u)) + half(dm >> 16u), 4u);
}

// op q5_0_dequantize grid(ceil(P, 1024))
@compute @workgroup_size(256)
fn q5_0_dequantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * 4u;
  if (i >= p.P) { return; }
  let at = i / 32u * 22u;
  let q = nibbles(at + 6u, i % 32u) | fifths(word(at + 2u), i % 32u);
  st4_out(i, half(word(at)) * (vec4<f32>(q) - 16.0), 4u);
}

// op q5_1_dequantize grid(ceil(P, 1024))
@compute @workgroup_size(256)
fn q5_1_dequantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * 4u;
  if (i >= p.P) { return; }
  let at = i / 32u * 24u;
  let dm = word(at);
  let q = nibbles(at + 8u, i % 32u) | fifths(word(at + 4u), i % 32u);
  st4_out(i, half(dm) * vec4<f32>(q) + half(dm >> 16u), 4u);
}

// op q8_0_dequantize grid(ceil(P, 1024))
@compute @workgroup_size(256)
fn q8_0_dequantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * 4u;
  if (i >= p.P) { return; }
  let at = i / 32u * 34u;
  st4_out(i, half(word(at)) * signed(bytes(word(at + 2u + i % 32u), 8u)), 4u);
}

// op q4_k_dequantize grid(ceil(P, 1024))
@compute @workgroup_size(256)
fn q4_k_dequantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * 4u;
  if (i >= p.P) { return; }
  let at = i / 256u * 144u;
  let s = i % 256u / 32u;
  let d = word(at);
  let scale = scale_min(at + 4u, s);
  let q = bytes(word(at + 16u + s / 2u * 32u + i % 32u) >> (s % 2u * 4u), 4u);
  st4_out(i, half(d) * scale.x * vec4<f32>(q) - half(d >> 16u) * scale.y, 4u);
}

// op q5_k_dequantize grid(ceil(P, 1024))
@compute @workgroup_size(256)
fn q5_k_dequantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * 4u;
  if (i >= p.P) { return; }
  let at = i / 256u * 176u;
  let s = i % 256u / 32u;
  let d = word(at);
  let scale = scale_min(at + 4u, s);
  let low = bytes(word(at + 48u + s / 2u * 32u + i % 32u) >> (s % 2u * 4u), 4u);
  let q = low | (bytes(word(at + 16u + i % 32u) >> s, 1u) << vec4(4u));
  st4_out(i, half(d) * scale.x * vec4<f32>(q) - half(d >> 16u) * scale.y, 4u);
}

// op q6_k_dequantize grid(ceil(P, 1024))
@compute @workgroup_size(256)
fn q6_k_dequantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * 4u;
  if (i >= p.P) { return; }
  let at = i / 256u * 210u;
  // halves of 128, quarters of 32 in them: two quarters share the low halves of 64 bytes, two the high ones
  let n = i % 256u / 128u;
  let quarter = i % 128u / 32u;
  let l = i % 32u;
  let low = bytes(word(at + n * 64u + quarter % 2u * 32u + l) >> (quarter / 2u * 4u), 4u);
  let q = low | (bytes(word(at + 128u + n * 32u + l) >> (quarter * 2u), 2u) << vec4(4u));
  let scale = signed(vec4(byte(at + 192u + i % 256u / 16u))).x;
  let d = half(byte(at + 208u) | (byte(at + 209u) << 8u));
  st4_out(i, d * scale * (vec4<f32>(q) - 32.0), 4u);
}

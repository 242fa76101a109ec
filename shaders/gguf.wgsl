// ggml's block formats, four values at a time. Blocks have even sizes, so that words of codes start at even bytes.

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

// The values i .. i + 4, by format; i is a multiple of 4.
fn q4_0(i: u32) -> vec4<f32> {
  let at = i / 32u * 18u;
  return half(word(at)) * (vec4<f32>(nibbles(at + 2u, i % 32u)) - 8.0);
}
fn q4_1(i: u32) -> vec4<f32> {
  let at = i / 32u * 20u;
  let dm = word(at);
  return half(dm) * vec4<f32>(nibbles(at + 4u, i % 32u)) + half(dm >> 16u);
}
fn q5_0(i: u32) -> vec4<f32> {
  let at = i / 32u * 22u;
  let q = nibbles(at + 6u, i % 32u) | fifths(word(at + 2u), i % 32u);
  return half(word(at)) * (vec4<f32>(q) - 16.0);
}
fn q5_1(i: u32) -> vec4<f32> {
  let at = i / 32u * 24u;
  let dm = word(at);
  let q = nibbles(at + 8u, i % 32u) | fifths(word(at + 4u), i % 32u);
  return half(dm) * vec4<f32>(q) + half(dm >> 16u);
}
fn q8_0(i: u32) -> vec4<f32> {
  let at = i / 32u * 34u;
  return half(word(at)) * signed(bytes(word(at + 2u + i % 32u), 8u));
}
fn q4_k(i: u32) -> vec4<f32> {
  let at = i / 256u * 144u;
  let s = i % 256u / 32u;
  let d = word(at);
  let scale = scale_min(at + 4u, s);
  let q = bytes(word(at + 16u + s / 2u * 32u + i % 32u) >> (s % 2u * 4u), 4u);
  return half(d) * scale.x * vec4<f32>(q) - half(d >> 16u) * scale.y;
}
fn q5_k(i: u32) -> vec4<f32> {
  let at = i / 256u * 176u;
  let s = i % 256u / 32u;
  let d = word(at);
  let scale = scale_min(at + 4u, s);
  let low = bytes(word(at + 48u + s / 2u * 32u + i % 32u) >> (s % 2u * 4u), 4u);
  let q = low | (bytes(word(at + 16u + i % 32u) >> s, 1u) << vec4(4u));
  return half(d) * scale.x * vec4<f32>(q) - half(d >> 16u) * scale.y;
}
fn q6_k(i: u32) -> vec4<f32> {
  let at = i / 256u * 210u;
  // halves of 128, quarters of 32 in them: two quarters share the low halves of 64 bytes, two the high ones
  let n = i % 256u / 128u;
  let quarter = i % 128u / 32u;
  let l = i % 32u;
  let low = bytes(word(at + n * 64u + quarter % 2u * 32u + l) >> (quarter / 2u * 4u), 4u);
  let q = low | (bytes(word(at + 128u + n * 32u + l) >> (quarter * 2u), 2u) << vec4(4u));
  let scale = signed(vec4(byte(at + 192u + i % 256u / 16u))).x;
  let d = half(byte(at + 208u) | (byte(at + 209u) << 8u));
  return d * scale * (vec4<f32>(q) - 32.0);
}

// op q4_0_dequantize grid(ceil(P, 1024))
@compute @workgroup_size(256)
fn q4_0_dequantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * 4u;
  if (i < p.P) { st4_out(i, q4_0(i), 4u); }
}

// op q4_1_dequantize grid(ceil(P, 1024))
@compute @workgroup_size(256)
fn q4_1_dequantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * 4u;
  if (i < p.P) { st4_out(i, q4_1(i), 4u); }
}

// op q5_0_dequantize grid(ceil(P, 1024))
@compute @workgroup_size(256)
fn q5_0_dequantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * 4u;
  if (i < p.P) { st4_out(i, q5_0(i), 4u); }
}

// op q5_1_dequantize grid(ceil(P, 1024))
@compute @workgroup_size(256)
fn q5_1_dequantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * 4u;
  if (i < p.P) { st4_out(i, q5_1(i), 4u); }
}

// op q8_0_dequantize grid(ceil(P, 1024))
@compute @workgroup_size(256)
fn q8_0_dequantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * 4u;
  if (i < p.P) { st4_out(i, q8_0(i), 4u); }
}

// op q4_k_dequantize grid(ceil(P, 1024))
@compute @workgroup_size(256)
fn q4_k_dequantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * 4u;
  if (i < p.P) { st4_out(i, q4_k(i), 4u); }
}

// op q5_k_dequantize grid(ceil(P, 1024))
@compute @workgroup_size(256)
fn q5_k_dequantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * 4u;
  if (i < p.P) { st4_out(i, q5_k(i), 4u); }
}

// op q6_k_dequantize grid(ceil(P, 1024))
@compute @workgroup_size(256)
fn q6_k_dequantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * 4u;
  if (i < p.P) { st4_out(i, q6_k(i), 4u); }
}

// op thin_gguf grid(ceil(O, 2), ceil(N, 8))
// A workgroup of 64 threads makes two neighbouring outputs, which share a word, of up to 8 rows of inp.
var<workgroup> sums: array<vec4<f32>, 128>;
fn four(i: u32) -> vec4<f32> {
  switch p.format {
    case 0u: { return q4_0(i); }
    case 1u: { return q4_1(i); }
    case 2u: { return q5_0(i); }
    case 3u: { return q5_1(i); }
    case 4u: { return q8_0(i); }
    case 5u: { return q4_k(i); }
    case 6u: { return q5_k(i); }
    default: { return q6_k(i); }
  }
}
fn with_row(w: vec4<f32>, n: u32, c: u32) -> f32 { return dot(w, ld4_inp(min(n, p.N - 1u) * p.C + c, 4u)); }
@compute @workgroup_size(64)
fn thin_gguf(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let n0 = group.y * 8u;
  var pair = vec2<f32>();
  for (var r = 0u; r < 2u; r++) {
    let o = group.x * 2u + r;
    var a = vec4<f32>();
    var b = vec4<f32>();
    for (var c = 4u * t; c < p.C && o < p.O; c += 256u) {
      let w = four((p.first + o) * p.C + c);
      a += vec4(with_row(w, n0, c), with_row(w, n0 + 1u, c), with_row(w, n0 + 2u, c), with_row(w, n0 + 3u, c));
      b += vec4(with_row(w, n0 + 4u, c), with_row(w, n0 + 5u, c), with_row(w, n0 + 6u, c), with_row(w, n0 + 7u, c));
    }
    workgroupBarrier();
    sums[2u * t] = a;
    sums[2u * t + 1u] = b;
    workgroupBarrier();
    for (var half = 32u; half > 0u; half >>= 1u) {
      if (t < half) {
        sums[2u * t] += sums[2u * (t + half)];
        sums[2u * t + 1u] += sums[2u * (t + half) + 1u];
      }
      workgroupBarrier();
    }
    if (t < 8u) { pair[r] = sums[t / 4u][t % 4u]; }
  }
  if (t < 8u && n0 + t < p.N) { st2_out((n0 + t) * p.O + group.x * 2u, pair, p.O - group.x * 2u); }
}

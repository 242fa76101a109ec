// op fp8_quantize grid(N)
@compute @workgroup_size(256)
fn fp8_quantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let n = flat(group);
  if (n >= p.N) { return; }
  var top = 1e-30;
  for (var c = t; c < p.C; c += 256u) {
    var x = ld1_inp(n * p.C + c);
    if (has_by) { x *= ld1_by(c); }
    top = max(top, abs(x));
  }
  top = group_max(t, top);
  if (t == 0u) { st1_scales(n, top / 448.0); }
}

// op fp8_quantize__codes grid(ceil(N*C, 1024))
// A thread makes one word: four codes, which may lie in several rows.
@compute @workgroup_size(256)
fn fp8_quantize__codes(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let word = flat(group) * 256u + t;
  let i = word * 4u;
  if (i >= p.N * p.C) { return; }
  var codes = 0u;
#for k 0 4
  if (i + $k < p.N * p.C) { codes |= code(i + $k) << (8u * $k); }
#end
  stw_codes(word, codes, p.N * p.C - i);
}
fn code(i: u32) -> u32 {
  var x = ld1_inp(i);
  if (has_by) { x *= ld1_by(i % p.C); }
  return e4m3(x * (1.0 / ld1_scales(i / p.C)));
}
fn e4m3(x: f32) -> u32 {
  let u = bitcast<u32>(x);
  let a = u & 0x7fffffffu;
  let normal = (a - 0x3c000000u + 0x7ffffu + ((a >> 20u) & 1u)) >> 20u;
  // 2^14 has the last place of a subnormal code
  let small = bitcast<u32>(bitcast<f32>(a) + 16384.0) - 0x46800000u;
  var code = select(normal, small, a < 0x3c800000u);
  code = select(code, 0x7eu, a > 0x43e00000u);
  code = select(code, 0x7fu, a > 0x7f800000u);
  return code | ((u >> 24u) & 0x80u);
}

// op fp8_dequantize grid(ceil(N*C, 512))
// A thread makes two values; where a row is odd, they may lie in two rows.
@compute @workgroup_size(256)
fn fp8_dequantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * 2u;
  let P = p.N * p.C;
  if (i >= P) { return; }
  let next = min(i + 1u, P - 1u);
  let codes = vec2(e4m3_value(ld_codes(i)), e4m3_value(ld_codes(next)));
  st2_out(i, codes * vec2(ld1_scales(i / p.C), ld1_scales(next / p.C)), P - i);
}

// op fp8_transpose grid(ceil(N*C, 1024))
// A thread makes one word of out: four rows of inp, or the ends of some columns.
@compute @workgroup_size(256)
fn fp8_transpose(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let word = flat(group) * 256u + t;
  let i = word * 4u;
  if (i >= p.N * p.C) { return; }
  var bytes = 0u;
#for k 0 4
  if (i + $k < p.N * p.C) { bytes |= ld_inp((i + $k) % p.N * p.C + (i + $k) / p.N) << (8u * $k); }
#end
  stw_out(word, bytes, p.N * p.C - i);
}

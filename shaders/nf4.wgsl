// Two codes a byte, the first in the high half; the first byte in the low bits of its word.
const LEVELS = array<f32, 16>(
  -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
  -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
  0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
  0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
);

var<workgroup> levels: array<f32, 16>;
// The table where it can be indexed at full speed. All 256 threads call it.
fn load_levels(t: u32) {
  if (t < 16u) {
    var table = LEVELS;
    levels[t] = table[t];
  }
  workgroupBarrier();
}

// The levels of codes i .. i + 4, i a multiple of 4.
fn four(i: u32) -> vec4<f32> {
  let bytes = ldw_codes(i / 8u) >> (4u * (i % 8u));
  return vec4(levels[(bytes >> 4u) & 15u], levels[bytes & 15u], levels[(bytes >> 12u) & 15u], levels[(bytes >> 8u) & 15u]);
}

// op nf4_quantize grid(ceil(P, 2048))
// 8 threads a block of 64; a thread makes one word: 8 codes.
const MIDPOINTS = array<f32, 15>(
  -0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544,
  -0.23460738360881805, -0.13791173323988914, -0.045525018125772476, 0.03979014977812767,
  0.1202552504837513, 0.2035212516784668, 0.2920137718319893, 0.3893125355243683,
  0.5016634166240692, 0.6427869200706482, 0.8614784181118011,
);
var<workgroup> tops: array<f32, 256>;

@compute @workgroup_size(256)
fn nf4_quantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let word = flat(group) * 256u + t;
  let i = word * 8u;
  var x: array<f32, 8>;
  var top = 0.0;
#for k 0 8
  x[$k] = 0.0;
  if (i + $k < p.P) { x[$k] = ld1_inp(i + $k); }
  top = max(top, abs(x[$k]));
#end
  tops[t] = top;
  workgroupBarrier();
  if (i >= p.P) { return; }
  for (var k = 0u; k < 8u; k++) { top = max(top, tops[(t & 0xf8u) + k]); }
  if (t % 8u == 0u) { st1_absmax(word / 8u, top); }
  // as bitsandbytes: 1/absmax first. A block of zeros has no scale; its codes are 0, like those past the end.
  let scale = 1.0 / top;
  var codes = 0u;
#for k 0 8
  codes |= code(x[$k] * scale, i + $k < p.P && top > 0.0) << (($k ^ 1) * 4u);
#end
  stw_codes(word, codes, ceil_div(p.P, 2u) - word * 4u);
}
fn code(x: f32, counts: bool) -> u32 {
  var n = 0u;
#for k 0 15
  n += u32(x > MIDPOINTS[$k]);
#end
  return select(0u, n, counts);
}

// op nf4_dequantize grid(ceil(P, 1024))
@compute @workgroup_size(256)
fn nf4_dequantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  load_levels(t);
  // a thread makes the four values of two bytes
  let i = (flat(group) * 256u + t) * 4u;
  if (i >= p.P) { return; }
  st4_out(i, four(i) * ld1_absmax(i / 64u), p.P - i);
}

// op nf4_dequantize_double grid(ceil(P, 1024))
@compute @workgroup_size(256)
fn nf4_dequantize_double(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  load_levels(t);
  let i = (flat(group) * 256u + t) * 4u;
  if (i >= p.P) { return; }
  let block = i / 64u;
  let absmax = ld1_map(ld_qabsmax(block)) * ld1_nested(block / 256u) + p.offset;
  st4_out(i, four(i) * absmax, p.P - i);
}

// A workgroup makes a 64 x 64 tile of out, a thread 4 x 4 of it. The operands pass through workgroup memory in steps of 16 along Q,
// laid out [q][row]; what lies outside the matrices counts as 0. Codes are read four at a time, in one word where rows are words.
var<workgroup> sa: array<f32, 1024>;
var<workgroup> sb: array<f32, 1024>;

fn word_a(at: u32) -> u32 {
  if (p.Q % 4u == 0u) { return ldw_a(at / 4u); }
  return ld_a(at) | (ld_a(at + 1u) << 8u) | (ld_a(at + 2u) << 16u) | (ld_a(at + 3u) << 24u);
}
fn word_b(at: u32) -> u32 {
  if (p.Q % 4u == 0u) { return ldw_b(at / 4u); }
  return ld_b(at) | (ld_b(at + 1u) << 8u) | (ld_b(at + 2u) << 16u) | (ld_b(at + 3u) << 24u);
}

fn store(i: u32, j: u32, sum: vec4<f32>) {
  if (i >= p.I || j >= p.J) { return; }
  let last = p.J - 1u;
  let scales = vec4(ld1_b_scales(j), ld1_b_scales(min(j + 1u, last)), ld1_b_scales(min(j + 2u, last)), ld1_b_scales(min(j + 3u, last)));
  var v = sum * ld1_a_scales(i) * scales;
  let at = i * p.J + j;
  if (ADD) { v += ld4_out(at, p.J - j); }
  st4_out(at, v, p.J - j);
}

fn product(tile: vec3<u32>, t: u32) {
  let i0 = tile.y * 64u;
  let j0 = tile.x * 64u;
  let tx = t % 16u;
  let ty = t / 16u;
  // of the four threads of a row, each stages four codes
  let row = t / 4u;
  let q = t % 4u * 4u;
#for r 0 4
  var c$r = vec4<f32>();
#end
  for (var q0 = 0u; q0 < p.Q; q0 += 16u) {
    // a code of 0 is 0
    var wa = 0u;
    var wb = 0u;
    if (i0 + row < p.I && q0 + q < p.Q) { wa = word_a((i0 + row) * p.Q + q0 + q); }
    if (j0 + row < p.J && q0 + q < p.Q) { wb = word_b((j0 + row) * p.Q + q0 + q); }
#for k 0 4
    let inside$k = q0 + q + $k < p.Q;
    sa[(q + $k) * 64u + row] = select(0.0, e4m3_value((wa >> (8u * $k)) & 255u), inside$k);
    sb[(q + $k) * 64u + row] = select(0.0, e4m3_value((wb >> (8u * $k)) & 255u), inside$k);
#end
    workgroupBarrier();
    for (var k = 0u; k < 16u; k++) {
      let at = k * 64u + 4u * tx;
      let b = vec4(sb[at], sb[at + 1u], sb[at + 2u], sb[at + 3u]);
#for r 0 4
      c$r = fma(vec4(sa[k * 64u + 4u * ty + $r]), b, c$r);
#end
    }
    workgroupBarrier();
  }
#for r 0 4
  store(i0 + 4u * ty + $r, j0 + 4u * tx, c$r);
#end
}

// op fp8_matmul grid(ceil(J, 64), ceil(I, 64))
const ADD = false;
@compute @workgroup_size(256)
fn fp8_matmul(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) t: u32) { product(tile, t); }

// op fp8_matmul_add grid(ceil(J, 64), ceil(I, 64))
const ADD = true;
@compute @workgroup_size(256)
fn fp8_matmul_add(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) t: u32) { product(tile, t); }

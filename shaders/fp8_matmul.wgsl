// A workgroup makes a 64 x 64 tile of out, a thread 4 x 4 of it. The operands pass through workgroup memory in steps of 16 along Q,
// laid out [q][row]; what lies outside the matrices counts as 0. Codes are read four at a time, which may lie in two words.
var<workgroup> sa: array<f32, 1024>;
var<workgroup> sb: array<f32, 1024>;

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
    let inside_a = i0 + row < p.I;
    let inside_b = j0 + row < p.J;
    let at_a = (i0 + row) * p.Q + q0 + q;
    let at_b = (j0 + row) * p.Q + q0 + q;
#for k 0 4
    var a$k = 0.0;
    var b$k = 0.0;
    if (inside_a && q0 + q + $k < p.Q) { a$k = e4m3_value(ld_a(at_a + $k)); }
    if (inside_b && q0 + q + $k < p.Q) { b$k = e4m3_value(ld_b(at_b + $k)); }
    sa[(q + $k) * 64u + row] = a$k;
    sb[(q + $k) * 64u + row] = b$k;
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

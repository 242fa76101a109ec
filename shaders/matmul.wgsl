// A workgroup makes a BM x BN tile of out; a thread RM x RN blocks of 4x4 in it. The operands pass through workgroup memory in
// steps of BK along Q, both laid out [q][row or column], four to a vec4; what lies outside the matrices counts as 0.
// SPLIT: workgroups in z take `part` of Q each and leave their sums in scratch; the stage `join` adds them in order.
const AM = BM / 4u;
const BN4 = BN / 4u;
const BK4 = BK / 4u;
const TX = BN4 / RN;
const TY = AM / RM;
var<workgroup> sa: array<vec4<f32>, BK * AM>;
var<workgroup> sb: array<vec4<f32>, BK * BN4>;

// Elements from `at` to `end`, none at or past it.
fn rest(at: u32, end: u32) -> u32 { return select(0u, end - at, at < end); }

// a[i, q]: 4x4 blocks, turned in registers
fn stage_a_rows(t: u32, i0: u32, q0: u32, end: u32) {
  for (var b = t; b < AM * BK4; b += THREADS) {
    let q = q0 + 4u * (b % BK4);
    let i = i0 + 4u * (b / BK4);
    let n = rest(q, end);
#for r 0 4
    let v$r = ld4_a((i + $r) * p.ld_a + q, select(0u, n, i + $r < p.I));
#end
    let at = 4u * (b % BK4) * AM + b / BK4;
    sa[at] = vec4(v0.x, v1.x, v2.x, v3.x);
    sa[at + AM] = vec4(v0.y, v1.y, v2.y, v3.y);
    sa[at + 2u * AM] = vec4(v0.z, v1.z, v2.z, v3.z);
    sa[at + 3u * AM] = vec4(v0.w, v1.w, v2.w, v3.w);
  }
}
// b[j, q]
fn stage_b_rows(t: u32, j0: u32, q0: u32, end: u32) {
  for (var b = t; b < BN4 * BK4; b += THREADS) {
    let q = q0 + 4u * (b % BK4);
    let j = j0 + 4u * (b / BK4);
    let n = rest(q, end);
#for r 0 4
    let v$r = ld4_b((j + $r) * p.ld_b + q, select(0u, n, j + $r < p.J));
#end
    let at = 4u * (b % BK4) * BN4 + b / BK4;
    sb[at] = vec4(v0.x, v1.x, v2.x, v3.x);
    sb[at + BN4] = vec4(v0.y, v1.y, v2.y, v3.y);
    sb[at + 2u * BN4] = vec4(v0.z, v1.z, v2.z, v3.z);
    sb[at + 3u * BN4] = vec4(v0.w, v1.w, v2.w, v3.w);
  }
}
// a[q, i]
fn stage_a_columns(t: u32, i0: u32, q0: u32, end: u32) {
  for (var b = t; b < BK * AM; b += THREADS) {
    let q = q0 + b / AM;
    let i = i0 + 4u * (b % AM);
    sa[b] = ld4_a(q * p.ld_a + i, select(0u, rest(i, p.I), q < end));
  }
}
// b[q, j]
fn stage_b_columns(t: u32, j0: u32, q0: u32, end: u32) {
  for (var b = t; b < BK * BN4; b += THREADS) {
    let q = q0 + b / BN4;
    let j = j0 + 4u * (b % BN4);
    sb[b] = ld4_b(q * p.ld_b + j, select(0u, rest(j, p.J), q < end));
  }
}

fn store(i: u32, j: u32, z: u32, sum: vec4<f32>) {
  if (i >= p.I || j >= p.J) { return; }
#if SPLIT
  st4_scratch(((z * p.I + i) * ceil_div(p.J, 4u) + j / 4u) * 4u, sum, 4u);
#end
#if 1 - SPLIT
  finish(i, j, sum);
#end
}
fn finish(i: u32, j: u32, sum: vec4<f32>) {
  let at = i * p.ld_out + j;
  var v = sum * p.alpha;
  if (ADD) { v += ld4_out(at, p.J - j); }
  st4_out(at, v, p.J - j);
}

fn product(tile: vec3<u32>, t: u32) {
  let i0 = tile.y * BM;
  let j0 = tile.x * BN;
  let tx = t % TX;
  let ty = t / TX;
  let first = tile.z * p.part;
  let end = min(p.Q, first + p.part);
#for i 0 RM
#for j 0 RN
#for r 0 4
  var c$i$j$r = vec4<f32>();
#end
#end
#end
  for (var q = first; q < end; q += BK) {
    if (A_ROWS) { stage_a_rows(t, i0, q, end); } else { stage_a_columns(t, i0, q, end); }
    // turned by half a workgroup: with few blocks to load, b's are other threads' than a's
    if (B_ROWS) { stage_b_rows((t + THREADS / 2u) % THREADS, j0, q, end); } else { stage_b_columns(t, j0, q, end); }
    workgroupBarrier();
    for (var k = 0u; k < BK; k++) {
#for j 0 RN
      let b$j = sb[k * BN4 + $j * TX + tx];
#end
#for i 0 RM
      let a$i = sa[k * AM + $i * TY + ty];
#for j 0 RN
#for r 0 4
      c$i$j$r = fma(vec4(a$i[$r]), b$j, c$i$j$r);
#end
#end
#end
    }
    workgroupBarrier();
  }
#for i 0 RM
#for j 0 RN
#for r 0 4
  store(i0 + 4u * ($i * TY + ty) + $r, j0 + 4u * ($j * TX + tx), tile.z, c$i$j$r);
#end
#end
#end
}

// A thread adds the parts of four outputs.
fn join(index: u32) {
  let J4 = ceil_div(p.J, 4u);
  if (index >= p.I * J4) { return; }
  var sum = vec4<f32>();
#if SPLIT
  for (var z = 0u; z < p.splits; z++) { sum += ld4_scratch((z * p.I * J4 + index) * 4u, 4u); }
#end
  finish(index / J4, 4u * (index % J4), sum);
}

// op matmul_nt grid(ceil(J, BN), ceil(I, BM), splits)
const A_ROWS = true;
const B_ROWS = true;
const ADD = false;
@compute @workgroup_size(THREADS)
fn matmul_nt(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) t: u32) { product(tile, t); }

// op matmul_nt__join grid(ceil(I*ceil(J, 4), 256))
const A_ROWS = true;
const B_ROWS = true;
const ADD = false;
@compute @workgroup_size(256)
fn matmul_nt__join(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) { join(flat(group) * 256u + t); }

// op matmul_nt_add grid(ceil(J, BN), ceil(I, BM), splits)
const A_ROWS = true;
const B_ROWS = true;
const ADD = true;
@compute @workgroup_size(THREADS)
fn matmul_nt_add(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) t: u32) { product(tile, t); }

// op matmul_nt_add__join grid(ceil(I*ceil(J, 4), 256))
const A_ROWS = true;
const B_ROWS = true;
const ADD = true;
@compute @workgroup_size(256)
fn matmul_nt_add__join(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) { join(flat(group) * 256u + t); }

// op matmul_nn grid(ceil(J, BN), ceil(I, BM), splits)
const A_ROWS = true;
const B_ROWS = false;
const ADD = false;
@compute @workgroup_size(THREADS)
fn matmul_nn(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) t: u32) { product(tile, t); }

// op matmul_nn__join grid(ceil(I*ceil(J, 4), 256))
const A_ROWS = true;
const B_ROWS = true;
const ADD = false;
@compute @workgroup_size(256)
fn matmul_nn__join(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) { join(flat(group) * 256u + t); }

// op matmul_nn_add grid(ceil(J, BN), ceil(I, BM), splits)
const A_ROWS = true;
const B_ROWS = false;
const ADD = true;
@compute @workgroup_size(THREADS)
fn matmul_nn_add(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) t: u32) { product(tile, t); }

// op matmul_nn_add__join grid(ceil(I*ceil(J, 4), 256))
const A_ROWS = true;
const B_ROWS = true;
const ADD = true;
@compute @workgroup_size(256)
fn matmul_nn_add__join(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) { join(flat(group) * 256u + t); }

// op matmul_tn grid(ceil(J, BN), ceil(I, BM), splits)
const A_ROWS = false;
const B_ROWS = false;
const ADD = false;
@compute @workgroup_size(THREADS)
fn matmul_tn(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) t: u32) { product(tile, t); }

// op matmul_tn__join grid(ceil(I*ceil(J, 4), 256))
const A_ROWS = true;
const B_ROWS = true;
const ADD = false;
@compute @workgroup_size(256)
fn matmul_tn__join(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) { join(flat(group) * 256u + t); }

// op matmul_tn_add grid(ceil(J, BN), ceil(I, BM), splits)
const A_ROWS = false;
const B_ROWS = false;
const ADD = true;
@compute @workgroup_size(THREADS)
fn matmul_tn_add(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) t: u32) { product(tile, t); }

// op matmul_tn_add__join grid(ceil(I*ceil(J, 4), 256))
const A_ROWS = true;
const B_ROWS = true;
const ADD = true;
@compute @workgroup_size(256)
fn matmul_tn_add__join(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) { join(flat(group) * 256u + t); }

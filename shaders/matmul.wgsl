// Products by the tiles of shared/tile.wgsl. SPLIT: workgroups in z take `part` of Q each and leave their sums in scratch; the stage
// `join` adds them in order.
#include tile
fn tile(tile: vec3<u32>, t: u32) {
  let first = tile.z * p.part;
  let end = min(p.Q, first + p.part);
  product(Part(0u, p.ld_a, tile.y * BM, p.I, 0u, p.ld_b, tile.x * BN, p.J, tile.z * p.I, p.ld_out, first, end), t);
}
fn store(g: Part, i: u32, j: u32, sum: vec4<f32>) {
  if (i >= p.I || j >= p.J) { return; }
#if SPLIT
  st4_scratch(((g.out + i) * ceil_div(p.J, 4u) + j / 4u) * 4u, sum, 4u);
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
fn matmul_nt(@builtin(workgroup_id) place: vec3<u32>, @builtin(local_invocation_index) t: u32) { tile(place, t); }

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
fn matmul_nt_add(@builtin(workgroup_id) place: vec3<u32>, @builtin(local_invocation_index) t: u32) { tile(place, t); }

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
fn matmul_nn(@builtin(workgroup_id) place: vec3<u32>, @builtin(local_invocation_index) t: u32) { tile(place, t); }

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
fn matmul_nn_add(@builtin(workgroup_id) place: vec3<u32>, @builtin(local_invocation_index) t: u32) { tile(place, t); }

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
fn matmul_tn(@builtin(workgroup_id) place: vec3<u32>, @builtin(local_invocation_index) t: u32) { tile(place, t); }

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
fn matmul_tn_add(@builtin(workgroup_id) place: vec3<u32>, @builtin(local_invocation_index) t: u32) { tile(place, t); }

// op matmul_tn_add__join grid(ceil(I*ceil(J, 4), 256))
const A_ROWS = true;
const B_ROWS = true;
const ADD = true;
@compute @workgroup_size(256)
fn matmul_tn_add__join(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) { join(flat(group) * 256u + t); }

// Products by the tiles of shared/tile.wgsl, but each expert's rows meet its own matrix. Of nt and nn the tiles of all experts stand in
// one list, and a workgroup finds its expert from `offsets`: ceil(M, BM) + E tiles are always enough.
#include tile
fn store(g: Part, i: u32, j: u32, sum: vec4<f32>) {
  if (i >= g.end_a || j >= g.end_b) { return; }
  let at = g.out + i * g.ld_out + j;
  var v = sum * p.alpha;
  if (ADD) { v += ld4_out(at, g.end_b - j); }
  st4_out(at, v, g.end_b - j);
}

// What one thread has read of `offsets`, for all: barriers stand in branches and loops that depend on it.
var<workgroup> found: vec4<u32>;

// Tile number `tile.y` of the list: rows of one expert.
fn rows(tile: vec3<u32>, t: u32) {
  if (t == 0u) {
    var e = 0u;
    var first = 0u;
    var end = 0u;
    var before = 0u;
    for (; e < p.E; e++) {
      first = ld_offsets(e);
      end = ld_offsets(e + 1u);
      let tiles = ceil_div(end - first, BM);
      if (tile.y < before + tiles) { break; }
      before += tiles;
    }
    found = vec4(e, first + (tile.y - before) * BM, end, 0u);
  }
  let own = workgroupUniformLoad(&found);
  if (own.x == p.E) { return; }
  let b = own.x * p.J * p.Q;
  product(Part(0u, p.Q, own.y, own.z, b, select(p.J, p.Q, B_ROWS), tile.x * BN, p.J, 0u, p.J, 0u, p.Q), t);
}

// op grouped_nt grid(ceil(J, BN), ceil(M, BM) + E)
const A_ROWS = true;
const B_ROWS = true;
const ADD = false;
@compute @workgroup_size(THREADS)
fn grouped_nt(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) t: u32) { rows(tile, t); }

// op grouped_nt_add grid(ceil(J, BN), ceil(M, BM) + E)
const A_ROWS = true;
const B_ROWS = true;
const ADD = true;
@compute @workgroup_size(THREADS)
fn grouped_nt_add(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) t: u32) { rows(tile, t); }

// op grouped_nn grid(ceil(J, BN), ceil(M, BM) + E)
const A_ROWS = true;
const B_ROWS = false;
const ADD = false;
@compute @workgroup_size(THREADS)
fn grouped_nn(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) t: u32) { rows(tile, t); }

// op grouped_nn_add grid(ceil(J, BN), ceil(M, BM) + E)
const A_ROWS = true;
const B_ROWS = false;
const ADD = true;
@compute @workgroup_size(THREADS)
fn grouped_nn_add(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) t: u32) { rows(tile, t); }

// op grouped_tn_add grid(ceil(Q, BN), ceil(J, BM), E)
// The expert's rows are the inner length.
const A_ROWS = false;
const B_ROWS = false;
const ADD = true;
@compute @workgroup_size(THREADS)
fn grouped_tn_add(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  if (t == 0u) { found = vec4(ld_offsets(tile.z), ld_offsets(tile.z + 1u), 0u, 0u); }
  let own = workgroupUniformLoad(&found);
  product(Part(0u, p.J, tile.y * BM, p.J, 0u, p.Q, tile.x * BN, p.Q, tile.z * p.J * p.Q, p.Q, own.x, own.y), t);
}

// As matmul.wgsl, but each expert's rows meet its own matrix. A workgroup makes a BM x BN tile; of nt and nn the tiles of all
// experts stand in one list, and a workgroup finds its expert from `offsets`: ceil(M, BM) + E tiles are always enough.
const AM = BM / 4u;
const BN4 = BN / 4u;
const BK4 = BK / 4u;
const TX = BN4 / RN;
const TY = AM / RM;
var<workgroup> sa: array<vec4<f32>, BK * AM>;
var<workgroup> sb: array<vec4<f32>, BK * BN4>;

// out[i, j] for i0 <= i < I, j0 <= j < J is Σ over q0 <= q < Q; operands and out begin at these elements, rows these apart.
struct Part { i0: u32, I: u32, j0: u32, J: u32, q0: u32, Q: u32, a: u32, ld_a: u32, b: u32, ld_b: u32, out: u32, ld_out: u32 }

// Elements from `at` to `end`, none at or past it.
fn rest(at: u32, end: u32) -> u32 { return select(0u, end - at, at < end); }

// a[i, q]: 4x4 blocks, turned in registers
fn stage_a_rows(t: u32, g: Part, q0: u32) {
  for (var b = t; b < AM * BK4; b += THREADS) {
    let q = q0 + 4u * (b % BK4);
    let i = g.i0 + 4u * (b / BK4);
    let n = rest(q, g.Q);
#for r 0 4
    let v$r = ld4_a(g.a + (i + $r) * g.ld_a + q, select(0u, n, i + $r < g.I));
#end
    let at = 4u * (b % BK4) * AM + b / BK4;
    sa[at] = vec4(v0.x, v1.x, v2.x, v3.x);
    sa[at + AM] = vec4(v0.y, v1.y, v2.y, v3.y);
    sa[at + 2u * AM] = vec4(v0.z, v1.z, v2.z, v3.z);
    sa[at + 3u * AM] = vec4(v0.w, v1.w, v2.w, v3.w);
  }
}
// b[j, q]
fn stage_b_rows(t: u32, g: Part, q0: u32) {
  for (var b = t; b < BN4 * BK4; b += THREADS) {
    let q = q0 + 4u * (b % BK4);
    let j = g.j0 + 4u * (b / BK4);
    let n = rest(q, g.Q);
#for r 0 4
    let v$r = ld4_b(g.b + (j + $r) * g.ld_b + q, select(0u, n, j + $r < g.J));
#end
    let at = 4u * (b % BK4) * BN4 + b / BK4;
    sb[at] = vec4(v0.x, v1.x, v2.x, v3.x);
    sb[at + BN4] = vec4(v0.y, v1.y, v2.y, v3.y);
    sb[at + 2u * BN4] = vec4(v0.z, v1.z, v2.z, v3.z);
    sb[at + 3u * BN4] = vec4(v0.w, v1.w, v2.w, v3.w);
  }
}
// a[q, i]
fn stage_a_columns(t: u32, g: Part, q0: u32) {
  for (var b = t; b < BK * AM; b += THREADS) {
    let q = q0 + b / AM;
    let i = g.i0 + 4u * (b % AM);
    sa[b] = ld4_a(g.a + q * g.ld_a + i, select(0u, rest(i, g.I), q < g.Q));
  }
}
// b[q, j]
fn stage_b_columns(t: u32, g: Part, q0: u32) {
  for (var b = t; b < BK * BN4; b += THREADS) {
    let q = q0 + b / BN4;
    let j = g.j0 + 4u * (b % BN4);
    sb[b] = ld4_b(g.b + q * g.ld_b + j, select(0u, rest(j, g.J), q < g.Q));
  }
}

fn store(g: Part, i: u32, j: u32, sum: vec4<f32>) {
  if (i >= g.I || j >= g.J) { return; }
  let at = g.out + i * g.ld_out + j;
  var v = sum * p.alpha;
  if (ADD) { v += ld4_out(at, g.J - j); }
  st4_out(at, v, g.J - j);
}

fn product(g: Part, t: u32) {
  let tx = t % TX;
  let ty = t / TX;
#for i 0 RM
#for j 0 RN
#for r 0 4
  var c$i$j$r = vec4<f32>();
#end
#end
#end
  for (var q = g.q0; q < g.Q; q += BK) {
    if (A_ROWS) { stage_a_rows(t, g, q); } else { stage_a_columns(t, g, q); }
    // turned by half a workgroup: with few blocks to load, b's are other threads' than a's
    if (B_ROWS) { stage_b_rows((t + THREADS / 2u) % THREADS, g, q); } else { stage_b_columns(t, g, q); }
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
  store(g, g.i0 + 4u * ($i * TY + ty) + $r, g.j0 + 4u * ($j * TX + tx), c$i$j$r);
#end
#end
#end
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
  product(Part(own.y, own.z, tile.x * BN, p.J, 0u, p.Q, 0u, p.Q, b, select(p.J, p.Q, B_ROWS), 0u, p.J), t);
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
  product(Part(tile.y * BM, p.J, tile.x * BN, p.Q, own.x, own.y, 0u, p.J, 0u, p.Q, tile.z * p.J * p.Q, p.Q), t);
}

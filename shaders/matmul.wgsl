// A workgroup makes a BM x BN tile of out; a thread RM x RN blocks of 4x4 in it. The operands pass through workgroup memory in
// steps of BK along Q, both laid out [q][row or column], four to a vec4; what lies outside the matrices counts as 0.
// SPLIT: workgroups in z take `part` of Q each and leave their sums in scratch; the stage `join` adds them in order.
const AM = BM / 4u;
const BN4 = BN / 4u;
const BK4 = BK / 4u;
const TX = BN4 / RN;
const TY = AM / RM;
// a vec4 more from one q to the next keeps turned blocks off each other's banks
const LA = AM + 1u;
const LB = BN4 + 1u;
var<workgroup> sa: array<vec4<f32>, BK * LA>;
var<workgroup> sb: array<vec4<f32>, BK * LB>;

// Elements from `at` to `end`, none at or past it.
fn rest(at: u32, end: u32) -> u32 { return select(0u, end - at, at < end); }

// What a thread brings from memory at a time: 4 x 4 elements, along Q and along the rows of the tile or its columns.
alias Block = array<vec4<f32>, 4>;
const BLOCKS_A = AM * BK4;
const BLOCKS = (AM + BN4) * BK4;
fn turned(v: Block) -> Block {
  return Block(
    vec4(v[0].x, v[1].x, v[2].x, v[3].x), vec4(v[0].y, v[1].y, v[2].y, v[3].y),
    vec4(v[0].z, v[1].z, v[2].z, v[3].z), vec4(v[0].w, v[1].w, v[2].w, v[3].w),
  );
}
// a[i, q], four of a row at a time, so that neighbours in a row are loaded by neighbours; or a[q, i]. The same of b.
fn read_a(n: u32, i0: u32, q0: u32, end: u32) -> Block {
  if (A_ROWS) {
    let q = q0 + 4u * (n % BK4);
    let i = i0 + 4u * (n / BK4);
    let some = rest(q, end);
#for r 0 4
    let v$r = ld4_a((i + $r) * p.ld_a + q, select(0u, some, i + $r < p.I));
#end
    return Block(v0, v1, v2, v3);
  }
  let q = q0 + 4u * (n / AM);
  let i = i0 + 4u * (n % AM);
  let some = rest(i, p.I);
#for r 0 4
  let v$r = ld4_a((q + $r) * p.ld_a + i, select(0u, some, q + $r < end));
#end
  return Block(v0, v1, v2, v3);
}
fn read_b(n: u32, j0: u32, q0: u32, end: u32) -> Block {
  if (B_ROWS) {
    let q = q0 + 4u * (n % BK4);
    let j = j0 + 4u * (n / BK4);
    let some = rest(q, end);
#for r 0 4
    let v$r = ld4_b((j + $r) * p.ld_b + q, select(0u, some, j + $r < p.J));
#end
    return Block(v0, v1, v2, v3);
  }
  let q = q0 + 4u * (n / BN4);
  let j = j0 + 4u * (n % BN4);
  let some = rest(j, p.J);
#for r 0 4
  let v$r = ld4_b((q + $r) * p.ld_b + j, select(0u, some, q + $r < end));
#end
  return Block(v0, v1, v2, v3);
}
// Block n of a step, those of a first.
fn read(n: u32, i0: u32, j0: u32, q0: u32, end: u32) -> Block {
  if (n < BLOCKS_A) { return read_a(n, i0, q0, end); }
  if (n < BLOCKS) { return read_b(n - BLOCKS_A, j0, q0, end); }
  return Block();
}
fn stage(n: u32, block: Block) {
  if (n < BLOCKS_A) {
    let at = select(4u * (n / AM) * LA + n % AM, 4u * (n % BK4) * LA + n / BK4, A_ROWS);
    var v = block;
    if (A_ROWS) { v = turned(block); }
#for r 0 4
    sa[at + $ru * LA] = v[$r];
#end
  } else if (n < BLOCKS) {
    let m = n - BLOCKS_A;
    let at = select(4u * (m / BN4) * LB + m % BN4, 4u * (m % BK4) * LB + m / BK4, B_ROWS);
    var v = block;
    if (B_ROWS) { v = turned(block); }
#for r 0 4
    sb[at + $ru * LB] = v[$r];
#end
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
#for n 0 ceil((BM/4+BN/4)*(BK/4),THREADS)
  var v$n = read(t + $nu * THREADS, i0, j0, first, end);
#end
  for (var q = first; q < end; q += BK) {
#for n 0 ceil((BM/4+BN/4)*(BK/4),THREADS)
    stage(t + $nu * THREADS, v$n);
#end
    workgroupBarrier();
    // the next step's loads run behind this one's products; past the end they bring zeros
#for n 0 ceil((BM/4+BN/4)*(BK/4),THREADS)
    v$n = read(t + $nu * THREADS, i0, j0, q + BK, end);
#end
    for (var k = 0u; k < BK; k += UNROLL) {
#for u 0 UNROLL
      {
#for j 0 RN
        let b$j = sb[(k + $u) * LB + $j * TX + tx];
#end
#for i 0 RM
        let a$i = sa[(k + $u) * LA + $i * TY + ty];
#for j 0 RN
#for r 0 4
        c$i$j$r = fma(vec4(a$i[$r]), b$j, c$i$j$r);
#end
#end
#end
      }
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

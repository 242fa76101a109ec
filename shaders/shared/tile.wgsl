// Products by tiles: a workgroup makes a BM x BN tile of out; a thread RM x RN blocks of 4x4 in it. The operands pass through
// workgroup memory in steps of BK along Q, both laid out [q][row or column], four to a vec4. A file that includes this says where
// sums go, `store(g, i, j, sum)`, and for each op whether a is a[i, q] (A_ROWS) or a[q, i], and b b[j, q] (B_ROWS) or b[q, j].
const SIDE_A = BM / 4u;
const SIDE_B = BN / 4u;
const BK4 = BK / 4u;
const TX = SIDE_B / RN;
const TY = SIDE_A / RM;
// From four q to the next four: a few vec4s more than they take keep blocks that are stored turned off each other's banks.
const GROUP_A = 4u * SIDE_A + 8u / BK4;
const GROUP_B = 4u * SIDE_B + 8u / BK4;
var<workgroup> staged_a: array<vec4<f32>, BK4 * GROUP_A>;
var<workgroup> staged_b: array<vec4<f32>, BK4 * GROUP_B>;

// out[i, j] is Σ over q0 <= q < Q for the tile that begins at first_a, first_b, as far as i < end_a, j < end_b. Operands and out begin
// at the elements a, b, out; their rows are ld_ apart.
struct Part {
  a: u32, ld_a: u32, first_a: u32, end_a: u32,
  b: u32, ld_b: u32, first_b: u32, end_b: u32,
  out: u32, ld_out: u32, q0: u32, Q: u32,
}

// Elements from `at` to `end`, none at or past it.
fn rest(at: u32, end: u32) -> u32 { return select(0u, end - at, at < end); }

// What a thread brings from memory at a time: 4 x 4 elements, along Q and along the rows of the tile or its columns.
alias Block = array<vec4<f32>, 4>;
fn turned(v: Block) -> Block {
  return Block(
    vec4(v[0].x, v[1].x, v[2].x, v[3].x), vec4(v[0].y, v[1].y, v[2].y, v[3].y),
    vec4(v[0].z, v[1].z, v[2].z, v[3].z), vec4(v[0].w, v[1].w, v[2].w, v[3].w),
  );
}
#part operand x X
const BLOCKS_$X = SIDE_$X * BK4;
// whether there are threads that bring nothing
const SPARE_$X = BLOCKS_$X % THREADS > 0u;
// Block n of a step, of four q and four of the tile's rows or columns. Unless the step is `whole`, there are zeros from Q on. What
// lies past the end of the other side is anything, for nobody stores its sums; rows past the last one are that one again.
fn read_$x(g: Part, n: u32, q0: u32, whole: bool) -> Block {
  if (SPARE_$X && n >= BLOCKS_$X) { return Block(); }
  if ($X_ROWS) {
    let q = q0 + 4u * (n % BK4);
    let i = g.first_$x + 4u * (n / BK4);
    let some = select(rest(q, g.Q), 4u, whole);
#for r 0 4
    let v$r = ld4_$x(g.$x + min(i + $r, g.end_$x - 1u) * g.ld_$x + q, some);
#end
    return Block(v0, v1, v2, v3);
  }
  let q = q0 + 4u * (n / SIDE_$X);
  let i = min(g.first_$x + 4u * (n % SIDE_$X), (g.end_$x - 1u) / 4u * 4u);
#for r 0 4
  let v$r = ld4_$x(g.$x + (q + $r) * g.ld_$x + i, select(0u, 4u, whole || q + $r < g.Q));
#end
  return Block(v0, v1, v2, v3);
}
fn stage_$x(n: u32, block: Block) {
  if (SPARE_$X && n >= BLOCKS_$X) { return; }
  var v = block;
  var at = n / SIDE_$X * GROUP_$X + n % SIDE_$X;
  if ($X_ROWS) {
    v = turned(block);
    at = n % BK4 * GROUP_$X + n / BK4;
  }
#for r 0 4
  staged_$x[at + $ru * SIDE_$X] = v[$r];
#end
}
#end
#use operand a A
#use operand b B

// Every thread's blocks of a step.
#part declare
#for n 0 ceil(BM/4*(BK/4),THREADS)
  var a$n: Block;
#end
#for n 0 ceil(BN/4*(BK/4),THREADS)
  var b$n: Block;
#end
#end
#part read q whole
#for n 0 ceil(BM/4*(BK/4),THREADS)
    a$n = read_a(g, t + $nu * THREADS, $q, $whole);
#end
#for n 0 ceil(BN/4*(BK/4),THREADS)
    b$n = read_b(g, s + $nu * THREADS, $q, $whole);
#end
#end
#part stage
#for n 0 ceil(BM/4*(BK/4),THREADS)
    stage_a(t + $nu * THREADS, a$n);
#end
#for n 0 ceil(BN/4*(BK/4),THREADS)
    stage_b(s + $nu * THREADS, b$n);
#end
    workgroupBarrier();
#end
// One q, the one at `four`·4 + u of the step.
#part add four u
      {
#for j 0 RN
        let y$j = staged_b[($four) * GROUP_B + $uu * SIDE_B + $j * TX + tx];
#end
#for i 0 RM
        let x$i = staged_a[($four) * GROUP_A + $uu * SIDE_A + $i * TY + ty];
#end
#for i 0 RM
#for r 0 4
#for j 0 RN
        c$i$j$r = fma(vec4(x$i[$r]), y$j, c$i$j$r);
#end
#end
#end
      }
#end

fn product(g: Part, t: u32) {
  // with few blocks to bring, b's are other threads' than a's
  let s = (t + THREADS / 2u) % THREADS;
  // 32 threads have 8 x 4 of the tile's places: what they read of each operand lies together
  let tx = t % 8u + 8u * (t / 32u % (TX / 8u));
  let ty = t / 8u % 4u + 4u * (t / (4u * TX));
#for i 0 RM
#for j 0 RN
#for r 0 4
  var c$i$j$r = vec4<f32>();
#end
#end
#end
#use declare
  let whole = g.q0 + (g.Q - g.q0) / BK * BK;
  if (g.q0 < whole) {
#use read g.q0 true
  }
  for (var q = g.q0; q < whole; q += BK) {
#use stage
    // the next step's loads run behind this one's products; after the last one, nobody looks
    let next = select(q, q + BK, q + BK < whole);
#use read next true
    for (var k = 0u; k < BK4; k += UNROLL4) {
#for k 0 UNROLL4
#for u 0 4
#use add k+$ku $u
#end
#end
    }
    workgroupBarrier();
  }
  if (whole < g.Q) {
#use read whole false
#use stage
    for (var k = 0u; k < g.Q - whole; k++) {
#use add k/4u k%4
    }
  }
#for i 0 RM
#for j 0 RN
#for r 0 4
  store(g, g.first_a + 4u * ($i * TY + ty) + $r, g.first_b + 4u * ($j * TX + tx), c$i$j$r);
#end
#end
#end
}

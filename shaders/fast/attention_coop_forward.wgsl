
// The forward of attention.wgsl behind attention_coop.wgsl: rows are queries, columns keys.
//   lse   the log-sum-exp of a row, in a walk of its own, so that no sum of the next one has to be rescaled
//   out   the sums of v weighted by probabilities

// op attention_coop__lse grid(ceil(N, G*S), H)
var<workgroup> first: array<vec4<f16>, STAGED>;
var<workgroup> ss: array<vec4<f32>, SUBGROUPS * S * LD>;
var<workgroup> stats: array<vec2<f32>, THREADS>;
@compute @workgroup_size(THREADS)
fn attention_coop__lse(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32, @builtin(subgroup_id) subgroup: u32,
  @builtin(subgroup_invocation_id) lane: u32, @builtin(subgroup_size) size: u32,
) {
#use rows
  let q_at = place(0u, group.y, row0);
  let k_at = place(1u, group.y / (p.H / p.K), 0u);
  let own = seen(row0 + row, false);
  var top = LOWEST;
  var sum = 0.0;
#use own q q_at
  let all = union_of(t, group.x * OWN, false);
#use hold f
#use fetch f k_at+all.x*DIM
  for (var col0 = all.x; col0 < all.y; col0 += COLS) {
    workgroupBarrier();
#use stage f first
    workgroupBarrier();
    // past the last block, where nobody looks, the last one again
    let next = k_at + select(col0, col0 + COLS, col0 + COLS < all.y) * DIM;
#use fetch f next
#use products s q first
    var most = top;
#for i 0 WIDE
    var z_$i = vec4(HIDDEN);
    if ($iu < width) {
      let j = col + $iu;
      z_$i = select(z_$i, score(ss[mine + row * LD + j], up), sees(own, col0 + 4u * j));
    }
    most = max(most, top4(z_$i));
#end
    sum *= exp(top - most);
    top = most;
#for i 0 WIDE
    sum += dot(exp(z_$i - most), vec4(1.0));
#end
  }
  stats[subgroup * lanes + lane] = vec2(top, sum);
  workgroupBarrier();
  let line = subgroup * lanes + row;
  top = LOWEST;
  sum = 0.0;
  for (var i = 0u; i < lanes / S; i++) { top = max(top, stats[line + i * S].x); }
  for (var i = 0u; i < lanes / S; i++) { sum += stats[line + i * S].y * exp(stats[line + i * S].x - top); }
  var infinity = 0x7f800000u;
  let lse = select(-bitcast<f32>(infinity), top + log(sum), sum > 0.0);
  let n = row0 + row;
  if (n < p.N && lane < S && subgroup < G) { st1_lse(n * p.H + group.y, lse); }
}

// op attention_coop__out grid(blocks, heads)
var<workgroup> first: array<vec4<f16>, STAGED>;
var<workgroup> second: array<vec4<f16>, STAGED>;
var<workgroup> ss: array<vec4<f32>, SUBGROUPS * S * LD>;
var<workgroup> ps: array<vec4<f16>, SUBGROUPS * S * LH>;
@compute @workgroup_size(THREADS)
fn attention_coop__out(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32, @builtin(subgroup_id) subgroup: u32,
  @builtin(subgroup_invocation_id) lane: u32, @builtin(subgroup_size) size: u32,
) {
#use rows
  let q_at = place(0u, group.y, row0);
  let own = seen(row0 + row, false);
  let lse = vec4(ld1_lse(min(row0 + row, p.N - 1u) * p.H + group.y));
  let all = union_of(t, group.x * OWN, false);
#use own q q_at
#use sums
  let hd = group.y / (p.H / p.K);
  let k_at = place(1u, hd, 0u);
  let v_at = place(2u, hd, 0u);
#use hold f
#use hold g
#use fetch f k_at+all.x*DIM
#use fetch g v_at+all.x*DIM
  for (var col0 = all.x; col0 < all.y; col0 += COLS) {
    workgroupBarrier();
#use stage f first
#use stage g second
    workgroupBarrier();
    let next = select(col0, col0 + COLS, col0 + COLS < all.y) * DIM;
#use fetch f k_at+next
#use fetch g v_at+next
#use products s q first
#for i 0 WIDE
    if ($iu < width) {
      let j = col + $iu;
      let prob = exp(score(ss[mine + row * LD + j], up) - lse) * 16384.0;
      ps[half + row * LH + j] = vec4<f16>(select(vec4<f32>(), prob, sees(own, col0 + 4u * j)));
    }
#end
#use weigh second
  }
#use finish
}
fn store(row: u32, hd: u32, d: u32, sum: vec4<f32>) {
  if (row < p.N) { st4_out((row * p.H + hd) * p.D + d, scaled(sum, exponent(2u) - 14), 4u); }
}


// The backward of attention.wgsl behind attention_coop.wgsl.
//   dv    rows are keys, columns queries: the sums of dout weighted by probabilities
//   dot   of a query's out and dout
//   grad  the sums weighted by the gradients of scores: dk, and in another pass, whose rows are queries, dq

// op attention_coop__dv grid(blocks, heads)
var<workgroup> first: array<vec4<f16>, STAGED>;
var<workgroup> second: array<vec4<f16>, STAGED>;
var<workgroup> ss: array<vec4<f32>, SUBGROUPS * S * LD>;
var<workgroup> ps: array<vec4<f16>, SUBGROUPS * S * LH>;
var<workgroup> column_lse: array<vec4<f32>, COLS / 4u>;
fn lse4(n: u32, hd: u32) -> vec4<f32> {
  let last = p.N - 1u;
  return vec4(
    ld1_lse(min(n, last) * p.H + hd), ld1_lse(min(n + 1u, last) * p.H + hd),
    ld1_lse(min(n + 2u, last) * p.H + hd), ld1_lse(min(n + 3u, last) * p.H + hd),
  );
}
@compute @workgroup_size(THREADS)
fn attention_coop__dv(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32, @builtin(subgroup_id) subgroup: u32,
  @builtin(subgroup_invocation_id) lane: u32, @builtin(subgroup_size) size: u32,
) {
#use rows
  let k_at = place(1u, group.y, row0);
  let turns = p.H / p.K;
  let own = seen(row0 + row, true);
  let all = union_of(t, group.x * OWN, true);
#use own k k_at
#use sums
  for (var turn = 0u; turn < turns; turn++) {
    let hd = group.y * turns + turn;
    let q_at = place(0u, hd, 0u);
    let dout_at = place(3u, hd, 0u);
#use hold f
#use hold g
#use fetch f q_at+all.x*DIM
#use fetch g dout_at+all.x*DIM
    for (var col0 = all.x; col0 < all.y; col0 += COLS) {
    workgroupBarrier();
#use stage f first
#use stage g second
    if (t < COLS / 4u) { column_lse[t] = lse4(col0 + 4u * t, hd); }
    workgroupBarrier();
    let next = select(col0, col0 + COLS, col0 + COLS < all.y) * DIM;
#use fetch f q_at+next
#use fetch g dout_at+next
#use products s k first
#for i 0 WIDE
    if ($iu < width) {
      let j = col + $iu;
      let prob = exp(score(ss[mine + row * LD + j], up) - column_lse[j]) * 16384.0;
      ps[half + row * LH + j] = vec4<f16>(select(vec4<f32>(), prob, sees(own, col0 + 4u * j)));
    }
#end
#use weigh second
    }
  }
#use finish
}
fn store(row: u32, hd: u32, d: u32, sum: vec4<f32>) {
  if (row < p.T) { st4_dv(row * p.ld_v + hd * p.D + d, scaled(sum, exponent(3u) - 14), 4u); }
}

// op attention_coop__dot grid(ceil(N*H, 16))
// 16 threads a row
var<workgroup> part: array<f32, 256>;
@compute @workgroup_size(256)
fn attention_coop__dot(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let row = flat(group) * 16u + t / 16u;
  var sum = 0.0;
  if (row < p.N * p.H) {
    for (var d = t % 16u * 4u; d < p.D; d += 64u) { sum += dot(ld4_dout(row * p.D + d, 4u), ld4_out(row * p.D + d, 4u)); }
  }
  part[t] = sum;
  workgroupBarrier();
  if (t % 16u > 0u || row >= p.N * p.H) { return; }
  for (var i = 1u; i < 16u; i++) { sum += part[t + i]; }
  st1_dot(row, sum);
}

// op attention_coop__grad grid(blocks, heads)
// The first factor of a score's gradient is q·k, the second dout·v; both pass through the same memory, one after the other.
var<workgroup> first: array<vec4<f16>, STAGED>;
var<workgroup> second: array<vec4<f16>, STAGED>;
var<workgroup> ss: array<vec4<f32>, SUBGROUPS * S * LD>;
var<workgroup> ps: array<vec4<f16>, SUBGROUPS * S * LH>;
var<workgroup> column_lse: array<vec4<f32>, COLS / 4u>;
var<workgroup> column_dot: array<vec4<f32>, COLS / 4u>;
// lse and dot of a query, the latter in the units of products of packed dout and v.
fn stats(n: u32, hd: u32) -> vec2<f32> {
  let at = min(n, p.N - 1u) * p.H + hd;
  let down = halves(-(exponent(2u) + exponent(3u)));
  return vec2(ld1_lse(at), ld1_dot(at) * down.x * down.y);
}

@compute @workgroup_size(THREADS)
fn attention_coop__grad(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32, @builtin(subgroup_id) subgroup: u32,
  @builtin(subgroup_invocation_id) lane: u32, @builtin(subgroup_size) size: u32,
) {
#use rows
  let keys = p.keys == 1u;
  let per_kv = p.H / p.K;
  let turns = select(1u, per_kv, keys);
  let a_at = place(select(0u, 1u, keys), group.y, row0);
  let b_at = place(select(3u, 2u, keys), group.y, row0);
  let own = seen(row0 + row, keys);
  let stat = stats(row0 + row, select(group.y, 0u, keys));
  let all = union_of(t, group.x * OWN, keys);
#use own a a_at
#use own b b_at
#use sums
  for (var turn = 0u; turn < turns; turn++) {
    let hd = select(group.y / per_kv, group.y * turns + turn, keys);
    let first_at = place(select(1u, 0u, keys), hd, 0u);
    let second_at = place(select(2u, 3u, keys), hd, 0u);
#use hold f
#use hold g
#use fetch f first_at+all.x*DIM
#use fetch g second_at+all.x*DIM
    for (var col0 = all.x; col0 < all.y; col0 += COLS) {
    workgroupBarrier();
#use stage f first
#use stage g second
    if (keys && t < COLS / 4u) {
#for i 0 4
      let stat_$i = stats(col0 + 4u * t + $iu, hd);
#end
      column_lse[t] = vec4(stat_0.x, stat_1.x, stat_2.x, stat_3.x);
      column_dot[t] = vec4(stat_0.y, stat_1.y, stat_2.y, stat_3.y);
    }
    workgroupBarrier();
    let next = select(col0, col0 + COLS, col0 + COLS < all.y) * DIM;
#use fetch f first_at+next
#use fetch g second_at+next
#use products s a first
#for i 0 WIDE
    var e_$i = vec4<f32>();
    if ($iu < width) {
      let j = col + $iu;
      let s = score(ss[mine + row * LD + j], up);
      e_$i = exp(s - select(vec4(stat.x), column_lse[j], vec4(keys))) * slope(s) * pow2(-UNIT);
    }
#end
    workgroupBarrier();
#use products x b second
#for i 0 WIDE
    if ($iu < width) {
      let j = col + $iu;
      let ds = e_$i * (ss[mine + row * LD + j] - select(vec4(stat.y), column_dot[j], vec4(keys)));
      ps[half + row * LH + j] = vec4<f16>(select(vec4<f32>(), ds, sees(own, col0 + 4u * j)));
    }
#end
#use weigh first
    }
  }
#use finish
}
fn store(row: u32, hd: u32, d: u32, sum: vec4<f32>) {
  let keys = p.keys == 1u;
  let e = UNIT + exponent(select(1u, 0u, keys)) + exponent(2u) + exponent(3u);
  let v = p.scale * scaled(sum, e);
  if (keys) {
    if (row < p.T) { st4_dk(row * p.ld_k + hd * p.D + d, v, 4u); }
  } else if (row < p.N) {
    st4_dq(row * p.ld_q + hd * p.D + d, v, 4u);
  }
}

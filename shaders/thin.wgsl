// A workgroup of 64 threads makes one output of up to 8 rows of inp; a thread takes every 64th word of 8 values of the weight's row.
const LEVELS = array<f32, 16>(
  -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
  -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
  0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
  0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
);
var<workgroup> levels: array<f32, 16>;
var<workgroup> sums: array<vec4<f32>, 128>;

// The sums over all threads, of the two vec4 of each one's own.
fn finish(t: u32, a: vec4<f32>, b: vec4<f32>) {
  sums[2u * t] = a;
  sums[2u * t + 1u] = b;
  workgroupBarrier();
  for (var half = 32u; half > 0u; half >>= 1u) {
    if (t < half) {
      sums[2u * t] += sums[2u * (t + half)];
      sums[2u * t + 1u] += sums[2u * (t + half) + 1u];
    }
    workgroupBarrier();
  }
}
fn total(k: u32) -> f32 { return sums[k / 4u][k % 4u]; }
fn x(n: u32, c: u32) -> f32 { return ld1_inp(min(n, p.N - 1u) * p.C + c); }
// A section says what value i of the weight is, up to what is the same in all of row o, and that: `weight`, `whole`.
// The outputs of two neighbouring rows of a 16-bit weight share a word: a workgroup makes both, one after the other.
fn row_pair(group: vec3<u32>, t: u32) {
  let n0 = group.y * 8u;
  var pair = vec2<f32>();
  for (var r = 0u; r < 2u; r++) {
    let o = group.x * 2u + r;
    var a = vec4<f32>();
    var b = vec4<f32>();
    workgroupBarrier();
    if (o < p.O) {
      for (var c = t; c < p.C; c += 64u) {
        let w = weight((p.first + o) * p.C + c);
        a += w * vec4(x(n0, c), x(n0 + 1u, c), x(n0 + 2u, c), x(n0 + 3u, c));
        b += w * vec4(x(n0 + 4u, c), x(n0 + 5u, c), x(n0 + 6u, c), x(n0 + 7u, c));
      }
    }
    finish(t, a, b);
    if (t < 8u && o < p.O) { pair[r] = whole(o, total(t)); }
  }
  if (t < 8u && n0 + t < p.N) { st2_out((n0 + t) * p.O + group.x * 2u, pair, p.O - group.x * 2u); }
}
fn fill_levels(t: u32) {
  if (t < 16u) {
    var table = LEVELS;
    levels[t] = table[t];
  }
}

// op thin_nf4 grid(ceil(O, 2), ceil(N, 8))
fn weight(i: u32) -> f32 {
  let byte = ld_codes(i / 2u);
  return levels[select(byte & 15u, byte >> 4u, i % 2u == 0u)] * ld1_absmax(i / 64u);
}
fn whole(o: u32, sum: f32) -> f32 { return sum; }
@compute @workgroup_size(64)
fn thin_nf4(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  fill_levels(t);
  row_pair(group, t);
}

// op thin_nf4_double grid(ceil(O, 2), ceil(N, 8))
fn weight(i: u32) -> f32 {
  let byte = ld_codes(i / 2u);
  let block = i / 64u;
  let absmax = ld1_map(ld_qabsmax(block)) * ld1_nested(block / 256u) + p.offset;
  return levels[select(byte & 15u, byte >> 4u, i % 2u == 0u)] * absmax;
}
fn whole(o: u32, sum: f32) -> f32 { return sum; }
@compute @workgroup_size(64)
fn thin_nf4_double(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  fill_levels(t);
  row_pair(group, t);
}

// op thin_int8 grid(ceil(O, 2), ceil(N, 8))
fn weight(i: u32) -> f32 { return f32(bitcast<i32>(ld_codes(i) << 24u) >> 24u); }
fn whole(o: u32, sum: f32) -> f32 { return sum * ld1_scb(p.first + o) / 127.0; }
@compute @workgroup_size(64)
fn thin_int8(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  row_pair(group, t);
}

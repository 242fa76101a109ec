
// The index of a workgroup of a one-dimensional grid: grids wider than 65,535 are folded into y.
fn flat(group: vec3<u32>) -> u32 { return group.x + group.y * 65535u; }
fn ceil_div(a: u32, b: u32) -> u32 { return (a + b - 1u) / b; }

// The first word of pcg3d, Jarzynski & Olano 2020.
fn random(i: u32, seed: u32, stream: u32) -> u32 {
  var v = vec3(i, seed, stream) * 1664525u + 1013904223u;
  v.x += v.y * v.z;
  v.y += v.z * v.x;
  v.z += v.x * v.y;
  v ^= v >> vec3(16u);
  return v.x + v.y * v.z;
}

// A weight as it is stored: where chance is 1, rounded to bf16 up or down so that its mean is x (src/ops/adamw.rs).
fn by_chance(x: f32, chance: u32, i: u32, seed: u32, stream: u32) -> f32 {
  let bits = bitcast<u32>(x);
  if (chance == 0u || (bits & 0x7f800000u) == 0x7f800000u) { return x; }
  // two weights share a word
  let word = random(i / 2u, seed, stream) << (16u * (i & 1u));
  return bitcast<f32>((bits + (word >> 16u)) & 0xffff0000u);
}

// cap·tanh(x/cap), or x where cap is 0. By hand: tanh of large values is NaN on some drivers, and 1 - exp loses small ones.
fn softcap(x: f32, cap: f32) -> f32 {
  if (cap == 0.0) { return x; }
  let a = abs(x / cap);
  let e = exp(-2.0 * a);
  let small = a * (1.0 - a * a * (1.0 / 3.0 - a * a * (2.0 / 15.0 - a * a * (17.0 / 315.0))));
  return cap * sign(x) * select((1.0 - e) / (1.0 + e), small, a < 0.2);
}

// Φ(x), the normal distribution function, to 3e-7 of itself; the constants are those of src/dtype.rs.
fn normal_cdf(x: V) -> V {
  let t = 1.0 / (1.0 + 0.3 * abs(x));
  let low = 0.1196293 + t * (0.12075393 + t * (0.09991366 + t * 0.12856115));
  let high = -0.053682942 + t * (0.20635296 + t * (-0.15720291 + t * 0.035674773));
  let tail = t * (low + t * t * t * t * high) * exp(-0.5 * x * x);
  return select(1.0 - tail, tail, x < V());
}

// Of an activation act(x) = x·s(x): s and act′. `act` is a constant of src/ops/activation.rs.
struct Gate { s: V, slope: V }
fn gating(x: V, act: u32, slope: f32, cubic: f32) -> Gate {
  let step = select(V(), V() + 1.0, x > V());
  switch act {
    case 1u: {
      let s = normal_cdf(x);
      return Gate(s, s + x * exp(-0.5 * x * x) * 0.3989423);
    }
    case 2u: { return Gate(step, step); }
    case 3u: { return Gate(step * x, 2.0 * step * x); }
    default: {
      let bow = cubic * x * x;
      let s = 1.0 / (1.0 + exp(-x * (slope + bow)));
      return Gate(s, s * (1.0 + x * (1.0 - s) * (slope + 3.0 * bow)));
    }
  }
}

// The first `rest` of four values, then zeros.
fn first4(v: vec4<f32>, rest: u32) -> vec4<f32> { return select(vec4<f32>(), v, vec4(rest) > vec4(0u, 1u, 2u, 3u)); }

// The same of four 16-bit values as they are stored.
fn pair(w: u32, rest: u32) -> u32 { return select(select(0u, w & 0xffffu, rest > 0u), w, rest > 1u); }
fn first4_packed(h: vec2<u32>, rest: u32) -> vec2<u32> { return vec2(pair(h.x, rest), pair(h.y, max(rest, 2u) - 2u)); }
// The first `rest` of four, and the others from `old`.
fn pair_of(w: u32, old: u32, rest: u32) -> u32 {
  return select(select(old, (old & 0xffff0000u) | (w & 0xffffu), rest > 0u), w, rest > 1u);
}
fn first4_of(h: vec2<u32>, old: vec2<u32>, rest: u32) -> vec2<u32> {
  return vec2(pair_of(h.x, old.x, rest), pair_of(h.y, old.y, max(rest, 2u) - 2u));
}

fn unpack_bf16(w: u32) -> vec2<f32> { return vec2(bitcast<f32>(w << 16u), bitcast<f32>(w & 0xffff0000u)); }

// To nearest, ties to even; a NaN stays one.
fn bf16_bits(x: f32) -> u32 {
  let u = bitcast<u32>(x);
  let rounded = (u + 0x7fffu + ((u >> 16u) & 1u)) >> 16u;
  return select(rounded, (u >> 16u) | 64u, (u & 0x7fffffffu) > 0x7f800000u);
}
fn pack_bf16(v: vec2<f32>) -> u32 { return bf16_bits(v.x) | (bf16_bits(v.y) << 16u); }

// The same for f16, by hand: pack2x16float may round either way, and says nothing about values beyond 65504.
fn f16_bits(x: f32) -> u32 {
  let u = bitcast<u32>(x);
  let a = u & 0x7fffffffu;
  let normal = (a + 0xc8000fffu + ((a >> 13u) & 1u)) >> 13u;
  // adding 0.5 brings the last place of a subnormal f16 to the last place of the sum
  let small = bitcast<u32>(bitcast<f32>(a) + 0.5) - 0x3f000000u;
  var h = select(normal, small, a < 0x38800000u);
  h = select(h, 0x7c00u, a >= 0x477ff000u);
  h = select(h, 0x7e00u, a > 0x7f800000u);
  return h | ((u >> 16u) & 0x8000u);
}
fn pack_f16(v: vec2<f32>) -> u32 { return f16_bits(v.x) | (f16_bits(v.y) << 16u); }

// Sums and maxima over a workgroup of 256 threads; every thread gets the result. Always the same tree: the same bits each run.
var<workgroup> tree: array<f32, 256>;
fn group_sum(t: u32, x: f32) -> f32 {
  workgroupBarrier();
  tree[t] = x;
  workgroupBarrier();
  for (var half = 128u; half > 0u; half >>= 1u) {
    if (t < half) { tree[t] += tree[t + half]; }
    workgroupBarrier();
  }
  return tree[0];
}
fn group_max(t: u32, x: f32) -> f32 {
  workgroupBarrier();
  tree[t] = x;
  workgroupBarrier();
  for (var half = 128u; half > 0u; half >>= 1u) {
    if (t < half) { tree[t] = max(tree[t], tree[t + half]); }
    workgroupBarrier();
  }
  return tree[0];
}

// A rising map of 256 levels, filled by whoever looks values up in it.
var<workgroup> level_map: array<f32, 256>;
// The nearest level's index; a tie goes down.
fn nearest(x: f32) -> u32 {
  var above = 0u; // levels below x, found bit by bit: 255 at most, and no matter
  for (var bit = 128u; bit > 0u; bit >>= 1u) { if (level_map[above + bit - 1u] < x) { above += bit; } }
  above = max(above, 1u);
  return select(above - 1u, above, x > (level_map[above - 1u] + level_map[above]) * 0.5);
}
// The same for what must not change its sign by rounding: the neighbour on its own side of zero where it would.
fn nearest_signed(x: f32) -> u32 {
  let code = nearest(x);
  if ((level_map[code] < 0.0) == (x < 0.0)) { return code; }
  return select(max(code, 1u) - 1u, code + 1u, x > 0.0);
}

// 2^e; e in -126 .. 127
fn pow2(e: i32) -> f32 { return bitcast<f32>(u32(e + 127) << 23u); }
// v·2^e, in two halves, because 2^e may lie outside f32 where the product does not
fn scaled(v: vec4<f32>, e: i32) -> vec4<f32> {
  let c = clamp(e, -252, 252);
  return v * pow2(c / 2) * pow2(c - c / 2);
}
// Largest finite |value|.
fn largest(v: vec4<f32>) -> f32 {
  let u = bitcast<vec4<u32>>(v) & vec4(0x7fffffffu);
  let f = select(vec4<u32>(), u, u < vec4(0x7f800000u));
  return bitcast<f32>(max(max(f.x, f.y), max(f.z, f.w)));
}
// e such that values of up to `most` times 2^-e are below 2^15; at least -127, where 2^-e is the largest power of two
fn f16_scale(most: f32) -> i32 { return max(i32(bitcast<u32>(most) >> 23u) - 127 - 14, -127); }

// What a code in e4m3 stands for (src/ops/fp8.rs).
fn e4m3_value(code: u32) -> f32 {
  let m = code & 0x7fu;
  let bits = select((m << 20u) + 0x3c000000u, 0x7fc00000u, m == 0x7fu);
  let x = select(bitcast<f32>(bits), f32(m) * 0.001953125, m < 8u);
  return select(x, -x, (code & 0x80u) != 0u);
}

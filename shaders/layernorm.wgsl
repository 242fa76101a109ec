// A workgroup per head: the row's H heads have their own statistics, and their own weights.

// op layernorm_forward grid(N*H)
@compute @workgroup_size(256)
fn layernorm_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let n = flat(group);
  if (n >= p.N * p.H) { return; }
  let row = n * p.C;
  let own = n % p.H * p.C;
  var sum = V();
  for (var c = t * W; c < p.C; c += 256u * W) { sum += mask(ld_inp(row + c), p.C - c); }
  let mean = group_sum(t, sumv(sum)) / f32(p.C);
  var square = V();
  for (var c = t * W; c < p.C; c += 256u * W) {
    let x = mask(ld_inp(row + c) - mean, p.C - c);
    square += x * x;
  }
  let r = 1.0 / sqrt(group_sum(t, sumv(square)) / f32(p.C) + p.eps);
  if (t == 0u) {
    st1_mean(n, mean);
    st1_rstd(n, r);
  }
  for (var c = t * W; c < p.C; c += 256u * W) {
    var y = (ld_inp(row + c) - mean) * r * ld_weight(own + c);
    if (has_bias) { y += ld_bias(own + c); }
    st_out(row + c, y, p.C - c);
  }
}

// op layernorm_backward grid(N*H)
@compute @workgroup_size(256)
fn layernorm_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let n = flat(group);
  if (n >= p.N * p.H) { return; }
  let row = n * p.C;
  let own = n % p.H * p.C;
  let mean = ld1_mean(n);
  let r = ld1_rstd(n);
  var sum = V();
  var product = V();
  for (var c = t * W; c < p.C; c += 256u * W) {
    let g = mask(ld_dout(row + c) * ld_weight(own + c), p.C - c);
    sum += g;
    product += mask(g * (ld_inp(row + c) - mean) * r, p.C - c);
  }
  let g_mean = group_sum(t, sumv(sum)) / f32(p.C);
  let dot = group_sum(t, sumv(product)) / f32(p.C);
  for (var c = t * W; c < p.C; c += 256u * W) {
    let g = ld_dout(row + c) * ld_weight(own + c);
    let x = (ld_inp(row + c) - mean) * r;
    st_dinp(row + c, ld_dinp(row + c) + r * (g - g_mean - x * dot), p.C - c);
  }
}

// op layernorm_backward_weight grid(ceil(H*C, 16*W))
// 16 columns (of W, all of one head) by 16 slices of rows; the slices are added in order.
var<workgroup> slices: array<V, 256>;

@compute @workgroup_size(256)
fn layernorm_backward_weight(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let row = p.H * p.C;
  let c = (flat(group) * 16u + t % 16u) * W;
  let h = c / p.C;
  var sum = V();
  if (c < row) {
    for (var n = t / 16u; n < p.N; n += 16u) {
      let i = n * p.H + h;
      sum += ld_dout(n * row + c) * (ld_inp(n * row + c) - ld1_mean(i)) * ld1_rstd(i);
    }
  }
  slices[t] = sum;
  workgroupBarrier();
  if (t >= 16u || c >= row) { return; }
  for (var s = 1u; s < 16u; s++) { sum += slices[s * 16u + t]; }
  st_dweight(c, ld_dweight(c) + sum, row - c);
}

// op rmsnorm_forward grid(N)
@compute @workgroup_size(256)
fn rmsnorm_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let n = flat(group);
  if (n >= p.N) { return; }
  let row = n * p.C;
  var sum = V();
  for (var c = t * W; c < p.C; c += 256u * W) {
    let x = mask(ld_inp(row + c), p.C - c);
    sum += x * x;
  }
  let r = 1.0 / sqrt(group_sum(t, sumv(sum)) / f32(p.C) + p.eps);
  if (t == 0u) { st1_rstd(n, r); }
  for (var c = t * W; c < p.C; c += 256u * W) {
    st_out(row + c, ld_inp(row + c) * r * (ld_weight(c) + p.shift), p.C - c);
  }
}

// op rmsnorm_residual_forward grid(N)
@compute @workgroup_size(256)
fn rmsnorm_residual_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let n = flat(group);
  if (n >= p.N) { return; }
  let row = n * p.C;
  var sum = V();
  for (var c = t * W; c < p.C; c += 256u * W) {
    st_sum(row + c, ld_a(row + c) + p.scale * ld_b(row + c), p.C - c);
    // as it is stored, so that the norm made again is the same
    let x = mask(ld_sum(row + c), p.C - c);
    sum += x * x;
  }
  let r = 1.0 / sqrt(group_sum(t, sumv(sum)) / f32(p.C) + p.eps);
  if (t == 0u) { st1_rstd(n, r); }
  for (var c = t * W; c < p.C; c += 256u * W) {
    st_out(row + c, ld_sum(row + c) * r * (ld_weight(c) + p.shift), p.C - c);
  }
}

// op rmsnorm_backward grid(N)
@compute @workgroup_size(256)
fn rmsnorm_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let n = flat(group);
  if (n >= p.N) { return; }
  let row = n * p.C;
  let r = ld1_rstd(n);
  var sum = V();
  for (var c = t * W; c < p.C; c += 256u * W) {
    sum += mask(ld_dout(row + c) * (ld_weight(c) + p.shift) * ld_inp(row + c), p.C - c);
  }
  let dot = group_sum(t, sumv(sum)) / f32(p.C);
  for (var c = t * W; c < p.C; c += 256u * W) {
    let g = ld_dout(row + c) * (ld_weight(c) + p.shift);
    st_dinp(row + c, ld_dinp(row + c) + r * (g - ld_inp(row + c) * r * r * dot), p.C - c);
  }
}

// op rmsnorm_backward_weight grid(ceil(C, 16*W))
// 16 columns (of W) by 16 slices of rows; the slices are added in order.
var<workgroup> slices: array<V, 256>;

@compute @workgroup_size(256)
fn rmsnorm_backward_weight(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let c = (flat(group) * 16u + t % 16u) * W;
  var sum = V();
  if (c < p.C) {
    for (var n = t / 16u; n < p.N; n += 16u) { sum += ld_dout(n * p.C + c) * ld_inp(n * p.C + c) * ld1_rstd(n); }
  }
  slices[t] = sum;
  workgroupBarrier();
  if (t >= 16u || c >= p.C) { return; }
  for (var s = 1u; s < 16u; s++) { sum += slices[s * 16u + t]; }
  st_dweight(c, ld_dweight(c) + sum, p.C - c);
}

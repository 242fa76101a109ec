// op muon_momentum grid(N)
// m is f32 always: it comes one by one, W to a thread.
@compute @workgroup_size(256)
fn muon_momentum(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let n = flat(group);
  if (n >= p.N) { return; }
  let row = n * p.C;
  let clip = ld1_scale(0u);
  var sum = V();
  for (var c = t * W; c < p.C; c += 256u * W) {
    let g = ld_grad(row + c) * clip;
    let old = ld_m(row + c);
    let m = old + p.rest * (g - old);
    st_m(row + c, m, p.C - c);
    let x = mask(select(m, g + p.momentum * (m - g), p.nesterov == 1u), p.C - c);
    st_out(row + c, x, p.C - c);
    sum += x * x;
  }
  let total = group_sum(t, sumv(sum));
  if (t == 0u) { st1_square(n, total); }
}

// op muon_normalize grid(ceil(N*C, 4096), E)
// Every workgroup sums its matrix's squares once more: they are few, and near.
@compute @workgroup_size(256)
fn muon_normalize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  var sum = 0.0;
  for (var n = t; n < p.N; n += 256u) { sum += ld1_square(group.y * p.N + n); }
  let factor = 1.0 / max(sqrt(group_sum(t, sum)), p.eps);
  let size = p.N * p.C;
  let end = min(size, (group.x + 1u) * 4096u);
  for (var i = group.x * 4096u + t * W; i < end; i += 256u * W) {
    let at = group.y * size + i;
    st_x(at, ld_x(at) * factor, size - i);
  }
}

// op muon_step grid(ceil(P, 256*W))
@compute @workgroup_size(256)
fn muon_step(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = (flat(group) * 256u + t) * W;
  if (i < p.P) { st_weight(i, by_chances(ld_weight(i) * p.keep - p.lr * ld_update(i), p.chance, i + p.first, p.seed, p.stream), p.P - i); }
}

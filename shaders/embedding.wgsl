// op embedding_forward grid(ceil(N*ceil(C, W), 256))
@compute @workgroup_size(256)
fn embedding_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = flat(group) * 256u + t;
  let n = i / ceil_div(p.C, W);
  let c = (i % ceil_div(p.C, W)) * W;
  if (n >= p.N) { return; }
  var id = ld_ids(n);
#if WINDOWED
  if (id < p.first || id - p.first >= p.count) { return; }
  id -= p.first;
#end
  st_out(n * p.C + c, ld_weight(id * p.C + c) * p.scale, p.C - c);
}

// op embedding_backward grid(N*ceil(C, 64*W))
// A workgroup per place in `order` and stretch of 64·W channels; the first place of a run of equal ids sums the run.
@compute @workgroup_size(64)
fn embedding_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let stretches = ceil_div(p.C, 64u * W);
  let first = flat(group) / stretches;
  let c = ((flat(group) % stretches) * 64u + t) * W;
  if (first >= p.N || c >= p.C) { return; }
  let id = ld_ids(ld_order(first));
  if (first > 0u && ld_ids(ld_order(max(first, 1u) - 1u)) == id) { return; }
  var row = id;
#if WINDOWED
  if (id < p.first || id - p.first >= p.count) { return; }
  row -= p.first;
#end
  var sum = V();
  for (var i = first; i < p.N; i++) {
    let n = ld_order(i);
    if (ld_ids(n) != id) { break; }
    sum += ld_dout(n * p.C + c);
  }
  st_dweight(row * p.C + c, ld_dweight(row * p.C + c) + sum * p.scale, p.C - c);
}

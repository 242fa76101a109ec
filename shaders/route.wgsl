// Places of the slots, and rows to their places and back.

var<workgroup> counts: array<u32, 256>;

// Σ of the counts of the threads before t.
fn before(t: u32, count: u32) -> u32 {
  workgroupBarrier();
  counts[t] = count;
  workgroupBarrier();
  for (var step = 1u; step < 256u; step <<= 1u) {
    var x = counts[t];
    if (t >= step) { x += counts[t - step]; }
    workgroupBarrier();
    counts[t] = x;
    workgroupBarrier();
  }
  return counts[t] - count;
}

// op route_index grid(E)
// A workgroup per expert; a thread looks at a stretch of the slots, so that places rise with the slots.
@compute @workgroup_size(256)
fn route_index(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let expert = flat(group);
  if (expert >= p.E) { return; }
  let M = p.N * p.S;
  let stretch = ceil_div(M, 256u);
  let first = min(t * stretch, M);
  let end = min(first + stretch, M);
  var lower = 0u;
  var own = 0u;
  for (var i = first; i < end; i++) {
    let e = ld_experts(i);
    lower += u32(e < expert);
    own += u32(e == expert);
  }
  let lower_before = before(t, lower);
  counts[t] = lower_before + lower;
  workgroupBarrier();
  let start = counts[255];
  var m = start + before(t, own);
  if (t == 0u) { st_offsets(expert, start); }
  if (t == 0u && expert == 0u) { st_offsets(p.E, M); }
  for (var i = first; i < end; i++) {
    if (ld_experts(i) == expert) {
      st_rows(m, i);
      st_places(i, m);
      m++;
    }
  }
}

// op route_gather_forward grid(ceil(N*ceil(C, W), 256))
@compute @workgroup_size(256)
fn route_gather_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = flat(group) * 256u + t;
  let n = i / ceil_div(p.C, W);
  let c = (i % ceil_div(p.C, W)) * W;
  if (n >= p.N) { return; }
  let x = ld_inp(n * p.C + c);
  for (var a = 0u; a < p.S; a++) { st_out(ld_places(n * p.S + a) * p.C + c, x, p.C - c); }
}

// op route_gather_backward grid(ceil(N*ceil(C, W), 256))
@compute @workgroup_size(256)
fn route_gather_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = flat(group) * 256u + t;
  let n = i / ceil_div(p.C, W);
  let c = (i % ceil_div(p.C, W)) * W;
  if (n >= p.N) { return; }
  var sum = V();
  for (var a = 0u; a < p.S; a++) { sum += ld_dout(ld_places(n * p.S + a) * p.C + c); }
  st_dinp(n * p.C + c, ld_dinp(n * p.C + c) + sum, p.C - c);
}

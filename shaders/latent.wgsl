// Copies between heads of other sizes. A thread takes the W elements of a word; those it reads may lie anywhere.

// The thread's elements: first <= at < end of row n, of which there are `row`.
#part word length
  let i = flat(group) * 256u + t;
  let row = $length;
  let n = i / ceil_div(row, W);
  if (n >= p.N) { return; }
  let first = (i % ceil_div(row, W)) * W;
  let end = min(first + W, row);
#end

// op latent_query_forward grid(ceil(N*ceil(H*D, W), 256))
@compute @workgroup_size(256)
fn latent_query_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
#use word p.H*p.D
  for (var at = first; at < end; at++) {
    let head = (n * p.H + at / p.D) * (p.U + p.A);
    let d = at % p.D;
    var x = 0.0;
    if (d < p.A) { x = ld1_inp(head + p.U + d); } else if (d < p.A + p.U) { x = ld1_inp(head + d - p.A); }
    st1_q(n * row + at, x);
  }
}

// op latent_query_backward grid(ceil(N*ceil(H*(U + A), W), 256))
@compute @workgroup_size(256)
fn latent_query_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
#use word p.H*(p.U+p.A)
  for (var at = first; at < end; at++) {
    let head = (n * p.H + at / (p.U + p.A)) * p.D;
    let c = at % (p.U + p.A);
    var d = p.A + c;
    if (c >= p.U) { d = c - p.U; }
    st1_dinp(n * row + at, ld1_dq(head + d));
  }
}

// op latent_kv_forward grid(ceil(N*ceil(H*D, W), 256))
@compute @workgroup_size(256)
fn latent_kv_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
#use word p.H*p.D
  for (var at = first; at < end; at++) {
    let head = (n * p.H + at / p.D) * (p.U + p.Y);
    let d = at % p.D;
    var x = 0.0;
    if (d < p.A) { x = ld1_rope(n * p.A + d); } else if (d < p.A + p.U) { x = ld1_kv(head + d - p.A); }
    st1_k(n * row + at, x);
    x = 0.0;
    if (d < p.Y) { x = ld1_kv(head + p.U + d); }
    st1_v(n * row + at, x);
  }
}

// op latent_kv_backward grid(ceil(N*ceil(H*(U + Y), W), 256))
@compute @workgroup_size(256)
fn latent_kv_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
#use word p.H*(p.U+p.Y)
  for (var at = first; at < end; at++) {
    let head = (n * p.H + at / (p.U + p.Y)) * p.D;
    let c = at % (p.U + p.Y);
    var x = 0.0;
    if (c < p.U) { x = ld1_dk(head + p.A + c); } else { x = ld1_dv(head + c - p.U); }
    st1_dkv(n * row + at, x);
  }
}

// op latent_kv_backward__rope grid(ceil(N*ceil(A, W), 256))
@compute @workgroup_size(256)
fn latent_kv_backward__rope(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
#use word p.A
  for (var c = first; c < end; c++) {
    var sum = 0.0;
    for (var h = 0u; h < p.H; h++) { sum += ld1_dk((n * p.H + h) * p.D + c); }
    st1_drope(n * row + c, sum);
  }
}

// op latent_output_forward grid(ceil(N*ceil(H*Y, W), 256))
@compute @workgroup_size(256)
fn latent_output_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
#use word p.H*p.Y
  for (var at = first; at < end; at++) {
    st1_out(n * row + at, ld1_att((n * p.H + at / p.Y) * p.D + at % p.Y));
  }
}

// op latent_output_backward grid(ceil(N*ceil(H*D, W), 256))
@compute @workgroup_size(256)
fn latent_output_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
#use word p.H*p.D
  for (var at = first; at < end; at++) {
    var x = 0.0;
    if (at % p.D < p.Y) { x = ld1_dout((n * p.H + at / p.D) * p.Y + at % p.D); }
    st1_datt(n * row + at, x);
  }
}

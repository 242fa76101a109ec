// op rope_forward grid(ceil(N*H*ceil(A, 2*W), 256))
@compute @workgroup_size(256)
fn rope_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let half = p.A / 2u;
  let interleaved = p.interleaved == 1u;
  // halves of an odd length: a word holds values of both, so one thread takes the whole head, one value at a time
  let whole = W == 2u && half % 2u == 1u && !interleaved;
  let steps = select(ceil_div(half, W), 1u, whole);
  let i = flat(group) * 256u + t;
  let head = i / steps;
  if (head >= p.N * p.H) { return; }
  let n = head / p.H;
  let at = n * p.ld_x + (head % p.H) * p.D;
  let row = ld_positions(n) * p.A;
  let d = (i % steps) * W;
  if (whole || interleaved) {
    let end = select(min(d + W, half), half, whole);
    for (var j = d; j < end; j++) {
      let first = at + select(j, 2u * j, interleaved);
      let second = first + select(half, 1u, interleaved);
      let a = ld1_x(first);
      let b = ld1_x(second);
      let cos = ld1_table(row + j);
      let sin = ld1_table(row + j + half);
      st1_x(first, a * cos - b * sin);
      st1_x(second, b * cos + a * sin);
    }
    return;
  }
  let a = ld_x(at + d);
  let b = ld_x(at + d + half);
  let cos = ld_table(row + d);
  let sin = ld_table(row + d + half);
  st_x(at + d, a * cos - b * sin, half - d);
  st_x(at + d + half, b * cos + a * sin, half - d);
}

// op rope_backward grid(ceil(N*H*ceil(A, 2*W), 256))
@compute @workgroup_size(256)
fn rope_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let half = p.A / 2u;
  let interleaved = p.interleaved == 1u;
  // halves of an odd length: a word holds values of both, so one thread takes the whole head, one value at a time
  let whole = W == 2u && half % 2u == 1u && !interleaved;
  let steps = select(ceil_div(half, W), 1u, whole);
  let i = flat(group) * 256u + t;
  let head = i / steps;
  if (head >= p.N * p.H) { return; }
  let n = head / p.H;
  let at = n * p.ld_x + (head % p.H) * p.D;
  let row = ld_positions(n) * p.A;
  let d = (i % steps) * W;
  if (whole || interleaved) {
    let end = select(min(d + W, half), half, whole);
    for (var j = d; j < end; j++) {
      let first = at + select(j, 2u * j, interleaved);
      let second = first + select(half, 1u, interleaved);
      let a = ld1_dx(first);
      let b = ld1_dx(second);
      let cos = ld1_table(row + j);
      let sin = -ld1_table(row + j + half);
      st1_dx(first, a * cos - b * sin);
      st1_dx(second, b * cos + a * sin);
    }
    return;
  }
  let a = ld_dx(at + d);
  let b = ld_dx(at + d + half);
  let cos = ld_table(row + d);
  let sin = -ld_table(row + d + half);
  st_dx(at + d, a * cos - b * sin, half - d);
  st_dx(at + d + half, b * cos + a * sin, half - d);
}

// op low_rank_backward grid(ceil((N + O)*ceil(R, 2), 256))
// A thread for two values of a row of dt, then of db. In runs: a long sum in one go loses what is small.
const RUN = 64u;

@compute @workgroup_size(256)
fn low_rank_backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = flat(group) * 256u + t;
  let row = i / ceil_div(p.R, 2u);
  let r = (i % ceil_div(p.R, 2u)) * 2u;
  let next = min(r + 1u, p.R - 1u);
  var sum = vec2<f32>();
  if (row < p.N) {
    for (var o = 0u; o < p.O;) {
      var run = vec2<f32>();
      for (let end = min(o + RUN, p.O); o < end; o++) {
        run += ld1_dout(row * p.O + o) * vec2(ld1_b(o * p.R + r), ld1_b(o * p.R + next));
      }
      sum += run;
    }
    st2_dt(row * p.ld_dt + r, p.scale * sum, p.R - r);
  } else if (row < p.N + p.O) {
    let o = row - p.N;
    let at = o * p.R;
    for (var n = 0u; n < p.N;) {
      var run = vec2<f32>();
      for (let end = min(n + RUN, p.N); n < end; n++) {
        run += ld1_dout(n * p.O + o) * vec2(ld1_t(n * p.ld_t + r), ld1_t(n * p.ld_t + next));
      }
      sum += run;
    }
    st2_db(at + r, vec2(ld1_db(at + r), ld1_db(at + next)) + sum, p.R - r);
  }
}

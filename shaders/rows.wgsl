// op rows_gather grid(ceil(N*C, 1024))
// A thread makes a word: four bytes, which may lie in several rows.
@compute @workgroup_size(256)
fn rows_gather(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let word = flat(group) * 256u + t;
  let i = word * 4u;
  let end = p.N * p.C;
  if (i >= end) { return; }
  var bytes = 0u;
#for k 0 4
  if (i + $k < end) { bytes |= ld_weight(ld_ids((i + $k) / p.C) * p.C + (i + $k) % p.C) << (8u * $k); }
#end
  stw_out(word, bytes, end - i);
}

// op rows_gather grid(ceil(N*C, 1024))
// A thread makes a word: four bytes, which may lie in several rows.
@compute @workgroup_size(256)
fn rows_gather(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let word = flat(group) * 256u + t;
  let i = word * 4u;
  let end = p.N * p.C;
  if (i >= end) { return; }
  var bytes = 0u;
#if WINDOWED
  bytes = ldw_out(word);
#end
#for k 0 4
  if (i + $k < end) {
    let id = ld_ids((i + $k) / p.C);
    let c = (i + $k) % p.C;
#if WINDOWED
    if (id >= p.first && id - p.first < p.count) {
      bytes &= ~(255u << (8u * $k));
      bytes |= ld_weight((id - p.first) * p.C + c) << (8u * $k);
    }
#end
#if 1 - WINDOWED
    bytes |= ld_weight(id * p.C + c) << (8u * $k);
#end
  }
#end
  stw_out(word, bytes, end - i);
}

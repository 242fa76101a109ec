// op copy grid(ceil(words, 256))
// The last word keeps what `last` (a mask) does not cover.
@compute @workgroup_size(256)
fn copy(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let i = flat(group) * 256u + t;
  if (i + 1u < p.words) { st_to(i, ld_from(i)); }
  if (i + 1u == p.words) { st_to(i, (ld_to(i) & ~p.last) | (ld_from(i) & p.last)); }
}

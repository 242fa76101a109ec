use super::*;
use luthier::dtype::DType::{Bf16, F32};
use luthier::ops::paged_attention::{PagedAttention, PagedAttentionJoin};
use values::Data;

/// Queries with these spans, each of a sequence of its own, whose pages lie scattered; the first two share theirs.
fn scattered(name: &str, spans: &[[u32; 2]], heads: [u32; 3], page: u32, softcap: f32) -> Case {
    parted(name, spans, 1, heads, page, softcap)
}

/// The same with Z spans for each query.
fn parted(name: &str, spans: &[[u32; 2]], Z: u32, [H, K, D]: [u32; 3], page: u32, softcap: f32) -> Case {
    let longest = spans.chunks(Z as usize).map(|spans| spans.iter().map(|s| s[1]).max().unwrap());
    let pages_of: Vec<u32> = longest.map(|end| end.div_ceil(page).max(1)).collect();
    let total: u32 = pages_of.iter().sum::<u32>() + 1;
    // 7 and the prime beyond every size here have no common factor: all pages, in another order
    let order: Vec<u32> = (0..total).map(|i| (i * 7 + 3) % total).collect();
    let distinct: std::collections::BTreeSet<_> = order.iter().collect();
    let pages = if distinct.len() == order.len() { order } else { (0..total).rev().collect() };
    let mut starts: Vec<u32> = pages_of.iter().scan(0, |at, count| Some(std::mem::replace(at, *at + count))).collect();
    if starts.len() > 1 && pages_of[0] >= pages_of[1] {
        starts[1] = starts[0];
    }
    let (N, P, T) = (starts.len() as u32, pages.len() as u32, total * page);
    let p = PagedAttention { N, Z, T, H, K, D, P, page, scale: 1.0 / (D as f32).sqrt(), softcap };
    let span: Vec<u32> = spans.iter().flatten().copied().collect();
    Case::new(Op::paged_attention_forward, p)
        .with(name, move |values| {
            values.get_mut("q").unwrap().floats_mut().iter_mut().for_each(|x| *x *= 4.0);
            let tables = [("span", &span), ("starts", &starts), ("pages", &pages)];
            tables.into_iter().for_each(|(name, table)| _ = values.insert(name, Data::U32(table.clone())));
        })
        .mixed(Bf16, &[("out", F32)])
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for heads in [[1, 1, 6], [2, 2, 16], [4, 2, 64], [6, 2, 80], [4, 1, 128], [2, 1, 256], [3, 3, 12], [14, 2, 64], [1, 1, 1]] {
        cases.push(scattered("few", &[[0, 1], [0, 31], [0, 32], [0, 33]], heads, 16, 0.0));
        cases.push(scattered("windows and none", &[[40, 101], [0, 0], [3, 4], [17, 130]], heads, 32, 0.0));
        cases.push(scattered("softcap", &[[0, 77], [5, 70]], heads, 16, 5.0));
    }
    cases.push(scattered("long", &[[0, 1029]], [4, 1, 128], 16, 0.0));
    cases.push(scattered("long", &[[0, 515], [100, 700]], [8, 2, 64], 32, 0.0));
    cases.push(scattered("odd page", &[[0, 23], [2, 9]], [2, 1, 16], 5, 0.0));
    cases.push(parted("parts", &[[0, 40], [40, 80], [80, 101], [16, 20], [20, 24], [0, 0]], 3, [4, 2, 64], 16, 0.0));
    cases.push(parted("parts", &[[0, 513], [513, 1029]], 2, [8, 2, 128], 16, 30.0));
    for (N, Z, H, D) in [(1, 1, 1, 1), (3, 2, 2, 6), (1, 32, 4, 128), (2, 7, 3, 256), (65, 3, 14, 64)] {
        // some parts see nothing, and of the last query's none does
        cases.push(Case::new(Op::paged_attention_join, PagedAttentionJoin { N, Z, H, D }).with("gaps", move |values| {
            let Some(Data::Float(lse)) = values.get_mut("part_lse") else { panic!("part_lse is f32") };
            let last = lse.len() - (Z * H) as usize;
            let gap = |i: usize| i % 5 == 3 || N > 1 && i >= last;
            lse.iter_mut().enumerate().for_each(|(i, x)| *x = if gap(i) { f32::NEG_INFINITY.into() } else { *x * 9.0 });
        }));
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    Vec::new()
}

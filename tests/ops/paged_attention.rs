use super::*;
use luthier::dtype::DType::{Bf16, F32};
use luthier::ops::paged_attention::PagedAttention;
use values::Data;

/// Queries with these spans, each of a sequence of its own, whose pages lie scattered; the first two share theirs.
fn scattered(name: &str, spans: &[[u32; 2]], [H, K, D]: [u32; 3], page: u32, softcap: f32) -> Case {
    let pages_of: Vec<u32> = spans.iter().map(|s| s[1].div_ceil(page).max(1)).collect();
    let total: u32 = pages_of.iter().sum::<u32>() + 1;
    // 7 and the prime beyond every size here have no common factor: all pages, in another order
    let order: Vec<u32> = (0..total).map(|i| (i * 7 + 3) % total).collect();
    let distinct: std::collections::BTreeSet<_> = order.iter().collect();
    let pages = if distinct.len() == order.len() { order } else { (0..total).rev().collect() };
    let mut starts: Vec<u32> = pages_of.iter().scan(0, |at, count| Some(std::mem::replace(at, *at + count))).collect();
    if starts.len() > 1 && pages_of[0] >= pages_of[1] {
        starts[1] = starts[0];
    }
    let (N, P, T) = (spans.len() as u32, pages.len() as u32, total * page);
    let p = PagedAttention { N, T, H, K, D, P, page, scale: 1.0 / (D as f32).sqrt(), softcap };
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
    cases
}

pub fn gradients() -> Vec<Gradient> {
    Vec::new()
}

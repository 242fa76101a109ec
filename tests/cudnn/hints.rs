//! What a backend is told of a span table: by whom, and how long it holds.
use super::cases::{Data, case};
use super::{nmse, open};
use luthier::backend::cpu::Cpu;
use luthier::backend::cuda::{AttentionPath, Cuda};
use luthier::backend::{Backend, Buf};
use luthier::dtype::DType::{Bf16, F32};
use std::cell::RefCell;

/// The forward's output over `span`, which was told `cu_seqlens` before something happened to it.
fn told_then(cuda: &Cuda, d: &Data, happens: impl FnOnce(&dyn Backend, &mut Buf)) -> (Vec<f32>, u64) {
    let b: &dyn Backend = cuda;
    let input = |x: &[f32]| b.alloc_f32(x, Bf16).unwrap();
    let (q, k, v) = (input(&d.q), input(&d.k), input(&d.v));
    let (mut out, mut lse) = (b.alloc(d.out.len(), Bf16).unwrap(), b.alloc(d.lse.len(), F32).unwrap());
    let mut span = b.alloc_u32(&d.span).unwrap();
    b.sequences(&span, &d.cu_seqlens, None);
    b.attention_forward(&mut out, &mut lse, &q, &k, &v, &span, &d.p).unwrap();
    happens(b, &mut span);
    let before = cuda.cudnn().0;
    b.attention_forward(&mut out, &mut lse, &q, &k, &v, &span, &d.p).unwrap();
    let by_cudnn = cuda.cudnn().0 - before;
    let got = b.download_f32(&out).unwrap();
    [q, k, v, out, lse, span].into_iter().for_each(|buf| b.free(buf));
    (got, by_cudnn)
}

#[test]
fn what_was_told_is_forgotten_with_the_table_it_was_told_of() {
    let Some(cuda) = open(AttentionPath::Cudnn) else { return };
    let (whole, parts) = (case(&[512], [4, 2, 64], Bf16).data(), case(&[200, 312], [4, 2, 64], Bf16).data());
    let close = |got: &[f32], d: &Data| nmse(got, &d.want["out"]) <= 1e-4;
    let (got, by_cudnn) = told_then(&cuda, &whole, |_, _| {});
    assert!(by_cudnn == 1 && close(&got, &whole), "told, and nothing happened: {by_cudnn}");
    let (got, by_cudnn) = told_then(&cuda, &whole, |b, span| b.upload_u32(span, &parts.span).unwrap());
    assert!(by_cudnn == 0 && close(&got, &parts), "uploaded: {by_cudnn}");
    let (got, by_cudnn) = told_then(&cuda, &whole, |b, span| {
        let other = b.alloc_u32(&parts.span).unwrap();
        b.copy(span, &other).unwrap();
        b.free(other);
    });
    assert!(by_cudnn == 0 && close(&got, &parts), "copied: {by_cudnn}");
    let (got, by_cudnn) = told_then(&cuda, &whole, |b, span| {
        b.upload_u32(&mut span.view(0, 2), &parts.span[..2]).unwrap();
        b.upload_u32(span, &parts.span).unwrap();
        b.sequences(span, &parts.cu_seqlens, None);
    });
    assert!(by_cudnn == 1 && close(&got, &parts), "told again: {by_cudnn}");
    let (got, by_cudnn) = told_then(&cuda, &whole, |b, span| {
        let other = b.alloc_u32(&parts.span).unwrap();
        b.free(std::mem::replace(span, other));
    });
    assert!(by_cudnn == 0 && close(&got, &parts), "another buffer: {by_cudnn}");
}

/// The cpu, and what it was told.
struct Listener {
    cpu: Cpu,
    told: RefCell<Vec<(Vec<u32>, Option<u32>)>>,
}

impl Backend for Listener {
    luthier::pass_on! { cpu: name device alloc free upload download copy launch sync memory available rules
    charge host_alloc host_free to_host from_host rows_from_host host_upload host_download }
    fn sequences(&self, span: &Buf, cu_seqlens: &[u32], window: Option<u32>) {
        // the hint must say what the table says
        let first = |n: u32, start: u32| window.map_or(start, |w| start.max((n + 1).saturating_sub(w)));
        let seen = cu_seqlens.windows(2).flat_map(|s| (s[0]..s[1]).flat_map(move |n| [first(n, s[0]), n + 1]));
        let table = self.cpu.download(span).unwrap();
        let table = table.chunks(4).map(|x| u32::from_le_bytes(x.try_into().unwrap()));
        assert!(table.eq(seen), "{cu_seqlens:?} {window:?}");
        self.told.borrow_mut().push((cu_seqlens.to_vec(), window));
    }
}

#[test]
fn a_session_tells_of_its_sequences_once_a_pass_and_not_of_prompts() {
    use luthier::model::{LoadOptions, Model, Plan, Session, Tokens};
    let b = Listener { cpu: Cpu::new(), told: RefCell::default() };
    for (folder, kinds) in [("llama", 1), ("gemma2", 2)] {
        let folder = std::path::Path::new("tests/golden").join(folder);
        let model = Model::load(&b, &folder, &LoadOptions::frozen(F32)).unwrap();
        let tokens = Tokens { ids: vec![1; 9], positions: (0..6).chain(0..3).collect(), cu_seqlens: vec![0, 6, 9] };
        let mut session = Session::new(&b, &model, 9, 9, Plan::Inference).unwrap();
        session.forward(&model, &tokens).unwrap();
        let told = b.told.take();
        assert_eq!(told.len(), kinds, "{told:?}");
        assert!(told.iter().all(|(cu_seqlens, _)| *cu_seqlens == [0, 6, 9]), "{told:?}");
        assert_eq!(told.iter().filter(|(_, window)| window.is_some()).count(), kinds - 1, "{told:?}");
    }
    let model = Model::load(&b, "tests/golden/llama".as_ref(), &LoadOptions::frozen(F32)).unwrap();
    let sampling = luthier::infer::Sampling { max_new_tokens: 2, ..luthier::infer::Sampling::default() };
    luthier::infer::generate(&b, &model, &[3, 70, 11], &sampling, &[], |_| true).unwrap();
    assert!(b.told.take().is_empty(), "each prompt has another length, and a plan would cost more than it brings");
}

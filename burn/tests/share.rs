//! luthier and Burn on one device: what one writes, the other reads, and nothing goes by the host.
#![cfg(feature = "wgpu")]
mod common;
use burn::tensor::{Int, Tensor};
use common::{Bench, values};
use luthier::backend::Backend;
use luthier::backend::wgpu::Wgpu;
use luthier::dtype::DType;
use luthier::ops::fill::Fill;
use luthier_burn::share;

#[test]
fn one_device_for_both() {
    let wgpu = Wgpu::new(None).unwrap();
    let device = Bench(share::device(&wgpu).unwrap());
    let mut buf = wgpu.alloc(1000, DType::F32).unwrap();
    // queued, and not yet submitted
    wgpu.fill_forward(&mut buf, &Fill { P: 1000, value: 3.0 }).unwrap();
    let tensor: Tensor<2> = share::to_tensor(&wgpu, &device, &buf, [10, 100]).unwrap();
    let sum = tensor + Tensor::<1, Int>::arange(0..1000, &device).float().reshape([10, 100]);
    share::from_tensor(&wgpu, &mut buf, &sum).unwrap();
    let got = (&wgpu as &dyn Backend).download_f32(&buf).unwrap();
    assert!(got.iter().enumerate().all(|(i, x)| *x == 3.0 + i as f32), "{:?}", &got[..4]);

    // a kernel of ours on Burn's own memory
    let kept = sum.clone();
    share::with_buffer(&sum, |place| {
        let mut encoder = wgpu.shared().device.create_command_encoder(&Default::default());
        encoder.clear_buffer(place.buffer, place.start, Some(place.bytes / 2));
        wgpu.shared().queue.submit([encoder.finish()]);
    })
    .unwrap();
    let (one, clone) = (values(sum), values(kept));
    assert!(one[..500].iter().all(|x| *x == 0.0) && one[999] == 1002.0, "{:?}", &one[498..502]);
    assert_eq!(one, clone, "clones share their memory");

    let short = wgpu.alloc(7, DType::F32).unwrap();
    let e = share::to_tensor::<1>(&wgpu, &device, &short, [8]).unwrap_err().to_string();
    assert!(e.contains("32 bytes are wanted, got 28"), "{e}");
    // some rows, which begin where another tensor goes on
    let rows = Tensor::<1, Int>::arange(0..4096, &device).float().reshape([64, 64]).slice([8..16, 0..64]);
    let mut some = wgpu.alloc(512, DType::F32).unwrap();
    share::from_tensor(&wgpu, &mut some, &rows).unwrap();
    let got = (&wgpu as &dyn Backend).download_f32(&some).unwrap();
    assert!(got.iter().enumerate().all(|(i, x)| *x == 512.0 + i as f32), "{:?}", &got[..4]);
    let swapped = Tensor::<2>::ones([4, 2], &device).transpose();
    match share::with_buffer(&swapped, |place| place.bytes) {
        // fusion may have made a tensor of it
        Ok(bytes) => assert!(cfg!(feature = "fusion") && bytes == 32, "{bytes}"),
        Err(e) => assert!(e.to_string().contains("a view without a memory of its own"), "{e}"),
    }
}

use luthier::{
    backend::{Backend, cpu::Cpu},
    dtype::DType,
    model::{self, LoadOptions, Model},
};
fn main() {
    let folder = std::env::args().nth(1).unwrap();
    let dtype = DType::Bf16;
    let t = std::time::Instant::now();
    model::check(folder.as_ref()).unwrap().spec().unwrap();
    println!("check {:?}", t.elapsed());
    for _ in 0..2 {
        let b = Cpu::new();
        let t = std::time::Instant::now();
        let m = Model::load(&b, folder.as_ref(), &LoadOptions::frozen(dtype)).unwrap();
        println!("load {:?} {} MiB", t.elapsed(), b.memory().used >> 20);
        drop(m);
    }
}

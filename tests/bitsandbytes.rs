//! What bitsandbytes 0.50.2 made on an NVIDIA GPU, remade on every backend: NF4, double quantization, dynamic 8-bit maps and
//! block-wise quantization, 8-bit AdamW. `tests/golden/make_golden.py` made the values.
#![allow(non_snake_case, reason = "dims are named as in the ops")]
#![allow(clippy::neg_cmp_op_on_partial_ord, reason = "`!(err <= limit)`, so that NaN fails")]
use devices::{Device, on_devices};
use luthier::backend::{Backend, Buf};
use luthier::dtype::DType;
use luthier::error::Result;
use luthier::ops::adamw::AdamW;
use luthier::ops::dyn8::{self, Dyn8, dynamic_map};
use luthier::ops::lion::Lion;
use luthier::ops::nf4::{self, LEVELS, MIDPOINTS, Nf4, Nf4Double, double_quantize};
use safetensors::SafeTensors;

#[path = "ops/devices.rs"]
mod devices;

const FILE: &str = "tests/golden/bitsandbytes/golden.safetensors";
/// 4 units in the last place of an f32, relative.
const ULPS: f64 = 4.0 / (1u64 << 23) as f64;

/// 8-bit Lion's, on the CPU (`tests/golden/make_optimizers.py`).
const LION: &str = "tests/golden/optimizers/lion8.safetensors";

struct Golden(Vec<u8>);

impl Golden {
    fn open() -> Golden {
        Golden::of(FILE)
    }
    fn of(file: &str) -> Golden {
        Golden(std::fs::read(file).unwrap_or_else(|e| panic!("{file}: {e}")))
    }
    fn bytes(&self, name: &str) -> Vec<u8> {
        let file = SafeTensors::deserialize(&self.0).expect("a safetensors file");
        file.tensor(name).unwrap_or_else(|e| panic!("{FILE}: {name}: {e}")).data().to_vec()
    }
    fn floats(&self, name: &str) -> Vec<f32> {
        DType::F32.decode(&self.bytes(name))
    }
}

/// Runs `check` with every device; what fails says where.
fn on_each(check: fn(&dyn Backend, &Golden) -> Result<()>) {
    on_devices(move |devices: &[Device]| {
        for device in devices {
            check(&*device.backend, &Golden::open()).unwrap_or_else(|e| panic!("{}: {e}", device.name));
        }
    });
}

fn upload(b: &dyn Backend, bytes: &[u8]) -> Result<Buf> {
    let mut buf = b.alloc(bytes.len(), DType::U8)?;
    b.upload(&mut buf, bytes)?;
    Ok(buf)
}

fn assert_close(what: &str, got: &[f32], want: &[f32], relative: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let err = (*g as f64 - *w as f64).abs();
        assert!(err <= relative * (*w as f64).abs(), "{what}[{i}]: wanted {w}, got {g}");
    }
}

/// Codes are equal, but for the neighbour of a value within 4 ulp of the midpoint between two levels.
fn assert_codes(what: &str, got: &[u8], want: &[u8], scaled: impl Fn(usize) -> f64, midpoint: impl Fn(u8) -> f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate().filter(|(_, (g, w))| g != w) {
        let (x, mid) = (scaled(i), midpoint(*g.min(w)));
        let near = g.abs_diff(*w) == 1 && (x - mid).abs() <= ULPS * mid.abs();
        assert!(near, "{what}[{i}]: wanted code {w}, got {g}; the value is {x}, the midpoint {mid}");
    }
}

fn nibbles(packed: &[u8]) -> Vec<u8> {
    packed.iter().flat_map(|byte| [byte >> 4, byte & 15]).collect()
}

const SHAPES: [&str; 2] = ["96x128", "320x192"];

#[test]
fn nf4_levels_are_theirs() {
    let map = Golden::open().floats("nf4_map");
    assert_eq!(map, LEVELS);
}

fn nf4(b: &dyn Backend, golden: &Golden) -> Result<()> {
    for shape in SHAPES {
        let [weight, absmax, dequant] =
            ["weight", "absmax", "dequant"].map(|n| golden.floats(&format!("nf4.{shape}.{n}")));
        let packed = golden.bytes(&format!("nf4.{shape}.packed"));
        let p = Nf4 { P: weight.len() as u32 };
        let inp = b.alloc_f32(&weight, DType::F32)?;
        let (mut codes, mut scales) = (b.alloc(packed.len(), DType::U8)?, b.alloc(absmax.len(), DType::F32)?);
        b.nf4_quantize(&mut codes, &mut scales, &inp, &p)?;
        let scaled = |i: usize| weight[i] as f64 / absmax[i / nf4::BLOCK] as f64;
        let midpoint = |low: u8| MIDPOINTS[low as usize] as f64;
        assert_codes("nf4 codes", &nibbles(&b.download(&codes)?), &nibbles(&packed), scaled, midpoint);
        assert_eq!(b.download_f32(&scales)?, absmax, "nf4 absmax");

        let mut out = b.alloc(weight.len(), DType::F32)?;
        b.nf4_dequantize(&mut out, &upload(b, &packed)?, &b.alloc_f32(&absmax, DType::F32)?, &p)?;
        assert_close("nf4 dequantized", &b.download_f32(&out)?, &dequant, ULPS);
    }
    Ok(())
}

#[test]
fn nf4_codes_and_scales() {
    on_each(nf4);
}

fn nested(b: &dyn Backend, golden: &Golden) -> Result<()> {
    for shape in SHAPES {
        let floats = |name: &str| golden.floats(&format!("nf4_dq.{shape}.{name}"));
        let bytes = |name: &str| golden.bytes(&format!("nf4_dq.{shape}.{name}"));
        let (weight, map, offset) = (floats("weight"), floats("nested_map"), floats("offset")[0]);
        let (qabsmax, nested, packed) = (bytes("absmax_u8"), floats("nested_absmax"), bytes("packed"));
        assert_eq!(map, dynamic_map(true), "nested map");

        let inp = b.alloc_f32(&weight, DType::F32)?;
        let (mut codes, mut scales) = (b.alloc(packed.len(), DType::U8)?, b.alloc(qabsmax.len(), DType::F32)?);
        b.nf4_quantize(&mut codes, &mut scales, &inp, &Nf4 { P: weight.len() as u32 })?;
        let absmax = b.download_f32(&scales)?;
        let (got_codes, got_nested, got_offset) = double_quantize(&absmax);
        assert_close("offset", &[got_offset], &[offset], ULPS);
        assert_close("nested absmax", &got_nested, &nested, ULPS);
        let scaled = |i: usize| (absmax[i] - offset) as f64 / nested[i / dyn8::BLOCK] as f64;
        let midpoint = |low: u8| (map[low as usize] as f64 + map[low as usize + 1] as f64) / 2.0;
        assert_codes("nested codes", &got_codes, &qabsmax, scaled, midpoint);

        let p = Nf4Double { P: weight.len() as u32, offset };
        let (nested, map) = (b.alloc_f32(&nested, DType::F32)?, b.alloc_f32(&map, DType::F32)?);
        let mut out = b.alloc(weight.len(), DType::F32)?;
        b.nf4_dequantize_double(&mut out, &upload(b, &packed)?, &upload(b, &qabsmax)?, &nested, &map, &p)?;
        assert_close("doubly dequantized", &b.download_f32(&out)?, &floats("dequant"), ULPS);
    }
    Ok(())
}

#[test]
fn double_quantization_of_the_scales() {
    on_each(nested);
}

#[test]
fn dynamic_maps_to_the_bit() {
    let golden = Golden::open();
    for (name, signed) in [("signed", true), ("unsigned", false)] {
        let want = golden.floats(&format!("dyn8.{name}.map"));
        let bits = |map: &[f32]| map.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&dynamic_map(signed)), bits(&want), "{name}");
    }
}

fn blockwise(b: &dyn Backend, golden: &Golden) -> Result<()> {
    for case in ["signed.4096", "signed.5000", "unsigned.4096", "unsigned.5000"] {
        let [x, absmax, dequant] = ["x", "absmax", "dequant"].map(|n| golden.floats(&format!("dyn8.{case}.{n}")));
        let want = golden.bytes(&format!("dyn8.{case}.q"));
        let levels = dynamic_map(case.starts_with("signed"));
        let p = Dyn8 { P: x.len() as u32 };
        let (inp, map) = (b.alloc_f32(&x, DType::F32)?, b.alloc_f32(&levels, DType::F32)?);
        let (mut codes, mut scales) = (b.alloc(want.len(), DType::U8)?, b.alloc(absmax.len(), DType::F32)?);
        b.dyn8_quantize(&mut codes, &mut scales, &inp, &map, &p)?;
        let scaled = |i: usize| x[i] as f64 / absmax[i / dyn8::BLOCK] as f64;
        let midpoint = |low: u8| (levels[low as usize] as f64 + levels[low as usize + 1] as f64) / 2.0;
        assert_codes(case, &b.download(&codes)?, &want, scaled, midpoint);
        assert_eq!(b.download_f32(&scales)?, absmax, "{case} absmax");

        let mut out = b.alloc(x.len(), DType::F32)?;
        b.dyn8_dequantize(&mut out, &upload(b, &want)?, &scales, &map, &p)?;
        assert_close(case, &b.download_f32(&out)?, &dequant, ULPS);
    }
    Ok(())
}

#[test]
fn blockwise_quantization() {
    on_each(blockwise);
}

/// At most one code in a thousand differs, and then by one: their sums are rounded in another order.
fn assert_states(what: &str, got: &[u8], want: &[u8]) {
    let off: Vec<_> = got.iter().zip(want).map(|(g, w)| g.abs_diff(*w)).filter(|d| *d != 0).collect();
    assert!(got.len() == want.len() && off.iter().all(|d| *d == 1), "{what}: codes differ by {:?}", off.iter().max());
    assert!(off.len() * 1000 <= want.len(), "{what}: {} of {} codes differ", off.len(), want.len());
}

/// The code of 0.
fn zero(signed: bool) -> u8 {
    dynamic_map(signed).iter().position(|level| *level == 0.0).expect("a map has 0") as u8
}

fn adamw8(b: &dyn Backend, golden: &Golden) -> Result<()> {
    let start = golden.floats("adamw8.p0");
    let (P, blocks) = (start.len(), start.len() / dyn8::BLOCK);
    let mut weight = b.alloc_f32(&start, DType::F32)?;
    let (mut m, mut v) = (upload(b, &vec![zero(true); P])?, upload(b, &vec![zero(false); P])?);
    let (mut absmax1, mut absmax2) = (b.alloc(blocks, DType::F32)?, b.alloc(blocks, DType::F32)?);
    let (map1, map2) = (b.alloc_f32(&dynamic_map(true), DType::F32)?, b.alloc_f32(&dynamic_map(false), DType::F32)?);
    let scale = b.alloc_f32(&[1.0], DType::F32)?;
    for step in 0..6 {
        let p = AdamW::new(P, step + 1, 1e-3, (0.9, 0.999), 1e-8, 0.01);
        let grad = b.alloc_f32(&golden.floats(&format!("adamw8.g{step}")), DType::F32)?;
        b.adamw_step_8bit(&mut weight, &mut m, &mut v, &mut absmax1, &mut absmax2, &grad, &scale, &map1, &map2, &p)?;
        let (got, want) = (b.download_f32(&weight)?, golden.floats(&format!("adamw8.p{}", step + 1)));
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            assert!((g - w).abs() <= 2e-6, "step {step}: parameter {i} must be {w}, got {g}");
        }
    }
    assert_states("first moments", &b.download(&m)?, &golden.bytes("adamw8.state1"));
    assert_states("second moments", &b.download(&v)?, &golden.bytes("adamw8.state2"));
    // bitsandbytes takes 1 − 0.999 in f32, which is off by 1.3e-5
    assert_close("absmax1", &b.download_f32(&absmax1)?, &golden.floats("adamw8.absmax1"), 2e-5);
    assert_close("absmax2", &b.download_f32(&absmax2)?, &golden.floats("adamw8.absmax2"), 2e-5);
    Ok(())
}

#[test]
fn six_steps_of_8bit_adamw() {
    on_each(adamw8);
}

fn lion8(b: &dyn Backend, _: &Golden) -> Result<()> {
    let golden = Golden::of(LION);
    let start = golden.floats("p0");
    let (P, blocks) = (start.len(), start.len() / dyn8::BLOCK);
    let mut weight = b.alloc_f32(&start, DType::F32)?;
    let (mut m, mut absmax) = (upload(b, &vec![zero(true); P])?, b.alloc(blocks, DType::F32)?);
    let (map, scale) = (b.alloc_f32(&dynamic_map(true), DType::F32)?, b.alloc_f32(&[1.0], DType::F32)?);
    for step in 0..6 {
        let grad = b.alloc_f32(&golden.floats(&format!("g{step}")), DType::F32)?;
        b.lion_step_8bit(
            &mut weight,
            &mut m,
            &mut absmax,
            &grad,
            &scale,
            &map,
            &Lion::new(P, 1e-3, (0.9, 0.999), 0.01),
        )?;
    }
    // its quantizer on the CPU misses the nearest level by up to two, once in 500 values a step
    let off = b.download(&m)?.iter().zip(golden.bytes("state1")).filter(|(g, w)| *g != w).count();
    assert!(off * 100 <= P, "{off} of {P} codes differ");
    assert_close("absmax", &b.download_f32(&absmax)?, &golden.floats("absmax1"), 2e-5);
    // where a momentum lies between two levels the next sign may differ, and a step of lr goes the other way
    let (got, want) = (b.download_f32(&weight)?, golden.floats("p6"));
    let far = got.iter().zip(&want).filter(|(g, w)| (*g - *w).abs() > 2e-6).count();
    assert!(far * 1000 <= P, "{far} of {P} weights went another way");
    Ok(())
}

#[test]
fn six_steps_of_8bit_lion() {
    on_each(lion8);
}

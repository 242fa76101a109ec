//! Negative controls: what is wrong on purpose must turn the matrix red.
use super::*;
use luthier::backend::{Backend, Buf, Launch, cpu::Cpu};
use luthier::error::Result;
use luthier::ops::Slice;
use luthier::ops::nf4::Nf4;
use luthier::ops::rmsnorm::RmsNorm;

const P: RmsNorm = RmsNorm { N: 5, C: 24, eps: 1e-5, shift: 0.0 };

/// RMSNorm's backward without its mean term: right shape, right size, wrong.
fn planted(op: Op, args: Vec<Slice<f64>>, params: &[u8]) {
    assert_eq!(op, Op::rmsnorm_backward);
    let p: RmsNorm = bytemuck::pod_read_unaligned(params);
    let Ok([Slice::FloatMut(dinp), Slice::Float(dout), _, Slice::Float(weight), Slice::Float(rstd)]) =
        <[Slice<f64>; 5]>::try_from(args)
    else {
        panic!("as in the row")
    };
    (0..dinp.len()).for_each(|i| dinp[i] += rstd[i / p.C as usize] * dout[i] * weight[i % p.C as usize]);
}

#[test]
fn a_wrong_backward_fails() {
    let gradient = Gradient::new(Op::rmsnorm_forward, P, Op::rmsnorm_backward, P);
    gradient.check(&values::reference).unwrap();
    let e = gradient.check(&planted).unwrap_err();
    assert!(e.contains("`dinp` nmse"), "{e}");
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// One value of the first output off by a thousandth.
    Off,
    /// Nothing is done at all.
    Idle,
    /// One value of the first output is NaN.
    Nan,
    /// The word after the first output is written.
    Outside,
    /// An input is written.
    Input,
    /// The first code is another.
    Code,
}

/// The cpu backend with a fault. Buffers are the matrix's own: guard, argument, guard.
struct Broken {
    cpu: Cpu,
    fault: Fault,
}

impl Broken {
    /// The first output's first value, changed.
    fn change(&self, buf: &Buf, how: impl Fn(f32) -> f32) -> Result<()> {
        let dtype = buf.dtype();
        let mut word = buf.view(0, 4 / dtype.size());
        let mut values = dtype.decode(&self.download(&word)?);
        values[0] = how(values[0]);
        self.cpu.upload(&mut word, &dtype.encode(&values))
    }
}

impl Backend for Broken {
    luthier::pass_on! { cpu: alloc free upload copy memory available rules charge host_alloc host_free to_host
    from_host rows_from_host host_upload host_download }
    fn name(&self) -> &'static str {
        "broken"
    }
    fn device(&self) -> String {
        format!("{:?}", self.fault)
    }
    /// A whole buffer of the matrix with the fault `Outside` in it, which no view of the argument could reach.
    fn download(&self, from: &Buf) -> Result<Vec<u8>> {
        let mut bytes = self.cpu.download(from)?;
        if self.fault == Fault::Outside {
            let last_guard = bytes.len() - 256;
            bytes[last_guard] ^= 1;
        }
        Ok(bytes)
    }
    fn launch(&self, launch: &Launch) -> Result<()> {
        if self.fault == Fault::Idle {
            return Ok(());
        }
        self.cpu.launch(launch)?;
        let arg = |i: usize| launch.args()[i].expect("an argument is present");
        match self.fault {
            Fault::Off => self.change(arg(0), |x| x * 1.001),
            Fault::Nan => self.change(arg(0), |_| f32::NAN),
            Fault::Input => self.change(arg(2), |x| x + 1.0),
            Fault::Code => self.change(arg(0), |byte| (byte as u8 ^ 0x20) as f32),
            _ => Ok(()),
        }
    }
    fn sync(&self) -> Result<()> {
        Ok(())
    }
}

fn outcome(fault: Fault, case: &Case) -> Result<f64, String> {
    let trial = Trial::new(case, &case.storages()[0]);
    trial.compare(&trial.run(&Broken { cpu: Cpu::new(), fault })?)
}

#[test]
fn a_wrong_backend_fails() {
    let case = Case::new(Op::rmsnorm_forward, P);
    outcome(Fault::None, &case).unwrap();
    let wrong = [
        (Fault::Off, "`out` nmse"),
        (Fault::Idle, "`out` nmse NaN"),
        (Fault::Nan, "`out` nmse NaN"),
        (Fault::Outside, "`out` was written outside its bounds"),
        (Fault::Input, "`inp` is only read, but changed"),
    ];
    for (fault, what) in wrong {
        let e = outcome(fault, &case).unwrap_err();
        assert!(e.contains(what), "{fault:?}: {e}");
    }
}

#[test]
fn a_wrong_code_fails() {
    let case = Case::new(Op::nf4_quantize, Nf4 { P: 70 });
    outcome(Fault::None, &case).unwrap();
    let e = outcome(Fault::Code, &case).unwrap_err();
    assert!(e.contains("`codes` [0] is code"), "{e}");
}

#[test]
fn accumulation_and_pads_are_seen() {
    // an op that sets where it must add
    let case = Case::new(Op::rmsnorm_backward_weight, P);
    let trial = Trial::new(&case, &case.storages()[0]);
    let mut set = trial.clone();
    set.forget_old_values();
    let cpu = Cpu::plain();
    trial.compare(&trial.run(&cpu).unwrap()).unwrap();
    assert!(trial.compare(&set.run(&cpu).unwrap()).unwrap_err().contains("`dweight` nmse"));

    // an op that writes the pad of a row
    let case = Case::new(Op::bias_forward, luthier::ops::bias::Bias { N: 3, O: 6, ld_out: 8 });
    let trial = Trial::new(&case, &case.storages()[0]);
    let mut after = trial.run(&cpu).unwrap();
    trial.compare(&after).unwrap();
    trial.spoil(&mut after[0], 6);
    assert!(trial.compare(&after).unwrap_err().contains("the one at element 6 changed"));
}

#[test]
fn a_nan_is_above_every_limit() {
    assert!(!(limits::nmse(&[1.0, f64::NAN], &[1.0, 2.0]) <= 1e9));
    assert!(!(limits::nmse(&[0.0], &[f64::NEG_INFINITY]) <= 1e9));
    assert_eq!(limits::nmse(&[f64::NEG_INFINITY, 2.0], &[f64::NEG_INFINITY, 2.0]), 0.0);
}

#[test]
fn a_code_may_be_the_neighbour_only_beside_the_midpoint() {
    let level = nf4_case(0.45);
    let beside = nf4_case(luthier::ops::nf4::MIDPOINTS[12] as f64);
    for (inp, got, fine) in
        [(&level, 12, true), (&level, 13, false), (&beside, 12, true), (&beside, 13, true), (&beside, 11, false)]
    {
        let bytes = bytemuck::bytes_of(&Nf4 { P: 2 });
        // the first value is the block's scale, level 15
        let result = codes::compare(Op::nf4_quantize, "codes", &[0xf0 | got], inp, bytes);
        assert_eq!(result.is_ok(), fine, "code {got}: {result:?}");
    }
}

fn nf4_case(x: f64) -> values::Values {
    values::Values::from([("inp", values::Data::Float(vec![1.0, x]))])
}

//! The reference's backward against central differences, at f64, of L = Σ over the forward's outputs of out·dout.
//!
//! Names carry the meaning: `d`+name is the gradient of name; an `update` buffer of the backward turns from an input into its
//! gradient (gate), or from `dout` into the recomputed out. What is called otherwise is declared with `called`.
use crate::limits::nmse;
use crate::values::{Data, Noise, Run, Values, fill, is_pad, live, reference, run};
use luthier::ops::{Access, Arg, Elem, Extent, Op, Params};
use std::fmt::Debug;

pub struct Gradient {
    forward: (Op, Vec<u8>),
    backward: (Op, Vec<u8>),
    label: String,
    called: Vec<(&'static str, &'static str)>,
    found: Vec<&'static str>,
    statistics: Vec<(&'static str, Statistic)>,
    set: fn(&mut Values),
}

/// What an output of the backward that is no gradient must be.
type Statistic = fn(&Values, &[usize]) -> Vec<f64>;

/// (f(x + h) − f(x − h))/2h is off by h²·f‴/6 and by 1e-16·f/h.
const H: f64 = 1e-5;
const LIMIT: f64 = 1e-14;

impl Gradient {
    pub fn new<F: Params + Debug, B: Params + Debug>(forward: Op, f: F, backward: Op, b: B) -> Gradient {
        Gradient {
            forward: (forward, bytemuck::bytes_of(&f).to_vec()),
            backward: (backward, bytemuck::bytes_of(&b).to_vec()),
            label: format!("{forward:?} {f:?}, {backward:?} {b:?}"),
            called: Vec::new(),
            found: Vec::new(),
            statistics: Vec::new(),
            set: |_| (),
        }
    }
    /// An argument of the backward, and the name it would have if it were named after the forward's.
    pub fn called(mut self, names: &[(&'static str, &'static str)]) -> Gradient {
        self.called.extend(names);
        self
    }
    /// An argument of the backward that is what the forward found in the one it updates.
    pub fn found(mut self, arg: &'static str, name: &'static str) -> Gradient {
        self.found.push(arg);
        self.called(&[(arg, name)])
    }
    /// An output of the backward that is no gradient, from all values and the row's dims.
    pub fn statistic(mut self, arg: &'static str, of: Statistic) -> Gradient {
        self.statistics.push((arg, of));
        self
    }
    pub fn with(mut self, what: &str, set: fn(&mut Values)) -> Gradient {
        self.label = format!("{} {what}", self.label);
        self.set = set;
        self
    }
    pub fn backward(&self) -> Op {
        self.backward.0
    }
    fn name(&self, arg: &'static str) -> &'static str {
        self.called.iter().find(|(n, _)| *n == arg).map_or(arg, |(_, name)| *name)
    }

    pub fn check(&self, call: &Run) -> Result<(), String> {
        let mut noise = Noise::of(&self.label);
        let mut inputs = Values::new();
        fill(&mut inputs, self.forward.0, &self.forward.1, &mut noise, &self.set);
        let outputs = self.after_forward(&inputs);

        let (op, params) = (self.backward.0, &self.backward.1);
        let (dims, extents) = op.extents(params);
        let mut before = Values::new();
        let mut weights = Values::new();
        for (arg, extent) in op.spec().args.iter().zip(&extents) {
            let data = self.backward_arg(arg, extent, &inputs, &outputs, &mut weights, &mut noise);
            if let Some(data) = data {
                before.insert(arg.name, data);
            }
        }
        fill(&mut before, op, params, &mut noise, &|_| ());
        let mut after = before.clone();
        run(call, op, &mut after, params);

        for (arg, extent) in op.spec().args.iter().zip(&extents).filter(|(a, _)| a.access.writes()) {
            let old = |x: f64| if arg.access == Access::Add { x } else { 0.0 };
            let pairs = after[arg.name].floats().iter().zip(before[arg.name].floats());
            let got = live(&pairs.map(|(x, b)| x - old(*b)).collect::<Vec<_>>(), extent);
            let want = match self.statistics.iter().find(|(name, _)| *name == arg.name) {
                Some((_, of)) => of(&before, &dims),
                None => self.wanted(self.name(arg.name), &inputs, &outputs, &weights),
            };
            let err = nmse(&got, &want);
            if got.len() != want.len() || !(err <= LIMIT) {
                return Err(format!("{}: `{}` nmse {err:e}", self.label, arg.name));
            }
        }
        Ok(())
    }

    fn after_forward(&self, inputs: &Values) -> Values {
        let mut values = inputs.clone();
        run(&reference, self.forward.0, &mut values, &self.forward.1);
        values
    }
    /// The forward's argument of that name.
    fn forward_arg(&self, name: &str) -> Option<(&'static Arg, Extent)> {
        let mut args = self.forward.0.spec().args.iter().zip(self.forward.0.extents(&self.forward.1).1);
        args.find(|(a, _)| a.name == name)
    }
    /// The forward's output that `name` is the gradient of.
    fn output(&self, name: &str) -> Option<(&'static Arg, Extent)> {
        self.forward_arg(name.strip_prefix('d')?).filter(|(a, _)| a.access.writes())
    }

    /// What an argument of the backward starts as, where the forward has a say; gradients of outputs become weights of L.
    fn backward_arg(
        &self,
        arg: &'static Arg,
        extent: &Extent,
        inputs: &Values,
        outputs: &Values,
        weights: &mut Values,
        noise: &mut Noise,
    ) -> Option<Data> {
        let name = self.name(arg.name);
        if arg.access == Access::Write {
            return None;
        }
        if let Some((out, e)) = self.output(name).filter(|_| arg.access != Access::Add) {
            let weight = noise.vec(live(outputs[out.name].floats(), &e).len());
            weights.insert(out.name, Data::Float(weight.clone()));
            return Some(spread(&weight, extent));
        }
        let (given, e) = self.forward_arg(name)?;
        let made = given.access.writes() && !self.found.contains(&arg.name);
        let data = if made { &outputs[name] } else { &inputs[name] };
        Some(match given.elem {
            Elem::U32 | Elem::U8 => data.clone(),
            _ => spread(&live(data.floats(), &e), extent),
        })
    }

    /// What a written argument of the backward called `name` must hold.
    fn wanted(&self, name: &'static str, inputs: &Values, outputs: &Values, weights: &Values) -> Vec<f64> {
        let of = name.strip_prefix('d').filter(|of| self.forward_arg(of).is_some()).unwrap_or(name);
        let (arg, extent) =
            self.forward_arg(of).unwrap_or_else(|| panic!("{}: gradient of what? `{name}`", self.label));
        if arg.access == Access::Write {
            return live(outputs[of].floats(), &extent);
        }
        let loss = |values: &Values| {
            let outputs = self.after_forward(values);
            let dot = |(out, weight): (&&str, &Data)| {
                let (_, e) = self.forward_arg(out).expect("weights are of outputs");
                live(outputs[*out].floats(), &e).iter().zip(weight.floats()).map(|(a, b)| a * b).sum::<f64>()
            };
            weights.iter().map(dot).sum::<f64>()
        };
        let at = |i: usize, h: f64| {
            let mut moved = inputs.clone();
            moved.get_mut(of).expect("an input").floats_mut()[i] += h;
            loss(&moved)
        };
        let live = (0..inputs[of].floats().len()).filter(|i| !is_pad(&extent, *i));
        live.map(|i| (at(i, H) - at(i, -H)) / (2.0 * H)).collect()
    }
}

/// Live elements laid out with an argument's pads, which are NaN.
fn spread(live: &[f64], extent: &Extent) -> Data {
    let mut live = live.iter();
    let place = |i| if is_pad(extent, i) { f64::NAN } else { *live.next().expect("as many live elements in both") };
    Data::Float((0..extent.elements()).map(place).collect())
}

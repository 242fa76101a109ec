//! One call: its plan, its scratch, its stages; and what of it has to be remembered.
use super::text::TextArg;
use super::{Call, Wgpu, fail, plan};
use crate::backend::kernel_text::{self, Names};
use crate::backend::{Buf, Launch};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::Elem;

impl Wgpu {
    /// Runs a call whose arguments a shader sees as a whole, but for the tables of look-ups.
    pub(super) fn launch_whole(&self, launch: &Launch) -> Result<()> {
        let (op, spec) = (launch.op(), launch.op().spec());
        let names = kernel_text::names(spec.fields, launch.params());
        check_heads(launch, &names)?;
        let state = &mut *self.state.borrow_mut();
        let mut plan = self.rules.plan(launch, &names);
        let operand = |name: &str| {
            let place = spec.args.iter().position(|arg| arg.name == name).expect("a plan names arguments of its row");
            launch.args()[place].expect("operands are present")
        };
        state.exponents.settle(&mut plan, operand);
        let parsed = Self::parsed(state, op, plan.fast)?;
        let arg = |(arg, buf): (&crate::ops::Arg, &Option<&Buf>)| TextArg {
            name: arg.name,
            elem: arg.elem,
            dtype: buf.map(|b| b.dtype),
            wide: buf.is_some_and(|b| plan::is_wide(op, &names, arg.name, b.start, b.width)),
        };
        let mut args: Vec<TextArg> = spec.args.iter().zip(launch.args()).map(arg).collect();
        let (mut scratch, mut packed) = (state.scratch.take(), state.packed.take());
        let mut bufs = launch.args().to_vec();
        let made = self
            .grown(state, &mut scratch, plan.scratch, DType::F32)
            .and_then(|()| self.grown(state, &mut packed, plan.packed, DType::F16));
        if let (true, Some(scratch)) = (plan.scratch > 0, &scratch) {
            args.push(TextArg { name: "scratch", elem: Elem::F32, dtype: Some(DType::F32), wide: false });
            bufs.push(Some(scratch));
        }
        if let (true, Some(packed)) = (plan.packed > 0, &packed) {
            args.push(TextArg { name: "packed", elem: Elem::Float, dtype: Some(DType::F16), wide: true });
            bufs.push(Some(packed));
        }
        let exponent_values = state.exponent_values.take();
        if let (false, Some(values)) = (plan.scaled.is_empty(), &exponent_values) {
            args.push(TextArg { name: "exponents", elem: Elem::F32, dtype: Some(DType::F32), wide: false });
            bufs.push(Some(values));
        }
        let entry = plan.fast.map_or(spec.name, |f| f.name);
        let call = Call { fields: spec.fields, params: launch.params(), args: &args, bufs: &bufs, plan: &plan };
        let windows = self.table_windows(op, launch);
        let ran = made.and_then(|()| match windows.is_empty() {
            true => self.stages(state, &parsed, &call, entry),
            false => windows.into_iter().try_for_each(|window| {
                let (mut bufs, plan) = (call.bufs.to_vec(), plan::windowed(window.rows));
                bufs[window.place] = Some(&window.table);
                self.stages(state, &parsed, &Call { bufs: &bufs, plan: &plan, ..call }, entry)
            }),
        });
        (state.scratch, state.packed, state.exponent_values) = (scratch, packed, exponent_values);
        let written = spec.args.iter().zip(launch.args()).filter(|(arg, _)| arg.access.writes());
        written.filter_map(|(_, buf)| *buf).for_each(|buf| state.exponents.forget(buf));
        if ran.is_err() {
            state.exponents.clear();
        }
        ran
    }
}

/// 16-bit values travel in pairs: attention's heads must not share a word.
fn check_heads(launch: &Launch, names: &Names) -> Result<()> {
    let packed = launch.args().iter().flatten().any(|b| b.dtype.is_float() && b.dtype.size() == 2);
    if launch.op().spec().file == "attention" && packed && names["D"] % 2 == 1 {
        return Err(fail(format!("{}: an odd head size ({}) needs float32", launch.op().spec().name, names["D"])));
    }
    Ok(())
}

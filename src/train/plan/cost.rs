//! Which layers keep what: the fastest choice that fits, by the products that are computed again and the bytes that move.
//!
//! ```text
//! again(attention) = 2N·(q, k, v, gate, up)         again(input) = again(attention) + 2N·o + attention + what norms after want
//! host             = again(attention), and what copying takes longer than the layer's own products meanwhile
//! ```
//! Of the choices only those are of use that no mixture of two others beats; a plan gives the first layers the leaner one of two
//! neighbours among them, and the others the richer one.
use crate::error::{Error, Result};
use crate::model::spec::{LinearSpec, MlpKind, Spec};
use crate::model::{Keep, Plan};

/// How fast a device is, roughly: only ratios count, and only where memory is short.
struct Rates {
    /// Multiply-adds of products count twice; a second.
    flops: f64,
    /// Bytes to the host or back, a second.
    bus: f64,
    /// Copies run beside the computation.
    beside: bool,
}

impl Rates {
    fn of(backend: &str) -> Rates {
        match backend {
            "cuda" => Rates { flops: 2e14, bus: 2.5e10, beside: true },
            "wgpu" => Rates { flops: 2e13, bus: 1e10, beside: false },
            _ => Rates { flops: 1e11, bus: 1e10, beside: false },
        }
    }
}

/// Of the layers of a model, on average.
pub struct Costs {
    rates: Rates,
    layers: usize,
    /// Of a forward.
    forward: f64,
    /// Of what is computed again from the boundary, and from the input.
    again: [f64; 2],
    /// Bytes of frozen weights that come from the host, twice a step.
    streamed: u64,
}

impl Costs {
    /// For N tokens in sequences of T; `streamed` bytes of weights wait on the host.
    pub fn new(backend: &str, s: &Spec, (N, T): (usize, usize), streamed: u64) -> Costs {
        let (mut forward, mut again) = (0.0, [0.0; 2]);
        for l in 0..s.layers {
            let sum = |linears: Vec<LinearSpec>| linears.iter().map(|l| 2.0 * (l.O() * l.C * N) as f64).sum::<f64>();
            let (all, o) = (sum(s.linears(l)), sum(vec![s.o()]));
            // of `all`, what ends the MLP; and of a token's experts, which are not in `all`, the first products and the last
            let (end, [gate_up, down]) = match (s.mlp(l), s.expert(), &s.moe) {
                (MlpKind::Moe, Some((gate_up, down)), Some(moe)) => {
                    let shared = s.shared().map_or(0.0, |(_, down, _)| sum(vec![down]));
                    (shared, [gate_up, vec![down]].map(|linears| moe.S as f64 * sum(linears)))
                }
                _ => (sum(vec![s.down()]), [0.0; 2]),
            };
            let (first, down) = (all - o - end + gate_up, end + down);
            // half of the scores are seen; two products
            let attention = 2.0 * (N * T * s.H * s.D) as f64;
            forward += first + o + down + attention;
            again[0] += first;
            again[1] += first + o + attention + if s.norm_place.after() { down } else { 0.0 };
        }
        let each = |sum: f64| sum / s.layers.max(1) as f64;
        let streamed = streamed / s.layers.max(1) as u64;
        Costs { rates: Rates::of(backend), layers: s.layers, forward: each(forward), again: again.map(each), streamed }
    }

    /// Seconds that a plan takes beyond keeping everything; `host`: bytes that go there.
    fn of(&self, plan: &Plan, host: u64) -> f64 {
        let each = plan.layers(self.layers).unwrap_or_default();
        let away = each.iter().filter(|keep| **keep == Keep::Host).count() as u64;
        each.iter().map(|keep| self.seconds(*keep, host.checked_div(away).unwrap_or(0))).sum()
    }

    /// Seconds that a layer takes beyond keeping everything; `away`: bytes that go to the host.
    fn seconds(&self, keep: Keep, away: u64) -> f64 {
        let Rates { flops, bus, beside } = self.rates;
        // what copying takes longer than the products meanwhile, beyond what `others` on the same way take longer anyway
        let behind = |work: f64, others: u64| {
            let late = |bytes: u64| bytes as f64 / bus - if beside { work / flops } else { 0.0 };
            late(away + others).max(0.0) - late(others).max(0.0)
        };
        let [boundary, input] = self.again;
        match keep {
            Keep::All => 0.0,
            Keep::Attention => boundary / flops,
            Keep::Input => input / flops,
            Keep::Host => {
                boundary / flops + behind(self.forward, 0) + behind(2.0 * self.forward + boundary, self.streamed)
            }
        }
    }
}

/// How MLPs may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tiles {
    Whole,
    /// So many tokens at a time.
    Of(usize),
}

impl Tiles {
    fn plan(self, each: Vec<Keep>) -> Plan {
        match self {
            Tiles::Whole => Plan::Layers(each),
            Tiles::Of(rows) => Plan::Tiled(each, rows),
        }
    }
    /// What a plan costs more, as a share: packed weights are unpacked for each tile.
    fn surcharge(self) -> f64 {
        match self {
            Tiles::Whole => 0.0,
            Tiles::Of(rows) => 400.0 / rows as f64,
        }
    }
}

/// The fastest plan of these choices whose bytes on the device are at most `room`, or the leanest. `bytes`: on the device and on
/// the host.
pub fn choose(
    costs: &Costs,
    choices: &[Keep],
    tiles: &[Tiles],
    room: u64,
    bytes: impl Fn(&Plan) -> Result<(u64, u64)>,
) -> Result<Plan> {
    let mut best: Option<(bool, f64, u64, Plan)> = None;
    for tiles in tiles {
        let own: Vec<Keep> =
            choices.iter().copied().filter(|keep| *tiles == Tiles::Whole || *keep != Keep::All).collect();
        if own.is_empty() {
            continue;
        }
        let (plan, device, host) = fastest(costs, &own, *tiles, room, &bytes)?;
        let seconds =
            costs.of(&plan, host) + tiles.surcharge() * costs.forward / costs.rates.flops * costs.layers as f64;
        let fits = device <= room;
        let better = best.as_ref().is_none_or(|(others, time, size, _)| match (fits, others) {
            (true, true) => seconds < *time,
            (false, false) => device < *size,
            (fits, _) => fits,
        });
        if better {
            best = Some((fits, seconds, device, plan));
        }
    }
    best.map(|(.., plan)| plan).ok_or_else(|| Error::Bug("a plan without choices".into()))
}

/// The fastest that fits, or the leanest, of one way to run MLPs; with its bytes.
fn fastest(
    costs: &Costs,
    choices: &[Keep],
    tiles: Tiles,
    room: u64,
    bytes: &impl Fn(&Plan) -> Result<(u64, u64)>,
) -> Result<(Plan, u64, u64)> {
    let L = costs.layers;
    let uniform = |keep: &Keep| {
        let plan = tiles.plan(vec![*keep; L]);
        let (device, host) = bytes(&plan)?;
        Ok((*keep, device as f64, costs.of(&plan, host)))
    };
    let hull = hull(choices.iter().map(uniform).collect::<Result<_>>()?);
    let plan = |i: usize| {
        let (step, leaner) = (i / L.max(1), i % L.max(1));
        let at = |step: usize| hull[step.min(hull.len() - 1)];
        tiles.plan((0..L).map(|l| at(step + usize::from(l < leaner))).collect())
    };
    // bytes fall with i, and seconds rise
    let (mut first, mut last) = (0, (hull.len() - 1) * L);
    while first < last {
        let middle = (first + last) / 2;
        if bytes(&plan(middle))?.0 <= room { last = middle } else { first = middle + 1 }
    }
    let plan = plan(first);
    let (device, host) = bytes(&plan)?;
    Ok((plan, device, host))
}

/// From the fastest on, those of (choice, bytes, seconds) that are on the lower convex hull.
fn hull(mut all: Vec<(Keep, f64, f64)>) -> Vec<Keep> {
    all.sort_by(|a, b| a.2.total_cmp(&b.2).then(a.1.total_cmp(&b.1)));
    let mut hull: Vec<(Keep, f64, f64)> = Vec::new();
    for next in all {
        if hull.last().is_some_and(|last| next.1 >= last.1) {
            continue;
        }
        // the bytes that a second saves must not rise
        while let [.., a, b] = hull[..]
            && (a.1 - b.1) * (next.2 - b.2) <= (b.1 - next.1) * (b.2 - a.2)
        {
            hull.pop();
        }
        hull.push(next);
    }
    hull.into_iter().map(|(keep, ..)| keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_others_beat_is_left_out() {
        let of = |all: &[(Keep, f64, f64)]| hull(all.to_vec());
        use Keep::*;
        assert_eq!(of(&[(Input, 1.0, 3.0), (All, 10.0, 0.0), (Attention, 3.0, 1.0)]), [All, Attention, Input]);
        // dominated, and above the line between its neighbours
        assert_eq!(
            of(&[(All, 10.0, 0.0), (Attention, 3.0, 1.0), (Input, 4.0, 2.0), (Host, 1.0, 1.5)]),
            [All, Attention, Host]
        );
        assert_eq!(of(&[(All, 10.0, 0.0), (Attention, 9.0, 1.0), (Input, 1.0, 1.5)]), [All, Input]);
    }

    #[test]
    fn as_much_is_kept_as_fits() {
        let rates = Rates { flops: 1.0, bus: 1.0, beside: true };
        let costs = Costs { rates, layers: 4, forward: 3.0, again: [1.0, 3.0], streamed: 0 };
        let bytes = |plan: &Plan| {
            let of = |keep: Keep| match keep {
                Keep::All => 10,
                Keep::Attention => 3,
                Keep::Input => 1,
                Keep::Host => 0,
            };
            Ok((plan.layers(4).unwrap().into_iter().map(of).sum(), 0))
        };
        let choices = [Keep::All, Keep::Attention, Keep::Input];
        let plan = |room| choose(&costs, &choices, &[Tiles::Whole], room, bytes).unwrap().layers(4).unwrap();
        assert_eq!(plan(100), [Keep::All; 4]);
        assert_eq!(plan(39), [Keep::Attention, Keep::All, Keep::All, Keep::All]);
        assert_eq!(plan(13), [Keep::Attention; 4]);
        assert_eq!(plan(10), [Keep::Input, Keep::Attention, Keep::Attention, Keep::Attention]);
        // nothing fits: the leanest there is
        assert_eq!(plan(2), [Keep::Input; 4]);
    }

    /// Tiles cost a little, and take less than what they spare.
    #[test]
    fn tiles_come_before_attention_is_computed_again() {
        let rates = Rates { flops: 1.0, bus: 1.0, beside: true };
        let costs = Costs { rates, layers: 2, forward: 3.0, again: [1.0, 3.0], streamed: 0 };
        let bytes = |plan: &Plan| {
            let of = |keep: Keep| if keep == Keep::Attention { 3 } else { 1 };
            let gate = if let Plan::Tiled(..) = plan { 1 } else { 8 };
            Ok((gate + plan.layers(2).unwrap().into_iter().map(of).sum::<u64>(), 0))
        };
        let choices = [Keep::Attention, Keep::Input];
        let plan = |room| choose(&costs, &choices, &[Tiles::Whole, Tiles::Of(8000)], room, bytes).unwrap();
        assert_eq!(plan(14), Plan::Layers(vec![Keep::Attention; 2]));
        assert_eq!(plan(12), Plan::Tiled(vec![Keep::Attention; 2], 8000));
        assert_eq!(plan(5), Plan::Tiled(vec![Keep::Input, Keep::Attention], 8000));
        assert_eq!(plan(1), Plan::Tiled(vec![Keep::Input; 2], 8000));
    }
}

//! What the forward leaves for the backward, layer by layer as a plan says: every layer has handles of what its backward reads,
//! and where the plan saves memory, several layers have handles of the same buffers.
//!
//! ```text
//! keep        x    everything but the norms' outputs  of its own, and T of all its adapters
//! attention   x    att, lse, x2 (`Saved::boundary`)   of its own, the rest of one set for all
//! recompute   x                                       of its own, the rest of one set for all
//! offload     x    att, lse, x2                       of one of two slots, by turns, and of the host's
//! ```
//! Layer k of those on the host leaves when its block has run; its slot is layer k + 2's next. In the backward, layer k − 2 comes
//! back into the slot as soon as layer k is through, while layer k − 1 computes. The last two never leave their slots.
use super::block::Saved;
use super::linear::low::Ranks;
use super::mlp::Room;
use super::plan::{Keep, Plan};
use super::spec::Spec;
use crate::backend::{Backend, Buf, Charge, HostBuf, HostScope, Scope, Use};
use crate::dtype::DType;
use crate::error::Result;

/// Of layers on the host.
const SLOTS: usize = 2;

pub struct Kept<'b> {
    /// `None`: there is no backward.
    plan: Option<Vec<Keep>>,
    /// Residual stream: the input of each block, and the last block's output.
    pub x: Vec<Buf>,
    /// One per layer.
    pub saved: Vec<Saved>,
    /// The layers on the host, in order.
    away: Vec<Away>,
    _host: HostScope<'b>,
}

/// A layer whose input and boundary wait on the host.
struct Away {
    layer: usize,
    /// Empty: its slot is not wanted by another before the backward.
    bufs: Vec<HostBuf>,
}

impl<'b> Kept<'b> {
    /// `room`: where layers that compute again have their gate and up.
    /// `ranks`: each layer's.
    pub fn new(
        scope: &Scope<'b>,
        s: &Spec,
        ranks: &[Ranks],
        N: usize,
        dtype: DType,
        plan: &Plan,
        room: &Room,
    ) -> Result<Kept<'b>> {
        let (b, layers) = (scope.backend(), s.layers);
        let host = HostScope::new(b);
        let Some(each) = plan.layers(layers) else {
            let two = [scope.alloc(N * s.C, dtype)?, scope.alloc(N * s.C, dtype)?];
            let one = Saved::new(scope, s, &s.mlps(), N, dtype, None, Some(room), Ranks::default())?;
            let x = (0..layers + 1).map(|l| two[l % 2].view(0, N * s.C)).collect();
            let saved = (0..layers).map(|_| one.share()).collect();
            return Ok(Kept { plan: None, x, saved, away: Vec::new(), _host: host });
        };
        let _charge = Charge::to(b, Use::Activations);
        let mut sets = Sets::new(scope, s, (&each, ranks), N, dtype, plan.tile(N), room)?;
        let on_host: Vec<usize> = (0..layers).filter(|l| each[*l] == Keep::Host).collect();
        let slots: Vec<(Buf, Saved)> = (0..SLOTS.min(on_host.len()))
            .map(|_| Ok((scope.alloc(N * s.C, dtype)?, sets.boundary(scope)?)))
            .collect::<Result<_>>()?;
        let (mut x, mut saved, mut away) = (Vec::new(), Vec::new(), Vec::new());
        for (l, keep) in each.iter().enumerate() {
            if *keep == Keep::Host {
                let k = away.len();
                let (slot, own) = &slots[k % SLOTS];
                x.push(slot.view(0, slot.len()));
                saved.push(own.share());
                let bufs = if k + SLOTS < on_host.len() { travellers(&x[l], &mut saved[l]) } else { Vec::new() };
                let bufs = bufs.iter().map(|buf| host.alloc(buf.len(), buf.dtype())).collect::<Result<_>>()?;
                away.push(Away { layer: l, bufs });
                continue;
            }
            x.push(scope.alloc(N * s.C, dtype)?);
            saved.push(match keep {
                Keep::All => Saved::new(scope, s, &[s.mlp(l)], N, dtype, None, None, ranks[l])?,
                Keep::Attention => sets.boundary(scope)?,
                _ => sets.common(),
            });
        }
        x.push(scope.alloc(N * s.C, dtype)?);
        Ok(Kept { plan: Some(each), x, saved, away, _host: host })
    }

    /// How layer l gets what its backward reads.
    pub fn keep(&self, l: usize) -> Keep {
        self.plan.as_ref().expect("a session for training")[l]
    }

    /// Layer l has run forward: what it leaves may go.
    pub fn leave(&mut self, b: &dyn Backend, l: usize) -> Result<()> {
        let Some(away) = self.away.iter_mut().find(|away| away.layer == l && !away.bufs.is_empty()) else {
            return Ok(());
        };
        let bufs = travellers(&self.x[l], &mut self.saved[l]);
        away.bufs.iter_mut().zip(&bufs).try_for_each(|(host, buf)| b.to_host(host, buf))
    }

    /// Layer l has run backward: what is wanted next comes into its place.
    pub fn fetch(&mut self, b: &dyn Backend, l: usize) -> Result<()> {
        let place = self.away.iter().position(|away| away.layer == l);
        let Some(k) = place.and_then(|k| k.checked_sub(SLOTS)) else { return Ok(()) };
        let Away { layer, bufs } = &self.away[k];
        let mut to = travellers(&self.x[*layer], &mut self.saved[*layer]);
        bufs.iter().zip(&mut to).try_for_each(|(host, buf)| b.from_host(buf, host))
    }
}

/// What goes to the host of a layer.
fn travellers(x: &Buf, saved: &mut Saved) -> Vec<Buf> {
    let boundary = saved.boundary().into_iter().map(|buf| buf.view(0, buf.len()));
    [x.view(0, x.len())].into_iter().chain(boundary).collect()
}

/// What layers that compute again have in common.
struct Sets {
    /// `None`: no layer computes again.
    common: Option<Saved>,
    /// Nobody has taken the common boundary yet, and nobody shares it.
    spare: bool,
}

impl Sets {
    fn new(
        scope: &Scope,
        s: &Spec,
        (each, ranks): (&[Keep], &[Ranks]),
        N: usize,
        dtype: DType,
        tile: Option<usize>,
        room: &Room,
    ) -> Result<Sets> {
        let mut mlps: Vec<_> = (0..each.len()).filter(|l| each[*l] != Keep::All).map(|l| s.mlp(l)).collect();
        mlps.dedup();
        let ranks = ranks.iter().copied().fold(Ranks::default(), Ranks::max).again();
        let common = || Saved::new(scope, s, &mlps, N, dtype, tile, Some(room), ranks);
        let common = (!mlps.is_empty()).then(common).transpose()?;
        Ok(Sets { common, spare: !each.contains(&Keep::Input) })
    }
    fn common(&self) -> Saved {
        self.common.as_ref().expect("some layer computes again").share()
    }
    /// The common set with a boundary of its own.
    fn boundary(&mut self, scope: &Scope) -> Result<Saved> {
        let mut saved = self.common();
        if !std::mem::take(&mut self.spare) {
            for buf in saved.boundary() {
                *buf = scope.alloc(buf.len(), buf.dtype())?;
            }
        }
        Ok(saved)
    }
}

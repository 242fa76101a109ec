//! Trained tensors side by side in common buffers, so that an optimizer's step is a few launches and not one per tensor: an
//! adapter has hundreds of small ones, and launching would cost more than moving them. The matrices of a model that is trained as a
//! whole stay where they are, for each of them can move as soon as its gradient is there.
//!
//! Each tensor starts at a multiple of [`ALIGN`]: its blocks of 256 (moments in 8 bits) and of 4096 (gradient norm) are its
//! own, and what is computed is the same as tensor by tensor. The gaps hold zeros, and zeros stay zeros. Adapters' A come one behind
//! the other, so that those that read one input are one matrix where they leave no gaps (`model/linear/low.rs`).
use crate::backend::{Backend, Buf, Charge, Use};
use crate::dtype::DType;
use crate::error::Result;
use crate::model::Model;
use crate::model::param::{Param, Sum, Train};
use crate::ops::gradnorm;
use std::cell::Cell;
use std::rc::Rc;

/// Elements; a multiple of every block size.
pub(super) const ALIGN: usize = gradnorm::BLOCK;
/// Larger tensors stay where they are, whatever they are: they fill a device by themselves.
const SMALL: usize = 1 << 22;
/// A group's elements at most: well below the largest binding.
const GROUP: usize = 1 << 26;

/// It stays where it is.
fn is_alone(param: &Param) -> bool {
    param.value.len() >= SMALL || param.is_matrix() && !param.name.contains(".lora_")
}

/// Tensors that are moved by the same launch.
pub(super) struct Group<K> {
    /// What its tensors have in common.
    pub key: K,
    pub value: Buf,
    pub grad: Buf,
    pub master: Option<Buf>,
    /// Of the gradient of a large tensor; small ones' start as zeros.
    pub sum: Option<Rc<Cell<Sum>>>,
}

impl<K> Group<K> {
    /// The gradient has been used up.
    pub fn clear(&mut self, b: &dyn Backend) -> Result<()> {
        match &self.sum {
            Some(sum) => {
                sum.set(Sum::Nothing);
                Ok(())
            }
            None => b.fill(&mut self.grad, 0.0),
        }
    }
    /// The gradient, which is zeros where nothing was added to it.
    pub fn gradient(&mut self, b: &dyn Backend) -> Result<&Buf> {
        if self.sum.as_ref().is_some_and(|sum| sum.replace(Sum::Begun) == Sum::Nothing) {
            b.fill(&mut self.grad, 0.0)?;
        }
        Ok(&self.grad)
    }
}

/// Where a trained tensor lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Place {
    pub group: usize,
    pub offset: usize,
    pub len: usize,
}

/// Moves the small trained tensors of equal key into common buffers; keys and places are in the model's order. `rooms`: where the
/// gradients of some large ones shall be that have no room yet.
pub(super) fn group<K: PartialEq>(
    b: &dyn Backend,
    model: &mut Model,
    keys: Vec<K>,
    rooms: Vec<Option<Buf>>,
) -> Result<(Vec<Group<K>>, Vec<Place>)> {
    let tensors = model.trained().map(|p| (p.name.contains(".lora_A."), (p.value.len(), is_alone(p))));
    let (bins, places) = plan_a_first(&tensors.collect::<Vec<_>>(), keys, GROUP);
    let mut made: Vec<Group<K>> = Vec::new();
    let trained: Vec<&mut Param> = model.params_mut().filter(|p| p.train.is_some()).collect();
    let members = places.iter().copied().zip(trained).zip(rooms);
    let mut members: Vec<Member> = members.map(|((place, param), room)| (place, param, room)).collect();
    members.sort_by_key(|(place, ..)| (place.group, place.offset));
    let mut members = members.into_iter().peekable();
    for Bin { key, size, alone } in bins {
        let group = made.len();
        let own: Vec<_> = std::iter::from_fn(|| members.next_if(|(place, ..)| place.group == group)).collect();
        made.push(if alone { keep(b, key, own)? } else { gather(b, key, size, own)? });
    }
    Ok((made, places))
}

/// A tensor of a group, and where its gradient shall be.
type Member<'p> = (Place, &'p mut Param, Option<Buf>);

/// The plan that has A before all others, which each tensor says of itself; its places are in the order of `tensors` again.
fn plan_a_first<K: PartialEq>(
    tensors: &[(bool, (usize, bool))],
    keys: Vec<K>,
    limit: usize,
) -> (Vec<Bin<K>>, Vec<Place>) {
    let mut order: Vec<(usize, K)> = keys.into_iter().enumerate().collect();
    order.sort_by_key(|(i, _)| !tensors[*i].0);
    let (at, keys): (Vec<usize>, Vec<K>) = order.into_iter().unzip();
    let (bins, sorted) = plan(at.iter().map(|i| tensors[*i].1).zip(keys), limit);
    let mut places: Vec<(usize, Place)> = at.into_iter().zip(sorted).collect();
    places.sort_by_key(|(i, _)| *i);
    (bins, places.into_iter().map(|(_, place)| place).collect())
}

/// A group to be.
struct Bin<K> {
    key: K,
    size: usize,
    /// Of one large tensor that stays in its own buffers.
    alone: bool,
}

/// First fit into bins of at most `limit` elements, of tensors with their lengths and whether they stay alone.
fn plan<K: PartialEq>(tensors: impl Iterator<Item = ((usize, bool), K)>, limit: usize) -> (Vec<Bin<K>>, Vec<Place>) {
    let (mut bins, mut places): (Vec<Bin<K>>, Vec<Place>) = (Vec::new(), Vec::new());
    for ((len, alone), key) in tensors {
        let alone = alone || len >= limit;
        let room = |bin: &Bin<K>| !bin.alone && bin.key == key && bin.size + len <= limit;
        let found = bins.iter().position(|bin| !alone && room(bin));
        let group = found.unwrap_or_else(|| {
            bins.push(Bin { key, size: 0, alone });
            bins.len() - 1
        });
        let bin = &mut bins[group];
        places.push(Place { group, offset: bin.size, len });
        bin.size += len.next_multiple_of(ALIGN);
    }
    (bins, places)
}

/// A group of one tensor, in its own buffers.
fn keep<K>(b: &dyn Backend, key: K, own: Vec<Member>) -> Result<Group<K>> {
    let (_, param, room) = own.into_iter().next().expect("a group has a member");
    let whole = |buf: &Buf| buf.view(0, buf.len());
    let train = param.train.as_mut().expect("only trained tensors");
    if train.grad.is_empty() {
        let _charge = Charge::to(b, Use::Gradients);
        let room = room.map_or_else(|| b.alloc(param.value.len(), train.grad.dtype()), Ok)?;
        b.free(std::mem::replace(&mut train.grad, room));
        train.sum.set(Sum::Nothing);
    }
    let (value, grad, master) = (whole(&param.value), whole(&train.grad), train.master.as_ref().map(whole));
    Ok(Group { key, value, grad, master, sum: Some(train.sum.clone()) })
}

/// New buffers for all, to which the tensors move.
fn gather<K>(b: &dyn Backend, key: K, size: usize, own: Vec<Member>) -> Result<Group<K>> {
    let first = &own.first().expect("a group has a member").1;
    let train = first.train.as_ref().expect("only trained tensors");
    let (has_master, gradients) = (train.master.is_some(), train.grad.dtype());
    let alloc = |what: Use, dtype: DType| {
        let _charge = Charge::to(b, what);
        b.alloc(size, dtype)
    };
    let value_is = if first.name.contains(".lora_") { Use::Adapter } else { Use::Weights };
    let value = alloc(value_is, first.value.dtype())?;
    let grad = alloc(Use::Gradients, gradients)?;
    let master = if has_master { Some(alloc(Use::Master, DType::F32)?) } else { None };
    for (Place { offset, len, .. }, param, _) in own {
        let move_to = |to: &Buf, from: &mut Buf| -> Result<()> {
            let mut place = to.view(offset, len);
            b.copy(&mut place, from)?;
            b.free(std::mem::replace(from, place));
            Ok(())
        };
        let Param { value: old, train: Some(Train { grad: old_grad, master: old_master, sum }), .. } = param else {
            unreachable!("only trained tensors")
        };
        move_to(&value, old)?;
        if sum.replace(Sum::Begun) == Sum::Begun && !old_grad.is_empty() {
            move_to(&grad, old_grad)?;
        } else {
            b.free(std::mem::replace(old_grad, grad.view(offset, len)));
        }
        if let (Some(master), Some(old_master)) = (&master, old_master) {
            move_to(master, old_master)?;
        }
    }
    Ok(Group { key, value, grad, master, sum: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_a_are_neighbours() {
        // A, B, a norm, A, B
        let tensors = [true, false, false, true, false].map(|a| (a, (ALIGN, false)));
        let (bins, places) = plan_a_first(&tensors, vec![0, 0, 1, 0, 0], 1 << 20);
        assert_eq!(bins.iter().map(|bin| (bin.key, bin.size)).collect::<Vec<_>>(), [(0, 4 * ALIGN), (1, ALIGN)]);
        let at: Vec<(usize, usize)> = places.iter().map(|p| (p.group, p.offset / ALIGN)).collect();
        assert_eq!(at, [(0, 0), (0, 2), (1, 0), (0, 1), (0, 3)]);
    }

    #[test]
    fn bins_may_be_exactly_full_and_large_tensors_stay_alone() {
        let lens = [ALIGN, 2 * ALIGN, 1, 4 * ALIGN, 5000, 3 * ALIGN];
        let (bins, places) = plan(lens.iter().map(|len| ((*len, *len == 5000), ())), 4 * ALIGN);
        let group: Vec<usize> = places.iter().map(|p| p.group).collect();
        assert_eq!(group, [0, 0, 0, 1, 2, 3]);
        assert_eq!(
            bins.iter().map(|b| (b.size, b.alone)).collect::<Vec<_>>()[..2],
            [(4 * ALIGN, false), (4 * ALIGN, true)]
        );
        for (i, p) in places.iter().enumerate() {
            assert!(p.offset.is_multiple_of(ALIGN) && p.offset + p.len <= bins[p.group].size);
            let apart = |q: &Place| q.group != p.group || q.offset >= p.offset + p.len || p.offset >= q.offset + q.len;
            assert!(places[..i].iter().all(apart));
        }
    }
}

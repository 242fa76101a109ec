use super::*;
use luthier::ops::route::{RouteGather, RouteIndex};
use values::{Data, Values};

/// Most experts get nothing.
fn crowded(values: &mut Values) {
    let Some(Data::U32(experts)) = values.get_mut("experts") else { panic!("experts are u32") };
    let last = *experts.iter().max().expect("at least one");
    experts.iter_mut().for_each(|e| *e = if *e % 7 == 3 { last } else { *e % 2 * last / 2 });
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let slots = [(1, 1, 1), (1, 3, 2), (7, 4, 2), (255, 6, 1), (129, 8, 2), (100, 128, 8), (1031, 5, 3), (4096, 60, 4), (33, 300, 4)];
    for (N, E, S) in slots {
        let p = RouteIndex { N, E, S };
        cases.extend([Case::new(Op::route_index, p), Case::new(Op::route_index, p).with("crowded", crowded)]);
    }
    for (N, S, C) in [(1, 1, 1), (1, 2, 4), (7, 3, 6), (65, 2, 65), (130, 8, 48), (33, 1, 1030), (5, 4, 2050), (300, 6, 128)] {
        let p = RouteGather { N, S, C };
        cases.extend([Case::new(Op::route_gather_forward, p), Case::new(Op::route_gather_backward, p)]);
    }
    cases
}

pub fn gradients() -> Vec<Gradient> {
    let of = |N, S, C| {
        let p = RouteGather { N, S, C };
        Gradient::new(Op::route_gather_forward, p, Op::route_gather_backward, p)
    };
    vec![of(1, 1, 1), of(4, 2, 3), of(3, 5, 2)]
}

#[test]
fn slots_of_an_expert_keep_their_order() {
    let (mut rows, mut places, mut offsets) = (vec![9; 6], vec![9; 6], vec![9; 5]);
    let p = RouteIndex { N: 3, E: 4, S: 2 };
    luthier::ops::route::route_index::<f64>(&mut rows, &mut places, &mut offsets, &[2, 0, 2, 3, 0, 2], &p);
    assert_eq!((rows, places), (vec![1, 4, 0, 2, 5, 3], vec![2, 0, 3, 5, 1, 4]));
    assert_eq!(offsets, [0, 2, 2, 5, 6]);
}

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::hlc::Stamp;
use crate::id::{Incarnation, Lanes};

const RECORD: &[u8] = &[3, 1, 2, 3];

fn lane(index: u8) -> LaneId {
    Lanes::default().lane(index).unwrap()
}

fn origin(name: &str) -> Arc<Origin> {
    Arc::new(Origin { node: name.parse().unwrap(), incarnation: Incarnation(1) })
}

fn batch(lane: LaneId, first: Sequence, count: u32) -> Batch {
    let records = Bytes::from(RECORD.repeat(count as usize));
    Batch { lane, first, count, base: Stamp(7), records }
}

fn read(held: &Held, origin: &Arc<Origin>, from: Sequence) -> (Read, Vec<(Sequence, u32)>) {
    let (mut cursor, mut out) = (Cursor { next: from }, Vec::new());
    let read = held.read((origin, lane(0)), &mut cursor, usize::MAX, &mut out);
    let sound = out.iter().all(|batch| batch.records.len() == batch.count as usize * RECORD.len());
    assert!(sound, "each batch has the records that it says");
    (read, out.iter().map(|batch| (batch.first, batch.count)).collect())
}

#[test]
fn a_follower_is_served_from_where_it_stands_and_may_be_ahead() {
    let (mut held, a) = (Held::new(HELD_BYTES_MAX), origin("a"));
    assert_eq!(held.position(&a, lane(0), 1, 1), Position::Held(Cursor { next: 1 }), "nothing came yet");
    held.push(&a, batch(lane(0), 1, 3));
    held.push(&a, batch(lane(0), 4, 2));
    assert_eq!(read(&held, &a, 3), (Read::Some, vec![(3, 1), (4, 2)]));
    assert_eq!(held.position(&a, lane(0), 9, 6), Position::Held(Cursor { next: 9 }));
    assert_eq!(read(&held, &a, 9), (Read::Empty, vec![]));
    assert_eq!(read(&held, &origin("b"), 1), (Read::Empty, vec![]));
}

#[test]
fn what_comes_twice_is_held_once() {
    let (mut held, a) = (Held::new(HELD_BYTES_MAX), origin("a"));
    held.push(&a, batch(lane(0), 1, 3));
    let bytes = held.bytes();
    held.push(&a, batch(lane(0), 2, 2));
    assert_eq!(held.bytes(), bytes);
    held.push(&a, batch(lane(0), 3, 3));
    assert_eq!(read(&held, &a, 1), (Read::Some, vec![(1, 3), (4, 2)]));
}

#[test]
fn what_lies_before_a_fence_is_not_served() {
    let (mut held, a) = (Held::new(HELD_BYTES_MAX), origin("a"));
    held.push(&a, batch(lane(0), 1, 3));
    assert_eq!(held.position(&a, lane(0), 2, 9), Position::Gone(9), "this node was reset to 9");
    held.push(&a, batch(lane(0), 9, 1));
    assert_eq!(held.position(&a, lane(0), 2, 10), Position::Gone(9));
    assert_eq!(read(&held, &a, 2), (Read::Overrun(9), vec![]));
    held.forget(&a);
    assert_eq!((held.bytes(), held.order.len()), (0, 0));
}

proptest! {
    /// Whatever comes, of whom, and whoever goes: the bound holds, and what is read is without holes.
    #[test]
    fn bytes_are_bounded_and_lanes_without_holes(
        steps in prop::collection::vec((0_usize..3, 0_u64..20, 1_u32..30), 1..200),
    ) {
        let bytes_max = 12 * BATCH_OVERHEAD_BYTES;
        let origins = ["a", "b", "c"].map(origin);
        let (mut held, mut next) = (Held::new(bytes_max), [1; 3]);
        for (of, what, count) in steps {
            match what {
                0 => held.forget(&origins[of]),
                1 => next[of] += 5,
                _ => {
                    held.push(&origins[of], batch(lane(0), next[of], count));
                    next[of] += u64::from(count);
                }
            }
            prop_assert!(held.bytes() <= bytes_max);
            let batches = held.lanes.values().map(|lane| lane.batches.len()).sum::<usize>();
            prop_assert_eq!(held.order.len(), batches);
            prop_assert_eq!(held.lanes.values().flat_map(|lane| &lane.batches).map(cost).sum::<usize>(), held.bytes());
            let (mut cursor, mut out) = (Cursor { next: 1 }, Vec::new());
            if let Read::Overrun(oldest) = held.read((&origins[of], lane(0)), &mut cursor, usize::MAX, &mut out) {
                cursor.next = oldest;
                held.read((&origins[of], lane(0)), &mut cursor, usize::MAX, &mut out);
            }
            prop_assert!(out.windows(2).all(|pair| pair[0].next() == pair[1].first));
        }
    }
}

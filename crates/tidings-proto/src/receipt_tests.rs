use proptest::prelude::*;

use super::*;
use crate::id::{Incarnation, Lanes};

const BOUND: Duration = Duration::from_millis(3_000);

fn at(ms: u64) -> Tick {
    Tick(1 << 40).after(Duration::from_millis(ms))
}

fn life(node: usize, incarnation: u64) -> Origin {
    let node = NodeId::new(&format!("n{node}")).unwrap();
    Origin { node, incarnation: Incarnation(incarnation) }
}

fn lane(index: usize) -> LaneId {
    Lanes::default().ids().nth(index).unwrap()
}

fn positions(all: &[(usize, Sequence)]) -> Positions {
    let mut positions = Positions::default();
    all.iter().for_each(|(index, sequence)| positions.add(lane(*index), *sequence));
    positions
}

fn names(nodes: &[NodeId]) -> Vec<&str> {
    nodes.iter().map(NodeId::as_str).collect()
}

const SILENT: Said = Said { reached: false, heard: Tick::NEVER, reachable: false };

#[test]
fn the_later_position_of_a_lane_stands_for_all_before_it() {
    let mut all = positions(&[(0, 7), (2, 1), (0, 5)]);
    all.merge(&positions(&[(1, 4), (2, 9)]));
    assert_eq!(&*all, [(lane(0), 7), (lane(2), 9), (lane(1), 4)]);
    assert!(positions(&[]).is_empty());
}

#[test]
fn who_joined_behind_a_change_or_left_before_it_is_not_waited_for() {
    let member = |since: &[Sequence], until: Option<&[Sequence]>| Tenure {
        since: since.to_vec(),
        until: until.map(<[_]>::to_vec),
    };
    let change = positions(&[(0, 10), (1, 20)]);
    assert!(member(&[0, 0, 0, 0], None).covers(&change));
    assert!(member(&[9, 19, 0, 0], None).covers(&change));
    assert!(!member(&[10, 20, 0, 0], None).covers(&change), "it joined after the append");
    assert!(member(&[10, 19, 0, 0], None).covers(&change), "half of it came after it joined");
    assert!(member(&[0, 0, 0, 0], Some(&[10, 20, 0, 0])).covers(&change), "it left after the append");
    assert!(!member(&[0, 0, 0, 0], Some(&[9, 19, 5, 5])).covers(&change), "it left before the append");
    assert!(!member(&[0, 0, 0, 0], None).covers(&positions(&[])), "nobody has to be told of nothing");
}

#[test]
fn nobody_to_wait_for_is_a_complete_receipt() {
    let pending = Pending::new(at(0), BOUND, []);
    assert_eq!((pending.due(), pending.receipt()), (None, Receipt::default()));
    assert!(pending.receipt().is_complete());
}

#[test]
fn a_silent_peer_expires_a_bound_after_the_later_of_its_last_probe_and_the_append() {
    for (heard, expires) in [(at(0), at(13_000)), (at(12_000), at(15_000)), (Tick::NEVER, at(13_000))] {
        let mut pending = Pending::new(at(10_000), BOUND, [life(1, 1)]);
        let said = Said { heard, ..SILENT };
        assert!(pending.said(0, said, Tick(expires.0 - 1)));
        assert_eq!(pending.due(), Some(expires));
        let missing = Missing { node: life(1, 1).node, reason: MissingReason::Unreachable };
        assert_eq!(pending.receipt().missing, [missing]);
        assert!(!pending.said(0, said, expires));
        assert_eq!(names(&pending.receipt().expired), ["n1"]);
        assert!(pending.receipt().is_complete());
    }
}

#[test]
fn a_former_life_is_waited_for_whatever_its_successor_has_applied() {
    let mut pending = Pending::new(at(0), BOUND, [life(1, 1), life(1, 2)]);
    let applied = Said { reached: true, heard: at(5), reachable: true };
    pending.said(1, applied, at(5));
    pending.said(0, SILENT, at(5));
    let missing = Missing { node: life(1, 1).node, reason: MissingReason::Unreachable };
    assert_eq!(pending.receipt(), Receipt { missing: vec![missing], ..Receipt::default() });
    pending.said(0, SILENT, at(3_000));
    assert_eq!(names(&pending.receipt().applied), ["n1"], "each node is named once");
    assert!(pending.receipt().expired.is_empty());
}

#[test]
fn a_writer_that_hears_none_of_several_peers_is_isolated() {
    let reasons = |reachable: &[bool]| {
        let mut pending = Pending::new(at(0), BOUND, (0..reachable.len()).map(|node| life(node, 1)));
        for (index, reachable) in reachable.iter().enumerate() {
            pending.said(index, Said { reachable: *reachable, ..SILENT }, at(1));
        }
        pending.receipt().missing.iter().map(|missing| missing.reason).collect::<Vec<_>>()
    };
    assert_eq!(reasons(&[false]), [MissingReason::Unreachable], "the one peer may as well have ended");
    assert_eq!(reasons(&[false, false]), [MissingReason::Isolated; 2]);
    assert_eq!(reasons(&[false, true]), [MissingReason::Unreachable, MissingReason::Lagging]);
}

/// What happens to one life, in the order of time.
#[derive(Clone, Debug)]
enum Happens {
    Acks {
        peer: usize,
        lane: usize,
        upto: Sequence,
    },
    Probes {
        peer: usize,
    },
    /// Time passes, and the waiting writer looks.
    Looks {
        ms: u64,
    },
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        (0_usize..4, 0_usize..3, 0_u64..12).prop_map(|(peer, lane, upto)| Happens::Acks { peer, lane, upto }),
        (0_usize..4).prop_map(|peer| Happens::Probes { peer }),
        (0_u64..1_500).prop_map(|ms| Happens::Looks { ms }),
    ]
}

/// Everything that was said, looked through from the beginning at every question.
#[derive(Default)]
struct Naive {
    looks: Vec<u64>,
    acks: Vec<(u64, usize, usize, Sequence)>,
    probes: Vec<(u64, usize)>,
}

impl Naive {
    fn reached(&self, peer: usize, at: u64, positions: &[(usize, Sequence)]) -> bool {
        positions.iter().all(|(lane, sequence)| {
            let is = |ack: &&(u64, usize, usize, Sequence)| ack.0 <= at && (ack.1, ack.2) == (peer, *lane);
            self.acks.iter().filter(is).any(|ack| ack.3 >= *sequence)
        })
    }

    fn heard(&self, peer: usize, at: u64) -> Option<u64> {
        self.probes.iter().filter(|probe| probe.0 <= at && probe.1 == peer).map(|probe| probe.0).max()
    }

    /// `Some(true)`: applied, `Some(false)`: expired.
    fn standing(&self, peer: usize, positions: &[(usize, Sequence)], asked: u64) -> Option<bool> {
        self.looks.iter().find_map(|at| {
            let last = self.heard(peer, *at).unwrap_or(0).max(asked);
            if self.reached(peer, *at, positions) {
                Some(true)
            } else {
                (*at >= last + BOUND.as_millis() as u64).then_some(false)
            }
        })
    }
}

proptest! {
    #[test]
    fn a_receipt_says_what_all_that_was_said_amounts_to(
        events in prop::collection::vec(happens(), 0..60),
        lives in prop::collection::vec((0_usize..3, 1_u64..3), 4),
        change in prop::collection::btree_map(0_usize..3, 1_u64..10, 1..3),
    ) {
        let change: Vec<_> = change.into_iter().collect();
        let asked = 10;
        let mut naive = Naive::default();
        let origins: Vec<_> = lives.iter().map(|(node, incarnation)| life(*node, *incarnation)).collect();
        let mut pending = Pending::new(at(asked), BOUND, origins.clone());
        let mut now = asked;
        let mut acked = [[0; 3]; 4];
        let mut heard = [Tick::NEVER; 4];
        for event in events.into_iter().chain([Happens::Looks { ms: 0 }]) {
            // No two things happen at the same time.
            now += 1;
            match event {
                Happens::Acks { peer, lane, upto } => {
                    acked[peer][lane] = upto.max(acked[peer][lane]);
                    naive.acks.push((now, peer, lane, upto));
                }
                Happens::Probes { peer } => {
                    heard[peer] = at(now);
                    naive.probes.push((now, peer));
                }
                Happens::Looks { ms } => {
                    now += ms;
                    naive.looks.push(now);
                    for peer in 0..4 {
                        let reached = change.iter().all(|(lane, sequence)| acked[peer][*lane] >= *sequence);
                        let said = Said { reached, heard: heard[peer], reachable: true };
                        let awaited = pending.said(peer, said, at(now));
                        prop_assert_eq!(awaited, naive.standing(peer, &change, asked).is_none());
                    }
                }
            }
            let due = pending.due();
            prop_assert!(due.is_none_or(|due| due >= at(asked).after(BOUND)));
        }
        let receipt = pending.receipt();
        for origin in &origins {
            let of_node = |(_, other): &(usize, &Origin)| other.node == origin.node;
            let standings: Vec<_> = origins
                .iter()
                .enumerate()
                .filter(of_node)
                .map(|(peer, _)| naive.standing(peer, &change, asked))
                .collect();
            let missing = standings.contains(&None);
            let applied = !missing && standings.contains(&Some(true));
            let named = |nodes: &[NodeId]| nodes.iter().filter(|node| **node == origin.node).count();
            let named_missing = receipt.missing.iter().filter(|it| it.node == origin.node).count();
            prop_assert_eq!(
                (named(&receipt.applied), named_missing, named(&receipt.expired)),
                (usize::from(applied), usize::from(missing), usize::from(!missing && !applied))
            );
        }
        prop_assert_eq!(receipt.is_complete(), pending.due().is_none());
    }
}

use super::*;
use crate::id::{Incarnation, Lanes};

fn life(node: &str) -> Origin {
    Origin { node: node.parse().unwrap(), incarnation: Incarnation(1) }
}

fn acked(follower: &str, lane: u8, applied: Sequence) -> Acked {
    Acked { follower: life(follower), lane: Lanes::default().lane(lane).unwrap(), applied }
}

#[test]
fn acknowledgements_go_up_under_their_names_and_once() {
    let (mut acks, origin) = (Acks::default(), life("o"));
    for said in [acked("b", 0, 3), acked("a", 1, 4), acked("b", 0, 9), acked("b", 0, 5)] {
        acks.note(&origin, said).unwrap();
    }
    assert_eq!(acks.take(&life("another"), 9), []);
    assert_eq!(acks.take(&origin, 1), [acked("a", 1, 4)]);
    assert_eq!(acks.take(&origin, 9), [acked("b", 0, 9)], "the newest covers the older ones");
    acks.note(&origin, acked("b", 0, 9)).unwrap();
    assert_eq!(acks.take(&origin, 9), [], "it came by another path, too");
}

/// Who knows a life and has applied nothing of it yet says so: the life waits for that.
#[test]
fn that_nothing_is_applied_is_said_as_well() {
    let (mut acks, origin) = (Acks::default(), life("o"));
    acks.note(&origin, acked("a", 0, 0)).unwrap();
    assert_eq!(acks.take(&origin, 9), [acked("a", 0, 0)]);
}

#[test]
fn another_source_is_told_everything() {
    let (mut acks, origin) = (Acks::default(), life("o"));
    acks.note(&origin, acked("a", 0, 3)).unwrap();
    acks.note(&origin, acked("b", 3, 1)).unwrap();
    acks.take(&origin, 9);
    acks.forget(&life("b"));
    acks.redirected(&origin);
    assert_eq!(acks.take(&origin, 9), [acked("a", 0, 3)]);
    acks.forget(&origin);
    acks.redirected(&origin);
    assert_eq!((acks.take(&origin, 9), acks.count), (vec![], 0));
}

#[test]
fn what_is_remembered_is_bounded_and_whoever_is_known_goes_on() {
    let mut acks = Acks::default();
    for number in 0..ACKS_MAX {
        let origin = life(&format!("o{}", number % 16));
        acks.note(&origin, acked(&format!("n{number}"), 0, 1)).unwrap();
    }
    let origin = life("o0");
    assert_eq!(acks.note(&origin, acked("one-more", 0, 1)), Err(TooMany));
    acks.note(&origin, acked("n16", 0, 2)).unwrap();
    assert_eq!(acks.take(&origin, usize::MAX).len(), ACKS_MAX / 16);
    acks.forget(&life("n0"));
    acks.note(&origin, acked("one-more", 0, 1)).unwrap();
    assert!(acks.is_crowded());
    acks.retain(|there| [life("o0"), life("n16")].contains(there));
    assert_eq!((acks.count, acks.is_crowded()), (1, false));
}

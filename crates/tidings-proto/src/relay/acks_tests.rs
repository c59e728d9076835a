use super::*;
use crate::id::Incarnation;

fn acked(follower: &str, lane: u8, applied: Sequence) -> Acked {
    let follower = Origin { node: follower.parse().unwrap(), incarnation: Incarnation(1) };
    Acked { follower, lane: Lanes::default().lane(lane).unwrap(), applied }
}

#[test]
fn acknowledgements_go_up_under_their_names_and_once() {
    let mut acks = Acks::new(Lanes::default());
    for said in [acked("b", 0, 3), acked("a", 1, 4), acked("b", 0, 9), acked("b", 0, 5)] {
        acks.note(said).unwrap();
    }
    assert_eq!(acks.take(1), [acked("a", 1, 4)]);
    assert_eq!(acks.take(9), [acked("b", 0, 9)], "the newest covers the older ones");
    acks.note(acked("b", 0, 9)).unwrap();
    assert_eq!(acks.take(9), [], "it came by another path, too");
}

#[test]
fn another_source_is_told_everything() {
    let mut acks = Acks::new(Lanes::default());
    acks.note(acked("a", 0, 3)).unwrap();
    acks.note(acked("b", 3, 1)).unwrap();
    acks.take(9);
    acks.forget(&acked("b", 0, 0).follower);
    acks.redirected();
    assert_eq!(acks.take(9), [acked("a", 0, 3)]);
}

#[test]
fn followers_are_bounded_and_known_ones_go_on() {
    let mut acks = Acks::new(Lanes::default());
    for number in 0..MEMBERS_MAX {
        acks.note(acked(&format!("n{number}"), 0, 1)).unwrap();
    }
    assert_eq!(acks.note(acked("one-more", 0, 1)), Err(TooMany));
    acks.note(acked("n7", 0, 2)).unwrap();
    assert_eq!(acks.take(usize::MAX).len(), MEMBERS_MAX);
}

//! Ends that are named: who has never known a life gets a floor for it, and nobody's life ends by that.

use super::*;

fn told(freshness: &mut Freshness, origin: &Origin, now: u64) -> bool {
    let Named { new, refused } = freshness.told_ended(&NodeId::new("witness").unwrap(), [origin], Tick(now));
    assert_eq!(refused, 0);
    !new.is_empty()
}

fn named_as_ended(freshness: &Freshness, now: u64) -> Vec<Origin> {
    freshness.ended(Tick(now)).cloned().collect()
}

#[test]
fn a_life_that_has_ended_and_was_never_known_leaves_a_floor_from_when_that_is_told() {
    let mut freshness = settled(&[life("a", 1)]);
    assert!(told(&mut freshness, &life("gone", 1), 2_000));
    assert_eq!(published(&mut freshness, 2_000), (0, OWN));
    assert_eq!(freshness.doubts(Tick(1_000)), [Doubt::UncleanEnd(life("gone", 1))]);
    assert!(freshness.has_ended_elsewhere(&life("gone", 1)) && !freshness.has_ended_elsewhere(&life("a", 1)));
    let over = 2_000 + HORIZON + STALENESS;
    freshness.confirmed(&life("a", 1), Tick(over));
    assert_eq!(published(&mut freshness, over), (over + STALENESS, 2_000 + HORIZON));
    assert!(!freshness.is_relevant(&life("gone", 1)));
    assert!(!told(&mut freshness, &life("gone", 1), over), "it costs that once");
}

#[test]
fn also_a_life_whose_successor_is_known_leaves_one() {
    let mut freshness = settled(&[life("a", 2)]);
    assert!(!named(&mut freshness, &life("a", 1)), "it is over");
    assert!(told(&mut freshness, &life("a", 1), 2_000));
    freshness.confirmed(&life("a", 2), Tick(2_100));
    assert_eq!(published(&mut freshness, 2_000 + HORIZON + STALENESS), (2_100 + STALENESS, 2_000 + HORIZON));
}

#[test]
fn nobody_who_is_known_ends_because_others_say_so() {
    let mut freshness = settled(&[life("a", 1), life("lost", 1)]);
    freshness.lost(&life("lost", 1), Tick(1_990));
    named(&mut freshness, &life("heard-of", 1));
    for known in ["a", "lost", "heard-of"] {
        assert!(!told(&mut freshness, &life(known, 1), 2_000));
    }
    published(&mut freshness, 2_000 + HORIZON + STALENESS);
    assert!(["a", "lost", "heard-of"].iter().all(|known| freshness.is_relevant(&life(known, 1))));
    assert_eq!(named_as_ended(&freshness, 2_100), [], "nor is that passed on");
}

#[test]
fn a_node_whose_own_floor_is_still_to_come_needs_no_other() {
    let mut freshness = Freshness::new(bounds(), true, Tick(1));
    freshness.contacted();
    freshness.met(&life("a", 1), Tick(1_000));
    assert!(!told(&mut freshness, &life("gone", 1), 1_000));
    assert_eq!(
        named_as_ended(&freshness, 1_000),
        [],
        "others who need to know are told by those who have known it"
    );
    freshness.confirmed(&life("a", 1), Tick(1_000));
    published(&mut freshness, 1_000);
    assert_eq!(freshness.doubts(Tick(1_000)), [Doubt::OwnFormerLife]);
    // The floor of its own is of an earlier moment now.
    assert!(!told(&mut freshness, &life("gone", 1), 1_040));
    assert!(told(&mut freshness, &life("another", 1), 1_040));
    let over = 1_040 + HORIZON + STALENESS;
    freshness.confirmed(&life("a", 1), Tick(over));
    assert_eq!(published(&mut freshness, over), (over + STALENESS, 1_040 + HORIZON));
}

#[test]
fn who_is_named_as_there_is_relevant_although_others_say_that_it_has_ended() {
    let named_or_found: [fn(&mut Freshness) -> bool; 2] = [
        |freshness| named(freshness, &life("x", 1)),
        |freshness| freshness.found(&life("x", 1), Tick(2_010)),
    ];
    for named_or_found in named_or_found {
        // Before it has left, and after.
        for over in [2_000, 2_000 + HORIZON + STALENESS] {
            let mut freshness = settled(&[]);
            told(&mut freshness, &life("x", 1), 2_000);
            published(&mut freshness, over);
            let changes = freshness.changes();
            named_or_found(&mut freshness);
            assert!(freshness.changes() > changes, "others were told that it has ended");
            assert_eq!(named_as_ended(&freshness, over), []);
            assert_eq!(published(&mut freshness, 5_000).0, 0, "nothing of it was ever heard");
            assert_eq!(freshness.doubts(Tick(5_000)), [Doubt::NeverHeard(life("x", 1))]);
        }
    }
}

#[test]
fn an_unclean_end_is_named_from_its_beginning_and_for_a_grace_after_the_life_has_left() {
    let mut freshness = settled(&[life("a", 1), life("b", 1)]);
    freshness.left(&life("b", 1));
    let changes = freshness.changes();
    freshness.forget(&life("a", 1).node, Tick(2_000));
    assert!(freshness.changes() > changes);
    assert_eq!(named_as_ended(&freshness, 2_000), [life("a", 1)], "who has said goodbye is not named");
    let left = 2_000 + HORIZON + STALENESS;
    published(&mut freshness, left);
    assert_eq!(named_as_ended(&freshness, left + GRACE - 1), [life("a", 1)]);
    let changes = freshness.changes();
    published(&mut freshness, left + GRACE - 1);
    assert_eq!(freshness.changes(), changes);
    published(&mut freshness, left + GRACE);
    assert!(freshness.changes() > changes, "the set has changed");
    assert_eq!(named_as_ended(&freshness, left + GRACE), []);
    assert!(freshness.has_left(&life("b", 1)) && !freshness.has_left(&life("a", 1)));
}

#[test]
fn what_was_told_is_passed_on() {
    let mut freshness = settled(&[]);
    told(&mut freshness, &life("x", 1), 2_000);
    assert_eq!(named_as_ended(&freshness, 2_000), [life("x", 1)]);
    let left = 2_000 + HORIZON + STALENESS;
    published(&mut freshness, left);
    assert_eq!(named_as_ended(&freshness, left + GRACE - 1), [life("x", 1)]);
    assert_eq!(named_as_ended(&freshness, left + GRACE), []);
}

#[test]
fn a_life_that_is_back_after_it_has_lost_its_place_leaves_a_floor_and_stays() {
    let mut freshness = settled(&[life("a", 1), life("b", 1)]);
    freshness.lost(&life("a", 1), Tick(2_000));
    let end = 2_000 + GRACE;
    published(&mut freshness, end);
    let left = end + HORIZON + STALENESS;
    freshness.confirmed(&life("b", 1), Tick(left));
    assert_eq!(published(&mut freshness, left), (left + STALENESS, end + HORIZON));
    let back = left + 1_000;
    assert!(freshness.has_given_up(&life("a", 1)) && !freshness.has_given_up(&life("b", 1)));
    assert!(!named(&mut freshness, &life("a", 1)), "hearsay does not bring it back");
    assert!(freshness.met(&life("a", 1), Tick(back)));
    assert_eq!(named_as_ended(&freshness, back), []);
    let over = back + HORIZON + STALENESS;
    for peer in ["a", "b"] {
        freshness.confirmed(&life(peer, 1), Tick(over));
    }
    assert_eq!(published(&mut freshness, over - 1).0, 0, "others may have come and ended where it was");
    assert_eq!(published(&mut freshness, over), (over + STALENESS, back + HORIZON));
    assert!(freshness.is_relevant(&life("a", 1)));
}

#[test]
fn more_ends_than_can_be_named_stay_in_doubt_until_there_is_room() {
    let lives: Vec<_> = (0..ENDED_NAMED_MAX + 10).map(|number| life(&format!("n{number}"), 1)).collect();
    let mut freshness = settled(&lives);
    assert!(lives.iter().all(|life| freshness.forget(&life.node, Tick(2_000))));
    let left = 2_000 + HORIZON + STALENESS;
    assert_eq!(published(&mut freshness, left).0, 0);
    assert_eq!((freshness.relevant().count(), freshness.ended(Tick(left)).count()), (10, lives.len()));
    published(&mut freshness, left + GRACE);
    assert_eq!(freshness.relevant().count(), 0);
    assert_eq!(freshness.ended(Tick(left + GRACE)).count(), 10);
}

#[test]
fn a_peer_that_names_ends_without_end_is_bounded() {
    let mut freshness = settled(&[]);
    let lives: Vec<_> = (0..4_096).map(|number| life(&format!("n{number}"), 1)).collect();
    let Named { new, refused } = freshness.told_ended(&life("liar", 1).node, &lives, Tick(2_000));
    assert_eq!((new.len(), refused), (NAMED_BY_ONE_MAX, lives.len() - NAMED_BY_ONE_MAX));
    assert_eq!(published(&mut freshness, 2_000 + HORIZON + STALENESS).0, u64::MAX, "and costs one floor");

    // Also where it costs none.
    let mut freshness = Freshness::new(bounds(), true, Tick(1));
    let Named { new, refused } = freshness.told_ended(&life("liar", 1).node, &lives, Tick(2_000));
    assert_eq!((new.len(), refused), (0, lives.len() - NAMED_BY_ONE_MAX));
    assert_eq!(freshness.ended.len(), NAMED_BY_ONE_MAX);
}

#[test]
fn trust_takes_no_floor_for_what_others_say() {
    let trust = Bounds { doubt_unclean_ends: false, ..bounds() };
    let mut freshness = Freshness::new(trust, false, Tick(1));
    published(&mut freshness, OWN + STALENESS);
    assert!(!told(&mut freshness, &life("gone", 1), 2_000));
    assert_eq!(published(&mut freshness, 2_000), (u64::MAX, OWN));
}

#[test]
fn a_life_that_is_over_by_its_own_word_is_doubted_until_it_was_followed_to_its_end() {
    let mut freshness = settled(&[life("a", 2), life("b", 1)]);
    freshness.conceded(&life("a", 1), Tick(2_000));
    assert_eq!(published(&mut freshness, 2_000), (0, OWN));
    freshness.met(&life("a", 1), Tick(2_001));
    freshness.ended_at(&life("a", 1), Tick(2_010));
    for peer in [life("a", 2), life("b", 1)] {
        freshness.confirmed(&peer, Tick(2_010));
    }
    assert_eq!(published(&mut freshness, 2_010), (2_010 + STALENESS, OWN), "and leaves no floor");
    assert_eq!(named_as_ended(&freshness, 2_010), [life("a", 1)], "others may not have followed it");

    // One that breaks off leaves its floor.
    freshness.conceded(&life("a", 1), Tick(3_000));
    let over = 3_000 + HORIZON + STALENESS;
    assert_eq!(published(&mut freshness, over - 1).0, 0);
    assert_eq!(published(&mut freshness, over).1, 3_000 + HORIZON);
    assert!(!freshness.is_relevant(&life("a", 1)));
}

#[test]
fn a_life_that_was_back_leaves_its_floor_though_its_log_is_followed_to_the_end() {
    // It leaves by itself; it is killed and served by its successor; or it was replaced.
    let ends: [fn(&mut Freshness, u64); 3] = [
        |_, _| {},
        |freshness, now| {
            freshness.met(&life("a", 2), Tick(now));
            freshness.conceded(&life("a", 1), Tick(now));
        },
        |freshness, now| freshness.conceded(&life("a", 1), Tick(now)),
    ];
    for ends in ends {
        let mut freshness = settled(&[life("a", 1)]);
        freshness.lost(&life("a", 1), Tick(2_000));
        published(&mut freshness, 2_000 + GRACE);
        published(&mut freshness, 2_000 + GRACE + HORIZON + STALENESS);
        let back = 2_000 + GRACE + HORIZON + STALENESS + 1_000;
        freshness.met(&life("a", 1), Tick(back));
        ends(&mut freshness, back + 10);
        for now in [back + 20, back + 30] {
            freshness.ended_at(&life("a", 1), Tick(now));
            assert_eq!(published(&mut freshness, now).0, 0, "in doubt");
        }
        let over = back + 20 + HORIZON + STALENESS;
        freshness.ended_at(&life("a", 1), Tick(over));
        assert!(published(&mut freshness, over).1 >= back + HORIZON);
        assert!(!freshness.is_relevant(&life("a", 1)));
    }
}

#[test]
fn who_says_goodbye_as_usual_is_named_by_nobody() {
    let mut freshness = settled(&[life("a", 1)]);
    freshness.ended_at(&life("a", 1), Tick(2_000));
    assert!(freshness.has_left(&life("a", 1)));
    assert_eq!(named_as_ended(&freshness, 2_000), []);
}

#[test]
fn a_node_is_crowded_until_the_ends_of_its_lives_are_no_longer_in_doubt() {
    let next = life("a", LIVES_MAX as u64 + 1);
    let lives: Vec<_> = (1..=LIVES_MAX as u64).map(|number| life("a", number)).collect();
    let mut freshness = settled(&lives[1..]);
    named(&mut freshness, &life("a", 100));
    assert_eq!(freshness.crowded(&next), None, "what others say does not shut it out");
    freshness.conceded(&lives[0], Tick(1_000));
    assert_eq!(freshness.crowded(&next), Some(Incarnation(LIVES_MAX as u64)));
    assert!(lives.iter().all(|life| freshness.crowded(life).is_none()), "who is in comes back");
    assert_eq!(freshness.crowded(&life("b", 1)), None);
    published(&mut freshness, 1_000 + HORIZON + STALENESS);
    assert_eq!(freshness.crowded(&next), None);
}

#[test]
fn of_too_many_lives_that_others_say_have_ended_the_one_told_first_is_forgotten() {
    let mut freshness = settled(&[]);
    let mut now = 2_000;
    // A lie of the far future, before ends that are true.
    let tell = |freshness: &mut Freshness, number: u64, now: u64| {
        let lives: Vec<_> = (0..512).map(|of| life(&format!("n{of}"), number)).collect();
        freshness.told_ended(&life("witness", 1).node, &lives, Tick(now));
        published(freshness, now + HORIZON + STALENESS);
    };
    for number in (1..=ENDED_MAX as u64 / 512 + 1).rev() {
        tell(&mut freshness, number, now);
        now += 100;
    }
    assert_eq!(freshness.ended.len(), ENDED_MAX);
    assert!(freshness.ended.contains(&life("n0", 1)), "the newest word");
    assert!(!freshness.ended.contains(&life("n0", ENDED_MAX as u64 / 512 + 1)));
}

#[test]
fn a_life_that_only_others_spoke_of_is_missed_by_nobody_once_it_has_ended() {
    for heard in [false, true] {
        let mut freshness = settled(&[]);
        named(&mut freshness, &life("x", 1));
        if heard {
            freshness.found(&life("x", 1), Tick(2_000));
        }
        freshness.lost(&life("x", 1), Tick(2_000));
        published(&mut freshness, 2_000 + GRACE);
        published(&mut freshness, 2_000 + GRACE + HORIZON + STALENESS);
        assert!(!freshness.is_relevant(&life("x", 1)));
        assert_eq!(freshness.misses_somebody(), heard);
    }
}

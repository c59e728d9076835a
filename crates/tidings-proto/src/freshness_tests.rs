use super::*;
use crate::frame::MEMBERS_MAX;

#[path = "freshness_ended_tests.rs"]
mod ended;
#[path = "freshness_property_tests.rs"]
mod property;

/// The bounds of these tests, in ticks: a hit may be 30 old, a lost origin has 600, a write takes at most 50.
const STALENESS: u64 = 30;
const GRACE: u64 = 600;
const HORIZON: u64 = 50;

fn bounds() -> Bounds {
    Bounds {
        max_staleness: Duration::from_nanos(STALENESS),
        lost_grace: Duration::from_nanos(GRACE),
        write_horizon: Duration::from_nanos(HORIZON),
        doubt_unclean_ends: true,
    }
}

fn life(node: &str, incarnation: u64) -> Origin {
    Origin { node: NodeId::new(node).unwrap(), incarnation: Incarnation(incarnation) }
}

/// Somebody names an origin; whether that is news.
fn named(freshness: &mut Freshness, origin: &Origin) -> bool {
    let Named { new, refused } = freshness.named(&NodeId::new("witness").unwrap(), [origin]);
    assert_eq!(refused, 0);
    !new.is_empty()
}

fn published(freshness: &mut Freshness, now: u64) -> (u64, u64) {
    let Published { fresh_until, floor } = freshness.publish(Tick(now));
    (fresh_until.0, floor.0)
}

/// A node past its own floor, which hears all these origins, confirmed at 1,000.
fn settled(origins: &[Origin]) -> Freshness {
    let mut freshness = Freshness::new(bounds(), false, Tick(1));
    freshness.publish(Tick(OWN + STALENESS));
    for origin in origins {
        assert!(freshness.met(origin, Tick(900)));
        freshness.confirmed(origin, Tick(1_000));
    }
    freshness
}

/// The floor that [`settled`] left behind.
const OWN: u64 = 1 + HORIZON;

fn counts_at(freshness: &mut Freshness, began: u64, now: u64) -> bool {
    let published = freshness.publish(Tick(now));
    counts(published, bounds().max_staleness, Tick(began), Tick(now))
}

#[test]
fn the_defaults_are_those_of_the_manual() {
    let seconds =
        |bounds: Bounds| [bounds.max_staleness, bounds.lost_grace, bounds.write_horizon].map(|d| d.as_secs());
    assert_eq!(seconds(Bounds::default()), [3, 60, 5]);
    assert!(Bounds::default().doubt_unclean_ends);
}

#[test]
fn without_seeds_a_node_is_alone_and_fresh_once_its_own_floor_is_behind() {
    let mut freshness = Freshness::new(bounds(), false, Tick(1_000));
    assert_eq!(published(&mut freshness, 1_000), (0, 0));
    assert_eq!(freshness.doubts(Tick(1_000)), [Doubt::OwnFormerLife]);
    assert_eq!(published(&mut freshness, 1_000 + HORIZON + STALENESS - 1), (0, 0));
    assert_eq!(published(&mut freshness, 1_000 + HORIZON + STALENESS), (u64::MAX, 1_000 + HORIZON));
    assert_eq!(freshness.doubts(Tick(1_100)), []);
}

#[test]
fn with_seeds_a_node_is_never_fresh_before_its_first_exchange() {
    let mut freshness = Freshness::new(bounds(), true, Tick(1));
    assert_eq!(published(&mut freshness, 1_000_000), (0, 0));
    assert_eq!(freshness.oldest_confirmation(), None);
    assert_eq!(freshness.doubts(Tick(1_000_000)), [Doubt::NoContact]);
}

#[test]
fn with_seeds_the_own_floor_counts_from_when_everybody_named_has_confirmed_something() {
    let mut freshness = Freshness::new(bounds(), true, Tick(1));
    freshness.contacted();
    freshness.met(&life("a", 1), Tick(1_000));
    assert!(named(&mut freshness, &life("d", 1)));
    published(&mut freshness, 1_000);
    freshness.confirmed(&life("a", 1), Tick(1_000));
    // Behind a cut, the other one may hear this node's former life until it is met itself.
    let met = 1_000 + 5 * HORIZON;
    assert_eq!(published(&mut freshness, met), (0, 0));
    assert_eq!(freshness.doubts(Tick(1_000)), [Doubt::OwnFormerLife, Doubt::NeverHeard(life("d", 1))]);
    freshness.confirmed(&life("a", 1), Tick(met + HORIZON + STALENESS));
    freshness.confirmed(&life("d", 1), Tick(met));
    assert_eq!(published(&mut freshness, met), (0, 0));
    freshness.confirmed(&life("d", 1), Tick(met + HORIZON + STALENESS));
    assert_eq!(published(&mut freshness, met + HORIZON + STALENESS - 1), (0, 0));
    let over = met + HORIZON + STALENESS;
    assert_eq!(published(&mut freshness, over), (over + STALENESS, met + HORIZON));
    freshness.contacted();
    assert_eq!(published(&mut freshness, over), (over + STALENESS, met + HORIZON), "once and for all");
}

#[test]
fn an_origin_that_has_ended_does_not_hold_up_the_own_floor() {
    let mut freshness = Freshness::new(bounds(), true, Tick(1));
    freshness.contacted();
    freshness.met(&life("a", 1), Tick(1_000));
    named(&mut freshness, &life("d", 1));
    freshness.confirmed(&life("a", 1), Tick(1_000));
    freshness.forget(&life("d", 1).node, Tick(1_000));
    published(&mut freshness, 1_000);
    assert_eq!(published(&mut freshness, 1_000 + HORIZON + STALENESS), (1_000 + STALENESS, 1_000 + HORIZON));
}

#[test]
fn an_origin_is_relevant_from_its_first_mention() {
    let mut freshness = settled(&[life("a", 1)]);
    assert_eq!(published(&mut freshness, 1_000), (1_000 + STALENESS, OWN));
    assert!(named(&mut freshness, &life("b", 1)));
    assert!(!named(&mut freshness, &life("b", 1)));
    assert_eq!(published(&mut freshness, 1_002), (0, OWN));
    assert_eq!(freshness.doubts(Tick(1_002)), [Doubt::NeverHeard(life("b", 1))]);
    let relevant: Vec<_> = freshness.relevant().map(|(origin, tick)| (origin.clone(), tick)).collect();
    assert_eq!(relevant, [(life("a", 1), Some(Tick(1_000))), (life("b", 1), None)]);
}

#[test]
fn an_origin_that_was_never_named_confirms_nothing() {
    let mut freshness = settled(&[life("a", 1)]);
    freshness.confirmed(&life("b", 1), Tick(9_000));
    freshness.confirmed(&life("a", 2), Tick(9_000));
    freshness.lost(&life("b", 1), Tick(1_001));
    freshness.left(&life("b", 1));
    assert!(!freshness.forget(&NodeId::new("b").unwrap(), Tick(1_001)));
    assert_eq!(published(&mut freshness, 1_001), (1_000 + STALENESS, OWN));
}

#[test]
fn the_oldest_confirmation_decides() {
    let mut freshness = settled(&[life("a", 1), life("b", 1)]);
    freshness.confirmed(&life("a", 1), Tick(1_500));
    assert_eq!(freshness.oldest_confirmation(), Some(Tick(1_000)));
    freshness.confirmed(&life("b", 1), Tick(1_400));
    assert_eq!(published(&mut freshness, 1_500), (1_400 + STALENESS, OWN));
    freshness.confirmed(&life("b", 1), Tick(1_300));
    assert_eq!(freshness.oldest_confirmation(), Some(Tick(1_400)), "a confirmation was taken back");
    assert_eq!(freshness.doubts(Tick(1_430)), []);
    assert_eq!(freshness.doubts(Tick(1_431)), [Doubt::Unheard(life("b", 1))]);
}

#[test]
fn an_origin_that_said_goodbye_leaves_at_once_and_without_a_floor() {
    let mut freshness = settled(&[life("a", 1), life("b", 1)]);
    freshness.confirmed(&life("a", 1), Tick(1_500));
    freshness.left(&life("b", 1));
    assert_eq!(published(&mut freshness, 1_500), (1_500 + STALENESS, OWN));
    freshness.left(&life("a", 1));
    assert_eq!(published(&mut freshness, 1_500), (u64::MAX, OWN));
}

#[test]
fn a_lost_origin_counts_as_unheard_and_ends_after_its_grace() {
    let mut freshness = settled(&[life("a", 1)]);
    freshness.lost(&life("a", 1), Tick(2_000));
    freshness.lost(&life("a", 1), Tick(2_300));
    assert_eq!(published(&mut freshness, 2_000 + GRACE - 1), (1_000 + STALENESS, OWN));
    assert_eq!(freshness.doubts(Tick(2_500)), [Doubt::Unheard(life("a", 1))]);
    let end = 2_000 + GRACE;
    assert_eq!(published(&mut freshness, end), (0, OWN));
    assert_eq!(freshness.doubts(Tick(end)), [Doubt::UncleanEnd(life("a", 1))]);
    let floor = end + HORIZON;
    assert_eq!(published(&mut freshness, floor + STALENESS - 1), (0, OWN));
    assert_eq!(published(&mut freshness, floor + STALENESS), (u64::MAX, floor));
    assert_eq!(freshness.relevant().count(), 0);
}

#[test]
fn the_end_of_a_lost_origin_is_when_it_is_noticed() {
    // A node that stood still did not hear whether the origin came back in the meantime.
    let mut freshness = settled(&[life("a", 1)]);
    freshness.lost(&life("a", 1), Tick(2_000));
    let late = 2_000 + 10 * GRACE;
    assert_eq!(published(&mut freshness, late), (0, OWN));
    assert_eq!(published(&mut freshness, late + HORIZON + STALENESS), (u64::MAX, late + HORIZON));
}

#[test]
fn a_lost_origin_that_is_found_or_heard_again_stays() {
    for heard in [false, true] {
        let mut freshness = settled(&[life("a", 1)]);
        freshness.lost(&life("a", 1), Tick(2_000));
        if heard {
            freshness.confirmed(&life("a", 1), Tick(2_100));
        } else {
            freshness.found(&life("a", 1), Tick(2_100));
        }
        published(&mut freshness, 2_000 + 2 * GRACE);
        assert_eq!(freshness.relevant().count(), 1);
        assert_eq!(freshness.doubts(Tick(2_000 + 2 * GRACE)), [Doubt::Unheard(life("a", 1))]);
        freshness.lost(&life("a", 1), Tick(5_000));
        assert_eq!(
            published(&mut freshness, 5_000 + GRACE - 1).0,
            if heard { 2_100 } else { 1_000 } + STALENESS
        );
        assert_eq!(published(&mut freshness, 5_000 + GRACE).0, 0);
    }
}

#[test]
fn a_closing_origin_is_revived_neither_by_hearsay_nor_by_what_it_said_before_its_end() {
    let mut freshness = settled(&[life("a", 1)]);
    assert!(freshness.forget(&life("a", 1).node, Tick(2_000)));
    freshness.confirmed(&life("a", 1), Tick(2_000));
    freshness.lost(&life("a", 1), Tick(2_020));
    assert!(!named(&mut freshness, &life("a", 1)));
    assert!(freshness.forget(&life("a", 1).node, Tick(2_040)));
    let floor = 2_000 + HORIZON;
    assert_eq!(published(&mut freshness, floor + STALENESS - 1), (0, OWN));
    assert_eq!(published(&mut freshness, floor + STALENESS), (u64::MAX, floor), "its end was put off");
}

#[test]
fn a_closing_origin_that_is_there_after_all_leaves_its_floor_and_stays_relevant() {
    let back: [fn(&mut Freshness); 3] = [
        |freshness| assert!(!freshness.met(&life("a", 1), Tick(2_010))),
        |freshness| assert!(!freshness.found(&life("a", 1), Tick(2_010))),
        |freshness| freshness.confirmed(&life("a", 1), Tick(2_001)),
    ];
    for back in back {
        let mut freshness = settled(&[life("a", 1)]);
        freshness.forget(&life("a", 1).node, Tick(2_000));
        back(&mut freshness);
        let over = 2_000 + HORIZON + STALENESS;
        assert_eq!(published(&mut freshness, over - 1), (0, OWN));
        freshness.confirmed(&life("a", 1), Tick(over));
        assert_eq!(published(&mut freshness, over), (over + STALENESS, 2_000 + HORIZON));
        assert!(freshness.is_relevant(&life("a", 1)));
        assert_eq!(freshness.doubts(Tick(over + STALENESS + 1)), [Doubt::Unheard(life("a", 1))]);
    }
}

#[test]
fn a_closing_origin_that_came_back_and_is_superseded_ends_anew() {
    let mut freshness = settled(&[life("a", 1)]);
    freshness.forget(&life("a", 1).node, Tick(2_000));
    freshness.met(&life("a", 1), Tick(2_010));
    freshness.met(&life("a", 2), Tick(2_020));
    freshness.met(&life("a", 1), Tick(2_030));
    freshness.confirmed(&life("a", 1), Tick(2_030));
    freshness.confirmed(&life("a", 2), Tick(2_100));
    let floor = 2_020 + HORIZON;
    assert_eq!(published(&mut freshness, floor + STALENESS - 1), (0, OWN));
    assert_eq!(published(&mut freshness, floor + STALENESS), (2_100 + STALENESS, floor));
    assert!(!freshness.is_relevant(&life("a", 1)));
}

#[test]
fn a_life_that_was_only_named_ends_no_other() {
    let mut freshness = settled(&[life("a", 1)]);
    assert!(named(&mut freshness, &life("a", u64::MAX)));
    freshness.confirmed(&life("a", 1), Tick(1_100));
    assert_eq!(freshness.doubts(Tick(1_100)), [Doubt::NeverHeard(life("a", u64::MAX))]);
    freshness.lost(&life("a", u64::MAX), Tick(1_100));
    published(&mut freshness, 1_100 + GRACE);
    let over = 1_100 + GRACE + HORIZON + STALENESS;
    freshness.confirmed(&life("a", 1), Tick(over));
    assert_eq!(published(&mut freshness, over).0, over + STALENESS, "the invented one has ended");
    assert!(!named(&mut freshness, &life("a", u64::MAX)));
    // A cut: the true life is as relevant as before.
    assert_eq!(freshness.doubts(Tick(over + STALENESS + 1)), [Doubt::Unheard(life("a", 1))]);
    assert!(freshness.met(&life("a", 2), Tick(over)), "and its next life counts");
    assert!(freshness.doubts(Tick(over)).contains(&Doubt::UncleanEnd(life("a", 1))), "and ends it at once");
}

#[test]
fn the_true_life_is_relevant_even_if_an_invented_one_was_named_first() {
    let mut freshness = settled(&[]);
    assert!(named(&mut freshness, &life("a", 9)));
    assert!(named(&mut freshness, &life("a", 1)));
    freshness.met(&life("a", 1), Tick(1_000));
    freshness.lost(&life("a", 9), Tick(1_000));
    published(&mut freshness, 1_000 + GRACE);
    published(&mut freshness, 1_000 + GRACE + HORIZON + STALENESS);
    assert!(freshness.is_relevant(&life("a", 1)));
    assert!(!freshness.is_relevant(&life("a", 9)));
}

#[test]
fn what_peers_name_is_bounded_and_who_says_hello_is_never_refused() {
    let mut freshness = settled(&[life("met", 1)]);
    let lives: Vec<_> = (0..MEMBERS_MAX).map(|number| life(&format!("n{number}"), 1)).collect();
    let name = |freshness: &mut Freshness, by: usize| {
        freshness.named(&NodeId::new(&format!("by{by}")).unwrap(), &lives)
    };
    let named = name(&mut freshness, 0);
    assert_eq!((named.new.len(), named.refused), (NAMED_BY_ONE_MAX, MEMBERS_MAX - NAMED_BY_ONE_MAX));
    assert_eq!(named.new[..], lives[..NAMED_BY_ONE_MAX]);
    assert!(name(&mut freshness, 0).new.is_empty(), "one peer names no more");
    assert!(!freshness.is_proven(&lives[0]));
    assert!(!freshness.met(&lives[0], Tick(1_000)), "it was named already");
    assert!(freshness.is_proven(&lives[0]));
    assert_eq!(name(&mut freshness, 0).new.len(), 1, "who has said hello is hearsay no more");
    (1..5).for_each(|by| drop(name(&mut freshness, by)));
    assert_eq!(freshness.relevant().count(), MEMBERS_MAX);
    assert_eq!(name(&mut freshness, 9).refused, 1, "all together are bounded");
    assert!(freshness.met(&life("late", 1), Tick(1_000)));
    assert!(freshness.found(&life("later", 1), Tick(1_000)));
    assert_eq!(freshness.relevant().count(), MEMBERS_MAX + 2);
}

#[test]
fn a_new_life_ends_the_older_ones() {
    let mut freshness = settled(&[life("a", 1), life("b", 1)]);
    assert!(freshness.found(&life("a", 3), Tick(2_000)));
    freshness.confirmed(&life("a", 3), Tick(2_100));
    freshness.confirmed(&life("b", 1), Tick(2_100));
    let floor = 2_000 + HORIZON;
    assert_eq!(published(&mut freshness, floor + STALENESS - 1), (0, OWN));
    assert_eq!(published(&mut freshness, floor + STALENESS), (2_100 + STALENESS, floor));
    assert_eq!(freshness.relevant().count(), 2);
}

#[test]
fn an_older_life_that_is_named_late_is_not_relevant() {
    let mut freshness = settled(&[life("a", 3)]);
    assert!(!named(&mut freshness, &life("a", 2)));
    assert_eq!(published(&mut freshness, 1_001), (1_000 + STALENESS, OWN));
}

#[test]
fn who_has_ended_is_not_relevant_again_because_others_still_name_it() {
    let mut freshness = settled(&[life("a", 1), life("b", 2), life("c", 1)]);
    freshness.left(&life("a", 1));
    freshness.lost(&life("b", 2), Tick(1_000));
    published(&mut freshness, 1_000 + GRACE);
    freshness.forget(&life("c", 1).node, Tick(1_000 + GRACE));
    let end = 1_000 + GRACE + HORIZON + STALENESS;
    assert_eq!(published(&mut freshness, end).0, u64::MAX);
    for ended in [life("a", 1), life("b", 2), life("b", 1), life("c", 1)] {
        assert!(!named(&mut freshness, &ended), "{ended}");
    }
    assert_eq!(freshness.relevant().count(), 0);
    assert!(named(&mut freshness, &life("a", 2)));
}

#[test]
fn who_says_hello_itself_is_relevant_whatever_was_thought_of_it() {
    let mut freshness = settled(&[life("a", 1), life("b", 1)]);
    freshness.left(&life("a", 1));
    assert!(freshness.met(&life("a", 1), Tick(1_000)));
    assert!(!freshness.met(&life("b", 1), Tick(1_000)));
    assert!(freshness.met(&life("c", 1), Tick(1_000)));
    assert_eq!(published(&mut freshness, 1_000), (0, OWN));
    assert_eq!(freshness.relevant().count(), 3);
    assert!(!freshness.met(&life("c", 0), Tick(1_000)), "an older life than the one that is known");
}

#[test]
fn the_memory_of_ended_lives_is_bounded_and_keeps_the_newest() {
    let mut freshness = settled(&[]);
    let count = ENDED_MAX as u64 + 10;
    for number in 1..=count {
        let origin = life(&format!("n{number}"), number);
        freshness.met(&origin, Tick(number));
        freshness.left(&origin);
    }
    assert_eq!(freshness.ended.len(), ENDED_MAX);
    assert!(!named(&mut freshness, &life(&format!("n{count}"), count)), "the newest is remembered");
    assert!(named(&mut freshness, &life("n1", 1)), "the oldest made room");
}

#[test]
fn another_node_whose_name_begins_alike_is_another_node() {
    let mut freshness = settled(&[life("a", 1), life("a-b", 1), life("aa", 1)]);
    freshness.found(&life("a", 2), Tick(2_000));
    let closing = |doubt: &Doubt| matches!(doubt, Doubt::UncleanEnd(_));
    let ended: Vec<_> = freshness.doubts(Tick(1_000)).into_iter().filter(closing).collect();
    assert_eq!(ended, [Doubt::UncleanEnd(life("a", 1))]);
}

#[test]
fn who_is_forgotten_ends_now() {
    let mut freshness = settled(&[life("a", 1), life("b", 1)]);
    freshness.found(&life("a", 2), Tick(1_990));
    assert!(freshness.forget(&life("a", 1).node, Tick(2_000)));
    freshness.confirmed(&life("b", 1), Tick(2_080));
    assert_eq!(published(&mut freshness, 1_990 + HORIZON + STALENESS), (0, 1_990 + HORIZON));
    assert_eq!(published(&mut freshness, 2_000 + HORIZON + STALENESS), (2_080 + STALENESS, 2_000 + HORIZON));
}

#[test]
fn trust_lets_ended_origins_leave_at_once_and_without_a_floor() {
    let trust = Bounds { doubt_unclean_ends: false, ..bounds() };
    let mut freshness = Freshness::new(trust, false, Tick(1));
    freshness.publish(Tick(OWN + STALENESS));
    for origin in [life("a", 1), life("b", 1), life("c", 1)] {
        freshness.met(&origin, Tick(900));
    }
    freshness.met(&life("a", 2), Tick(1_000));
    freshness.confirmed(&life("a", 2), Tick(1_000 + GRACE));
    freshness.forget(&life("b", 1).node, Tick(1_000));
    freshness.lost(&life("c", 1), Tick(1_000));
    assert_eq!(published(&mut freshness, 1_000 + GRACE), (1_000 + GRACE + STALENESS, OWN));
}

#[test]
fn the_floor_never_sinks() {
    let mut freshness = settled(&[life("a", 1), life("b", 1)]);
    freshness.forget(&life("a", 1).node, Tick(2_000));
    assert_eq!(published(&mut freshness, 2_200).1, 2_200 - STALENESS);
    freshness.forget(&life("b", 1).node, Tick(2_100));
    assert_eq!(published(&mut freshness, 2_180).1, 2_200 - STALENESS);
}

#[test]
fn a_hit_counts_until_the_bound_after_the_oldest_confirmation() {
    let mut freshness = settled(&[life("a", 1)]);
    assert!(counts_at(&mut freshness, 500, 1_000 + STALENESS));
    assert!(!counts_at(&mut freshness, 500, 1_000 + STALENESS + 1));
}

#[test]
fn in_doubt_a_hit_counts_for_the_bound_after_its_load_began() {
    let mut freshness = settled(&[life("a", 1)]);
    assert!(counts_at(&mut freshness, 5_000, 5_000 + STALENESS));
    assert!(!counts_at(&mut freshness, 5_000, 5_000 + STALENESS + 1));
}

#[test]
fn what_began_at_or_before_the_floor_never_counts() {
    let fresh = Published { fresh_until: Tick::FOREVER, floor: Tick(100) };
    assert!(!counts(fresh, bounds().max_staleness, Tick(100), Tick(101)));
    assert!(counts(fresh, bounds().max_staleness, Tick(101), Tick(1_000)));
    assert!(!counts(fresh, bounds().max_staleness, Tick::NEVER, Tick(1)));
}

#[test]
fn a_node_that_stood_still_past_an_end_makes_nothing_readable_that_was_not() {
    let mut freshness = settled(&[life("a", 1)]);
    freshness.forget(&life("a", 1).node, Tick(2_000));
    let floor = 2_000 + HORIZON;
    // Began above the floor; unreadable from `floor + 1 + STALENESS` on, for the node did not publish the end.
    let began = floor + 1;
    let late = floor + 10 * STALENESS;
    assert!(!counts_at(&mut freshness, began, late));
    assert!(counts_at(&mut freshness, late - STALENESS + 1, late + 1));
}

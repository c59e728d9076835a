//! Whatever comes in, in whatever order and however late: what doubt made unreadable stays so.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Input {
    Contacted,
    Met(Origin),
    Named(Origin),
    ToldEnded(Origin),
    Conceded(Origin),
    /// Followed to its end, however it came to that.
    EndedAt(Origin),
    Confirmed(Origin, u64),
    Left(Origin),
    Lost(Origin),
    Found(Origin),
    HeardAgain(Origin),
    Forget(Origin),
    Nothing,
}

fn input() -> impl Strategy<Value = Input> {
    let origin = || {
        (prop::sample::select(vec!["a", "b", "c"]), 1_u64..4).prop_map(|(node, number)| life(node, number))
    };
    prop_oneof![
        1 => Just(Input::Contacted),
        2 => origin().prop_map(Input::Met),
        4 => origin().prop_map(Input::Named),
        2 => origin().prop_map(Input::ToldEnded),
        1 => origin().prop_map(Input::Conceded),
        1 => origin().prop_map(Input::EndedAt),
        6 => (origin(), 0_u64..100).prop_map(|(origin, age)| Input::Confirmed(origin, age)),
        1 => origin().prop_map(Input::Left),
        3 => origin().prop_map(Input::Lost),
        2 => origin().prop_map(Input::Found),
        2 => origin().prop_map(Input::HeardAgain),
        1 => origin().prop_map(Input::Forget),
        4 => Just(Input::Nothing),
    ]
}

fn apply(freshness: &mut Freshness, input: &Input, now: Tick) {
    match input {
        Input::Contacted => freshness.contacted(),
        Input::Met(origin) => {
            freshness.met(origin, now);
        }
        Input::Named(origin) => {
            named(freshness, origin);
        }
        Input::Conceded(origin) => freshness.conceded(origin, now),
        Input::EndedAt(origin) => freshness.ended_at(origin, now),
        Input::ToldEnded(origin) => {
            freshness.told_ended(&NodeId::new("witness").unwrap(), [origin], now);
        }
        Input::Confirmed(origin, age) => freshness.confirmed(origin, now.before(Duration::from_nanos(*age))),
        Input::Left(origin) => freshness.left(origin),
        Input::Lost(origin) => freshness.lost(origin, now),
        Input::Found(origin) => {
            freshness.found(origin, now);
        }
        Input::HeardAgain(origin) => freshness.heard_again(origin, now),
        Input::Forget(origin) => {
            freshness.forget(&origin.node, now);
        }
        Input::Nothing => {}
    }
}

fn uncertain(freshness: &Freshness) -> bool {
    freshness.own.is_some() || freshness.origins.values().any(|relevant| relevant.is_closing())
}

fn relevant(freshness: &Freshness) -> Vec<Origin> {
    freshness.relevant().map(|(origin, _)| origin.clone()).collect()
}

/// Entries whose loads began at these times; the newest is one that begins now.
fn readable(published: Published, now: Tick) -> Vec<bool> {
    let count = |began| counts(published, bounds().max_staleness, Tick(began), now);
    (0..=now.0).step_by(7).chain([now.0]).map(count).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Only news, a confirmation or a goodbye, can make an entry readable again, and no news does while an
    /// origin's end, or the node's own former life, is in doubt; so leaving that doubt does not either.
    #[test]
    fn leaving_doubt_never_makes_an_entry_readable_that_doubt_had_made_unreadable(
        has_seeds: bool,
        steps in prop::collection::vec((input(), prop_oneof![8 => 0_u64..20, 2 => 0_u64..200, 1 => 500_u64..700]), 1..120),
    ) {
        let mut now = Tick(1);
        let mut freshness = Freshness::new(bounds(), has_seeds, now);
        let mut published = freshness.publish(now);
        for (input, pause) in steps {
            now = now.after(Duration::from_nanos(pause));
            let before = readable(published, now);
            let doubt = uncertain(&freshness);
            let goodbye = matches!(input, Input::Left(_) | Input::EndedAt(_));
            let news = goodbye || matches!(input, Input::Confirmed(..));
            let (relevant, changes) = (relevant(&freshness), freshness.changes());
            apply(&mut freshness, &input, now);
            let next = freshness.publish(now);
            let changed = self::relevant(&freshness) != relevant;
            prop_assert!(!changed || freshness.changes() > changes, "a change that nobody would be told of");
            prop_assert_eq!(freshness.in_doubt(now), !freshness.doubts(now).is_empty());
            prop_assert!(next.floor >= published.floor, "the floor sank");
            prop_assert!(next.floor <= now, "a floor ahead of the clock");
            published = next;
            if news && (goodbye || !doubt) {
                continue;
            }
            for (index, (before, after)) in before.into_iter().zip(readable(published, now)).enumerate() {
                prop_assert!(before || !after, "entry {} became readable at {:?}", index, now);
            }
        }
    }

    #[test]
    fn a_hit_is_never_older_than_the_bound_after_a_confirmation_or_its_load(
        steps in prop::collection::vec((input(), 0_u64..60), 1..120),
    ) {
        let mut now = Tick(1);
        let mut freshness = Freshness::new(bounds(), false, now);
        for (input, pause) in steps {
            now = now.after(Duration::from_nanos(pause));
            apply(&mut freshness, &input, now);
            let published = freshness.publish(now);
            let oldest = freshness.relevant().map(|(_, confirmed)| confirmed.unwrap_or_default()).min();
            for began in (0..=now.0).step_by(5) {
                if counts(published, bounds().max_staleness, Tick(began), now) {
                    let known = oldest.unwrap_or(Tick::FOREVER).max(Tick(began));
                    prop_assert!(now.since(known) <= bounds().max_staleness);
                    prop_assert!(began > published.floor.0);
                }
            }
        }
    }

    /// Only its own goodbye, or time without being heard, takes a life that has said hello and was not superseded
    /// out of the set; whatever others say.
    #[test]
    fn who_was_heard_last_of_all_is_relevant(
        steps in prop::collection::vec((input(), prop_oneof![8 => 0_u64..60, 1 => 500_u64..700]), 1..120),
    ) {
        let mut now = Tick(1);
        let mut freshness = Freshness::new(bounds(), false, now);
        let me = life("a", 2);
        let mut there = false;
        for (input, pause) in steps {
            now = now.after(Duration::from_nanos(pause));
            freshness.publish(now);
            apply(&mut freshness, &input, now);
            let newest = !freshness.is_superseded(&me);
            there = match input {
                Input::Met(origin) if origin == me => newest,
                Input::Left(origin) | Input::EndedAt(origin) if origin.node == me.node => false,
                Input::Conceded(origin) if origin.node == me.node => false,
                Input::Lost(origin) | Input::Forget(origin) if origin.node == me.node => false,
                _ => there && newest,
            };
            freshness.publish(now);
            prop_assert!(!there || freshness.is_relevant(&me), "{:?}", freshness);
        }
    }

    /// Of a life that has ended somewhere, and that this node has not closed since it was told so, nothing that was
    /// loaded before is readable once its end is not in doubt any more.
    #[test]
    fn what_was_loaded_before_an_unknown_end_was_told_is_gone_once_nothing_is_in_doubt(
        has_seeds: bool,
        steps in prop::collection::vec((input(), prop_oneof![8 => 0_u64..60, 1 => 500_u64..700]), 1..120),
    ) {
        let mut now = Tick(1);
        let mut freshness = Freshness::new(bounds(), has_seeds, now);
        // When each life was first heard to have ended by somebody who was believed.
        let mut told = BTreeMap::new();
        for (input, pause) in steps {
            now = now.after(Duration::from_nanos(pause));
            freshness.publish(now);
            let unknown = |freshness: &Freshness, origin| {
                !freshness.is_relevant(origin) && !freshness.ended.contains(origin)
            };
            match &input {
                Input::ToldEnded(origin) if unknown(&freshness, origin) => {
                    told.insert(origin.clone(), now);
                }
                // It says itself that it is there: what it does is followed.
                Input::Met(origin) | Input::Found(origin) | Input::EndedAt(origin) => {
                    told.remove(origin);
                }
                _ => {}
            }
            apply(&mut freshness, &input, now);
            let published = freshness.publish(now);
            if !uncertain(&freshness) {
                for (origin, at) in &told {
                    let followed = freshness.is_relevant(origin) || freshness.has_left(origin);
                    prop_assert!(followed || published.floor >= *at, "{origin} at {at:?}: {freshness:?}");
                }
            }
        }
    }

    /// Whatever is named as ended is relevant no more, or its end is in doubt.
    #[test]
    fn nobody_is_named_as_ended_who_is_there(
        steps in prop::collection::vec((input(), prop_oneof![8 => 0_u64..60, 1 => 500_u64..700]), 1..120),
    ) {
        let mut now = Tick(1);
        let mut freshness = Freshness::new(bounds(), false, now);
        for (input, pause) in steps {
            now = now.after(Duration::from_nanos(pause));
            let (before, changes) = (freshness.ended(now).cloned().collect::<Vec<_>>(), freshness.changes());
            apply(&mut freshness, &input, now);
            freshness.publish(now);
            let named: Vec<_> = freshness.ended(now).cloned().collect();
            prop_assert!(named == before || freshness.changes() > changes, "a change that nobody would be told of");
            for origin in &named {
                let doubted = freshness.origins.get(origin).is_none_or(|relevant| {
                    matches!(relevant.standing, Standing::Closing { back: false, .. })
                });
                prop_assert!(doubted, "{origin} is there");
            }
        }
    }
}

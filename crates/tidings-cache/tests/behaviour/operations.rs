//! What each operation does, tells and logs.

use std::time::Duration;

use crate::common::{Node, Wire, events, fill, key, kinds, many, one, told};
use tidings_cache::{
    Cache, Computed, Event, EventKind, Mode, Operation, ReadOrFill, TOKEN_TIME, Target, WriteError,
};
use tidings_proto::id::{LaneId, Lanes};
use tidings_proto::log::Retention;

#[test]
fn a_first_insert_is_inserted_and_an_overwrite_is_updated() {
    let node = Node::new("a");
    let users = node.users();
    let mut heard = users.subscribe().start().unwrap();
    assert_eq!(users.insert(key("k"), 1).unwrap().kind, EventKind::Inserted);
    assert_eq!(users.insert(key("k"), 2).unwrap().kind, EventKind::Updated);
    assert_eq!(users.insert(key("k"), 2).unwrap().kind, EventKind::Updated);
    assert_eq!(users.get(&key("k")), Some(2));
    let expected = [EventKind::Inserted, EventKind::Updated, EventKind::Updated];
    assert_eq!(told(&mut heard), expected.map(|kind| (kind, Operation::Insert, one("k"))));
}

#[test]
fn insert_if_absent_stores_once_and_is_silent_when_it_does_not() {
    let node = Node::new("a");
    let users = node.users();
    let mut heard = users.subscribe().start().unwrap();
    assert!(users.insert_if_absent(key("k"), 1).unwrap());
    assert!(!users.insert_if_absent(key("k"), 2).unwrap());
    assert_eq!(users.get(&key("k")), Some(1));
    assert_eq!(told(&mut heard), [(EventKind::Inserted, Operation::InsertIfAbsent, one("k"))]);
    assert_eq!(node.logged(), 1);
}

#[test]
fn replace_changes_only_what_is_present() {
    let node = Node::new("a");
    let users = node.users();
    let mut heard = users.subscribe().start().unwrap();
    assert!(!users.replace(key("k"), 1).unwrap());
    assert_eq!(users.get(&key("k")), None);
    users.insert(key("k"), 1).unwrap();
    assert!(users.replace(key("k"), 2).unwrap());
    assert_eq!(users.get(&key("k")), Some(2));
    assert_eq!(
        told(&mut heard),
        [
            (EventKind::Inserted, Operation::Insert, one("k")),
            (EventKind::Updated, Operation::Replace, one("k")),
        ]
    );
    assert_eq!(node.logged(), 2);
}

#[test]
fn increments_are_classified_by_whether_a_number_was_there() {
    let node = Node::new("a");
    let numbers: Cache<String, i64> = node.cache("numbers").open().unwrap();
    let mut heard = numbers.subscribe().start().unwrap();
    let steps = [(1, 1), (-1, 0), (1, 1), (1, 2), (-1, 1), (-1, 0), (0, 0)];
    for (by, sum) in steps {
        assert_eq!(numbers.increment(&key("n"), by).unwrap(), sum);
    }
    // A missing number that is decremented was not there either.
    assert_eq!(numbers.increment(&key("m"), -1).unwrap(), -1);
    let heard = told(&mut heard);
    assert!(heard.iter().all(|(_, operation, _)| *operation == Operation::Increment));
    let of = |name| heard.iter().filter(|told| told.2 == one(name)).map(|told| told.0).collect::<Vec<_>>();
    let mut expected = vec![EventKind::Updated; steps.len()];
    expected[0] = EventKind::Inserted;
    assert_eq!((of("n"), of("m")), (expected, vec![EventKind::Inserted]));
}

#[test]
fn an_increment_beyond_the_range_is_an_error_and_changes_nothing() {
    let node = Node::new("a");
    let numbers: Cache<String, u16> = node.cache("numbers").open().unwrap();
    numbers.insert(key("n"), u16::MAX).unwrap();
    let mut heard = numbers.subscribe().start().unwrap();
    assert!(matches!(numbers.increment(&key("n"), 1), Err(WriteError::Overflow)));
    assert!(matches!(numbers.increment(&key("absent"), -1), Err(WriteError::Overflow)));
    assert!(matches!(numbers.increment(&key("n"), i64::MIN), Err(WriteError::Overflow)));
    assert_eq!((numbers.get(&key("n")), numbers.get(&key("absent"))), (Some(u16::MAX), None));
    assert!(events(&mut heard).is_empty());
    assert_eq!((node.logged(), numbers.erased().flights()), (1, 0));
}

#[test]
fn concurrent_increments_lose_none() {
    let node = Node::new("a");
    let numbers: Cache<String, u64> = node.cache("numbers").open().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1_000 {
                    numbers.increment(&key("n"), 1).unwrap();
                }
            });
        }
    });
    assert_eq!(numbers.get(&key("n")), Some(4_000));
    assert_eq!(node.logged(), 4_000);
}

#[test]
fn compute_puts_removes_or_keeps_as_it_decides() {
    let node = Node::new("a");
    let users = node.users();
    let mut heard = users.subscribe().start().unwrap();
    assert_eq!(users.compute(&key("k"), |_| Computed::Keep).unwrap(), None);
    assert_eq!(users.compute(&key("k"), |old| Computed::Put(old.map_or(1, |old| old + 1))).unwrap(), Some(1));
    assert_eq!(users.compute(&key("k"), |old| Computed::Put(old.map_or(1, |old| old + 1))).unwrap(), Some(2));
    assert_eq!(users.compute(&key("k"), |_| Computed::Keep).unwrap(), Some(2));
    assert_eq!(users.compute(&key("k"), |_| Computed::Remove).unwrap(), None);
    assert_eq!(users.get(&key("k")), None);
    let expected = [EventKind::Inserted, EventKind::Updated, EventKind::Deleted];
    assert_eq!(told(&mut heard), expected.map(|kind| (kind, Operation::Compute, one("k"))));
    assert_eq!(users.erased().flights(), 0);
}

#[test]
fn a_decision_is_made_anew_if_a_change_or_a_fill_came_between() {
    let node = Node::new("a");
    let users = node.users();
    let mut changed = false;
    let stored = users.compute(&key("k"), |old| {
        if !std::mem::replace(&mut changed, true) {
            users.insert(key("k"), 10).unwrap();
        }
        Computed::Put(old.map_or(1, |old| old + 1))
    });
    assert_eq!((stored.unwrap(), users.get(&key("k"))), (Some(11), Some(11)));

    let ReadOrFill::Miss(token) = users.get_or_token(&key("filled"), TOKEN_TIME).unwrap() else { panic!() };
    let mut filled = false;
    let stored = users.compute(&key("filled"), |old| {
        if !std::mem::replace(&mut filled, true) {
            assert!(users.fill(&key("filled"), 100, token, None).unwrap());
        }
        Computed::Put(old.map_or(1, |old| old + 1))
    });
    assert_eq!((stored.unwrap(), users.get(&key("filled"))), (Some(101), Some(101)));
}

#[test]
fn removal_of_an_absent_key_is_told_to_subscribers_and_peers() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    fill(&on_b, "k", 7);
    let mut heard = on_a.subscribe().start().unwrap();
    assert_eq!(on_a.remove(&key("k")).unwrap().kind, EventKind::Deleted);
    assert_eq!(told(&mut heard), [(EventKind::Deleted, Operation::Remove, one("k"))]);
    Wire::new([&a, &b]).carry();
    assert_eq!(on_b.get(&key("k")), None);
}

#[test]
fn take_returns_what_was_there_and_of_a_missing_key_does_nothing() {
    let node = Node::new("a");
    let users = node.users();
    let mut heard = users.subscribe().start().unwrap();
    assert_eq!(users.take(&key("k")).unwrap(), None);
    assert!(events(&mut heard).is_empty());
    users.insert(key("k"), 5).unwrap();
    assert_eq!(users.take(&key("k")).unwrap(), Some(5));
    assert_eq!(users.take(&key("k")).unwrap(), None);
    assert_eq!(kinds(&mut heard), [EventKind::Inserted, EventKind::Deleted]);
    assert_eq!(node.logged(), 2);
}

#[test]
fn an_invalidation_is_a_removal_under_its_own_name() {
    let node = Node::new("a");
    let users = node.users();
    users.insert(key("k"), 5).unwrap();
    let mut heard = users.subscribe().start().unwrap();
    users.write().invalidate(&key("k")).unwrap();
    assert_eq!(users.get(&key("k")), None);
    assert_eq!(told(&mut heard), [(EventKind::Deleted, Operation::Invalidate, one("k"))]);
}

#[test]
fn many_inserts_reach_each_partition_and_each_lane_once() {
    let node = Node::new("a");
    let users: Cache<String, u64> = node.cache("users").partitions(3).open().unwrap();
    users.insert(key("key-0"), 0).unwrap();
    let heads = node.domain.log().heads();
    let mut heard = users.subscribe().start().unwrap();
    users.write().insert_many(many(100).into_iter().map(|key| (key, 1))).unwrap();
    assert!(many(100).iter().all(|key| users.get(key) == Some(1)));

    let mut inserted = Vec::new();
    let mut updated = Vec::new();
    for event in events(&mut heard) {
        assert_eq!(event.operation, Operation::Insert);
        let Target::Keys(keys) = event.target() else { panic!("{event:?}") };
        match event.kind {
            EventKind::Inserted => inserted.extend(keys.clone()),
            EventKind::Updated => updated.extend(keys.clone()),
            kind => panic!("{kind}"),
        }
    }
    inserted.sort();
    let mut expected = many(100)[1..].to_vec();
    expected.sort();
    assert_eq!((inserted, updated), (expected, vec![key("key-0")]));

    // One record per lane for what was inserted, one for what was updated.
    let records: u64 = node.domain.log().heads().iter().zip(heads).map(|(now, then)| now - then).sum();
    assert_eq!(records, 4 + 1);
    assert_eq!(node.domain.events_published(), 2);
}

#[test]
fn events_of_many_keys_name_only_keys_of_their_partition() {
    let node = Node::new("a");
    let users: Cache<String, u64> = node.cache("users").partitions(4).open().unwrap();
    let mut singly = users.subscribe().start().unwrap();
    many(64).into_iter().for_each(|key| drop(users.insert(key, 0).unwrap()));
    let partition_of: std::collections::HashMap<_, _> =
        events(&mut singly).iter().map(|event| (event.key().unwrap().clone(), event.partition)).collect();
    users.write().remove_many(many(64)).unwrap();
    let mut seen = 0;
    for event in events(&mut singly) {
        let Target::Keys(keys) = event.target() else { panic!("{event:?}") };
        assert!(keys.iter().all(|key| partition_of[key] == event.partition));
        seen += keys.len();
    }
    assert_eq!(seen, 64);
}

#[test]
fn many_removals_that_match_nothing_here_still_reach_peers() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    many(10).iter().for_each(|key| fill(&on_b, key, 1));
    on_a.write().remove_many(many(9)).unwrap();
    Wire::new([&a, &b]).carry();
    assert!(many(9).iter().all(|key| on_b.get(key).is_none()));
    assert_eq!(on_b.get(&key("key-9")), Some(1));
}

#[test]
fn a_change_of_no_keys_is_no_change() {
    let node = Node::new("a");
    let users = node.users();
    let mut heard = users.subscribe().start().unwrap();
    users.write().insert_many([]).unwrap();
    users.write().remove_many([]).unwrap();
    assert!(events(&mut heard).is_empty());
    assert_eq!((node.logged(), node.domain.events_published()), (0, 0));
}

#[test]
fn one_of_many_keys_that_cannot_be_used_stops_all_of_them() {
    let node = Node::new("a");
    let users = node.users();
    let mut heard = users.subscribe().start().unwrap();
    let keys = [key("k"), "x".repeat(5_000)];
    assert!(matches!(users.write().insert_many(keys.map(|key| (key, 1))), Err(WriteError::Key(_))));
    assert_eq!(users.get(&key("k")), None);
    assert!(events(&mut heard).is_empty());
    assert_eq!(node.logged(), 0);
}

#[test]
fn many_keys_of_the_greatest_length_are_split_over_records_that_fit() {
    let lane = Lanes::new(1).unwrap();
    let (a, b) = (Node::with("a", lane, Retention::default()), Node::with("b", lane, Retention::default()));
    let (on_a, on_b) = (a.users(), b.users());
    // 4,096 bytes when encoded, and metadata of nearly 4 KiB.
    let long = |n: usize| format!("{n:04096}");
    (0..300).for_each(|n| fill(&on_b, &long(n), 1));
    on_a.write().metadata("cause", "x".repeat(4_000)).remove_many((0..300).map(long)).unwrap();
    Wire::new([&a, &b]).carry();
    assert!((0..300).all(|n| on_b.get(&long(n)).is_none()));
}

#[test]
fn a_clear_is_told_once_and_logged_on_every_lane() {
    let node = Node::new("a");
    let users: Cache<String, u64> = node.cache("users").partitions(4).open().unwrap();
    many(50).into_iter().for_each(|key| drop(users.insert(key, 0).unwrap()));
    let heads = node.domain.log().heads();
    let mut heard = users.subscribe().start().unwrap();
    users.clear().unwrap();
    assert!(many(50).iter().all(|key| users.get(key).is_none()));
    assert_eq!(told(&mut heard), [(EventKind::Cleared, Operation::Clear, Target::All)]);
    let expected: Vec<_> = heads.iter().map(|head| head + 1).collect();
    assert_eq!(node.domain.log().heads(), expected);
    assert_eq!(node.domain.events_published(), 51);
    // The cache takes new entries at once.
    users.insert(key("k"), 1).unwrap();
    assert_eq!(users.get(&key("k")), Some(1));
}

#[test]
fn a_clear_of_an_empty_cache_still_reaches_peers() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    many(20).iter().for_each(|key| fill(&on_b, key, 1));
    on_a.clear().unwrap();
    Wire::new([&a, &b]).carry();
    assert!(many(20).iter().all(|key| on_b.get(key).is_none()));
}

#[test]
fn a_clear_frees_the_memory_of_what_it_removed() {
    let node = Node::new("a");
    let users = node.users();
    many(100).into_iter().for_each(|key| drop(users.insert(key, 0).unwrap()));
    users.clear().unwrap();
    users.insert(key("k"), 1).unwrap();
    users.settle();
    assert_eq!((users.erased().entries(), users.get(&key("k"))), (1, Some(1)));
}

#[test]
fn a_write_is_read_back_at_once_on_its_node() {
    let node = Node::new("a");
    let users = node.users();
    for n in 0..1_000 {
        users.insert(key("k"), n).unwrap();
        assert_eq!(users.get(&key("k")), Some(n));
        assert_eq!(users.peek(&key("k")), Some((n, Duration::ZERO)));
        assert!(users.contains(&key("k")));
        users.remove(&key("k")).unwrap();
        assert_eq!((users.get(&key("k")), users.contains(&key("k"))), (None, false));
    }
}

#[tokio::test]
async fn fills_are_silent_and_mutations_are_not() {
    let node = Node::new("a");
    let users = node.users();
    let mut heard = users.subscribe().start().unwrap();
    let loaded = users.get_or_load(&key("k"), || async { Ok::<_, ()>(1) }).await.unwrap();
    fill(&users, "token", 2);
    assert_eq!((loaded, users.get(&key("token"))), (1, Some(2)));
    assert!(events(&mut heard).is_empty());
    assert_eq!((node.logged(), node.domain.events_published()), (0, 0));
}

#[test]
fn reads_are_told_to_nobody() {
    let node = Node::new("a");
    let users = node.users();
    users.insert(key("k"), 1).unwrap();
    let mut heard = users.subscribe().start().unwrap();
    let _ =
        (users.get(&key("k")), users.get(&key("absent")), users.iter().count(), users.contains(&key("k")));
    let _ = (users.get_many([&key("k"), &key("absent")]), users.peek(&key("k")));
    assert!(events(&mut heard).is_empty());
    let counts = users.counts();
    assert_eq!((counts.hits, counts.misses), (2, 2));
}

#[test]
fn a_local_cache_tells_its_subscribers_and_never_logs() {
    let node = Node::new("a");
    let local: Cache<String, i64> = node.cache("local").mode(Mode::Local).open().unwrap();
    let mut heard = local.subscribe().start().unwrap();
    let written = local.insert(key("k"), 1).unwrap();
    assert!(written.positions.is_empty());
    local.increment(&key("k"), 1).unwrap();
    local.write().insert_many([(key("m"), 1)]).unwrap();
    local.write().remove_many([key("m")]).unwrap();
    local.remove(&key("k")).unwrap();
    local.clear().unwrap();
    let expected = [
        EventKind::Inserted,
        EventKind::Updated,
        EventKind::Inserted,
        EventKind::Deleted,
        EventKind::Deleted,
        EventKind::Cleared,
    ];
    assert_eq!(kinds(&mut heard), expected);
    assert_eq!((node.logged(), node.domain.events_published()), (0, 0));
}

#[test]
fn an_event_says_who_where_when_and_in_which_cache() {
    let node = Node::new("a");
    let users = node.users();
    let mut heard = users.subscribe().start().unwrap();
    let written = users.insert(key("k"), 1).unwrap();
    let event = events(&mut heard).remove(0);
    assert_eq!((&*event.cache, &event.origin, event.local), ("users", &node.origin, true));
    assert_eq!(event.position, written.positions.first().copied());
    assert_eq!(event.partition, Some(0));
    assert!(event.stamp.wall_ms() > 0);
}

#[test]
fn events_of_one_key_rise_in_stamp_and_position() {
    let node = Node::new("a");
    let users = node.users();
    let mut heard = users.subscribe().start().unwrap();
    (0..100).for_each(|n| drop(users.insert(key("k"), n).unwrap()));
    let heard: Vec<(Option<(LaneId, u64)>, _)> =
        events(&mut heard).iter().map(|event| (event.position, event.stamp)).collect();
    assert!(heard.is_sorted_by(|a, b| a.0.unwrap().1 + 1 == b.0.unwrap().1 && a.1 < b.1));
}

#[test]
fn metadata_reaches_subscribers_on_every_node_in_order() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    let (mut here, mut there) = (on_a.subscribe().start().unwrap(), on_b.subscribe().start().unwrap());
    let write = || on_a.write().metadata("cause", "import").metadata("request", "ü-17");
    write().insert(key("k"), 1).unwrap();
    write().remove_many([key("k"), key("m")]).unwrap();
    Wire::new([&a, &b]).carry();
    let expected = [(key("cause"), key("import")), (key("request"), key("ü-17"))];
    let mut seen = 0;
    for event in events(&mut here).into_iter().chain(events(&mut there)) {
        assert_eq!(*event.metadata, expected);
        seen += 1;
    }
    // At home one insertion and one removal; there an insertion and, per lane, a removal.
    assert!(seen >= 4, "{seen} events");
}

#[test]
fn a_writers_own_changes_are_left_out_of_its_subscription_alone() {
    let node = Node::new("a");
    let users = node.users();
    let mut own = users.subscribe().start().unwrap();
    let mut other = users.subscribe().start().unwrap();
    users.write().without(own.id()).insert(key("mine"), 1).unwrap();
    users.write().without(own.id()).insert_many([(key("mine too"), 1)]).unwrap();
    users.insert(key("theirs"), 1).unwrap();
    assert_eq!(told(&mut own), [(EventKind::Inserted, Operation::Insert, one("theirs"))]);
    assert_eq!(events(&mut other).len(), 3);
}

#[test]
fn published_events_are_counted_once_per_change() {
    let node = Node::new("a");
    let users = node.users();
    users.insert(key("k"), 1).unwrap();
    users.write().insert_many(many(10).into_iter().map(|key| (key, 1))).unwrap();
    users.clear().unwrap();
    users.remove(&key("k")).unwrap();
    assert_eq!(node.domain.events_published(), 4);
    assert_eq!(users.counts().mutations, 4);
}

#[test]
fn entries_can_be_listed_with_their_keys() {
    let node = Node::new("a");
    let users = node.users();
    users.write().insert_many(many(10).into_iter().map(|key| (key, 1))).unwrap();
    users.remove(&key("key-3")).unwrap();
    let mut listed: Vec<_> = users.iter().map(|(key, _)| key).collect();
    listed.sort();
    let mut expected = many(10);
    expected.remove(3);
    assert_eq!(listed, expected);
}

#[test]
fn any_encodable_type_can_be_a_key() {
    #[derive(serde::Serialize, serde::Deserialize, Debug, PartialEq)]
    enum Id {
        Number(u64),
        Pair(String, Option<u8>),
    }
    let node = Node::new("a");
    let cache: Cache<Id, &'static str> = node.cache("ids").open().unwrap();
    let mut heard = cache.subscribe().start().unwrap();
    cache.insert(Id::Number(7), "seven").unwrap();
    cache.insert(Id::Pair(key("x"), None), "x").unwrap();
    assert_eq!((cache.get(&Id::Number(7)), cache.get(&Id::Number(8))), (Some("seven"), None));
    let heard = events(&mut heard);
    let keys: Vec<_> = heard.iter().map(Event::key).collect();
    assert_eq!(keys, [Some(&Id::Number(7)), Some(&Id::Pair(key("x"), None))]);
}

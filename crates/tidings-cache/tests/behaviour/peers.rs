//! What a change on one node does on the others.

use std::time::Duration;

use tidings_cache::{Cache, EventKind, Invalidator, Item, Mode, Operation, Scope, SlotSet, Target};
use tidings_proto::hash::{CacheId, slot_of};
use tidings_proto::id::{LaneId, Lanes};
use tidings_proto::log::Retention;

use crate::common::{Node, Wire, apply, events, fill, items, key, kinds, many, one, read, told};

#[test]
fn a_change_on_one_node_evicts_the_copies_on_all_others() {
    let nodes = [Node::new("a"), Node::new("b"), Node::new("c")];
    let caches: Vec<_> = nodes.iter().map(Node::users).collect();
    let mut wire = Wire::new(&nodes);
    type Change = fn(&Cache<String, u64>, String);
    let changes: [(&str, Change); 8] = [
        ("insert", |cache, key| drop(cache.insert(key, 2).unwrap())),
        ("insert_if_absent", |cache, key| {
            assert!({
                drop(cache.take(&key));
                cache.insert_if_absent(key, 2).unwrap()
            })
        }),
        ("replace", |cache, key| assert!(cache.replace(key, 2).unwrap())),
        ("increment", |cache, key| assert_eq!(cache.increment(&key, 1).unwrap(), 2)),
        ("remove", |cache, key| drop(cache.remove(&key).unwrap())),
        ("take", |cache, key| assert_eq!(cache.take(&key).unwrap(), Some(1))),
        ("many", |cache, key| drop(cache.write().insert_many([(key, 2)]).unwrap())),
        ("clear", |cache, _| drop(cache.clear().unwrap())),
    ];
    for (name, change) in changes {
        caches.iter().for_each(|cache| fill(cache, name, 1));
        caches.iter().for_each(|cache| fill(cache, "other", 1));
        change(&caches[1], key(name));
        wire.carry();
        assert_eq!((caches[0].get(&key(name)), caches[2].get(&key(name))), (None, None), "{name}");
        let others: Vec<_> = caches.iter().map(|cache| cache.get(&key("other"))).collect();
        let expected = if name == "clear" { None } else { Some(1) };
        assert_eq!(others, [expected; 3], "{name}");
        caches.iter().for_each(|cache| drop(cache.clear().unwrap()));
        wire.carry();
    }
}

#[tokio::test]
async fn read_only_traffic_sends_nothing_and_every_node_hits() {
    let nodes = [Node::new("a"), Node::new("b"), Node::new("c")];
    let caches: Vec<_> = nodes.iter().map(Node::users).collect();
    let mut wire = Wire::new(&nodes);
    for _ in 0..200 {
        for cache in &caches {
            assert_eq!(cache.get_or_load(&key("hot"), || async { Ok::<_, ()>(1) }).await.unwrap(), 1);
        }
        wire.carry();
    }
    for (node, cache) in nodes.iter().zip(&caches) {
        let counts = cache.counts();
        assert_eq!((node.logged(), counts.loads, counts.hits, counts.invalidated()), (0, 1, 199, 0));
    }
}

#[test]
fn what_was_changed_while_a_peer_was_cut_off_reaches_it_afterwards() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    let mut wire = Wire::new([&a, &b]);
    many(50).iter().for_each(|key| fill(&on_b, key, 1));
    many(50).into_iter().for_each(|key| drop(on_a.insert(key, 2).unwrap()));
    // Until the log arrives the old values are hits, as long as the bound allows.
    assert!(many(50).iter().all(|key| on_b.get(key) == Some(1)));
    wire.carry();
    assert!(many(50).iter().all(|key| on_b.get(key).is_none()));
    assert_eq!((wire.resets, on_b.counts().applied()), (0, 50));
}

#[test]
fn only_the_keys_that_were_named_go() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    ["k1", "k2", "k3"].iter().for_each(|key| fill(&on_b, key, 1));
    on_a.write().remove_many([key("k1"), key("k2")]).unwrap();
    Wire::new([&a, &b]).carry();
    let left = ["k1", "k2", "k3"].map(|name| on_b.get(&key(name)));
    assert_eq!(left, [None, None, Some(1)]);
    assert_eq!(on_b.counts().invalidated(), 2);
}

#[test]
fn caches_of_other_names_are_left_alone() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let on_a = a.users();
    let other: Cache<String, u64> = b.cache("profiles").open().unwrap();
    fill(&other, "k", 1);
    on_a.insert(key("k"), 1).unwrap();
    on_a.clear().unwrap();
    Wire::new([&a, &b]).carry();
    assert_eq!(other.get(&key("k")), Some(1));
    assert_eq!(b.domain.remote_stats().unknown_cache.get(), 1 + 4);
}

#[test]
fn a_peers_change_is_told_after_the_eviction_that_it_caused() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    fill(&on_b, "k", 1);
    let mut heard = on_b.subscribe().start().unwrap();
    on_a.insert(key("k"), 2).unwrap();
    on_a.insert(key("absent"), 2).unwrap();
    Wire::new([&a, &b]).carry();
    let heard = events(&mut heard);
    for event in &heard {
        assert_eq!((&event.origin, event.local), (&a.origin, false));
        assert!(event.position.is_some());
    }
    let of = |name: &str| {
        let of_key = heard.iter().filter(|event| event.key() == Some(&key(name)));
        of_key.map(|event| (event.kind, event.operation)).collect::<Vec<_>>()
    };
    let invalidated = (EventKind::Invalidated, Operation::Invalidate);
    let inserted = (EventKind::Inserted, Operation::Insert);
    assert_eq!((of("k"), of("absent")), (vec![invalidated, inserted], vec![inserted]));
    assert_eq!((on_b.counts().invalidated(), on_b.counts().applied()), (1, 2));
}

#[test]
fn a_peers_change_of_many_keys_is_told_by_partition() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let on_a = a.users();
    let on_b: Cache<String, u64> = b.cache("users").partitions(3).open().unwrap();
    many(30).iter().for_each(|key| fill(&on_b, key, 1));
    let mut heard = on_b.subscribe().start().unwrap();
    on_a.write().remove_many(many(60)).unwrap();
    Wire::new([&a, &b]).carry();
    let mut named = [Vec::new(), Vec::new()];
    for event in events(&mut heard) {
        let Target::Keys(keys) = event.target() else { panic!("{event:?}") };
        named[usize::from(event.kind == EventKind::Deleted)].extend(keys.clone());
    }
    named.iter_mut().for_each(|keys| keys.sort());
    let sorted = |count| {
        let mut keys = many(count);
        keys.sort();
        keys
    };
    assert_eq!(named, [sorted(30), sorted(60)]);
}

#[test]
fn a_clear_by_a_peer_is_told_once_and_spares_what_came_after() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let on_a = a.users();
    let on_b: Cache<String, u64> = b.cache("users").partitions(3).open().unwrap();
    many(50).iter().for_each(|key| fill(&on_b, key, 1));
    let mut heard = on_b.subscribe().start().unwrap();
    on_a.clear().unwrap();
    let mut wire = Wire::new([&a, &b]);
    wire.carry();
    assert_eq!(told(&mut heard), [(EventKind::Cleared, Operation::Clear, Target::All)]);
    assert!(many(50).iter().all(|key| on_b.get(key).is_none()));
    fill(&on_b, "k", 2);
    wire.carry();
    assert_eq!(on_b.get(&key("k")), Some(2));
}

#[test]
fn each_lanes_copy_of_a_clear_stands_for_that_lanes_keys() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    many(100).iter().for_each(|key| fill(&on_b, key, 1));
    on_a.clear().unwrap();
    let lanes = Lanes::default();
    let of_lane = |name: &String, lane: LaneId| {
        lanes.lane_of(slot_of(CacheId::of_name("users"), &tidings_proto::codec::encode(name).unwrap()))
            == lane
    };
    let first = lanes.lane(0).unwrap();
    let batch = read(a.domain.log(), first);
    apply(&b.domain, &a.origin, lanes, &batch).unwrap();
    assert!(many(100).iter().all(|key| on_b.contains(key) != of_lane(key, first)));
}

#[test]
fn a_remote_invalidator_acts_on_peers_changes_alone() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    on_b.insert(key("k"), 1).unwrap();
    assert_eq!(on_b.get(&key("k")), Some(1), "one's own change stores");
    on_a.insert(key("k"), 2).unwrap();
    Wire::new([&a, &b]).carry();
    assert_eq!(on_b.get(&key("k")), None);
}

#[test]
fn a_local_invalidator_removes_what_this_node_changes() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let on_a = a.users();
    let on_b: Cache<String, u64> = b.cache("users").invalidator(Invalidator::Local).open().unwrap();
    fill(&on_b, "k", 1);
    let mut heard = on_b.subscribe().start().unwrap();
    assert_eq!(on_b.insert(key("k"), 2).unwrap().kind, EventKind::Updated);
    assert_eq!(on_b.get(&key("k")), None);
    assert_eq!(on_b.insert(key("k"), 2).unwrap().kind, EventKind::Inserted);
    assert_eq!(on_b.get(&key("k")), None);
    on_b.write().insert_many([(key("m"), 1)]).unwrap();
    assert_eq!(on_b.get(&key("m")), None);
    assert_eq!(kinds(&mut heard), [EventKind::Updated, EventKind::Inserted, EventKind::Inserted]);
    // What a peer changes stays.
    fill(&on_b, "other", 1);
    on_a.insert(key("other"), 2).unwrap();
    on_a.clear().unwrap();
    let mut wire = Wire::new([&a, &b]);
    wire.carry();
    assert_eq!(on_b.get(&key("other")), Some(1));
    // Its changes still travel.
    assert_eq!(on_a.counts().applied(), 3);
}

#[test]
fn an_invalidator_of_scope_all_removes_both() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let on_a = a.users();
    let on_b: Cache<String, u64> = b.cache("users").invalidator(Invalidator::All).open().unwrap();
    on_b.insert(key("mine"), 1).unwrap();
    fill(&on_b, "theirs", 1);
    on_a.insert(key("theirs"), 2).unwrap();
    Wire::new([&a, &b]).carry();
    assert_eq!((on_b.get(&key("mine")), on_b.get(&key("theirs"))), (None, None));
}

#[test]
fn an_invalidator_that_is_off_evicts_nothing_and_still_tells() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let on_a = a.users();
    let on_b: Cache<String, u64> = b.cache("users").invalidator(Invalidator::Off).open().unwrap();
    on_b.insert(key("mine"), 1).unwrap();
    fill(&on_b, "theirs", 1);
    let mut heard = on_b.subscribe().start().unwrap();
    on_a.insert(key("theirs"), 2).unwrap();
    on_a.clear().unwrap();
    Wire::new([&a, &b]).carry();
    assert_eq!((on_b.get(&key("mine")), on_b.get(&key("theirs"))), (Some(1), Some(1)));
    let mut heard = kinds(&mut heard);
    heard.sort();
    assert_eq!(heard, [EventKind::Inserted, EventKind::Cleared]);
}

#[test]
fn scopes_of_subscriptions_divide_own_changes_from_peers() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    let mut heard =
        [Scope::All, Scope::Local, Scope::Remote].map(|scope| on_b.subscribe().scope(scope).start().unwrap());
    on_b.insert(key("mine"), 1).unwrap();
    on_a.insert(key("theirs"), 1).unwrap();
    Wire::new([&a, &b]).carry();
    let inserted = |name| (EventKind::Inserted, Operation::Insert, one(name));
    let [all, local, remote] = &mut heard;
    assert_eq!(told(all), [inserted("mine"), inserted("theirs")]);
    assert_eq!((told(local), told(remote)), (vec![inserted("mine")], vec![inserted("theirs")]));
}

#[test]
fn a_fill_that_a_peers_change_overtook_is_not_kept() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    let tidings_cache::ReadOrFill::Miss(token) =
        on_b.get_or_token(&key("k"), tidings_cache::TOKEN_TIME).unwrap()
    else {
        panic!()
    };
    on_a.insert(key("k"), 2).unwrap();
    let mut wire = Wire::new([&a, &b]);
    wire.carry();
    assert!(!on_b.fill(&key("k"), 1, token, None).unwrap());
    wire.carry();
    assert_eq!((on_a.get(&key("k")), on_b.get(&key("k"))), (Some(2), None));
    assert_eq!(on_b.counts().fence_rejects, 1);
}

#[test]
fn a_change_ends_flights_of_its_key_also_where_there_is_no_entry() {
    for change in [
        (|cache: &Cache<String, u64>| drop(cache.remove(&key("k")).unwrap())) as fn(&Cache<String, u64>),
        |cache| drop(cache.write().remove_many([key("k")]).unwrap()),
        |cache| drop(cache.clear().unwrap()),
    ] {
        for remote in [false, true] {
            let (a, b) = (Node::new("a"), Node::new("b"));
            let (on_a, on_b) = (a.users(), b.users());
            let miss = on_b.get_or_token(&key("k"), tidings_cache::TOKEN_TIME).unwrap();
            let tidings_cache::ReadOrFill::Miss(token) = miss else { panic!() };
            change(if remote { &on_a } else { &on_b });
            Wire::new([&a, &b]).carry();
            assert!(!on_b.fill(&key("k"), 1, token, None).unwrap());
            assert_eq!(on_b.get(&key("k")), None);
        }
    }
}

#[test]
fn a_peers_change_always_evicts_for_commit_order_is_not_known() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    on_a.insert(key("k"), 1).unwrap();
    on_b.insert(key("k"), 2).unwrap();
    Wire::new([&a, &b]).carry();
    assert_eq!((on_a.get(&key("k")), on_b.get(&key("k"))), (None, None));
}

#[test]
fn applying_a_batch_twice_changes_nothing_more() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    fill(&on_b, "k", 1);
    let written = on_a.remove(&key("k")).unwrap();
    let batch = read(a.domain.log(), written.positions[0].0);
    for _ in 0..2 {
        assert_eq!(apply(&b.domain, &a.origin, Lanes::default(), &batch).unwrap().next, batch.next());
    }
    assert_eq!((on_b.get(&key("k")), on_b.counts().invalidated()), (None, 1));
}

#[test]
fn what_a_log_has_forgotten_is_fenced_and_later_fills_are_kept() {
    let (a, b) =
        (Node::with("a", Lanes::default(), Retention { events: 16, ..Retention::default() }), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    many(100).iter().for_each(|key| fill(&on_b, key, 1));
    many(100).into_iter().chain(many(100)).for_each(|key| drop(on_a.insert(key, 2).unwrap()));
    let mut wire = Wire::new([&a, &b]);
    wire.carry();
    assert_eq!(wire.resets, 4);
    assert!(many(100).iter().all(|key| on_b.get(key).is_none()));
    // What was missed may have been of a write that has yet to land.
    b.clock.advance(Duration::from_secs(6));
    fill(&on_b, "k", 3);
    wire.carry();
    assert_eq!((on_b.get(&key("k")), wire.resets), (Some(3), 4));
}

#[test]
fn a_peer_that_writes_other_keys_under_a_caches_name_disturbs_nothing() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let on_a: Cache<Vec<u8>, u64> = a.cache("users").open().unwrap();
    let on_b: Cache<String, u64> =
        b.cache("users").partitions(2).partitioner(|key: &String| Some(key.len() % 2)).open().unwrap();
    fill(&on_b, "k", 1);
    let mut heard = on_b.subscribe().start().unwrap();
    // Not UTF-8: no string decodes from it.
    on_a.insert(vec![0xff, 0xfe], 1).unwrap();
    on_a.insert(b"abc".to_vec(), 1).unwrap();
    Wire::new([&a, &b]).carry();
    assert_eq!(on_b.get(&key("k")), Some(1));
    assert_eq!(told(&mut heard), [(EventKind::Inserted, Operation::Insert, one("abc"))]);
    assert_eq!(on_b.counts().unpartitioned, 1);
}

#[test]
fn a_stalled_peer_delays_no_writer_and_holds_no_memory() {
    let a = Node::with("a", Lanes::default(), Retention { events: 1_000, bytes: Retention::BYTES_MIN });
    let users = a.users();
    // Nobody reads the log; were a writer to wait for its readers, this would never end.
    (0..100_000_u64).for_each(|n| drop(users.insert(format!("key-{}", n % 100), n).unwrap()));
    assert_eq!(a.logged(), 100_000);
    assert!(a.domain.log().bytes() <= 4 * Retention::BYTES_MIN, "{}", a.domain.log().bytes());
}

#[test]
fn a_clear_by_a_peer_is_told_once_its_last_copy_was_applied() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    many(64).into_iter().for_each(|key| drop(on_a.insert(key, 1).unwrap()));
    on_a.clear().unwrap();
    let mut heard = on_b.subscribe().start().unwrap();
    let log = a.domain.log();
    let (mut inserted, mut cleared) = (0, 0);
    for lane in log.lanes().ids() {
        assert_eq!(cleared, 0, "{lane:?} had not come yet");
        apply(&b.domain, &a.origin, log.lanes(), &read(log, lane)).unwrap();
        let kinds = kinds(&mut heard);
        inserted += kinds.iter().filter(|kind| **kind == EventKind::Inserted).count();
        cleared += kinds.iter().filter(|kind| **kind == EventKind::Cleared).count();
        assert!(cleared == 0 || kinds.last() == Some(&EventKind::Cleared), "{kinds:?}");
    }
    assert_eq!((inserted, cleared), (64, 1));
}

#[test]
fn a_clear_whose_last_copy_does_not_come_is_told_all_the_same_and_once() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    on_a.clear().unwrap();
    let mut heard = on_b.subscribe().start().unwrap();
    let log = a.domain.log();
    let lanes: Vec<_> = log.lanes().ids().collect();
    let (last, first) = lanes.split_last().unwrap();
    for lane in first {
        apply(&b.domain, &a.origin, log.lanes(), &read(log, *lane)).unwrap();
    }
    on_b.settle();
    assert!(events(&mut heard).is_empty());
    b.clock.advance(Duration::from_secs(5));
    on_b.settle();
    assert_eq!(kinds(&mut heard), [EventKind::Cleared]);
    apply(&b.domain, &a.origin, log.lanes(), &read(log, *last)).unwrap();
    b.clock.advance(Duration::from_secs(5));
    on_b.settle();
    assert!(events(&mut heard).is_empty());
}

#[test]
fn clears_that_wait_for_copies_are_bounded_and_none_is_lost() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    let mut heard = on_b.subscribe().start().unwrap();
    (0..100).for_each(|_| drop(on_a.clear().unwrap()));
    let log = a.domain.log();
    let lane = log.lanes().ids().next().unwrap();
    apply(&b.domain, &a.origin, log.lanes(), &read(log, lane)).unwrap();
    assert_eq!(kinds(&mut heard).len(), 100 - 64);
    b.clock.advance(Duration::from_secs(5));
    on_b.settle();
    assert_eq!(kinds(&mut heard).len(), 64);
}

#[test]
fn a_fence_is_told_to_every_subscriber_of_what_it_concerns() {
    let node = Node::new("a");
    let users: Cache<String, u64> = node.cache("users").partitions(4).open().unwrap();
    let local: Cache<String, u64> = node.cache("local").mode(Mode::Local).open().unwrap();
    let narrow = users.subscribe().kinds([EventKind::Deleted]).prefix("x").partition(2);
    let mut heard = [users.subscribe().start().unwrap(), narrow.start().unwrap()];
    let mut untouched = local.subscribe().start().unwrap();
    let slots = node.domain.log().lanes().slots_of(node.domain.log().lanes().ids().next().unwrap());
    users.insert(key("before"), 1).unwrap();
    node.domain.fence(slots);
    users.insert(key("after"), 1).unwrap();
    for (heard, expected) in heard.iter_mut().zip([3, 1]) {
        let items = items(heard);
        let fences =
            items.iter().filter(|item| matches!(item, Item::Fenced { slots: told } if *told == slots));
        assert_eq!((items.len(), fences.count()), (expected, 1), "{items:?}");
    }
    assert!(items(&mut untouched).is_empty());
}

#[test]
fn a_log_that_was_overrun_is_told_to_subscribers() {
    let lanes = Lanes::new(1).unwrap();
    let a = Node::with("a", lanes, Retention { events: 10, bytes: 1 });
    let b = Node::new("b");
    let (on_a, on_b) = (a.users(), b.users());
    let mut heard = on_b.subscribe().start().unwrap();
    let mut wire = Wire::new([&a, &b]);
    many(1_000).into_iter().for_each(|key| drop(on_a.insert(key, 1).unwrap()));
    wire.carry();
    assert_eq!(wire.resets, 1);
    let items = items(&mut heard);
    assert!(matches!(items[..], [Item::Fenced { slots: SlotSet::ALL }]), "{items:?}");
}

//! Records that are informational, unknown, broken, or of a newer release.

use std::sync::Arc;

use bytes::Bytes;
use tidings_cache::{Cache, EventKind, Mode, Operation};
use tidings_proto::hash::{CacheId, slot_of};
use tidings_proto::hlc::Stamp;
use tidings_proto::id::{Incarnation, LaneId, Lanes, Origin, Slot};
use tidings_proto::log::{ChangeLog, Retention};
use tidings_proto::record::{Batch, Draft, DraftTarget, Parts};

use crate::common::{Node, apply, fill, key, kinds, many, read};

#[test]
fn informational_events_of_a_peer_evict_nothing() {
    let b = Node::new("b");
    let on_b = b.users();
    fill(&on_b, "k", 1);
    let mut heard = on_b.subscribe().start().unwrap();
    let informational = [EventKind::Expired, EventKind::Evicted, EventKind::Invalidated];
    for kind in informational {
        let log = ChangeLog::new(Lanes::default(), Retention::default());
        let lane = write(&log, kind, "users", DraftTarget::Key(&encoded("k")));
        let applied = apply(&b.domain, &origin("a"), log.lanes(), &read(&log, lane)).unwrap();
        assert_eq!(applied.changes, 0, "{kind}");
    }
    assert_eq!((on_b.get(&key("k")), on_b.counts().applied()), (Some(1), 0));
    assert_eq!(kinds(&mut heard), informational);
}

#[test]
fn tags_and_prefixes_of_a_peer_are_fenced_rather_than_ignored() {
    for target in [DraftTarget::Tag("tenant:7"), DraftTarget::Prefix("k")] {
        let b = Node::new("b");
        let on_b = b.users();
        fill(&on_b, "k", 1);
        let log = ChangeLog::new(Lanes::new(1).unwrap(), Retention::default());
        let lane = write(&log, EventKind::Deleted, "users", target);
        apply(&b.domain, &origin("a"), log.lanes(), &read(&log, lane)).unwrap();
        assert_eq!(on_b.get(&key("k")), None, "{target:?}");
    }
}

#[test]
fn a_record_of_an_unknown_kind_fences_its_cache_in_its_lane() {
    let b = Node::new("b");
    let (on_b, other): (_, Cache<String, u64>) = (b.users(), b.cache("profiles").open().unwrap());
    many(40).iter().for_each(|key| fill(&on_b, key, 1));
    many(40).iter().for_each(|key| fill(&other, key, 1));
    let batch = tampered(|record| record[1] = record[1] & 0xf0 | 0x0f);
    assert_eq!(apply(&b.domain, &origin("a"), Lanes::default(), &batch).unwrap().next, batch.next());
    let lane = batch.lane;
    let gone =
        |name: &String| Lanes::default().lane_of(slot_of(CacheId::of_name("users"), &encoded(name))) == lane;
    assert!(many(40).iter().all(|key| on_b.contains(key) != gone(key)));
    assert!(many(40).iter().any(gone));
    assert!(many(40).iter().all(|key| other.contains(key)));
    let stats = b.domain.remote_stats();
    assert_eq!((stats.opaque.get(), stats.ignored.get(), stats.fenced_slots.get()), (1, 0, 16));
}

#[test]
fn a_record_that_may_be_ignored_is_counted_and_changes_nothing() {
    let b = Node::new("b");
    let on_b = b.users();
    many(40).iter().for_each(|key| fill(&on_b, key, 1));
    // A kind of a later release, and a canary.
    for kind in [0x1e, 0x1f] {
        let batch = tampered(|record| record[1] = record[1] & 0xe0 | kind);
        assert_eq!(apply(&b.domain, &origin("a"), Lanes::default(), &batch).unwrap().next, batch.next());
    }
    assert!(many(40).iter().all(|key| on_b.contains(key)));
    let stats = b.domain.remote_stats();
    assert_eq!((stats.opaque.get(), stats.ignored.get(), stats.fenced_slots.get()), (0, 1, 0));
    assert_eq!(stats.canaries.get(), 1);
}

#[test]
fn a_record_whose_body_is_broken_fences_its_lane_in_every_cache() {
    let b = Node::new("b");
    let (on_b, other): (_, Cache<String, u64>) = (b.users(), b.cache("profiles").open().unwrap());
    let local: Cache<String, u64> = b.cache("local").mode(Mode::Local).open().unwrap();
    many(40).iter().for_each(|key| fill(&on_b, key, 1));
    many(40).iter().for_each(|key| fill(&other, key, 1));
    many(40).iter().for_each(|key| fill(&local, key, 1));
    // No operation has this number.
    let batch = tampered(|record| record[7] = record[7] & 0xf0 | 0x0c);
    assert_eq!(apply(&b.domain, &origin("a"), Lanes::default(), &batch).unwrap().next, batch.next());
    for (cache, name) in [(&on_b, "users"), (&other, "profiles")] {
        let gone = |key: &String| {
            Lanes::default().lane_of(slot_of(CacheId::of_name(name), &encoded(key))) == batch.lane
        };
        assert!(many(40).iter().all(|key| cache.contains(key) != gone(key)));
    }
    assert!(many(40).iter().all(|key| local.contains(key)));
}

#[test]
fn what_comes_before_unsound_framing_is_applied() {
    let (a, b) = (Node::with("a", Lanes::new(1).unwrap(), Retention::default()), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    ["k", "m"].iter().for_each(|key| fill(&on_b, key, 1));
    on_a.remove(&key("k")).unwrap();
    on_a.remove(&key("m")).unwrap();
    let mut batch = read(a.domain.log(), a.domain.log().lanes().lane(0).unwrap());
    batch.records.truncate(batch.records.len() - 1);
    assert!(apply(&b.domain, &a.origin, Lanes::new(1).unwrap(), &batch).is_err());
    assert_eq!((on_b.get(&key("k")), on_b.get(&key("m"))), (None, Some(1)));
}

fn origin(name: &str) -> Arc<Origin> {
    Arc::new(Origin { node: name.parse().unwrap(), incarnation: Incarnation(1) })
}

fn encoded(key: &str) -> Vec<u8> {
    tidings_proto::codec::encode(key).unwrap()
}

/// Appends a record to a foreign log; returns the lane.
fn write(log: &ChangeLog, kind: EventKind, cache: &str, target: DraftTarget<'_>) -> LaneId {
    let cache = CacheId::of_name(cache);
    let slot = if let DraftTarget::Key(key) = target { slot_of(cache, key) } else { Slot::of_hash(0) };
    let parts = Parts {
        kind,
        operation: Operation::Remove,
        ignorable: false,
        cache,
        slot,
        version: None,
        metadata: &[],
        value: None,
        target,
    };
    log.append(slot, 1, &Draft::new(parts).unwrap()).unwrap().lane
}

/// A batch of one record of `users` that a newer release, or a broken one, has written.
fn tampered(tamper: impl FnOnce(&mut [u8])) -> Batch {
    let log = ChangeLog::new(Lanes::default(), Retention::default());
    let lane = write(&log, EventKind::Deleted, "users", DraftTarget::Key(&encoded("k")));
    let batch = read(&log, lane);
    let mut records = batch.records.to_vec();
    tamper(&mut records);
    Batch { records: Bytes::from(records), base: Stamp::default(), ..batch }
}

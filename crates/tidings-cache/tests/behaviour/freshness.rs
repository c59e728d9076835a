//! When an entry may be served: only while everything relevant is confirmed, or while its load is young.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidings_cache::{Cache, Computed, EventKind, Mode, ReadOrFill, TOKEN_TIME};
use tidings_proto::freshness::Published;
use tidings_proto::id::SlotSet;
use tidings_proto::time::Tick;

use crate::common::{MAX_STALENESS, Node, events, fill, key, kinds_despite_fences, many};

/// What a coarse clock may lag behind; taken off every bound.
const COARSE_LAG: Duration = Duration::from_millis(10);

#[test]
fn an_old_entry_hits_until_freshness_ends_and_not_a_moment_longer() {
    let node = Node::new("a");
    let users = node.users();
    users.insert(key("k"), 1).unwrap();
    node.clock.advance(MAX_STALENESS * 10);
    let fresh_until = node.clock.now().after(MAX_STALENESS);
    node.domain.publish(Published { fresh_until, floor: Tick::NEVER });
    node.clock.advance(MAX_STALENESS - COARSE_LAG);
    assert_eq!(users.get(&key("k")), Some(1));
    node.clock.advance(Duration::from_nanos(1));
    assert_eq!(users.get(&key("k")), None);
    let counts = users.counts();
    assert_eq!((counts.hits, counts.misses, counts.limited), (1, 0, 1));
}

#[test]
fn a_young_entry_hits_in_any_doubt_and_not_beyond_the_bound() {
    let node = Node::new("a");
    let users = node.users();
    node.domain.publish(Published { fresh_until: Tick::NEVER, floor: Tick::NEVER });
    users.insert(key("k"), 1).unwrap();
    node.clock.advance(MAX_STALENESS - COARSE_LAG);
    assert_eq!(users.get(&key("k")), Some(1));
    node.clock.advance(Duration::from_nanos(1));
    assert_eq!(users.get(&key("k")), None);
    assert_eq!(users.counts().limited, 1);
}

#[test]
fn freshness_ends_without_anything_having_run() {
    // A stopped process publishes nothing: the deadline alone decides when it goes on.
    let node = Node::new("a");
    let users = node.users();
    users.insert(key("k"), 1).unwrap();
    node.domain.publish(Published { fresh_until: node.clock.now().after(MAX_STALENESS), floor: Tick::NEVER });
    node.clock.advance(Duration::from_secs(3_600));
    assert_eq!(users.get(&key("k")), None);
}

#[test]
fn an_entry_that_doubt_had_limited_is_served_again_once_it_is_confirmed() {
    let node = Node::new("a");
    let users = node.users();
    users.insert(key("k"), 1).unwrap();
    node.fresh_until_now();
    node.clock.advance(MAX_STALENESS);
    assert_eq!(users.get(&key("k")), None);
    node.fresh_forever();
    assert_eq!(users.get(&key("k")), Some(1));
}

#[test]
fn a_limited_entry_is_absent_for_every_operation() {
    let node = Node::new("a");
    let users = node.users();
    let limited = || {
        node.fresh_forever();
        users.insert(key("k"), 1).unwrap();
        node.fresh_until_now();
        node.clock.advance(MAX_STALENESS);
    };
    assert_absent_for_every_operation(&users, limited);
}

#[test]
fn a_fenced_entry_is_absent_for_every_operation() {
    let node = Node::new("a");
    let users = node.users();
    let fenced = || {
        users.insert(key("k"), 1).unwrap();
        node.domain.fence_all();
    };
    assert_absent_for_every_operation(&users, fenced);
}

#[test]
fn an_entry_below_the_floor_is_absent_for_every_operation() {
    let node = Node::new("a");
    let users = node.users();
    let below = || {
        users.insert(key("k"), 1).unwrap();
        node.domain.publish(Published { fresh_until: Tick::FOREVER, floor: node.clock.now() });
        node.clock.advance(Duration::from_nanos(1));
    };
    assert_absent_for_every_operation(&users, below);
}

/// `prepare` stores `k` and makes it unreadable.
fn assert_absent_for_every_operation(users: &Cache<String, u64>, prepare: impl Fn()) {
    let k = key("k");
    prepare();
    assert_eq!((users.get(&k), users.peek(&k), users.contains(&k)), (None, None, false));
    assert_eq!((users.get_many([&k]), users.iter().count()), (vec![None], 0));
    assert_eq!(users.try_get(&k).unwrap(), None);
    assert!(matches!(users.get_or_token(&k, TOKEN_TIME).unwrap(), ReadOrFill::Miss(_)));
    let mut heard = users.subscribe().start().unwrap();
    assert!(!users.replace(k.clone(), 2).unwrap());
    assert_eq!(users.take(&k).unwrap(), None);
    assert_eq!(
        users
            .compute(&k, |old| {
                assert_eq!(old, None);
                Computed::Keep
            })
            .unwrap(),
        None
    );
    assert!(events(&mut heard).is_empty());

    prepare();
    assert!(users.insert_if_absent(k.clone(), 2).unwrap());
    assert_eq!(users.get(&k), Some(2));
    prepare();
    assert_eq!(users.increment(&k, 7).unwrap(), 7);
    prepare();
    assert_eq!(users.insert(k.clone(), 2).unwrap().kind, EventKind::Inserted);
    prepare();
    users.compute(&k, |old| Computed::Put(old.map_or(3, |_| 4))).unwrap();
    assert_eq!(users.get(&k), Some(3));
    prepare();
    users.write().insert_many([(k, 2)]).unwrap();
    let told = kinds_despite_fences(&mut heard);
    // `prepare` may insert over a readable entry; the rest are insertions.
    let of_prepare = 5;
    let inserted = told.iter().filter(|kind| **kind == EventKind::Inserted).count();
    assert!(inserted >= told.len() - of_prepare && told.last() == Some(&EventKind::Inserted), "{told:?}");
}

#[test]
fn the_floor_excludes_what_began_at_it_and_spares_what_began_after() {
    let node = Node::new("a");
    let users = node.users();
    users.insert(key("before"), 1).unwrap();
    let floor = node.clock.now();
    node.clock.advance(Duration::from_nanos(1));
    users.insert(key("after"), 1).unwrap();
    node.domain.publish(Published { fresh_until: Tick::FOREVER, floor });
    assert_eq!((users.get(&key("before")), users.get(&key("after"))), (None, Some(1)));
    assert_eq!(users.counts().limited, 0, "what the floor excludes is a miss");
}

#[test]
fn leaving_doubt_makes_nothing_readable_that_the_floor_excludes() {
    let node = Node::new("a");
    let users = node.users();
    users.insert(key("k"), 1).unwrap();
    node.fresh_until_now();
    node.clock.advance(MAX_STALENESS * 2);
    assert_eq!(users.get(&key("k")), None);
    node.domain.publish(Published { fresh_until: Tick::FOREVER, floor: node.clock.now() });
    assert_eq!(users.get(&key("k")), None);
}

#[test]
fn memory_of_what_the_floor_excludes_is_freed() {
    let node = Node::new("a");
    let users = node.users();
    many(100).into_iter().for_each(|key| drop(users.insert(key, 1).unwrap()));
    node.domain.publish(Published { fresh_until: Tick::FOREVER, floor: node.clock.now() });
    node.clock.advance(Duration::from_nanos(1));
    users.insert(key("after"), 1).unwrap();
    users.settle();
    assert_eq!(users.erased().entries(), 1);
}

#[test]
fn what_a_floor_takes_is_counted_and_what_a_fence_had_taken_before_is_not_counted_again() {
    let node = Node::new("a");
    let users = node.users();
    many(100).into_iter().for_each(|key| drop(users.insert(key, 1).unwrap()));
    node.domain.publish(Published { fresh_until: Tick::FOREVER, floor: node.clock.now() });
    node.clock.advance(Duration::from_nanos(1));
    users.insert(key("after"), 1).unwrap();
    let floored = || node.domain.remote_stats().floored_entries.get();
    users.settle();
    assert_eq!(floored(), 100);
    node.domain.fence(SlotSet::ALL);
    node.domain.publish(Published { fresh_until: Tick::FOREVER, floor: node.clock.now() });
    users.settle();
    assert_eq!((users.erased().entries(), floored()), (0, 100));
}

/// A value that does something while it is being read.
struct Hooked(Arc<Mutex<Option<Hook>>>);

type Hook = Box<dyn FnOnce() + Send>;

impl Clone for Hooked {
    fn clone(&self) -> Self {
        let hook = self.0.lock().unwrap().take();
        if let Some(hook) = hook {
            hook();
        }
        Self(self.0.clone())
    }
}

/// Whether a read still hits when `meanwhile` happens after it has found the entry.
fn hits_although(node: &Node, meanwhile: impl FnOnce() + Send + 'static) -> bool {
    let cache: Cache<String, Hooked> = node.cache("hooked").open().unwrap();
    let hook = Arc::new(Mutex::new(None));
    cache.insert(key("k"), Hooked(hook.clone())).unwrap();
    node.fresh_until_now();
    node.clock.advance(MAX_STALENESS / 2);
    *hook.lock().unwrap() = Some(Box::new(meanwhile));
    let hit = cache.get(&key("k")).is_some();
    assert!(hook.lock().unwrap().is_none(), "the hook has run");
    hit
}

#[test]
fn what_excludes_an_entry_while_it_is_read_is_honoured() {
    let node = Node::new("a");
    assert!(hits_although(&node, || ()));
    let node = Node::new("a");
    let domain = node.domain.clone();
    assert!(!hits_although(&node, move || domain.fence_all()));
    let node = Node::new("a");
    let (domain, clock) = (node.domain.clone(), node.clock.clone());
    let raise = move || domain.publish(Published { fresh_until: Tick::FOREVER, floor: clock.now() });
    assert!(!hits_although(&node, raise));
    // As if the process had been stopped in the middle of the read.
    let node = Node::new("a");
    let clock = node.clock.clone();
    assert!(!hits_although(&node, move || clock.advance(MAX_STALENESS)));
}

#[test]
fn freshness_that_is_published_while_an_entry_is_read_does_not_count_for_it() {
    // The publication may stand for an eviction of the very entry that was found before.
    let node = Node::new("a");
    let (domain, clock) = (node.domain.clone(), node.clock.clone());
    let publish = move || {
        clock.advance(MAX_STALENESS);
        domain.publish(Published { fresh_until: Tick::FOREVER, floor: Tick::NEVER });
    };
    assert!(!hits_although(&node, publish));
}

#[test]
fn a_local_cache_knows_no_doubt() {
    let node = Node::new("a");
    let local: Cache<String, u64> = node.cache("local").mode(Mode::Local).open().unwrap();
    local.insert(key("k"), 1).unwrap();
    node.domain.publish(Published { fresh_until: Tick::NEVER, floor: node.clock.now() });
    node.domain.fence_all();
    node.clock.advance(MAX_STALENESS * 2);
    assert_eq!(local.get(&key("k")), Some(1));
}

#[tokio::test]
async fn in_doubt_an_old_entry_is_loaded_anew_and_the_new_one_hits() {
    let node = Node::new("a");
    let users = node.users();
    users.insert(key("k"), 1).unwrap();
    node.fresh_until_now();
    node.clock.advance(MAX_STALENESS);
    let load = || async { Ok::<_, ()>(2) };
    assert_eq!(users.get_or_load(&key("k"), load).await.unwrap(), 2);
    assert_eq!(users.get_or_load(&key("k"), load).await.unwrap(), 2);
    let counts = users.counts();
    assert_eq!((counts.limited, counts.loads, counts.hits), (1, 1, 1));
    assert_eq!((counts.misses, counts.coalesced), (0, 0), "a read counts once");
    node.clock.advance(MAX_STALENESS);
    assert_eq!(users.get(&key("k")), None, "in doubt it lives as long as the bound");
}

#[test]
fn an_entry_is_as_old_as_its_load_and_not_as_its_store() {
    let node = Node::new("a");
    let users = node.users();
    node.domain.publish(Published { fresh_until: Tick::NEVER, floor: Tick::NEVER });
    let ReadOrFill::Miss(token) = users.get_or_token(&key("k"), TOKEN_TIME).unwrap() else { panic!() };
    node.clock.advance(MAX_STALENESS - COARSE_LAG * 2);
    assert!(users.fill(&key("k"), 1, token, None).unwrap());
    assert_eq!(users.peek(&key("k")), Some((1, MAX_STALENESS - COARSE_LAG * 2)));
    node.clock.advance(COARSE_LAG);
    assert_eq!(users.get(&key("k")), Some(1));
    node.clock.advance(Duration::from_nanos(1));
    assert_eq!(users.get(&key("k")), None);
}

#[test]
fn a_fence_spares_other_slots_and_what_is_loaded_after_it() {
    let node = Node::new("a");
    let users = node.users();
    many(200).iter().for_each(|key| fill(&users, key, 1));
    let lanes = node.domain.log().lanes();
    let lane = lanes.lane(2).unwrap();
    let ReadOrFill::Miss(before) = users.get_or_token(&key("late"), TOKEN_TIME).unwrap() else { panic!() };
    node.domain.fence(lanes.slots_of(lane));
    let in_lane = |name: &String| {
        let cache = tidings_proto::hash::CacheId::of_name("users");
        let bytes = tidings_proto::codec::encode(name).unwrap();
        lanes.lane_of(tidings_proto::hash::slot_of(cache, &bytes)) == lane
    };
    assert!(many(200).iter().all(|key| users.contains(key) != in_lane(key)));
    assert!(many(200).iter().any(in_lane));
    assert_eq!(users.fill(&key("late"), 1, before, None).unwrap(), !in_lane(&key("late")));
    many(200).iter().filter(|key| in_lane(key)).for_each(|key| fill(&users, key, 2));
    assert!(many(200).iter().all(|key| users.contains(key)));
}

#[test]
fn a_load_that_began_before_a_fence_is_not_kept() {
    let node = Node::new("a");
    let users = node.users();
    let ReadOrFill::Miss(token) = users.get_or_token(&key("k"), TOKEN_TIME).unwrap() else { panic!() };
    node.domain.fence_all();
    assert!(!users.fill(&key("k"), 1, token, None).unwrap());
    assert_eq!((users.get(&key("k")), users.counts().fence_rejects), (None, 1));
}

#[test]
fn what_an_insert_displaced_is_known_before_and_after_memory_is_reclaimed() {
    let node = Node::new("a");
    let users = node.users();
    let inserts = |expected: [EventKind; 2]| {
        let kinds = [1, 2].map(|value| users.insert(key("k"), value).unwrap().kind);
        assert_eq!(kinds, expected);
    };
    inserts([EventKind::Inserted, EventKind::Updated]);
    for reclaim in [false, true] {
        node.domain.fence_all();
        if reclaim {
            users.settle();
        }
        inserts([EventKind::Inserted, EventKind::Updated]);
        node.clock.advance(Duration::from_nanos(1));
        node.domain.publish(Published { fresh_until: Tick::FOREVER, floor: node.clock.now() });
        if reclaim {
            users.settle();
        }
        node.clock.advance(Duration::from_nanos(1));
        inserts([EventKind::Inserted, EventKind::Updated]);
    }
}

#[test]
fn an_entry_that_the_floor_overtook_before_it_was_stored_is_displaced_by_none() {
    let node = Node::new("a");
    let users = node.users();
    let ReadOrFill::Miss(token) = users.get_or_token(&key("k"), MAX_STALENESS).unwrap() else {
        panic!("the cache is empty");
    };
    node.clock.advance(Duration::from_nanos(1));
    node.domain.publish(Published { fresh_until: Tick::FOREVER, floor: node.clock.now() });
    users.settle();
    let _ = users.fill(&key("k"), 1, token, None).unwrap();
    assert_eq!(users.get(&key("k")), None);
    node.clock.advance(Duration::from_nanos(1));
    assert_eq!(users.insert(key("k"), 2).unwrap().kind, EventKind::Inserted);
    assert_eq!(users.insert(key("k"), 3).unwrap().kind, EventKind::Updated);
}

//! Entries that are invalidated by their tags.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{FutureExt, poll};
use serde::{Deserialize, Serialize};
use tidings_cache::{
    Cache, CacheBuilder, Computed, EventKind, FillError, Loaded, OpenError, Operation, ReadOrFill,
    TAGS_PER_ENTRY_MAX, TOKEN_TIME, TagError, Target, WriteError, WriteThroughError,
};
use tidings_proto::id::Lanes;
use tidings_proto::log::Retention;
use tokio::sync::oneshot;

use crate::common::{Node, Wire, apply, fill, key, many, one, read, told};

/// Users by name; the value is the tenant.
fn users(node: &Node) -> Cache<String, u64> {
    node.cache("users").tags(|_: &String, tenant: &u64| [format!("tenant:{tenant}")]).open().unwrap()
}

fn held(cache: &Cache<String, u64>, names: &[&str]) -> Vec<bool> {
    names.iter().map(|name| cache.contains(&key(name))).collect()
}

fn token(cache: &Cache<String, u64>, name: &str) -> tidings_cache::FillToken {
    match cache.get_or_token(&key(name), TOKEN_TIME).unwrap() {
        ReadOrFill::Miss(token) => token,
        ReadOrFill::Hit(value) => panic!("{name} is {value}"),
    }
}

#[tokio::test]
async fn an_entry_goes_with_its_tag_however_it_came_to_be() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (users(&a), users(&b));
    let mut wire = Wire::new([&a, &b]);
    let names = ["inserted", "replaced", "computed", "written", "many", "loaded", "filled", "incremented"];
    on_a.insert(key("inserted"), 7).unwrap();
    on_a.insert(key("replaced"), 1).unwrap();
    on_a.replace(key("replaced"), 7).unwrap();
    on_a.compute(&key("computed"), |_| Computed::Put(7)).unwrap();
    on_a.write_through(&key("written"), || async { Ok::<_, ()>(7) }).await.unwrap();
    on_a.write().insert_many([(key("many"), 7)]).unwrap();
    on_a.get_or_load(&key("loaded"), || async { Ok::<_, ()>(7) }).await.unwrap();
    fill(&on_a, "filled", 7);
    on_a.increment(&key("incremented"), 7).unwrap();
    on_a.insert(key("other"), 8).unwrap();
    wire.carry();
    names.iter().for_each(|name| fill(&on_b, name, 7));
    fill(&on_b, "other", 8);
    on_b.invalidate_tag("tenant:7").unwrap();
    assert_eq!((held(&on_b, &names), held(&on_b, &["other"])), (vec![false; 8], vec![true]), "at once here");
    assert_eq!(held(&on_a, &names), [true; 8], "the peer has not heard of it");
    wire.carry();
    assert_eq!((held(&on_a, &names), held(&on_a, &["other"])), (vec![false; 8], vec![true]));
    let counts = on_a.counts();
    assert_eq!((counts.tag_applied, counts.tag_evicted, counts.all_fenced), (1, 8, 0));
    assert_eq!((on_a.erased().tagged(), on_b.erased().tagged()), (1, 1));
}

#[test]
fn an_entry_has_the_tags_of_its_value_now() {
    let node = Node::new("a");
    let users = users(&node);
    users.insert(key("moved"), 1).unwrap();
    users.insert(key("moved"), 2).unwrap();
    users.invalidate_tag("tenant:1").unwrap();
    assert_eq!(users.get(&key("moved")), Some(2));
    users.remove(&key("moved")).unwrap();
    fill(&users, "moved", 3);
    users.invalidate_tags(["tenant:2", "tenant:4"]).unwrap();
    assert_eq!(users.get(&key("moved")), Some(3));
    users.invalidate_tags(["tenant:4", "tenant:3"]).unwrap();
    assert_eq!(users.get(&key("moved")), None);
}

#[tokio::test]
async fn callers_may_say_which_tags_an_entry_has() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let open = |node: &Node| node.cache::<String, u64>("users").explicit_tags().open().unwrap();
    let (on_a, on_b) = (open(&a), open(&b));
    let load = || async { Ok::<_, ()>(Loaded::new(1).tag("red").tag("round")) };
    assert_eq!(on_b.get_or_load_tagged(&key("loaded"), load).await.unwrap(), 1);
    let filled = Loaded::new(1).tag("red");
    assert!(on_b.fill_tagged(&key("filled"), filled, token(&on_b, "filled"), None).unwrap());
    on_b.write().tag("red").ttl(Duration::from_secs(60)).insert(key("written"), 1).unwrap();
    on_b.write().tags(["green", "red"]).insert_many([(key("many"), 1)]).unwrap();
    on_b.write().tag("green").insert(key("green"), 1).unwrap();
    on_b.write().tag("red").insert(key("untagged"), 1).unwrap();
    on_b.insert(key("untagged"), 2).unwrap();
    on_b.write().tag("red").insert(key("refilled"), 1).unwrap();
    on_b.remove(&key("refilled")).unwrap();
    fill(&on_b, "refilled", 2);
    on_a.invalidate_tag("red").unwrap();
    Wire::new([&a, &b]).carry();
    assert_eq!(held(&on_b, &["loaded", "filled", "written", "many"]), [false; 4]);
    assert_eq!(held(&on_b, &["untagged", "refilled", "green"]), [true; 3], "what they have now counts");
}

#[test]
fn a_cache_that_knows_of_no_tags_drops_everything() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (users(&a), b.users());
    let careful: Cache<String, u64> = Node::new("c").cache("users").explicit_tags().open().unwrap();
    fill(&on_b, "k", 1);
    fill(&careful, "k", 1);
    on_a.invalidate_tag("tenant:7").unwrap();
    careful.invalidate_tag("tenant:7").unwrap();
    let mut wire = Wire::new([&a, &b]);
    wire.carry();
    assert_eq!((on_b.get(&key("k")), careful.get(&key("k"))), (None, Some(1)));
    // What it is told later of tags, it knows.
    on_b.write().tag("red").insert(key("red"), 1).unwrap();
    fill(&on_b, "k", 1);
    on_a.invalidate_tag("red").unwrap();
    wire.carry();
    assert_eq!((on_b.get(&key("k")), on_b.get(&key("red"))), (Some(1), None));
}

#[tokio::test]
async fn a_load_under_way_when_its_tag_is_invalidated_is_returned_and_not_kept() {
    for remote in [false, true] {
        let (a, b) = (Node::new("a"), Node::new("b"));
        let (on_a, on_b) = (users(&a), users(&b));
        let (deliver, source) = oneshot::channel();
        let slow = key("slow");
        let mut load = std::pin::pin!(on_b.get_or_load(&slow, || source));
        assert!(poll!(load.as_mut()).is_pending());
        let tokens = ["mine", "theirs"].map(|name| token(&on_b, name));
        let by = if remote { &on_a } else { &on_b };
        by.invalidate_tag("tenant:7").unwrap();
        Wire::new([&a, &b]).carry();
        // Nobody joins what began before, and what begins now is kept, though no clock has moved.
        let now = on_b.get_or_load(&slow, || async { Ok::<_, ()>(8) });
        assert_eq!(now.now_or_never().unwrap().unwrap(), 8, "remote: {remote}");
        deliver.send(7).unwrap();
        assert_eq!(load.await.unwrap(), 7);
        assert_eq!(on_b.get(&key("slow")), Some(8));
        let landed = [("mine", 7), ("theirs", 8)].map(|(name, value)| {
            let token = tokens[usize::from(name == "theirs")];
            on_b.fill(&key(name), value, token, None).unwrap()
        });
        assert_eq!(landed, [false, true], "remote: {remote}");
        fill(&on_b, "later", 7);
        assert_eq!(on_b.get(&key("later")), Some(7));
    }
}

#[tokio::test]
async fn a_write_or_decision_under_way_when_its_tag_is_invalidated_is_not_kept() {
    let node = Node::new("a");
    let users = users(&node);
    let (deliver, source) = oneshot::channel();
    let written = key("written");
    let mut write = std::pin::pin!(users.write_through(&written, || source));
    assert!(poll!(write.as_mut()).is_pending());
    users.invalidate_tag("tenant:7").unwrap();
    deliver.send(7).unwrap();
    write.await.unwrap();
    assert_eq!(users.get(&key("written")), None);
    users.insert(key("number"), 7).unwrap();
    let mut seen = Vec::new();
    users
        .compute(&key("number"), |current| {
            seen.push(current.copied());
            if seen.len() == 1 {
                users.invalidate_tag("tenant:7").unwrap();
            }
            Computed::Put(7)
        })
        .unwrap();
    assert_eq!((seen, users.get(&key("number"))), (vec![Some(7), None], Some(7)));
}

#[test]
fn a_tag_is_told_once_and_counted_once_on_every_node() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let on_a = users(&a);
    let on_b: Cache<String, u64> =
        b.cache("users").partitions(3).tags(|_, tenant| [format!("tenant:{tenant}")]).open().unwrap();
    many(50).iter().for_each(|key| fill(&on_b, key, 7));
    let mut heard = [on_a.subscribe().start().unwrap(), on_b.subscribe().start().unwrap()];
    on_a.invalidate_tag("tenant:7").unwrap();
    on_a.insert(key("after"), 7).unwrap();
    let mut wire = Wire::new([&a, &b]);
    wire.carry();
    for heard in &mut heard {
        let mut told = told(heard);
        let invalidation = (EventKind::Deleted, Operation::Invalidate, Target::Tag("tenant:7".into()));
        assert!(told.contains(&invalidation), "{told:?}");
        told.retain(|one| *one != invalidation);
        assert_eq!(told, [(EventKind::Inserted, Operation::Insert, one("after"))]);
    }
    assert_eq!((a.domain.events_published(), wire.changes, on_b.counts().applied()), (2, 2, 2));
    assert!(many(50).iter().all(|key| !on_b.contains(key)));
}

#[test]
fn each_lanes_copy_of_a_tag_stands_for_that_lanes_keys() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (users(&a), users(&b));
    many(100).iter().for_each(|key| fill(&on_b, key, 7));
    on_a.invalidate_tag("tenant:7").unwrap();
    let log = a.domain.log();
    let mut left = 100;
    for lane in log.lanes().ids() {
        apply(&b.domain, &a.origin, log.lanes(), &read(log, lane)).unwrap();
        let now = many(100).iter().filter(|key| on_b.contains(key)).count();
        assert!(now < left, "{lane:?} removed none of {left}");
        left = now;
    }
    assert_eq!(left, 0);
}

#[test]
fn a_tag_of_more_entries_than_can_be_removed_one_by_one_fences_its_lane() {
    let lanes = Lanes::new(1).unwrap();
    let (a, b) = (Node::with("a", lanes, Retention::default()), Node::with("b", lanes, Retention::default()));
    let on_a = users(&a);
    let on_b: Cache<String, u64> = b
        .cache("users")
        .max_capacity(1_000_000)
        .tags(|_, tenant| [format!("tenant:{tenant}")])
        .open()
        .unwrap();
    (0..70_000_u64).for_each(|n| drop(on_b.insert(n.to_string(), 7).unwrap()));
    fill(&on_b, "other", 8);
    on_a.invalidate_tag("tenant:7").unwrap();
    Wire::new([&a, &b]).carry_between(0, 1);
    assert!((0..70_000_u64).all(|n| !on_b.contains(&n.to_string())));
    assert_eq!(on_b.get(&key("other")), None);
    // This node's own are removed one by one, however many they are.
    (0..70_000_u64).for_each(|n| drop(on_b.insert(n.to_string(), 7).unwrap()));
    fill(&on_b, "other", 8);
    on_b.invalidate_tag("tenant:7").unwrap();
    assert!((0..70_000_u64).all(|n| !on_b.contains(&n.to_string())));
    assert_eq!((on_b.get(&key("other")), on_b.erased().tagged()), (Some(8), 1));
}

#[test]
fn tags_beyond_the_limits_are_errors_and_change_nothing() {
    let node = Node::new("a");
    let users: Cache<String, u64> = node
        .cache("users")
        .tags(|_, count| (0..*count).map(|n| n.to_string()).collect::<Vec<_>>())
        .open()
        .unwrap();
    let most = TAGS_PER_ENTRY_MAX as u64;
    users.insert(key("k"), most).unwrap();
    let refused = users.insert(key("k"), most + 1);
    assert!(matches!(refused, Err(WriteError::Tags(TagError::TooMany))), "{refused:?}");
    let refused = users.write().insert_many([(key("m"), 1), (key("n"), most + 1)]);
    assert!(matches!(refused, Err(WriteError::Tags(TagError::TooMany))), "{refused:?}");
    let refused = users.write().tag("").insert(key("k"), 1);
    assert!(matches!(refused, Err(WriteError::Tags(TagError::Empty))), "{refused:?}");
    let long = "x".repeat(257);
    let refused = users.invalidate_tags(["0", &long]);
    assert!(matches!(refused, Err(WriteError::Tags(TagError::TooLong(257)))), "{refused:?}");
    assert_eq!((users.get(&key("k")), node.logged()), (Some(most), 1));
    // What a loader brings is returned, and not kept.
    let l = key("l");
    let loaded = users.get_or_load(&l, || async { Ok::<_, ()>(most + 1) });
    assert_eq!(loaded.now_or_never().unwrap().unwrap(), most + 1);
    let given = token(&users, "f");
    let filled = users.fill_tagged(&key("f"), Loaded::new(1).tag(long), given, None);
    assert!(matches!(filled, Err(FillError::Tags(TagError::TooLong(257)))), "{filled:?}");
    assert!(users.fill(&key("f"), 1, given, None).unwrap(), "the token is as good as before");
    assert_eq!((users.get(&key("l")), users.counts().untagged), (None, 2));
}

#[tokio::test]
async fn a_write_whose_value_cannot_have_its_tags_evicts_everywhere() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let open = |node: &Node| -> Cache<String, u64> {
        let tags = |_: &String, count: &u64| vec!["x".to_owned(); usize::from(*count < 9)];
        node.cache("users")
            .tags(move |key, count| if *count > 9 { vec![String::new()] } else { tags(key, count) })
            .open()
            .unwrap()
    };
    let (on_a, on_b) = (open(&a), open(&b));
    fill(&on_a, "k", 1);
    fill(&on_b, "k", 1);
    let failed = on_a.write_through(&key("k"), || async { Ok::<_, ()>(10) }).await;
    assert!(matches!(failed, Err(WriteThroughError::Cache(WriteError::Tags(_)))), "{failed:?}");
    Wire::new([&a, &b]).carry();
    assert_eq!((on_a.get(&key("k")), on_b.get(&key("k")), on_a.erased().flights()), (None, None, 0));
}

#[test]
fn a_tag_function_that_panics_changes_nothing_and_releases_its_flights() {
    let node = Node::new("a");
    let broken = std::sync::Arc::new(AtomicBool::new(true));
    let switch = broken.clone();
    let users: Cache<String, u64> = node
        .cache("users")
        .tags(move |_, _| {
            assert!(!switch.load(Ordering::SeqCst), "broken on purpose");
            ["t"]
        })
        .open()
        .unwrap();
    let call = |call: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_err();
    assert!(call(&|| drop(users.insert(key("k"), 1))));
    assert!(call(&|| drop(users.get_or_load(&key("k"), || async { Ok::<_, ()>(1) }).now_or_never())));
    assert_eq!((users.get(&key("k")), users.erased().flights(), node.logged()), (None, 0, 0));
    broken.store(false, Ordering::SeqCst);
    users.insert(key("k"), 1).unwrap();
    users.invalidate_tag("t").unwrap();
    assert_eq!(users.get(&key("k")), None);
}

#[test]
fn a_flood_of_distinct_tags_is_forgotten_with_its_entries() {
    const TAGS: u64 = 100_000;
    const CAPACITY: u64 = 1_000;
    let node = Node::new("a");
    let users: Cache<String, u64> =
        node.cache("users").max_capacity(CAPACITY).tags(|_, n| [format!("tag-{n}")]).open().unwrap();
    let mut most = 0;
    for n in 0..TAGS {
        if n % 2 == 0 {
            users.insert(n.to_string(), n).unwrap();
        } else {
            fill(&users, &n.to_string(), n);
        }
        if n % 1_000 == 0 {
            most = most.max(users.erased().tagged() as u64);
        }
    }
    // moka takes note of what was written some hundred entries at a time.
    assert!(most < 3 * CAPACITY, "{most} of {TAGS}");
    for _ in 0..20 {
        users.settle();
    }
    assert_eq!(users.erased().tagged() as u64, users.erased().entries());
    users.clear().unwrap();
    users.settle();
    assert_eq!(users.erased().tagged(), 0);
}

#[test]
fn tags_of_what_has_expired_are_forgotten() {
    let node = Node::new("a");
    let users: Cache<String, u64> = node
        .cache("users")
        .time_to_idle(Duration::from_secs(100))
        .tags(|_, tenant| [format!("tenant:{tenant}")])
        .open()
        .unwrap();
    users.write().ttl(Duration::from_nanos(1)).insert(key("short"), 1).unwrap();
    node.clock.advance(Duration::from_secs(61));
    crate::common::eventually("moka lets it go", || {
        users.settle();
        users.erased().tagged() == 0
    });
}

#[tokio::test]
async fn more_invalidations_than_are_remembered_end_every_load_that_began_before() {
    let node = Node::new("a");
    let users = users(&node);
    let early = token(&users, "early");
    (0..1_024).for_each(|n| drop(users.invalidate_tag(&format!("tenant:{}", 100 + n)).unwrap()));
    assert!(users.fill(&key("early"), 1, early, None).unwrap(), "none of them named it");
    let early = token(&users, "other");
    (0..1_025).for_each(|n| drop(users.invalidate_tag(&format!("tenant:{}", 100 + n)).unwrap()));
    assert!(!users.fill(&key("other"), 1, early, None).unwrap(), "what named it may be forgotten");
}

/// Encodes, and cannot be read back.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Loose {
    Number(u64),
}

#[tokio::test]
async fn what_is_loaded_under_a_key_that_cannot_be_read_back_is_not_kept_without_its_tags() {
    let node = Node::new("a");
    let users = CacheBuilder::<Loose, u64>::new(&node.domain, "users").tags(|_, _| ["all"]).open().unwrap();
    let key = Loose::Number(7);
    let load = || async { Ok::<_, ()>(1) };
    assert_eq!(users.get_or_load(&key, load).await.unwrap(), 1);
    assert_eq!((users.get(&key), users.counts().untagged), (None, 1), "it would outlive its tags");
    // Who has the key at hand can tell.
    users.insert(key.clone(), 2).unwrap();
    assert_eq!(users.get(&key), Some(2));
    users.invalidate_tag("all").unwrap();
    assert_eq!(users.get(&key), None);
}

#[test]
fn an_eager_refresh_is_refused_where_callers_give_the_tags() {
    let node = Node::new("a");
    let minute = Duration::from_secs(60);
    let builder = CacheBuilder::<String, u64>::new(&node.domain, "users")
        .explicit_tags()
        .time_to_live(minute)
        .eager_refresh(0.5);
    assert!(matches!(builder.open().map(drop), Err(OpenError::Option { option: "eager_refresh", .. })));
}

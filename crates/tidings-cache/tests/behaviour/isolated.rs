//! What each choice of `when_isolated` does in doubt, and that none serves what is known to be over.

use std::time::Duration;

use tidings_cache::{Cache, Fetched, Mode, ReadOrFill, TOKEN_TIME, WhenIsolated};
use tidings_proto::freshness::Published;
use tidings_proto::id::SlotSet;
use tidings_proto::time::Tick;

use crate::common::{MAX_STALENESS, Node, Wire, assert_share_a_load, fill, key};

type Users = Cache<String, u64>;

const MOMENT: Duration = Duration::from_millis(100);

fn opened(node: &Node, when: WhenIsolated) -> Users {
    node.cache("users").when_isolated(when).open().unwrap()
}

/// Nothing has been heard for a moment longer than the bound.
fn doubt(node: &Node) {
    node.fresh_until_now();
    node.clock.advance(MOMENT);
}

async fn load(users: &Users, name: &str) -> u64 {
    users.get_or_load(&key(name), || async { Ok::<_, ()>(7) }).await.unwrap()
}

fn stale(value: u64) -> Option<Fetched<u64>> {
    Some(Fetched { value, stale: true })
}

fn fresh(value: u64) -> Option<Fetched<u64>> {
    Some(Fetched { value, stale: false })
}

#[tokio::test]
async fn a_bypassing_cache_serves_and_keeps_nothing_in_doubt() {
    let node = Node::new("a");
    let users = opened(&node, WhenIsolated::Bypass);
    load(&users, "young").await;
    assert_eq!(users.get(&key("young")), Some(7));
    doubt(&node);
    assert_eq!((users.get(&key("young")), users.get_marked(&key("young"))), (None, None));
    assert_eq!((load(&users, "loaded").await, load(&users, "loaded").await), (7, 7));
    let ReadOrFill::Miss(token) = users.get_or_token(&key("filled"), TOKEN_TIME).unwrap() else { panic!() };
    assert!(!users.fill(&key("filled"), 1, token, None).unwrap());
    users.insert(key("own"), 2).unwrap();
    assert_eq!(users.get(&key("own")), None);
    let counts = users.counts();
    assert_eq!((counts.bypassed, counts.fence_rejects, counts.loads), (3, 0, 3));
    node.fresh_forever();
    let after = ["young", "loaded", "filled", "own"].map(|name| users.get(&key(name)));
    assert_eq!(after, [Some(7), None, None, Some(2)]);
    assert_eq!((load(&users, "loaded").await, users.get(&key("loaded"))), (7, Some(7)));
}

#[tokio::test]
async fn callers_of_a_bypassing_cache_share_a_load_that_is_under_way() {
    let node = Node::new("a");
    let users = opened(&node, WhenIsolated::Bypass);
    doubt(&node);
    assert_share_a_load(&users).await;
}

#[tokio::test]
async fn a_serving_cache_marks_what_it_doubts_and_runs_no_loader_for_it() {
    let node = Node::new("a");
    let users = opened(&node, WhenIsolated::Serve);
    let k = key("k");
    load(&users, "k").await;
    assert_eq!(users.get_marked(&k), fresh(7));
    doubt(&node);
    assert_eq!((users.get(&k), users.get_marked(&k)), (Some(7), fresh(7)), "it is young");
    node.clock.advance(MAX_STALENESS);
    let before = users.counts();
    assert_eq!((users.get(&k), users.contains(&k)), (None, false), "who cannot be told gets nothing");
    assert_eq!(users.get_marked(&k), stale(7));
    let fetched = users.fetch(&k, || async { Err::<u64, _>("a loader") }).await.unwrap();
    assert_eq!(Some(fetched), stale(7));
    let ReadOrFill::Hit(read) = users.get_marked_or_token(&k, TOKEN_TIME).unwrap() else { panic!() };
    assert_eq!(Some(read), stale(7));
    assert_eq!(users.peek_marked(&k), Some((Fetched { value: 7, stale: true }, MAX_STALENESS + MOMENT)));
    let counts = users.counts();
    assert_eq!((counts.stale - before.stale, counts.limited - before.limited), (3, 1));
    assert_eq!((counts.hits, counts.misses), (before.hits, before.misses));
    assert_eq!(users.get_marked(&key("other")), None);
    node.fresh_forever();
    assert_eq!((users.get(&k), users.get_marked(&k)), (Some(7), fresh(7)));
}

#[test]
fn what_is_known_to_be_over_is_served_by_no_choice() {
    let ends: [fn(&Users, &Node); 6] = [
        |users, _| drop(users.remove(&key("k")).unwrap()),
        |users, _| drop(users.clear().unwrap()),
        |_, node| node.domain.fence(SlotSet::ALL),
        |_, node| {
            let floor = node.clock.now();
            node.domain.publish(Published { fresh_until: Tick::NEVER, floor });
        },
        |_, node| node.clock.advance(Duration::from_secs(60)),
        |_, node| {
            let other = Node::new("b");
            let elsewhere = other.users();
            let mut wire = Wire::new([&other, node]);
            elsewhere.remove(&key("k")).unwrap();
            wire.carry();
        },
    ];
    for when in WhenIsolated::ALL {
        for (index, end) in ends.iter().enumerate() {
            let node = Node::new("a");
            let users: Users =
                node.cache("users").when_isolated(when).time_to_live(Duration::from_secs(30)).open().unwrap();
            fill(&users, "k", 1);
            node.fresh_until_now();
            node.clock.advance(2 * MAX_STALENESS);
            end(&users, &node);
            assert_eq!(users.get_marked(&key("k")), None, "{when:?}, {index}");
            assert_eq!(users.get(&key("k")), None, "{when:?}, {index}");
        }
    }
}

#[tokio::test]
async fn a_failing_loader_leaves_a_serving_cache_with_what_expired_in_doubt() {
    let node = Node::new("a");
    let users: Users = node
        .cache("users")
        .when_isolated(WhenIsolated::Serve)
        .time_to_live(MOMENT)
        .fail_safe(Duration::from_secs(60))
        .open()
        .unwrap();
    fill(&users, "k", 1);
    node.fresh_until_now();
    node.clock.advance(2 * MAX_STALENESS);
    let fetched = users.fetch(&key("k"), || async { Err::<u64, _>("it fails") }).await.unwrap();
    assert_eq!(Some(fetched), stale(1));
}

#[test]
fn a_flushing_cache_is_emptied_once_when_doubt_begins_and_stays_so() {
    let node = Node::new("a");
    let [users, limited] = [WhenIsolated::Flush, WhenIsolated::Limit]
        .map(|when| node.cache::<String, u64>(when.as_str()).when_isolated(when).open().unwrap());
    for cache in [&users, &limited] {
        cache.insert(key("before"), 1).unwrap();
    }
    doubt(&node);
    node.fresh_until_now();
    assert_eq!((users.get(&key("before")), limited.get(&key("before"))), (None, Some(1)));
    users.insert(key("meanwhile"), 2).unwrap();
    node.clock.advance(MOMENT);
    node.fresh_until_now();
    assert_eq!(users.get(&key("meanwhile")), Some(2), "it is emptied once");
    node.clock.advance(2 * MAX_STALENESS);
    assert_eq!(users.get(&key("meanwhile")), None, "it is limited then");
    node.fresh_forever();
    assert_eq!((users.get(&key("before")), users.get(&key("meanwhile"))), (None, Some(2)));
    assert_eq!((users.counts().flushed, limited.counts().flushed), (1, 0));
    // The next doubt.
    doubt(&node);
    node.fresh_forever();
    assert_eq!((users.get(&key("meanwhile")), users.counts().flushed), (None, 2));
}

#[test]
fn a_doubt_that_ended_before_anybody_looked_empties_a_flushing_cache() {
    let node = Node::new("a");
    let users = opened(&node, WhenIsolated::Flush);
    users.insert(key("k"), 1).unwrap();
    node.fresh_until_now();
    // As when a process is stopped, and hears everybody before anything else.
    node.clock.advance(Duration::from_secs(60));
    node.fresh_forever();
    assert_eq!((users.get(&key("k")), users.counts().flushed), (None, 1));
}

#[test]
fn a_local_cache_is_never_in_doubt() {
    for when in WhenIsolated::ALL {
        let node = Node::new("a");
        let users: Users = node.cache("users").mode(Mode::Local).when_isolated(when).open().unwrap();
        fill(&users, "k", 1);
        node.fresh_until_now();
        node.clock.advance(2 * MAX_STALENESS);
        node.fresh_until_now();
        node.clock.advance(MOMENT);
        fill(&users, "m", 2);
        assert_eq!((users.get(&key("k")), users.get(&key("m"))), (Some(1), Some(2)), "{when:?}");
    }
}

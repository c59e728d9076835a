//! Writes to a system of record through the cache: safe against other writers, failure and cancellation.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{FutureExt, poll};
use tidings_cache::{Cache, EventKind, Operation, ReadOrFill, TOKEN_TIME, WriteThroughError};
use tokio::sync::oneshot;

use crate::common::{Node, Wire, events, fill, key, one, told};

#[tokio::test]
async fn a_write_is_stored_here_and_evicts_at_peers() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    fill(&on_b, "k", 1);
    let mut heard = on_a.subscribe().start().unwrap();
    for (value, kind) in [(2, EventKind::Inserted), (3, EventKind::Updated)] {
        let (stored, written) = on_a.write_through(&key("k"), || async { Ok::<_, ()>(value) }).await.unwrap();
        assert_eq!((stored, written.kind), (value, kind));
        assert_eq!(on_a.get(&key("k")), Some(value));
        assert_eq!(told(&mut heard), [(kind, Operation::WriteThrough, one("k"))]);
    }
    Wire::new([&a, &b]).carry();
    assert_eq!((on_b.get(&key("k")), on_a.erased().flights()), (None, 0));
}

#[tokio::test]
async fn a_failed_write_evicts_everywhere() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    fill(&on_a, "k", 1);
    fill(&on_b, "k", 1);
    let mut heard = on_a.subscribe().start().unwrap();
    let written = on_a.write_through(&key("k"), || async { Err::<u64, _>("timed out") }).await;
    assert!(matches!(written, Err(WriteThroughError::Write("timed out"))));
    Wire::new([&a, &b]).carry();
    assert_eq!((on_a.get(&key("k")), on_b.get(&key("k"))), (None, None));
    assert_eq!(told(&mut heard), [(EventKind::Deleted, Operation::WriteThrough, one("k"))]);
}

#[tokio::test]
async fn a_cancelled_write_evicts_everywhere() {
    let k = key("k");
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    fill(&on_a, "k", 1);
    fill(&on_b, "k", 1);
    let (_never, source) = oneshot::channel::<u64>();
    let mut writing = Box::pin(on_a.write_through(&k, || source));
    assert!(poll!(writing.as_mut()).is_pending());
    assert_eq!(on_a.get(&k), Some(1), "before it has ended nothing is known");
    drop(writing);
    Wire::new([&a, &b]).carry();
    assert_eq!((on_a.get(&k), on_b.get(&k), on_a.erased().flights()), (None, None, 0));
}

#[tokio::test]
async fn a_write_that_panics_evicts_everywhere() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    let closure = || -> std::future::Ready<Result<u64, ()>> { panic!("before the future") };
    let body = || async { panic!("in the future") as Result<u64, ()> };
    for name in ["closure", "body"] {
        fill(&on_b, name, 1);
        let panicked = match name {
            "closure" => {
                AssertUnwindSafe(on_a.write_through(&key(name), closure)).catch_unwind().await.is_err()
            }
            _ => AssertUnwindSafe(on_a.write_through(&key(name), body)).catch_unwind().await.is_err(),
        };
        assert!(panicked);
        Wire::new([&a, &b]).carry();
        assert_eq!((on_a.get(&key(name)), on_b.get(&key(name))), (None, None), "{name}");
    }
    assert_eq!(on_a.erased().flights(), 0);
}

#[tokio::test]
async fn a_write_whose_value_panics_when_it_is_cloned_evicts_everywhere() {
    let k = key("k");
    static CLONES: AtomicU64 = AtomicU64::new(0);
    #[derive(Debug)]
    struct Fussy;
    impl Clone for Fussy {
        fn clone(&self) -> Self {
            assert!(CLONES.fetch_add(1, Ordering::SeqCst) > 0, "not the first time");
            Self
        }
    }
    let (a, b) = (Node::new("a"), Node::new("b"));
    let on_a: Cache<String, Fussy> = a.cache("users").open().unwrap();
    let on_b = b.users();
    fill(&on_b, "k", 1);
    let written = on_a.write_through(&k, || async { Ok::<_, ()>(Fussy) });
    assert!(AssertUnwindSafe(written).catch_unwind().await.is_err());
    Wire::new([&a, &b]).carry();
    assert_eq!((on_b.get(&k), on_a.contains(&k), on_a.erased().flights()), (None, false, 0));
}

#[tokio::test]
async fn a_write_that_another_change_overtook_is_not_stored_and_evicts_everywhere() {
    let k = key("k");
    // This node commits 1, another commits 2, its event arrives here, and only then is 1 to be stored.
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    let mut wire = Wire::new([&a, &b]);
    let mut heard = on_a.subscribe().start().unwrap();
    let (commit, committed) = oneshot::channel::<u64>();
    let mut writing = std::pin::pin!(on_a.write_through(&k, || committed));
    assert!(poll!(writing.as_mut()).is_pending());
    on_b.write_through(&k, || async { Ok::<_, ()>(2) }).await.unwrap();
    wire.carry();
    commit.send(1).unwrap();
    let (value, written) = writing.await.unwrap();
    assert_eq!((value, written.kind), (1, EventKind::Updated));
    wire.carry();
    assert_eq!((on_a.get(&k), on_b.get(&k)), (None, None));
    let own: Vec<_> =
        events(&mut heard).into_iter().filter(|event| event.local).map(|event| event.kind).collect();
    assert_eq!(own, [EventKind::Updated]);
    assert_eq!(on_a.counts().fence_rejects, 1);
}

#[tokio::test]
async fn of_two_overlapping_writes_on_one_node_the_later_one_is_not_stored() {
    let k = key("k");
    let node = Node::new("a");
    let users = node.users();
    let (commit, committed) = oneshot::channel::<u64>();
    let mut slow = std::pin::pin!(users.write_through(&k, || committed));
    assert!(poll!(slow.as_mut()).is_pending());
    users.write_through(&k, || async { Ok::<_, ()>(2) }).await.unwrap();
    assert_eq!(users.get(&k), Some(2));
    commit.send(1).unwrap();
    slow.await.unwrap();
    assert_eq!((users.get(&k), node.logged()), (None, 2));
}

#[tokio::test]
async fn a_fence_during_a_write_keeps_it_from_being_stored() {
    let k = key("k");
    let node = Node::new("a");
    let users = node.users();
    let (commit, committed) = oneshot::channel::<u64>();
    let mut writing = std::pin::pin!(users.write_through(&k, || committed));
    assert!(poll!(writing.as_mut()).is_pending());
    node.domain.fence_all();
    commit.send(1).unwrap();
    writing.await.unwrap();
    assert_eq!((users.get(&k), node.logged()), (None, 1));
}

#[tokio::test]
async fn a_write_ends_loads_and_tokens_that_began_before_it_was_stored() {
    let k = key("k");
    let node = Node::new("a");
    let users = node.users();
    let ReadOrFill::Miss(token) = users.get_or_token(&k, TOKEN_TIME).unwrap() else { panic!() };
    let (deliver, source) = oneshot::channel::<u64>();
    let mut loading = std::pin::pin!(users.get_or_load(&k, || source));
    assert!(poll!(loading.as_mut()).is_pending());
    users.write_through(&k, || async { Ok::<_, ()>(2) }).await.unwrap();
    deliver.send(1).unwrap();
    assert_eq!(loading.await.unwrap(), 1);
    assert!(!users.fill(&k, 1, token, None).unwrap());
    assert_eq!(users.get(&k), Some(2));
}

#[tokio::test]
async fn a_load_that_lands_during_a_write_does_not_outlive_it() {
    let k = key("k");
    let node = Node::new("a");
    let users = node.users();
    let (commit, committed) = oneshot::channel::<u64>();
    let mut writing = std::pin::pin!(users.write_through(&k, || committed));
    assert!(poll!(writing.as_mut()).is_pending());
    fill(&users, "k", 1);
    commit.send(2).unwrap();
    writing.await.unwrap();
    assert_eq!(users.get(&k), Some(2));
}

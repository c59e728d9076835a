//! Input that cannot be used: a typed error each, and nothing has changed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tidings_cache::{Cache, KeyError, LoadError, TOKEN_TIME, WriteError, WriteThroughError};

use crate::common::{Node, Wire, events, fill, key, many};

/// The longest string that can be a key: 4 KiB, and three bytes of the encoding say so.
fn longest() -> String {
    "x".repeat(4_096)
}

#[tokio::test]
async fn a_key_that_is_too_long_is_refused_by_every_operation() {
    let node = Node::new("a");
    let users = node.users();
    let mut heard = users.subscribe().start().unwrap();
    let long = format!("{}x", longest());
    let too_long = |result: Result<(), WriteError>| {
        let error = result.unwrap_err();
        assert_eq!(error.to_string(), "key of 4100 bytes exceeds 4099");
        assert!(matches!(error, WriteError::Key(KeyError::TooLong(4_100))));
    };
    too_long(users.insert(long.clone(), 1).map(drop));
    too_long(users.insert_if_absent(long.clone(), 1).map(drop));
    too_long(users.replace(long.clone(), 1).map(drop));
    too_long(users.remove(&long).map(drop));
    too_long(users.take(&long).map(drop));
    too_long(users.compute(&long, |_| unreachable!()).map(drop));
    too_long(users.increment(&long, 1).map(drop));
    too_long(users.write().invalidate(&long).map(drop));
    too_long(users.write().insert_many([(key("k"), 1), (long.clone(), 1)]).map(drop));
    too_long(users.write().remove_many([key("k"), long.clone()]).map(drop));
    assert_eq!((users.get(&long), users.contains(&long), users.peek(&long)), (None, false, None));
    assert!(matches!(users.try_get(&long), Err(KeyError::TooLong(4_100))));
    assert!(matches!(users.get_or_token(&long, TOKEN_TIME), Err(KeyError::TooLong(4_100))));
    let loaded = users.get_or_load(&long, || async { panic!("must not run") as Result<u64, ()> }).await;
    assert!(matches!(loaded, Err(LoadError::Key(KeyError::TooLong(4_100)))));
    let written = users.write_through(&long, || async { panic!("must not run") as Result<u64, ()> }).await;
    assert!(matches!(written, Err(WriteThroughError::Cache(WriteError::Key(_)))));
    assert!(events(&mut heard).is_empty());
    assert_eq!((node.logged(), users.iter().count(), users.erased().flights()), (0, 0, 0));
}

#[test]
fn the_longest_key_works_everywhere() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    fill(&on_b, &longest(), 1);
    on_a.insert(longest(), 2).unwrap();
    Wire::new([&a, &b]).carry();
    assert_eq!((on_a.get(&longest()), on_b.get(&longest())), (Some(2), None));
}

#[test]
fn a_key_that_does_not_encode_is_refused() {
    #[derive(Deserialize)]
    struct Refusing;
    impl Serialize for Refusing {
        fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("not today"))
        }
    }
    let node = Node::new("a");
    let cache: Cache<Refusing, u64> = node.cache("refusing").open().unwrap();
    assert!(matches!(cache.insert(Refusing, 1), Err(WriteError::Key(KeyError::Encode(_)))));
    assert!(matches!(cache.try_get(&Refusing), Err(KeyError::Encode(_))));
    assert_eq!(cache.get(&Refusing), None);
}

#[test]
fn metadata_that_is_too_long_is_refused_and_nothing_changes() {
    let node = Node::new("a");
    let users = node.users();
    users.insert(key("k"), 1).unwrap();
    let mut heard = users.subscribe().start().unwrap();
    let write = || users.write().metadata("cause", "x".repeat(5_000));
    assert!(matches!(write().insert(key("k"), 2), Err(WriteError::TooLarge(_))));
    assert!(matches!(write().remove(&key("k")), Err(WriteError::TooLarge(_))));
    assert!(matches!(write().insert_many([(key("k"), 2)]), Err(WriteError::TooLarge(_))));
    assert!(matches!(write().remove_many(many(2)), Err(WriteError::TooLarge(_))));
    assert_eq!((users.get(&key("k")), node.logged()), (Some(1), 1));
    assert!(events(&mut heard).is_empty());
}

#[tokio::test]
async fn after_the_log_is_sealed_a_change_fails_and_the_entry_is_gone() {
    let node = Node::new("a");
    let users = node.users();
    let names = ["insert", "replace", "remove", "take", "increment", "many", "write"];
    names.iter().for_each(|name| drop(users.insert(key(name), 1).unwrap()));
    let mut heard = users.subscribe().start().unwrap();
    node.domain.log().seal();
    let sealed =
        |result: Result<(), WriteError>| assert!(matches!(result, Err(WriteError::Sealed(_))), "{result:?}");
    sealed(users.insert(key("insert"), 2).map(drop));
    sealed(users.replace(key("replace"), 2).map(drop));
    sealed(users.remove(&key("remove")).map(drop));
    sealed(users.take(&key("take")).map(drop));
    sealed(users.increment(&key("increment"), 1).map(drop));
    sealed(users.write().insert_many([(key("many"), 2)]).map(drop));
    let written = users.write_through(&key("write"), || async { Ok::<_, ()>(2) }).await;
    assert!(matches!(written, Err(WriteThroughError::Cache(WriteError::Sealed(_)))));
    for name in names {
        assert_eq!(users.get(&key(name)), None, "{name}");
    }
    assert!(events(&mut heard).is_empty());
    assert_eq!(node.domain.events_published(), 7);
    sealed(users.clear().map(drop));
    // Reads and loads go on.
    assert_eq!(users.get_or_load(&key("k"), || async { Ok::<_, ()>(1) }).await.unwrap(), 1);
}

#[tokio::test]
async fn a_leaving_node_refuses_changes_and_lets_open_writes_end() {
    let open = key("open");
    let node = Node::new("a");
    let users = node.users();
    users.insert(key("k"), 1).unwrap();
    let (finish, finished) = tokio::sync::oneshot::channel();
    let writing = users.write_through(&open, || async { finished.await.map(|()| 5).map_err(drop) });
    let mut writing = std::pin::pin!(writing);
    assert!(futures_util::poll!(writing.as_mut()).is_pending());

    node.domain.leave();
    let leaving =
        |result: Result<(), WriteError>| assert!(matches!(result, Err(WriteError::Leaving)), "{result:?}");
    leaving(users.insert(key("k"), 2).map(drop));
    leaving(users.remove(&key("k")).map(drop));
    leaving(users.write().insert_many([(key("k"), 2)]).map(drop));
    leaving(users.clear().map(drop));
    let refused =
        users.write_through(&key("k"), || async { panic!("must not run") as Result<u64, ()> }).await;
    assert!(matches!(refused, Err(WriteThroughError::Cache(WriteError::Leaving))));
    assert_eq!((users.get(&key("k")), node.logged()), (Some(1), 1), "nothing has changed");

    let mut settled = std::pin::pin!(node.domain.writes_settled());
    assert!(futures_util::poll!(settled.as_mut()).is_pending());
    finish.send(()).unwrap();
    assert_eq!(writing.await.unwrap().0, 5);
    settled.await;
    assert_eq!((users.get(&open), node.logged()), (Some(5), 2));
}

#[test]
fn peers_are_told_of_what_a_change_of_many_had_made_when_user_code_panicked() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let fussy = a.cache("users").max_capacity(1_000).weigher(|_, value: &u64| {
        assert!(*value < 10, "too heavy to think about");
        1
    });
    let (on_a, on_b): (Cache<String, u64>, _) = (fussy.open().unwrap(), b.users());
    ["k", "l", "m"].iter().for_each(|name| fill(&on_b, name, 1));
    let mut heard = on_a.subscribe().start().unwrap();
    let insert = || on_a.write().insert_many([(key("k"), 2), (key("l"), 10), (key("m"), 3)]);
    assert!(catch_unwind(AssertUnwindSafe(insert)).is_err());
    let mut wire = Wire::new([&a, &b]);
    wire.carry();
    let (names, on) = ([key("k"), key("l"), key("m")], |cache: &Cache<String, u64>| cache.counts().mutations);
    assert_eq!(on_a.get_many(&names), [Some(2), None, None]);
    assert_eq!(on_b.get_many(&names), [None, Some(1), Some(1)]);
    assert_eq!((events(&mut heard).len(), on(&on_a)), (1, 1));
    // Of one that made nothing nobody is told.
    let insert = || on_a.write().insert_many([(key("l"), 10)]);
    assert!(catch_unwind(AssertUnwindSafe(insert)).is_err());
    assert_eq!((a.logged(), on(&on_a)), (1, 1));
    on_a.insert(key("l"), 4).unwrap();
    wire.carry();
    assert_eq!((on_a.get(&key("l")), on_b.get(&key("l"))), (Some(4), None), "nothing is locked");
}

/// A key that cannot be read back.
#[derive(Serialize)]
struct Fragile(u64);

impl<'de> Deserialize<'de> for Fragile {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let number = u64::deserialize(from)?;
        assert!(number < 10, "broken on purpose");
        Ok(Self(number))
    }
}

#[test]
fn a_key_whose_decoding_panics_is_counted_and_its_change_applied() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let open = |node: &Node| {
        node.cache::<Fragile, u64>("users").partitions(8).partitioner(|key| Some(key.0 as usize % 8))
    };
    let (on_a, on_b) = (open(&a).open().unwrap(), open(&b).open().unwrap());
    on_b.insert(Fragile(10), 1).unwrap();
    let _heard = on_b.subscribe().start().unwrap();
    b.clock.advance(std::time::Duration::from_millis(5));
    on_a.insert(Fragile(10), 2).unwrap();
    Wire::new([&a, &b]).carry();
    assert_eq!((on_b.get(&Fragile(10)), on_b.counts().panics, on_b.counts().unpartitioned), (None, 1, 1));
}

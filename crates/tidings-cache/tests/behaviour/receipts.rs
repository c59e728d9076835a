//! What a change is asked about with.

use std::time::Duration;

use tidings_cache::{Cache, CacheBuilder, Domain, EventKind, Mode, Receipt, ReceiptError};

use crate::common::{Node, key};

#[tokio::test]
async fn a_process_without_peers_waits_for_nobody_and_a_local_cache_says_that_it_tells_nobody() {
    let domain = Domain::standalone();
    let users: Cache<String, u64> = CacheBuilder::new(&domain, "users").open().unwrap();
    let written = users.insert(key("k"), 1).unwrap();
    assert_eq!(written.acked(Duration::ZERO).await, Ok(Receipt::default()));
    assert_eq!(users.clear().unwrap().acked(Duration::ZERO).await, Ok(Receipt::default()));
    let local: Cache<String, u64> = CacheBuilder::new(&domain, "local").mode(Mode::Local).open().unwrap();
    assert_eq!(local.remove(&key("k")).unwrap().acked(Duration::ZERO).await, Err(ReceiptError::Local));
}

#[test]
fn a_change_of_many_keys_says_what_it_did_and_where_the_log_has_it() {
    let node = Node::new("a");
    let users = node.users();
    let store =
        |names: std::ops::Range<u64>| users.write().insert_many(names.map(|n| (n.to_string(), n))).unwrap();
    let written = store(0..3_000);
    assert_eq!((written.kind, written.positions.len()), (EventKind::Inserted, 4), "each lane once");
    for (lane, sequence) in written.positions.iter() {
        assert!(*sequence > 1, "each lane has several records");
        assert_eq!(*sequence, node.domain.log().head(*lane), "the last one stands for all");
    }
    assert_eq!(store(50..100).kind, EventKind::Updated);
    assert_eq!(store(2_999..3_001).kind, EventKind::Inserted, "one of them is new");
    let removed = users.write().remove_many([key("1")]).unwrap();
    assert_eq!((removed.kind, removed.positions.len()), (EventKind::Deleted, 1));
    assert_eq!(users.write().remove_many([]).unwrap().positions.len(), 0);
    let cleared = users.clear().unwrap();
    assert_eq!((cleared.kind, cleared.positions.len()), (EventKind::Cleared, 4));
}

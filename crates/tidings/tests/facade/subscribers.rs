//! Subscribers hear each change once, whatever happens to the links.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tidings::{Cache, EventKind, Item, LaneId, Node, Sequence, Subscription};

use crate::common::{PATIENCE, joiner, member, until};

const KEYS: u64 = 2_000;

fn cache(node: &Node) -> Cache<u64, u64> {
    node.cache("numbered").partitions(3).open().expect("the name is free")
}

/// Hears these keys inserted, each once, those of a partition and a lane in their order.
async fn hear(heard: &mut Subscription<u64>, keys: std::ops::Range<u64>) {
    let mut left: BTreeSet<u64> = keys.collect();
    let mut positions = BTreeMap::<(Option<usize>, LaneId), Sequence>::new();
    while !left.is_empty() {
        let item = tokio::time::timeout(PATIENCE, heard.next()).await;
        let item = item.unwrap_or_else(|_| panic!("{} keys were not heard", left.len()));
        let Some(Item::Event(event)) = item else { panic!("{item:?}") };
        let key = *event.key().expect("one key");
        assert!(left.remove(&key), "key {key} was heard twice, or is none of these");
        let (lane, position) = event.position.expect("a peer's change has one");
        let before = positions.insert((event.partition, lane), position);
        assert!(before.is_none_or(|before| before < position), "out of order");
    }
    let more = tokio::time::timeout(Duration::from_millis(200), heard.next()).await;
    assert!(more.is_err(), "told again: {more:?}");
}

#[tokio::test]
async fn subscribers_hear_every_change_once_across_reconnects() {
    let first = joiner("shop", "n1", &[]).start().await.unwrap();
    let second = joiner("shop", "n2", &[&first]).start().await.unwrap();
    second.ready(PATIENCE).await.unwrap();
    let written = cache(&first);
    let listening = cache(&second);
    let mut heard = listening.subscribe().kinds([EventKind::Inserted]).start().unwrap();
    for n in 0..KEYS {
        written.insert(n, n).unwrap();
        if n % 400 == 200 {
            // In the middle of what is under way.
            first.set_denied(&["n2".to_owned()]);
            until("the link is down", || member(&first, "n2").is_none_or(|it| it.rtt.is_none())).await;
        } else if n % 400 == 399 {
            first.set_denied(&[]);
            until("it is up again", || member(&first, "n2").is_some_and(|it| it.rtt.is_some())).await;
        }
    }
    hear(&mut heard, 0..KEYS).await;
    let following = second.following();
    assert!(following.iter().all(|it| it.resets == 0), "{following:?}");
    assert!(first.transport_stats().links_opened.get() > 5);

    // A crash and a restart.
    written.insert(KEYS, 0).unwrap();
    hear(&mut heard, KEYS..KEYS + 1).await;
    drop((written, first));
    let again = joiner("shop", "n1", &[&second]).start().await.unwrap();
    let written = cache(&again);
    again.ready(PATIENCE).await.unwrap();
    for n in KEYS + 1..2 * KEYS {
        written.insert(n, n).unwrap();
    }
    hear(&mut heard, KEYS + 1..2 * KEYS).await;
    for node in [again, second] {
        node.shutdown(PATIENCE).await;
    }
}

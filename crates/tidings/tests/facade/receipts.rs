//! Who has applied a change, as its writer is told.

use std::time::Duration;

use tidings::testing::Cluster;
use tidings::{
    Cache, Lanes, Missing, MissingReason, Mode, Node, Positions, Receipt, ReceiptError, State, Written,
};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::common::{
    BOUND, PATIENCE, bounded, fill, for_a_while, joiner, member, open, open_on, patient, quick, until,
};

/// How long a receipt is waited for that comes late on purpose.
const SHORT: Duration = Duration::from_millis(50);

fn names<'a>(nodes: impl IntoIterator<Item = &'a tidings::NodeId>) -> Vec<&'a str> {
    nodes.into_iter().map(tidings::NodeId::as_str).collect()
}

fn missing(receipt: &Receipt) -> Vec<(&str, MissingReason)> {
    receipt.missing.iter().map(|Missing { node, reason }| (node.as_str(), *reason)).collect()
}

pub(crate) async fn cut(cluster: &Cluster, one: usize, other: usize) {
    let ids = [one, other].map(|index| cluster[index].origin().node.to_string());
    cluster[one].set_denied(&[ids[1].clone()]);
    cluster[other].set_denied(&[ids[0].clone()]);
    let linked = |index: usize, id: &str| member(&cluster[index], id).is_some_and(|it| it.rtt.is_some());
    until("the link is down", || !linked(one, &ids[1]) && !linked(other, &ids[0])).await;
}

fn remove<'a>(cache: &'a Cache<String, u64>, key: &str) -> Written<'a> {
    cache.remove(&key.to_owned()).expect("the cache is open")
}

/// Asks for receipts that come too early until one names these, and them alone: a machine that stands still makes
/// others late, too.
async fn named(cache: &Cache<String, u64>, expected: &[(&str, MissingReason)]) -> Receipt {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let receipt = remove(cache, "k").acked(SHORT).await.expect("there are peers");
        if missing(&receipt) == expected && receipt.expired.is_empty() {
            return receipt;
        }
        assert!(Instant::now() < deadline, "{receipt:?}");
    }
}

#[tokio::test]
async fn a_receipt_names_everybody_once_they_have_applied_the_change_whatever_it_was() {
    let cluster = patient(3).await;
    let caches = open(&cluster);
    let key = "k".to_owned();
    let others = |key: &String| caches[1..].iter().any(|cache| cache.contains(key));
    let all: Vec<String> = (0..100_u64).map(|n| n.to_string()).collect();
    let [first, ..] = &caches[..] else { unreachable!("three were opened") };
    const CHANGES: [&str; 9] = [
        "insert",
        "write through",
        "remove",
        "invalidate",
        "tag",
        "prefix",
        "clear",
        "insert many",
        "remove many",
    ];
    for change in CHANGES {
        fill(&caches, &key, 1).await;
        for key in &all {
            fill(&caches[1..], key, 1).await;
        }
        let written = match change {
            "insert" => first.insert(key.clone(), 2).unwrap(),
            "write through" => first.write_through(&key, || async { Ok::<_, ()>(3) }).await.unwrap().1,
            "remove" => remove(first, &key),
            "invalidate" => first.write().invalidate(&key).unwrap(),
            // Of a cache that knows of no tags: everything goes.
            "tag" => first.invalidate_tag("t").unwrap(),
            "prefix" => first.invalidate_prefix("k").unwrap(),
            "clear" => first.clear().unwrap(),
            "insert many" => first.write().insert_many(all.iter().map(|key| (key.clone(), 2))).unwrap(),
            _ => first.write().remove_many(all.clone()).unwrap(),
        };
        let receipt = written.acked(PATIENCE).await.unwrap();
        // At once: the receipt says that it has happened.
        let keys = if change.ends_with("many") { &all } else { std::slice::from_ref(&key) };
        assert!(!keys.iter().any(others), "{change}: {receipt:?}");
        assert_eq!((names(&receipt.applied), receipt.is_complete()), (vec!["n2", "n3"], true), "{change}");
        assert_eq!((missing(&receipt), names(&receipt.expired)), (vec![], vec![]), "{change}");
    }
    let counts = cluster[0].receipts();
    assert_eq!((counts.complete, counts.partial, counts.failed, counts.waiting), (9, 0, 0, 0));
    assert_eq!(counts.times.count(), 9);
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_clear_waits_for_every_lane_and_a_change_of_nothing_for_none() {
    let cluster = patient(2).await;
    let caches = open(&cluster);
    let cleared = caches[0].clear().unwrap();
    assert_eq!(cleared.positions.len(), 4);
    assert_eq!(names(&cleared.acked(PATIENCE).await.unwrap().applied), ["n2"]);
    cut(&cluster, 0, 1).await;
    let nothing = caches[0].write().remove_many([]).unwrap();
    assert_eq!(nothing.acked(PATIENCE).await, Ok(Receipt::default()));
    cluster.shutdown().await;
}

#[tokio::test]
async fn who_is_cut_off_is_named_in_time_and_expires_with_the_bound() {
    let cluster = quick(3).await;
    let caches = open(&cluster);
    fill(&caches, "k", 1).await;
    cut(&cluster, 0, 2).await;
    let unreachable = [("n3", MissingReason::Unreachable)];
    let begun = Instant::now();
    let receipt = named(&caches[0], &unreachable).await;
    assert!(begun.elapsed() >= SHORT, "it waits while somebody is missing");
    assert_eq!(names(&receipt.applied), ["n2"]);
    assert!(!receipt.is_complete());

    let begun = Instant::now();
    let receipt = remove(&caches[0], "k").acked(PATIENCE).await.unwrap();
    assert!(begun.elapsed() >= BOUND, "it may serve an older entry until the bound is over");
    assert!(names(&receipt.expired).contains(&"n3") && receipt.is_complete(), "{receipt:?}");
    assert!(!caches[2].contains(&"k".to_owned()), "what expired serves nothing older");

    until("it is lost", || member(&cluster[0], "n3").is_some_and(|it| it.state == State::Lost)).await;
    // It is in its grace.
    named(&caches[0], &unreachable).await;
    let counts = cluster[0].receipts();
    assert!(counts.complete >= 1 && counts.partial >= 2, "{counts:?}");
    assert!(counts.missing[MissingReason::Unreachable as usize] >= 2, "{counts:?}");
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_receipt_comes_as_soon_as_the_cut_is_healed() {
    let cluster = Cluster::start(2).await.unwrap();
    let caches = open(&cluster);
    cut(&cluster, 0, 1).await;
    let written = remove(&caches[0], "k");
    let waiting = written.acked(PATIENCE);
    let healed = async {
        for_a_while(SHORT).await;
        cluster.nodes().iter().for_each(|node| node.set_denied(&[]));
    };
    let (receipt, ()) = tokio::join!(waiting, healed);
    let receipt = receipt.unwrap();
    // On a busy machine it may take longer than the bound.
    assert!(receipt.is_complete() && receipt.applied.len() + receipt.expired.len() == 1, "{receipt:?}");
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_writer_that_hears_nobody_is_told_that_it_is_isolated() {
    let cluster = quick(3).await;
    let caches = open(&cluster);
    cut(&cluster, 0, 1).await;
    cut(&cluster, 0, 2).await;
    cluster[0].set_denied(&["n2".to_owned(), "n3".to_owned()]);
    until("both links are down", || cluster[0].members().iter().all(|member| member.rtt.is_none())).await;
    named(&caches[0], &["n2", "n3"].map(|node| (node, MissingReason::Isolated))).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn who_joined_after_the_change_is_not_waited_for() {
    let cluster = patient(2).await;
    let caches = open(&cluster);
    // In every lane, so that positions and not lanes decide.
    let before = caches[0].clear().unwrap();
    let late = joiner(cluster[0].cluster(), "late", &[&cluster[0]]).start().await.unwrap();
    late.ready(PATIENCE).await.unwrap();
    until("it is followed", || member(&cluster[0], "late").is_some_and(|it| it.synced())).await;
    assert_eq!(names(&before.acked(PATIENCE).await.unwrap().applied), ["n2"]);
    let after = caches[0].clear().unwrap();
    assert_eq!(names(&after.acked(PATIENCE).await.unwrap().applied), ["late", "n2"]);
    late.shutdown(PATIENCE).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn who_has_left_before_the_change_is_not_waited_for() {
    let cluster = patient(3).await;
    let caches = open(&cluster);
    assert!(cluster[2].shutdown(PATIENCE).await);
    until("it has left", || member(&cluster[0], "n3").is_none_or(|it| it.state == State::Left)).await;
    let receipt = remove(&caches[0], "k").acked(PATIENCE).await.unwrap();
    assert_eq!((names(&receipt.applied), names(&receipt.expired)), (vec!["n2"], vec![]));
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_former_life_is_waited_for_until_it_can_serve_nothing_older() {
    let cluster = Cluster::start(1).await.unwrap();
    let cache = open_on(&cluster[0]);
    let start = || joiner(cluster[0].cluster(), "again", &[&cluster[0]]);
    let first = start().start().await.unwrap();
    first.ready(PATIENCE).await.unwrap();
    until("it is followed", || member(&cluster[0], "again").is_some_and(|it| it.synced())).await;
    // It ends without a goodbye, and nothing says that its process has.
    drop(first);
    // From before its end is known: the machine may stand still before the receipt is asked for.
    let begun = Instant::now();
    let second = start().start().await.unwrap();
    second.ready(PATIENCE).await.unwrap();
    let here = second.origin().incarnation;
    until("it is back", || {
        member(&cluster[0], "again").is_some_and(|it| it.incarnation == here && it.synced())
    })
    .await;
    let receipt = remove(&cache, "k").acked(PATIENCE).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(2_900), "its former life was waited for: {receipt:?}");
    assert_eq!((names(&receipt.applied), names(&receipt.expired)), (vec!["again"], vec![]));
    second.shutdown(PATIENCE).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn where_there_is_nobody_to_tell_that_is_said() {
    let cluster = quick(1).await;
    let cache = open_on(&cluster[0]);
    assert_eq!(remove(&cache, "k").acked(Duration::ZERO).await, Ok(Receipt::default()), "it is alone");
    let local: Cache<String, u64> = cluster[0].cache("local").mode(Mode::Local).open().unwrap();
    assert_eq!(remove(&local, "k").acked(SHORT).await, Err(ReceiptError::Local));
    assert_eq!(local.clear().unwrap().acked(SHORT).await, Err(ReceiptError::Local));

    let nowhere = Node::builder("shop").seeds(["127.0.0.1:1"]).start().await.unwrap();
    let cache = open_on(&nowhere);
    assert_eq!(remove(&cache, "k").acked(SHORT).await, Err(ReceiptError::NoContact));
    assert_eq!(nowhere.receipts().failed, 1);
    nowhere.shutdown(Duration::ZERO).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn positions_of_a_log_with_more_lanes_are_waited_for_by_nobody() {
    let cluster = quick(2).await;
    let far = Lanes::new(64).unwrap().ids().last().unwrap();
    let positions = Positions::one(far, 1);
    let receipt = cluster[0].domain().acked(&positions, SHORT);
    // On a runtime with one thread: it would hear of no time-out if it spun.
    let receipt = tokio::time::timeout(PATIENCE, receipt).await.expect("an answer").unwrap();
    assert_eq!(receipt, Receipt::default());
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_node_that_ends_answers_who_waits() {
    let cluster = Cluster::start(2).await.unwrap();
    let caches = open(&cluster);
    cut(&cluster, 0, 1).await;
    let written = remove(&caches[0], "k");
    let waiting = written.acked(PATIENCE);
    let (receipt, clean) = tokio::join!(waiting, cluster[0].shutdown(SHORT));
    assert_eq!((receipt, clean), (Err(ReceiptError::Ended), false));
    assert_eq!(written.acked(PATIENCE).await, Err(ReceiptError::Ended), "and who comes later");
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_node_that_leaves_still_gets_the_receipts_of_what_it_did() {
    let cluster = patient(2).await;
    let caches = open(&cluster);
    let written = remove(&caches[0], "k");
    let waiting = written.acked(PATIENCE);
    let (receipt, clean) = tokio::join!(waiting, cluster[0].shutdown(PATIENCE));
    assert!(clean);
    assert_eq!(names(&receipt.unwrap().applied), ["n2"]);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_receipts_at_once_all_come() {
    let cluster = patient(3).await;
    let caches = open(&cluster);
    let mut waiting = JoinSet::new();
    for n in 0..1_000_u64 {
        let cache = caches[0].clone();
        waiting.spawn(async move { remove(&cache, &n.to_string()).acked(PATIENCE).await });
    }
    while let Some(receipt) = waiting.join_next().await {
        assert_eq!(names(&receipt.unwrap().unwrap().applied), ["n2", "n3"]);
    }
    let counts = cluster[0].receipts();
    assert_eq!((counts.complete, counts.waiting), (1_000, 0));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_delays_no_writer_and_too_many_are_refused() {
    const MANY: u64 = 5_000;
    // Nobody expires while 10,000 changes are made.
    let cluster = bounded(2, Duration::from_secs(15)).await;
    let caches = open(&cluster);
    cut(&cluster, 0, 1).await;
    let mut waiting = JoinSet::new();
    for n in 0..MANY {
        let cache = caches[0].clone();
        waiting.spawn(async move { remove(&cache, &n.to_string()).acked(PATIENCE).await });
    }
    let refused = || cluster[0].receipts().failed;
    // One that is about to be refused is counted among those that wait.
    until("all wait or are refused", || (cluster[0].receipts().waiting, refused()) == (4_096, MANY - 4_096))
        .await;
    for n in 0..10_000_u64 {
        caches[0].remove(&n.to_string()).unwrap();
    }
    // Were one of them to wait for the peer, all would have their receipts.
    assert_eq!(cluster[0].receipts().waiting, 4_096);
    while let Some(Some(answered)) = waiting.try_join_next().map(Result::ok) {
        assert_eq!(answered, Err(ReceiptError::TooMany));
    }
    waiting.abort_all();
    while waiting.join_next().await.is_some() {}
    let counts = cluster[0].receipts();
    assert_eq!((counts.waiting, counts.abandoned), (0, 4_096), "who waits no longer leaves nothing behind");
    cluster.nodes().iter().for_each(|node| node.set_denied(&[]));
    let receipt = remove(&caches[0], "k").acked(PATIENCE).await.unwrap();
    assert!(receipt.is_complete(), "there is room again: {receipt:?}");
    cluster.shutdown().await;
}

#[tokio::test]
async fn half_of_all_receipts_come_within_a_usual_timeout_of_the_change() {
    const RECEIPTS: usize = 40;
    let cluster = patient(3).await;
    let caches = open(&cluster);
    let (mut applied, mut acknowledged) = (Vec::new(), Vec::new());
    for n in 0..RECEIPTS {
        let key = n.to_string();
        fill(&caches[1..], &key, 1).await;
        let begun = Instant::now();
        let written = remove(&caches[0], &key);
        let gone = async {
            until("the change is applied", || !caches[1..].iter().any(|cache| cache.contains(&key))).await;
            begun.elapsed()
        };
        let told = async {
            assert!(written.acked(PATIENCE).await.unwrap().is_complete());
            begun.elapsed()
        };
        let (gone, told) = tokio::join!(gone, told);
        applied.push(gone);
        acknowledged.push(told);
    }
    // What the change itself takes here, its word back may take as well.
    let median = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times[RECEIPTS / 2]
    };
    let (applied, acknowledged) = (median(&mut applied), median(&mut acknowledged));
    assert!(acknowledged < 2 * applied + SHORT, "applied in {applied:?}, acknowledged in {acknowledged:?}");
    cluster.shutdown().await;
}

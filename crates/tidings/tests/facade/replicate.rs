//! Caches whose values travel, on real QUIC: what cuts, joins and wrong clocks leave of them.

use std::num::NonZeroU64;
use std::time::Duration;

use tidings::testing::Cluster;
use tidings::{Cache, Clock, Node, Retention, Tick};
use tokio::time::Instant;

use crate::common::{BOUND, for_a_while, joiner, quick, until};
use crate::receipts::cut;

type Numbers = Cache<String, u64>;

/// What an entry takes at least to be listed and fetched: two stamps of 16 bytes, and its key twice. The last answers are
/// not waited for.
const COPIED_BYTES_MIN: f64 = 40.0;

fn open_on(node: &Node) -> Numbers {
    node.cache("numbers").replicate().open().unwrap()
}

fn open(cluster: &Cluster) -> Vec<Numbers> {
    cluster.nodes().iter().map(open_on).collect()
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("key-{n}")).collect()
}

async fn compared(caches: &[Numbers]) {
    until("nothing has to be compared", || caches.iter().all(|it| it.erased().doubted().is_empty())).await;
}

fn heal(cluster: &Cluster) {
    cluster.nodes().iter().for_each(|node| node.set_denied(&[]));
}

/// Waits until every node has the same, and returns it.
async fn settled(caches: &[Numbers], names: &[String], what: &str, expected: &[Option<u64>]) {
    until(what, || caches.iter().all(|cache| cache.get_many(names) == expected)).await;
}

#[tokio::test]
async fn what_both_sides_of_a_cut_have_written_comes_to_the_last_write_of_each_key() {
    let cluster = quick(2).await;
    let caches = open(&cluster);
    let names = names(100);
    names.iter().for_each(|name| drop(caches[0].insert(name.clone(), 0).unwrap()));
    settled(&caches, &names, "the values have travelled", &[Some(0); 100]).await;
    cut(&cluster, 0, 1).await;
    // Of even keys node 1 is the last to write, of odd ones node 0; every fifth is removed by it instead.
    for last in [1, 0] {
        for (n, name) in names.iter().enumerate().filter(|(n, _)| n % 2 != last) {
            drop(caches[1 - last].insert(name.clone(), n as u64).unwrap());
        }
        for_a_while(Duration::from_millis(20)).await;
        for (n, name) in names.iter().enumerate().filter(|(n, _)| n % 2 != last) {
            match n % 5 {
                0 => drop(caches[last].remove(name).unwrap()),
                _ => drop(caches[last].insert(name.clone(), 1_000 + n as u64).unwrap()),
            }
        }
    }
    heal(&cluster);
    let expected: Vec<_> = (0..100_u64).map(|n| (n % 5 > 0).then_some(1_000 + n)).collect();
    settled(&caches, &names, "both have the last writes", &expected).await;
    assert!(caches.iter().all(|cache| cache.counts().outdated > 0), "each was told of writes that lost");
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_clear_during_a_cut_that_the_log_has_forgotten_takes_what_was_before_and_nothing_later() {
    let few = Retention { events: 64, bytes: 0 };
    let built = Cluster::start_with(2, |_, builder| builder.max_staleness(BOUND).retention(few)).await;
    let cluster = built.unwrap();
    let caches = open(&cluster);
    let (names, later) = (names(50), "later".to_owned());
    names.iter().for_each(|name| drop(caches[0].insert(name.clone(), 0).unwrap()));
    settled(&caches, &names, "the values have travelled", &[Some(0); 50]).await;
    cut(&cluster, 0, 1).await;
    caches[0].clear().unwrap();
    for_a_while(Duration::from_millis(20)).await;
    drop(caches[1].insert(later.clone(), 7).unwrap());
    // More than the log holds of any lane.
    for round in 0..1_000_u64 {
        drop(caches[0].insert(format!("other-{}", round % 100), round).unwrap());
    }
    heal(&cluster);
    let gone = vec![None; 50];
    settled(&caches, &names, "what was cleared is gone", &gone).await;
    let others: Vec<String> = (0..100).map(|n| format!("other-{n}")).chain([later]).collect();
    let expected: Vec<_> = (900..1_000).chain([7]).map(Some).collect();
    settled(&caches, &others, "and the rest is everywhere", &expected).await;
    assert!(caches[1].counts().copied > 0, "it was copied, for the log had forgotten it");
    compared(&caches).await;
    settled(&caches, &names, "what was cleared stays away", &gone).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_node_that_joins_copies_what_others_hold_while_they_go_on() {
    let few = Retention { events: 1_024, bytes: 0 };
    let built = Cluster::start_with(2, |_, builder| builder.max_staleness(BOUND).retention(few)).await;
    let cluster = built.unwrap();
    let mut caches = open(&cluster);
    let names = names(10_000);
    for (n, name) in names.iter().enumerate() {
        drop(caches[n % 2].insert(name.clone(), n as u64).unwrap());
        if n % 500 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let mut expected: Vec<_> = (0..10_000).map(Some).collect();
    settled(&caches, &names, "the first two have everything", &expected).await;
    let [first, second] = cluster.nodes() else { unreachable!("two were started") };
    let third = joiner(first.cluster(), "n3", &[first, second]).start().await.unwrap();
    caches.push(open_on(&third));
    // What is written while it copies comes by the log or with the copy.
    let mut round = 0;
    until("the joiner has copied", || {
        round += 1;
        let at = round * 37 % 10_000;
        drop(caches[round % 2].insert(names[at].clone(), 20_000 + round as u64).unwrap());
        expected[at] = Some(20_000 + round as u64);
        caches[2].erased().doubted().is_empty() && caches[2].counts().copied > 5_000
    })
    .await;
    settled(&caches, &names, "all three have everything", &expected).await;
    assert!(third.shutdown(Duration::from_secs(20)).await, "it leaves cleanly");
    cluster.shutdown().await;
}

#[tokio::test]
async fn what_a_clock_that_is_a_second_fast_has_written_is_nobodys_and_takes_nothing_from_others() {
    let fast = || {
        let (started, wall) = (Instant::now(), Duration::from_millis(Clock::system().wall_ms()));
        Clock::from_fn(move || Tick(0).after(wall + Duration::from_millis(1_500) + started.elapsed()))
    };
    let build = |index, builder: tidings::NodeBuilder| {
        let builder = builder.max_staleness(BOUND).max_clock_offset(Duration::from_secs(10));
        if index == 1 { builder.clock(fast()) } else { builder }
    };
    let cluster = Cluster::start_with(3, build).await.unwrap();
    let caches = open(&cluster);
    compared(&caches).await;
    let key = "k".to_owned();
    let all_have = |value| caches.iter().all(|cache| cache.get(&key) == value);
    caches[0].insert(key.clone(), 1).unwrap();
    until("it has travelled", || all_have(Some(1))).await;
    caches[1].insert(key.clone(), 2).unwrap();
    until("it was undone", || all_have(None) && caches[1].counts().undone == 1).await;
    assert!(caches[0].counts().future > 0);
    caches[0].insert(key.clone(), 3).unwrap();
    until("all have what is written next", || all_have(Some(3))).await;
    caches[1].clear().unwrap();
    let fenced = || [0, 2].iter().all(|at: &usize| caches[*at].counts().future > 1);
    until("the clear was refused and undone", || fenced() && caches[1].counts().undone == 2).await;
    compared(&caches).await;
    until("it has taken nothing", || all_have(Some(3))).await;
    caches[0].insert(key.clone(), 4).unwrap();
    until("all have what is written after it", || all_have(Some(4))).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_joiner_copies_no_faster_than_it_is_told() {
    const RATE: u64 = 64 << 10;
    // The log has forgotten most.
    let few = Retention { events: 64, bytes: 0 };
    let built = Cluster::start_with(1, |_, builder| builder.max_staleness(BOUND).retention(few)).await;
    let cluster = built.unwrap();
    let first = open_on(&cluster[0]);
    let names = names(4_000);
    for (n, name) in names.iter().enumerate() {
        drop(first.insert(name.clone(), n as u64).unwrap());
        if n % 500 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let builder = joiner(cluster[0].cluster(), "n2", &[&cluster[0]]);
    let second = builder.copy_rate(NonZeroU64::new(RATE).unwrap()).start().await.unwrap();
    let cache = open_on(&second);
    // Not what starting took. What was copied by then counts no more than the time did.
    let (opened, already) = (Instant::now(), cache.counts().copied);
    until("it has copied what was there", || cache.get_many(&names).iter().all(Option::is_some)).await;
    let (copied, time) = (cache.counts().copied - already, opened.elapsed());
    let least = Duration::from_secs_f64(copied as f64 * COPIED_BYTES_MIN / RATE as f64);
    assert!(copied > 3_000 && time >= least, "{time:?} for {copied} entries");
    assert!(second.shutdown(Duration::from_secs(20)).await, "it leaves cleanly");
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_member_that_has_no_such_cache_holds_nothing_up() {
    let cluster = quick(2).await;
    let first = [open_on(&cluster[0])];
    compared(&first).await;
    first[0].insert("k".to_owned(), 1).unwrap();
    // Or it comes by the log.
    let passed_over = || cluster[1].domain().remote_stats().unknown_cache.get();
    until("it has no use for the record", || passed_over() > 0).await;
    let second = open_on(&cluster[1]);
    until("it has copied what was there", || second.counts().copied == 1).await;
    until("every member was compared", || second.get(&"k".to_owned()) == Some(1)).await;
    cluster.shutdown().await;
}

//! One loader of a key for the cluster, on real nodes.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tidings::{Cache, Lanes, LeaseReport, MemberInfo, Node, NodeId, State, Unshared};
use tidings_proto::codec;
use tidings_proto::hash::{CacheId, key_hash, slot_of};
use tidings_proto::lease::home;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::common::{BOUND, PATIENCE, bounded, joiner, member, patient, quick, until};

type Numbers = Cache<String, u64>;

const NAME: &str = "numbers";

/// A lease time that no test comes to the end of.
const LONG: Duration = Duration::from_secs(120);

/// Opens the cache on every node, and waits until all know that.
async fn open(nodes: &[Node], lease_time: Duration) -> Vec<Numbers> {
    let open = |node: &Node| node.cache(NAME).one_loader_per_cluster().lease_time(lease_time).open().unwrap();
    let caches = nodes.iter().map(open).collect();
    until("every node knows who hosts the cache", || {
        let knows = |node: &Node| {
            let hosts = |member: &MemberInfo| {
                member.caches.iter().any(|name| name == NAME)
                    && member.state == State::Live
                    && member.lag_events == 0
            };
            let members = node.members();
            members.len() == nodes.len() && members[1..].iter().all(hosts)
        };
        nodes.iter().all(knows)
    })
    .await;
    caches
}

fn ids(nodes: &[Node]) -> Vec<NodeId> {
    nodes.iter().map(|node| node.origin().node).collect()
}

/// A key whose home is this one of the nodes.
fn key_at(nodes: &[Node], at: usize) -> String {
    let ids = ids(nodes);
    let is_home = |key: &String| {
        let hash = key_hash(CacheId::of_name(NAME), &codec::encode(key).unwrap());
        home(hash, &ids) == Some(&ids[at])
    };
    (0..).map(|n| format!("key-{n}")).find(is_home).unwrap()
}

fn sum(nodes: &[Node], of: impl Fn(LeaseReport) -> u64) -> u64 {
    nodes.iter().map(|node| of(node.leases())).sum()
}

fn unshared(nodes: &[Node]) -> u64 {
    sum(nodes, |report| report.unshared.iter().sum())
}

/// A loader that says when it runs, and returns once it may.
#[derive(Clone, Default)]
struct Loader {
    begun: Arc<AtomicUsize>,
    may_end: watch::Sender<bool>,
}

impl Loader {
    fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    fn lets_end(&self) {
        self.may_end.send_replace(true);
    }

    /// Reads its value when it begins.
    async fn run(self, record: Arc<AtomicU64>) -> Result<u64, String> {
        let value = record.load(Ordering::SeqCst);
        self.begun.fetch_add(1, Ordering::SeqCst);
        let mut may_end = self.may_end.subscribe();
        let _ = may_end.wait_for(|may_end| *may_end).await;
        Ok(value)
    }
}

fn read(
    cache: &Numbers,
    key: &str,
    loader: &Loader,
    record: &Arc<AtomicU64>,
) -> impl Future<Output = u64> + use<> {
    let (cache, key, loader, record) = (cache.clone(), key.to_owned(), loader.clone(), record.clone());
    async move { cache.get_or_load(&key, || loader.run(record)).await.unwrap() }
}

async fn values(mut reads: JoinSet<u64>) -> Vec<u64> {
    let mut values = Vec::new();
    let all = async {
        while let Some(read) = reads.join_next().await {
            values.push(read.unwrap());
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("nobody is left waiting");
    values
}

fn record(value: u64) -> Arc<AtomicU64> {
    Arc::new(AtomicU64::new(value))
}

#[tokio::test]
async fn one_loader_runs_in_the_cluster_and_everybody_gets_its_value() {
    let cluster = patient(3).await;
    let nodes = cluster.nodes();
    let caches = open(nodes, LONG).await;
    for at in 0..3 {
        let (key, loader, record) = (key_at(nodes, at), Loader::default(), record(7));
        let before = sum(nodes, |report| report.asked);
        let mut reads = JoinSet::new();
        for cache in &caches {
            (0..50).for_each(|_| drop(reads.spawn(read(cache, &key, &loader, &record))));
        }
        until("two nodes wait for the third", || sum(nodes, |report| report.waiting as u64) == 2).await;
        loader.lets_end();
        assert_eq!(values(reads).await, vec![7; 150]);
        assert_eq!(loader.begun(), 1, "home {at}: {:?}", nodes.iter().map(Node::leases).collect::<Vec<_>>());
        assert_eq!(sum(nodes, |report| report.asked) - before, 3);
        assert!(caches.iter().all(|cache| cache.contains(&key)), "all have stored it");
    }
    assert_eq!(sum(nodes, |report| report.home.granted), 3);
    assert_eq!(sum(nodes, |report| report.home.shared), 6);
    let shared: u64 = caches.iter().map(|cache| cache.counts().shared).sum();
    assert_eq!((shared, unshared(nodes)), (6, 0));
    let (loads, callers) = (sum(nodes, |report| report.home.granted), 3 * 150);
    tidings_facts::note(
        "G11",
        format!("3 keys, {callers} concurrent callers on 3 nodes, {loads} loads in the cluster"),
    );
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_removal_during_the_load_leaves_nobody_with_the_old_value_and_nobody_waits_for_it() {
    let cluster = patient(3).await;
    let nodes = cluster.nodes();
    let caches = open(nodes, LONG).await;
    for (at, remover) in [(0, 0), (1, 0), (2, 1)] {
        let (key, old, record) = (key_at(nodes, at), Loader::default(), record(1));
        let mut reads = JoinSet::new();
        reads.spawn(read(&caches[0], &key, &old, &record));
        until("the load has begun", || old.begun() == 1).await;
        reads.spawn(read(&caches[1], &key, &old, &record));
        until("another node waits", || sum(nodes, |report| report.waiting as u64) == 1).await;
        record.store(2, Ordering::SeqCst);
        let receipt = caches[remover].remove(&key).unwrap().acked(PATIENCE).await.unwrap();
        assert!(receipt.is_complete(), "{receipt:?}");
        // The old load is still under way.
        let new = Loader::default();
        new.lets_end();
        for cache in &caches {
            let read = tokio::time::timeout(PATIENCE, read(cache, &key, &new, &record));
            assert_eq!(read.await.expect("nobody waits for the load from before"), 2);
        }
        old.lets_end();
        assert!(values(reads).await.iter().all(|value| [1, 2].contains(value)));
        for cache in &caches {
            assert_eq!(cache.get(&key), Some(2), "what the old load brought is stored nowhere");
        }
    }
    cluster.shutdown().await;
}

/// Three nodes with this bound, of which the third may be killed.
async fn with_a_third(bound: Duration) -> (tidings::testing::Cluster, Vec<Node>) {
    let cluster = bounded(2, bound).await;
    let third = joiner(cluster[0].cluster(), "n3", &[&cluster[0], &cluster[1]]).max_staleness(bound);
    let third = third.start().await.unwrap();
    third.ready(PATIENCE).await.unwrap();
    let nodes: Vec<_> = cluster.nodes().iter().cloned().chain([third]).collect();
    until("all know each other", || nodes.iter().all(|node| node.members().len() == 3)).await;
    (cluster, nodes)
}

#[tokio::test]
async fn a_holder_that_dies_costs_one_lease_time() {
    // The lease outlasts a machine that stands still, and the bound outlasts the lease, which doubt would revoke.
    let (bound, lease_time) = (Duration::from_secs(8), Duration::from_secs(4));
    let (cluster, mut nodes) = with_a_third(bound).await;
    let mut caches = open(&nodes, lease_time).await;
    let key = key_at(&nodes, 0);
    let (dead, living, record) = (Loader::default(), Loader::default(), record(1));
    let mut lost = JoinSet::new();
    lost.spawn(read(&caches.pop().unwrap(), &key, &dead, &record));
    until("the third node loads", || dead.begun() == 1).await;
    let mut reads = JoinSet::new();
    for cache in &caches {
        (0..10).for_each(|_| drop(reads.spawn(read(cache, &key, &living, &record))));
    }
    until("two nodes wait for it", || nodes[0].leases().waiting == 2).await;
    drop(nodes.pop());
    living.lets_end();
    assert_eq!(values(reads).await, vec![1; 20]);
    assert!((1..=2).contains(&living.begun()), "{}", living.begun());
    let home = nodes[0].leases().home;
    assert!(home.expired >= 1, "nothing else has ended it: {home:?}");
    lost.shutdown().await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_home_that_dies_leaves_nobody_waiting() {
    let (cluster, mut nodes) = with_a_third(BOUND).await;
    let mut caches = open(&nodes, LONG).await;
    let key = key_at(&nodes, 2);
    let (loader, other, record) = (Loader::default(), Loader::default(), record(1));
    let mut reads = JoinSet::new();
    reads.spawn(read(&caches[0], &key, &loader, &record));
    until("the first node loads", || loader.begun() == 1).await;
    reads.spawn(read(&caches[1], &key, &other, &record));
    until("the second waits at the third", || nodes[2].leases().waiting == 1).await;
    drop((caches.pop(), nodes.pop()));
    until("the second loads for itself", || other.begun() == 1).await;
    assert_eq!(nodes[1].leases().unshared[Unshared::Unreachable as usize], 1);
    other.lets_end();
    loader.lets_end();
    assert_eq!(values(reads).await, [1, 1]);
    cluster.shutdown().await;
}

#[tokio::test]
async fn who_has_applied_more_than_the_loader_does_not_take_what_it_brings() {
    let cluster = patient(2).await;
    let nodes = cluster.nodes();
    let caches = open(nodes, LONG).await;
    let key = key_at(nodes, 0);
    let lane = |key: &String| {
        let slot = slot_of(CacheId::of_name(NAME), &codec::encode(key).unwrap());
        Lanes::default().lane_of(slot)
    };
    let beside = (0..).map(|n| format!("beside-{n}")).find(|beside| lane(beside) == lane(&key)).unwrap();
    let (loader, own, record) = (Loader::default(), Loader::default(), record(1));
    let mut reads = JoinSet::new();
    reads.spawn(read(&caches[0], &key, &loader, &record));
    until("the first node loads", || loader.begun() == 1).await;
    caches[1].insert(beside, 1).unwrap();
    record.store(2, Ordering::SeqCst);
    let mut behind = JoinSet::new();
    behind.spawn(read(&caches[1], &key, &own, &record));
    until("the second waits", || nodes[0].leases().waiting == 1).await;
    own.lets_end();
    loader.lets_end();
    assert_eq!((values(reads).await, values(behind).await), (vec![1], vec![2]));
    assert_eq!((own.begun(), nodes[1].leases().unshared[Unshared::Behind as usize]), (1, 1));
    cluster.shutdown().await;
}

#[tokio::test]
async fn two_nodes_that_want_a_thousand_keys_load_each_once() {
    const KEYS: u64 = 1_000;
    let cluster = patient(2).await;
    let nodes = cluster.nodes();
    let caches = open(nodes, LONG).await;
    let (loader, record) = (Loader::default(), record(3));
    let mut reads = JoinSet::new();
    for n in 0..KEYS {
        for cache in &caches {
            reads.spawn(read(cache, &format!("one-{n}"), &loader, &record));
        }
    }
    until("everybody loads, or waits", || {
        loader.begun() as u64 + sum(nodes, |report| report.waiting as u64) == 2 * KEYS
    })
    .await;
    loader.lets_end();
    assert_eq!(values(reads).await, vec![3; 2 * KEYS as usize]);
    let (loads, unshared) = (loader.begun() as u64, unshared(nodes));
    assert!(loads <= KEYS + unshared && unshared <= KEYS / 10, "{loads} loads, {unshared} not shared");
    let shared: u64 = caches.iter().map(|cache| cache.counts().shared).sum();
    assert_eq!(shared, 2 * KEYS - loads);
    cluster.shutdown().await;
}

#[tokio::test]
async fn without_the_option_no_node_is_asked_for_a_lease() {
    let cluster = quick(2).await;
    let nodes = cluster.nodes();
    let caches = crate::common::open(&cluster);
    until("they know who hosts the cache", || {
        member(&nodes[0], "n2").is_some_and(|member| member.caches.iter().any(|name| name == NAME))
    })
    .await;
    crate::common::fill(&caches, "k", 1).await;
    let counts = caches.iter().map(|cache| cache.counts().loads).sum::<u64>();
    assert_eq!((counts, sum(nodes, |report| report.asked + report.home.granted)), (2, 0));
    // And one node that has it on its own loads for itself.
    caches[0].close();
    let alone: Numbers = nodes[0].cache(NAME).one_loader_per_cluster().open().unwrap();
    for n in 0..20 {
        let loaded = alone.get_or_load(&format!("alone-{n}"), || async { Ok::<_, ()>(n) }).await;
        assert_eq!(loaded.unwrap(), n);
    }
    cluster.shutdown().await;
}

/// What a call on a node may be answered with at the oldest: by invalidations that were applied there before.
type Oldest = [[AtomicU64; KEYS]; NODES];

const NODES: usize = 3;
const KEYS: usize = 4;
const WRITES: usize = 300;

async fn write(cache: Numbers, at: usize, truth: Arc<[AtomicU64; KEYS]>, oldest: Arc<Oldest>) {
    for n in 0..WRITES {
        let key = n % KEYS;
        let version = truth[key].fetch_add(1, Ordering::SeqCst) + 1;
        let written = cache.remove(&key.to_string()).unwrap();
        oldest[at][key].fetch_max(version, Ordering::SeqCst);
        if n % 8 == 0 {
            let receipt = written.acked(PATIENCE).await.unwrap();
            for node in receipt.applied {
                let at: usize = node.as_str()[1..].parse().unwrap();
                oldest[at - 1][key].fetch_max(version, Ordering::SeqCst);
            }
        }
        tokio::task::yield_now().await;
    }
}

async fn check(cache: Numbers, at: usize, truth: Arc<[AtomicU64; KEYS]>, oldest: Arc<Oldest>) -> u64 {
    let mut reads = 0;
    while truth.iter().map(|truth| truth.load(Ordering::SeqCst)).sum::<u64>() < (NODES * WRITES) as u64 {
        let key = reads as usize % KEYS;
        let allowed = oldest[at][key].load(Ordering::SeqCst);
        let name = key.to_string();
        let value = cache.get_or_load(&name, || async {
            let value = truth[key].load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok::<_, ()>(value)
        });
        let value = value.await.unwrap();
        assert!(value >= allowed, "node {at} was answered with {value} after {allowed} was applied there");
        reads += 1;
    }
    reads
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_answered_with_less_than_its_node_had_applied() {
    let cluster = quick(NODES).await;
    let caches = open(cluster.nodes(), LONG).await;
    let truth: Arc<[AtomicU64; KEYS]> = Arc::default();
    let oldest: Arc<Oldest> = Arc::default();
    let mut tasks = JoinSet::new();
    for (at, cache) in caches.iter().enumerate() {
        for _ in 0..4 {
            tasks.spawn(check(cache.clone(), at, truth.clone(), oldest.clone()));
        }
        let writer = write(cache.clone(), at, truth.clone(), oldest.clone());
        tasks.spawn(async move {
            writer.await;
            0
        });
    }
    let reads: u64 = values(tasks).await.iter().sum();
    let shared: u64 = caches.iter().map(|cache| cache.counts().shared).sum();
    println!("{reads} reads, {shared} results shared, {} not", unshared(cluster.nodes()));
    for (key, truth) in truth.iter().enumerate() {
        let now = truth.load(Ordering::SeqCst);
        let old = |cache: &Numbers| cache.get(&key.to_string()).is_some_and(|value| value < now);
        until("what is left is the newest", || !caches.iter().any(old)).await;
    }
    cluster.shutdown().await;
}

//! The engine against nodes whose faults are known.

use std::collections::{HashMap, HashSet};
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::engine::{Run, Settings};
use super::local::{LocalNodes, LocalSettings};
use super::plan::Plan;
use super::report::Report;
use super::target::{Answer, Counters, Latency, Source, Target};
use super::workload;
use crate::args::Speed;
use crate::exit::{Exit, Failure};

/// What is wrong with the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// A peer is told of a write only so much later.
    Late(Duration),
    /// One peer is never told of every n-th write.
    Lost(u64),
    /// The second node answers nothing.
    Dead,
    /// Every value is that of another key.
    Mixed,
}

/// Nodes that are maps: correct by nature, but for the fault.
#[derive(Debug)]
struct Maps {
    names: Vec<String>,
    maps: Vec<Mutex<HashMap<String, Bytes>>>,
    fault: Fault,
    removals: AtomicU64,
    pending: Mutex<Vec<(Instant, usize, String)>>,
}

impl Maps {
    fn new(fault: Fault) -> Self {
        Self {
            names: ["a", "b", "c"].map(ToOwned::to_owned).into(),
            maps: (0..3).map(|_| Mutex::default()).collect(),
            fault,
            removals: AtomicU64::new(0),
            pending: Mutex::default(),
        }
    }

    fn alive(&self, node: usize) -> Result<(), Failure> {
        if self.fault == Fault::Dead && node == 1 {
            Err(Failure::new(Exit::Unreachable, "dead"))
        } else {
            Ok(())
        }
    }

    fn invalidate(&self, node: usize, key: &str) {
        let count = self.removals.fetch_add(1, Relaxed);
        self.maps[node].lock().remove(key);
        for peer in (0..3).filter(|peer| *peer != node) {
            match self.fault {
                Fault::Late(delay) => {
                    self.pending.lock().push((Instant::now() + delay, peer, key.to_owned()))
                }
                Fault::Lost(every) if count.is_multiple_of(every) => {}
                _ => {
                    self.maps[peer].lock().remove(key);
                }
            }
        }
    }

    fn deliver(&self) {
        let now = Instant::now();
        self.pending.lock().retain(|(due, peer, key)| {
            if *due <= now {
                self.maps[*peer].lock().remove(key);
            }
            *due > now
        });
    }
}

impl Target for Maps {
    fn names(&self) -> &[String] {
        &self.names
    }

    fn can_write_through(&self) -> bool {
        true
    }

    async fn read<L>(&self, node: usize, key: &String, load: L) -> Result<Answer, Failure>
    where
        L: FnOnce() -> Bytes + Send,
    {
        self.alive(node)?;
        self.deliver();
        let key = if self.fault == Fault::Mixed { "same" } else { key };
        let mut map = self.maps[node].lock();
        if let Some(value) = map.get(key) {
            return Ok(Answer { value: value.clone(), source: Source::Hit });
        }
        let value = load();
        map.insert(key.to_owned(), value.clone());
        Ok(Answer { value, source: Source::Loaded })
    }

    async fn remove(&self, node: usize, key: &String) -> Result<(), Failure> {
        self.alive(node)?;
        self.invalidate(node, key);
        Ok(())
    }

    async fn write_through<W>(&self, node: usize, key: &String, write: W) -> Result<(), Failure>
    where
        W: FnOnce() -> Bytes + Send,
    {
        self.alive(node)?;
        write();
        self.invalidate(node, key);
        Ok(())
    }

    async fn peek(&self, node: usize, key: &String) -> Result<Option<Bytes>, Failure> {
        self.alive(node)?;
        Ok(self.maps[node].lock().get(key).cloned())
    }

    async fn has_applied(&self, _before: Instant) -> Result<bool, Failure> {
        self.deliver();
        Ok(self.pending.lock().is_empty())
    }

    async fn counters(&self) -> Result<Counters, Failure> {
        Ok(Counters { published: self.removals.load(Relaxed), ..Counters::default() })
    }

    fn invalidation_latency(&self) -> Latency {
        Latency::default()
    }
}

/// Runs 20,000 requests, 1,000 a second of virtual time, one at a time.
async fn run(fault: Fault, write_ratio: f64, bound: Duration) -> Report {
    let settings =
        Settings { seed: 1, write_ratio, speed: Speed::Factor(1.0), workers: 1, bound, nodes_fail: true };
    let run = Run::new(Maps::new(fault), settings);
    let workload = workload::generated(500, 1000.0, 1);
    run.complete(Box::new(workload.take(20_000)), &CancellationToken::new(), ready(Ok(())))
        .await
        .unwrap()
        .report
}

const BOUND: Duration = Duration::from_secs(3);

#[tokio::test(start_paused = true)]
async fn a_correct_target_has_no_stale_read_and_no_difference() {
    let report = run(Fault::None, 0.05, BOUND).await;
    assert_eq!((report.requests, report.errors), (20_000, 0));
    assert_eq!((report.stale_reads, report.wrong_values, report.differing_at_end), (0, 0, 0));
    assert!((900..1100).contains(&report.writes), "{}", report.writes);
    assert_eq!(report.events_published, report.writes);
    assert!(report.settled && report.compared_at_end > 0 && report.is_sound());
    assert_eq!(report.per_node.iter().map(|node| node.requests).sum::<u64>(), 20_000);
    assert_eq!(report.series.iter().map(|second| second.requests).sum::<u64>(), 20_000);
    assert!((19.0..21.0).contains(&report.elapsed_s), "paced: {}", report.elapsed_s);
}

#[tokio::test(start_paused = true)]
async fn late_invalidations_are_stale_reads_within_a_wide_bound() {
    let report = run(Fault::Late(Duration::from_millis(100)), 0.05, BOUND).await;
    assert!(report.stale_reads > 100, "{}", report.stale_reads);
    assert!((50.0..=100.0).contains(&report.max_staleness_ms), "{}", report.max_staleness_ms);
    assert_eq!((report.stale_reads_after_bound, report.differing_at_end), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn late_invalidations_break_a_narrow_bound() {
    let report = run(Fault::Late(Duration::from_millis(100)), 0.05, Duration::from_millis(20)).await;
    assert!(report.stale_reads_after_bound > 0 && report.stale_reads_after_bound < report.stale_reads);
    assert!(!report.violations.is_empty() && !report.is_sound());
}

#[tokio::test(start_paused = true)]
async fn lost_invalidations_differ_at_the_end() {
    let report = run(Fault::Lost(10), 0.05, BOUND).await;
    assert!(report.differing_at_end > 0 && report.stale_reads_after_bound > 0);
}

#[tokio::test(start_paused = true)]
async fn values_of_other_keys_are_found() {
    let report = run(Fault::Mixed, 0.0, BOUND).await;
    assert!(report.wrong_values > 10_000, "{}", report.wrong_values);
}

#[tokio::test(start_paused = true)]
async fn a_dead_node_costs_its_requests_and_no_write() {
    let report = run(Fault::Dead, 0.05, BOUND).await;
    assert_eq!(report.errors, report.per_node[1].requests);
    assert_eq!((report.unfinished_writes, report.stale_reads, report.differing_at_end), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn without_writes_each_node_misses_each_of_its_keys_once() {
    let report = run(Fault::None, 0.0, BOUND).await;
    assert_eq!((report.writes, report.events_published), (0, 0));
    hit_ratios_are_those_of_each_share_alone(&report);
}

/// With nothing evicted, a node misses each key of its share of the workload once.
fn hit_ratios_are_those_of_each_share_alone(report: &Report) {
    let mut seen: Vec<HashSet<String>> = vec![HashSet::new(); 3];
    let mut plan = Plan::new(1, 3, 0.0, true);
    for request in workload::generated(500, 1000.0, 1).take(20_000) {
        let step = plan.step(request.unwrap());
        seen[step.node].insert(step.request.key);
    }
    for (node, keys) in report.per_node.iter().zip(seen) {
        let expected = 1.0 - keys.len() as f64 / node.requests as f64;
        assert!(
            (node.hit_ratio - expected).abs() < 1e-12,
            "{}: {} and {expected}",
            node.node,
            node.hit_ratio
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_writes_real_nodes_hit_as_often_as_each_share_alone() {
    let cluster = LocalSettings {
        nodes: 3,
        capacity: 64 << 20,
        max_staleness: BOUND,
        cluster: "c".to_owned(),
        cache: "c".to_owned(),
    };
    let nodes = LocalNodes::start(&cluster);
    let settings = Settings {
        seed: 1,
        write_ratio: 0.0,
        speed: Speed::Max,
        workers: 4,
        bound: BOUND,
        nodes_fail: false,
    };
    let run = Run::new(nodes.await.unwrap(), settings);
    let workload = Box::new(workload::generated(500, 1000.0, 1).take(20_000));
    let report = run.complete(workload, &CancellationToken::new(), ready(Ok(()))).await.unwrap().report;
    assert_eq!((report.events_published, report.events_applied), (0, 0));
    hit_ratios_are_those_of_each_share_alone(&report);
    run.target().shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_stopped_run_is_summed_up() {
    let settings = Settings {
        seed: 1,
        write_ratio: 0.05,
        speed: Speed::Factor(1.0),
        workers: 4,
        bound: BOUND,
        nodes_fail: false,
    };
    let run = Run::new(Maps::new(Fault::None), settings);
    let stop = CancellationToken::new();
    let endless = workload::generated(500, 1000.0, 1);
    let (report, ()) = tokio::join!(run.complete(endless, &stop, ready(Ok(()))), async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        stop.cancel();
    });
    let requests = report.unwrap().report.requests;
    assert!((4_000..6_000).contains(&requests), "{requests}");
    assert_eq!(Arc::strong_count(&run), 1, "every task has ended");
}

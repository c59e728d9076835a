//! Runs a workload against a target and lets the record judge every answer.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::feed::{Batch, Batches};
use super::plan::{Operation, Plan, Step};
use super::record::{Record, Version};
use super::report::{NodeReport, Report, Second};
use super::tally::{Counts, Tally, milliseconds};
use super::target::{Source, Target};
use super::trace::TraceError;
use super::workload::{Request, Workload};
use crate::args::Speed;
use crate::exit::Failure;

/// How long to wait at the end until everything is applied.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// Pause between two looks at whether everything is applied.
const SETTLE_POLL: Duration = Duration::from_millis(20);

/// Requests that wait for a node which does not answer; more count as not answered. A second and a half of a
/// node's third of the usual trace.
const WAITING_MAX: usize = 1_024;

/// Tasks that compare entries at the end.
const COMPARERS: usize = 16;

/// Seconds of which a series is kept.
const SERIES_MAX: usize = 3_600;

/// How a workload is run.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Seed of nodes and writes.
    pub(crate) seed: u64,
    /// Share of writes.
    pub(crate) write_ratio: f64,
    /// Pace.
    pub(crate) speed: Speed,
    /// Requests under way at a time.
    pub(crate) workers: usize,
    /// Staleness that answers are held to.
    pub(crate) bound: Duration,
    /// Whether nodes may stop answering: then each has workers of its own, so that one never holds up the others,
    /// and what it does not take in time counts as not answered. A series is kept, second by second.
    pub(crate) nodes_fail: bool,
}

/// One run of a workload.
#[derive(Debug)]
pub(crate) struct Run<T> {
    target: T,
    settings: Settings,
    record: Record,
    tally: Arc<Tally>,
    /// Writes that committed and of which no node could be told.
    unfinished: Mutex<Vec<(String, Version)>>,
    series: Mutex<Vec<Second>>,
}

/// What was found when everything had come to rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct End {
    settled: bool,
    unfinished: u64,
    compared: Compared,
}

/// What came of comparing entries with the record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Compared {
    /// Entries that were looked at.
    entries: u64,
    /// Of those, the ones that differ.
    differing: u64,
    /// Looks that got no answer.
    failed: u64,
}

/// A run that came to its end.
#[derive(Debug)]
pub(crate) struct Completed {
    /// The summary.
    pub(crate) report: Report,
    /// Why the trace could not be read to its own end.
    pub(crate) broken: Option<TraceError>,
}

impl<T: Target> Run<T> {
    /// A run with nothing done yet.
    pub(crate) fn new(target: T, settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            record: Record::new(settings.bound),
            tally: Arc::new(Tally::new(target.names(), settings.bound)),
            unfinished: Mutex::default(),
            series: Mutex::default(),
            target,
            settings,
        })
    }

    /// What is being counted.
    pub(crate) fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.tally)
    }

    /// The nodes.
    pub(crate) fn target(&self) -> &T {
        &self.target
    }

    /// Runs a workload to its end, or until `stop`, waits for `before_end`, and sums up.
    ///
    /// # Errors
    /// The nodes do not tell their counts, or `before_end` failed.
    pub(crate) async fn complete(
        self: &Arc<Self>,
        workload: Workload,
        stop: &CancellationToken,
        before_end: impl Future<Output = Result<(), Failure>>,
    ) -> Result<Completed, Failure> {
        let (elapsed, broken) = self.drive(workload, stop).await;
        before_end.await?;
        let end = self.finish().await;
        let report = self.report(elapsed, end).await?;
        Ok(Completed { report, broken })
    }

    async fn drive(
        self: &Arc<Self>,
        workload: Workload,
        stop: &CancellationToken,
    ) -> (Duration, Option<TraceError>) {
        let Settings { seed, write_ratio, workers, nodes_fail, .. } = self.settings;
        let plan = Plan::new(seed, self.target.names().len(), write_ratio, self.target.can_write_through());
        let batches = Batches::new(workload, plan);
        let mut tasks = JoinSet::new();
        let mut queues = Vec::new();
        let (pools, waiting) =
            if nodes_fail { (self.target.names().len(), WAITING_MAX) } else { (1, workers) };
        for _ in 0..pools {
            let (queue, work) = mpsc::channel(waiting);
            let work = Arc::new(tokio::sync::Mutex::new(work));
            for _ in 0..workers {
                tasks.spawn(Arc::clone(self).work(Arc::clone(&work)));
            }
            queues.push(queue);
        }
        let sampling = CancellationToken::new();
        let started = Instant::now();
        let mut sampler = JoinSet::new();
        if self.settings.nodes_fail {
            sampler.spawn(Arc::clone(self).sample(started, sampling.clone()));
        }
        let fed = stop.run_until_cancelled(self.pace(started, batches, queues)).await.unwrap_or(Ok(()));
        while tasks.join_next().await.is_some() {}
        sampling.cancel();
        while sampler.join_next().await.is_some() {}
        (started.elapsed(), fed.err())
    }

    /// Hands batches to the workers, each when it is due.
    async fn pace(
        &self,
        started: Instant,
        batches: Batches,
        queues: Vec<mpsc::Sender<Vec<Step>>>,
    ) -> Result<(), TraceError> {
        // Reading a batch ahead takes microseconds: too little for a thread of its own.
        for batch in batches {
            let Batch { due, steps } = batch?;
            if let Speed::Factor(factor) = self.settings.speed {
                sleep_until(started + due.div_f64(factor)).await;
            }
            if !self.settings.nodes_fail {
                // The one queue there is; workers take from it as long as it is there.
                let _ = queues[0].send(steps).await;
                continue;
            }
            for step in steps {
                let node = step.node;
                if queues[node].try_send(vec![step]).is_err() {
                    self.tally.failed(node);
                }
            }
        }
        Ok(())
    }

    async fn work(self: Arc<Self>, work: Arc<tokio::sync::Mutex<mpsc::Receiver<Vec<Step>>>>) {
        loop {
            let steps = work.lock().await.recv().await;
            let Some(steps) = steps else { return };
            for Step { request, node, operation } in steps {
                match operation {
                    Operation::Read => self.read(node, &request).await,
                    _ => self.write(node, &request, operation).await,
                }
            }
            // Hits never wait: without this the nodes' own tasks would starve.
            tokio::task::yield_now().await;
        }
    }

    async fn read(&self, node: usize, request: &Request) {
        let Request { key, size, .. } = request;
        let begun = self.record.now();
        let Ok(answer) = self.target.read(node, key, || self.record.load(key, *size)).await else {
            self.tally.failed(node);
            return;
        };
        self.tally.answered(node, answer.source);
        // One's own load is the truth, and a marked answer promises nothing.
        if answer.source == Source::Hit {
            let verdict = self.record.judge(key, &answer.value, begun);
            self.tally.judged(node, key, verdict, begun.since_start());
        }
    }

    async fn write(&self, node: usize, request: &Request, operation: Operation) {
        let Request { key, size, .. } = request;
        let mut committed = None;
        let mut commit = || {
            let write = self.record.commit(key, *size);
            committed = Some(write.version);
            write.value
        };
        let told = match operation {
            Operation::WriteThrough => self.target.write_through(node, key, commit).await,
            _ => {
                commit();
                self.target.remove(node, key).await
            }
        };
        if told.is_ok() {
            self.tally.wrote(node)
        } else {
            self.tally.failed(node)
        }
        let Some(version) = committed else { return };
        // A writer whose node is gone tells another one: until then its write has not returned.
        if told.is_ok() || self.tell_any(node + 1, key).await {
            self.record.returned(key, version);
        } else {
            self.unfinished.lock().push((key.clone(), version));
        }
    }

    /// Tells the first node that can be told, starting with `first`, that a key has changed.
    async fn tell_any(&self, first: usize, key: &String) -> bool {
        let nodes = self.target.names().len();
        for node in (first..first + nodes).map(|node| node % nodes) {
            if self.target.remove(node, key).await.is_ok() {
                return true;
            }
        }
        false
    }

    async fn finish(self: &Arc<Self>) -> End {
        let mut end = End::default();
        let unfinished = std::mem::take(&mut *self.unfinished.lock());
        for (key, version) in unfinished {
            if self.tell_any(0, &key).await {
                self.record.returned(&key, version);
            } else {
                end.unfinished += 1;
            }
        }
        let last = Instant::now();
        while !end.settled && last.elapsed() < SETTLE_MAX {
            end.settled = self.target.has_applied(last).await.unwrap_or(false);
            if !end.settled {
                sleep(SETTLE_POLL).await;
            }
        }
        end.compared = self.compare().await;
        end
    }

    /// Compares what every node would serve with the record.
    async fn compare(self: &Arc<Self>) -> Compared {
        let keys: Arc<[String]> = self.record.written().into();
        let mut tasks = JoinSet::new();
        for first in 0..COMPARERS {
            let (run, keys) = (Arc::clone(self), Arc::clone(&keys));
            tasks.spawn(async move {
                let mut part = Compared::default();
                for key in keys.iter().skip(first).step_by(COMPARERS) {
                    for node in 0..run.target.names().len() {
                        match run.target.peek(node, key).await {
                            Ok(Some(value)) => {
                                part.entries += 1;
                                part.differing += u64::from(run.record.differs(key, &value));
                            }
                            Ok(None) => {}
                            Err(_) => part.failed += 1,
                        }
                    }
                    tokio::task::yield_now().await;
                }
                part
            });
        }
        tasks.join_all().await.into_iter().fold(Compared::default(), |all, part| Compared {
            entries: all.entries + part.entries,
            differing: all.differing + part.differing,
            failed: all.failed + part.failed,
        })
    }

    async fn sample(self: Arc<Self>, started: Instant, end: CancellationToken) {
        let mut before = Counts::default();
        let mut stale_before = 0;
        for at_s in 1..=SERIES_MAX as u64 {
            let ended =
                end.run_until_cancelled(sleep_until(started + Duration::from_secs(at_s))).await.is_none();
            let (counts, stale) = (self.tally.counts(), self.tally.staleness().reads);
            let in_second = counts.since(before);
            if ended && in_second == Counts::default() {
                return;
            }
            self.series.lock().push(Second {
                at_s,
                requests: in_second.requests(),
                hit_ratio: in_second.hit_ratio(),
                loads: in_second.loads,
                stale_reads: stale - stale_before,
                errors: in_second.errors,
            });
            (before, stale_before) = (counts, stale);
            if ended {
                return;
            }
        }
    }

    async fn report(&self, elapsed: Duration, end: End) -> Result<Report, Failure> {
        let (counts, staleness) = (self.tally.counts(), self.tally.staleness());
        let events = self.target.counters().await?;
        let names = self.target.names().iter();
        let per_node = names.zip(&self.tally.nodes).map(|(name, tally)| {
            let counts = tally.counts();
            let (requests, errors) = (counts.requests(), counts.errors);
            NodeReport { node: name.clone(), requests, hit_ratio: counts.hit_ratio(), errors }
        });
        Ok(Report {
            nodes: self.target.names().len(),
            requests: counts.requests(),
            writes: counts.writes,
            hit_ratio: counts.hit_ratio(),
            requests_per_second: (counts.requests() as f64 / elapsed.as_secs_f64().max(1e-9)).round(),
            events_published: events.published,
            events_applied: events.applied,
            gaps: events.gaps,
            resets: events.resets,
            stale_reads: staleness.reads,
            stale_reads_after_bound: staleness.after_bound,
            max_staleness_ms: milliseconds(staleness.max),
            differing_at_end: end.compared.differing,
            seed: self.settings.seed,
            per_node: per_node.collect(),
            invalidation_latency_us: self.target.invalidation_latency(),
            coherent: self.target.coherent(),
            bound_ms: milliseconds(self.settings.bound),
            elapsed_s: elapsed.as_secs_f64(),
            loads: counts.loads,
            coalesced: events.coalesced,
            marked_stale: counts.marked,
            wrong_values: staleness.wrong,
            errors: counts.errors,
            unfinished_writes: end.unfinished,
            settled: end.settled,
            compared_at_end: end.compared.entries,
            uncompared_at_end: end.compared.failed,
            violations: self.tally.violations(),
            chaos: Vec::new(),
            series: std::mem::take(&mut *self.series.lock()),
        })
    }
}

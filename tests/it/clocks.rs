//! Wall clocks that are set while nodes work. A kernel has one for all processes, so these nodes are in this one.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tidings::testing::Cluster;
use tidings::{Cache, Clock, Item, State};
use tidings_tests::facts;
use tidings_tests::record::{Hit, Record};
use tidings_tests::scale;
use tidings_tests::wait::until;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const NODES: usize = 3;

/// The bound that nodes keep unless they are told otherwise.
const BOUND: Duration = Duration::from_secs(3);

const KEYS: usize = 200;

/// Seconds by which the first node's clock is set, one after the other.
const STEPS: [i64; 3] = [600, -1_200, 600];

/// Traffic before the first step, and after each.
const STEADY: Duration = Duration::from_secs(2);

const PATIENCE: Duration = Duration::from_secs(60);

/// Traffic at one node: one reader and one writer, every hit judged.
struct Traffic {
    node: usize,
    cache: Cache<String, u64>,
    record: Arc<Record>,
}

impl Traffic {
    async fn run(self, stop: CancellationToken) {
        for turn in self.node * 7.. {
            let key = format!("k{}", turn * 31 % KEYS);
            if turn % 5 == 0 {
                let version = self.record.write(&key);
                self.cache.remove(&key).expect("an open cache");
                self.record.returned(&key, version, self.record.now(), [self.node]);
            } else {
                self.read(&key).await;
            }
            // Between two turns, so that no write is left without its invalidation.
            if stop.run_until_cancelled(sleep(Duration::from_millis(1))).await.is_none() {
                return;
            }
        }
    }

    async fn read(&self, key: &String) {
        let (node, begun) = (self.node, self.record.now());
        if let Some(version) = self.cache.get(key) {
            self.record.judge(&Hit { key: key.clone(), node, begun, version, marked: false });
        } else {
            let load = || async { Ok::<_, ()>(self.record.load(key)) };
            self.cache.get_or_load(key, load).await.expect("it does not fail");
        }
    }
}

/// The time of day of a change that the first node makes now, as another one is told.
async fn told_time(caches: &[Cache<String, u64>]) -> Result<u64> {
    let mut heard = caches[1].subscribe().start()?;
    caches[0].remove(&"stamped".to_owned())?;
    loop {
        let item = timeout(PATIENCE, heard.next()).await?.context("the cache is open")?;
        if let Item::Event(event) = item
            && event.key().is_some_and(|key| key == "stamped")
        {
            return Ok(event.stamp.wall_ms());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_set_ten_minutes_ahead_and_behind_under_load_changes_nothing() -> Result<()> {
    let (clock, wall) = Clock::settable();
    let cluster = Cluster::start_with(NODES, |node, builder| match node {
        0 => builder.clock(clock.clone()),
        _ => builder,
    });
    let cluster = cluster.await?;
    let caches: Vec<Cache<String, u64>> =
        cluster.nodes().iter().map(|node| node.cache("numbers").open()).collect::<Result<_, _>>()?;
    let lives: Vec<_> = cluster.nodes().iter().map(tidings::Node::origin).collect();
    let record = Arc::new(Record::new(BOUND));
    let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
    for (node, cache) in caches.iter().cloned().enumerate() {
        tasks.spawn(Traffic { node, cache, record: record.clone() }.run(stop.clone()));
    }
    sleep(scale::duration(STEADY)).await;
    let (mut ahead, mut most) = (0, 0);
    for step in STEPS {
        wall.step(step);
        ahead += step;
        most = most.max(ahead);
        let before = record.summary().hits;
        sleep(scale::duration(STEADY)).await;
        ensure!(record.summary().hits > before, "nothing is served any more");
        let (told, here) = (told_time(&caches).await?, Clock::system().wall_ms());
        // Stamps never go back.
        let expected = here.saturating_add_signed(most * 1_000);
        ensure!(told.abs_diff(expected) < 300_000, "the step was not felt: {told}, and {here} here");
    }
    stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    until("all agree with the record", PATIENCE, async || {
        for (key, cache) in (0..KEYS).flat_map(|key| caches.iter().map(move |cache| (key, cache))) {
            let key = format!("k{key}");
            let (held, truth) = (cache.get(&key), record.load(&key));
            if held.is_some_and(|held| held != truth) {
                bail!("{key}: {held:?}, the record has {truth}");
            }
        }
        Ok(())
    })
    .await?;
    let summary = record.summary();
    summary.assert_kept();
    for (node, life) in cluster.nodes().iter().zip(&lives) {
        ensure!(node.origin() == *life, "it is another life");
        let live = async || {
            ensure!(node.members().iter().all(|it| it.state == State::Live), "{:?}", node.members());
            Ok(())
        };
        until("all are heard", PATIENCE, live).await?;
        let measured = node.measured();
        ensure!((measured.repairs.resets, measured.over_invalidated) == (0, 0), "{measured:?}");
    }
    facts::note(
        "G2 G4",
        format!(
            "{} hits judged, stale by at most {:.1?}, {} violations, nothing was fenced",
            summary.hits, summary.staleness_max, summary.violations
        ),
    );
    cluster.shutdown().await;
    Ok(())
}

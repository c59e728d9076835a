//! How long a publish takes where they come one by one, at a pace.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tidings_benches::clock::{now_ns, seconds_since};
use tidings_benches::stats::percentile;
use tidings_streams::embedded::Embedded;
use tidings_streams::{Driver, Durability};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::stored;

/// Time between two publishes: a thousand a second.
const EVERY: Duration = Duration::from_millis(1);

/// Microseconds that publishes took, sorted.
struct Taken(Vec<u32>);

impl Taken {
    fn new(mut micros: Vec<u32>) -> Self {
        micros.sort_unstable();
        Self(micros)
    }
}

impl std::fmt::Display for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = |percent| percentile(&self.0, percent).unwrap_or_default();
        write!(f, "p50 {} µs, p99 {} µs, p99.9 {} µs", at(50.0), at(99.0), at(99.9))
    }
}

fn micros_since(begun: u64) -> u32 {
    u32::try_from((now_ns() - begun) / 1_000).unwrap_or(u32::MAX)
}

/// Publishes so many events at the pace. None waits for another: what a slow one holds up counts for each.
async fn through(store: &Arc<Embedded>, events: usize, payload: usize) -> Result<Taken> {
    let (mut ticks, mut tasks, mut micros) = (interval(EVERY), JoinSet::new(), Vec::with_capacity(events));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for _ in 0..events {
        ticks.tick().await;
        let (store, topic, begun) = (Arc::clone(store), stored::topic(), now_ns());
        tasks.spawn(async move {
            store.publish(&topic, vec![stored::event(payload)]).await?;
            anyhow::Ok(micros_since(begun))
        });
        while let Some(done) = tasks.try_join_next() {
            micros.push(done??);
        }
    }
    while let Some(done) = tasks.join_next().await {
        micros.push(done??);
    }
    Ok(Taken::new(micros))
}

/// Writes and syncs so many records at the pace, one after the other: what a sync takes where each has its own.
async fn bare(path: &Path, events: usize, payload: usize) -> Result<Taken> {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut micros = Vec::with_capacity(events);
    for _ in 0..events {
        ticks.tick().await;
        let begun = now_ns();
        crate::bare::publish(path, 1, 1, payload)?;
        micros.push(micros_since(begun));
    }
    Ok(Taken::new(micros))
}

/// The store's, at the pace, and what a write and a sync alone take.
pub(crate) async fn run(home: &Path, events: usize, payload: usize) -> Result<()> {
    let store = Arc::new(stored::open(&home.join("store"), Durability::Sync).await?);
    // The first ones make files.
    through(&store, events.div_ceil(10), payload).await?;
    let begun = now_ns();
    let taken = through(&store, events, payload).await?;
    println!("publish at {:.0}/s: {taken}", events as f64 / seconds_since(begun));
    store.close().await?;
    let bare = bare(&home.join("bare"), events, payload).await?;
    println!("a write and a sync alone: {bare}");
    Ok(())
}

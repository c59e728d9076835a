//! Running nodes as a target, over their HTTP API.

use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::json;
use tidings_http::exposition;
use tokio::time::{Instant, sleep};

use super::target::{Answer, Counters, Latency, Source, Target};
use crate::client::{Client, Lookup};
use crate::exit::{Exit, Failure};
use crate::units;
use crate::verbs::cluster::{self, Cluster};

/// How long emptying the cache may take to reach every node before the run.
const CLEAR_MAX: Duration = Duration::from_secs(10);

/// Pause between two looks.
const POLL: Duration = Duration::from_millis(50);

/// Nodes driven over HTTP.
#[derive(Debug)]
pub(crate) struct HttpNodes {
    clients: Vec<Client>,
    names: Vec<String>,
    cache: String,
    /// Nodes on which the cache was not open before.
    opened: Vec<usize>,
    lives: Mutex<Vec<Life>>,
}

/// What a node had counted before the run, and what those of its lives counted that have ended since.
#[derive(Clone, Copy, Debug, Default)]
struct Life {
    before: Counters,
    ended: Counters,
}

impl HttpNodes {
    /// Prepares nodes for a run: opens the cache where it is not, empties it everywhere.
    ///
    /// # Errors
    /// A node cannot be reached, or has no such cache and cannot open it.
    pub(crate) async fn prepare(clients: Vec<Client>, cache: &str, capacity: u64) -> Result<Self, Failure> {
        let (mut names, mut opened) = (Vec::new(), Vec::new());
        for (node, client) in clients.iter().enumerate() {
            if open(client, cache, capacity).await? {
                opened.push(node);
            }
            names.push(document(client).await?.node);
        }
        let nodes = Self { clients, names, cache: cache.to_owned(), opened, lives: Mutex::default() };
        for client in &nodes.clients {
            client.clear(cache).await?;
        }
        let cleared = Instant::now();
        while !nodes.has_applied(cleared).await? {
            if cleared.elapsed() > CLEAR_MAX {
                let message = format!("the nodes are not in step: emptying {cache} did not reach them all");
                return Err(
                    Failure::new(Exit::Unreachable, message).hint("`tidings check cluster` says more")
                );
            }
            sleep(POLL).await;
        }
        for client in &nodes.clients {
            let before = read_counters(&client.metrics().await?);
            nodes.lives.lock().push(Life { before, ended: Counters::default() });
        }
        Ok(nodes)
    }

    /// Closes the cache where it was opened for this run.
    pub(crate) async fn put_back(&self) {
        for node in &self.opened {
            // A node that is gone has no cache to close.
            let _ = self.clients[*node].close(&self.cache).await;
        }
    }

    /// Notes what a node has counted, for it is about to end and will count from 0 when it is back.
    pub(crate) async fn before_end_of(&self, node: usize) {
        let Ok(text) = self.clients[node].metrics().await else { return };
        let now = read_counters(&text);
        let life = &mut self.lives.lock()[node];
        life.ended = life.ended.plus(now.since(life.before));
        life.before = Counters::default();
    }
}

impl Target for HttpNodes {
    fn names(&self) -> &[String] {
        &self.names
    }

    fn can_write_through(&self) -> bool {
        // A write-through spans the user's own write: no single request can.
        false
    }

    async fn read<L>(&self, node: usize, key: &String, load: L) -> Result<Answer, Failure>
    where
        L: FnOnce() -> Bytes + Send,
    {
        let client = &self.clients[node];
        match client.get(&self.cache, key).await? {
            Lookup::Hit { value, stale, .. } => {
                Ok(Answer { value, source: if stale { Source::MarkedHit } else { Source::Hit } })
            }
            Lookup::Miss { token } => {
                let value = load();
                if let Some(token) = token {
                    client.fill(&self.cache, key, &token, value.clone()).await?;
                }
                Ok(Answer { value, source: Source::Loaded })
            }
        }
    }

    async fn remove(&self, node: usize, key: &String) -> Result<(), Failure> {
        self.clients[node].delete(&self.cache, key, None).await.map(|_| ())
    }

    async fn write_through<W>(&self, node: usize, key: &String, write: W) -> Result<(), Failure>
    where
        W: FnOnce() -> Bytes + Send,
    {
        write();
        self.remove(node, key).await
    }

    async fn peek(&self, node: usize, key: &String) -> Result<Option<Bytes>, Failure> {
        match self.clients[node].get(&self.cache, key).await? {
            Lookup::Hit { value, stale: false, .. } => Ok(Some(value)),
            _ => Ok(None),
        }
    }

    async fn has_applied(&self, before: Instant) -> Result<bool, Failure> {
        for client in &self.clients {
            let asked = Instant::now();
            // What a node that does not answer has applied is not known.
            let Ok(cluster) = document(client).await else { return Ok(false) };
            let since = asked.saturating_duration_since(before).as_secs_f64() * 1e3;
            let peers = cluster.members.iter().filter(|member| member.is_live_peer());
            if !peers.clone().all(|member| member.confirmed_ms.is_some_and(|confirmed| confirmed < since)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn counters(&self) -> Result<Counters, Failure> {
        let mut sum = Counters::default();
        let lives = self.lives.lock().clone();
        for (client, life) in self.clients.iter().zip(lives) {
            sum = sum.plus(life.ended);
            if let Ok(text) = client.metrics().await {
                sum = sum.plus(read_counters(&text).since(life.before));
            }
        }
        Ok(sum)
    }

    fn invalidation_latency(&self) -> Latency {
        // Nodes have clocks of their own: what happens at a peer cannot be timed from here.
        Latency::default()
    }
}

/// Opens a cache unless it is open; whether it had to.
async fn open(client: &Client, cache: &str, capacity: u64) -> Result<bool, Failure> {
    match client.document::<serde_json::Value>(&["v1", "caches", cache]).await {
        Ok(_) => Ok(false),
        Err(failure) if failure.exit() == Exit::NotFound => {
            let settings = json!({ "max_capacity": units::show_bytes(capacity) });
            client.open(cache, &settings).await.map(|_| true).map_err(|failure| {
                failure.hint(format!(
                    "{} has no cache {cache:?}: add it to its configuration, or name another with --cache",
                    client.address()
                ))
            })
        }
        Err(failure) => Err(failure),
    }
}

async fn document(client: &Client) -> Result<Cluster, Failure> {
    cluster::read(cluster::cluster(client).await?)
}

/// Adds up the samples of each counter, whatever their labels (OpenMetrics text).
fn read_counters(text: &str) -> Counters {
    let sum = |name: &str| exposition::sum(text, name).unwrap_or_default() as u64;
    Counters {
        published: sum("tidings_events_published_total"),
        applied: sum("tidings_events_applied_total"),
        gaps: sum("tidings_follow_gaps_total"),
        resets: sum("tidings_follow_resets_total"),
        // Nodes cannot tell whether an HTTP client waited for another one's load.
        coalesced: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_added_up_over_their_labels() {
        let text = "# TYPE tidings_events_applied counter\ntidings_events_applied_total{origin=\"n1\"} 3\n\
            tidings_events_applied_total{origin=\"a}b\"} 4.0 123\ntidings_events_published_total 5\n\
            tidings_events_published_total_not_this 9\n";
        let counters = read_counters(text);
        assert_eq!(counters, Counters { published: 5, applied: 7, ..Counters::default() });
    }
}

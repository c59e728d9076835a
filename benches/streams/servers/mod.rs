//! The embedded store beside servers of others on this machine that keep what they acknowledge: each is asked by 16
//! callers at once to take one event, and then by one consumer for a hundred events at a time.

mod nats;
mod redis;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tidings_benches::clock::{now_ns, seconds_since};
use tidings_benches::stats::median;
use tidings_streams::{Driver, Durability, Start};

use crate::{BATCH, PUBLISHERS, stored};

/// A server that does not listen after this long will not.
const START_NS: u64 = 5_000_000_000;

/// Events of each publisher in a round.
const EACH: usize = 50;

/// A running server; ends with this value.
struct Server {
    process: Child,
    address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn start(mut command: Command, port: u16) -> Result<Server> {
    let program = command.get_program().to_owned();
    let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().with_context(|| {
        format!("cannot start {}: install it (apt-get install redis-server nats-server)", program.display())
    })?;
    let mut server = Server { process, address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)) };
    let start = now_ns();
    while TcpStream::connect_timeout(&server.address, Duration::from_millis(100)).is_err() {
        if server.process.try_wait()?.is_some() || now_ns() - start > START_NS {
            bail!("{} does not listen on port {port}", program.display());
        }
        wait_a_moment();
    }
    Ok(server)
}

#[allow(clippy::disallowed_methods, reason = "a server of another project cannot say when it listens")]
fn wait_a_moment() {
    std::thread::sleep(Duration::from_millis(5));
}

/// Events a second that one system took in a round, and that it gave.
#[derive(Clone, Copy, Debug)]
struct Rates {
    published: f64,
    consumed: f64,
}

/// Of all rounds.
#[derive(Debug, Default)]
struct Rounds(Vec<Rates>);

impl Rounds {
    fn print(&self, what: &str) {
        let rate = |of: fn(&Rates) -> f64| median(self.0.iter().map(of).collect());
        let (published, consumed) = (rate(|one| one.published), rate(|one| one.consumed));
        println!("{what:<32} {published:>10.0}/s published, {consumed:>10.0}/s received and acknowledged");
    }

    fn ratio(&self, other: &Self, of: fn(&Rates) -> f64) -> f64 {
        median(self.0.iter().zip(&other.0).map(|(own, other)| of(own) / of(other)).collect())
    }
}

/// The store's rates ÷ those of each server.
#[derive(Debug)]
pub(crate) struct Ratios {
    pub(crate) redis: [f64; 2],
    /// Not a number where the server cannot be made to sync what it acknowledges.
    pub(crate) nats: [f64; 2],
}

/// Does the same with all three, round after round; the first warms up.
pub(crate) async fn run(home: &Path, rounds: usize, payload: usize) -> Result<Ratios> {
    let store = Arc::new(stored::open(&home.join("store"), Durability::Sync).await?);
    store.create_group(&stored::topic(), &stored::name("g"), Start::Earliest).await?;
    let redis = redis::Redis::start(home).await?;
    let nats = nats::Nats::start(home).await?;
    let mut rates: [Rounds; 3] = Default::default();
    for round in 0..=rounds {
        for turn in 0..rates.len() {
            let system = (round + turn) % rates.len();
            let measured = match system {
                0 => embedded(&store, payload).await?,
                1 => redis.round(payload).await?,
                _ => nats.round(payload).await?,
            };
            if round > 0 {
                rates[system].0.push(measured);
            }
        }
    }
    store.close().await?;
    let [own, of_redis, of_nats] = &rates;
    own.print("embedded");
    of_redis.print("Redis, appendfsync always");
    of_nats.print(if nats.syncs { "NATS, sync always" } else { "NATS, does not sync" });
    let ratios =
        |other| [own.ratio(other, |rates| rates.published), own.ratio(other, |rates| rates.consumed)];
    let nats_ratios = ratios(of_nats);
    if !nats.syncs {
        let [published, consumed] = nats_ratios;
        println!("this nats-server syncs every two minutes: embedded ÷ that {published:.2}, {consumed:.2}");
    }
    let nats = if nats.syncs { nats_ratios } else { [f64::NAN; 2] };
    Ok(Ratios { redis: ratios(of_redis), nats })
}

async fn embedded(store: &Arc<tidings_streams::embedded::Embedded>, payload: usize) -> Result<Rates> {
    let begun = now_ns();
    stored::publish(store, PUBLISHERS, EACH, payload).await?;
    let published = rate(seconds_since(begun));
    let begun = now_ns();
    stored::consume(store, &stored::name("g"), PUBLISHERS * EACH, BATCH).await?;
    Ok(Rates { published, consumed: rate(seconds_since(begun)) })
}

fn rate(seconds: f64) -> f64 {
    (PUBLISHERS * EACH) as f64 / seconds
}

/// How many events to ask for next, of so many that are left.
fn batch(left: usize) -> Result<usize> {
    ensure!(left > 0, "nothing is left");
    Ok(left.min(BATCH))
}

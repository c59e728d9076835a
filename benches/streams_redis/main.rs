//! What the Redis driver of durable streams costs beside the bare `redis` crate, which does `XADD`, `XREADGROUP` and
//! `XACK` by hand: no idempotency, no retries, no dead letters, no ordered keys.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use futures_util::{StreamExt, stream};
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo};
use tidings_benches::clock::{now_ns, seconds_since};
use tidings_benches::machine;
use tidings_benches::stats::median;
use tidings_benches::target::{Better, Target, Verdict};
use tidings_streams::redis::{Config, Redis};
use tidings_streams::{
    Action, Driver, Name, NewEvent, Outcome, ReceiveRequest, Retention, Settlement, Start, Topic,
    TopicSettings,
};
use tokio_util::sync::CancellationToken;

/// A server that does not listen after this long will not.
const START_NS: u64 = 5_000_000_000;

/// Length of a payload.
const PAYLOAD_BYTES: usize = 100;

/// Publishers that each wait for their one event.
const PUBLISHERS: usize = 16;

const TARGETS: [Target; 3] = [
    Target { name: "publishing in batches, driver / by hand", better: Better::Higher, must: 0.8, aim: 1.0 },
    Target {
        name: "publishing by 16, one at a time, driver / by hand",
        better: Better::Higher,
        must: 0.8,
        aim: 1.0,
    },
    Target {
        name: "receiving and acknowledging, driver / by hand",
        better: Better::Higher,
        must: 0.8,
        aim: 1.0,
    },
];

/// Measures durable streams in Redis beside streams by hand.
#[derive(Debug, Parser)]
struct Arguments {
    /// Rounds; one more comes first and is dropped.
    #[arg(long, default_value_t = 6)]
    rounds: usize,
    /// Events of a sample.
    #[arg(long, default_value_t = 20_000)]
    events: usize,
    /// Events of a batch.
    #[arg(long, default_value_t = 100)]
    batch: usize,
    /// Whether the server writes and syncs everything before it answers.
    #[arg(long)]
    durable: bool,
    /// Two rounds of a tenth of the events.
    #[arg(long)]
    quick: bool,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

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

impl Server {
    fn start(directory: &Path, durable: bool) -> Result<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--port"]).arg(port.to_string());
        command.arg("--dir").arg(directory).args(["--appendfsync", "always", "--appendonly"]);
        command.arg(if durable { "yes" } else { "no" }).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command
            .spawn()
            .context("cannot start redis-server: install it (apt-get install redis-server)")?;
        let mut server = Self { process, address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)) };
        let start = now_ns();
        while TcpStream::connect_timeout(&server.address, Duration::from_millis(100)).is_err() {
            if server.process.try_wait()?.is_some() || now_ns() - start > START_NS {
                bail!("redis-server does not listen on port {port}");
            }
            wait_a_moment();
        }
        Ok(server)
    }
}

#[allow(clippy::disallowed_methods, reason = "a server of another project cannot say when it listens")]
fn wait_a_moment() {
    std::thread::sleep(Duration::from_millis(5));
}

/// Events a second of one kind of work: by the driver, and by hand.
#[derive(Debug, Default)]
struct Rates {
    driver: Vec<f64>,
    by_hand: Vec<f64>,
}

impl Rates {
    fn ratio(&self) -> f64 {
        median(self.driver.iter().zip(&self.by_hand).map(|(driver, by_hand)| driver / by_hand).collect())
    }
}

/// Both sides: a topic and a stream, each with a group.
struct Sides {
    store: Arc<Redis>,
    topic: Topic,
    connection: MultiplexedConnection,
}

/// The stream and the group that are used by hand.
const STREAM: &str = "by-hand";

fn name(text: &str) -> Name {
    Name::new(text).expect("it is a name")
}

fn payload() -> Vec<u8> {
    vec![b'x'; PAYLOAD_BYTES]
}

impl Sides {
    async fn connect(server: &Server) -> Result<Self> {
        let url = format!("redis://{}/", server.address);
        let store = Arc::new(Redis::connect(&url, Config::default()).await?);
        let info = url.into_connection_info()?.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let connection = Client::open(info)?.get_multiplexed_async_connection_with_config(&config).await?;
        let settings = TopicSettings { retention: Retention::default(), ..TopicSettings::default() };
        Ok(Self { store, topic: Topic { name: name("bench"), settings: settings.into() }, connection })
    }

    /// Nothing is left of a round before.
    async fn begin(&mut self) -> Result<()> {
        redis::cmd("FLUSHALL").exec_async(&mut self.connection).await?;
        self.store.create_group(&self.topic, &name("g"), Start::Earliest).await?;
        let mut create = redis::cmd("XGROUP");
        create.arg("CREATE").arg(STREAM).arg("g").arg("0").arg("MKSTREAM");
        create.exec_async(&mut self.connection).await?;
        Ok(())
    }

    async fn publish(&self, events: usize, batch: usize) -> Result<f64> {
        let start = now_ns();
        for _ in 0..events / batch {
            self.store.publish(&self.topic, vec![NewEvent::new(payload()); batch]).await?;
        }
        Ok(events as f64 / seconds_since(start))
    }

    async fn publish_by_hand(&self, events: usize, batch: usize) -> Result<f64> {
        let (start, mut connection) = (now_ns(), self.connection.clone());
        for _ in 0..events / batch {
            let mut pipeline = redis::pipe();
            for _ in 0..batch {
                pipeline.cmd("XADD").arg(STREAM).arg("*").arg("payload").arg(payload());
            }
            let ids: Vec<String> = pipeline.query_async(&mut connection).await?;
            ensure!(ids.len() == batch, "{} of {batch} events are there", ids.len());
        }
        Ok(events as f64 / seconds_since(start))
    }

    async fn publish_singly(&self, events: usize) -> Result<f64> {
        let start = now_ns();
        let each = |_| async { self.store.publish(&self.topic, vec![NewEvent::new(payload())]).await };
        let mut published = stream::iter(0..events).map(each).buffer_unordered(PUBLISHERS);
        while let Some(one) = published.next().await {
            one?;
        }
        Ok(events as f64 / seconds_since(start))
    }

    async fn publish_singly_by_hand(&self, events: usize) -> Result<f64> {
        let start = now_ns();
        let each = |_| {
            let mut connection = self.connection.clone();
            async move {
                let mut add = redis::cmd("XADD");
                add.arg(STREAM).arg("*").arg("payload").arg(payload());
                add.query_async::<String>(&mut connection).await
            }
        };
        let mut published = stream::iter(0..events).map(each).buffer_unordered(PUBLISHERS);
        while let Some(one) = published.next().await {
            one?;
        }
        Ok(events as f64 / seconds_since(start))
    }

    async fn consume(&self, events: usize, batch: usize) -> Result<f64> {
        let (start, group) = (now_ns(), name("g"));
        let mut left = events;
        while left > 0 {
            let stop = CancellationToken::new();
            let request = ReceiveRequest { consumer: name("c1"), max: batch, wait: Duration::ZERO, stop };
            let taken = self.store.receive(&self.topic, &group, request).await?;
            ensure!(!taken.is_empty(), "{left} events do not come");
            left -= taken.len();
            let word = |one: &tidings_streams::Delivered| Settlement {
                id: one.event.id,
                tag: Some(one.tag),
                action: Action::Ack,
            };
            let outcomes = self.store.settle(&self.topic, &group, taken.iter().map(word).collect()).await?;
            ensure!(outcomes.iter().all(|outcome| *outcome == Outcome::Acked), "not all are settled");
        }
        Ok(events as f64 / seconds_since(start))
    }

    async fn consume_by_hand(&self, events: usize, batch: usize) -> Result<f64> {
        let (start, mut connection) = (now_ns(), self.connection.clone());
        let mut left = events;
        while left > 0 {
            let mut read = redis::cmd("XREADGROUP");
            read.arg("GROUP").arg("g").arg("c1").arg("COUNT").arg(batch).arg("STREAMS").arg(STREAM).arg(">");
            type Entry = (String, Vec<(String, Vec<u8>)>);
            let found: Vec<(String, Vec<Entry>)> = read.query_async(&mut connection).await?;
            let entries = found.first().map(|(_, entries)| entries).context("events do not come")?;
            left -= entries.len();
            let mut ack = redis::cmd("XACK");
            ack.arg(STREAM).arg("g");
            for (id, _) in entries {
                ack.arg(id);
            }
            let acked: usize = ack.query_async(&mut connection).await?;
            ensure!(acked == entries.len(), "not all are acknowledged");
        }
        Ok(events as f64 / seconds_since(start))
    }
}

/// What one side did in a round, by kind of work, in the order of the targets.
type Figures = [f64; 3];

impl Sides {
    async fn by_driver(&self, events: usize, batch: usize) -> Result<Figures> {
        let published = self.publish(events, batch).await?;
        let consumed = self.consume(events, batch).await?;
        Ok([published, self.publish_singly(events).await?, consumed])
    }

    async fn by_hand(&self, events: usize, batch: usize) -> Result<Figures> {
        let published = self.publish_by_hand(events, batch).await?;
        let consumed = self.consume_by_hand(events, batch).await?;
        Ok([published, self.publish_singly_by_hand(events).await?, consumed])
    }
}

async fn measure(arguments: &Arguments) -> Result<[Rates; 3]> {
    let directory = tempfile::tempdir()?;
    let server = Server::start(directory.path(), arguments.durable)?;
    let mut sides = Sides::connect(&server).await?;
    let (events, batch) = (arguments.events, arguments.batch);
    let mut rates = <[Rates; 3]>::default();
    for round in 0..=arguments.rounds {
        sides.begin().await?;
        // Who comes second finds the server as the first has left it: they take turns.
        let (driver, by_hand) = if round % 2 == 0 {
            let driver = sides.by_driver(events, batch).await?;
            (driver, sides.by_hand(events, batch).await?)
        } else {
            let by_hand = sides.by_hand(events, batch).await?;
            (sides.by_driver(events, batch).await?, by_hand)
        };
        // The first round warms up.
        if round > 0 {
            for (rates, (driver, by_hand)) in rates.iter_mut().zip(driver.into_iter().zip(by_hand)) {
                rates.driver.push(driver);
                rates.by_hand.push(by_hand);
            }
        }
    }
    sides.store.close().await?;
    Ok(rates)
}

fn main() -> Result<ExitCode> {
    let mut arguments = Arguments::parse();
    if arguments.quick {
        arguments.rounds = 2;
        arguments.events = (arguments.events / 10).max(arguments.batch);
    }
    ensure!(arguments.events.is_multiple_of(arguments.batch), "a sample is of whole batches");
    println!("{}\n", machine::describe());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let rates = runtime.block_on(measure(&arguments))?;
    println!("{:52} {:>12} {:>12}", "events a second, median", "driver", "by hand");
    for (rates, target) in rates.iter().zip(TARGETS) {
        let (driver, by_hand) = (median(rates.driver.clone()), median(rates.by_hand.clone()));
        println!("{:52} {driver:>12.0} {by_hand:>12.0}", target.name);
    }
    println!();
    let judged: Vec<_> =
        rates.iter().zip(TARGETS).map(|(rates, target)| target.line(rates.ratio())).collect();
    judged.iter().for_each(|(line, _)| println!("{line}"));
    let passed = judged.iter().all(|(_, verdict)| *verdict != Verdict::Fail);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

//! What a node costs while nothing happens: resident memory with and without entries, each case in a process of its
//! own, and the traffic of idle links.

use std::env;
use std::hint::black_box;
use std::process::{Command, ExitCode, id};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use tidings::Node;
use tidings::testing::Cluster;
use tidings_benches::clock::{now_ns, seconds_since};
use tidings_benches::machine::{self, loopback_bytes, resident_bytes};
use tidings_benches::stats::median;
use tidings_benches::target::{Better, Target, Verdict};

/// Entries of a full cache.
const ENTRIES: usize = 100_000;

/// Length of a value; keys have 24 bytes.
const VALUE_BYTES: usize = 100;

/// Nodes whose idle links are watched: three, so that gossip has a choice.
const NODES: usize = 3;

/// Gossip is faster for 10 s after any change.
const SETTLE: Duration = Duration::from_secs(12);

const FULL: Target =
    Target { name: "a node with 100,000 entries ÷ bare moka", better: Better::Lower, must: 1.3, aim: 1.3 };
const IDLE: Target =
    Target { name: "an idle node, MiB resident", better: Better::Lower, must: 20.0, aim: 20.0 };
const TRAFFIC: Target =
    Target { name: "idle traffic per link, KB/s, both ways", better: Better::Lower, must: 4.0, aim: 2.0 };

/// Measures what a node costs while nothing happens.
#[derive(Debug, Parser)]
struct Arguments {
    /// One process per case instead of five, and a shorter watch of the links.
    #[arg(long)]
    quick: bool,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    /// Makes this process a case; it prints its resident bytes.
    #[arg(long, hide = true, value_enum)]
    child: Option<Subject>,
}

/// What fills memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// The program and a runtime.
    Nothing,
    /// The keys and values in a vector: what no cache can avoid.
    Vector,
    /// A full `moka::sync::Cache`.
    Moka,
    /// A node without a cache.
    Node,
    /// A node with a full cache.
    Full,
}

impl Subject {
    const ALL: [Self; 5] = [Self::Nothing, Self::Vector, Self::Moka, Self::Node, Self::Full];

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Vector => "vector",
            Self::Moka => "moka",
            Self::Node => "node",
            Self::Full => "full",
        }
    }
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let Some(subject) = arguments.child {
        println!("{}", runtime.block_on(resident(subject))?);
        return Ok(ExitCode::SUCCESS);
    }
    let own_network = machine::enter_own_network();
    println!("{}\n", machine::describe());
    let rounds = if arguments.quick { 1 } else { 5 };
    let mut mib = Vec::new();
    for subject in Subject::ALL {
        let sizes = (0..rounds).map(|_| in_a_process(subject)).collect::<Result<Vec<_>>>()?;
        let size = median(sizes) / f64::from(1 << 20);
        println!("{:<10} {size:>8.2} MiB resident", subject.name());
        mib.push(size);
    }
    let watch = Duration::from_secs(if arguments.quick { 5 } else { 30 });
    let traffic = if own_network { runtime.block_on(idle_traffic(watch))? } else { f64::NAN };
    println!();
    let [_, _, moka, node, full] = mib[..] else { unreachable!("one size for each") };
    let judged = [FULL.line(full / moka), IDLE.line(node), TRAFFIC.line(traffic)];
    judged.iter().for_each(|(line, _)| println!("{line}"));
    let passed = judged.iter().all(|(_, verdict)| *verdict != Verdict::Fail);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn in_a_process(subject: Subject) -> Result<f64> {
    let output = Command::new(env::current_exe()?).args(["--child", subject.name()]).output()?;
    ensure!(
        output.status.success(),
        "{} failed: {}",
        subject.name(),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)?.trim().parse().context("a number of bytes")
}

/// Resident bytes of this process once it holds what it should.
async fn resident(subject: Subject) -> Result<u64> {
    match subject {
        Subject::Nothing => holding(()),
        Subject::Vector => holding(entries().collect::<Vec<_>>()),
        Subject::Moka => {
            let cache = moka::sync::Cache::new(2 * ENTRIES as u64);
            entries().for_each(|(key, value)| cache.insert(key, value));
            cache.run_pending_tasks();
            ensure!(cache.entry_count() == ENTRIES as u64, "entries are missing");
            holding(cache)
        }
        Subject::Node => holding(Node::builder("bench").start().await?),
        Subject::Full => {
            let node = Node::builder("bench").write_horizon(Duration::ZERO).start().await?;
            let cache = node.cache::<String, Bytes>("bench").max_capacity(2 * ENTRIES as u64).open()?;
            for (key, value) in entries() {
                cache
                    .get_or_load(&key, || async { Ok::<_, ()>(value) })
                    .await
                    .ok()
                    .context("a fill failed")?;
            }
            cache.settle();
            ensure!(cache.iter().count() == ENTRIES, "entries are missing");
            holding((node, cache))
        }
    }
}

fn holding<T>(what: T) -> Result<u64> {
    let size = resident_bytes(id());
    drop(black_box(what));
    size
}

fn entries() -> impl Iterator<Item = (String, Bytes)> {
    (0..ENTRIES).map(|number| (format!("k:{number:022}"), Bytes::from(vec![b'v'; VALUE_BYTES])))
}

/// KB a second on each link between nodes that do nothing, both ways together.
async fn idle_traffic(watch: Duration) -> Result<f64> {
    let cluster =
        Cluster::start_with(NODES, |_, builder| builder.gossip_interval(Duration::from_secs(1))).await?;
    tokio::time::sleep(SETTLE).await;
    let (start, before) = (now_ns(), loopback_bytes()?);
    tokio::time::sleep(watch).await;
    let bytes = loopback_bytes()? - before;
    let links = NODES * (NODES - 1) / 2;
    let rate = bytes as f64 / 1_000.0 / seconds_since(start) / links as f64;
    cluster.shutdown().await;
    Ok(rate)
}

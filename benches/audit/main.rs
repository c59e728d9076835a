//! What an audit costs, and whether it finds what differs: two nodes in one process that hold the same entries, but for
//! ten.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Parser;
use tidings::testing::Cluster;
use tidings::{AuditReport, Cache, Node};
use tidings_benches::clock::{own_cpu_ns, seconds_since};
use tidings_benches::machine;
use tidings_benches::target::{Better, Target, Verdict};
use tidings_proto::hash::value_digest;

/// Entries that both nodes hold.
const ENTRIES: usize = 1_000_000;

/// Length of a value; keys have 24 bytes.
const VALUE_BYTES: usize = 100;

/// Of these, the nodes hold different values.
const PLANTED: usize = 10;

/// In so many seconds a sweep should be done, at the limits below.
const SWEEP_SECONDS: u64 = 600;

const CPU: Target = Target {
    name: "CPU of a sweep of 1,000,000 entries in 10 min, % of a core",
    better: Better::Lower,
    must: 2.0,
    aim: 1.0,
};
const BYTES: Target =
    Target { name: "its bytes, both ways, MB/s", better: Better::Lower, must: 1.0, aim: 0.05 };
const FOUND: Target = Target {
    name: "planted differences that are found, of 10",
    better: Better::Higher,
    must: PLANTED as f64,
    aim: PLANTED as f64,
};
const FALSE: Target = Target {
    name: "entries that are called different and are not",
    better: Better::Lower,
    must: 0.0,
    aim: 0.0,
};

/// Measures what an audit costs.
#[derive(Debug, Parser)]
struct Arguments {
    /// A tenth of the entries.
    #[arg(long)]
    quick: bool,
    /// Audits at the pace of ten minutes a sweep, and takes as long, instead of as fast as can be.
    #[arg(long)]
    paced: bool,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    println!("{}\n", machine::describe());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(&arguments))
}

async fn measure(arguments: &Arguments) -> Result<ExitCode> {
    let entries = if arguments.quick { ENTRIES / 10 } else { ENTRIES };
    let pace = if arguments.paced { (entries as u64).div_ceil(SWEEP_SECONDS) } else { 0 };
    let build = |index, builder: tidings::NodeBuilder| if index == 0 { builder.audit(pace) } else { builder };
    let cluster = Cluster::start_with(2, build).await?;
    let caches: Vec<_> = cluster.nodes().iter().map(open).collect::<Result<_>>()?;
    for (node, cache) in caches.iter().enumerate() {
        fill(cache, node, entries).await?;
    }
    println!("{entries} entries on each of two nodes");
    let report = if arguments.paced { paced(&cluster[0]).await? } else { at_once(&cluster).await? };
    let counts = report.report.counts;
    ensure!(
        report.report.is_complete() && counts.held == entries as u64,
        "not everything was compared: {counts:?}"
    );
    let bytes = counts.sent + counts.received;
    println!(
        "a sweep took {:.1} s, {:.2} s of CPU on both nodes together ({:.2} us an entry), {:.1} MB\n",
        report.seconds,
        report.cpu_seconds,
        report.cpu_seconds * 1e6 / entries as f64,
        bytes as f64 / 1e6
    );
    cluster.shutdown().await;
    let scale = ENTRIES as f64 / entries as f64 / SWEEP_SECONDS as f64;
    let planted = |key: &str| key.starts_with("planted");
    let (found, wrong): (Vec<_>, Vec<_>) =
        report.report.inconsistencies.iter().partition(|found| planted(&found.key_text));
    let judged = [
        CPU.line(report.cpu_seconds * scale * 100.0),
        BYTES.line(bytes as f64 * scale / 1e6),
        FOUND.line(found.len() as f64),
        FALSE.line(wrong.len() as f64),
    ];
    judged.iter().for_each(|(line, _)| println!("{line}"));
    let passed = judged.iter().all(|(_, verdict)| *verdict != Verdict::Fail);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A sweep, and what it cost.
struct Sweep {
    report: Arc<AuditReport>,
    seconds: f64,
    /// Of the whole process: both nodes, and what they do when nothing happens.
    cpu_seconds: f64,
}

async fn at_once(cluster: &Cluster) -> Result<Sweep> {
    let known = || cluster[0].members().iter().all(|member| !member.caches.is_empty());
    wait("the other's cache is known", || known().then_some(())).await?;
    let (start, cpu) = (tidings_benches::clock::now_ns(), own_cpu_ns());
    let report = cluster[0].audit().await?;
    Ok(Sweep { report, seconds: seconds_since(start), cpu_seconds: (own_cpu_ns() - cpu) as f64 / 1e9 })
}

/// The first whole sweep: the one that began when caches were still empty does not count.
async fn paced(node: &Node) -> Result<Sweep> {
    let began = |node: &Node| node.audited().progress.map(|progress| progress.began_ms);
    let before = began(node);
    let began = wait("a sweep begins", || began(node).filter(|at| Some(*at) != before)).await?;
    let (start, cpu) = (tidings_benches::clock::now_ns(), own_cpu_ns());
    let last = || node.audited().last.filter(|last| last.began_ms >= began);
    let report = wait("the sweep ends", last).await?;
    Ok(Sweep { report, seconds: seconds_since(start), cpu_seconds: (own_cpu_ns() - cpu) as f64 / 1e9 })
}

async fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    const LONGEST: Duration = Duration::from_secs(3 * SWEEP_SECONDS);
    let looking = async {
        loop {
            if let Some(seen) = look() {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(LONGEST, looking).await.with_context(|| format!("not in time: {what}"))
}

fn open(node: &Node) -> Result<Cache<String, Bytes>> {
    Ok(node
        .cache::<String, Bytes>("entries")
        .max_capacity(2 * ENTRIES as u64)
        .audited_by(|value: &Bytes| Some(value_digest(value)))
        .open()?)
}

/// Loads, of which no other node hears.
async fn fill(cache: &Cache<String, Bytes>, node: usize, entries: usize) -> Result<()> {
    for number in 0..entries {
        let (key, byte) = if number % (entries / PLANTED) == 0 {
            (format!("planted:{number:016}"), b'0' + node as u8)
        } else {
            (format!("k:{number:022}"), b'v')
        };
        let value = Bytes::from(vec![byte; VALUE_BYTES]);
        let loaded = cache.get_or_load(&key, || async { Ok::<_, ()>(value) }).await;
        loaded.ok().context("a fill failed")?;
    }
    cache.settle();
    Ok(())
}

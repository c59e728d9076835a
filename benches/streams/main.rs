//! The embedded store of durable streams: beside bare files with as many syncs, beside servers that sync as well, and
//! beside itself when it holds more.

mod bare;
mod paced;
mod servers;
mod stored;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use tempfile::TempDir;
use tidings_benches::clock::{now_ns, own_cpu_ns, seconds_since};
use tidings_benches::machine;
use tidings_benches::stats::median;
use tidings_benches::target::{Better, Target, Verdict};
use tidings_streams::embedded::Embedded;
use tidings_streams::{Driver, Durability, EventId, Name, Start};

/// Publishers at once, each of which waits for its own event.
const PUBLISHERS: usize = 16;

/// Events that are taken and acknowledged at a time.
const BATCH: usize = 100;

/// Groups of a topic with many.
const GROUPS: usize = 100;

/// What a store is compared with when it holds more.
const FEW_EVENTS: usize = 1_000;

const PUBLISH: Target =
    Target { name: "publish, synced, 16 at once ÷ bare", better: Better::Higher, must: 0.8, aim: 0.9 };
const CONSUME: Target =
    Target { name: "receive and acknowledge ÷ bare", better: Better::Higher, must: 0.7, aim: 0.9 };
const SERVERS: [Target; 4] = [
    against("publish, synced, 16 at once, embedded ÷ Redis"),
    against("receive and acknowledge, embedded ÷ Redis"),
    against("publish, synced, 16 at once, embedded ÷ NATS"),
    against("receive and acknowledge, embedded ÷ NATS"),
];
const FLAT: [Target; 4] = [
    flat("CPU of a publish, many events ÷ 1,000"),
    flat("CPU of receive and acknowledge, many events ÷ 1,000"),
    // What few events lie in the processor holds: what many lie in comes from memory.
    Target {
        name: "CPU of a look at one event, many events ÷ 1,000",
        better: Better::Lower,
        must: 2.0,
        aim: 1.5,
    },
    flat("CPU of a publish, 100 groups ÷ 1"),
];
const FLAT_GROUPS: Target = flat("CPU of receive and acknowledge, each of 100 groups ÷ 1");
const OPEN: Target = Target { name: "opening, s", better: Better::Lower, must: 2.0, aim: 0.5 };
const MEMORY: Target =
    Target { name: "memory, many events − 1,000, MiB", better: Better::Lower, must: 32.0, aim: 8.0 };

const fn flat(name: &'static str) -> Target {
    Target { name, better: Better::Lower, must: 1.5, aim: 1.2 }
}

const fn against(name: &'static str) -> Target {
    Target { name, better: Better::Higher, must: 1.0, aim: 1.5 }
}

/// Something to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Publishing, beside bare files.
    Publish,
    /// Receiving and acknowledging, beside a scan of bare files.
    Consume,
    /// How long a publish takes at a thousand a second.
    Pace,
    /// Both beside Redis and NATS.
    Servers,
    /// Both with many events, beside few.
    Events,
    /// Both with many groups, beside one.
    Groups,
}

/// Measures the embedded store of streams.
#[derive(Debug, Parser)]
struct Arguments {
    /// Few rounds: a look, not a measurement.
    #[arg(long)]
    quick: bool,
    /// Rounds, where neither a look nor a measurement is wanted.
    #[arg(long, conflicts_with = "quick")]
    rounds: Option<usize>,
    /// Some parts only.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Events of the store that holds many. It takes about 170 bytes of disk for each.
    #[arg(long, default_value_t = 200_000)]
    events: usize,
    /// Bytes of a payload.
    #[arg(long, default_value_t = 100)]
    payload: usize,
    /// Threads that publishers and consumers share.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Where the stores are made: it should be on a disk, not in memory.
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    directory: PathBuf,
    /// Opens a store, takes some of it, and says how much memory that needs: a process of its own, for one that has
    /// filled a store has what it needs already.
    #[arg(long, hide = true)]
    opened: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 5 } else { 21 })
    }

    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn home(&self) -> Result<TempDir> {
        Ok(tempfile::tempdir_in(&self.directory)?)
    }
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(arguments.threads).enable_all().build()?;
    if let Some(path) = &arguments.opened {
        println!("{}", runtime.block_on(memory_of(path))?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}\n", machine::describe());
    let judged = runtime.block_on(async {
        let mut judged = Vec::new();
        if arguments.wants(Part::Publish) {
            judged.push(publish(&arguments).await?);
        }
        if arguments.wants(Part::Consume) {
            judged.push(consume(&arguments).await?);
        }
        if arguments.wants(Part::Pace) {
            let events = if arguments.quick { 1_000 } else { 10_000 };
            paced::run(arguments.home()?.path(), events, arguments.payload).await?;
        }
        if arguments.wants(Part::Servers) {
            judged.extend(beside_servers(&arguments).await?);
        }
        if arguments.wants(Part::Events) {
            judged.extend(flatness(&arguments).await?);
        }
        if arguments.wants(Part::Groups) {
            judged.extend(groups(&arguments).await?);
        }
        anyhow::Ok(judged)
    })?;
    println!();
    judged.iter().for_each(|(line, _)| println!("{line}"));
    println!("\n{}", machine::describe());
    let passed = judged.iter().all(|(_, verdict)| *verdict != Verdict::Fail);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

type Judged = (String, Verdict);

/// The median of the rounds' ratios, each of the two first in every other round. The first round warms up.
fn report(what: &str, operations: usize, seconds: &[(f64, f64)]) -> f64 {
    let rate = |seconds: Vec<f64>| operations as f64 / median(seconds);
    let store = rate(seconds.iter().map(|(store, _)| *store).collect());
    let bare = rate(seconds.iter().map(|(_, bare)| *bare).collect());
    println!("{what:<32} {store:>10.0}/s, bare {bare:>10.0}/s");
    median(seconds.iter().map(|(store, bare)| bare / store).collect())
}

async fn publish(arguments: &Arguments) -> Result<Judged> {
    const EACH: usize = 64;
    let home = arguments.home()?;
    let store = Arc::new(stored::open(&home.path().join("store"), Durability::Sync).await?);
    let bare = home.path().join("bare");
    let mut seconds = Vec::new();
    for round in 0..=arguments.rounds() {
        let begun = now_ns();
        stored::publish(&store, PUBLISHERS, EACH, arguments.payload).await?;
        let stored = seconds_since(begun);
        let begun = now_ns();
        bare::publish(&bare, EACH, PUBLISHERS, arguments.payload)?;
        let bare = seconds_since(begun);
        if round > 0 {
            seconds.push((stored, bare));
        }
    }
    store.close().await?;
    Ok(PUBLISH.line(report("publish", PUBLISHERS * EACH, &seconds)))
}

async fn consume(arguments: &Arguments) -> Result<Judged> {
    const EVENTS: usize = 10_000;
    let home = arguments.home()?;
    let store = stored::open(&home.path().join("store"), Durability::Sync).await?;
    let group = stored::name("g");
    store.create_group(&stored::topic(), &group, Start::Earliest).await?;
    let (events, books) = (home.path().join("events"), home.path().join("books"));
    bare::fill(&events, EVENTS, arguments.payload)?;
    let mut seconds = Vec::new();
    for round in 0..=arguments.rounds() {
        stored::fill(&store, EVENTS, arguments.payload).await?;
        let begun = now_ns();
        stored::consume(&store, &group, EVENTS, BATCH).await?;
        let stored = seconds_since(begun);
        let begun = now_ns();
        bare::consume(&events, &books, BATCH, arguments.payload)?;
        let bare = seconds_since(begun);
        if round > 0 {
            seconds.push((stored, bare));
        }
    }
    store.close().await?;
    Ok(CONSUME.line(report("receive and acknowledge", EVENTS, &seconds)))
}

async fn beside_servers(arguments: &Arguments) -> Result<Vec<Judged>> {
    let home = arguments.home()?;
    let servers::Ratios { redis, nats } =
        servers::run(home.path(), arguments.rounds(), arguments.payload).await?;
    Ok(SERVERS.iter().zip(redis.into_iter().chain(nats)).map(|(target, ratio)| target.line(ratio)).collect())
}

/// CPU seconds of the whole process for so many operations of each kind: publish, consume, look.
async fn costs(store: &Arc<Embedded>, held: usize, payload: usize, round: usize) -> Result<[f64; 3]> {
    const OPERATIONS: usize = 1_000;
    let group = stored::name("g");
    let begun = own_cpu_ns();
    stored::publish(store, PUBLISHERS, OPERATIONS.div_ceil(PUBLISHERS), payload).await?;
    let published = own_cpu_ns();
    // From the beginning, wherever the round before has ended.
    store.seek(&stored::topic(), &group, Start::Earliest, false).await?;
    let sought = own_cpu_ns();
    stored::consume(store, &group, OPERATIONS, BATCH).await?;
    let consumed = own_cpu_ns();
    for number in 0..OPERATIONS {
        // Anywhere, and elsewhere in each round.
        let place = (number + round * OPERATIONS) * 7_919 % held;
        let found = store.event(&stored::topic(), EventId::new(place as u64 + 1)).await?;
        ensure!(found.is_some(), "event {place} is missing");
    }
    let looked = own_cpu_ns();
    Ok([published - begun, consumed - sought, looked - consumed].map(|cost| cost as f64 / 1e9))
}

/// A store that holds so many events, the seconds that opening it takes, and the MiB of a process that does.
async fn filled(home: &Path, events: usize, payload: usize) -> Result<(Arc<Embedded>, f64, f64)> {
    let store = stored::open(home, Durability::Relaxed).await?;
    store.create_group(&stored::topic(), &stored::name("g"), Start::Earliest).await?;
    stored::fill(&store, events, payload).await?;
    let held = store.topic(&stored::topic()).await?.map_or(0, |info| info.events);
    ensure!(held == events as u64, "{held} events are held of {events}");
    store.close().await?;
    drop(store);
    let child = Command::new(std::env::current_exe()?).arg("--opened").arg(home).output()?;
    ensure!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    let resident = String::from_utf8(child.stdout)?.trim().parse()?;
    let begun = now_ns();
    let store = stored::open(home, Durability::Relaxed).await?;
    Ok((Arc::new(store), seconds_since(begun), resident))
}

/// MiB of this process once it has a store open and has gone through some of it.
async fn memory_of(home: &Path) -> Result<f64> {
    let store = stored::open(home, Durability::Relaxed).await?;
    let group = stored::name("g");
    store.seek(&stored::topic(), &group, Start::Earliest, false).await?;
    stored::consume(&store, &group, FEW_EVENTS, BATCH).await?;
    let resident = machine::resident_bytes(std::process::id())? as f64 / f64::from(1 << 20);
    store.close().await?;
    Ok(resident)
}

/// The same operations with few events and with many.
async fn flatness(arguments: &Arguments) -> Result<Vec<Judged>> {
    let home = arguments.home()?;
    let payload = arguments.payload;
    let (few, _, few_resident) = filled(&home.path().join("few"), FEW_EVENTS, payload).await?;
    let (many, opening, many_resident) = filled(&home.path().join("many"), arguments.events, payload).await?;
    println!(
        "{} events: opened in {:.0} ms, {many_resident:.1} MiB resident; {FEW_EVENTS}: {few_resident:.1} MiB",
        arguments.events,
        opening * 1e3
    );
    let mut ratios: [Vec<f64>; 3] = Default::default();
    for round in 0..=arguments.rounds() {
        let small = costs(&few, FEW_EVENTS, payload, round).await?;
        let large = costs(&many, arguments.events, payload, round).await?;
        for ((ratios, large), small) in ratios.iter_mut().zip(large).zip(small) {
            if round > 0 {
                ratios.push(large / small);
            }
        }
    }
    few.close().await?;
    many.close().await?;
    let mut judged: Vec<Judged> =
        FLAT.iter().zip(ratios).map(|(target, ratios)| target.line(median(ratios))).collect();
    judged.push(OPEN.line(opening));
    judged.push(MEMORY.line(many_resident - few_resident));
    Ok(judged)
}

/// The same operations with one group and with many, each of which takes all.
async fn groups(arguments: &Arguments) -> Result<Vec<Judged>> {
    const EVENTS: usize = 2_000;
    let home = arguments.home()?;
    let (topic, payload) = (stored::topic(), arguments.payload);
    let names: Vec<_> = (0..GROUPS).map(|number| stored::name(&format!("g{number}"))).collect();
    let one = Arc::new(stored::open(&home.path().join("one"), Durability::Relaxed).await?);
    let many = Arc::new(stored::open(&home.path().join("many"), Durability::Relaxed).await?);
    one.create_group(&topic, &names[0], Start::Earliest).await?;
    for name in &names {
        many.create_group(&topic, name, Start::Earliest).await?;
    }
    let (mut publish, mut consume) = (Vec::new(), Vec::new());
    for round in 0..=arguments.rounds() {
        let few = round_of(&one, &names[..1], EVENTS, payload).await?;
        let lots = round_of(&many, &names, EVENTS, payload).await?;
        if round > 0 {
            publish.push(lots[0] / few[0]);
            consume.push(lots[1] / few[1] / GROUPS as f64);
        }
    }
    one.close().await?;
    many.close().await?;
    Ok(vec![FLAT[3].line(median(publish)), FLAT_GROUPS.line(median(consume))])
}

/// CPU seconds of publishing, and of all groups' taking and acknowledging. By turns, so that each is somewhere else.
async fn round_of(store: &Arc<Embedded>, groups: &[Name], events: usize, payload: usize) -> Result<[f64; 2]> {
    let begun = own_cpu_ns();
    stored::publish(store, PUBLISHERS, events / PUBLISHERS, payload).await?;
    let published = own_cpu_ns();
    for _ in 0..events / BATCH {
        for group in groups {
            stored::consume(store, group, BATCH, BATCH).await?;
        }
    }
    Ok([published - begun, own_cpu_ns() - published].map(|cost| cost as f64 / 1e9))
}

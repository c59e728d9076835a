//! `demo`: a whole cluster in this process under load.

use std::future::ready;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tidings_http::LogLevel;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::replay::{broken, conclude};
use crate::api::{self, Servers};
use crate::args::{DemoArgs, Speed};
use crate::exit::{Exit, Failure};
use crate::logging;
use crate::output::Output;
use crate::replay::engine::{Run, Settings};
use crate::replay::local::{LocalNodes, LocalSettings};
use crate::replay::report::coherent;
use crate::replay::tally::{Counts, milliseconds};
use crate::replay::target::Target;
use crate::replay::workload::{self, Workload};
use crate::signals::Signals;

/// Name of the cluster, and of its cache.
const NAME: &str = "demo";

/// Requests under way at a time.
const WORKERS: usize = 4;

/// Pause between two lines of the summary where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Pause between two looks on a terminal.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Runs the demonstration.
pub(crate) async fn run(args: &DemoArgs, verbose: u8, output: &Output) -> Result<(), Failure> {
    if args.http_port > u16::MAX - u16::from(args.load.nodes - 1) {
        let message = format!(
            "--http-port {}: the ports of {} nodes go beyond {}",
            args.http_port,
            args.load.nodes,
            u16::MAX
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    let log_level = logging::start(logging::quiet_directives(verbose), output)?;
    let mut signals = Signals::listen()?;
    let workload = workload(args)?;
    let cluster = LocalSettings {
        nodes: usize::from(args.load.nodes),
        capacity: args.load.capacity,
        max_staleness: args.load.max_staleness,
        cluster: NAME.to_owned(),
        cache: NAME.to_owned(),
    };
    let nodes = tokio::select! {
        nodes = LocalNodes::start(&cluster) => nodes?,
        _ = signals.next() => return Ok(()),
    };
    let mut servers = Servers::default();
    let served = serve(&nodes, args.http_port, &log_level, &mut servers, output).await;
    if let Err(failure) = served {
        signals.patiently(nodes.shutdown()).await?;
        return Err(failure);
    }
    let run = Run::new(nodes, settings(args));
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    if let Some(duration) = args.duration {
        let stop = stop.clone();
        tasks.spawn(async move {
            sleep(duration).await;
            stop.cancel();
        });
    }
    tasks.spawn(watch(Arc::clone(&run), output.clone()));
    let completing = run.complete(workload, &stop, ready(Ok(())));
    tokio::pin!(completing);
    let completed = tokio::select! {
        completed = &mut completing => completed,
        _ = signals.next() => {
            stop.cancel();
            signals.patiently(completing).await?
        }
    };
    tasks.shutdown().await;
    signals.patiently(servers.stop()).await?;
    signals.patiently(run.target().shutdown()).await?;
    conclude(completed?, args.trace.as_deref(), output)
}

async fn serve(
    nodes: &LocalNodes,
    first_port: u16,
    log_level: &Arc<LogLevel>,
    servers: &mut Servers,
    output: &Output,
) -> Result<(), Failure> {
    let mut urls = Vec::new();
    for (node, index) in nodes.nodes().iter().zip(0_u16..) {
        let port = if first_port == 0 { 0 } else { first_port + index };
        let options = api::options(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), log_level);
        let url = format!("http://{}", servers.add(node, options).await?.0);
        output.note(format!("{}  {url}  {} (QUIC, mutual TLS)", node.origin().node, node.address()));
        urls.push(url);
    }
    output.note(format!("dashboard  {}/", urls[0]));
    output.note(format!(
        "try        tidings members --url {}; tidings watch {NAME} --url {0} --limit 5",
        urls[0]
    ));
    Ok(())
}

fn settings(args: &DemoArgs) -> Settings {
    Settings {
        seed: args.load.seed,
        write_ratio: args.load.write_ratio,
        speed: Speed::Factor(1.0),
        workers: WORKERS,
        bound: args.load.max_staleness,
        nodes_fail: false,
    }
}

fn workload(args: &DemoArgs) -> Result<Workload, Failure> {
    match &args.trace {
        Some(path) => workload::repeated(path).map_err(|error| broken(Some(path), &error)),
        None => Ok(workload::generated(args.load.keys, args.rate as f64, args.load.seed)),
    }
}

/// Shows what happens: all the time on a terminal, now and then elsewhere.
async fn watch(run: Arc<Run<LocalNodes>>, output: Output) {
    let bar = output.shows_progress().then(ProgressBar::new_spinner);
    if let (Some(bar), Ok(style)) = (&bar, ProgressStyle::with_template("{msg}")) {
        bar.set_style(style);
    }
    let period = if bar.is_some() { LOOK_EVERY } else { LINE_EVERY };
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut before = Counts::default();
    loop {
        ticks.tick().await;
        let counts = run.tally().counts();
        let text = summary(&run, counts, counts.since(before), period).await;
        match &bar {
            Some(bar) => bar.set_message(text),
            None => output.note(text.replace('\n', "; ")),
        }
        before = counts;
    }
}

async fn summary(run: &Run<LocalNodes>, all: Counts, recent: Counts, period: Duration) -> String {
    let events = run.target().counters().await.unwrap_or_default();
    let (latency, staleness) = (run.target().invalidation_latency(), run.tally().staleness());
    let per_second = recent.requests() as f64 / period.as_secs_f64();
    format!(
        "{} requests, {per_second:.0}/s, hit ratio {:.3} (now {:.3})\n\
         {} changes told, {} applied by peers, p50 {} us, p99 {} us after the write\n\
         {} reads saw a value up to {:.1} ms old, {} beyond the bound; {} gaps, {} resets\n\
         coherent everywhere: {}",
        all.requests(),
        all.hit_ratio(),
        recent.hit_ratio(),
        events.published,
        events.applied,
        latency.p50,
        latency.p99,
        staleness.reads,
        milliseconds(staleness.max),
        staleness.after_bound,
        events.gaps,
        events.resets,
        coherent(&run.target().coherent()),
    )
}

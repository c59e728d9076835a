//! `replay`: a request trace against a system of record.

use std::future::{Future, ready};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::args::{Global, ReplayArgs, Speed};
use crate::chaos::{Chaos, ChildSettings, Children};
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::replay::engine::{Completed, Run, Settings};
use crate::replay::http::HttpNodes;
use crate::replay::local::{LocalNodes, LocalSettings};
use crate::replay::report::Report;
use crate::replay::tally::Tally;
use crate::replay::target::Target;
use crate::replay::trace::{Trace, TraceError};
use crate::replay::workload::{self, Workload};

/// Requests under way at a time, in process: hits need no waiting, and the nodes need the processors too.
const WORKERS_IN_PROCESS: usize = 4;

/// Requests under way at a time over HTTP, where most of a request is waiting.
const WORKERS_HTTP: usize = 32;

/// Requests a second of generated load at speed 1.0: the pace of the trace whose law it follows.
const GENERATED_PER_SECOND: f64 = 1965.0;

/// Name of a cluster in this process.
const CLUSTER: &str = "replay";

/// Pause between two looks at the progress.
const PROGRESS_POLL: Duration = Duration::from_millis(100);

/// Replays a trace and prints the summary.
pub(crate) async fn run(args: &ReplayArgs, global: &Global, output: &Output) -> Result<(), Failure> {
    crate::logging::start(crate::logging::quiet_directives(global.verbose), output)?;
    let workload = workload(args)?;
    let completed = if args.chaos {
        under_chaos(args, workload, global, output).await?
    } else if args.urls.is_empty() {
        in_process(args, workload, output).await?
    } else {
        over_http(args, workload, global, output).await?
    };
    let is_empty = completed.report.requests == 0;
    conclude(completed, args.trace.as_deref(), output)?;
    if is_empty {
        Err(Failure::new(Exit::Failed, "no request was answered: nothing is proved"))
    } else {
        Ok(())
    }
}

async fn in_process(args: &ReplayArgs, workload: Workload, output: &Output) -> Result<Completed, Failure> {
    let cluster = LocalSettings {
        nodes: usize::from(args.load.nodes),
        capacity: args.load.capacity,
        max_staleness: args.load.max_staleness,
        cluster: CLUSTER.to_owned(),
        cache: args.cache.clone(),
    };
    let nodes = LocalNodes::start(&cluster).await?;
    let run = Run::new(nodes, settings(args, WORKERS_IN_PROCESS));
    let report = complete(&run, workload, args, output, ready(Ok(()))).await;
    run.target().shutdown().await;
    report
}

async fn over_http(
    args: &ReplayArgs,
    workload: Workload,
    global: &Global,
    output: &Output,
) -> Result<Completed, Failure> {
    let clients: Result<Vec<Client>, Failure> =
        args.urls.iter().map(|url| Client::new(url, global.credentials())).collect();
    let nodes = HttpNodes::prepare(clients?, &args.cache, args.load.capacity).await?;
    let run = Run::new(nodes, settings(args, WORKERS_HTTP));
    let completed = complete(&run, workload, args, output, ready(Ok(()))).await;
    run.target().put_back().await;
    completed
}

/// Nodes as processes of their own, and a schedule of what happens to them.
async fn under_chaos(
    args: &ReplayArgs,
    workload: Workload,
    global: &Global,
    output: &Output,
) -> Result<Completed, Failure> {
    let children = Children::start(&ChildSettings {
        nodes: usize::from(args.load.nodes),
        cache: args.cache.clone(),
        capacity: args.load.capacity,
        max_staleness: args.load.max_staleness,
        verbose: global.verbose > 0,
    })
    .await?;
    let nodes = HttpNodes::prepare(children.clients().to_vec(), &args.cache, args.load.capacity).await?;
    let run = Run::new(nodes, settings(args, WORKERS_HTTP));
    let chaos = Chaos::new(children, args.load.seed, output.clone());
    let done = chaos.done();
    let (end, (over, undone)) = (CancellationToken::new(), oneshot::channel());
    let before_end = async {
        end.cancel();
        undone.await.unwrap_or(Ok(()))
    };
    let completing = async {
        let completed = complete(&run, workload, args, output, before_end).await;
        // Also if it did not come that far.
        end.cancel();
        completed
    };
    let (completed, children) = tokio::join!(completing, async {
        let children = chaos.run(&run, &end).await;
        // Whoever waits for this may have given up.
        let _ = over.send(children.as_ref().map(|_| ()).map_err(Clone::clone));
        children
    });
    let mut completed = completed?;
    drop(children?);
    completed.report.chaos = std::mem::take(&mut *done.lock());
    Ok(completed)
}

fn settings(args: &ReplayArgs, workers: usize) -> Settings {
    Settings {
        seed: args.load.seed,
        write_ratio: args.load.write_ratio,
        speed: args.speed.unwrap_or(if args.chaos { Speed::Factor(1.0) } else { Speed::Max }),
        workers: args.workers.map_or(workers, usize::from),
        bound: args.load.max_staleness,
        nodes_fail: args.chaos,
    }
}

fn workload(args: &ReplayArgs) -> Result<Workload, Failure> {
    let all: Workload = match (&args.trace, args.generate) {
        (Some(path), _) => {
            Box::new(Trace::open(path).map_err(|error| broken(args.trace.as_deref(), &error))?)
        }
        (None, count) => {
            let requests = workload::generated(args.load.keys, GENERATED_PER_SECOND, args.load.seed);
            Box::new(requests.take(usize::try_from(count.unwrap_or(0)).unwrap_or(usize::MAX)))
        }
    };
    Ok(match args.limit {
        Some(limit) => Box::new(all.take(usize::try_from(limit).unwrap_or(usize::MAX))),
        None => all,
    })
}

/// What is wrong with a trace.
pub(crate) fn broken(trace: Option<&Path>, error: &TraceError) -> Failure {
    let name = trace.map(|path| path.display().to_string()).unwrap_or_default();
    let exit = match error {
        TraceError::Open(source) if source.kind() == std::io::ErrorKind::NotFound => Exit::NotFound,
        _ => Exit::Failed,
    };
    Failure::new(exit, format!("trace {name}: {error}"))
}

async fn complete<T: Target>(
    run: &Arc<Run<T>>,
    workload: Workload,
    args: &ReplayArgs,
    output: &Output,
    before_end: impl Future<Output = Result<(), Failure>>,
) -> Result<Completed, Failure> {
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    if let Some(duration) = args.duration {
        let stop = stop.clone();
        tasks.spawn(async move {
            tokio::time::sleep(duration).await;
            stop.cancel();
        });
    }
    if output.shows_progress() {
        tasks.spawn(show_progress(run.tally(), args.limit.or(args.generate)));
    }
    let completed = run.complete(workload, &stop, before_end).await;
    tasks.shutdown().await;
    completed
}

async fn show_progress(tally: Arc<Tally>, total: Option<u64>) {
    let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    let template = if total.is_some() {
        "{bar:30} {pos}/{len} {per_sec} {msg}"
    } else {
        "{spinner} {pos} {per_sec} {msg}"
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    loop {
        let counts = tally.counts();
        bar.set_position(counts.requests());
        bar.set_message(format!("hit ratio {:.3}, {} stale", counts.hit_ratio(), tally.staleness().reads));
        bar.tick();
        tokio::time::sleep(PROGRESS_POLL).await;
    }
}

/// Prints the summary: as JSON on stdout, and for people on stderr. A trace that broke off costs the verdict only.
pub(crate) fn conclude(completed: Completed, trace: Option<&Path>, output: &Output) -> Result<(), Failure> {
    let Completed { report, broken: error } = completed;
    if report.requests > 0 || error.is_none() {
        output.json(&report)?;
        if !output.is_json() {
            output.note(report.text());
        }
    }
    error.map_or_else(|| verdict(&report), |error| Err(broken(trace, &error)))
}

fn verdict(report: &Report) -> Result<(), Failure> {
    if !report.is_sound() {
        let Report { stale_reads_after_bound, differing_at_end, wrong_values, .. } = report;
        let message = format!(
            "the promise was broken: {stale_reads_after_bound} reads beyond the bound, {differing_at_end} entries differ, \
             {wrong_values} wrong values"
        );
        return Err(Failure::new(Exit::Failed, message).hint("violations in the summary name the first ones"));
    }
    let Report { errors, unfinished_writes, uncompared_at_end, .. } = report;
    // Nodes that are killed leave requests unanswered.
    let unanswered = *errors > 0 && report.chaos.is_empty();
    if unanswered || unfinished_writes + uncompared_at_end > 0 || !report.settled {
        let message = format!(
            "{errors} requests were not answered, {unfinished_writes} writes reached no node, {uncompared_at_end} entries \
             could not be compared{}",
            if report.settled { "" } else { ", and the nodes were not in step in time" }
        );
        return Err(Failure::new(Exit::Partial, message));
    }
    Ok(())
}

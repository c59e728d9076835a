//! `consume`: taking the events of a topic for a group.

use std::future::Future;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value as Json, json};
use tidings::streams::RECEIVE_EVENTS_MAX;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::{Instant, interval_at, timeout};

use super::stream::{cell, excerpt, get, items};
use crate::args::ConsumeArgs;
use crate::client::{Call, Client};
use crate::exit::{Exit, Failure};
use crate::output::{Output, plain};
use crate::signals::Signals;
use crate::units;

/// How long one request waits for events.
const WAIT: Duration = Duration::from_secs(20);

/// How long events may take where the node does not say.
const IDLE: Duration = Duration::from_secs(30);

/// How long an answer that is on its way is waited for once the program is told to stop: what it brings was taken.
const LAST_ANSWER: Duration = Duration::from_secs(1);

/// What became of the events.
#[derive(Debug, Default)]
struct Counts {
    taken: u64,
    acked: u64,
    failed: u64,
}

/// Being told to stop: what was taken is finished first, unless that is said again.
struct Stop {
    signals: Signals,
    told: bool,
}

impl Stop {
    /// An answer, unless the program is told to stop and none is on its way.
    async fn last<F: Future>(&mut self, answer: F) -> Option<F::Output> {
        tokio::pin!(answer);
        tokio::select! {
            biased;
            answered = &mut answer => return Some(answered),
            _ = self.signals.next() => self.told = true,
        }
        timeout(LAST_ANSWER, answer).await.ok()
    }

    /// Finishes what was begun. Told to stop again, it does not.
    async fn finish<F: Future>(&mut self, work: F) -> Result<F::Output, Failure> {
        tokio::pin!(work);
        if !self.told {
            tokio::select! {
                done = &mut work => return Ok(done),
                _ = self.signals.next() => self.told = true,
            }
        }
        self.signals.patiently(work).await
    }
}

/// Takes events until there were enough, or none for long enough, or the program is told to stop.
pub(crate) async fn run(args: &ConsumeArgs, client: &Client, output: &Output) -> Result<(), Failure> {
    if !(1..=RECEIVE_EVENTS_MAX).contains(&args.batch) {
        return Err(Failure::new(Exit::Usage, format!("--batch is from 1 to {RECEIVE_EVENTS_MAX}")));
    }
    let group = Group { client, path: ["v1", "streams", args.topic.as_str(), "groups", args.group.as_str()] };
    client.call(Call::new(Method::PUT, &group.path).json(&json!({ "start": args.start }))).await?;
    let topic = get(client, &["v1", "streams", args.topic.as_str()]).await?;
    let idle_time = topic["settings"]["min_idle_time"].as_str();
    let idle_time = idle_time.and_then(|text| units::duration(text).ok()).unwrap_or(IDLE);
    if args.exec.is_none() && !args.auto_ack {
        output.note(format!(
            "events are printed and stay pending: they are delivered again after {}, and after {} times are dead \
             letters; --auto-ack or --exec settle them, `tidings stream view` looks without taking",
            units::show_duration(idle_time),
            cell(&topic["settings"], "max_deliveries")
        ));
    }
    let mut counts = Counts::default();
    let mut heard = Instant::now();
    let mut stop = Stop { signals: Signals::listen()?, told: false };
    while !stop.told && args.max.is_none_or(|max| counts.taken < max) {
        let left = args.max.map_or(u64::MAX, |max| max - counts.taken);
        let most = args.batch.min(usize::try_from(left).unwrap_or(usize::MAX));
        let wait = args.wait.map_or(WAIT, |wait| wait.saturating_sub(heard.elapsed()).min(WAIT));
        let what = json!({ "max": most, "wait": units::show_duration(wait), "consumer": args.consumer });
        let Some(taken) = stop.last(group.post("receive", &what, wait)).await else { break };
        let taken = taken?.0;
        let events = items(&taken, "events");
        if events.is_empty() {
            if args.wait.is_some_and(|wait| heard.elapsed() >= wait) {
                break;
            }
            continue;
        }
        counts.taken += events.len() as u64;
        stop.finish(settle(&group, args, idle_time, events, &mut counts, output)).await??;
        heard = Instant::now();
    }
    let Counts { taken, acked, failed } = counts;
    output.note(format!("{taken} events, {acked} acknowledged, {failed} failed"));
    Ok(())
}

/// Does what is to be done with events that were taken.
async fn settle(
    group: &Group<'_>,
    args: &ConsumeArgs,
    idle_time: Duration,
    events: &[Json],
    counts: &mut Counts,
    output: &Output,
) -> Result<(), Failure> {
    if args.auto_ack {
        counts.acked += group.ack(events, output).await?;
    }
    match &args.exec {
        Some(command) => handle(group, args, (command, idle_time), events, counts, output).await,
        None => events.iter().try_for_each(|event| print(event, output)),
    }
}

/// A group of a topic, at a node.
struct Group<'a> {
    client: &'a Client,
    path: [&'a str; 5],
}

impl Group<'_> {
    async fn post(&self, verb: &str, what: &Json, wait: Duration) -> Result<(Json, bool), Failure> {
        let path = [&self.path[..], &[verb]].concat();
        self.client.call(Call::new(Method::POST, &path).json(what).waiting(wait)).await
    }

    /// Acknowledges deliveries. How many; of the others it is said that they come again.
    async fn ack(&self, events: &[Json], output: &Output) -> Result<u64, Failure> {
        let deliveries: Vec<Json> = events.iter().map(delivery).collect();
        let (done, partial) = self.post("ack", &json!({ "deliveries": deliveries }), Duration::ZERO).await?;
        let acked = items(&done, "results").iter().filter(|one| one["outcome"] == "acked").count();
        if partial {
            output.warn(format!("{} acknowledgements came too late", events.len() - acked));
        }
        Ok(acked as u64)
    }
}

/// What names one delivery of an event.
fn delivery(event: &Json) -> Json {
    json!({ "id": event["id"], "delivery": event["delivery"] })
}

fn print(event: &Json, output: &Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(event);
    }
    let [id, time, key] = ["id", "time", "key"].map(|name| plain(&cell(event, name)));
    let payload = event["payload"].as_str().map_or_else(|| excerpt(event), plain);
    output.line(format!("{id}  {time}  {key}  {payload}"))
}

/// Runs the command for each event, one after the other, and settles each by how it ended. Meanwhile those that wait
/// are kept from being delivered to somebody else.
async fn handle(
    group: &Group<'_>,
    args: &ConsumeArgs,
    (command, idle_time): (&str, Duration),
    events: &[Json],
    counts: &mut Counts,
    output: &Output,
) -> Result<(), Failure> {
    for (index, event) in events.iter().enumerate() {
        let running = execute(args, command, event);
        let ended = if args.auto_ack {
            running.await
        } else {
            tokio::select! {
                ended = running => ended,
                never = keep(group, &events[index..], idle_time) => match never {},
            }
        };
        if args.auto_ack {
            counts.failed += u64::from(ended.is_err());
            continue;
        }
        match ended {
            Ok(()) => counts.acked += group.ack(std::slice::from_ref(event), output).await?,
            Err(reason) => {
                output.warn(format!("event {}: {reason}", cell(event, "id")));
                let mut what = delivery(event);
                what["error"] = reason.into();
                group.post("fail", &what, Duration::ZERO).await?;
                counts.failed += 1;
            }
        }
    }
    Ok(())
}

/// Extends deliveries for as long as it is let.
async fn keep(group: &Group<'_>, events: &[Json], idle_time: Duration) -> std::convert::Infallible {
    let pause = (idle_time / 2).max(Duration::from_millis(1));
    let mut times = interval_at(Instant::now() + pause, pause);
    loop {
        times.tick().await;
        for event in events {
            let mut what = delivery(event);
            what["by"] = units::show_duration(idle_time).into();
            // Whether it worked is seen when the delivery is settled.
            drop(group.post("extend", &what, Duration::ZERO).await);
        }
    }
}

/// Runs the command for one event. Why it failed, if so.
async fn execute(args: &ConsumeArgs, command: &str, event: &Json) -> Result<(), String> {
    let payload = match event["payload"].as_str() {
        Some(text) => text.as_bytes().to_vec(),
        None => {
            let base64 = event["payload_base64"].as_str().unwrap_or_default();
            STANDARD.decode(base64).map_err(|error| format!("the payload cannot be read: {error}"))?
        }
    };
    let mut child = Command::new("sh")
        .args(["-c", command])
        .env("TIDINGS_TOPIC", args.topic.as_str())
        .env("TIDINGS_GROUP", args.group.as_str())
        .env("TIDINGS_ID", cell(event, "id"))
        .env("TIDINGS_KEY", event["key"].as_str().unwrap_or_default().replace('\0', ""))
        .env("TIDINGS_ATTEMPTS", cell(event, "attempts"))
        .stdin(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot run sh: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // It need not read what it is given.
        let _ = stdin.write_all(&payload).await;
    }
    let status = child.wait().await.map_err(|error| format!("cannot wait for the command: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("the command ended with {status}")) }
}

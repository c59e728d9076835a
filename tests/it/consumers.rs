//! Requests of a production cluster as events of an ordered topic: published over HTTP, and consumed by three
//! processes of one group, of which one is killed every few seconds. Every event is handled, those of a key one after
//! the other.
//!
//! A consumer is a program of its own (`consumer`). It says on its standard output what it handles, and when; the one
//! that started it compares that with what was published.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tidings_tests::api::Api;
use tidings_tests::consumer::{BATCH, GROUP, IDLE, of_group};
use tidings_tests::directory::{Alone, Directory};
use tidings_tests::node::Node;
use tidings_tests::scale;
use tidings_tests::trace::{Request, Trace};
use tidings_tests::wait::until;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// Requests of the sample that are published. Of a trace that the environment names it is all.
const REQUESTS: usize = 1_500;

/// Publishers at once, each with the keys that are its.
const PUBLISHERS: usize = 16;

/// Consumers of the group.
const CONSUMERS: usize = 3;

/// A consumer is killed so often, or earlier: when a part of all events was handled since the last one was.
const KILL_EVERY: Duration = Duration::from_secs(3);
const KILLS_MIN: usize = 5;

/// Longest time for one event on a machine that has other things to do, and for what comes after the last.
const EACH_WITHIN: Duration = Duration::from_millis(20);
const DONE_WITHIN: Duration = Duration::from_secs(60);

fn of_topic(what: &'static str) -> [&'static str; 4] {
    ["v1", "streams", "requests", what]
}

/// What consumers said, all of them in all of their lives.
#[derive(Debug, Default)]
struct Said {
    /// When, and which event.
    handled: Mutex<Vec<(u64, u32)>>,
    heard: AtomicUsize,
    /// Events that were left to others, for it was late.
    late: AtomicUsize,
    /// Events that were handled in time, and acknowledged too late.
    unheard: AtomicUsize,
}

impl Said {
    fn hear(&self, line: &str) {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["handled", at, number] => {
                let entry = (at.parse().expect("a moment"), number.parse().expect("a number"));
                self.handled.lock().expect("no reader panics").push(entry);
                self.heard.fetch_add(1, Ordering::Relaxed);
            }
            ["late"] => drop(self.late.fetch_add(1, Ordering::Relaxed)),
            ["unheard", _] => drop(self.unheard.fetch_add(1, Ordering::Relaxed)),
            _ => panic!("a consumer said {line:?}"),
        }
    }
}

/// A process that consumes, and the thread that hears it out.
struct Consumer {
    process: Child,
    reader: Option<JoinHandle<()>>,
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Consumer {
    fn start(number: usize, address: &str, said: &Arc<Said>) -> Result<Self> {
        let mut process = Command::new(env!("CARGO_BIN_EXE_consumer"))
            .args([address, &format!("c{number}")])
            .stdout(Stdio::piped())
            .spawn()?;
        let (lines, said) = (BufReader::new(process.stdout.take().context("it is piped")?), Arc::clone(said));
        let reader = std::thread::spawn(move || {
            // A pipe takes such short writes whole or not at all.
            lines.lines().map_while(Result::ok).for_each(|line| said.hear(&line));
        });
        Ok(Self { process, reader: Some(reader) })
    }

    fn kill(mut self) -> Result<()> {
        let ended = self.process.try_wait()?;
        self.process.kill()?;
        self.process.wait()?;
        let heard = self.reader.take().map(JoinHandle::join);
        ensure!(matches!(heard, Some(Ok(()))), "what it said could not be read");
        ensure!(ended.is_none(), "it ended by itself: {ended:?}");
        Ok(())
    }
}

fn requests() -> Result<Vec<Request>> {
    let requests = Trace::load_part(scale::count(REQUESTS))?.requests;
    ensure!(requests.len() > 100, "{} requests", requests.len());
    Ok(requests)
}

/// Each publisher's events, in their order.
async fn publish(api: &Api, requests: &Arc<Vec<Request>>) -> Result<()> {
    let mut shares = vec![Vec::new(); PUBLISHERS];
    for (number, request) in requests.iter().enumerate() {
        let share = request.key.bytes().fold(7_usize, |sum, byte| sum.wrapping_mul(31) + usize::from(byte));
        shares[share % PUBLISHERS].push(number);
    }
    let mut publishers = JoinSet::new();
    for share in shares {
        let (api, requests) = (api.clone(), Arc::clone(requests));
        publishers.spawn(async move {
            for number in share {
                let Request { key, bytes, .. } = &requests[number];
                let payload = format!("{number} {}", "x".repeat(*bytes));
                let event = json!({ "key": key, "payload": payload });
                let answer = api.send(api.request(Method::POST, &of_topic("events")).json(&event)).await?;
                ensure!(answer.status.is_success(), "event {number}: {}", answer.text());
            }
            Ok(())
        });
    }
    while let Some(published) = publishers.join_next().await {
        published??;
    }
    Ok(())
}

/// Kills a consumer now and then and starts it again, until everything is settled. How many were killed.
async fn trouble(
    api: &Api,
    consumers: &mut Vec<Consumer>,
    said: &Arc<Said>,
    (address, all): (&str, usize),
) -> Result<usize> {
    let (mut kills, mut last, mut heard) = (0, Instant::now(), 0);
    let end = Instant::now() + DONE_WITHIN + EACH_WITHIN * u32::try_from(all)?;
    loop {
        let handled = said.heard.load(Ordering::Relaxed);
        if last.elapsed() >= KILL_EVERY || handled - heard >= all / (2 * KILLS_MIN) {
            let victim = kills % CONSUMERS;
            consumers.remove(victim).kill()?;
            consumers.insert(victim, Consumer::start(victim, address, said)?);
            kills += 1;
            (last, heard) = (Instant::now(), handled);
        }
        if handled >= all {
            let group: Value =
                api.send(api.request(Method::GET, &GROUP)).await?.must_be(StatusCode::OK)?.json()?;
            if group["lag"] == 0 {
                return Ok(kills);
            }
        }
        if Instant::now() >= end {
            bail!("{handled} of {all} events were handled, {kills} consumers killed: {said:?}");
        }
        sleep(Duration::from_millis(1)).await;
    }
}

/// Everything was handled, and what is of one key in its order. How many were handled again.
fn judge(requests: &[Request], handled: &mut [(u64, u32)]) -> Result<usize> {
    handled.sort_unstable();
    let (mut places, mut count) = (Vec::with_capacity(requests.len()), HashMap::<&str, usize>::new());
    for request in requests {
        let place = count.entry(&request.key).or_default();
        *place += 1;
        places.push(*place);
    }
    let (mut again, mut reached) = (0, HashMap::<&str, usize>::new());
    for (_, number) in handled.iter() {
        let number = *number as usize;
        let (key, place) =
            (&requests.get(number).context("a number that was never published")?.key, places[number]);
        let reached = reached.entry(key).or_default();
        ensure!(
            place == *reached || place == *reached + 1,
            "event {number}, {place} of its key, after {reached}"
        );
        again += usize::from(place == *reached);
        *reached = place;
    }
    let lost = requests.len() - (handled.len() - again);
    ensure!(lost == 0, "{lost} events were never handled");
    Ok(again)
}

fn configuration(directory: &Path, http: &str) -> Result<PathBuf> {
    let path = directory.join("n1.toml");
    let text = format!(
        "[cluster]\nname = \"rig\"\nnode_id = \"n1\"\nlisten = \"127.0.0.1:0\"\n[tls]\ndevelopment = true\n\
         [http]\nlisten = \"{http}\"\n[streams]\npath = \"streams\"\n[[streams.topic]]\nname = \"requests\"\n\
         ordered = true\nmax_deliveries = 1000\nmin_idle_time = \"{}ms\"\n",
        IDLE.as_millis()
    );
    std::fs::write(&path, text)?;
    Ok(path)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_that_are_killed_handle_every_event_and_each_key_in_order() -> Result<()> {
    let (_alone, directory, requests) = (Alone::wait()?, Directory::create()?, Arc::new(requests()?));
    let http = TcpListener::bind("127.0.0.1:0")?;
    let address = http.local_addr()?.to_string();
    drop(http);
    let config = configuration(directory.path(), &address)?;
    let mut node = Node::new("n1", &config, &address, None)?;
    node.start()?;
    node.ready().await?;
    let (api, said) = (node.api().clone(), Arc::<Said>::default());
    let made = api.send(api.request(Method::PUT, &GROUP).json(&json!({ "start": "earliest" }))).await?;
    made.must_be(StatusCode::CREATED)?;
    let mut consumers = Vec::new();
    for number in 0..CONSUMERS {
        consumers.push(Consumer::start(number, &address, &said)?);
    }
    let begun = Instant::now();
    let done = trouble(&api, &mut consumers, &said, (&address, requests.len()));
    let ((), kills) = tokio::try_join!(publish(&api, &requests), done)?;
    let took = begun.elapsed();
    consumers.into_iter().try_for_each(Consumer::kill)?;
    let mut handled = std::mem::take(&mut *said.handled.lock().expect("no reader panics"));
    let again = judge(&requests, &mut handled)?;
    let [late, unheard] = [&said.late, &said.unheard].map(|count| count.load(Ordering::Relaxed));
    println!(
        "{} events in {took:.1?}: {kills} kills, {again} handled again, {unheard} acknowledged too late, {late} left",
        requests.len()
    );
    ensure!(kills >= KILLS_MIN, "{kills} consumers were killed");
    ensure!(again <= kills * BATCH + unheard, "{again} events were handled again after {kills} kills");
    let what = "nothing is pending";
    until(what, DONE_WITHIN, async || {
        let pending: Value = api.send(api.request(Method::GET, &of_group("pending"))).await?.json()?;
        ensure!(pending["pending"].as_array().is_some_and(Vec::is_empty), "{pending}");
        Ok(())
    })
    .await?;
    let dead: Value = api.send(api.request(Method::GET, &["v1", "dead-letters"])).await?.json()?;
    ensure!(dead["events"].as_array().is_some_and(Vec::is_empty), "given up: {dead}");
    Ok(())
}

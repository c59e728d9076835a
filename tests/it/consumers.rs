//! Requests of a production cluster as events of an ordered topic: published over HTTP, and consumed by three
//! processes of one group, of which one is killed every few seconds. Every event is handled, those of a key one after
//! the other.
//!
//! A consumer is this test binary itself. It says on its standard output what it handles, and when; the one that
//! started it compares that with what was published.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Method, StatusCode};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tidings_tests::api::Api;
use tidings_tests::directory::{Alone, Directory};
use tidings_tests::node::Node;
use tidings_tests::scale;
use tidings_tests::wait::until;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// Requests of the sample that are published. A whole trace, `time_s,key,size_bytes` a line and compressed or not, by
/// `TIDINGS_TEST_TRACE`.
const REQUESTS: usize = 1_500;
const TRACE: &str = "TIDINGS_TEST_TRACE";

/// Tell a consumer which node to ask, and its name. Without them its test does nothing.
const URL: &str = "TIDINGS_TEST_CONSUMES_FROM";
const NAME: &str = "TIDINGS_TEST_CONSUMER";

/// Publishers at once, each with the keys that are its.
const PUBLISHERS: usize = 16;

/// Consumers of the group.
const CONSUMERS: usize = 3;

/// Events that a consumer takes at a time.
const BATCH: usize = 20;

/// How long a delivery is its consumer's, and how much of that a consumer uses: it handles nothing that might be
/// somebody else's by then, however long it stood still.
const IDLE: Duration = Duration::from_secs(2);
const USED: Duration = Duration::from_millis(1_500);

/// A consumer is killed so often, or earlier: when a part of all events was handled since the last one was.
const KILL_EVERY: Duration = Duration::from_secs(3);
const KILLS_MIN: usize = 5;

/// Longest time for one event on a machine that has other things to do, and for what comes after the last.
const EACH_WITHIN: Duration = Duration::from_millis(20);
const DONE_WITHIN: Duration = Duration::from_secs(60);

const TOPIC: [&str; 3] = ["v1", "streams", "requests"];
const GROUP: [&str; 5] = ["v1", "streams", "requests", "groups", "g"];

fn of_topic(what: &'static str) -> [&'static str; 4] {
    [TOPIC[0], TOPIC[1], TOPIC[2], what]
}

fn of_group(what: &'static str) -> [&'static str; 6] {
    [GROUP[0], GROUP[1], GROUP[2], GROUP[3], GROUP[4], what]
}

/// On a clock that all processes have.
fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

#[test]
fn consumer() -> Result<()> {
    let (Ok(url), Ok(name)) = (std::env::var(URL), std::env::var(NAME)) else { return Ok(()) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let api = Api::new(&url, None)?;
        loop {
            consume(&api, &name).await?;
        }
    })
}

/// Takes some events, handles each, and acknowledges them together.
async fn consume(api: &Api, name: &str) -> Result<()> {
    let asked = now();
    let ask = json!({ "max": BATCH, "wait": "1s", "consumer": name });
    let answer = api.send(api.request(Method::POST, &of_group("receive")).json(&ask)).await?;
    let taken: Value = answer.must_be(StatusCode::OK)?.json()?;
    let mut done = Vec::new();
    for event in taken["events"].as_array().context("no events")? {
        let at = now();
        if at - asked > USED {
            println!("@ late");
            continue;
        }
        let number = event["payload"].as_str().and_then(|payload| payload.split(' ').next());
        println!("@ handled {} {}", at.as_nanos(), number.context("no number")?);
        done.push(json!({ "id": event["id"], "delivery": event["delivery"] }));
    }
    if done.is_empty() {
        return Ok(());
    }
    let answer =
        api.send(api.request(Method::POST, &of_group("ack")).json(&json!({ "deliveries": done }))).await?;
    ensure!(answer.status.is_success(), "not acknowledged: {}", answer.text());
    let results: Value = answer.json()?;
    for one in results["results"].as_array().context("no results")? {
        if one["outcome"] != "acked" {
            println!("@ unheard {}", one["id"]);
        }
    }
    Ok(())
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
        // What libtest says comes first on the line, if at all.
        let Some((_, words)) = line.split_once("@ ") else { return };
        match words.split(' ').collect::<Vec<_>>()[..] {
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
        let mut process = Command::new(std::env::current_exe()?)
            .args(["consumers::consumer", "--exact", "--nocapture", "--test-threads=1"])
            .env(URL, address)
            .env(NAME, format!("c{number}"))
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

/// A request: its key, and the size of what it asked for.
struct Request {
    key: String,
    bytes: usize,
}

fn requests() -> Result<Vec<Request>> {
    let (path, most) = match std::env::var_os(TRACE) {
        Some(path) => (PathBuf::from(path), usize::MAX),
        None => {
            let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/twitter_cluster52_20k.csv");
            (sample, scale::count(REQUESTS))
        }
    };
    let file = File::open(&path).with_context(|| path.display().to_string())?;
    let is_compressed = path.extension().is_some_and(|extension| extension == "zst");
    let file: Box<dyn Read> =
        if is_compressed { Box::new(zstd::Decoder::new(file)?) } else { Box::new(file) };
    let mut requests = Vec::new();
    for line in BufReader::new(file).lines() {
        let line = line?;
        let fields: Vec<&str> = line.split(',').collect();
        let [time, key, bytes] = fields[..] else { continue };
        if time != "time_s" && !line.starts_with('#') && requests.len() < most {
            requests.push(Request { key: key.to_owned(), bytes: bytes.trim().parse()? });
        }
    }
    ensure!(requests.len() > 100, "{} requests in {}", requests.len(), path.display());
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
                let Request { key, bytes } = &requests[number];
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

//! How fast a cluster notices that a node has come or has crashed. Every node is a process; all of them publish all
//! the time.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use serde::{Deserialize, Serialize};
use tidings::{Cache, Item, Node, Observation, Observed, Scope, State};
use tidings_benches::clock::{now_ns, seconds_since};
use tidings_benches::machine;
use tidings_benches::stats::median;
use tidings_benches::target::{Better, Target, Verdict};

/// Nodes that are there before the one that joins.
const RESIDENT_NODES: usize = 4;

/// Every node makes a change so often.
const PUBLISH_EVERY: Duration = Duration::from_millis(10);

/// A flooding node makes so many changes between looks at what else there is.
const FLOOD_EVENTS: usize = 256;

/// A round that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);

const JOIN: Target =
    Target { name: "a joiner hears all, and all hear it, s", better: Better::Lower, must: 1.0, aim: 0.4 };
const CRASH: Target =
    Target { name: "a crash is noticed by all, s", better: Better::Lower, must: 3.0, aim: 1.0 };

/// Measures how fast a cluster notices that a node has come or has crashed.
#[derive(Debug, Parser)]
struct Arguments {
    /// Two rounds instead of seven.
    #[arg(long)]
    quick: bool,
    /// Instead: for so many seconds every node changes keys as fast as it can, and none may be seen as anything but
    /// live.
    #[arg(long, value_name = "SECONDS")]
    full_load: Option<u64>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    /// Makes this process a node of this name.
    #[arg(long, hide = true)]
    node: Option<String>,
    /// Makes it change keys as fast as it can.
    #[arg(long, hide = true)]
    flood: bool,
    /// Where it finds others.
    #[arg(long, hide = true)]
    seeds: Vec<SocketAddr>,
}

/// What a node tells the coordinating process; a line of JSON with the machine's monotonic time.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum News {
    /// It starts.
    Starting,
    /// It listens here.
    Listening(SocketAddr),
    /// It has applied a first change of this node.
    Heard(String),
    /// It sees this node in another state.
    State(String, String),
    /// It has applied so many changes of others.
    Applied(u64),
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(name) = &arguments.node {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let running = run_node(name, &arguments.seeds, arguments.flood);
        return runtime.block_on(running).map(|()| ExitCode::SUCCESS);
    }
    println!("{}\n", machine::describe());
    if let Some(seconds) = arguments.full_load {
        return under_full_load(Duration::from_secs(seconds));
    }
    let rounds = if arguments.quick { 2 } else { 7 };
    let (mut joins, mut suspects, mut losses) = (Vec::new(), Vec::new(), Vec::new());
    let mut field = Field::start(false)?;
    for round in 0..rounds {
        let name = format!("joiner{round}");
        field.spawn(&name)?;
        joins.push(field.all_hear_all()?);
        let killed = field.kill(&name)?;
        suspects.push(field.all_see(&name, |state| state != State::Live.name(), killed)?);
        losses.push(field.all_see(&name, |state| state == State::Lost.name(), killed)?);
    }
    println!("join, s: {joins:.3?}\nnoticed, s: {suspects:.3?}\ncalled lost, s: {losses:.3?}");
    println!("called lost by all, median: {:.3} s", median(losses));
    if !field.alarms.is_empty() {
        println!("false alarms: {:?}", field.alarms);
    }
    println!();
    let judged = [JOIN.line(median(joins)), CRASH.line(median(suspects))];
    judged.iter().for_each(|(line, _)| println!("{line}"));
    println!("\n{}", machine::describe());
    let passed = field.alarms.is_empty() && judged.iter().all(|(_, verdict)| *verdict != Verdict::Fail);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Looks for false alarms while all nodes change keys as fast as they can.
fn under_full_load(time: Duration) -> Result<ExitCode> {
    let mut field = Field::start(true)?;
    let applied = |field: &Field| field.applied.values().sum::<u64>();
    let (begun, before) = (now_ns(), applied(&field));
    field.listen_for(time)?;
    let seconds = seconds_since(begun);
    let rate = (applied(&field) - before) as f64 / seconds;
    println!("{seconds:.0} s, {rate:.0} changes applied a second, {} false alarms", field.alarms.len());
    field.alarms.iter().for_each(|alarm| println!("{alarm:?}"));
    println!("\n{}", machine::describe());
    Ok(if field.alarms.is_empty() && rate > 0.0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell(news: &News) {
    println!("{}", serde_json::to_string(&(now_ns(), news)).expect("news hold only what JSON can say"));
}

/// A node that changes a key now and then, or always, and tells what it hears, until it is killed.
async fn run_node(name: &str, seeds: &[SocketAddr], flood: bool) -> Result<()> {
    tell(&News::Starting);
    let node =
        Node::builder("bench").node_id(name).seeds(seeds.iter().map(ToString::to_string)).start().await?;
    let cache: Cache<String, ()> = node.cache("bench").open()?;
    let mut events = cache.subscribe().scope(Scope::Remote).start()?;
    let mut observer = node.observe();
    tell(&News::Listening(node.address()));
    let mut ticks = tokio::time::interval(PUBLISH_EVERY);
    let mut heard = BTreeSet::new();
    let mut number = 0_u64;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                cache.remove(&name.to_owned())?;
                if flood {
                    tell(&News::Applied(cache.counts().applied()));
                }
            }
            item = events.next() => match item {
                Some(Item::Event(event)) if heard.insert(event.origin.node.clone()) => {
                    tell(&News::Heard(event.origin.node.to_string()));
                }
                Some(Item::Event(_)) => {}
                // A flood is more than a subscriber of everything can read.
                Some(Item::Lagged { .. } | Item::Fenced { .. }) if flood => {}
                _ => bail!("events were missed"),
            },
            () = tokio::task::yield_now(), if flood => {
                for _ in 0..FLOOD_EVENTS {
                    cache.remove(&number.to_string())?;
                    number += 1;
                }
            }
            observed = observer.next() => {
                if let Observed::Observation(Observation::Member { origin, state }) = observed.context("ended")? {
                    tell(&News::State(origin.node.to_string(), state.name().to_owned()));
                }
            }
        }
    }
}

/// The nodes that run, and what they have told.
struct Field {
    nodes: BTreeMap<String, (Child, SocketAddr)>,
    started: u64,
    hearings: BTreeMap<(String, String), u64>,
    /// By who sees and who is seen: when it came to be seen in which state, one after the other.
    states: BTreeMap<(String, String), Vec<(u64, String)>>,
    /// Running nodes that another saw as anything but live after it had seen them live.
    alarms: Vec<(String, String, String)>,
    applied: BTreeMap<String, u64>,
    flood: bool,
    news: Receiver<(String, u64, News)>,
    sender: Sender<(String, u64, News)>,
}

impl Field {
    /// Starts nodes that all hear each other.
    fn start(flood: bool) -> Result<Self> {
        let (sender, news) = channel();
        let mut field = Self {
            nodes: BTreeMap::new(),
            started: 0,
            hearings: BTreeMap::new(),
            states: BTreeMap::new(),
            alarms: Vec::new(),
            applied: BTreeMap::new(),
            flood,
            news,
            sender,
        };
        for number in 0..RESIDENT_NODES {
            field.spawn(&format!("n{number}"))?;
        }
        field.all_hear_all()?;
        Ok(field)
    }

    fn spawn(&mut self, name: &str) -> Result<()> {
        let seeds = self.nodes.values().flat_map(|(_, address)| ["--seeds".to_owned(), address.to_string()]);
        let mut child = Command::new(env::current_exe()?)
            .args(["--node", name])
            .args(self.flood.then_some("--flood"))
            .args(seeds)
            .stdout(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(child.stdout.take().context("no standard output")?);
        let (sender, of) = (self.sender.clone(), name.to_owned());
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let Ok((at, news)) = serde_json::from_str(&line) else { return };
                if sender.send((of.clone(), at, news)).is_err() {
                    return;
                }
            }
        });
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        self.nodes.insert(name.to_owned(), (child, unknown));
        self.until(|field| field.nodes[name].1 != unknown)
    }

    /// Ends a node as a crash does; when that was.
    fn kill(&mut self, name: &str) -> Result<u64> {
        let (mut child, _) = self.nodes.remove(name).context("no such node")?;
        let at = now_ns();
        child.kill()?;
        child.wait()?;
        Ok(at)
    }

    /// Waits until every running node has heard every other; seconds from the start of the youngest to that.
    fn all_hear_all(&mut self) -> Result<f64> {
        let pairs = |field: &Self| -> Vec<(String, String)> {
            let names = || field.nodes.keys();
            let pairs =
                names().flat_map(|a| names().filter(move |b| *b != a).map(move |b| (a.clone(), b.clone())));
            pairs.collect()
        };
        self.until(|field| pairs(field).iter().all(|pair| field.hearings.contains_key(pair)))?;
        let last = pairs(self).iter().filter_map(|pair| self.hearings.get(pair)).max().copied();
        Ok((last.unwrap_or_default().saturating_sub(self.started)) as f64 / 1e9)
    }

    /// Waits until every running node sees a node in such a state; seconds from `since` to that.
    fn all_see(&mut self, name: &str, is: impl Fn(&str) -> bool, since: u64) -> Result<f64> {
        let seen = |field: &Self| -> Option<Vec<u64>> {
            let at = |observer: &String| {
                let states = field.states.get(&(observer.clone(), name.to_owned()))?;
                states.iter().find(|(at, state)| *at > since && is(state)).map(|(at, _)| *at)
            };
            field.nodes.keys().map(at).collect()
        };
        self.until(|field| seen(field).is_some())?;
        let last = seen(self).and_then(|times| times.into_iter().max()).context("no node runs")?;
        Ok(last.saturating_sub(since) as f64 / 1e9)
    }

    fn until(&mut self, holds: impl Fn(&Self) -> bool) -> Result<()> {
        while !holds(self) {
            let (by, at, news) =
                self.news.recv_timeout(PATIENCE).context("the nodes have nothing more to tell")?;
            self.take(by, at, news);
        }
        Ok(())
    }

    /// Takes in what the nodes tell for so long.
    fn listen_for(&mut self, time: Duration) -> Result<()> {
        let begun = now_ns();
        while seconds_since(begun) < time.as_secs_f64() {
            let (by, at, news) =
                self.news.recv_timeout(PATIENCE).context("a node has ended or stands still")?;
            self.take(by, at, news);
        }
        Ok(())
    }

    fn take(&mut self, by: String, at: u64, news: News) {
        match news {
            News::Starting => self.started = at,
            News::Listening(address) => {
                if let Some((_, known)) = self.nodes.get_mut(&by) {
                    *known = address;
                }
            }
            News::Heard(node) => {
                self.hearings.insert((by, node), at);
            }
            News::Applied(count) => {
                self.applied.insert(by, count);
            }
            News::State(node, state) => {
                let states = self.states.entry((by.clone(), node.clone())).or_default();
                let was_live = states.last().is_some_and(|(_, before)| before == State::Live.name());
                states.push((at, state.clone()));
                if was_live && self.nodes.contains_key(&node) && self.nodes.contains_key(&by) {
                    self.alarms.push((by, node, state));
                }
            }
        }
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        for (child, _) in self.nodes.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

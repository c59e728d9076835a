//! Nodes of tidings, each with one cache.
//!
//! In a burst the publisher removes keys that nobody asked for before, and a subscriber reads its cache's counter of
//! applied changes: nothing runs but what every service with a cache runs. At a pace the publisher inserts values, and
//! a subscriber holds all the keys; it hears of each eviction within the wake-up that follows it, on the thread that
//! evicted.

use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context as Polling, Poll, Wake, Waker};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::Stream;
use tidings::{Cache, EventKind, Item, Node, RawSubscription};

use crate::drive::Publisher;
use crate::message::{CAPACITY_BESIDE_RESIDENT, KEY_BYTES, Message, Sink, TOPIC, value, write_key};
use crate::setup::{Pace, Setup, System};

/// Marks the last message of a phase: in a burst a change of the cache of this name, whose key is the number of messages
/// sent so far, at a pace metadata.
const END: &str = "end";

/// How long the nodes may take to follow each other.
const FORMING: Duration = Duration::from_secs(20);

/// How often a subscriber looks at its counter in a burst.
const LOOK: Duration = Duration::from_millis(1);

/// The cache's value.
type Value = Bytes;

pub(crate) struct Tidings {
    cache: Cache<String, Value>,
    end: Cache<String, Value>,
    _node: Node,
    pace: Pace,
    key: String,
    value: Value,
}

impl Tidings {
    pub(crate) async fn connect(setup: &Setup) -> Result<Self> {
        let node = start(setup).await?;
        let all = setup.peers.len() + 1;
        let formed = async {
            while node.members().len() < all || node.readiness().is_err() {
                tokio::time::sleep(LOOK).await;
            }
        };
        let in_time = tokio::time::timeout(FORMING, formed).await.is_ok();
        ensure!(in_time, "the cluster has not formed: {:?}", node.readiness());
        Ok(Self {
            cache: open(&node, setup)?,
            end: node.cache(END).open()?,
            _node: node,
            pace: setup.pace,
            key: String::new(),
            value: value(),
        })
    }
}

impl Publisher for Tidings {
    async fn publish(&mut self, message: Message) -> Result<()> {
        write_key(message.sequence, &mut self.key);
        match self.pace {
            Pace::Burst => {
                self.cache.remove(&self.key)?;
                if message.last {
                    self.end.remove(&(message.sequence + 1).to_string())?;
                }
            }
            Pace::PerSecond(_) => {
                let write = self.cache.write();
                let write = if message.last { write.metadata(END, "") } else { write };
                write.insert(self.key.clone(), self.value.clone())?;
            }
        }
        Ok(())
    }

    /// Nothing: the node's own thread sends whatever is in its log.
    async fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

pub(crate) async fn subscribe(setup: &Setup, sink: Sink, ready: impl FnOnce(&Node)) -> Result<()> {
    let node = start(setup).await?;
    ensure!(node.fresh(FORMING).await, "in doubt: {:?}", node.doubts());
    let cache = open(&node, setup)?;
    let mut key = String::new();
    for sequence in 0..setup.resident {
        write_key(sequence, &mut key);
        cache.get_or_load(&key, || async { Ok::<_, ()>(value()) }).await.ok().context("a fill failed")?;
    }
    cache.settle();
    match setup.pace {
        Pace::Burst => count(&node, &cache, setup, sink, ready).await,
        Pace::PerSecond(_) => {
            let events = cache.erased().subscribe_raw().kinds([EventKind::Invalidated]).start()?;
            let inline = Inline::start(events, sink)?;
            ready(&node);
            // The node's thread does the rest, until this process is ended.
            std::future::pending::<()>().await;
            drop(inline);
            Ok(())
        }
    }
}

/// Reports the cache's counter, until this process is ended.
async fn count(
    node: &Node,
    cache: &Cache<String, Value>,
    setup: &Setup,
    mut sink: Sink,
    ready: impl FnOnce(&Node),
) -> Result<()> {
    let end: Cache<String, Value> = node.cache(END).open()?;
    let mut ends = end.subscribe().start()?;
    ready(node);
    let mut looks = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            item = ends.next() => {
                let Some(Item::Event(event)) = item else { anyhow::bail!("the end was missed") };
                sink.end_at(event.key().context("an end without a number")?.parse()?);
            }
            _ = looks.tick() => {}
        }
        let applied = cache.counts().applied();
        if sink.has_counted(applied)? {
            let evicted = cache.counts().invalidated();
            ensure!(setup.resident == 0 || evicted == applied, "{evicted} of {applied} changes evicted");
            let lost: u64 =
                node.members().iter().map(|member| member.gaps + member.resets + member.duplicates).sum();
            ensure!(lost == 0, "{lost} gaps, resets and duplicates");
        }
    }
}

/// Reads a subscription within its own wake-up, that is on the thread that told the event and right after it did.
struct Inline {
    state: Mutex<(RawSubscription, Sink)>,
    this: Weak<Self>,
}

impl Inline {
    fn start(events: RawSubscription, sink: Sink) -> Result<Arc<Self>> {
        let inline = Arc::new_cyclic(|this| Self { state: Mutex::new((events, sink)), this: this.clone() });
        inline.read()?;
        Ok(inline)
    }

    fn read(&self) -> Result<()> {
        let waker = Waker::from(self.this.upgrade().context("ended")?);
        let mut state = self.state.lock().expect("no reader panicked");
        let (events, sink) = &mut *state;
        while let Poll::Ready(item) = Pin::new(&mut *events).poll_next(&mut Polling::from_waker(&waker)) {
            let Some(Item::Event(event)) = item else { anyhow::bail!("events were missed: {item:?}") };
            for key in event.keys() {
                let sequence = std::str::from_utf8(&key[key.len() - KEY_BYTES..])?.parse()?;
                sink.take(Message { sequence, timed: true, last: !event.metadata.is_empty() })?;
            }
        }
        Ok(())
    }
}

impl Wake for Inline {
    fn wake(self: Arc<Self>) {
        if let Err(error) = self.read() {
            eprintln!("a subscriber cannot go on: {error:#}");
            std::process::exit(1);
        }
    }
}

async fn start(setup: &Setup) -> Result<Node> {
    let seeds = setup.peers.iter().filter_map(|peer| peer.data).map(|address| address.to_string());
    let node = Node::builder("bench")
        .node_id(format!("n{}", setup.peers.len()))
        .seeds(seeds)
        // No node has a former life.
        .write_horizon(Duration::ZERO);
    let own_thread = setup.system == System::TidingsThread;
    Ok(if own_thread { node.start().await? } else { node.on_calling_runtime().start().await? })
}

fn open(node: &Node, setup: &Setup) -> Result<Cache<String, Value>> {
    // Nothing is displaced.
    Ok(node.cache(TOPIC).max_capacity(2 * setup.resident + CAPACITY_BESIDE_RESIDENT).open()?)
}

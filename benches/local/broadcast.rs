//! `moka` and `tokio::sync::broadcast` to tasks of one current-thread runtime: the usual way to change a cache and to
//! fan that out in a process.

use std::hint::black_box;
use std::sync::Arc;

use moka::sync::Cache;
use tidings_benches::interleave::{Case, Sample, timed};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::broadcast;
use tokio::task::{JoinSet, yield_now};

/// Subscribers, each a task.
pub(crate) const SUBSCRIBERS: u64 = 16;

/// Events of one sample.
pub(crate) const EVENTS: u64 = 8_192;

/// Events published before the subscribers get their turn, when they flow fast. When they do not, a turn is one event,
/// and every delivery wakes a task.
pub(crate) const TURN: u64 = 64;

pub(crate) const BUSY: &str = "moka and tokio broadcast, busy";
pub(crate) const IDLE: &str = "moka and tokio broadcast, a wake each";

/// Never reached.
const CAPACITY: u64 = 1_000_000;

/// What a change event is like: its parts are not copied per subscriber.
#[derive(Debug)]
struct Event {
    key: String,
    sequence: u64,
}

pub(crate) fn cases() -> Vec<Case<'static>> {
    let case = |name, turn| {
        let runtime = Builder::new_current_thread().build().expect("a runtime without drivers");
        Case { name, sample: Box::new(move || sample(&runtime, turn)) }
    };
    vec![case(BUSY, TURN), case(IDLE, 1)]
}

/// Per delivery; the change that is told is part of it.
fn sample(runtime: &Runtime, turn: u64) -> Sample {
    let cache: Cache<String, ()> = Cache::new(CAPACITY);
    let (sender, _) = broadcast::channel::<Arc<Event>>(1_024);
    let mut subscribers = JoinSet::new();
    for _ in 0..SUBSCRIBERS {
        let mut events = sender.subscribe();
        subscribers.spawn_on(
            async move {
                while let Ok(event) = events.recv().await {
                    black_box((&event.key, event.sequence));
                }
            },
            runtime.handle(),
        );
    }
    runtime.block_on(yield_now());
    let names: Vec<String> = (0..EVENTS).map(|number| format!("k:{number:022}")).collect();
    let work = async {
        for (sequence, key) in (0..EVENTS).zip(&names) {
            cache.invalidate(key);
            let event = Event { key: key.clone(), sequence };
            sender.send(Arc::new(event)).expect("subscribers wait");
            if sequence % turn == turn - 1 {
                yield_now().await;
            }
        }
        drop(sender);
        subscribers.join_all().await;
    };
    timed(EVENTS * SUBSCRIBERS, || runtime.block_on(work))
}

//! `tokio::sync::broadcast` to tasks of one current-thread runtime: the usual way to fan events out in a process.

use std::hint::black_box;
use std::sync::Arc;

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

pub(crate) const BUSY: &str = "tokio broadcast, busy";
pub(crate) const IDLE: &str = "tokio broadcast, a wake each";

/// What a change event is like: its parts are not copied per subscriber.
#[derive(Debug)]
struct Event {
    key: Vec<u8>,
    sequence: u64,
}

pub(crate) fn cases() -> Vec<Case<'static>> {
    let case = |name, turn| {
        let runtime = Builder::new_current_thread().build().expect("a runtime without drivers");
        Case { name, sample: Box::new(move || sample(&runtime, turn)) }
    };
    vec![case(BUSY, TURN), case(IDLE, 1)]
}

/// Per delivery.
fn sample(runtime: &Runtime, turn: u64) -> Sample {
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
    let work = async {
        for sequence in 0..EVENTS {
            let event = Event { key: vec![b'k'; 24], sequence };
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

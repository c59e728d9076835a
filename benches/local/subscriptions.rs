//! Subscriptions of tidings, to tasks of one current-thread runtime: the same events and turns as `broadcast`.

use std::hint::black_box;

use tidings::{Cache, CacheBuilder, Domain, Item, Mode};
use tidings_benches::interleave::{Case, Sample, timed};
use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinSet, yield_now};

use crate::broadcast::{EVENTS, SUBSCRIBERS, TURN};

pub(crate) const BUSY: &str = "tidings events, busy";
pub(crate) const IDLE: &str = "tidings events, a wake each";
pub(crate) const BUSY_RAW: &str = "tidings raw events, busy";
pub(crate) const IDLE_RAW: &str = "tidings raw events, a wake each";

/// What is part of every other figure here, sixteen deliveries sharing it: the change that is told.
pub(crate) const CHANGE: &str = "tidings change that nobody hears";

/// Whether keys are decoded for each subscriber.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keys {
    Typed,
    Raw,
}

pub(crate) fn cases() -> Vec<Case<'static>> {
    let case = |name, turn, keys| {
        let runtime = Builder::new_current_thread().build().expect("a runtime without drivers");
        Case { name, sample: Box::new(move || sample(&runtime, turn, keys, SUBSCRIBERS)) }
    };
    let runtime = Builder::new_current_thread().build().expect("a runtime without drivers");
    vec![
        Case { name: CHANGE, sample: Box::new(move || sample(&runtime, TURN, Keys::Raw, 0)) },
        case(BUSY, TURN, Keys::Typed),
        case(IDLE, 1, Keys::Typed),
        case(BUSY_RAW, TURN, Keys::Raw),
        case(IDLE_RAW, 1, Keys::Raw),
    ]
}

/// Per delivery, or per change where there is none; the change that is told is part of it.
fn sample(runtime: &Runtime, turn: u64, keys: Keys, count: u64) -> Sample {
    let builder = CacheBuilder::<String, ()>::new(&Domain::standalone(), "bench").mode(Mode::Local);
    let cache = builder.open().expect("a new domain");
    let mut subscribers = JoinSet::new();
    for _ in 0..count {
        subscribe(&cache, keys, &mut subscribers, runtime);
    }
    runtime.block_on(yield_now());
    let names: Vec<String> = (0..EVENTS).map(|number| format!("k:{number:022}")).collect();
    let work = async {
        for (sequence, key) in (0..EVENTS).zip(&names) {
            cache.remove(key).expect("an open cache");
            if sequence % turn == turn - 1 {
                yield_now().await;
            }
        }
        cache.close();
        subscribers.join_all().await;
    };
    timed(EVENTS * count.max(1), || runtime.block_on(work))
}

fn subscribe(cache: &Cache<String, ()>, keys: Keys, tasks: &mut JoinSet<()>, runtime: &Runtime) {
    match keys {
        Keys::Typed => {
            let mut events = cache.subscribe().start().expect("an open cache");
            let read = async move {
                while let Some(Item::Event(event)) = events.next().await {
                    black_box((event.key(), event.position));
                }
            };
            tasks.spawn_on(read, runtime.handle());
        }
        Keys::Raw => {
            let mut events = cache.erased().subscribe_raw().start().expect("an open cache");
            let read = async move {
                while let Some(Item::Event(event)) = events.next().await {
                    black_box((event.keys(), event.position));
                }
            };
            tasks.spawn_on(read, runtime.handle());
        }
    }
}

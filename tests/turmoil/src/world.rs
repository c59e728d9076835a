//! What all processes, and what is done to them, share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::chance::mix;
use crate::record::{Record, Terms};
use crate::weather::Weather;

/// A node, and its incarnation.
pub(crate) type Life = (usize, u64);

/// How a process is, as it says of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// When it said so.
    pub(crate) at: Duration,
    /// Ready, nothing is doubted, and everything that so many live members did is applied.
    pub(crate) sound_with: Option<usize>,
    /// It knows that another process has its place.
    pub(crate) gives_way: bool,
    /// What its cache has of every key, if nobody writes any more.
    pub(crate) values: Vec<u64>,
    /// How often it missed what a peer had forgotten.
    pub(crate) resets: u64,
    /// Loads of which it handed on what they had brought.
    pub(crate) shared: u64,
    /// How often it asked somebody else for a peer's changes from then on.
    pub(crate) redirected: u64,
    /// The lives that it hears, its own first.
    pub(crate) hears: Vec<Life>,
    /// The lives that it knows of, its own first.
    pub(crate) knows: Vec<Life>,
    /// What is wrong, for people.
    pub(crate) doubts: String,
}

/// How a process that was told to leave has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Goodbye,
    /// It could not reach somebody.
    Silent,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) weather: Arc<Mutex<Weather>>,
    record: Mutex<Record>,
    /// Of every process that lives, by its number.
    reports: Mutex<BTreeMap<u64, Report>>,
    /// Which process had which life.
    lives: Mutex<BTreeMap<Life, u64>>,
    /// Processes that have ended by themselves.
    ended: Mutex<Vec<(u64, End)>>,
    /// What was done, and when, for people.
    events: Mutex<Vec<String>>,
}

impl World {
    pub(crate) fn new(seed: u64, terms: Terms) -> Self {
        Self {
            weather: Arc::new(Mutex::new(Weather::new(mix(seed)))),
            record: Mutex::new(Record::new(terms)),
            reports: Mutex::default(),
            lives: Mutex::default(),
            ended: Mutex::default(),
            events: Mutex::default(),
        }
    }

    pub(crate) fn weather(&self) -> MutexGuard<'_, Weather> {
        self.weather.lock().expect("nothing panics while it is locked")
    }

    pub(crate) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("nothing panics while it is locked")
    }

    pub(crate) fn reports(&self) -> MutexGuard<'_, BTreeMap<u64, Report>> {
        self.reports.lock().expect("nothing panics while it is locked")
    }

    /// A process says how it is.
    pub(crate) fn report(&self, process: u64, report: Report) {
        let own = report.knows.iter().take(1).map(|own| (*own, process));
        self.lives.lock().expect("nothing panics while it is locked").extend(own);
        self.reports().insert(process, report);
    }

    /// Whether a process, or any that it hears, knows of another one, `by`, of a node, by what they said of themselves
    /// last. Who hears an earlier process of that node may take it to be alone, for all it knows.
    pub(crate) fn knows(&self, process: u64, by: u64, node: usize) -> bool {
        let (reports, lives) =
            (self.reports(), self.lives.lock().expect("nothing panics while it is locked"));
        let Some(own) = reports.get(&process) else { return false };
        let is_earlier = |life: &Life| lives.get(life).is_some_and(|process| *process < by);
        let knows = |report: &Report| {
            let alone = |life: &Life| own.hears.contains(life) && is_earlier(life);
            report.knows.iter().any(|life| life.0 == node && !alone(life))
        };
        let heard =
            reports.values().filter(|report| report.knows.first().is_some_and(|it| own.hears.contains(it)));
        heard.chain([own]).any(knows)
    }

    pub(crate) fn ended(&self) -> MutexGuard<'_, Vec<(u64, End)>> {
        self.ended.lock().expect("nothing panics while it is locked")
    }

    /// Takes note of what is done.
    pub(crate) fn note(&self, now: Duration, event: impl Into<String>) {
        let event = format!("{now:?}: {}", event.into());
        self.events.lock().expect("nothing panics while it is locked").push(event);
    }

    /// What was done, in order.
    pub(crate) fn events(&self) -> Vec<String> {
        self.events.lock().expect("nothing panics while it is locked").clone()
    }
}

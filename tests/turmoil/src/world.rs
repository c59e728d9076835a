//! What all processes, and what is done to them, share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::chance::mix;
use crate::record::{Record, Terms};
use crate::weather::Weather;

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
    /// The nodes that it hears, itself among them.
    pub(crate) hears: Vec<usize>,
    /// The nodes that it knows of.
    pub(crate) knows: Vec<usize>,
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

    /// Whether a process, or any that it hears, knows of a node, by what they said of themselves last.
    pub(crate) fn knows(&self, process: u64, node: usize) -> bool {
        let reports = self.reports();
        let Some(own) = reports.get(&process) else { return false };
        // A process with its own id is none that it hears.
        let hears = |report: &&Report| {
            report.knows.first() != own.knows.first()
                && report.knows.first().is_some_and(|it| own.hears.contains(it))
        };
        let heard = reports.values().filter(hears);
        heard.chain([own]).any(|report| report.knows.contains(&node))
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

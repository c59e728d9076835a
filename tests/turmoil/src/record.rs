//! The system of record, what was told when, and the judge of every read.

use std::collections::BTreeMap;
use std::time::Duration;

/// Keys that all nodes read and write.
pub(crate) const KEYS: u64 = 24;

/// Complaints that are kept.
const COMPLAINTS_MAX: usize = 20;

#[derive(Debug)]
struct Write {
    /// Who makes it, while that process lives.
    host: Option<usize>,
    key: u64,
    version: Option<u64>,
    /// Whether everybody knew the writer, so that its changes are covered.
    counts: bool,
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Hits that were judged.
    pub(crate) hits: u64,
    /// Of these, how many a member had changed already.
    pub(crate) stale: u64,
    /// Loads that were judged.
    pub(crate) loads: u64,
    /// Changes of values.
    pub(crate) writes: u64,
    /// Processes that were killed.
    pub(crate) crashes: u64,
    /// Cuts, losses and delays.
    pub(crate) faults: u64,
}

#[derive(Debug)]
pub(crate) struct Record {
    bound: Duration,
    /// By key and version: when everybody might have known, once somebody was told of it.
    told: Vec<Vec<Option<Duration>>>,
    open: BTreeMap<u64, Write>,
    next: u64,
    /// Nobody writes any more.
    pub(crate) quiet: bool,
    pub(crate) tally: Tally,
    pub(crate) complaints: Vec<String>,
}

impl Record {
    pub(crate) fn new(bound: Duration) -> Self {
        let told = vec![vec![None]; KEYS as usize];
        let (open, tally) = (BTreeMap::new(), Tally::default());
        Self { bound, told, open, next: 0, quiet: false, tally, complaints: Vec::new() }
    }

    pub(crate) fn newest(&self, key: u64) -> u64 {
        self.told[key as usize].len() as u64 - 1
    }

    /// Whether no write is under way.
    pub(crate) fn is_settled(&self) -> bool {
        self.open.is_empty()
    }

    /// A write begins that a host will tell its peers of.
    pub(crate) fn begin(&mut self, host: usize, key: u64, counts: bool) -> u64 {
        self.next += 1;
        self.open.insert(self.next, Write { host: Some(host), key, version: None, counts });
        self.tally.writes += 1;
        self.next
    }

    /// It lands.
    pub(crate) fn commit(&mut self, write: u64) -> u64 {
        let key = self.open[&write].key;
        let version = self.append(key);
        if let Some(write) = self.open.get_mut(&write) {
            write.version = Some(version);
        }
        version
    }

    fn append(&mut self, key: u64) -> u64 {
        self.told[key as usize].push(None);
        self.newest(key)
    }

    /// Whether everybody knows the writer by now, so that its change is covered.
    pub(crate) fn counts(&mut self, write: u64, is_known: bool) {
        if let Some(write) = self.open.get_mut(&write) {
            write.counts |= is_known;
        }
    }

    /// Its host has told its peers. Returns what it wrote.
    pub(crate) fn told(&mut self, write: u64, now: Duration) -> Option<(u64, u64)> {
        let Write { key, version, counts, .. } = self.open.remove(&write)?;
        let version = version?;
        if counts {
            self.told[key as usize][version as usize] = Some(now);
        }
        Some((key, version))
    }

    /// A host is no more. What it wrote and could not tell is covered from now on; returns the writes that may still
    /// land.
    pub(crate) fn died(&mut self, host: usize, now: Duration) -> Vec<u64> {
        self.tally.crashes += 1;
        let (mut landed, mut under_way) = (Vec::new(), Vec::new());
        for (number, write) in self.open.iter_mut().filter(|(_, write)| write.host == Some(host)) {
            write.host = None;
            if write.version.is_some() { landed.push(*number) } else { under_way.push(*number) }
        }
        for number in landed {
            self.told(number, now);
        }
        under_way
    }

    /// A write of a process that is no more lands, or never will.
    pub(crate) fn lands(&mut self, write: u64, lands: bool, now: Duration) {
        if lands {
            self.commit(write);
            self.told(write, now);
        } else {
            self.open.remove(&write);
        }
    }

    /// Judges what a host read at a moment: it is not older than what that host had seen, nor than the bound allows.
    pub(crate) fn judge(
        &mut self,
        what: &str,
        host: usize,
        (key, version): (u64, u64),
        (seen, at): (u64, Duration),
    ) {
        let later = &self.told[key as usize][version as usize + 1..];
        let first = later.iter().flatten().min().copied();
        self.tally.stale += u64::from(first.is_some_and(|told| told < at));
        if version < seen {
            self.complain(format!(
                "{what} of key {key} on n{host} at {at:?} is version {version}, after {seen} was seen"
            ));
        }
        if let Some(told) = first.filter(|told| *told + self.bound <= at) {
            self.complain(format!(
                "{what} of key {key} on n{host} at {at:?} is version {version}, superseded at {told:?}"
            ));
        }
    }

    pub(crate) fn complain(&mut self, complaint: String) {
        if self.complaints.len() < COMPLAINTS_MAX {
            self.complaints.push(complaint);
        }
    }
}

//! The system of record, what was told when, and the judge of every read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

/// Keys that all nodes read and write: so many that one is often not changed for longer than the bound, which would
/// evict what is too old.
pub(crate) const KEYS: u64 = 48;

/// Complaints that are kept.
const COMPLAINTS_MAX: usize = 20;

/// How long ago all may have been well at most, so that it counts as well now.
const WELL_WITHIN: Duration = Duration::from_secs(1);

/// What a node says of itself may be so old: nobody is given up sooner than a grace without this after all were well.
const LATE: Duration = Duration::from_secs(2);

/// What is promised.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// How old an unmarked hit may be.
    pub(crate) bound: Duration,
    /// The longest that a write may be under way when its process dies, or is replaced.
    pub(crate) horizon: Duration,
    /// A cut that is shorter breaks no promise.
    pub(crate) grace: Duration,
}

#[derive(Debug)]
struct Write {
    /// Who makes it, while that process lives.
    process: Option<u64>,
    by: u64,
    key: u64,
    /// Whether its cache knows of it from the beginning, and a node that leaves waits for it.
    through: bool,
    /// Which version it made, and when.
    landed: Option<(u64, Duration)>,
    /// Whether everybody knew the writer, so that its changes are covered.
    counts: bool,
    /// It is covered if it lands until then.
    until: Duration,
}

/// A version of a key.
#[derive(Clone, Copy, Debug, Default)]
struct Version {
    landed: Duration,
    /// When everybody might have known, once somebody was told of it.
    told: Option<Duration>,
    /// Who made it, for people.
    by: u64,
    /// What became of it, for people.
    fate: &'static str,
}

/// How a write was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// The cache took it.
    Well,
    /// The cache refused it.
    Refused,
    /// Its process died: whoever knew it has to cover it.
    Dead,
}

/// What a process read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Read<'a> {
    /// How, for people.
    pub(crate) what: &'static str,
    pub(crate) process: u64,
    /// Which that is, for people.
    pub(crate) who: &'a str,
    pub(crate) key: u64,
    pub(crate) version: u64,
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
    /// Of these, how many counted for the bound only once a cut that was too long had ended.
    pub(crate) held: u64,
    /// Changes that their processes could not tell, so that another had to.
    pub(crate) orphans: u64,
    /// Hits that were older than a change by a node of which nobody who was heard can have known.
    pub(crate) strange: u64,
}

#[derive(Debug)]
pub(crate) struct Record {
    terms: Terms,
    /// By key.
    versions: Vec<Vec<Version>>,
    open: BTreeMap<u64, Write>,
    next: u64,
    /// When all were well last: each applied what all others did.
    well: Duration,
    /// What was told when some may have been given up, with its process: it has to be known once all are well.
    held: Vec<(u64, u64, u64)>,
    /// What was told uncovered, with its process. Peers get it later, or never.
    uncovered: Vec<(u64, u64)>,
    /// Which node each process is, by its number.
    nodes: Vec<usize>,
    /// The processes that were there when all were well last: each knew all others.
    acquainted: BTreeSet<u64>,
    /// Processes of which another one may have the place, and since when.
    replaced: BTreeMap<u64, Duration>,
    /// Processes that were told to leave.
    leaving: BTreeSet<u64>,
    /// Keys whose last change nobody has to know, until another process changes them.
    orphans: Vec<u64>,
    /// Nobody writes any more.
    pub(crate) quiet: bool,
    pub(crate) tally: Tally,
    pub(crate) complaints: Vec<String>,
}

impl Record {
    pub(crate) fn new(terms: Terms) -> Self {
        Self {
            terms,
            versions: vec![vec![Version::default()]; KEYS as usize],
            open: BTreeMap::new(),
            next: 0,
            well: Duration::ZERO,
            held: Vec::new(),
            uncovered: Vec::new(),
            nodes: Vec::new(),
            acquainted: BTreeSet::new(),
            replaced: BTreeMap::new(),
            leaving: BTreeSet::new(),
            orphans: Vec::new(),
            quiet: false,
            tally: Tally::default(),
            complaints: Vec::new(),
        }
    }

    pub(crate) fn newest(&self, key: u64) -> u64 {
        self.versions[key as usize].len() as u64 - 1
    }

    /// The newest version of every key.
    pub(crate) fn all_newest(&self) -> Vec<u64> {
        (0..KEYS).map(|key| self.newest(key)).collect()
    }

    /// Whether no write is under way, and all are to be known.
    pub(crate) fn is_settled(&self) -> bool {
        self.open.is_empty() && self.held.is_empty() && self.orphans.is_empty()
    }

    /// A write begins that a process will tell its peers of. `through`: its cache knows of it.
    pub(crate) fn begin(&mut self, process: u64, key: u64, through: bool, counts: bool) -> u64 {
        self.next += 1;
        let (by, until) = (process, Duration::MAX);
        let write = Write { process: Some(process), by, key, through, landed: None, counts, until };
        self.open.insert(self.next, write);
        self.tally.writes += 1;
        self.next
    }

    /// It lands.
    pub(crate) fn commit(&mut self, write: u64, now: Duration) -> u64 {
        let Write { key, by, .. } = self.open[&write];
        self.versions[key as usize].push(Version { landed: now, told: None, by, fate: "under way" });
        let version = self.newest(key);
        if let Some(write) = self.open.get_mut(&write) {
            write.landed = Some((version, now));
        }
        version
    }

    /// Whether everybody knows the writer by now, so that its change is covered.
    pub(crate) fn counts(&mut self, write: u64, is_known: bool) {
        if let Some(write) = self.open.get_mut(&write) {
            write.counts |= is_known;
        }
    }

    /// It is told, or cannot be any more. Returns what it wrote.
    pub(crate) fn told(&mut self, write: u64, told: Told, now: Duration) -> Option<(u64, u64)> {
        let Write { process, key, landed, counts, until, .. } = self.open.remove(&write)?;
        let (version, landed) = landed?;
        let replaced = process.and_then(|process| self.replaced.get(&process)).copied();
        let until = replaced.map_or(until, |at| until.min(at + self.terms.horizon));
        let (mut at, mut fate) = (None, "uncovered");
        if told == Told::Refused || landed > until {
            fate = self.orphan(key);
        } else if !counts {
            match process {
                Some(process) if told == Told::Well => self.uncovered.push((process, key)),
                _ => fate = self.orphan(key),
            }
        } else if now < self.well + self.terms.grace - LATE {
            (at, fate) = (Some(now), if told == Told::Well { "told" } else { "died with its process" });
        } else if let Some(process) = process.filter(|_| told == Told::Well) {
            self.tally.held += 1;
            self.held.push((process, key, version));
            fate = "told after a cut that was too long";
        } else {
            // Whoever is cut off takes with it what it could not tell.
            fate = self.orphan(key);
        }
        let version_of_key = &mut self.versions[key as usize][version as usize];
        (version_of_key.told, version_of_key.fate) = (at, fate);
        Some((key, version))
    }

    /// Another process has to change the key.
    fn orphan(&mut self, key: u64) -> &'static str {
        self.tally.orphans += 1;
        self.orphans.push(key);
        "left to others"
    }

    /// Whether a process has writes that have not landed.
    pub(crate) fn writes(&self, process: u64) -> bool {
        self.open.values().any(|write| write.process == Some(process) && write.landed.is_none())
    }

    /// Takes a key that has to be changed, if all are well.
    pub(crate) fn adopt(&mut self, now: Duration) -> Option<u64> {
        if now > self.well + WELL_WITHIN { None } else { self.orphans.pop() }
    }

    /// The next process is of this node. Returns its number.
    pub(crate) fn starts(&mut self, node: usize) -> u64 {
        self.nodes.push(node);
        self.nodes.len() as u64 - 1
    }

    /// All are well: each has applied what all others did.
    pub(crate) fn all_well(&mut self, now: Duration, processes: impl Iterator<Item = u64>) {
        self.well = now;
        self.acquainted = processes.collect();
        for (_, key, version) in self.held.drain(..) {
            self.versions[key as usize][version as usize].told = Some(now);
        }
    }

    /// From now on another process may have the place of this one.
    pub(crate) fn replaced(&mut self, process: u64, now: Duration) {
        self.replaced.entry(process).or_insert(now);
    }

    /// The process that might have had its place has not.
    pub(crate) fn stays(&mut self, process: u64) {
        self.replaced.remove(&process);
    }

    /// A process is told to leave. Of what it writes elsewhere by itself its node knows nothing, and may say goodbye.
    pub(crate) fn leaves(&mut self, process: u64) {
        self.leaving.insert(process);
    }

    pub(crate) fn is_leaving(&self, process: u64) -> bool {
        self.leaving.contains(&process)
    }

    /// A process ends by itself. What it has not told by now, nobody has to know.
    pub(crate) fn left(&mut self, process: u64) {
        self.replaced.insert(process, Duration::ZERO);
    }

    /// A process is no more. What it wrote and could not tell is covered from now on; returns the writes that may still
    /// land.
    pub(crate) fn died(&mut self, process: u64, now: Duration) -> Vec<u64> {
        let (mut landed, mut under_way) = (Vec::new(), Vec::new());
        let replaced = self.replaced.get(&process).copied();
        let until = replaced.unwrap_or(now) + self.terms.horizon;
        let leaves = self.leaving.contains(&process);
        for (number, write) in self.open.iter_mut().filter(|(_, write)| write.process == Some(process)) {
            write.process = None;
            write.until = if leaves && !write.through { Duration::ZERO } else { until };
            if write.landed.is_some() { landed.push(*number) } else { under_way.push(*number) }
        }
        for number in landed {
            self.told(number, Told::Dead, now);
        }
        // What nobody may have heard of dies with it.
        let lost = self.held.extract_if(.., |(of, ..)| *of == process).map(|(_, key, _)| key);
        let lost: Vec<_> =
            lost.chain(self.uncovered.extract_if(.., |(of, _)| *of == process).map(|(_, key)| key)).collect();
        for key in lost {
            self.orphan(key);
        }
        under_way
    }

    /// A write of a process that is no more lands, or never will.
    pub(crate) fn lands(&mut self, write: u64, lands: bool, now: Duration) {
        if lands {
            self.commit(write, now);
            self.told(write, Told::Dead, now);
        } else {
            self.open.remove(&write);
        }
    }

    /// Judges what a process read at a moment: it is not older than what that process had seen, nor than the bound
    /// allows. `knows`: whether the process, or any that it hears, knows of a process of a node.
    pub(crate) fn judge(
        &mut self,
        read: &Read<'_>,
        seen: u64,
        at: Duration,
        knows: impl Fn(u64, usize) -> bool,
    ) {
        let Read { what, process, who, key, version } = *read;
        let later = &self.versions[key as usize][version as usize + 1..];
        let told = later.iter().filter_map(|version| Some((version.told?, version.by)));
        let stale = told.clone().any(|(told, _)| told < at);
        // Who came while all who knew a node were away cannot know of it before they meet, nor it of them.
        let are_acquainted =
            |by: &u64| [process, *by].iter().all(|process| self.acquainted.contains(process));
        let node = |process: u64| self.nodes[process as usize];
        let knows_process = |by: u64| node(by) != node(process) && knows(by, node(by));
        let (strange, overdue): (Vec<_>, Vec<_>) = told
            .filter(|(told, _)| *told + self.terms.bound <= at)
            .partition(|(_, by)| !are_acquainted(by) && !knows_process(*by));
        self.tally.stale += u64::from(stale);
        self.tally.strange += u64::from(!strange.is_empty());
        if version < seen {
            let history = self.history(key, version);
            self.complain(format!(
                "{what} of key {key} on {who} at {at:?} is version {version}, after {seen} was seen\n{history}"
            ));
        }
        if let Some((told, _)) = overdue.into_iter().min() {
            let history = self.history(key, version);
            self.complain(format!(
                "{what} of key {key} on {who} at {at:?} is version {version}, superseded at {told:?}\n{history}"
            ));
        }
    }

    /// The versions of a key from one on, for people.
    fn history(&self, key: u64, from: u64) -> String {
        let mut said = String::new();
        for (number, Version { landed, told, by, fate }) in
            (0..).zip(&self.versions[key as usize]).skip(from as usize)
        {
            let told = told.map_or_else(String::new, |told| format!(" at {told:?}"));
            let _ =
                writeln!(said, "    version {number} of process {by}: landed at {landed:?}, {fate}{told}");
        }
        said
    }

    pub(crate) fn complain(&mut self, complaint: String) {
        if self.complaints.len() < COMPLAINTS_MAX {
            self.complaints.push(complaint);
        }
    }
}

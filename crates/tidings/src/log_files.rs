//! The directory in which a node writes its log down, so that its next life can serve what this one had done when its
//! process was killed.
//!
//! Plain writes, each before its append returns, and nothing is flushed: what a process has written survives it, but not
//! its machine. `life` says whose log is there, and is put in place, and taken away, as a whole: without it nothing is
//! trusted. Where anything cannot be written it is taken away first, and the node goes on as if it had no log files. Where
//! it cannot be taken away either, the files are stuck: nothing more is appended, so that what they hold is everything,
//! until they can be.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tidings_proto::hash::HASH_VERSION;
use tidings_proto::id::{LaneId, Lanes, LogId, NodeId, Origin};
use tidings_proto::log::{ChangeLog, Distrust, Life, Put, Recovered, Retention, Sink, Unwritten};
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::bus::Bus;
use crate::legacy::Legacy;

/// Says whose log the others are.
const LIFE: &str = "life";

/// Where the next one is written before it takes that name.
const NEXT_LIFE: &str = "life.new";

/// Held locked by the process that writes.
const LOCK: &str = "lock";

/// Begins the names of all others.
const LANE: &str = "lane-";

/// Says which start of this machine it is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// How often it is tried to take away files that are stuck. Nobody can make changes meanwhile.
const STUCK_INTERVAL: Duration = Duration::from_millis(100);

/// The log files cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogFileError {
    /// Another node writes there, of this process or another: give this one a directory of its own, or stop that one.
    #[error("another node has its log files in {}", .0.display())]
    InUse(PathBuf),
    /// They cannot be made or read, or nothing says since when this machine runs: then they could never be trusted.
    #[error("{}", path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// What became of a node's log files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogFileReport {
    /// Whether the log is written down: the node has log files, and could write them so far.
    pub written: bool,
    /// How often they were given up, because they could not be written: at most once a start.
    pub failures: u64,
    /// Whether they can be neither written nor removed now, so that the node makes no changes.
    pub stuck: bool,
    /// Members that have followed the former life of this node to its end since this one began.
    pub followed: u64,
}

/// A node's log files. The directory is locked for as long as the node runs, and nothing is written down after that.
#[derive(Debug)]
pub(crate) struct LogFiles {
    state: Arc<State>,
    _lock: File,
}

#[derive(Debug)]
struct State {
    directory: PathBuf,
    /// This machine, since its last start.
    machine: String,
    /// Locked while the file that says whose log it is comes or goes.
    life: Mutex<()>,
    failed: AtomicBool,
    failures: AtomicU64,
    followed: AtomicU64,
    /// They cannot be written, and could not be taken away so far. Changed while `life` is locked.
    stuck: watch::Sender<bool>,
}

/// What a node begins with that has log files.
pub(crate) struct Opened {
    pub(crate) files: LogFiles,
    /// The former life, if it is to be served.
    pub(crate) legacy: Option<Legacy>,
    pub(crate) log: ChangeLog,
}

/// Makes and locks the directory, reads what the former life has left there, and begins the files of a new log beside it.
pub(crate) async fn open(
    directory: PathBuf,
    (cluster, node): (String, NodeId),
    (lanes, retention, id): (Lanes, Retention, LogId),
) -> Result<Opened, LogFileError> {
    let path = directory.clone();
    let open = move || {
        let files = LogFiles::open(&directory)?;
        let legacy = files.legacy(&cluster, &node);
        let log = files.log(lanes, retention, id);
        // Where nothing can be written, the former life may have been unable to say that its files are not all.
        let legacy = legacy.filter(|_| files.are_written());
        Ok(Opened { files, legacy, log })
    };
    // It may be as much as two files for each lane.
    let opened = spawn_blocking(open).await;
    opened.unwrap_or_else(|error| Err(LogFileError::Unusable { path, source: io::Error::other(error) }))
}

/// Waits until log files are stuck. Then the node makes no changes until they could be taken away; and it takes another
/// incarnation, so that peers doubt the end of this one: they were not told of what had begun by then.
pub(crate) async fn refuse_while_stuck(bus: &Bus) {
    let Some(files) = &bus.log_files else { return };
    let mut stuck = files.state.stuck.subscribe();
    if stuck.wait_for(|stuck| *stuck).await.is_err() {
        return;
    }
    bus.domain.log_stuck(true);
    bus.wants_incarnation(bus.origin().incarnation.next());
    while files.are_stuck() {
        tokio::time::sleep(STUCK_INTERVAL).await;
        files.give_up().await;
    }
    bus.domain.log_stuck(false);
}

impl LogFiles {
    /// Makes the directory if it is not there, and locks it.
    fn open(directory: &Path) -> Result<Self, LogFileError> {
        Self::open_since(directory, Path::new(BOOT_ID))
    }

    /// The same, where this file says which start of the machine it is.
    fn open_since(directory: &Path, boot_id: &Path) -> Result<Self, LogFileError> {
        let unusable = |path: &Path| {
            let path = path.to_owned();
            |source| LogFileError::Unusable { path, source }
        };
        let machine = machine(boot_id).map_err(unusable(boot_id))?;
        // Values may be in there, where they travel.
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(unusable(directory))?;
        let path = directory.join(LOCK);
        let lock = private().create(true).truncate(false).open(&path).map_err(unusable(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(LogFileError::InUse(directory.to_owned())),
            Err(TryLockError::Error(error)) => return Err(unusable(&path)(error)),
        }
        let state = Arc::new(State {
            directory: directory.to_owned(),
            machine,
            life: Mutex::default(),
            failed: AtomicBool::new(false),
            failures: AtomicU64::new(0),
            followed: AtomicU64::new(0),
            stuck: watch::Sender::new(false),
        });
        Ok(Self { state, _lock: lock })
    }

    /// What the former life has left there, if it is this node's and all of it.
    fn recover(&self, cluster: &str, node: &NodeId) -> Result<Recovered, Distrust> {
        let life = fs::read(self.state.path(LIFE)).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Distrust::Missing,
            _ => Distrust::Unreadable,
        })?;
        let life = Life::decode(&life)?;
        life.judge(cluster, node, &self.state.machine)?;
        let read = |lane: LaneId| {
            let read = |turn| fs::read(self.state.path(&lane_file(life.log, lane, turn)));
            let damaged = |_| Distrust::Damaged { lane, why: "a file cannot be read" };
            Ok([read(0).map_err(damaged)?, read(1).map_err(damaged)?])
        };
        let files = life.lanes.ids().map(read).collect::<Result<Vec<_>, _>>()?;
        Recovered::read(life, &files)
    }

    /// The same, to be served to peers.
    fn legacy(&self, cluster: &str, node: &NodeId) -> Option<Legacy> {
        let recovered = self.recover(cluster, node);
        // Whoever could not write for want of room must not find it taken by what nobody reads.
        self.state.remove_all_but(recovered.as_ref().ok().map(|recovered| recovered.life.log));
        match recovered {
            Ok(recovered) => {
                tracing::info!(origin = %recovered.life.origin, open_writes = recovered.open_writes(),
                    "the former life is served from its log files to those who have missed its end");
                Some(Legacy::new(recovered))
            }
            Err(Distrust::Missing) => {
                tracing::info!(directory = %self.state.directory.display(), "no former life has left its log there");
                None
            }
            Err(why) => {
                tracing::warn!(directory = %self.state.directory.display(), %why,
                    "the log files are not used: peers judge the end of the former life as that of any other");
                None
            }
        }
    }

    /// An empty log that is written down beside the last one.
    fn log(&self, lanes: Lanes, retention: Retention, id: LogId) -> ChangeLog {
        ChangeLog::written_down(lanes, retention, id, self.sinks(id, lanes))
    }

    /// Makes the files of a new log. What cannot be made is given up.
    fn sinks(&self, log: LogId, lanes: Lanes) -> Vec<Sink> {
        let sinks = lanes.ids().map(|lane| LaneFiles::create(self.state.clone(), log, lane));
        sinks.collect::<io::Result<_>>().unwrap_or_else(|error| {
            self.state.fail(&error);
            let lost = |_| -> Sink {
                let state = self.state.clone();
                Box::new(move |_| state.check())
            };
            lanes.ids().map(lost).collect()
        })
    }

    /// Says whose the files are from now on, and removes all others.
    pub(crate) async fn belong_to(&self, lanes: Lanes, cluster: &str, (origin, log): (Origin, LogId)) {
        let state = self.state.clone();
        let life = Life {
            cluster: cluster.to_owned(),
            origin,
            log,
            lanes,
            hash_version: HASH_VERSION,
            machine: state.machine.clone(),
        };
        if let Err(error) = spawn_blocking(move || state.belong_to(&life)).await {
            self.state.fail(&io::Error::other(error));
        }
    }

    /// Whether the log could be written down so far.
    pub(crate) fn are_written(&self) -> bool {
        !self.state.failed.load(Ordering::Acquire)
    }

    /// Whether they can be neither written nor taken away: the log takes nothing.
    pub(crate) fn are_stuck(&self) -> bool {
        *self.state.stuck.borrow()
    }

    /// Tries once more to take away what is stuck.
    async fn give_up(&self) {
        let state = self.state.clone();
        // If it did not come to that, the next time.
        let _ = spawn_blocking(move || state.give_up()).await;
    }

    pub(crate) fn report(&self) -> LogFileReport {
        LogFileReport {
            written: self.are_written(),
            failures: self.state.failures.load(Ordering::Relaxed),
            stuck: self.are_stuck(),
            followed: self.state.followed.load(Ordering::Relaxed),
        }
    }

    /// A member has followed the former life to its end.
    pub(crate) fn followed(&self) {
        self.state.followed.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for LogFiles {
    /// Whoever locks the directory next reads what is there for all of it. So nothing more happens in caches that are held on
    /// to without their node: a change would be written down where nobody reads it any more.
    fn drop(&mut self) {
        let _life = self.state.life.lock();
        if !self.state.failed.swap(true, Ordering::AcqRel) {
            self.state.stuck.send_replace(true);
        }
    }
}

impl State {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn belong_to(&self, life: &Life) {
        let written = {
            let _life = self.life.lock();
            if self.failed.load(Ordering::Acquire) {
                return;
            }
            self.replace_life(&life.encode())
        };
        match written {
            Ok(()) => self.remove_all_but(Some(life.log)),
            Err(error) => {
                self.fail(&error);
            }
        }
    }

    fn replace_life(&self, content: &[u8]) -> io::Result<()> {
        let next = self.path(NEXT_LIFE);
        let mut file = private().create(true).truncate(true).open(&next)?;
        file.write_all(content)?;
        fs::rename(next, self.path(LIFE))
    }

    /// Whether more is to be written, and else what that means: whoever takes away what is there has done so by then.
    fn check(&self) -> Result<(), Unwritten> {
        if !self.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let _life = self.life.lock();
        Err(self.unwritten())
    }

    /// What it means that nothing more is written. While `life` is locked.
    fn unwritten(&self) -> Unwritten {
        if *self.stuck.borrow() { Unwritten::Stuck } else { Unwritten::GivenUp }
    }

    /// Takes away what says whose the others are, or what it says.
    fn remove_life(&self) -> io::Result<()> {
        let path = self.path(LIFE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                OpenOptions::new().write(true).truncate(true).open(path).map(drop).map_err(|_| error)
            }
            _ => Ok(()),
        }
    }

    /// Nothing more is written, and nobody trusts what was; or else nothing more is to happen.
    fn fail(&self, error: &io::Error) -> Unwritten {
        let _life = self.life.lock();
        if self.failed.swap(true, Ordering::AcqRel) {
            return self.unwritten();
        }
        self.failures.fetch_add(1, Ordering::Relaxed);
        tracing::error!(directory = %self.directory.display(), %error,
            "the log files cannot be written any more: should this process be killed, peers doubt its end");
        if let Err(error) = self.remove_life() {
            tracing::error!(directory = %self.directory.display(), %error,
                "nor can they be removed, and they would be taken for all: no changes are made until they can");
            self.stuck.send_replace(true);
        }
        self.unwritten()
    }

    /// Tries once more to take away what is stuck.
    fn give_up(&self) {
        let _life = self.life.lock();
        if *self.stuck.borrow() && self.remove_life().is_ok() {
            self.stuck.send_replace(false);
            tracing::info!(directory = %self.directory.display(), "the log files are removed: changes are made again");
        }
    }

    fn remove_all_but(&self, log: Option<LogId>) {
        let kept = log.map(lane_prefix);
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let keeps = |name: &str| kept.as_ref().is_some_and(|kept| name.starts_with(kept));
            let other = name.to_str().is_some_and(|name| name.starts_with(LANE) && !keeps(name));
            if other && let Err(error) = fs::remove_file(entry.path()) {
                tracing::warn!(file = %entry.path().display(), %error, "an old log file cannot be removed");
            }
        }
    }
}

/// The two files of a lane.
struct LaneFiles {
    state: Arc<State>,
    files: [File; 2],
    present: usize,
}

impl LaneFiles {
    fn create(state: Arc<State>, log: LogId, lane: LaneId) -> io::Result<Sink> {
        let create = |turn| {
            let path = state.path(&lane_file(log, lane, turn));
            OpenOptions::new().append(true).create(true).mode(0o600).open(path)
        };
        let files = [create(0)?, create(1)?];
        // The first turn is to the first one.
        let mut lane = Self { state, files, present: 1 };
        Ok(Box::new(move |put| lane.put(put)))
    }

    fn put(&mut self, put: Put<'_>) -> Result<(), Unwritten> {
        self.state.check()?;
        let put = match put {
            Put::Append(bytes) => (&self.files[self.present]).write_all(bytes),
            Put::Turn(bytes) => {
                self.present ^= 1;
                let mut file = &self.files[self.present];
                file.set_len(0).and_then(|()| file.write_all(bytes))
            }
            Put::GiveUp(why) => Err(io::Error::other(why)),
        };
        put.map_err(|error| self.state.fail(&error))
    }
}

/// How a file is written that is for this user alone.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

fn lane_prefix(log: LogId) -> String {
    format!("{LANE}{:016x}-", log.0)
}

fn lane_file(log: LogId, lane: LaneId, turn: usize) -> String {
    format!("{}{}-{turn}", lane_prefix(log), lane.number())
}

/// This machine, since its last start.
fn machine(boot_id: &Path) -> io::Result<String> {
    let id = fs::read_to_string(boot_id)?.trim().to_owned();
    if id.is_empty() { Err(io::Error::other("it is empty")) } else { Ok(id) }
}

#[cfg(test)]
#[path = "log_files_tests.rs"]
mod tests;

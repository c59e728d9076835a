//! The application on a node: it reads, loads and writes, and takes its time.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tidings_cache::{FillToken, Positions, ReadOrFill, TOKEN_TIME};

use crate::chance::Chance;
use crate::history::History;
use crate::node::{Node, lane_of};
use crate::{HOT, KEYS, Micros, QUIET};

/// Calls that may be under way on a node at once.
const OPERATIONS_MAX: usize = 12;

/// A call of the user's code to the system of record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remote {
    /// Not called: another call's loader may run.
    Idle,
    Called,
    Planned,
    Answered(u64),
}

type Cell = Arc<Mutex<Remote>>;
type Loading = Pin<Box<dyn Future<Output = u64>>>;
type Writing = Pin<Box<dyn Future<Output = (u64, Positions)>>>;

enum Kind {
    Load(Cell, Loading),
    Fill(FillToken),
    WriteThrough(Cell, Writing),
    /// Write, then remove.
    Remove,
    Clear,
}

pub(crate) struct Operation {
    id: u64,
    key: u8,
    began: Micros,
    /// What had to be seen when it began.
    settled: u64,
    kind: Kind,
    /// What the system of record read, or made, of it.
    version: Option<u64>,
}

impl Operation {
    pub(crate) fn writes(&self) -> bool {
        matches!(self.kind, Kind::WriteThrough(..) | Kind::Remove)
    }

    pub(crate) fn key(&self) -> u8 {
        self.key
    }

    pub(crate) fn version(&self) -> Option<u64> {
        self.version
    }
}

/// What the world does for an operation: the system of record works, then its answer comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) id: u64,
    pub(crate) works_after: Micros,
    pub(crate) answers_after: Micros,
}

/// The user's code: calls, and waits for the answer.
async fn call(cell: Cell) -> Result<u64, Infallible> {
    let answer = poll_fn(|_| {
        let mut state = cell.lock();
        match *state {
            Remote::Answered(version) => return Poll::Ready(version),
            Remote::Idle => *state = Remote::Called,
            Remote::Called | Remote::Planned => {}
        }
        Poll::Pending
    });
    Ok(answer.await)
}

impl Node {
    /// Does something.
    pub(crate) fn act(&mut self, id: u64, chance: &mut Chance, history: &mut History) {
        let writes = self.leaving.is_none() && chance.permille(25);
        let asks_quiet = writes || chance.permille(120);
        let key = chance.below(u64::from(if asks_quiet { HOT } else { QUIET })) as u8;
        if !writes && chance.permille(500) || self.operations.len() == OPERATIONS_MAX {
            self.read(key, history);
            return;
        }
        let kind = if !writes {
            match chance.permille(150) {
                true => self.begin_fill(key, history),
                false => Some(self.begin_load(key)),
            }
        } else {
            match chance.below(20) {
                0 => Some(Kind::Clear),
                1..10 => Some(Kind::Remove),
                _ => Some(self.begin_write(key)),
            }
        };
        if let Some(kind) = kind {
            let (began, settled) = (self.now(), self.settled[usize::from(key)]);
            let waits = matches!(kind, Kind::Load(..) | Kind::WriteThrough(..));
            self.operations.push_back(Operation { id, key, began, settled, kind, version: None });
            if !waits {
                self.plans.push(plan(id, writes, chance));
            }
            self.poll(chance, history);
        }
    }

    pub(crate) fn read(&mut self, key: u8, history: &History) {
        match self.cache.get(&key) {
            Some(version) => {
                self.tally.hits += 1;
                self.tally.doubted_hits += u64::from(self.freshness.in_doubt(self.tick()));
                self.judge(("a hit", key, version), (self.settled[usize::from(key)], self.now()), history);
            }
            None => self.tally.misses += 1,
        }
    }

    /// Reads all keys, before anything else gets to run.
    pub(crate) fn read_all(&mut self, history: &History) {
        (0..KEYS).for_each(|key| self.read(key, history));
    }

    fn judge(
        &mut self,
        (what, key, version): (&str, u8, u64),
        (settled, at): (u64, Micros),
        history: &History,
    ) {
        if version < settled {
            self.complain(format!(
                "{what} of key {key} is version {version}, though {settled} was seen before"
            ));
        } else if let Some((newer, said)) = history.overdue(key, version, at) {
            self.complain(format!(
                "{what} of key {key} at {at} µs is version {version}, though {newer} was announced at {said} µs"
            ));
        }
    }

    fn begin_load(&self, key: u8) -> Kind {
        let cell = Cell::new(Mutex::new(Remote::Idle));
        let (cache, loader) = (self.cache.clone(), cell.clone());
        let load = async move { cache.get_or_load(&key, || call(loader)).await.unwrap() };
        Kind::Load(cell, Box::pin(load))
    }

    fn begin_fill(&mut self, key: u8, history: &History) -> Option<Kind> {
        match self.cache.get_or_token(&key, TOKEN_TIME).unwrap() {
            ReadOrFill::Hit(version) => {
                self.judge(("a hit", key, version), (self.settled[usize::from(key)], self.now()), history);
                None
            }
            ReadOrFill::Miss(token) => Some(Kind::Fill(token)),
        }
    }

    fn begin_write(&self, key: u8) -> Kind {
        let cell = Cell::new(Mutex::new(Remote::Idle));
        let (cache, writer) = (self.cache.clone(), cell.clone());
        let write = async move {
            let (version, written) = cache.write_through(&key, || call(writer)).await.unwrap();
            (version, written.positions)
        };
        Kind::WriteThrough(cell, Box::pin(write))
    }

    /// The system of record does its part. Also while the process stands still.
    pub(crate) fn work(&mut self, id: u64, history: &mut History) {
        let Some(operation) = self.operations.iter_mut().find(|operation| operation.id == id) else { return };
        let key = operation.key;
        operation.version = match operation.kind {
            Kind::Load(..) | Kind::Fill(_) => Some(history.read(key)),
            Kind::WriteThrough(..) | Kind::Remove => Some(history.commit(key)),
            Kind::Clear => None,
        };
    }

    /// Its answer has come.
    pub(crate) fn answered(&mut self, id: u64, chance: &mut Chance, history: &mut History) {
        let Some(at) = self.operations.iter().position(|operation| operation.id == id) else { return };
        let operation = &self.operations[at];
        let (key, version) = (operation.key, operation.version);
        match &operation.kind {
            Kind::Load(cell, _) | Kind::WriteThrough(cell, _) => {
                *cell.lock() = Remote::Answered(version.unwrap());
                self.poll(chance, history);
                return;
            }
            Kind::Fill(token) => {
                let token = *token;
                self.cache.fill(&key, version.unwrap(), token, None).unwrap();
            }
            Kind::Remove => self.remove(key, history),
            Kind::Clear if self.leaving.is_none() => {
                let positions = self.cache.clear().unwrap().positions;
                let keys: Vec<_> = (0..KEYS).map(|key| (key, history.read(key))).collect();
                self.changed(positions, &keys, history);
            }
            Kind::Clear => {}
        }
        self.operations.remove(at);
        self.feed_all();
    }

    pub(crate) fn remove(&mut self, key: u8, history: &mut History) {
        // A node that leaves waits for write-throughs; who writes and removes by itself has to do so before.
        let positions = self.cache.remove(&key).unwrap().positions;
        let change = (key, history.read(key));
        self.want_receipt(positions.clone(), change);
        self.changed(positions, &[change], history);
    }

    /// A change of this node was made.
    fn changed(&mut self, positions: Positions, said: &[(u8, u64)], history: &mut History) {
        let counts = self.counts();
        for (key, version) in said {
            self.settle(*key, *version);
            if counts {
                history.announce(*key, *version, self.now());
            }
        }
        for (lane, sequence) in positions.iter() {
            let of_lane = said.iter().copied().filter(|(key, _)| lane_of(*key) == *lane).collect();
            history.log((self.me.clone(), *lane, *sequence), of_lane);
        }
    }

    /// Runs whatever can go on.
    pub(crate) fn poll(&mut self, chance: &mut Chance, history: &mut History) {
        let mut moved = true;
        while std::mem::take(&mut moved) {
            for _ in 0..self.operations.len() {
                let Some(mut operation) = self.operations.pop_front() else { break };
                let mut context = Context::from_waker(Waker::noop());
                let (key, settled, began) = (operation.key, operation.settled, operation.began);
                match &mut operation.kind {
                    Kind::Load(_, load) => {
                        if let Poll::Ready(version) = load.as_mut().poll(&mut context) {
                            self.tally.joined += u64::from(operation.version.is_none());
                            self.judge(("a load", key, version), (settled, began), history);
                            moved = true;
                            continue;
                        }
                    }
                    Kind::WriteThrough(_, write) => {
                        if let Poll::Ready((version, positions)) = write.as_mut().poll(&mut context) {
                            self.changed(positions, &[(key, version)], history);
                            self.feed_all();
                            moved = true;
                            continue;
                        }
                    }
                    Kind::Fill(_) | Kind::Remove | Kind::Clear => {}
                }
                self.operations.push_back(operation);
            }
        }
        for operation in &self.operations {
            if let Kind::Load(cell, _) | Kind::WriteThrough(cell, _) = &operation.kind {
                let mut state = cell.lock();
                if *state == Remote::Called {
                    *state = Remote::Planned;
                    self.plans.push(plan(operation.id, operation.writes(), chance));
                }
            }
        }
        if chance.permille(3) {
            // A caller gives up: whoever waits for its load goes on.
            let is_load = |operation: &Operation| matches!(operation.kind, Kind::Load(..));
            if let Some(at) = self.operations.iter().position(is_load) {
                self.operations.remove(at);
            }
        }
    }
}

/// Some writes are so slow that a process may end meanwhile.
fn plan(id: u64, writes: bool, chance: &mut Chance) -> Plan {
    let slow = chance.permille(if writes { 300 } else { 50 });
    let slowness = if slow { 900_000 } else { 40_000 };
    Plan { id, works_after: chance.between(100, slowness), answers_after: chance.between(100, slowness) }
}

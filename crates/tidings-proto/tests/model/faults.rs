//! What goes wrong: crashes, departures, pauses, cuts, slow links; within what the guarantees assume.

use super::net::Net;
use super::truth::Writer;
use super::world::{Event, Task, World};
use super::{ACTIVE, LOST_GRACE, MAX_STALENESS, Ms, WRITE_HORIZON};

/// Longest cut or pause: with the time to be heard again well below the grace.
const CUT_MAX: Ms = 2_500;

/// Longer than the grace, so that the end of who is apart is decided; some end before its floor is behind.
const EXPULSION: (Ms, Ms) = (LOST_GRACE, LOST_GRACE + WRITE_HORIZON + MAX_STALENESS + 400);

/// How long it takes at most to be heard again after an expulsion.
const REJOIN: Ms = 1_200;

/// How long a departing node waits for acknowledgements.
const LEAVE_DEADLINE: Ms = 1_200;

/// Newcomers that are cut off as soon as they have joined.
const NEWCOMER_CUT_PERCENT: u64 = 80;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Chooses and begins the next one.
    Next,
    Restart(usize),
    /// A crash of this life in the middle of a cut.
    Crash(Writer),
    /// The end of faults.
    Heal,
}

impl World {
    pub(crate) fn plan_fault(&mut self, at: Ms) {
        let event = if at < ACTIVE { Fault::Next } else { Fault::Heal };
        self.push(at.min(ACTIVE), Event::Fault(event));
    }

    pub(crate) fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::Next => {
                let lasts = self.next_fault();
                let pause = self.rng.range(500, 1_200);
                self.plan_fault(self.now + lasts + pause);
            }
            Fault::Restart(node) => self.restart(node),
            Fault::Crash(writer) if self.runs(writer) => self.crash(writer.0),
            Fault::Crash(_) => {}
            Fault::Heal => {
                self.net.smooth();
                for node in 0..self.nodes.len() {
                    self.restart(node);
                    if let Some(process) = &mut self.nodes[node].process {
                        process.leaving = process.leaving.filter(|_| process.sealed.is_some());
                    }
                }
            }
        }
    }

    /// Begins a fault; returns how long the next must wait beside a pause.
    fn next_fault(&mut self) -> Ms {
        let node = self.rng.index(self.nodes.len());
        let lasts = if self.rng.percent(12) && self.now + EXPULSION.1 < ACTIVE {
            self.rng.range(EXPULSION.0, EXPULSION.1)
        } else {
            self.rng.range(50, CUT_MAX)
        };
        // Somebody who knows the cluster stays reachable for those who join it.
        let anchored = (0..self.nodes.len()).any(|other| other != node && self.is_settled(other));
        if !anchored || !self.is_settled(node) {
            return 0;
        }
        match self.rng.range(0, 8) {
            0 | 1 => {
                self.crash(node);
                0
            }
            2 => {
                let deadline = self.now + LEAVE_DEADLINE;
                self.process(node).leaving = Some(deadline);
                self.note(|| format!("n{node} is leaving"));
                LEAVE_DEADLINE
            }
            3 => {
                let until = self.now + lasts;
                self.expel(node, lasts);
                self.nodes[node].paused_until = until;
                self.stats.pauses += 1;
                self.note(|| format!("n{node} stands still until {until}"));
                // Reads are the first that it does when it goes on.
                self.push_of(node, until, Task::Scan);
                lasts
            }
            4 => {
                let lasts = lasts.min(CUT_MAX);
                self.net.slow(self.now + lasts);
                lasts
            }
            _ => self.cut(node, lasts),
        }
    }

    fn cut(&mut self, node: usize, lasts: Ms) -> Ms {
        let until = self.now + lasts;
        let others: Vec<usize> = (0..self.nodes.len()).filter(|other| *other != node).collect();
        let chosen = if self.rng.percent(50) { vec![self.rng.pick(&others)] } else { others };
        let (out, back) = self.rng.pick(&[(true, false), (false, true), (true, true)]);
        self.stats.cuts += 1;
        self.expel(node, lasts);
        self.note(|| format!("cut n{node} {chosen:?} out {out} back {back} until {until}"));
        let cut = |net: &mut Net, from, to| net.cut(from, to, until);
        for other in chosen {
            if out {
                cut(&mut self.net, node, other);
            }
            if back {
                cut(&mut self.net, other, node);
            }
        }
        if self.rng.percent(25) {
            let at = self.now + lasts / 2;
            let life = self.nodes[node].life;
            self.push(at, Event::Fault(Fault::Crash((node, life))));
        }
        lasts
    }

    /// Whoever has just joined may be cut off, and those who have not heard of it are not told.
    pub(crate) fn cut_newcomer(&mut self, node: usize) {
        if self.quiet() || !self.rng.percent(NEWCOMER_CUT_PERCENT) {
            return;
        }
        let until = self.now + self.rng.range(CUT_MAX / 2, CUT_MAX);
        self.members_lost_until = until;
        self.note(|| format!("cut n{node}, which has just joined, until {until}"));
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            self.net.cut(node, other, until);
            self.net.cut(other, node, until);
        }
    }

    fn expel(&mut self, node: usize, lasts: Ms) {
        if lasts > CUT_MAX {
            self.stats.expulsions += 1;
            self.expelled = Some((node, self.now + lasts + REJOIN));
        }
    }

    /// Whether what a reader does not know of a writer is more than is promised.
    pub(crate) fn is_excused(&self, reader: usize, writer: usize) -> bool {
        self.expelled.is_some_and(|(node, until)| self.now < until && (reader == node || writer == node))
    }

    /// Ends a life in the middle of what it does.
    fn crash(&mut self, node: usize) {
        if self.rng.percent(50) && !self.waits_to_be_known(node) {
            for _ in 0..4 {
                self.begin_write(node, WRITE_HORIZON);
            }
        }
        self.end(node, false);
        self.plan_restart(node);
    }

    /// At once, after a while, or when everyone has let go of it.
    fn plan_restart(&mut self, node: usize) {
        let spans = [(20, 200), (20, 200), (500, 3_000), (LOST_GRACE, LOST_GRACE + 2_500)];
        let (low, high) = if self.quiet() { spans[0] } else { self.rng.pick(&spans) };
        let at = self.now + self.rng.range(low, high);
        self.push(at, Event::Fault(Fault::Restart(node)));
    }

    /// A process ends, cleanly or not.
    pub(crate) fn end(&mut self, node: usize, cleanly: bool) {
        let life = self.nodes[node].life;
        let process = self.nodes[node].process.take().expect("a running node");
        self.note(|| format!("n{node}#{life} ends, cleanly: {cleanly}"));
        if cleanly {
            assert_eq!(process.open_writes, 0);
        } else {
            self.stats.crashes += 1;
        }
        self.truth.crashed((node, life), self.now);
        if process.leaving.is_some() {
            self.plan_restart(node);
        }
    }
}

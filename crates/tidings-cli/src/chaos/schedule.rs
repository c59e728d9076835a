//! What happens to which node, and when.

use std::fmt;
use std::time::Duration;

use crate::replay::random::SplitMix64;

/// Purpose of the random numbers here.
const PURPOSE: u64 = 3;

/// Quiet time between two episodes, in milliseconds: enough to come back to normal, so that effects can be told apart.
const QUIET_MS: (u64, u64) = (2_000, 5_000);

/// Length of an episode, in milliseconds: from well below to well above the default staleness bound.
const EPISODE_MS: (u64, u64) = (1_000, 9_000);

/// Pause between a kill and a restart at once, in milliseconds: what a supervisor takes.
const RESTART_MS: u64 = 200;

/// Something done to nodes, named by number from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// SIGKILL.
    Kill(usize),
    /// Start again, under the same id.
    Restart(usize),
    /// SIGSTOP.
    Pause(usize),
    /// SIGCONT.
    Continue(usize),
    /// Nothing gets from the first to the second.
    CutOneWay(usize, usize),
    /// Nothing gets from one to the other.
    Cut(usize, usize),
    /// Nothing gets to or from a node.
    Isolate(usize),
    /// Everything gets through again.
    Heal,
}

/// An action and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// Since the start.
    pub(crate) at: Duration,
    /// What is done.
    pub(crate) action: Action,
}

/// Events without end, each episode over before the next begins.
#[derive(Debug)]
pub(crate) struct Schedule {
    random: SplitMix64,
    nodes: u64,
    now_ms: u64,
    end: Option<Event>,
}

impl Schedule {
    /// The schedule of a seed for so many nodes.
    pub(crate) fn new(seed: u64, nodes: usize) -> Self {
        Self { random: SplitMix64::for_purpose(seed, PURPOSE), nodes: nodes as u64, now_ms: 0, end: None }
    }

    fn between(&mut self, (least, most): (u64, u64)) -> u64 {
        least + self.random.below(most - least + 1)
    }
}

impl Iterator for Schedule {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if let Some(end) = self.end.take() {
            return Some(end);
        }
        let begin_ms = self.now_ms + self.between(QUIET_MS);
        let length_ms = self.between(EPISODE_MS);
        let first = self.random.below(self.nodes);
        let second = (first + 1 + self.random.below((self.nodes - 1).max(1))) % self.nodes;
        let (first, second) = (first as usize, second as usize);
        let (action, undo, length_ms) = match self.random.below(if self.nodes > 1 { 6 } else { 3 }) {
            0 => (Action::Kill(first), Action::Restart(first), RESTART_MS),
            1 => (Action::Kill(first), Action::Restart(first), length_ms),
            2 => (Action::Pause(first), Action::Continue(first), length_ms),
            3 => (Action::Cut(first, second), Action::Heal, length_ms),
            4 => (Action::CutOneWay(first, second), Action::Heal, length_ms),
            _ => (Action::Isolate(first), Action::Heal, length_ms),
        };
        self.now_ms = begin_ms + length_ms;
        self.end = Some(Event { at: Duration::from_millis(self.now_ms), action: undo });
        Some(Event { at: Duration::from_millis(begin_ms), action })
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |node: usize| format!("n{}", node + 1);
        write!(f, "{:>6.1}s  ", self.at.as_secs_f64())?;
        match self.action {
            Action::Kill(node) => write!(f, "kill {}", name(node)),
            Action::Restart(node) => write!(f, "restart {}", name(node)),
            Action::Pause(node) => write!(f, "pause {}", name(node)),
            Action::Continue(node) => write!(f, "continue {}", name(node)),
            Action::CutOneWay(from, to) => write!(f, "cut {} -> {}", name(from), name(to)),
            Action::Cut(one, other) => write!(f, "cut {} <-> {}", name(one), name(other)),
            Action::Isolate(node) => write!(f, "isolate {}", name(node)),
            Action::Heal => f.write_str("heal"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_decides_everything() {
        let events = |seed| -> Vec<Event> { Schedule::new(seed, 3).take(50).collect() };
        assert_eq!(events(1), events(1));
        assert_ne!(events(1), events(2));
    }

    #[test]
    fn every_kind_occurs_and_every_episode_is_undone_before_the_next() {
        let events: Vec<Event> = Schedule::new(1, 3).take(400).collect();
        assert!(events.is_sorted_by_key(|event| event.at));
        let mut kinds = [0; 5];
        for pair in events.chunks(2) {
            let kind = match (pair[0].action, pair[1].action) {
                (Action::Kill(killed), Action::Restart(started)) if killed == started => 0,
                (Action::Pause(paused), Action::Continue(continued)) if paused == continued => 1,
                (Action::Cut(one, other), Action::Heal) if one != other => 2,
                (Action::CutOneWay(from, to), Action::Heal) if from != to => 3,
                (Action::Isolate(_), Action::Heal) => 4,
                other => panic!("{other:?}"),
            };
            kinds[kind] += 1;
        }
        assert!(kinds.iter().all(|count| *count > 10), "{kinds:?}");
    }

    #[test]
    fn a_node_alone_is_not_cut_off_from_itself() {
        let cut = |event: Event| {
            !matches!(
                event.action,
                Action::Kill(0) | Action::Restart(0) | Action::Pause(0) | Action::Continue(0)
            )
        };
        assert!(!Schedule::new(1, 1).take(100).any(cut));
    }
}

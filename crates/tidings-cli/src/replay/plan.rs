//! What happens with each request: decided by the seed and the request's position alone.

use super::random::SplitMix64;
use super::workload::Request;

/// Purpose of the random numbers here: nodes and writes.
const PURPOSE: u64 = 2;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Reads through the cache.
    Read,
    /// Changes the record, then removes the key from the cache.
    RemoveAfterWrite,
    /// Changes the record within a write-through of the cache.
    WriteThrough,
}

/// A request with everything decided.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step {
    /// The request.
    pub(crate) request: Request,
    /// Number of the node it goes to.
    pub(crate) node: usize,
    /// What it does.
    pub(crate) operation: Operation,
}

/// Decides, request by request.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    random: SplitMix64,
    nodes: u64,
    write_ratio: f64,
    write_through: bool,
}

impl Plan {
    /// A plan for so many nodes. Half of the writes go through the cache where that is possible.
    pub(crate) fn new(seed: u64, nodes: usize, write_ratio: f64, write_through: bool) -> Self {
        Self {
            random: SplitMix64::for_purpose(seed, PURPOSE),
            nodes: nodes as u64,
            write_ratio,
            write_through,
        }
    }

    /// Decides the next request.
    pub(crate) fn step(&mut self, request: Request) -> Step {
        // Always three draws, so that no decision shifts another one.
        let node = self.random.below(self.nodes) as usize;
        let writes = self.random.unit() < self.write_ratio;
        let through = self.random.bits() & 1 == 1;
        let operation = match (writes, through && self.write_through) {
            (false, _) => Operation::Read,
            (true, false) => Operation::RemoveAfterWrite,
            (true, true) => Operation::WriteThrough,
        };
        Step { request, node, operation }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(seed: u64, write_ratio: f64, through: bool) -> Vec<Step> {
        let mut plan = Plan::new(seed, 3, write_ratio, through);
        (0..10_000).map(|at| plan.step(Request { at: f64::from(at), key: "k".into(), size: 1 })).collect()
    }

    fn count(steps: &[Step], operation: Operation) -> usize {
        steps.iter().filter(|step| step.operation == operation).count()
    }

    #[test]
    fn the_seed_decides_everything() {
        assert_eq!(steps(1, 0.05, true), steps(1, 0.05, true));
        assert_ne!(steps(1, 0.05, true), steps(2, 0.05, true));
    }

    #[test]
    fn the_write_ratio_does_not_move_requests_to_other_nodes() {
        let nodes = |ratio| -> Vec<usize> { steps(1, ratio, true).iter().map(|step| step.node).collect() };
        assert_eq!(nodes(0.0), nodes(0.5));
    }

    #[test]
    fn writes_are_drawn_at_their_ratio_and_in_halves() {
        let steps = steps(3, 0.2, true);
        assert!((900..1100).contains(&count(&steps, Operation::RemoveAfterWrite)));
        assert!((900..1100).contains(&count(&steps, Operation::WriteThrough)));
        assert_eq!(count(&self::steps(3, 0.0, true), Operation::Read), 10_000);
        assert_eq!(count(&self::steps(3, 1.0, false), Operation::RemoveAfterWrite), 10_000);
    }
}

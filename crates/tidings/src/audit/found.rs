//! The newest inconsistencies.

use std::collections::VecDeque;

use super::report::Inconsistency;

/// Inconsistencies that are remembered; of more the one that was seen longest ago is forgotten, and stays counted. With
/// the longest keys and their text, 1.2 MB.
pub(super) const FINDINGS_MAX: usize = 100;

/// The newest inconsistencies, each once however often it was seen.
#[derive(Debug, Default)]
pub(super) struct Findings(VecDeque<Inconsistency>);

impl Findings {
    /// Returns whether it was not known.
    pub(super) fn add(&mut self, mut found: Inconsistency) -> bool {
        let same = |known: &Inconsistency| {
            (&known.cache, &known.key, &known.peer) == (&found.cache, &found.key, &found.peer)
        };
        let known = self.0.iter().position(same).and_then(|at| self.0.remove(at));
        if let Some(known) = &known {
            found.first_seen_ms = known.first_seen_ms.min(found.first_seen_ms);
        }
        self.0.push_front(found);
        self.0.truncate(FINDINGS_MAX);
        known.is_none()
    }

    /// The newest first.
    pub(super) fn newest(&self) -> Vec<Inconsistency> {
        self.0.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tidings_proto::id::NodeId;

    use super::*;

    fn found(key: usize, at_ms: u64) -> Inconsistency {
        Inconsistency {
            cache: "c".into(),
            key: Bytes::from(key.to_string()),
            key_text: key.to_string(),
            peer: NodeId::new("n2").unwrap(),
            own_age: Duration::from_millis(at_ms),
            peer_age: Duration::ZERO,
            first_seen_ms: at_ms,
            last_seen_ms: at_ms,
        }
    }

    #[test]
    fn what_is_found_again_is_the_newest_and_remembers_when_it_was_found_first() {
        let mut findings = Findings::default();
        let added = [(1, 10), (2, 20), (1, 30)].map(|(key, at_ms)| findings.add(found(key, at_ms)));
        assert_eq!(added, [true, true, false]);
        let newest = findings.newest();
        assert_eq!(newest[0], Inconsistency { first_seen_ms: 10, ..found(1, 30) });
        assert_eq!(newest[1..], [found(2, 20)]);
    }

    #[test]
    fn of_too_many_the_one_that_was_seen_longest_ago_is_forgotten() {
        let mut findings = Findings::default();
        (0..FINDINGS_MAX + 5).for_each(|key| assert!(findings.add(found(key, key as u64))));
        let newest = findings.newest();
        assert_eq!(newest.len(), FINDINGS_MAX);
        assert_eq!((newest[0].last_seen_ms, newest[FINDINGS_MAX - 1].last_seen_ms), (104, 5));
    }
}

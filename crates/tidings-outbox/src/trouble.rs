//! Topics that the store refuses events of. Time and chance are arguments.

use std::collections::HashMap;
use std::time::Duration;

use tidings_streams::{Backoff, decide};
use tokio::time::Instant;

/// Most topics that are passed over at once. Their names are part of each look at the table.
pub const TROUBLED_TOPICS_MAX: usize = 1_000;

/// Topics whose events wait until a moment.
#[derive(Debug, Default)]
pub(crate) struct Troubles(HashMap<String, Trouble>);

#[derive(Debug)]
struct Trouble {
    failures: u32,
    until: Instant,
}

impl Troubles {
    /// Notes a failure. The topic's failures in a row, or `None`: there are too many topics.
    pub(crate) fn note(&mut self, topic: &str, now: Instant, backoff: &Backoff, random: f64) -> Option<u32> {
        if self.0.len() >= TROUBLED_TOPICS_MAX && !self.0.contains_key(topic) {
            return None;
        }
        let trouble = self.0.entry(topic.to_owned()).or_insert(Trouble { failures: 0, until: now });
        trouble.failures = trouble.failures.saturating_add(1);
        trouble.until = now + decide::backoff(backoff, trouble.failures, random);
        Some(trouble.failures)
    }

    /// The topic's failures in a row.
    pub(crate) fn failures(&self, topic: &str) -> u32 {
        self.0.get(topic).map_or(0, |trouble| trouble.failures)
    }

    /// Notes that the topic takes events.
    pub(crate) fn clear(&mut self, topic: &str) {
        self.0.remove(topic);
    }

    /// Topics that are left alone for now.
    pub(crate) fn passed_over(&self, now: Instant) -> Vec<String> {
        let waits = |(topic, trouble): (&String, &Trouble)| (trouble.until > now).then(|| topic.clone());
        self.0.iter().filter_map(waits).collect()
    }

    /// How long until the next one is tried again.
    pub(crate) fn next(&self, now: Instant) -> Option<Duration> {
        let waits = self.0.values().map(|trouble| trouble.until).filter(|until| *until > now);
        waits.min().map(|until| until - now)
    }

    /// Notes that nothing waits but what is left alone: whatever else had trouble has it no more.
    pub(crate) fn clear_past(&mut self, now: Instant) {
        self.0.retain(|_, trouble| trouble.until > now);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff =
        Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(8), jitter: 0.0 };

    #[tokio::test]
    async fn a_topic_with_trouble_is_passed_over_for_longer_each_time() {
        let (mut troubles, now) = (Troubles::default(), Instant::now());
        assert_eq!(troubles.note("a", now, &BACKOFF, 0.5), Some(1));
        assert_eq!(troubles.note("a", now, &BACKOFF, 0.5), Some(2));
        assert_eq!((troubles.failures("a"), troubles.failures("b")), (2, 0));
        assert_eq!(troubles.passed_over(now), ["a"]);
        assert_eq!(troubles.next(now), Some(Duration::from_secs(2)));
        assert!(troubles.passed_over(now + Duration::from_secs(2)).is_empty());
        troubles.clear("a");
        assert_eq!(troubles.note("a", now, &BACKOFF, 0.5), Some(1));
    }

    #[tokio::test]
    async fn a_topic_whose_events_are_gone_is_waited_for_no_more() {
        let (mut troubles, now) = (Troubles::default(), Instant::now());
        troubles.note("a", now, &BACKOFF, 0.5);
        troubles.clear_past(now);
        assert!(!troubles.is_empty());
        let later = now + BACKOFF.initial;
        assert_eq!(troubles.next(later), None, "who waits for nothing would never rest");
        troubles.clear_past(later);
        assert!(troubles.is_empty());
    }

    #[tokio::test]
    async fn more_topics_than_can_be_passed_over_are_told() {
        let (mut troubles, now) = (Troubles::default(), Instant::now());
        for number in 0..TROUBLED_TOPICS_MAX {
            assert!(troubles.note(&number.to_string(), now, &BACKOFF, 0.5).is_some());
        }
        assert_eq!(troubles.note("one more", now, &BACKOFF, 0.5), None);
        assert_eq!(troubles.note("0", now, &BACKOFF, 0.5), Some(2));
    }
}

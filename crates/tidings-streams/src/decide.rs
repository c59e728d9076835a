//! What every driver decides alike. Time and chance are arguments.

use std::time::Duration;

use crate::id::Timestamp;
use crate::settings::{Backoff, Retention, TopicSettings};

/// How long to wait after an event's `attempts`th failure. `random` is from 0 to 1.
#[must_use]
pub fn backoff(backoff: &Backoff, attempts: u32, random: f64) -> Duration {
    let doubled = 2_f64.powi(attempts.saturating_sub(1).min(64).cast_signed());
    let swing = backoff.jitter.mul_add(random.mul_add(2.0, -1.0), 1.0);
    let seconds = (backoff.initial.as_secs_f64() * doubled).min(backoff.max.as_secs_f64()) * swing;
    Duration::from_secs_f64(seconds.clamp(0.0, backoff.max.as_secs_f64()))
}

/// What follows a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFailure {
    /// The event is delivered again, from then on.
    RetryAt(Timestamp),
    /// It is a dead letter.
    Bury,
}

/// What follows the failure of an event that was delivered `attempts` times.
#[must_use]
pub fn after_failure(attempts: u32, settings: &TopicSettings, now: Timestamp, random: f64) -> AfterFailure {
    if attempts >= settings.max_deliveries.get() {
        AfterFailure::Bury
    } else {
        AfterFailure::RetryAt(now.after(backoff(&settings.backoff, attempts, random)))
    }
}

/// What a topic holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Events.
    pub events: u64,
    /// Bytes, as they are stored.
    pub bytes: u64,
}

/// Whether the oldest event is to go by a topic's retention, what groups have not settled left aside.
#[must_use]
pub fn is_surplus(retention: &Retention, held: Held, oldest: Timestamp, now: Timestamp) -> bool {
    held.events > 0
        && (retention.max_events.is_some_and(|max| held.events > max)
            || retention.max_bytes.is_some_and(|max| held.bytes > max)
            || retention.max_age.is_some_and(|max| now.since(oldest) > max))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXACT: Backoff =
        Backoff { initial: Duration::from_millis(500), max: Duration::from_secs(3), jitter: 0.0 };

    #[test]
    fn waits_double_up_to_the_longest() {
        let waits: Vec<u128> = (1..=5).map(|attempt| backoff(&EXACT, attempt, 0.5).as_millis()).collect();
        assert_eq!(waits, [500, 1_000, 2_000, 3_000, 3_000]);
        assert_eq!(backoff(&EXACT, u32::MAX, 0.5), EXACT.max);
    }

    #[test]
    fn jitter_swings_both_ways_and_never_beyond_the_longest() {
        let jittered = Backoff { jitter: 0.2, ..EXACT };
        assert_eq!(backoff(&jittered, 1, 0.0).as_millis(), 400);
        assert_eq!(backoff(&jittered, 1, 1.0).as_millis(), 600);
        assert_eq!(backoff(&jittered, 9, 1.0), EXACT.max);
    }

    #[test]
    fn the_last_delivery_is_followed_by_a_burial() {
        let settings = TopicSettings::default();
        let after = |attempts| after_failure(attempts, &settings, Timestamp(1_000), 0.5);
        assert_eq!(after(1), AfterFailure::RetryAt(Timestamp(1_500)));
        assert_eq!(after(2), AfterFailure::RetryAt(Timestamp(2_000)));
        assert_eq!(after(3), AfterFailure::Bury);
        assert_eq!(after(4), AfterFailure::Bury);
    }

    #[test]
    fn each_rule_of_retention_removes_by_itself() {
        let (now, old) = (Timestamp(10_000), Timestamp(4_000));
        let held = Held { events: 10, bytes: 1_000 };
        let surplus = |retention: Retention| is_surplus(&retention, held, old, now);
        assert!(!surplus(Retention::default()));
        assert!(surplus(Retention { max_events: Some(9), ..Retention::default() }));
        assert!(!surplus(Retention { max_events: Some(10), ..Retention::default() }));
        assert!(surplus(Retention { max_bytes: Some(999), ..Retention::default() }));
        assert!(surplus(Retention { max_age: Some(Duration::from_millis(5_999)), ..Retention::default() }));
        assert!(!surplus(Retention { max_age: Some(Duration::from_secs(6)), ..Retention::default() }));
        let nothing = Held::default();
        assert!(!is_surplus(&Retention { max_events: Some(0), ..Retention::default() }, nothing, old, now));
    }
}

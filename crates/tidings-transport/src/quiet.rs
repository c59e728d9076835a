//! Log lines about what others can cause as often as they like: said at once, then ever less often while it goes on.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Pause after the first line on a subject. It doubles with each further one.
const PAUSE_FIRST: Duration = Duration::from_secs(1);

/// Longest pause. After so long without an occasion, a subject is new again.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Subjects that are told apart. Beyond that, those of one kind share a line, whoever causes them.
const SUBJECTS_MAX: usize = 256;

/// Who causes occasions, `None` for those that share a line, and of which kind they are.
type Key<W> = (Option<W>, &'static str);

/// Decides which occasions are worth a line. `W`: who causes them, by default an address.
#[derive(Debug)]
pub struct Quiet<W = IpAddr>(Mutex<HashMap<Key<W>, Subject>>);

impl<W> Default for Quiet<W> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

#[derive(Debug)]
struct Subject {
    next: Instant,
    pause: Duration,
    suppressed: u64,
}

impl<W: Eq + Hash> Quiet<W> {
    /// Whether to write a line now, with the number of occasions that were passed over since the last one.
    pub fn speaks(&self, who: W, what: &'static str, now: Instant) -> Option<Passed> {
        let mut subjects = self.0.lock();
        let mut key = (Some(who), what);
        if subjects.len() >= SUBJECTS_MAX && !subjects.contains_key(&key) {
            subjects.retain(|_, subject| !subject.is_over(now));
            if subjects.len() >= SUBJECTS_MAX {
                key.0 = None;
            }
        }
        let new = || Subject { next: now, pause: PAUSE_FIRST, suppressed: 0 };
        let subject = subjects.entry(key).or_insert_with(new);
        if now < subject.next {
            subject.suppressed += 1;
            return None;
        }
        if subject.is_over(now) {
            subject.pause = PAUSE_FIRST;
        }
        subject.next = now + subject.pause;
        subject.pause = (2 * subject.pause).min(PAUSE_MAX);
        Some(Passed(std::mem::take(&mut subject.suppressed)))
    }
}

impl Subject {
    fn is_over(&self, now: Instant) -> bool {
        now >= self.next + PAUSE_MAX
    }
}

/// Occasions without a line.
#[derive(Debug, PartialEq, Eq)]
pub struct Passed(u64);

impl Passed {
    /// For a field that is left out when there were none.
    #[must_use]
    pub fn field(&self) -> Option<u64> {
        (self.0 > 0).then_some(self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn a_subject_is_told_at_once_then_at_growing_intervals_with_a_count() {
        let (quiet, start) = (Quiet::default(), Instant::now());
        let mut told = Vec::new();
        for tenth in 0..1_200_u64 {
            let at = start + Duration::from_millis(100 * tenth);
            told.extend(quiet.speaks(ip(1), "denied", at).map(|passed| (tenth / 10, passed.0)));
        }
        assert_eq!(told, [(0, 0), (1, 9), (3, 19), (7, 39), (15, 79), (31, 159), (63, 319)]);
        assert_eq!(quiet.speaks(ip(2), "denied", start), Some(Passed(0)), "another address");
        assert_eq!(quiet.speaks(ip(1), "busy", start), Some(Passed(0)), "another reason");
    }

    #[test]
    fn after_a_long_silence_a_subject_is_new() {
        let (quiet, start) = (Quiet::default(), Instant::now());
        assert!(quiet.speaks(ip(1), "denied", start).is_some());
        let later = start + PAUSE_FIRST + PAUSE_MAX;
        assert!(quiet.speaks(ip(1), "denied", later).is_some());
        assert!(quiet.speaks(ip(1), "denied", later + PAUSE_FIRST).is_some());
    }

    #[test]
    fn addresses_without_end_share_a_line() {
        let (quiet, start) = (Quiet::default(), Instant::now());
        let lines = (0..10_000_u32)
            .filter(|n| quiet.speaks(IpAddr::V4(Ipv4Addr::from(*n)), "denied", start).is_some());
        assert_eq!(lines.count(), SUBJECTS_MAX + 1, "one of them is shared");
        assert!(quiet.0.lock().len() <= SUBJECTS_MAX + 1);
    }
}

//! How long ago a follower applied what it acknowledges: acknowledgements are gathered, and must not be mistaken for the
//! time that a change takes.

use std::time::Duration;

use smallvec::SmallVec;
use tidings_proto::frame::{AGES_MAX, Age};
use tidings_proto::id::Sequence;
use tidings_proto::time::Tick;

/// What is applied within this time has one age, that of the last: all that is gathered for 5 ms is told.
const RESOLUTION: Duration = Duration::from_micros(500);

/// What was applied since the last acknowledgement, oldest first. Of more parts than a frame holds the last ones are one.
#[derive(Debug, Default)]
pub(super) struct Ages(SmallVec<[Part; AGES_MAX]>);

#[derive(Clone, Copy, Debug)]
struct Part {
    upto: Sequence,
    first: Tick,
    last: Tick,
}

impl Ages {
    /// Everything up to here was applied by now.
    pub(super) fn applied(&mut self, upto: Sequence, now: Tick) {
        let full = self.0.len() == AGES_MAX;
        match self.0.last_mut() {
            Some(part) if upto <= part.upto => {}
            // It counts as applied when the last of it was: never sooner than it was.
            Some(part) if full || now.since(part.first) < RESOLUTION => (part.upto, part.last) = (upto, now),
            _ => self.0.push(Part { upto, first: now, last: now }),
        }
    }

    /// What to say of it with the acknowledgement of a position.
    pub(super) fn take(&mut self, acked: Sequence, now: Tick) -> Vec<Age> {
        let age = |part: Part| {
            // What is too far back to be named counts as applied with what comes next.
            let back = u16::try_from(acked.checked_sub(part.upto)?).ok()?;
            let micros = u16::try_from(now.since(part.last).as_micros()).unwrap_or(u16::MAX);
            Some(Age { back, micros })
        };
        self.0.drain(..).filter_map(age).collect()
    }
}

/// Up to which positions the peer had applied what it acknowledges, and since when at the latest, by this node's clock:
/// its word has been under way for some of the time. What it does not speak of counts as applied now.
pub(super) fn since(ages: &[Age], acked: Sequence, now: Tick) -> impl Iterator<Item = (Sequence, Tick)> {
    let told = ages.iter().map(move |age| {
        let at = now.before(Duration::from_micros(age.micros.into()));
        (acked.saturating_sub(age.back.into()), at)
    });
    told.chain([(acked, now)])
}

#[cfg(test)]
mod tests {
    use tidings_proto::frame::Control;

    use super::*;
    use crate::limits::FOLLOWER_FRAME_BYTES_MAX;

    fn at(micros: u64) -> Tick {
        Tick(1 << 50).after(Duration::from_micros(micros))
    }

    #[test]
    fn what_is_told_says_to_the_resolution_when_each_position_was_applied_and_never_too_early() {
        let mut ages = Ages::default();
        for (upto, when) in [(3, 0), (4, 400), (4, 450), (9, 600), (10, 3_000)] {
            ages.applied(upto, at(when));
        }
        let told = ages.take(10, at(5_000));
        let age = |back, micros| Age { back, micros };
        assert_eq!(told, [age(6, 4_600), age(1, 4_400), age(0, 2_000)]);
        assert_eq!(ages.take(10, at(6_000)), [], "once");
        // The word takes 100 us.
        let heard: Vec<_> = since(&told, 10, at(5_100)).collect();
        assert_eq!(heard, [(4, at(500)), (9, at(700)), (10, at(3_100)), (10, at(5_100))]);
    }

    #[test]
    fn what_is_told_fits_its_frame_however_much_there_was() {
        let mut ages = Ages::default();
        for part in 0..1_000 {
            ages.applied(part * 500, at(part * 600));
        }
        let told = ages.take(999 * 500, at(600_000));
        assert!(told.len() <= AGES_MAX);
        assert_eq!(told.last(), Some(&Age { back: 0, micros: 600 }));
        let longest = vec![Age { back: u16::MAX, micros: u16::MAX }; AGES_MAX];
        let frame = Control::Ages(longest).encode();
        assert!(frame.len() - tidings_proto::frame::HEADER_BYTES <= FOLLOWER_FRAME_BYTES_MAX);
    }
}

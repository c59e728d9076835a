//! When what stands in a lane came to be known to the bus, so that a peer's acknowledgement tells how long its way
//! took.

use std::collections::VecDeque;
use std::time::Duration;

use tidings_proto::id::Sequence;
use tidings_proto::time::Tick;

/// Events that follow within this time share a mark: a fifth of what acknowledgements are gathered for.
const RESOLUTION: Duration = Duration::from_millis(1);

/// Marks of a lane: of the last second at least, at 16 bytes each. What is older counts as old as the oldest.
const MARKS_MAX: usize = 1_024;

#[derive(Debug, Default)]
pub(super) struct Marks(VecDeque<Mark>);

#[derive(Debug)]
struct Mark {
    /// The last event that it stands for.
    head: Sequence,
    /// When the first of them was known.
    at: Tick,
}

impl Marks {
    /// Notes that everything up to `head` was known at this time.
    pub(super) fn note(&mut self, head: Sequence, at: Tick) {
        match self.0.back_mut() {
            Some(last) if head <= last.head => {}
            Some(last) if at.since(last.at) < RESOLUTION => last.head = head,
            _ => {
                if self.0.len() == MARKS_MAX {
                    self.0.pop_front();
                }
                self.0.push_back(Mark { head, at });
            }
        }
    }

    /// How many of the events after `after` up to `to` were known since when.
    pub(super) fn since(&self, after: Sequence, to: Sequence) -> impl Iterator<Item = (u64, Tick)> {
        let first = self.0.partition_point(|mark| mark.head <= after);
        let mut counted = after;
        self.0.range(first..).map_while(move |mark| {
            let upto = mark.head.min(to);
            let count = upto.checked_sub(counted).filter(|count| *count > 0)?;
            counted = upto;
            Some((count, mark.at))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Tick {
        Tick(1 << 40).after(Duration::from_millis(ms))
    }

    #[test]
    fn every_event_is_counted_once_with_the_time_at_which_it_was_known() {
        let mut marks = Marks::default();
        marks.note(3, at(0));
        marks.note(3, at(5));
        marks.note(4, at(10));
        marks.note(9, at(20));
        let since = |after, to| marks.since(after, to).collect::<Vec<_>>();
        assert_eq!(since(0, 9), [(3, at(0)), (1, at(10)), (5, at(20))]);
        assert_eq!(since(1, 6), [(2, at(0)), (1, at(10)), (2, at(20))]);
        assert_eq!(since(9, 9), []);
        assert_eq!(since(4, 100), [(5, at(20))], "what is not known yet is not counted");
    }

    #[test]
    fn marks_are_bounded_and_what_is_forgotten_counts_as_old_as_the_oldest() {
        let mut marks = Marks::default();
        for event in 1..=MARKS_MAX as u64 + 10 {
            marks.note(event, at(2 * event));
        }
        assert_eq!(marks.0.len(), MARKS_MAX);
        assert_eq!(marks.since(0, 11).collect::<Vec<_>>(), [(11, at(22))]);
        // Events that come together share a mark.
        for event in 0..100 {
            marks.note(5_000 + event, at(5_000));
        }
        assert_eq!(marks.0.len(), MARKS_MAX);
    }
}

//! Writes of this node's that members refuse, for their time is of the future: when they are written anew, and as of when.
//!
//! One member's word decides nothing, for its own clock may be the one that is wrong: most members have to have refused a
//! write, or this node has to have measured that its clock is ahead of most. Then it is written as of when it was by the
//! clocks of those who have refused it. Until then, and where only few refuse it, it stays.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tidings_cache::Refused;
use tidings_proto::hash::CacheId;
use tidings_proto::hlc::Stamp;
use tidings_proto::id::NodeId;
use tidings_proto::replicate::WriteStamp;
use tidings_proto::time::Tick;

/// Most writes of which refusals are counted: about 200 KiB. Of more the oldest is forgotten: it is refused where its key
/// is compared next, or its time comes.
const COUNTED_MAX: usize = 1_024;

/// For how long they are counted: members look four times a second for what they have to tell, and ask again what was lost.
const COUNTED_TIME: Duration = Duration::from_secs(10);

/// How much later than it was by others' clocks a write may be written anew: so that those which one clock has brought
/// forward can all be moved back by the same, and keep their order. Well below what is refused.
const LEEWAY: u64 = Stamp::from_wall_ms(200).0;

/// How long after a write was written anew its cache is compared with the members: what they wrote meanwhile may have lost
/// against its former stamp here. Not more often either.
const COMPARE_AFTER: Duration = Duration::from_secs(1);

/// What a member says.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) by: NodeId,
    pub(crate) cache: CacheId,
    pub(crate) of: Refused,
    pub(crate) stamp: WriteStamp,
    /// When it was, by its clock.
    pub(crate) instead: Stamp,
}

#[derive(Debug)]
struct Counted {
    of: (CacheId, WriteStamp, Refused),
    by: BTreeMap<NodeId, Stamp>,
    since: Tick,
}

/// What is known of refusals.
#[derive(Debug, Default)]
pub(crate) struct Restamps {
    counted: VecDeque<Counted>,
    /// By how much writes were moved back last.
    shift: Option<u64>,
    /// The latest time under which one was written anew.
    last: Stamp,
    /// Caches that are to be compared, and from when.
    due: BTreeMap<CacheId, Tick>,
}

impl Restamps {
    /// Counts a refusal. Returns the time under which the write is to be written anew, if it is. `is_ahead`: this node
    /// has measured that its clock is ahead of most of these members'.
    pub(crate) fn refused(
        &mut self,
        said: Said,
        members: &BTreeSet<NodeId>,
        is_ahead: bool,
        now: Tick,
    ) -> Option<Stamp> {
        let Said { by, cache, of, stamp, instead } = said;
        if stamp.at.0.saturating_sub(instead.0) <= LEEWAY {
            // Its time is about to come, or the member had nothing to refuse.
            return None;
        }
        while self.counted.front().is_some_and(|one| now.since(one.since) >= COUNTED_TIME) {
            self.counted.pop_front();
        }
        let of = (cache, stamp, of);
        let at = self.counted.iter().position(|one| one.of == of).unwrap_or_else(|| {
            if self.counted.len() == COUNTED_MAX {
                self.counted.pop_front();
            }
            self.counted.push_back(Counted { of, by: BTreeMap::new(), since: now });
            self.counted.len() - 1
        });
        let counted = &mut self.counted[at].by;
        counted.insert(by, instead);
        let others = members.iter().filter(|node| !counted.contains_key(*node)).count();
        if !is_ahead && counted.len() <= others {
            return None;
        }
        let mut times: Vec<Stamp> = counted.values().copied().collect();
        times.sort_unstable();
        let middle = times[times.len() / 2];
        self.due.entry(cache).or_insert_with(|| now.after(COMPARE_AFTER));
        Some(self.moved_back(stamp.at, middle))
    }

    /// By as much as others before, if that is about when it was by others' clocks.
    fn moved_back(&mut self, stamp: Stamp, instead: Stamp) -> Stamp {
        let latest = Stamp(instead.0.saturating_add(LEEWAY));
        let moved = |shift: u64| Some(Stamp(stamp.0.checked_sub(shift)?));
        let at =
            self.shift.and_then(moved).filter(|at| (instead..=latest).contains(at)).unwrap_or_else(|| {
                // That clock was set. What it gives now is later than what it gave before.
                let after_last = Stamp(self.last.0.saturating_add(1)).min(latest);
                Stamp(instead.0.saturating_add(LEEWAY / 2)).max(after_last)
            });
        self.shift = Some(stamp.0.saturating_sub(at.0));
        self.last = self.last.max(at);
        at
    }

    /// Whether a cache is to be compared with every member by now. Says so once.
    pub(crate) fn is_due(&mut self, cache: CacheId, now: Tick) -> bool {
        let due = self.due.get(&cache).is_some_and(|at| *at <= now);
        if due {
            self.due.remove(&cache);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CACHE: CacheId = CacheId(1);
    const NOW_MS: u64 = 1_700_000_000_000;

    fn nodes(count: usize) -> BTreeSet<NodeId> {
        (0..count).map(node).collect()
    }

    fn node(number: usize) -> NodeId {
        NodeId::new(&format!("n{number}")).unwrap()
    }

    /// A refusal of a write that is so many milliseconds ahead.
    fn said(by: usize, key: &'static [u8], ahead_ms: u64) -> Said {
        let stamp = WriteStamp { at: Stamp::from_wall_ms(NOW_MS + ahead_ms), author: 7 };
        let (of, instead) = (Refused::Key(key.into()), Stamp::from_wall_ms(NOW_MS));
        Said { by: node(by), cache: CACHE, of, stamp, instead }
    }

    fn is_about_now(at: Option<Stamp>) -> bool {
        let latest = Stamp(Stamp::from_wall_ms(NOW_MS).0 + LEEWAY);
        at.is_some_and(|at| (Stamp::from_wall_ms(NOW_MS)..=latest).contains(&at))
    }

    #[test]
    fn a_write_is_written_anew_once_most_members_have_refused_it() {
        let (mut restamps, members, now) = (Restamps::default(), nodes(4), Tick(0));
        let mut refused = |by, key| restamps.refused(said(by, key, 900), &members, false, now);
        assert_eq!((refused(0, b"k"), refused(0, b"k"), refused(1, b"k")), (None, None, None), "two of four");
        assert_eq!(refused(2, b"l"), None, "another write");
        assert!(is_about_now(refused(2, b"k")));
    }

    #[test]
    fn one_refusal_is_enough_where_the_clock_is_known_to_be_ahead_or_nobody_else_is_there() {
        let mut restamps = Restamps::default();
        assert!(is_about_now(restamps.refused(said(0, b"k", 900), &nodes(5), true, Tick(0))));
        assert!(is_about_now(restamps.refused(said(0, b"l", 900), &nodes(1), false, Tick(0))));
    }

    #[test]
    fn a_refusal_of_what_is_not_of_the_future_counts_for_nothing() {
        let mut restamps = Restamps::default();
        assert_eq!(restamps.refused(said(0, b"k", 150), &nodes(1), true, Tick(0)), None);
    }

    #[test]
    fn one_clock_among_many_does_not_decide_as_of_when() {
        let (mut restamps, members) = (Restamps::default(), nodes(3));
        let slow = Said { instead: Stamp::from_wall_ms(NOW_MS - 86_400_000), ..said(0, b"k", 900) };
        assert_eq!(restamps.refused(slow, &members, false, Tick(0)), None);
        assert!(is_about_now(restamps.refused(said(1, b"k", 900), &members, false, Tick(0))));
    }

    #[test]
    fn writes_that_were_brought_forward_by_one_clock_keep_their_order() {
        let mut restamps = Restamps::default();
        let mut anew = |key, ahead_ms, since_ms| {
            let mut said = said(0, key, ahead_ms);
            said.instead = Stamp::from_wall_ms(NOW_MS + since_ms);
            restamps.refused(said, &nodes(1), false, Tick(0)).unwrap()
        };
        let (second, first, third) = (anew(b"b", 1_001, 0), anew(b"a", 1_000, 0), anew(b"c", 1_050, 30));
        assert!(first < second && second < third);
        // The clock was set further ahead: as of now all the same.
        let after = anew(b"d", 60_000, 31);
        assert!(third < after && after.0 <= Stamp::from_wall_ms(NOW_MS + 31).0 + LEEWAY);
    }

    #[test]
    fn refusals_are_counted_for_a_while_and_of_a_bounded_number_of_writes() {
        let (mut restamps, members) = (Restamps::default(), nodes(3));
        assert_eq!(restamps.refused(said(0, b"k", 900), &members, false, Tick(0)), None);
        let late = Tick(0).after(COUNTED_TIME);
        assert_eq!(
            restamps.refused(said(1, b"k", 900), &members, false, late),
            None,
            "the other is forgotten"
        );
        for n in 0..2 * COUNTED_MAX as u64 {
            let _ = restamps.refused(said(0, b"k", 1_000 + n), &members, false, late);
        }
        assert_eq!(restamps.counted.len(), COUNTED_MAX);
    }

    #[test]
    fn a_cache_is_compared_once_a_while_after_a_write_was_written_anew() {
        let mut restamps = Restamps::default();
        let due = Tick(0).after(COMPARE_AFTER);
        assert!(!restamps.is_due(CACHE, due));
        let _ = restamps.refused(said(0, b"k", 900), &nodes(1), false, Tick(0));
        let _ = restamps.refused(said(0, b"l", 900), &nodes(1), false, due);
        assert!(
            !restamps.is_due(CACHE, Tick(0)) && restamps.is_due(CACHE, due) && !restamps.is_due(CACHE, due)
        );
    }
}

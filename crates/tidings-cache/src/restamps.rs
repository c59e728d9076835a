//! Writes of this node's that members refuse, for their time is of the future: when they are written anew, and as of when.
//!
//! One member's word decides nothing, for its own clock may be the one that is wrong: most members have to have refused a
//! write, or this node has to have measured that its clock is ahead of most. Then it is written as of when it was: by the
//! clocks of those who have refused it, or by what this node has measured. Until then, and where only few refuse it, it
//! stays.
//!
//! Refusals come in any order, and what an author has written keeps its own: what is moved back lies between what was moved
//! back before and after it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tidings_proto::hash::CacheId;
use tidings_proto::hlc::Stamp;
use tidings_proto::id::NodeId;
use tidings_proto::replicate::WriteStamp;
use tidings_proto::time::Tick;

use crate::refusals::Refused;

/// Most writes of which refusals are counted. Of more the oldest is forgotten: it is refused where its key is compared next,
/// or its time comes.
const COUNTED_MAX: usize = 1_024;

/// Most bytes of what they have changed, keys above all; beyond that as beyond [`COUNTED_MAX`].
const COUNTED_BYTES_MAX: usize = 256 << 10;

/// For how long they are counted: members look four times a second for what they have to tell, and ask again what was lost.
const COUNTED_TIME: Duration = Duration::from_secs(10);

/// How much later than it was by others' clocks a write may be written anew: so that those which one clock has brought
/// forward can all be moved back by the same, and keep their distances. Well below what is refused.
const LEEWAY: u64 = Stamp::from_wall_ms(200).0;

/// How far from its neighbours a write is put that cannot be moved back by as much as they were, if there is room: others may
/// have to be put between.
const STEP: u64 = Stamp::from_wall_ms(1).0;

/// What is added to a time that is not moved back by as much as others: clocks give whole milliseconds and count from there,
/// so that no other write has a stamp like it.
const BETWEEN_MS: u64 = STEP / 2;

/// What a member says.
#[derive(Clone, Debug)]
pub struct Said {
    /// The member.
    pub by: NodeId,
    /// In which cache.
    pub cache: CacheId,
    /// What the write has changed.
    pub of: Refused,
    /// The write.
    pub stamp: WriteStamp,
    /// When it was, by the member's clock.
    pub instead: Stamp,
}

/// What this node has measured of its own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// How far it is ahead of the clock in the middle of the members'.
    pub by: Duration,
    /// What it says.
    pub wall_ms: u64,
}

impl Ahead {
    /// When a write was, by the clock in the middle. At the latest now: the clock may have been further ahead then.
    fn time_of(self, stamp: Stamp) -> Stamp {
        let by = Stamp::from_wall_ms(u64::try_from(self.by.as_millis()).unwrap_or(u64::MAX >> 16));
        Stamp(stamp.0.min(Stamp::from_wall_ms(self.wall_ms).0).saturating_sub(by.0))
    }
}

#[derive(Debug)]
struct Counted {
    of: (CacheId, WriteStamp, Refused),
    by: BTreeMap<NodeId, Stamp>,
    since: Tick,
    /// As of when it was written anew.
    moved: Option<Stamp>,
}

/// What is known of refusals.
#[derive(Debug, Default)]
pub struct Restamps {
    counted: VecDeque<Counted>,
    /// Bytes of what they have changed.
    bytes: usize,
    /// By how much writes were moved back last.
    shift: Option<u64>,
    /// The latest time under which one was written anew.
    last: Stamp,
}

impl Restamps {
    /// Counts a refusal. Returns the time under which the write is to be written anew, if it is: the same whoever else
    /// refuses it afterwards. `hosts`: the members that have the cache. `ahead`: if this node has measured that its clock is
    /// ahead of most.
    pub fn refused(
        &mut self,
        said: Said,
        hosts: &BTreeSet<NodeId>,
        ahead: Option<Ahead>,
        now: Tick,
    ) -> Option<Stamp> {
        let Said { by, cache, of, stamp, instead } = said;
        if stamp.at.0.saturating_sub(instead.0) <= LEEWAY {
            // Its time is about to come, or the member had nothing to refuse.
            return None;
        }
        while self.counted.front().is_some_and(|one| now.since(one.since) >= COUNTED_TIME) {
            self.forget_oldest();
        }
        let index = self.index_of((cache, stamp, of), now);
        let counted = &mut self.counted[index];
        if counted.moved.is_some() {
            return counted.moved;
        }
        counted.by.insert(by, instead);
        let others = hosts.iter().filter(|node| !counted.by.contains_key(*node)).count();
        let time = match ahead {
            Some(ahead) => ahead.time_of(stamp.at),
            None if counted.by.len() <= others => return None,
            None => {
                let mut times: Vec<Stamp> = counted.by.values().copied().collect();
                times.sort_unstable();
                times[times.len() / 2]
            }
        };
        let at = self.moved_back((cache, stamp), time).filter(|at| *at < stamp.at)?;
        self.counted[index].moved = Some(at);
        self.shift = Some(stamp.at.0 - at.0);
        self.last = self.last.max(at);
        Some(at)
    }

    fn index_of(&mut self, of: (CacheId, WriteStamp, Refused), now: Tick) -> usize {
        if let Some(known) = self.counted.iter().position(|one| one.of == of) {
            return known;
        }
        self.bytes += of.2.bytes();
        self.counted.push_back(Counted { of, by: BTreeMap::new(), since: now, moved: None });
        while self.counted.len() > COUNTED_MAX || self.bytes > COUNTED_BYTES_MAX && self.counted.len() > 1 {
            self.forget_oldest();
        }
        self.counted.len() - 1
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.counted.pop_front() {
            self.bytes -= oldest.of.2.bytes();
        }
    }

    /// By as much as others before, if that is about when it was, and in any case between what its author wrote before and
    /// after it. `None` if there is nothing between.
    fn moved_back(&self, (cache, stamp): (CacheId, WriteStamp), time: Stamp) -> Option<Stamp> {
        let latest = Stamp(time.0.saturating_add(LEEWAY));
        let alike = |shift: u64| Some(Stamp(stamp.at.0.checked_sub(shift)?));
        let alike = self.shift.and_then(alike).filter(|at| (time..=latest).contains(at));
        let at = alike.unwrap_or_else(|| {
            // That clock was set. What it gives now is later than what it gave before.
            let about = time.0.saturating_add(LEEWAY / 2 + BETWEEN_MS);
            Stamp(about.max(self.last.0.saturating_add(1)))
        });
        let decided = self.counted.iter().filter_map(|one| {
            let (of_cache, of, _) = &one.of;
            let is_own = *of_cache == cache && of.author == stamp.author;
            Some((of.at, one.moved.filter(|_| is_own)?))
        });
        if let Some((_, same)) = decided.clone().find(|(of, _)| *of == stamp.at) {
            return Some(same);
        }
        let before = decided.clone().filter(|(of, _)| *of < stamp.at).max().unwrap_or_default();
        let after = decided.filter(|(of, _)| *of > stamp.at).min();
        let room = after.map_or(u64::MAX, |(_, moved)| moved.0).checked_sub(before.1.0)?;
        let step = |apart: u64| apart.min(STEP).min(room / 2);
        if room < 2 {
            return None;
        }
        let least = before.1.0.saturating_add(step(stamp.at.0 - before.0.0));
        let most = after.map_or(u64::MAX, |(of, moved)| moved.0 - step(of.0 - stamp.at.0));
        Some(Stamp(at.0.clamp(least, most)))
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

    /// As measured where that write was made.
    fn ahead(ms: u64) -> Option<Ahead> {
        Some(Ahead { by: Duration::from_millis(ms), wall_ms: NOW_MS + ms })
    }

    fn is_about_now(at: Option<Stamp>) -> bool {
        let latest = Stamp(Stamp::from_wall_ms(NOW_MS).0 + LEEWAY);
        at.is_some_and(|at| (Stamp::from_wall_ms(NOW_MS)..=latest).contains(&at))
    }

    #[test]
    fn a_write_is_written_anew_once_most_members_have_refused_it() {
        let (mut restamps, members, now) = (Restamps::default(), nodes(4), Tick(0));
        let mut refused = |by, key| restamps.refused(said(by, key, 900), &members, None, now);
        assert_eq!((refused(0, b"k"), refused(0, b"k"), refused(1, b"k")), (None, None, None), "two of four");
        assert_eq!(refused(2, b"l"), None, "another write");
        assert!(is_about_now(refused(2, b"k")));
    }

    #[test]
    fn one_refusal_is_enough_where_the_clock_is_known_to_be_ahead_or_nobody_else_is_there() {
        let mut restamps = Restamps::default();
        assert!(is_about_now(restamps.refused(said(0, b"k", 900), &nodes(5), ahead(900), Tick(0))));
        assert!(is_about_now(restamps.refused(said(0, b"l", 900), &nodes(1), None, Tick(0))));
    }

    #[test]
    fn a_refusal_of_what_is_not_of_the_future_counts_for_nothing() {
        let mut restamps = Restamps::default();
        assert_eq!(restamps.refused(said(0, b"k", 150), &nodes(1), ahead(900), Tick(0)), None);
    }

    #[test]
    fn one_clock_among_many_does_not_decide_as_of_when() {
        let (mut restamps, members) = (Restamps::default(), nodes(3));
        let slow = Said { instead: Stamp::from_wall_ms(NOW_MS - 86_400_000), ..said(0, b"k", 900) };
        assert_eq!(restamps.refused(slow, &members, None, Tick(0)), None);
        assert!(is_about_now(restamps.refused(said(1, b"k", 900), &members, None, Tick(0))));
    }

    #[test]
    fn writes_that_were_brought_forward_by_one_clock_keep_their_order() {
        let mut restamps = Restamps::default();
        let mut anew = |key, ahead_ms, since_ms| {
            let mut said = said(0, key, ahead_ms);
            said.instead = Stamp::from_wall_ms(NOW_MS + since_ms);
            restamps.refused(said, &nodes(1), None, Tick(0)).unwrap()
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
        assert_eq!(restamps.refused(said(0, b"k", 900), &members, None, Tick(0)), None);
        let late = Tick(0).after(COUNTED_TIME);
        assert_eq!(
            restamps.refused(said(1, b"k", 900), &members, None, late),
            None,
            "the other is forgotten"
        );
        for n in 0..2 * COUNTED_MAX as u64 {
            let _ = restamps.refused(said(0, b"k", 1_000 + n), &members, None, late);
        }
        assert_eq!(restamps.counted.len(), COUNTED_MAX);
    }

    #[test]
    fn what_is_refused_in_another_order_keeps_the_one_in_which_it_was_written() {
        for first_is_decided in [true, false] {
            let (mut restamps, hosts) = (Restamps::default(), nodes(1));
            let mut anew = |said| restamps.refused(said, &hosts, None, Tick(0)).unwrap();
            let all = |ahead_ms| Said { of: Refused::All, ..said(0, b"", ahead_ms) };
            let before = first_is_decided.then(|| anew(said(0, b"j", 5_000)));
            // The refuser takes them in one go, and tells of the later one first.
            let k = anew(said(0, b"k", 11_000));
            let cleared = anew(all(10_000));
            let between = anew(said(0, b"l", 10_500));
            let tagged = anew(Said { of: Refused::Tag("t".into()), ..said(0, b"", 10_001) });
            assert!(before.is_none_or(|before| before < cleared), "{before:?} {cleared:?}");
            assert!(cleared < tagged && tagged < between && between < k);
            assert_eq!((anew(said(0, b"k", 11_000)), anew(all(10_000))), (k, cleared), "once and for all");
        }
    }

    #[test]
    fn many_that_are_refused_in_one_go_keep_their_order_whatever_it_is_told_in() {
        let (mut restamps, hosts) = (Restamps::default(), nodes(1));
        // As far apart as can be, and told so that each has to be put between.
        let ahead_ms = |n: u64| 1_000 + (n * 37 % 101) * 200;
        let refused =
            |n| restamps.refused(said(0, b"k", ahead_ms(n)), &hosts, None, Tick(0)).map(|at| (n, at));
        let mut anew: Vec<(u64, Stamp)> = (0..101).filter_map(refused).collect();
        assert_eq!(anew.len(), 101, "there is room for all");
        anew.sort_unstable_by_key(|(n, _)| ahead_ms(*n));
        assert!(anew.is_sorted_by(|(_, a), (_, b)| a < b));
    }

    #[test]
    fn a_clock_that_is_known_to_be_ahead_says_itself_as_of_when_and_not_the_member_that_refuses() {
        let mut restamps = Restamps::default();
        let slow = Said { instead: Stamp::from_wall_ms(NOW_MS - 86_400_000), ..said(0, b"k", 900) };
        assert!(is_about_now(restamps.refused(slow, &nodes(5), ahead(900), Tick(0))));
        let fast = Said { instead: Stamp::from_wall_ms(NOW_MS + 500), ..said(0, b"l", 900) };
        assert!(is_about_now(restamps.refused(fast, &nodes(5), ahead(900), Tick(0))));
        // It was further ahead when it gave that, and was set.
        assert!(is_about_now(restamps.refused(said(0, b"m", 60_000), &nodes(5), ahead(900), Tick(0))));
    }

    #[test]
    fn what_is_counted_is_bounded_in_bytes() {
        let (mut restamps, members) = (Restamps::default(), nodes(3));
        let long: &'static [u8] = vec![b'k'; 4_096].leak();
        for n in 0..2 * (COUNTED_BYTES_MAX / long.len()) as u64 {
            let _ = restamps.refused(said(0, long, 1_000 + n), &members, None, Tick(0));
        }
        assert!(restamps.bytes <= COUNTED_BYTES_MAX && restamps.counted.len() == restamps.bytes / long.len());
    }
}

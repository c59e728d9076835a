//! How often a node tells its peers that there is news.
//!
//! A telling costs a packet and a wake-up per peer, on both sides, however many events it carries. It is paid with
//! time: events that come slower than that are told at once; of a faster stream most still are, on credit. When the
//! debt is as large as a price, one event waits for the next, which saves a telling and delays nothing else; when it is
//! twice as large, all wait until it is paid. So the cost is bounded, and as few events as possible pay for that with
//! latency. The accounts are those of the generic cell rate algorithm (ITU-T I.371).
//!
//! Peers are told in groups that wait at different events ([`Turns`]): what waits for one group is told to the others at
//! once, and with fewer peers to be told of it, it is there sooner.

use std::time::Duration;

use tidings_proto::time::Tick;

/// Time that one telling of one peer has to be worth: a little more than what it costs sender and receiver together. Of
/// 10,000 events a second to four peers each peer then waits for one in four, another peer each time, which saves every
/// fourth packet and wake-up. A larger price makes two wait at a time, and the median event late: `benches/cluster`
/// weighs both, its latency and CPU per event, against NATS with TLS.
const PRICE_PER_PEER: Duration = Duration::from_micros(33);

/// The most that a telling is charged, and that an event waits to be told together with others.
const WAIT_MAX: Duration = Duration::from_micros(200);

/// Groups of peers with a turn each.
pub(super) const GROUPS: usize = 4;

/// When to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Now,
    /// With the next event, or after this time without one.
    WithNext(Duration),
    /// After this time, with all that comes meanwhile.
    After(Duration),
}

/// What has been told and not been paid for yet.
#[derive(Debug, Default)]
struct Pace {
    /// When everything is paid.
    paid: Tick,
}

impl Pace {
    /// When to tell what is known at `now`, where a debt below `credit` lets nothing wait.
    fn due(&self, now: Tick, price: Duration, credit: Duration) -> Due {
        let debt = self.paid.since(now);
        if debt.is_zero() || debt < credit {
            Due::Now
        } else if debt < 2 * price {
            Due::WithNext(debt.min(WAIT_MAX))
        } else {
            Due::After(debt.min(WAIT_MAX))
        }
    }

    /// Notes that peers are told now.
    fn tell(&mut self, now: Tick, price: Duration) {
        self.paid = self.paid.max(now).after(price);
    }
}

/// What the teller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Everybody has been told everything: it waits for news.
    Rest,
    /// It waits for news, and this long at most.
    Listen(Duration),
    /// It lets news gather for this long.
    Gather(Duration),
}

/// The groups of peers, what each has not been told yet, and why.
#[derive(Debug, Default)]
pub(super) struct Turns([Turn; GROUPS]);

#[derive(Debug, Default)]
struct Turn {
    pace: Pace,
    /// Lanes with news that this group has not been told, a bit each.
    owed: u32,
    /// Whether it is told with the next event.
    with_next: bool,
    /// When it is told at the latest.
    until: Tick,
}

impl Turns {
    /// Takes in that these lanes have had news since `heard`, at `now`, for groups of so many peers. Returns the lanes
    /// that each group is to be told of now, and what to do then: to call this again with what is new.
    pub(super) fn step(
        &mut self,
        rung: u32,
        (heard, now): (Tick, Tick),
        peers: [usize; GROUPS],
    ) -> ([u32; GROUPS], Next) {
        let price = price(peers.iter().sum());
        let mut told = [0; GROUPS];
        let (mut wait, mut gathers) = (None::<Duration>, true);
        // Groups of a stream without a pause are told together: one wake-up of the teller.
        let together = self.0.iter().any(|turn| turn.gathers() && now >= turn.until);
        for (number, turn) in self.0.iter_mut().enumerate() {
            // So that no two groups wait at the same event.
            let credit = price + price * number as u32 / GROUPS as u32;
            if together && turn.gathers() || turn.is_due(rung, (heard, now), (price, credit)) {
                told[number] = std::mem::take(&mut turn.owed) | rung;
                if peers[number] > 0 {
                    turn.pace.tell(now, price);
                }
            } else if turn.owed != 0 {
                let left = turn.until.since(now);
                wait = Some(wait.map_or(left, |least| least.min(left)));
                gathers &= !turn.with_next;
            }
        }
        let next = match wait {
            None => Next::Rest,
            Some(wait) if gathers => Next::Gather(wait),
            Some(wait) => Next::Listen(wait),
        };
        (told, next)
    }
}

impl Turn {
    /// Whether it waits for all that comes.
    fn gathers(&self) -> bool {
        self.owed != 0 && !self.with_next
    }

    fn is_due(
        &mut self,
        rung: u32,
        (heard, now): (Tick, Tick),
        (price, credit): (Duration, Duration),
    ) -> bool {
        let waited = self.owed != 0;
        self.owed |= rung;
        if waited {
            return now >= self.until || self.with_next && rung != 0;
        }
        let (with_next, wait) = match self.pace.due(now, price, credit) {
            Due::Now => return self.owed != 0,
            Due::WithNext(wait) => (true, wait),
            Due::After(wait) => (false, wait),
        };
        (self.with_next, self.until) = (with_next, heard.after(wait));
        self.owed != 0 && now >= self.until
    }
}

fn price(peers: usize) -> Duration {
    PRICE_PER_PEER.saturating_mul(u32::try_from(peers).unwrap_or(u32::MAX)).min(WAIT_MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Tick = Tick(1 << 40);

    /// Tells events of these arrival times. Returns when each was told to each group.
    fn told(arrivals: &[Tick], peers: [usize; GROUPS]) -> [Vec<Tick>; GROUPS] {
        let mut turns = Turns::default();
        let mut told: [Vec<Tick>; GROUPS] = Default::default();
        let (mut now, mut next, mut seen) = (START, Next::Rest, 0);
        while told.iter().any(|told| told.len() < arrivals.len()) {
            let arrival = arrivals.get(seen).map_or(Tick::FOREVER, |arrival| (*arrival).max(now));
            let before = now;
            now = match next {
                Next::Rest => arrival,
                Next::Listen(wait) => now.after(wait).min(arrival),
                Next::Gather(wait) => now.after(wait),
            };
            let known = arrivals.iter().take_while(|arrival| **arrival <= now).count();
            let rung = u32::from(known > std::mem::replace(&mut seen, known));
            let heard = if matches!(next, Next::Gather(_)) { before } else { now };
            let (groups, then) = turns.step(rung, (heard, now), peers);
            for (told, _) in told.iter_mut().zip(groups).filter(|(_, lanes)| *lanes != 0) {
                told.resize(known, now);
            }
            next = then;
        }
        told
    }

    fn every(period: Duration, events: u32) -> Vec<Tick> {
        (0..events).map(|event| START.after(period * event)).collect()
    }

    /// So many peers, one after the other into the smallest group.
    fn groups(peers: usize) -> [usize; GROUPS] {
        std::array::from_fn(|group| (peers + GROUPS - 1 - group) / GROUPS)
    }

    #[test]
    fn events_that_come_slower_than_their_price_are_told_at_once() {
        for peers in [1, 2, 4, 100] {
            let arrivals = every(price(peers), 1_000);
            assert_eq!(told(&arrivals, groups(peers)), std::array::from_fn(|_| arrivals.clone()));
        }
    }

    #[test]
    fn of_a_steady_stream_no_more_wait_than_tellings_are_saved_and_never_for_two_groups_at_once() {
        let arrivals = every(Duration::from_micros(100), 10_000);
        let told = told(&arrivals, [1; GROUPS]);
        for group in &told {
            let at_once = group.iter().zip(&arrivals).filter(|(told, arrived)| told == arrived).count();
            let mut tellings = group.clone();
            tellings.dedup();
            assert!(
                at_once > 7_525 && tellings.len() < 7_625,
                "{at_once} at once, {} tellings",
                tellings.len()
            );
        }
        let waiting = |event: usize| told.iter().filter(|told| told[event] != arrivals[event]).count();
        assert!((0..arrivals.len()).all(|event| waiting(event) <= 1));
    }

    #[test]
    fn all_groups_of_a_stream_without_a_pause_are_told_together() {
        let arrivals = every(Duration::from_micros(1), 100_000);
        let told = told(&arrivals, [1; GROUPS]);
        let mut times: Vec<_> = told.concat();
        times.sort_unstable();
        times.dedup();
        // A telling each 132 us would be 758 for one group, and 3,030 for four that never meet.
        assert!(times.len() < 1_300, "{}", times.len());
    }

    proptest! {
        #[test]
        fn nothing_waits_longer_than_the_bound_and_no_stream_is_told_more_often_than_it_pays_for(
            gaps in prop::collection::vec(0_u64..400_000, 1..300),
            peers in 1_usize..20,
        ) {
            let mut at = START;
            let arrivals: Vec<_> = gaps.iter().map(|gap| { at = at.after(Duration::from_nanos(*gap)); at }).collect();
            let sizes = groups(peers);
            for (told, _) in told(&arrivals, sizes).into_iter().zip(sizes).filter(|(_, size)| *size > 0) {
                for (told, arrived) in told.iter().zip(&arrivals) {
                    prop_assert!(told.since(*arrived) <= WAIT_MAX, "{:?}", told.since(*arrived));
                }
                let mut tellings = told;
                tellings.dedup();
                let (first, last) = (tellings[0], tellings[tellings.len() - 1]);
                let price = price(peers);
                // What may be owed: told on a debt of just below twice the price, and what a wait that was cut short left.
                let credit = 3 * price + WAIT_MAX;
                prop_assert!(price * (tellings.len() as u32 - 1) <= last.since(first) + credit, "{}", tellings.len());
            }
        }
    }
}

//! How often a node tells its peers that there is news.
//!
//! A telling costs a packet and a wake-up per peer, on both sides, however many events it carries. It is paid with
//! time: events that come slower than that are told at once; of a faster stream most still are, on credit. When the
//! debt is as large as a price, one event waits for the next, which saves a telling and delays nothing else; when it is
//! twice as large, all wait until it is paid. So the cost is bounded, and as few events as possible pay for that with
//! latency. The accounts are those of the generic cell rate algorithm (ITU-T I.371).

use std::time::Duration;

use tidings_proto::time::Tick;

/// Time that one telling of one peer has to be worth: about what it costs sender and receiver together. One telling of
/// four peers is then worth 100 us: of up to 10,000 events a second none waits.
const PRICE_PER_PEER: Duration = Duration::from_micros(25);

/// The most that a telling is charged, and that an event waits to be told together with others.
const WAIT_MAX: Duration = Duration::from_micros(200);

/// When to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Now,
    /// With the next event, or after this time without one.
    WithNext(Duration),
    /// After this time, with all that comes meanwhile.
    After(Duration),
}

/// What has been told and not been paid for yet.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When everything is paid.
    paid: Tick,
}

impl Pace {
    /// When to tell what is known at `now`.
    pub(super) fn due(&self, now: Tick, peers: usize) -> Due {
        let (debt, price) = (self.paid.since(now), price(peers));
        if debt.is_zero() || debt < price {
            Due::Now
        } else if debt < 2 * price {
            Due::WithNext(debt.min(WAIT_MAX))
        } else {
            Due::After(debt.min(WAIT_MAX))
        }
    }

    /// Notes that so many peers are told now.
    pub(super) fn tell(&mut self, now: Tick, peers: usize) {
        self.paid = self.paid.max(now).after(price(peers));
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

    /// Tells events of these arrival times. Returns when each was told.
    fn told(arrivals: &[Tick], peers: usize) -> Vec<Tick> {
        let mut pace = Pace::default();
        let mut told: Vec<Tick> = Vec::new();
        while let Some(next) = arrivals.get(told.len()) {
            let now = told.last().map_or(*next, |last| *last.max(next));
            let at = match pace.due(now, peers) {
                Due::Now => now,
                Due::WithNext(time) => {
                    let after = arrivals.iter().find(|arrival| **arrival > now);
                    now.after(time).min(after.copied().unwrap_or(Tick::FOREVER))
                }
                Due::After(time) => now.after(time),
            };
            pace.tell(at, peers);
            let together = arrivals[told.len()..].iter().take_while(|arrival| **arrival <= at).count();
            told.extend(std::iter::repeat_n(at, together));
        }
        told
    }

    fn every(period: Duration, events: u32) -> Vec<Tick> {
        (0..events).map(|event| START.after(period * event)).collect()
    }

    #[test]
    fn events_that_come_slower_than_their_price_are_told_at_once() {
        for peers in [1, 2, 4, 100] {
            let arrivals = every(price(peers), 1_000);
            assert_eq!(told(&arrivals, peers), arrivals);
        }
    }

    #[test]
    fn of_a_steady_stream_no_more_wait_than_tellings_are_saved() {
        let arrivals = every(Duration::from_micros(100), 10_000);
        let told = told(&arrivals, 5);
        let at_once = told.iter().zip(&arrivals).filter(|(told, arrived)| told == arrived).count();
        let mut tellings = told;
        tellings.dedup();
        assert!(at_once > 7_950 && tellings.len() < 8_050, "{at_once} at once, {} tellings", tellings.len());
    }

    proptest! {
        #[test]
        fn nothing_waits_longer_than_the_bound_and_no_stream_is_told_more_often_than_it_pays_for(
            gaps in prop::collection::vec(0_u64..400_000, 1..300),
            peers in 1_usize..20,
        ) {
            let mut at = START;
            let arrivals: Vec<_> = gaps.iter().map(|gap| { at = at.after(Duration::from_nanos(*gap)); at }).collect();
            let told = told(&arrivals, peers);
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

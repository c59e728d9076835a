//! How often an address has shown a token that is none.
//!
//! A token is 256 random bits, so nobody finds one by trying: the limit is there so that trying costs little and is
//! noticed. Sound tokens count whatever others on the same address do: behind a proxy everybody has one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use tokio::time::Instant;

use crate::limits::{FAILED_ADDRESSES_MAX, FAILURES_MAX, FAILURES_TIME};

/// What comes of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is refused.
    Refused,
    /// There have been too many: the next one may come after so long.
    Limited(Duration),
}

/// Failures by address, of at most [`FAILED_ADDRESSES_MAX`]: those whose time is over, or else the oldest, give way.
#[derive(Debug, Default)]
pub(super) struct Failures(HashMap<IpAddr, Window>);

#[derive(Clone, Copy, Debug)]
struct Window {
    began: Instant,
    failures: u32,
}

impl Failures {
    /// Counts a failure.
    pub(super) fn failed(&mut self, address: IpAddr, now: Instant) -> Verdict {
        let address = network(address);
        if self.0.len() >= FAILED_ADDRESSES_MAX && !self.0.contains_key(&address) {
            self.make_room(now);
        }
        let window = self.0.entry(address).or_insert(Window { began: now, failures: 0 });
        if now.duration_since(window.began) >= FAILURES_TIME {
            *window = Window { began: now, failures: 0 };
        }
        window.failures = window.failures.saturating_add(1);
        if window.failures <= FAILURES_MAX {
            return Verdict::Refused;
        }
        Verdict::Limited((window.began + FAILURES_TIME).duration_since(now))
    }

    fn make_room(&mut self, now: Instant) {
        self.0.retain(|_, window| now.duration_since(window.began) < FAILURES_TIME);
        if self.0.len() >= FAILED_ADDRESSES_MAX
            && let Some(oldest) = self.0.iter().min_by_key(|(_, window)| window.began).map(|(of, _)| *of)
        {
            self.0.remove(&oldest);
        }
    }
}

/// Whom an address stands for: with IPv6 a network of 64 bits is one customer's, and has more addresses than fit here.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let bits = u128::from(address) >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from(bits))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    #[tokio::test(start_paused = true)]
    async fn after_so_many_failures_an_address_waits_and_others_do_not() {
        let (mut failures, start) = (Failures::default(), Instant::now());
        for _ in 0..FAILURES_MAX {
            assert_eq!(failures.failed(address(1), start), Verdict::Refused);
        }
        let later = start + FAILURES_TIME / 4;
        assert_eq!(failures.failed(address(1), later), Verdict::Limited(FAILURES_TIME * 3 / 4));
        assert_eq!(failures.failed(address(2), later), Verdict::Refused);
        assert_eq!(failures.failed(address(1), start + FAILURES_TIME), Verdict::Refused);
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_addresses_as_there_are_take_no_more_room_than_is_set() {
        let (mut failures, start) = (Failures::default(), Instant::now());
        let most = u32::try_from(FAILED_ADDRESSES_MAX).unwrap();
        for number in 0..2 * most {
            failures.failed(address(number), start + Duration::from_micros(number.into()));
            assert!(failures.0.len() <= FAILED_ADDRESSES_MAX);
        }
        assert!(failures.0.contains_key(&address(2 * most - 1)) && !failures.0.contains_key(&address(0)));
    }

    #[test]
    fn a_customers_network_is_one_address() {
        let parse = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(network(parse("2001:db8::1")), network(parse("2001:db8::ffff:2")));
        assert_ne!(network(parse("2001:db8:0:1::1")), network(parse("2001:db8:0:2::1")));
        assert_eq!(network(parse("::ffff:192.0.2.1")), parse("192.0.2.1"));
        assert_ne!(network(parse("192.0.2.1")), network(parse("192.0.2.2")));
    }
}

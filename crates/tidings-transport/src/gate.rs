//! How many handshakes of peers are under way, and whose: no address takes the places of all others.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::limits::{
    DIALS_PER_ADDRESS_MAX, HANDSHAKES_MAX, HANDSHAKES_PER_IP_MAX, HANDSHAKES_RESERVED,
    HANDSHAKES_UNVALIDATED_MAX,
};

/// Who is let through to a handshake.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate(Arc<Mutex<Places>>);

/// The places that are taken.
#[derive(Debug, Default)]
struct Places {
    all: usize,
    by: HashMap<Claimant, usize>,
}

/// Who shares a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Claimant {
    /// An address at which this node knows, or looks for, a peer: peers dial from the port that they listen on.
    Known(SocketAddr),
    /// Everybody else at an IP address; of IPv6, in its /64, of which one host can have them all.
    Strangers(IpAddr),
}

/// What becomes of an attempt.
#[derive(Debug)]
pub(crate) enum Entry {
    /// It has a place until that is dropped.
    Admitted(Place),
    /// It has to show first that it receives at its address.
    Unproven,
    /// There is no place for it.
    Full,
}

/// A place for one handshake.
#[derive(Debug)]
pub(crate) struct Place {
    gate: Gate,
    claimant: Claimant,
}

impl Gate {
    /// `known`: whether the address is one of this node's peers; `validated`: whether the sender is known to receive
    /// there.
    pub(crate) fn enter(&self, remote: SocketAddr, known: bool, validated: bool) -> Entry {
        let claimant =
            if known { Claimant::Known(remote) } else { Claimant::Strangers(network(remote.ip())) };
        let (share, all) = match claimant {
            Claimant::Known(_) => (DIALS_PER_ADDRESS_MAX, HANDSHAKES_MAX),
            Claimant::Strangers(_) => (HANDSHAKES_PER_IP_MAX, HANDSHAKES_MAX - HANDSHAKES_RESERVED),
        };
        let mut places = self.places();
        let taken = places.by.get(&claimant).copied().unwrap_or_default();
        if taken >= share || places.all >= all {
            return Entry::Full;
        }
        if !validated && (places.all >= HANDSHAKES_UNVALIDATED_MAX || taken >= share / 2) {
            return Entry::Unproven;
        }
        places.all += 1;
        places.by.insert(claimant, taken + 1);
        Entry::Admitted(Place { gate: self.clone(), claimant })
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.0.lock().expect("nothing panics while it is locked")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.gate.places();
        places.all -= 1;
        if let Some(taken) = places.by.get_mut(&self.claimant) {
            *taken -= 1;
            if *taken == 0 {
                places.by.remove(&self.claimant);
            }
        }
    }
}

fn network(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip) & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, host], port))
    }

    fn admitted(gate: &Gate, remote: SocketAddr, known: bool) -> Option<Place> {
        match gate.enter(remote, known, true) {
            Entry::Admitted(place) => Some(place),
            Entry::Full | Entry::Unproven => None,
        }
    }

    #[test]
    fn one_host_takes_its_share_and_no_more() {
        let gate = Gate::default();
        let mut held: Vec<_> = (1..=1_000).filter_map(|port| admitted(&gate, at(1, port), false)).collect();
        assert_eq!(held.len(), HANDSHAKES_PER_IP_MAX);
        assert!(admitted(&gate, at(2, 1), false).is_some(), "another host");
        held.pop();
        assert!(admitted(&gate, at(1, 1), false).is_some(), "a place that is free again");
        drop(held);
        assert!(gate.places().by.is_empty() && gate.places().all == 0);
    }

    #[test]
    fn many_hosts_leave_places_for_peers_that_are_known() {
        let gate = Gate::default();
        let strangers = |host| (1..100).filter_map(|port| admitted(&gate, at(host, port), false)).collect();
        let held: Vec<Vec<_>> = (1..100).map(strangers).collect();
        assert_eq!(held.iter().map(Vec::len).sum::<usize>(), HANDSHAKES_MAX - HANDSHAKES_RESERVED);
        let peers: Vec<_> = (1..100).filter_map(|_| admitted(&gate, at(200, 7_400), true)).collect();
        assert_eq!(peers.len(), DIALS_PER_ADDRESS_MAX, "even at a known address");
        assert!(admitted(&gate, at(201, 7_400), true).is_some());
    }

    #[test]
    fn senders_that_may_be_forged_are_asked_to_prove_themselves_first() {
        let gate = Gate::default();
        let mut held = Vec::new();
        while let Entry::Admitted(place) = gate.enter(at(1, 1), false, false) {
            held.push(place);
        }
        assert_eq!(held.len(), HANDSHAKES_PER_IP_MAX / 2);
        assert!(matches!(gate.enter(at(1, 1), false, false), Entry::Unproven));
        assert!(matches!(gate.enter(at(1, 1), false, true), Entry::Admitted(_)));
        let more: Vec<_> = (2..50).map(|host| gate.enter(at(host, 1), false, false)).collect();
        let unvalidated =
            more.iter().filter(|entry| matches!(entry, Entry::Admitted(_))).count() + held.len();
        assert_eq!(unvalidated, HANDSHAKES_UNVALIDATED_MAX);
    }

    #[test]
    fn an_ipv6_network_counts_as_one_host() {
        let gate = Gate::default();
        let host = |n: u16| SocketAddr::new(IpAddr::from([0xfd00, 0, 0, 1, 0, 0, 0, n]), 1);
        let held: Vec<_> = (0..100).filter_map(|n| admitted(&gate, host(n), false)).collect();
        assert_eq!(held.len(), HANDSHAKES_PER_IP_MAX);
        assert!(admitted(&gate, "[fd00:0:0:2::1]:1".parse().unwrap(), false).is_some());
    }
}

//! Seeds: where to find a cluster before anybody in it is known.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::resolve::{Answer, Resolver};

/// How often a name is resolved again.
const RESOLVE_EVERY: Duration = Duration::from_secs(30);

/// How often, while it does not resolve to anything.
const RESOLVE_RETRY: Duration = Duration::from_secs(2);

/// A seed is not `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("seed {0:?} is not host:port")]
pub struct InvalidSeed(pub String);

/// The configured seeds, and what they resolve to. Resolving happens in tasks of its own that end with this; what they
/// wait for is the [`Resolver`]'s.
///
/// chitchat could do this too, but waits for names at its start and leaves its task behind at its end.
pub(crate) struct Seeds {
    fixed: BTreeSet<SocketAddr>,
    names: Vec<Name>,
    resolver: Resolver,
    resolving: JoinSet<(usize, Answer)>,
}

/// A seed that has to be resolved.
struct Name {
    name: String,
    /// The last answer; one that fails takes nothing away.
    found: BTreeSet<SocketAddr>,
    failing: bool,
    /// When to ask again, unless a question is under way.
    due: Option<Instant>,
}

impl Seeds {
    pub(crate) fn parse(seeds: &[String], resolver: Resolver) -> Result<Self, InvalidSeed> {
        let mut fixed = BTreeSet::new();
        let mut names = Vec::new();
        for seed in seeds {
            if let Ok(address) = seed.parse() {
                fixed.insert(address);
            } else if is_host_and_port(seed) {
                let due = Some(Instant::now());
                names.push(Name { name: seed.clone(), found: BTreeSet::new(), failing: false, due });
            } else {
                return Err(InvalidSeed(seed.clone()));
            }
        }
        Ok(Self { fixed, names, resolver, resolving: JoinSet::new() })
    }

    /// What needs no resolving.
    pub(crate) fn fixed(&self) -> &BTreeSet<SocketAddr> {
        &self.fixed
    }

    /// Waits until a name has been resolved again, and returns all addresses. Never ends if there are no names.
    ///
    /// Cancel safe.
    pub(crate) async fn resolved(&mut self) -> BTreeSet<SocketAddr> {
        loop {
            let now = Instant::now();
            for (index, name) in self.names.iter_mut().enumerate() {
                if name.due.take_if(|due| *due <= now).is_some() {
                    let (name, resolver) = (name.name.clone(), self.resolver.clone());
                    self.resolving.spawn(async move { (index, resolver.resolve(&name).await) });
                }
            }
            let due = self.names.iter().filter_map(|name| name.due).min();
            tokio::select! {
                Some(Ok((index, answer))) = self.resolving.join_next() => {
                    self.names[index].answered(answer);
                    return self.all();
                }
                () = sleep_until(due.unwrap_or(now)), if due.is_some() => {}
                else => std::future::pending().await,
            }
        }
    }

    fn all(&self) -> BTreeSet<SocketAddr> {
        self.names.iter().flat_map(|name| &name.found).chain(&self.fixed).copied().collect()
    }
}

impl Name {
    fn answered(&mut self, answer: Answer) {
        let pause = match answer {
            Ok(found) => {
                self.found = found;
                self.failing = false;
                RESOLVE_EVERY
            }
            Err(error) => {
                if !self.failing {
                    tracing::warn!(seed = self.name, error, "seed does not resolve");
                }
                self.failing = true;
                RESOLVE_RETRY
            }
        };
        self.due = Some(Instant::now() + pause);
    }
}

fn is_host_and_port(seed: &str) -> bool {
    seed.rsplit_once(':').is_some_and(|(host, port)| {
        let port = port.parse::<u16>().is_ok_and(|port| port != 0);
        port && !host.is_empty() && !host.contains([':', '/', ' '])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_an_address_or_a_host_with_a_port() {
        let good = ["127.0.0.1:1", "[::1]:7401", "shop-headless:7400", "a.example.org:1"].map(String::from);
        let seeds = Seeds::parse(&good, Resolver::default()).unwrap();
        assert_eq!((seeds.fixed.len(), seeds.names.len()), (2, 2));
        for bad in ["", "host", "host:", "host:0", "host:99999", ":7400", "::1:7400", "quic://host:1"] {
            assert!(Seeds::parse(&[bad.to_owned()], Resolver::default()).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn names_are_resolved_beside_fixed_addresses() {
        let mut seeds =
            Seeds::parse(&["10.0.0.1:1".to_owned(), "localhost:7401".to_owned()], Resolver::default())
                .unwrap();
        let resolved = seeds.resolved().await;
        assert!(resolved.contains(&"10.0.0.1:1".parse().unwrap()));
        assert!(resolved.iter().any(|address| address.ip().is_loopback() && address.port() == 7401));
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_fails_keeps_its_addresses_and_is_asked_again_soon() {
        let mut seeds = Seeds::parse(&["a:1".to_owned(), "b:2".to_owned()], Resolver::default()).unwrap();
        let address = |port| SocketAddr::from(([10, 0, 0, 1], port));
        for (index, name) in seeds.names.iter_mut().enumerate() {
            name.answered(Ok(BTreeSet::from([address(index as u16 + 1)])));
            assert_eq!(name.due, Some(Instant::now() + RESOLVE_EVERY));
        }
        seeds.names[0].answered(Err("no such name".to_owned()));
        assert_eq!(seeds.names[0].due, Some(Instant::now() + RESOLVE_RETRY));
        assert_eq!(seeds.all(), BTreeSet::from([address(1), address(2)]));
        seeds.names[0].answered(Ok(BTreeSet::from([address(3)])));
        assert_eq!(seeds.all(), BTreeSet::from([address(2), address(3)]));
    }
}

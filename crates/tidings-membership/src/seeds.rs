//! Seeds: where to find a cluster before anybody in it is known.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// How often names are resolved again.
const RESOLVE_EVERY: Duration = Duration::from_secs(30);

/// How often, while no name resolves to anything.
const RESOLVE_RETRY: Duration = Duration::from_secs(2);

/// How long one name may take.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A seed is not `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("seed {0:?} is not host:port")]
pub struct InvalidSeed(pub String);

/// The configured seeds, and what they resolve to. Resolving happens in a task of its own that ends with
/// this.
///
/// chitchat could do this too, but waits for names at its start and leaves its task behind at its end.
pub(crate) struct Seeds {
    fixed: BTreeSet<SocketAddr>,
    names: Vec<String>,
    resolving: JoinSet<BTreeSet<SocketAddr>>,
    resolve_at: Instant,
}

impl Seeds {
    pub(crate) fn parse(seeds: &[String]) -> Result<Self, InvalidSeed> {
        let mut fixed = BTreeSet::new();
        let mut names = Vec::new();
        for seed in seeds {
            if let Ok(address) = seed.parse() {
                fixed.insert(address);
            } else if is_host_and_port(seed) {
                names.push(seed.clone());
            } else {
                return Err(InvalidSeed(seed.clone()));
            }
        }
        Ok(Self { fixed, names, resolving: JoinSet::new(), resolve_at: Instant::now() })
    }

    /// What needs no resolving.
    pub(crate) fn fixed(&self) -> &BTreeSet<SocketAddr> {
        &self.fixed
    }

    /// Waits until names have been resolved again, and returns all addresses. Never ends if there are no
    /// names.
    ///
    /// Cancel safe.
    pub(crate) async fn resolved(&mut self) -> BTreeSet<SocketAddr> {
        if self.names.is_empty() {
            std::future::pending::<()>().await;
        }
        if self.resolving.is_empty() {
            tokio::time::sleep_until(self.resolve_at).await;
            self.resolving.spawn(resolve(self.names.clone()));
        }
        let found = self.resolving.join_next().await.and_then(Result::ok).unwrap_or_default();
        let pause = if found.is_empty() { RESOLVE_RETRY } else { RESOLVE_EVERY };
        self.resolve_at = Instant::now() + pause;
        self.fixed.union(&found).copied().collect()
    }
}

fn is_host_and_port(seed: &str) -> bool {
    seed.rsplit_once(':').is_some_and(|(host, port)| {
        let port = port.parse::<u16>().is_ok_and(|port| port != 0);
        port && !host.is_empty() && !host.contains([':', '/', ' '])
    })
}

async fn resolve(names: Vec<String>) -> BTreeSet<SocketAddr> {
    let mut found = BTreeSet::new();
    for name in names {
        match timeout(RESOLVE_TIMEOUT, lookup_host(&name)).await {
            Ok(Ok(addresses)) => found.extend(addresses),
            Ok(Err(error)) => tracing::warn!(seed = name, %error, "seed does not resolve"),
            Err(_) => tracing::warn!(seed = name, "seed does not resolve in time"),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_an_address_or_a_host_with_a_port() {
        let good = ["127.0.0.1:1", "[::1]:7401", "shop-headless:7400", "a.example.org:1"].map(String::from);
        let seeds = Seeds::parse(&good).unwrap();
        assert_eq!((seeds.fixed.len(), seeds.names.len()), (2, 2));
        for bad in ["", "host", "host:", "host:0", "host:99999", ":7400", "::1:7400", "quic://host:1"] {
            assert!(Seeds::parse(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn names_are_resolved_beside_fixed_addresses() {
        let mut seeds = Seeds::parse(&["10.0.0.1:1".to_owned(), "localhost:7401".to_owned()]).unwrap();
        let resolved = seeds.resolved().await;
        assert!(resolved.contains(&"10.0.0.1:1".parse().unwrap()));
        assert!(resolved.iter().any(|address| address.ip().is_loopback() && address.port() == 7401));
    }
}

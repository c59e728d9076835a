//! How a NATS store is reached, and which servers do.

use std::time::Duration;

/// The oldest release that has all that is asked of it: direct access to the messages of a stream came with it.
pub const VERSION_NEEDED: &str = "2.9.0";

/// The same, to compare with.
pub(super) const VERSION_NEEDED_PARTS: (i64, i64, i64) = (2, 9, 0);

/// Longest prefix, in bytes: it is part of every name, of which a server takes 255 bytes.
pub const PREFIX_BYTES_MAX: usize = 64;

/// Most copies of a stream that a cluster of servers keeps.
pub const REPLICAS_MAX: usize = 5;

/// How a store is reached.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the names of all its streams and subjects begin with. Stores of different prefixes know nothing of each
    /// other. Default: `tidings`.
    pub prefix: String,
    /// How long a call waits for the server at most, for a connection included; what it is told to wait for
    /// ([`crate::ReceiveRequest::wait`]) comes on top, and what is asked for in parts may take as long for each.
    /// Default: 5 s; [`crate::WAIT_MAX`] at most.
    pub timeout: Duration,
    /// On how many servers of a cluster each stream that is made is kept, from 1 to [`REPLICAS_MAX`]. Streams that are
    /// there stay as they are. Default: 1.
    pub replicas: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { prefix: "tidings".to_owned(), timeout: Duration::from_secs(5), replicas: 1 }
    }
}

/// There is no store to be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// The text is no such URL. It is not repeated: it may hold a password.
    #[error(
        "the URL is none of a NATS server; it looks like nats://user:password@host:4222 or \
         tls://user:password@host:4222: {0}"
    )]
    Url(String),
    /// No prefix: empty, too long, or with something that a name cannot have.
    #[error("a prefix has 1 to {PREFIX_BYTES_MAX} ASCII letters, digits, - and _, not {0:?}")]
    Prefix(String),
    /// No such number of copies.
    #[error("a stream is kept on 1 to {REPLICAS_MAX} servers, not on {0}")]
    Replicas(usize),
    /// Nobody answers there.
    #[error("no NATS server answers at {address}: start it, or correct the URL ({reason})")]
    Unreachable {
        /// Where.
        address: String,
        /// What the system says.
        reason: String,
    },
    /// The server cannot do what is needed.
    #[error("the server at {address} is NATS {found}: streams need {VERSION_NEEDED} or later, upgrade it")]
    TooOld {
        /// Where.
        address: String,
        /// What it says it is.
        found: String,
    },
    /// The server keeps nothing.
    #[error(
        "the server at {address} has no JetStream for this account: start it with -js or a jetstream block in its \
         configuration, and enable it for the account ({reason})"
    )]
    NoJetStream {
        /// Where.
        address: String,
        /// What it says.
        reason: String,
    },
    /// The server answers, and does not let us in, or does not do what it has to.
    #[error("the server at {address} refuses: {reason}")]
    Refused {
        /// Where.
        address: String,
        /// What it says, and what to do.
        reason: String,
    },
}

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its release.
    pub version: String,
    /// Its name.
    pub name: String,
    /// Whether it has JetStream at all. That its account has it is found out by asking.
    pub has_jetstream: bool,
    /// Most bytes of a message, headers included.
    pub max_payload: usize,
}

impl Config {
    /// Judges this and a URL without connecting to anything.
    ///
    /// # Errors
    /// [`ConnectError::Url`], [`ConnectError::Prefix`] or [`ConnectError::Replicas`]. None shows anything of the URL.
    pub fn check(&self, url: &str) -> Result<(), ConnectError> {
        super::connect::servers(url)?;
        self.validate()
    }

    pub(super) fn validate(&self) -> Result<(), ConnectError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if self.prefix.is_empty() || self.prefix.len() > PREFIX_BYTES_MAX || !self.prefix.chars().all(fits) {
            return Err(ConnectError::Prefix(self.prefix.clone()));
        }
        if !(1..=REPLICAS_MAX).contains(&self.replicas) {
            return Err(ConnectError::Replicas(self.replicas));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_that_no_name_can_begin_with_is_refused() {
        let judged = |prefix: &str| Config { prefix: prefix.to_owned(), ..Config::default() }.validate();
        assert!(judged("shop-1_a").is_ok());
        for prefix in ["", "a.b", "a b", "a*", "a+b", "ä", &"x".repeat(65)] {
            assert!(matches!(judged(prefix), Err(ConnectError::Prefix(_))), "{prefix:?}");
        }
    }

    #[test]
    fn copies_beyond_what_a_cluster_keeps_are_refused() {
        let judged = |replicas| Config { replicas, ..Config::default() }.validate();
        assert!(judged(3).is_ok());
        assert!(matches!(judged(0), Err(ConnectError::Replicas(0))));
        assert!(matches!(judged(6), Err(ConnectError::Replicas(6))));
    }
}

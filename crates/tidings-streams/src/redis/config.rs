//! How a Redis store is reached, and which servers do.

use std::fmt;
use std::time::Duration;

use redis::{ConnectionInfo, IntoConnectionInfo, ProtocolVersion};

/// The oldest release that has all that is asked of it: `ZMSCORE`, `XPENDING` with `IDLE`, ranges that leave out their
/// ends, and `XTRIM` with `MINID` came with it. No test runs it: they run the release that is installed.
pub const VERSION_NEEDED: Version = Version(6, 2, 0);

/// Longest prefix, in bytes: it is part of every key.
pub const PREFIX_BYTES_MAX: usize = 64;

/// How a store is reached.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the names of all its keys begin with, in braces, so that they are in one slot of a Redis Cluster. Stores of
    /// different prefixes know nothing of each other. Default: `tidings`.
    pub prefix: String,
    /// How long a call waits for the server at most, for a connection included; what it is told to wait for
    /// ([`crate::ReceiveRequest::wait`]) comes on top, and what is asked for in parts may take as long for each.
    /// Default: 5 s; [`crate::WAIT_MAX`] at most.
    pub timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { prefix: "tidings".to_owned(), timeout: Duration::from_secs(5) }
    }
}

/// There is no store to be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// The text is no such URL. It is not repeated: it may hold a password.
    #[error(
        "the URL is none of a Redis server; it looks like redis://user:password@host:6379/0 or \
         unix:///run/redis.sock, and rediss:// is not supported: {0}"
    )]
    Url(String),
    /// No prefix: empty, too long, or with something that ends a hash tag.
    #[error("a prefix has 1 to {PREFIX_BYTES_MAX} bytes without braces, slashes and blanks, not {0:?}")]
    Prefix(String),
    /// Nobody answers there.
    #[error("no Redis server answers at {address}: start it, or correct the URL ({reason})")]
    Unreachable {
        /// Where.
        address: String,
        /// What the system says.
        reason: String,
    },
    /// The server cannot do what is needed.
    #[error("the server at {address} is Redis {found}: streams need {VERSION_NEEDED} or later, upgrade it")]
    TooOld {
        /// Where.
        address: String,
        /// What it says it is.
        found: Version,
    },
    /// The server takes no writes.
    #[error("the server at {address} is a replica: give the URL of its primary")]
    Replica {
        /// Where.
        address: String,
    },
    /// The server answers, and does not let us in.
    #[error("the server at {address} refuses: {reason}")]
    Refused {
        /// Where.
        address: String,
        /// What it says, and what to do.
        reason: String,
    },
}

/// A release of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Version {
    fn parse(text: &str) -> Option<Self> {
        // What follows the numbers, as in `7.4.0-rc1`, does not make it older.
        let number = |part: Option<&str>| {
            let part = part.unwrap_or("0");
            let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            part[..end].parse().ok()
        };
        let mut parts = text.splitn(3, '.');
        Some(Self(number(parts.next())?, number(parts.next())?, number(parts.next())?))
    }
}

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its release. A server that is no Redis says the one that it is compatible with.
    pub version: Version,
    /// Whether it takes no writes.
    pub is_replica: bool,
    /// Whether it writes what it acknowledges to a file. How soon that is on the disk is its `appendfsync`.
    pub appends: bool,
    /// Whether it may remove keys of its own accord when its memory is full.
    pub evicts: bool,
}

impl Server {
    /// Reads an answer to `INFO`. `None`: it says no release.
    pub(super) fn parse(info: &str) -> Option<Self> {
        let said = |name: &str| {
            info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        Some(Self {
            version: Version::parse(said("redis_version")?)?,
            is_replica: matches!(said("role"), Some("slave" | "replica")),
            appends: said("aof_enabled") == Some("1"),
            evicts: said("maxmemory").is_some_and(|bytes| bytes != "0")
                && said("maxmemory_policy").is_some_and(|policy| policy != "noeviction"),
        })
    }

    /// Whether it will do.
    pub(super) fn judge(&self, address: &str) -> Result<(), ConnectError> {
        let address = address.to_owned();
        if self.version < VERSION_NEEDED {
            return Err(ConnectError::TooOld { address, found: self.version });
        }
        if self.is_replica { Err(ConnectError::Replica { address }) } else { Ok(()) }
    }
}

impl Config {
    /// Judges this and a URL without connecting to anything.
    ///
    /// # Errors
    /// [`ConnectError::Url`] or [`ConnectError::Prefix`]. Neither shows anything of the URL.
    pub fn check(&self, url: &str) -> Result<(), ConnectError> {
        connection_info(url)?;
        self.base().map(drop)
    }

    /// What all keys begin with.
    pub(super) fn base(&self) -> Result<String, ConnectError> {
        let odd = |c: char| matches!(c, '{' | '}' | '/') || c.is_whitespace() || c.is_control();
        if self.prefix.is_empty() || self.prefix.len() > PREFIX_BYTES_MAX || self.prefix.contains(odd) {
            return Err(ConnectError::Prefix(self.prefix.clone()));
        }
        Ok(format!("{{{}}}/", self.prefix))
    }
}

/// Judges a URL.
pub(super) fn connection_info(url: &str) -> Result<ConnectionInfo, ConnectError> {
    // What the crate says of a URL that it cannot read does not repeat it.
    let info = url.into_connection_info().map_err(|error| ConnectError::Url(error.to_string()))?;
    match info.addr() {
        redis::ConnectionAddr::Tcp(..) | redis::ConnectionAddr::Unix(..) => {
            // Answers are read as the older protocol has them, whatever the URL asks for.
            let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2);
            let tcp = redis::io::tcp::TcpSettings::default().set_nodelay(true);
            Ok(info.set_redis_settings(settings).set_tcp_settings(tcp))
        }
        _ => Err(ConnectError::Url("TLS is not built in".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\n\
                        # Memory\r\nmaxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n\
                        # Persistence\r\naof_enabled:1\r\n# Replication\r\nrole:master\r\n";

    #[test]
    fn a_server_is_what_it_says_it_is() {
        let server = Server::parse(INFO).unwrap();
        let wanted = Server { version: Version(7, 0, 15), is_replica: false, appends: true, evicts: false };
        assert_eq!(server, wanted);
        assert!(Server::parse(&INFO.replace("maxmemory:0", "maxmemory:9")).unwrap().evicts);
        assert_eq!(Server::parse("role:master"), None);
    }

    #[test]
    fn a_server_that_will_not_do_is_refused_with_what_to_do() {
        let judged = |from: &str, to: &str| {
            let refused = Server::parse(&INFO.replace(from, to)).unwrap().judge("here:1");
            refused.map_err(|error| error.to_string())
        };
        assert_eq!(judged("", ""), Ok(()));
        assert_eq!(judged("7.0.15", "6.2"), Ok(()));
        let old = judged("7.0.15", "6.0.16-rc1").unwrap_err();
        assert_eq!(old, "the server at here:1 is Redis 6.0.16: streams need 6.2.0 or later, upgrade it");
        assert!(judged("master", "slave").unwrap_err().contains("its primary"));
    }

    #[test]
    fn a_url_that_is_none_is_refused_without_its_password() {
        for url in ["", "http://a:secret@b", "redis//secret", "rediss://:secret@host"] {
            let refused = connection_info(url).unwrap_err().to_string();
            assert!(refused.contains("redis://") && !refused.contains("secret"), "{url}: {refused}");
        }
        assert!(Config::default().check("redis://127.0.0.1:6379").is_ok());
        assert!(Config::default().check("unix:///run/redis.sock").is_ok());
    }

    #[test]
    fn a_prefix_that_would_end_the_hash_tag_is_refused() {
        let base = |prefix: &str| Config { prefix: prefix.to_owned(), ..Config::default() }.base();
        assert_eq!(base("shop").unwrap(), "{shop}/");
        for prefix in ["", "a}b", "a/b", "a b", &"x".repeat(65)] {
            assert!(base(prefix).is_err(), "{prefix:?}");
        }
    }
}

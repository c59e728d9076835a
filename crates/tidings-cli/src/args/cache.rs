//! Options of `cache` and `watch`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::units;

pub(super) const WATCH_EXAMPLES: &str = "\
Examples:
  tidings watch users
  tidings watch users --kinds inserted,deleted --scope remote --limit 10 --json";

/// The cache a verb is about.
#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    /// Name of the cache
    pub(crate) cache: String,
}

/// Verbs about caches.
#[derive(Debug, Subcommand)]
pub(crate) enum CacheVerb {
    /// List the node's caches
    Ls,
    /// Show a cache's settings and statistics
    Info(CacheArgs),
    /// Print the value that the node's cache holds for a key; exit 3 if it holds none
    Get {
        #[command(flatten)]
        cache: CacheArgs,
        /// The key; it may be empty
        key: String,
    },
    /// Show which nodes hold a key, and up to when each has applied what all others did; exit 7 if some do not say
    Where {
        #[command(flatten)]
        cache: CacheArgs,
        /// The key; it may be empty
        key: String,
        /// Wait so long for the other nodes, 10s at most; by default 1s
        #[arg(long, value_name = "DURATION", value_parser = units::duration)]
        wait: Option<Duration>,
    },
    /// Put a value; every other node then drops its copy
    #[command(after_help = "Examples:\n  tidings cache put users 42 '{\"name\":\"Ann\"}' --ttl 5m\n  \
        tidings cache put users 42 - < user.json")]
    Put(PutArgs),
    /// Delete a key on every node, also if this node does not hold it
    Del {
        #[command(flatten)]
        cache: CacheArgs,
        /// The key; it may be empty
        key: String,
        /// Wait so long for the peers to have applied it, 60s at most; exit 7 if some have not
        #[arg(long, value_name = "DURATION", value_parser = units::duration)]
        acked: Option<Duration>,
    },
    /// Drop several entries on every node: exactly what is named
    #[command(after_help = "Examples:\n  tidings cache invalidate users --key 1 --key 2\n  \
        tidings cache invalidate users --tag tenant:7\n  \
        tidings cache invalidate users --prefix session:\n  \
        tidings cache invalidate users --all")]
    Invalidate(InvalidateArgs),
}

/// Options of `cache put`.
#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    /// The key; it may be empty
    pub(crate) key: String,
    /// The value; `-` reads it from stdin
    pub(crate) value: String,
    /// The entry's time to live; by default the cache's
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub(crate) ttl: Option<Duration>,
    /// Tag of the entry; several are separated by commas, or repeated
    #[arg(long = "tag", visible_alias = "tags", value_name = "TAG", value_delimiter = ',')]
    pub(crate) tags: Vec<String>,
    /// Note for subscribers, NAME=VALUE; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) meta: Vec<(String, String)>,
    /// Wait so long for the peers to have applied it, 60s at most; exit 7 if some have not
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub(crate) acked: Option<Duration>,
}

/// Options of `cache invalidate`.
#[derive(Debug, Args)]
pub(crate) struct InvalidateArgs {
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) what: Named,
    /// Wait so long for the peers to have applied it, 60s at most; exit 7 if some have not
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub(crate) acked: Option<Duration>,
}

/// What to invalidate: one kind of target.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Named {
    /// A key; may be repeated
    #[arg(long = "key", value_name = "KEY")]
    pub(crate) keys: Vec<String>,
    /// Entries with this tag; may be repeated
    #[arg(long = "tag", value_name = "TAG")]
    pub(crate) tags: Vec<String>,
    /// Entries whose key starts with this
    #[arg(long)]
    pub(crate) prefix: Option<String>,
    /// Everything in the cache
    #[arg(long)]
    pub(crate) all: bool,
}

/// Options of `watch`.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    /// Only these kinds of events, comma separated; by default all
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) kinds: Vec<Kind>,
    /// Only this partition of the answering node
    #[arg(long, value_name = "N")]
    pub(crate) partition: Option<u32>,
    /// Only keys that start with this
    #[arg(long)]
    pub(crate) prefix: Option<String>,
    /// Only changes made here or elsewhere; by default both
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) scope: Vec<Scope>,
    /// End after so many events
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,
}

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// A key got its first value
    Inserted,
    /// A value was replaced
    Updated,
    /// A key was removed
    Deleted,
    /// An entry reached its time to live or to idle
    Expired,
    /// An entry made room
    Evicted,
    /// A peer's change removed the local copy
    Invalidated,
    /// The cache was emptied
    Cleared,
}

/// Where a change was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scope {
    /// On the answering node
    Local,
    /// On any other
    Remote,
}

pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=VALUE"))?;
    if name.is_empty() {
        Err("the name is empty".to_owned())
    } else {
        Ok((name.to_owned(), value.to_owned()))
    }
}

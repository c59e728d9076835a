//! Options of the verbs that drive load: `demo` and `replay`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tidings_proto::freshness::Bounds;
use tidings_proto::id::{InvalidName, check_name};

use crate::units;

pub(super) const DEMO_EXAMPLES: &str = "\
Examples:
  tidings demo
  tidings demo --nodes 5 --duration 30s --json
  tidings demo --http-port 0          # free ports";

pub(super) const REPLAY_EXAMPLES: &str = "\
Examples:
  tidings replay --trace requests.csv.zst --write-ratio 0.05 --json
  tidings replay --trace requests.csv --speed 1.0 --chaos
  tidings replay --generate 100000 --urls http://127.0.0.1:7481,http://127.0.0.1:7482

A trace has a line `time_s,key,size_bytes` per request, plain or zstd; lines that start with # are comments.
hit_ratio is the share of reads that were answered without a load of their own. Exit 1 if a read was older than
the bound or if an entry differs from the system of record at the end.";

/// Most nodes in one process: each has its endpoint, its tasks and its caches.
const NODES_MAX: i64 = 16;

/// What both kinds of load have in common.
#[derive(Clone, Debug, Args)]
pub(crate) struct LoadArgs {
    /// Nodes of the cluster
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=NODES_MAX))]
    pub(crate) nodes: u8,
    /// Share of requests that write, 0 to 1
    #[arg(long, value_name = "SHARE", default_value = "0.05", value_parser = units::share)]
    pub(crate) write_ratio: f64,
    /// Seed of everything that is drawn: nodes, writes, generated keys, chaos
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Capacity of the cache on each node
    #[arg(long, value_name = "BYTES", default_value = "64MiB", value_parser = capacity)]
    pub(crate) capacity: u64,
    /// Oldest value that a node may serve while it cannot know better
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = staleness)]
    pub(crate) max_staleness: Duration,
    /// Different keys of generated traffic
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) keys: u64,
}

/// Options of `demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    /// Stop after this time and print the summary; by default run until Ctrl-C
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub(crate) duration: Option<Duration>,
    /// HTTP port of the first node, the next ones follow; 0: free ones
    #[arg(long, value_name = "PORT", default_value_t = 7480)]
    pub(crate) http_port: u16,
    /// Replay this trace, over and over, instead of generated traffic
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Requests per second over all nodes
    #[arg(long, value_name = "N", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rate: u64,
}

/// Options of `replay`.
#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// The trace
    #[arg(long, value_name = "FILE", required_unless_present = "generate", conflicts_with = "generate")]
    pub(crate) trace: Option<PathBuf>,
    /// Generate so many requests, keys by a Zipf law, instead of a trace
    #[arg(long, value_name = "N")]
    pub(crate) generate: Option<u64>,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    /// `max`, or a multiple of the trace's own pace such as 1.0. Default: max, or 1.0 with --chaos
    #[arg(long, value_parser = Speed::parse)]
    pub(crate) speed: Option<Speed>,
    /// Stop after so many requests
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,
    /// Stop after this time
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub(crate) duration: Option<Duration>,
    /// Run the nodes as processes; kill, pause and cut them on a schedule drawn from the seed, and print it
    #[arg(long, conflicts_with = "urls")]
    pub(crate) chaos: bool,
    /// Drive these running nodes over HTTP instead of nodes in this process, comma separated
    #[arg(long, value_name = "URL,URL,…", value_delimiter = ',', conflicts_with = "nodes")]
    pub(crate) urls: Vec<String>,
    /// Cache to use on nodes driven over HTTP; emptied first. Where it is not open it is opened, and closed at the end
    #[arg(long, value_name = "NAME", default_value = "replay", value_parser = cache)]
    pub(crate) cache: String,
    /// Requests under way at a time; by default 4 in process and 32 over HTTP
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) workers: Option<u16>,
}

/// Slowest pace: an hour of a trace takes six weeks.
const SPEED_MIN: f64 = 0.001;

/// How fast a trace is replayed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Speed {
    /// As fast as the nodes answer.
    Max,
    /// So many seconds of the trace per second.
    Factor(f64),
}

impl Speed {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self::Max);
        }
        let factor: f64 = text.parse().unwrap_or(f64::NAN);
        if factor.is_finite() && factor >= SPEED_MIN {
            Ok(Self::Factor(factor))
        } else {
            Err(format!("{text:?} is no speed: write max, or a number from {SPEED_MIN} such as 1.0"))
        }
    }
}

fn capacity(text: &str) -> Result<u64, String> {
    let bytes = units::bytes(text)?;
    if bytes > 0 { Ok(bytes) } else { Err("a cache of this size holds nothing".to_owned()) }
}

/// A bound that nodes accept whose other limits are the defaults.
fn staleness(text: &str) -> Result<Duration, String> {
    let (bound, most) = (units::duration(text)?, Bounds::default().lost_grace);
    if !bound.is_zero() && bound <= most {
        Ok(bound)
    } else {
        Err(format!("write a time above 0s, up to {}", units::show_duration(most)))
    }
}

fn cache(name: &str) -> Result<String, InvalidName> {
    check_name(name).map(|()| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_read() {
        assert_eq!(Speed::parse("max"), Ok(Speed::Max));
        assert_eq!(Speed::parse("0.5"), Ok(Speed::Factor(0.5)));
        for text in ["", "0", "-1", "1e-300", "inf", "NaN", "fast"] {
            assert!(Speed::parse(text).is_err(), "{text}");
        }
    }
}

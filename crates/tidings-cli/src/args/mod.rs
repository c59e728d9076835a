//! The command line: every verb, its options, their units and defaults.

mod cache;
mod load;
mod streams;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use tidings_http::Role;
use tidings_proto::id::{InvalidName, NodeId, check_name};
use tidings_transport::AUTHORITY_VALIDITY;

pub(crate) use self::cache::{CacheVerb, InvalidateArgs, PutArgs, WatchArgs};
pub(crate) use self::load::{DemoArgs, ReplayArgs, Speed};
pub(crate) use self::streams::{
    ConsumeArgs, DeadVerb, Filter, GroupArgs, GroupVerb, LettersArgs, NewestFirst, PublishArgs,
    ReplayEventsArgs, StreamVerb, TrimArgs, ViewArgs,
};
use crate::client::Credentials;
use crate::units;

/// Where a node's HTTP API is looked for unless told otherwise.
const URL_DEFAULT: &str = "http://127.0.0.1:7480";

/// A cluster of in-process caches that is never silently stale.
#[derive(Debug, Parser)]
#[command(name = "tidings", version, propagate_version = true, max_term_width = 110, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

const EXIT_CODES: &str = "\
Exit codes:
  0 ok · 1 operation failed · 2 usage · 3 not found · 4 unreachable or timed out
  5 refused (auth, TLS) · 6 conflict or precondition · 7 partial success
  78 bad configuration · 130 interrupted

Try it:
  tidings demo                       three nodes with mutual TLS in this process, under load
  tidings init --out first           configuration and certificates of a first node
  tidings node --config first/n1.toml";

/// Options of every verb.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Print one JSON document on stdout; endless output is one JSON document a line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// When to use colours: auto, always or never; NO_COLOR turns auto off
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", hide_possible_values = true)]
    pub(crate) color: Colour,
    /// Print results, warnings and errors only
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Say more on stderr; twice: even more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// HTTP API of the node to speak to
    #[arg(long, global = true, env = "TIDINGS_URL", hide_env_values = true, default_value = URL_DEFAULT)]
    url: String,
    /// File whose first line is the bearer token for the HTTP API
    #[arg(long, global = true, value_name = "FILE", env = "TIDINGS_TOKEN_FILE", hide_env_values = true)]
    pub(crate) token_file: Option<PathBuf>,
    /// Authorities whose certificates count for https URLs (PEM). Default: those that the system trusts
    #[arg(long, global = true, value_name = "FILE", env = "TIDINGS_CA_FILE", hide_env_values = true)]
    pub(crate) ca_file: Option<PathBuf>,
}

impl Global {
    /// HTTP API of the node to speak to. A variable that is empty is as good as none.
    pub(crate) fn url(&self) -> &str {
        if self.url.is_empty() { URL_DEFAULT } else { &self.url }
    }

    /// What clients show, and whom they believe. A variable that is empty is as good as none.
    pub(crate) fn credentials(&self) -> Credentials<'_> {
        let is_given = |file: &&Path| !file.as_os_str().is_empty();
        Credentials {
            token_file: self.token_file.as_deref().filter(is_given),
            ca_file: self.ca_file.as_deref().filter(is_given),
        }
    }
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Colour {
    /// On a terminal
    Auto,
    /// In any case
    Always,
    /// In no case
    Never,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run a whole cluster in this process under load, and watch it
    #[command(after_help = load::DEMO_EXAMPLES)]
    Demo(DemoArgs),
    /// Run a node as a process of its own
    #[command(
        after_help = "Example:\n  tidings node --config n1.toml\n\nSIGTERM or the first Ctrl-C shuts down cleanly \
        (exit 0); a second one ends at once (exit 130). SIGHUP reads the certificates, tls.denied and the tokens \
        again."
    )]
    Node(NodeArgs),
    /// Write configuration and certificates for a first node, or for another one of the same cluster
    #[command(after_help = "Example:\n  tidings init --cluster shop --node replica-1 --out shop\n  \
        tidings node --config shop/replica-1.toml\n  tidings init --node replica-2 --out shop\n\nAn authority that \
        is there issues the certificate, and stays as it is.")]
    Init(InitArgs),
    /// Make and inspect the certificates of a cluster
    #[command(subcommand)]
    Certs(CertsVerb),
    /// Make tokens for the HTTP API
    #[command(subcommand)]
    Token(TokenVerb),
    /// Check, show and explain configuration
    #[command(subcommand)]
    Config(ConfigVerb),
    /// List the members of the cluster as the node sees them
    Members,
    /// Say how the node and its caches are
    Status,
    /// Compare everything that the node caches with what every other live node caches, by digests
    #[command(
        after_help = "Exit 0: all that two nodes hold is the same. Exit 1: some entries differ, and no change explains \
        it. Exit 7: not everything could be compared, or judged.\n\nWhat differs is looked at again, write_horizon \
        and a second later. Caches with audit = false are left out. The node does it by itself, over and over, with \
        coherence.audit_keys_per_second."
    )]
    Audit,
    /// Declare a lost node ended, so that the node that is told stops waiting for it
    #[command(
        after_help = "Only for nodes that will not come back under this incarnation: what they had not yet \
        told is then bounded by write_horizon. Peers do not tell each other: say it to each of them."
    )]
    Forget {
        /// The node's id
        node: NodeId,
    },
    /// Tell the node to hand over: not ready any more; waits until its peers have applied what it did so far
    Drain,
    /// Look into and change the node's caches
    #[command(subcommand)]
    Cache(CacheVerb),
    /// Follow the change events of a cache as they happen
    #[command(after_help = cache::WATCH_EXAMPLES)]
    Watch(WatchArgs),
    /// Look into and change the node's durable streams
    #[command(subcommand)]
    Stream(StreamVerb),
    /// Look into and change the groups of a topic
    #[command(subcommand)]
    Group(GroupVerb),
    /// Look into dead letters, retry and remove them
    #[command(subcommand)]
    Dlq(DeadVerb),
    /// Take the events of a topic for a group
    #[command(after_help = streams::CONSUME_EXAMPLES)]
    Consume(ConsumeArgs),
    /// Run a request trace through a cluster against a system of record, and count every stale read
    #[command(after_help = load::REPLAY_EXAMPLES)]
    Replay(Box<ReplayArgs>),
    /// Probe for monitoring systems: 0 ok, 1 warning, 2 critical, 3 unknown
    #[command(subcommand)]
    Check(CheckVerb),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  tidings completions bash > /etc/bash_completion.d/tidings")]
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Options of `node`.
#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// Configuration file (TOML); TIDINGS_SECTION__KEY variables override it
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Process that started this one: the node ends with it, however that happens
    #[arg(long, hide = true, value_name = "PID")]
    pub(crate) parent: Option<i32>,
}

/// Options of `init`.
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Name of the cluster. Default: that of the authority that is there, else demo
    #[arg(long, value_parser = cluster)]
    pub(crate) cluster: Option<String>,
    /// Id of the node
    #[arg(long, value_name = "ID", default_value = "n1")]
    pub(crate) node: NodeId,
    /// Directory to write into; made if it is not there
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) out: PathBuf,
    /// Replace the node's files that are there; never the authority's
    #[arg(long)]
    pub(crate) force: bool,
}

/// Verbs about certificates.
#[derive(Debug, Subcommand)]
pub(crate) enum CertsVerb {
    /// Make the certificate authority of a cluster: ca.pem and ca.key
    #[command(after_help = "Example:\n  tidings certs init --cluster shop --out certs")]
    Init {
        /// Name of the cluster
        #[arg(long, value_parser = cluster)]
        cluster: String,
        /// Directory to write into; made if it is not there
        #[arg(long, value_name = "DIR", default_value = "certs")]
        out: PathBuf,
        /// Replace an authority that is there, keeping its files beside it; certificates it issued are then worthless
        #[arg(long)]
        force: bool,
    },
    /// Issue a node's certificate: ID.pem and ID.key
    #[command(after_help = "Example:\n  tidings certs issue --dir certs --node replica-1 --san 10.0.0.7")]
    Issue {
        /// Directory that holds ca.pem and ca.key
        #[arg(long, value_name = "DIR", default_value = "certs")]
        dir: PathBuf,
        /// The node's id
        #[arg(long, value_name = "ID")]
        node: NodeId,
        /// Further IP address or DNS name of the node; may be repeated
        #[arg(long, value_name = "IP-OR-DNS")]
        san: Vec<String>,
        /// How long the certificate is valid
        #[arg(long, value_name = "DURATION", default_value = "90d", value_parser = validity)]
        validity: Duration,
        /// Replace a certificate and key that are there
        #[arg(long)]
        force: bool,
    },
    /// Say what a certificate says
    Inspect {
        /// Certificate (PEM)
        file: PathBuf,
    },
}

/// Verbs about tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenVerb {
    /// Print a new token, once, and the line by which a node knows it
    #[command(
        after_help = "Example:\n  tidings token create --role operator --name deploy\n\nThe token goes to whoever \
        uses it, in a file for --token-file. The line goes to the file that http.token_file names on every node that \
        is to know the token; nodes read it again when it changes. Mode 0600 for both.\n\nRoles: a viewer looks, an \
        operator works with caches and streams, and also invalidates, drains a node and makes a group go on from \
        elsewhere; an admin does everything, also close caches, remove groups, events and dead letters, and forget \
        nodes."
    )]
    Create {
        /// What its holder may do: viewer, operator or admin
        #[arg(long, value_parser = role)]
        role: Role,
        /// By what name the audit log knows it. Default: the role and eight random letters
        #[arg(long, value_parser = cluster)]
        name: Option<String>,
        /// Lets it see values and payloads as well: whoever reads caches or consumes streams needs that
        #[arg(long)]
        payloads: bool,
    },
}

/// Verbs about configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Judge a configuration whole and report every finding; exit 78 if it cannot be used
    Check {
        /// Configuration file; `-` is stdin
        file: PathBuf,
    },
    /// Print the effective values, each with its origin: default, file or environment
    Show {
        /// Configuration file; `-` is stdin
        file: PathBuf,
    },
    /// Print a commented configuration with every default
    Default,
    /// Print the JSON schema of the configuration
    Schema,
}

/// Probes. They exit 0 ok, 1 warning, 2 critical, 3 unknown.
#[derive(Debug, Subcommand)]
pub(crate) enum CheckVerb {
    /// Whether the node is up, ready and in step with its members
    Node,
    /// Whether the node should get requests, as /readyz says, whatever its members do: what orchestrators ask
    Ready,
    /// Whether every member the node knows is live and in step
    Cluster,
    /// Whether certificates are valid, and stay so for a while
    Certs {
        /// Certificates (PEM), or directories of them
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// Warn if one expires within this time
        #[arg(long, value_name = "DURATION", default_value = "14d", value_parser = units::duration)]
        warning: Duration,
        /// Critical if one expires within this time
        #[arg(long, value_name = "DURATION", default_value = "3d", value_parser = units::duration)]
        critical: Duration,
    },
}

/// Whether a command line is that of a probe, even if the rest of it makes no sense: its exit codes mean other things.
pub(crate) fn is_probe(arguments: impl Iterator<Item = OsString>) -> bool {
    const WITH_VALUES: [&str; 4] = ["--color", "--url", "--token-file", "--ca-file"];
    let mut arguments = arguments.skip(1);
    while let Some(argument) = arguments.next() {
        if WITH_VALUES.iter().any(|option| argument == *option) {
            arguments.next();
        } else if !argument.as_encoded_bytes().starts_with(b"-") {
            return argument == "check";
        }
    }
    false
}

fn role(text: &str) -> Result<Role, String> {
    Role::parse(text).ok_or_else(|| "write viewer, operator or admin".to_owned())
}

fn cluster(name: &str) -> Result<String, InvalidName> {
    check_name(name).map(|()| name.to_owned())
}

/// How long a certificate is valid: at least a minute, and no longer than the authority.
fn validity(text: &str) -> Result<Duration, String> {
    const LEAST: Duration = Duration::from_secs(60);
    let validity = units::duration(text)?;
    if (LEAST..=AUTHORITY_VALIDITY).contains(&validity) {
        Ok(validity)
    } else {
        Err("write a time from 1m to the 10 years that an authority is valid".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_may_follow_the_verb() {
        let cli =
            Cli::try_parse_from(["tidings", "members", "--json", "--url", "http://127.0.0.1:1"]).unwrap();
        assert!(cli.global.json);
        assert_eq!(cli.global.url, "http://127.0.0.1:1");
    }

    #[test]
    fn invalid_names_are_refused() {
        assert!(Cli::try_parse_from(["tidings", "forget", "no spaces"]).is_err());
        assert!(Cli::try_parse_from(["tidings", "init", "--cluster", ""]).is_err());
    }
}

//! Options of `stream`, `group`, `dlq` and `consume`.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use tidings::streams::{EventId, Name};

use super::cache::pair;
use crate::units;

pub(super) const CONSUME_EXAMPLES: &str = "\
Examples:
  tidings consume orders --group billing --exec ./bill.sh
  tidings consume orders --group billing --max 10 --auto-ack --json

--exec runs the command once for each event, with the payload on its stdin and TIDINGS_TOPIC, TIDINGS_GROUP, TIDINGS_ID,
TIDINGS_KEY, TIDINGS_ATTEMPTS in its environment: exit 0 acknowledges the event, any other fails it. Without --exec events
are printed; without --auto-ack as well, they stay pending, are delivered again after the topic's min_idle_time, and
after max_deliveries times are dead letters; `tidings stream view` looks without taking.";

const OFFLINE: &str = "\
With --dir, run it as the user who keeps the store: what it makes there is that user's then.";

/// Verbs about topics.
#[derive(Debug, Subcommand)]
pub(crate) enum StreamVerb {
    /// List the topics
    Ls,
    /// Show a topic: what it holds, its settings and groups
    Info {
        /// The topic
        topic: Name,
    },
    /// Publish an event
    #[command(after_help = "Examples:\n  tidings stream publish orders '{\"order\":7}' --key customer-3\n  \
        tidings stream publish images - --content-type image/png < image.png")]
    Publish(PublishArgs),
    /// Show a topic's events, or one of them
    View(ViewArgs),
    /// Remove the oldest events by limits; without any, by the configured retention
    #[command(after_help = "What a group has not settled is kept, unless --force says otherwise.")]
    Trim(TrimArgs),
    /// Remove all events of a topic that its groups have settled
    Purge {
        /// The topic
        topic: Name,
        /// Also what groups have not settled: it is lost to them
        #[arg(long)]
        force: bool,
        /// Say what would be, and do nothing
        #[arg(long)]
        dry_run: bool,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Publish events of a topic again, to another one
    #[command(after_help = "To deliver events of a topic to one of its groups again: `tidings group seek`.")]
    Replay(ReplayEventsArgs),
    /// Write all events of a topic, a line of JSON each
    #[command(after_help = OFFLINE)]
    Export {
        /// The topic
        topic: Name,
        /// File to write; by default stdout
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Directory of a store that no node has open, instead of asking a node
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Publish an event for every line that `export` wrote
    #[command(after_help = "Events get new ids. Lines with idempotency keys may be imported again.")]
    Import {
        /// The topic
        topic: Name,
        /// The lines; `-` is stdin
        file: PathBuf,
    },
    /// Read everything that is stored, and name what is damaged; exit 1 if anything is
    #[command(after_help = OFFLINE)]
    Verify {
        /// Directory of a store that no node has open, instead of asking a node
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// Options of `stream publish`.
#[derive(Debug, Args)]
pub(crate) struct PublishArgs {
    /// The topic
    pub(crate) topic: Name,
    /// The payload; `-` reads it from stdin
    pub(crate) payload: String,
    /// Events of one key are delivered one after the other where the topic is ordered
    #[arg(long)]
    pub(crate) key: Option<String>,
    /// Header, NAME=VALUE; may be repeated
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) headers: Vec<(String, String)>,
    /// What the payload is
    #[arg(long, value_name = "TYPE")]
    pub(crate) content_type: Option<String>,
    /// Published again with this key within the topic's window, it is stored once
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
    /// Deliver it from then on, such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) not_before: Option<String>,
}

/// Options of `stream view`.
#[derive(Debug, Args)]
pub(crate) struct ViewArgs {
    /// The topic
    pub(crate) topic: Name,
    /// Only this event
    pub(crate) id: Option<EventId>,
    /// Beyond this one, in the order asked for
    #[arg(long, value_name = "ID")]
    pub(crate) after: Option<EventId>,
    /// Published at this moment or later, such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) from: Option<String>,
    /// Published before this moment
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) until: Option<String>,
    /// So many events at most, 1000 at most
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub(crate) limit: usize,
    /// Which come first
    #[arg(long, value_enum, default_value = "newest")]
    pub(crate) order: NewestFirst,
}

/// Which events come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NewestFirst {
    /// The newest
    Newest,
    /// The oldest
    Oldest,
}

/// Options of `stream trim`.
#[derive(Debug, Args)]
pub(crate) struct TrimArgs {
    /// The topic
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub(crate) topic: Option<Name>,
    /// All topics
    #[arg(long)]
    pub(crate) all: bool,
    /// Keep the newest so many
    #[arg(long, value_name = "N")]
    pub(crate) max_events: Option<u64>,
    /// Keep what was published within so long
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub(crate) max_age: Option<Duration>,
    /// Keep the newest of so many bytes together
    #[arg(long, value_name = "BYTES", value_parser = units::bytes)]
    pub(crate) max_bytes: Option<u64>,
    /// Remove also what groups have not settled: it is lost to them
    #[arg(long)]
    pub(crate) force: bool,
    /// Say what would be, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Options of `stream replay`.
#[derive(Debug, Args)]
pub(crate) struct ReplayEventsArgs {
    /// The topic whose events are published again
    pub(crate) topic: Name,
    /// The topic that gets them
    #[arg(long, value_name = "TOPIC")]
    pub(crate) to: Name,
    /// Beyond this one
    #[arg(long, value_name = "ID")]
    pub(crate) after: Option<EventId>,
    /// Published at this moment or later, such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) from: Option<String>,
    /// Published before this moment; by default before the replay begins
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) until: Option<String>,
    /// Say how many there are, and publish nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// A group of a topic.
#[derive(Debug, Args)]
pub(crate) struct GroupArgs {
    /// The topic
    pub(crate) topic: Name,
    /// The group
    pub(crate) group: Name,
}

/// Verbs about groups.
#[derive(Debug, Subcommand)]
pub(crate) enum GroupVerb {
    /// List a topic's groups
    Ls {
        /// The topic
        topic: Name,
    },
    /// Make a group; one that is there stays where it is
    Add {
        #[command(flatten)]
        group: GroupArgs,
        /// Where it begins: earliest, latest, an id, or a time such as 2026-01-31T12:00:00Z
        #[arg(long, default_value = "earliest")]
        start: String,
    },
    /// Remove a group with all that it has not settled
    Rm {
        #[command(flatten)]
        group: GroupArgs,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// List what a group has taken and not settled
    Pending {
        #[command(flatten)]
        group: GroupArgs,
        /// Beyond this one
        #[arg(long, value_name = "ID")]
        after: Option<EventId>,
        /// So many at most, 1000 at most
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
    },
    /// Take over what nobody has done anything about for a while, and print it
    Claim {
        #[command(flatten)]
        group: GroupArgs,
        /// For whom
        #[arg(long, value_name = "NAME", default_value = "cli")]
        consumer: Name,
        /// What was idle for so long
        #[arg(long, value_name = "DURATION", value_parser = units::duration)]
        min_idle: Duration,
        /// So many at most, 1000 at most
        #[arg(long, value_name = "N", default_value_t = 10)]
        max: usize,
    },
    /// Make a group go on from elsewhere; what it has taken is forgotten
    Seek {
        #[command(flatten)]
        group: GroupArgs,
        /// earliest, latest, an id, or a time such as 2026-01-31T12:00:00Z
        to: String,
        /// Say what would be, and do nothing
        #[arg(long)]
        dry_run: bool,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Stop a group from taking events
    Pause(GroupArgs),
    /// Let a group go on
    Resume(GroupArgs),
}

/// Which dead letters.
#[derive(Debug, Args)]
pub(crate) struct Filter {
    /// Of this topic
    #[arg(long)]
    pub(crate) topic: Option<Name>,
    /// Of this group
    #[arg(long)]
    pub(crate) group: Option<Name>,
    /// In this dead-letter stream
    #[arg(long, value_name = "NAME")]
    pub(crate) stream: Option<Name>,
}

/// Which dead letters to do something with: these, those of a filter, or all.
#[derive(Debug, Args)]
pub(crate) struct LettersArgs {
    /// Ids of dead letters
    #[arg(conflicts_with_all = ["topic", "group", "stream", "all"])]
    pub(crate) ids: Vec<EventId>,
    #[command(flatten)]
    pub(crate) filter: Filter,
    /// All dead letters
    #[arg(long, conflicts_with_all = ["topic", "group", "stream"])]
    pub(crate) all: bool,
    /// Say how many that would be, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Verbs about dead letters.
#[derive(Debug, Subcommand)]
pub(crate) enum DeadVerb {
    /// List dead letters, newest first
    Ls {
        #[command(flatten)]
        filter: Filter,
        /// Older than this one
        #[arg(long, value_name = "ID")]
        after: Option<EventId>,
        /// So many at most, 1000 at most
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
    },
    /// Show a dead letter with its story
    View {
        /// Its id
        id: EventId,
    },
    /// Publish dead letters to their topics again, each for the group that had failed it
    Retry {
        #[command(flatten)]
        letters: LettersArgs,
        /// So many a second
        #[arg(long, value_name = "N", default_value = "1000")]
        rate: NonZeroU32,
    },
    /// Remove dead letters
    Purge {
        #[command(flatten)]
        letters: LettersArgs,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
}

/// Options of `consume`.
#[derive(Debug, Args)]
pub(crate) struct ConsumeArgs {
    /// The topic
    pub(crate) topic: Name,
    /// The group; made if it is not there
    #[arg(long, value_name = "NAME")]
    pub(crate) group: Name,
    /// As whom
    #[arg(long, value_name = "NAME", default_value = "cli")]
    pub(crate) consumer: Name,
    /// Where the group begins if it is made: earliest, latest, an id, or a time such as 2026-01-31T12:00:00Z
    #[arg(long, default_value = "earliest")]
    pub(crate) start: String,
    /// End after so many events
    #[arg(long, value_name = "N")]
    pub(crate) max: Option<u64>,
    /// Take so many at a time, 1000 at most
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) batch: usize,
    /// End when nothing came for so long; by default never
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub(crate) wait: Option<Duration>,
    /// Acknowledge each event before it is printed or handled: what fails then is lost
    #[arg(long)]
    pub(crate) auto_ack: bool,
    /// Command to run for each event, by the shell
    #[arg(long, value_name = "CMD")]
    pub(crate) exec: Option<String>,
}

/// Checks a moment, which the node reads.
fn time(text: &str) -> Result<String, String> {
    match tidings_http::quantity::time(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err(format!("{text:?} is not a time: write one such as 2026-01-31T12:00:00Z")),
    }
}

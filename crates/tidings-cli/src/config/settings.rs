//! Every setting there is: path, kind, default and what it does. The reader, the default file, the schema and
//! the suggestions all work from this one table.

/// One setting.
#[derive(Debug)]
pub(crate) struct Setting {
    /// Where it stands: `section.key`; `[]` marks a list of tables.
    pub(crate) path: &'static str,
    /// What it may be.
    pub(crate) kind: Kind,
    /// Its default, in TOML. `None`: unset unless given.
    pub(crate) default: Option<&'static str>,
    /// A value for the default file where there is no default.
    pub(crate) example: &'static str,
    /// What it does, with its unit and range where these matter.
    pub(crate) doc: &'static str,
    /// Whether this release does what it asks for.
    pub(crate) state: State,
}

/// What a value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Any text.
    Text,
    /// A node id or the name of a cluster or cache.
    Name,
    /// The name of a topic of streams.
    Topic,
    /// `host:port`: an IP address or a name, and a port.
    Address,
    /// A list of [`Kind::Address`].
    Addresses,
    /// A list of texts.
    Texts,
    /// A URL, which may carry a password.
    Url,
    /// A file or directory; relative ones start at the configuration file's directory.
    Path,
    /// A duration with its unit.
    Duration,
    /// A duration, or `never`.
    DurationOrNever,
    /// A number of bytes with its unit.
    Bytes,
    /// Bytes with a unit, or a plain number of entries.
    Capacity,
    /// A whole number within a range.
    Count(u64, u64),
    /// A share from 0 to 1.
    Share,
    /// `true` or `false`.
    Flag,
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// Whether a setting takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It does.
    Works,
    /// It is understood and has no effect yet: a warning.
    Later,
}

const fn works(path: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Setting {
    Setting { path, kind, default: Some(default), example: default, doc, state: State::Works }
}

const fn unset(path: &'static str, kind: Kind, example: &'static str, doc: &'static str) -> Setting {
    Setting { path, kind, default: None, example, doc, state: State::Works }
}

const fn later(setting: Setting) -> Setting {
    Setting { state: State::Later, ..setting }
}

const ANY: Kind = Kind::Count(0, u64::MAX);
const SOME: Kind = Kind::Count(1, u64::MAX);
const DELIVERIES: Kind = Kind::Count(1, u32::MAX as u64);
const REPLICAS: Kind = Kind::Count(1, tidings::streams::nats::REPLICAS_MAX as u64);
const WHEN_ISOLATED: Kind = Kind::Choice(&["limit", "bypass", "serve", "flush"]);
const ONE_LOADER: Kind = Kind::Choice(&["node", "cluster"]);
const MODES: Kind = Kind::Choice(&["invalidate", "replicate", "local"]);
const INVALIDATORS: Kind = Kind::Choice(&["remote", "local", "all", "off"]);
const DRIVERS: Kind = Kind::Choice(&["embedded", "redis", "nats"]);
const DURABILITIES: Kind = Kind::Choice(&["sync", "relaxed"]);

/// Sections in the order in which they are shown, with what each is about.
pub(crate) const SECTIONS: [(&str, &str); 9] = [
    ("cluster", "Who this node is, and where it finds the others."),
    ("tls", "Its identity: mutual TLS between nodes. Relative paths start at this file's directory."),
    ("http", "HTTP API; without this section there is none."),
    ("coherence", "What a hit may be, and what happens in doubt."),
    ("cache[]", "A cache; one section for each."),
    ("streams", "Durable streams; without this section there are none."),
    ("streams.defaults", "What topics do unless they say otherwise."),
    ("streams.topic[]", "A topic; one section for each."),
    ("telemetry", "Logs, metrics and traces."),
];

/// Every setting, section by section.
pub(crate) const SETTINGS: &[Setting] = &[
    unset(
        "cluster.name",
        Kind::Name,
        "\"demo\"",
        "Name of the cluster; nodes of another one are refused. Required.",
    ),
    unset("cluster.node_id", Kind::Name, "\"n1\"", "This node's id, as in its certificate. Required."),
    works(
        "cluster.listen",
        Kind::Address,
        "\"127.0.0.1:7401\"",
        "UDP address for gossip and events; port 0: a free one.",
    ),
    unset(
        "cluster.advertise",
        Kind::Address,
        "\"127.0.0.1:7401\"",
        "Where others reach this node. Default: listen.",
    ),
    works(
        "cluster.seeds",
        Kind::Addresses,
        "[]",
        "Some nodes to find the cluster by; names are resolved again and again.",
    ),
    works(
        "cluster.gossip_interval",
        Kind::Duration,
        "\"1s\"",
        "Pause between gossip rounds; shorter after a change.",
    ),
    works(
        "cluster.ready_timeout",
        Kind::Duration,
        "\"10s\"",
        "How long a start may take until ready; then it says why not.",
    ),
    unset("tls.ca", Kind::Path, "\"certs/ca.pem\"", "Certificate of the cluster's authority."),
    unset("tls.cert", Kind::Path, "\"certs/n1.pem\"", "Certificate of this node."),
    unset("tls.key", Kind::Path, "\"certs/n1.key\"", "Private key of this node."),
    works("tls.development", Kind::Flag, "false", "An identity of its own making instead; loopback only."),
    works("tls.denied", Kind::Texts, "[]", "Node ids or certificate serials that are refused and cut off."),
    unset(
        "http.listen",
        Kind::Address,
        "\"127.0.0.1:7481\"",
        "TCP address of the API; one that is no loopback address needs the three below.",
    ),
    unset(
        "http.token_file",
        Kind::Path,
        "\"tokens\"",
        "Hashes of the tokens that callers need, by `tidings token create`; read again when it changes.",
    ),
    unset("http.tls_cert", Kind::Path, "\"http.pem\"", "Certificate for HTTPS; read again when it changes."),
    unset("http.tls_key", Kind::Path, "\"http.key\"", "Private key for HTTPS."),
    works(
        "http.allowed_hosts",
        Kind::Texts,
        "[]",
        "Host names that requests may use besides the address they come to.",
    ),
    works("http.open_health_and_metrics", Kind::Flag, "true", "Health and metrics without a token."),
    works(
        "http.allow_destructive_actions",
        Kind::Flag,
        "false",
        "Whether a browser's session may do what cannot be undone.",
    ),
    works(
        "http.allow_payloads",
        Kind::Flag,
        "true",
        "Whether anybody sees values and payloads: with a token that has the permission.",
    ),
    unset(
        "http.audit_file",
        Kind::Path,
        "\"audit.jsonl\"",
        "Gets a line of JSON for whatever somebody does; opened anew on SIGHUP.",
    ),
    later(works("http.dashboard", Kind::Flag, "true", "The dashboard.")),
    later(works("http.base_path", Kind::Text, "\"/\"", "Where a reverse proxy puts the dashboard.")),
    later(works("http.page_size", SOME, "50", "Rows of a page.")),
    later(works(
        "http.theme_dir",
        Kind::Text,
        "\"\"",
        "Directory with a title, logo and stylesheet of your own.",
    )),
    works(
        "coherence.max_staleness",
        Kind::Duration,
        "\"3s\"",
        "Oldest value a hit may be while a member is not heard.",
    ),
    works(
        "coherence.when_isolated",
        WHEN_ISOLATED,
        "\"limit\"",
        "Older entries in doubt: limit | bypass | serve | flush. Of caches that do not say.",
    ),
    works(
        "coherence.lost_grace",
        Kind::DurationOrNever,
        "\"60s\"",
        "How long a lost member is waited for; or never.",
    ),
    works(
        "coherence.write_horizon",
        Kind::Duration,
        "\"5s\"",
        "Longest that a write of yours may be under way.",
    ),
    works(
        "coherence.unclean_end",
        Kind::Choice(&["doubt", "trust"]),
        "\"doubt\"",
        "After a crash: doubt | trust.",
    ),
    works(
        "coherence.before_known",
        Kind::Choice(&["uncovered", "refuse"]),
        "\"uncovered\"",
        "Changes before every member knows of this node: uncovered (made, outside the bound) | refuse.",
    ),
    works(
        "coherence.unready_when_isolated",
        Kind::Flag,
        "false",
        "Whether a node that hears nobody, or has been heard by nobody for lost_grace, is not ready.",
    ),
    works(
        "coherence.max_clock_offset",
        Kind::Duration,
        "\"500ms\"",
        "Most that wall clocks of nodes may differ; more is reported.",
    ),
    works(
        "coherence.unready_when_clock_off",
        Kind::Flag,
        "true",
        "Whether that keeps a node that starts from being ready.",
    ),
    works(
        "coherence.relay_above",
        SOME,
        "50",
        "Most nodes that all follow each other; above, changes go by relays. Alike on all nodes.",
    ),
    works(
        "coherence.audit_keys_per_second",
        ANY,
        "0",
        "Keys per second, once for each node they are compared with, over and over; 0: only by `tidings audit`.",
    ),
    works(
        "coherence.copy_bytes_per_second",
        Kind::Bytes,
        "\"12MiB\"",
        "Most that a node copies a second where values travel, when it joins or missed writes; at least 64KiB.",
    ),
    works(
        "coherence.lanes",
        Kind::Count(1, 64),
        "4",
        "Independent logs of this node: a power of two, 1 to 64.",
    ),
    works("coherence.log_events", SOME, "65536", "Events kept for followers, per lane."),
    works(
        "coherence.log_bytes",
        Kind::Bytes,
        "\"4MiB\"",
        "Bytes kept for followers, per lane; at least 64KiB.",
    ),
    unset(
        "coherence.log_dir",
        Kind::Path,
        "\"/run/tidings/n1\"",
        "Directory where the log is written down, for the next process if this one is killed. README says who must not set it.",
    ),
    unset("cache[].name", Kind::Name, "\"users\"", "Its name, the same on every node. Required."),
    works(
        "cache[].mode",
        MODES,
        "\"invalidate\"",
        "invalidate (peers drop their copy) | replicate (values travel, the last write counts) | local (never told).",
    ),
    works(
        "cache[].invalidator",
        INVALIDATORS,
        "\"remote\"",
        "Whose changes evict: remote | local | all | off.",
    ),
    works(
        "cache[].max_capacity",
        Kind::Capacity,
        "\"64MiB\"",
        "Bytes with a unit, or a plain number of entries.",
    ),
    unset("cache[].time_to_live", Kind::Duration, "\"5m\"", "Longest life of an entry."),
    unset("cache[].time_to_idle", Kind::Duration, "\"1m\"", "Longest life of an entry without a read."),
    works(
        "cache[].partitions",
        Kind::Count(1, 1024),
        "4",
        "Shares of the cache's events for subscribers on this node.",
    ),
    works(
        "cache[].eviction_events",
        Kind::Flag,
        "true",
        "Report and count expiries and evictions; without, writes are faster.",
    ),
    works(
        "cache[].replica_lag",
        Kind::Duration,
        "\"0s\"",
        "How far the replica that is loaded from may be behind; at most a day.",
    ),
    works(
        "cache[].schema",
        Kind::Count(0, 4_294_967_295),
        "0",
        "Layout of its values; changes by nodes with another one evict, whatever their version.",
    ),
    works(
        "cache[].audit",
        Kind::Flag,
        "true",
        "Whether its values are compared with other nodes'; false where they need not be equal.",
    ),
    unset(
        "cache[].when_isolated",
        WHEN_ISOLATED,
        "\"limit\"",
        "Older entries in doubt: miss (limit), nothing cached (bypass), marked (serve), all dropped (flush).",
    ),
    works(
        "cache[].one_loader",
        ONE_LOADER,
        "\"node\"",
        "Whom one fill of a key serves: those who ask on the same node, or in the whole cluster.",
    ),
    works(
        "cache[].lease_time",
        Kind::Duration,
        "\"5s\"",
        "How long who fills a key for the cluster is waited for; at most 5m.",
    ),
    unset(
        "cache[].ttl_jitter",
        Kind::Share,
        "0.1",
        "Shorten each life by up to this share, not to expire at once.",
    ),
    unset(
        "cache[].fail_safe",
        Kind::Duration,
        "\"1h\"",
        "Serve an expired value so long if its loader fails. Only in a service that embeds a node.",
    ),
    unset(
        "cache[].eager_refresh",
        Kind::Share,
        "0.9",
        "Reload in the background from this share of its life. Only in a service that embeds a node.",
    ),
    unset(
        "cache[].negative_ttl",
        Kind::Duration,
        "\"10s\"",
        "Remember so long that a value does not exist. Only in a service that embeds a node.",
    ),
    unset("cache[].tee_to_stream", Kind::Topic, "\"users_changes\"", "Topic that gets the cache's changes."),
    works(
        "streams.driver",
        DRIVERS,
        "\"embedded\"",
        "embedded (this machine's disk) | redis | nats (with JetStream).",
    ),
    works("streams.path", Kind::Path, "\"data\"", "Directory of the embedded store."),
    unset(
        "streams.url",
        Kind::Url,
        "\"redis://127.0.0.1:6379\"",
        "Of the server: redis://user:password@host:6379/0, unix:///run/redis.sock, or nats://user:password@host:4222.",
    ),
    works(
        "streams.prefix",
        Kind::Text,
        "\"tidings\"",
        "Stores of one server that differ in it know nothing of each other.",
    ),
    works("streams.replicas", REPLICAS, "1", "Servers of a nats cluster that keep each stream that is made."),
    works("streams.strict", Kind::Flag, "true", "Only topics named here."),
    works(
        "streams.durability",
        DURABILITIES,
        "\"sync\"",
        "Of the embedded store, what is acknowledged outlives: sync (a loss of power) | relaxed (the process).",
    ),
    works("streams.defaults.max_deliveries", DELIVERIES, "3", "Attempts until an event is dead."),
    works("streams.defaults.dead_letter", Kind::Topic, "\"dead_letter\"", "Topic for dead events."),
    works("streams.defaults.retention.max_events", SOME, "1000", "Events kept."),
    works("streams.defaults.retention.max_age", Kind::Duration, "\"7d\"", "How long events are kept."),
    works("streams.defaults.retention.max_bytes", Kind::Bytes, "\"1GiB\"", "Bytes kept."),
    works(
        "streams.defaults.min_idle_time",
        Kind::Duration,
        "\"30s\"",
        "Pause until an unsettled event is given again.",
    ),
    works("streams.defaults.ordered", Kind::Flag, "false", "Park a key until its failed event is settled."),
    works("streams.defaults.backoff.initial", Kind::Duration, "\"500ms\"", "First pause after a failure."),
    works("streams.defaults.backoff.max", Kind::Duration, "\"1m\"", "Longest pause."),
    works("streams.defaults.backoff.jitter", Kind::Share, "0.2", "Share of a pause that is drawn."),
    works(
        "streams.defaults.idempotency_window",
        Kind::Duration,
        "\"2m\"",
        "How long idempotency keys count.",
    ),
    unset("streams.topic[].name", Kind::Topic, "\"orders\"", "Its name."),
    unset("streams.topic[].max_deliveries", DELIVERIES, "5", "Attempts until an event is dead."),
    unset("streams.topic[].dead_letter", Kind::Topic, "\"orders_dlq\"", "Topic for dead events."),
    unset("streams.topic[].retention.max_events", SOME, "5000", "Events kept."),
    unset("streams.topic[].retention.max_age", Kind::Duration, "\"7d\"", "How long events are kept."),
    unset("streams.topic[].retention.max_bytes", Kind::Bytes, "\"1GiB\"", "Bytes kept."),
    unset("streams.topic[].min_idle_time", Kind::Duration, "\"30s\"", "Pause until an event is given again."),
    unset("streams.topic[].ordered", Kind::Flag, "true", "Park a key until its failed event is settled."),
    unset("streams.topic[].backoff.initial", Kind::Duration, "\"500ms\"", "First pause after a failure."),
    unset("streams.topic[].backoff.max", Kind::Duration, "\"1m\"", "Longest pause."),
    unset("streams.topic[].backoff.jitter", Kind::Share, "0.2", "Share of a pause that is drawn."),
    unset("streams.topic[].idempotency_window", Kind::Duration, "\"2m\"", "How long idempotency keys count."),
    later(unset(
        "telemetry.otlp_endpoint",
        Kind::Text,
        "\"http://127.0.0.1:4317\"",
        "OpenTelemetry collector (gRPC).",
    )),
    works("telemetry.log", Kind::Text, "\"info\"", "Log level, or directives such as `info,tidings=debug`."),
];

/// The setting at a path, `[]` for list positions.
pub(crate) fn find(path: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.path == path)
}

/// What stands directly below a path: names of settings and tables, each once, lists with their `[]`.
pub(crate) fn below(path: &str) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = Vec::new();
    for setting in SETTINGS {
        let rest = if path.is_empty() {
            Some(setting.path)
        } else {
            setting.path.strip_prefix(path).and_then(|rest| rest.strip_prefix('.'))
        };
        let name = rest.and_then(|rest| rest.split('.').next());
        if let Some(name) = name.filter(|name| names.last() != Some(name) && !names.contains(name)) {
            names.push(name);
        }
    }
    names
}

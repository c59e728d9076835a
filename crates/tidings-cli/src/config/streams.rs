//! Durable streams, as they are configured.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use tidings::streams::{Backoff, Durability, Name, Retention, Settings, TopicSettings, nats, redis};

use super::finding::Finding;
use super::source::{Origin, Values};
use super::typed::Getter;
use crate::secrets::SecretUrl;

/// A store of streams, and how its topics are kept.
#[derive(Clone, Debug)]
pub(crate) struct Streams {
    /// Where it is.
    pub(crate) store: Store,
    /// How topics are kept.
    pub(crate) settings: Settings,
}

/// Where events are.
#[derive(Clone, Debug)]
pub(crate) enum Store {
    /// On this machine's disk.
    Embedded {
        /// Its directory.
        path: PathBuf,
        /// What an acknowledged write outlives.
        durability: Durability,
    },
    /// On a Redis server.
    Redis {
        /// Where that is.
        url: SecretUrl,
        /// What all keys of the store begin with.
        prefix: String,
    },
    /// On a NATS server.
    Nats {
        /// Where that is.
        url: SecretUrl,
        /// What the names of all its streams begin with, and how many servers keep each.
        config: nats::Config,
    },
}

/// What each driver goes by, beside what all do: no other driver has a use for it.
const OF_DRIVERS: [(&str, &[&str]); 3] = [
    ("embedded", &["streams.path", "streams.durability"]),
    ("redis", &["streams.url", "streams.prefix"]),
    ("nats", &["streams.url", "streams.prefix", "streams.replicas"]),
];

/// Whether the driver that is chosen has no use for a setting.
pub(super) fn is_idle(values: &Values, path: &str) -> bool {
    let Some(chosen) = Getter(values).text("streams.driver") else { return false };
    let uses = |(_, settings): &(&str, &[&str])| settings.contains(&path);
    let users: Vec<&str> = OF_DRIVERS.iter().filter(|of| uses(of)).map(|(driver, _)| *driver).collect();
    !users.is_empty() && !users.contains(&chosen.as_str())
}

/// Whether there are to be any: the file has the section, or a variable sets something of it.
pub(super) fn is_wanted(values: &Values) -> bool {
    let set = |(path, entry): (&String, &super::source::Entry)| {
        path.starts_with("streams.") && entry.origin != Origin::Default
    };
    values.has_table("streams") || values.entries.iter().any(set)
}

/// The streams, if every value that they need is there.
pub(super) fn of(values: &Values, directory: &Path) -> Option<Streams> {
    let get = Getter(values);
    Some(Streams {
        store: match get.text("streams.driver")?.as_str() {
            "redis" => Store::Redis { url: get.url("streams.url")?, prefix: get.text("streams.prefix")? },
            "nats" => Store::Nats { url: get.url("streams.url")?, config: of_nats(&get)? },
            _ => Store::Embedded {
                path: directory.join(get.text("streams.path")?),
                durability: match get.text("streams.durability")?.as_str() {
                    "relaxed" => Durability::Relaxed,
                    _ => Durability::Sync,
                },
            },
        },
        settings: settings(values)?,
    })
}

fn settings(values: &Values) -> Option<Settings> {
    let get = Getter(values);
    let defaults = topic(&get, "streams.defaults", &TopicSettings::default())?;
    let mut topics = BTreeMap::new();
    for index in 0..values.count("streams.topic") {
        let at = format!("streams.topic[{index}]");
        let name = Name::new(&get.text(&format!("{at}.name"))?).ok()?;
        topics.insert(name, topic(&get, &at, &defaults)?);
    }
    Some(Settings { strict: get.flag("streams.strict")?, defaults, topics })
}

/// What is said at a path; the rest as in `otherwise`.
fn topic(get: &Getter<'_>, at: &str, otherwise: &TopicSettings) -> Option<TopicSettings> {
    let path = |key: &str| format!("{at}.{key}");
    let deliveries = match get.count(&path("max_deliveries")) {
        Some(count) => NonZeroU32::new(u32::try_from(count).ok()?)?,
        None => otherwise.max_deliveries,
    };
    let dead_letter = match get.text(&path("dead_letter")) {
        Some(name) => Name::new(&name).ok()?,
        None => otherwise.dead_letter.clone(),
    };
    let (kept, backoff) = (&otherwise.retention, &otherwise.backoff);
    Some(TopicSettings {
        max_deliveries: deliveries,
        dead_letter,
        retention: Retention {
            max_events: get.count(&path("retention.max_events")).or(kept.max_events),
            max_age: get.duration(&path("retention.max_age")).or(kept.max_age),
            max_bytes: get.bytes(&path("retention.max_bytes")).or(kept.max_bytes),
        },
        min_idle_time: get.duration(&path("min_idle_time")).unwrap_or(otherwise.min_idle_time),
        ordered: get.flag(&path("ordered")).unwrap_or(otherwise.ordered),
        backoff: Backoff {
            initial: get.duration(&path("backoff.initial")).unwrap_or(backoff.initial),
            max: get.duration(&path("backoff.max")).unwrap_or(backoff.max),
            jitter: get.share(&path("backoff.jitter")).unwrap_or(backoff.jitter),
        },
        idempotency_window: get.duration(&path("idempotency_window")).unwrap_or(otherwise.idempotency_window),
    })
}

/// What single values cannot show.
pub(super) fn findings(values: &Values) -> Vec<Finding> {
    let get = Getter(values);
    let mut findings = captures(values);
    if !is_wanted(values) {
        return findings;
    }
    findings.extend(of_store(values));
    let names: Vec<Option<String>> = (0..values.count("streams.topic"))
        .map(|index| get.text(&format!("streams.topic[{index}].name")))
        .collect();
    for (index, name) in names.iter().enumerate() {
        let path = format!("streams.topic[{index}].name");
        if name.is_none() {
            findings.push(Finding::error(path, "is required").help("events are published to it by name"));
        } else if names[..index].contains(name) {
            let finding = Finding::error(path, "an earlier topic has the same name");
            findings.push(finding.help("give each its own"));
        }
    }
    if names.is_empty() && get.flag("streams.strict") == Some(true) {
        let message = "allows only topics that are named here, and none is";
        let finding = Finding::warning("streams.strict", message);
        findings.push(finding.help("add a [[streams.topic]], or set strict = false"));
    }
    if let Some(Err(error)) = settings(values).map(|settings| settings.validate()) {
        let help = "`tidings config default` explains every setting there is";
        findings.push(Finding::error("streams", error.to_string()).help(help));
    }
    findings
}

fn of_nats(get: &Getter<'_>) -> Option<nats::Config> {
    let replicas = usize::try_from(get.count("streams.replicas")?).ok()?;
    Some(nats::Config { prefix: get.text("streams.prefix")?, replicas, ..nats::Config::default() })
}

/// What is wrong with how a server is to be reached.
fn of_server(get: &Getter<'_>, driver: &str, url: &str) -> Option<Finding> {
    let (is_prefix, error) = if driver == "nats" {
        let error = of_nats(get)?.check(url).err()?;
        (matches!(error, nats::ConnectError::Prefix(_)), error.to_string())
    } else {
        let config = redis::Config { prefix: get.text("streams.prefix")?, ..redis::Config::default() };
        let error = config.check(url).err()?;
        (matches!(error, redis::ConnectError::Prefix(_)), error.to_string())
    };
    Some(Finding::error(if is_prefix { "streams.prefix" } else { "streams.url" }, error))
}

/// What is wrong with where the store is said to be.
fn of_store(values: &Values) -> Vec<Finding> {
    let get = Getter(values);
    let Some(driver) = get.text("streams.driver") else { return Vec::new() };
    let mut findings = Vec::new();
    if driver != "embedded" {
        match get.url("streams.url") {
            None => {
                let finding = Finding::error("streams.url", format!("is required with the {driver} driver"));
                let example =
                    if driver == "nats" { "nats://127.0.0.1:4222" } else { "redis://127.0.0.1:6379" };
                findings.push(finding.help(format!("set the URL of a server, such as \"{example}\"")));
            }
            Some(SecretUrl(url)) => findings.extend(of_server(&get, &driver, &url)),
        }
    }
    for (_, settings) in OF_DRIVERS {
        for path in settings.iter().filter(|path| is_idle(values, path)) {
            if values.entries.get(*path).is_some_and(|entry| entry.origin != Origin::Default) {
                let message = format!("has no effect with the {driver} driver");
                let help = "remove it, or choose the driver that goes by it";
                findings.push(Finding::warning(*path, message).help(help));
            }
        }
    }
    findings
}

/// Caches whose changes go to a topic that streams do not take.
fn captures(values: &Values) -> Vec<Finding> {
    let get = Getter(values);
    let settings = is_wanted(values).then(|| settings(values)).flatten();
    let judge = |index: usize| {
        let path = format!("cache[{index}].tee_to_stream");
        let topic = get.text(&path)?;
        match &settings {
            None if !is_wanted(values) => {
                let finding = Finding::error(path, "there are no streams on this node");
                Some(finding.help("add a [streams] section with the topic"))
            }
            Some(settings) => {
                let error = settings.topic(&topic).err()?;
                Some(Finding::error(path, error.to_string()).help("add a [[streams.topic]] of this name"))
            }
            None => None,
        }
    };
    (0..values.count("cache")).filter_map(judge).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Judged, Severity, effective, judge};

    const SOUND: &str = "[cluster]\nname = \"c\"\nnode_id = \"n1\"\n[tls]\ndevelopment = true\n";

    fn judged(text: &str) -> Judged {
        judge(&format!("{SOUND}{text}"), &[], Path::new("/etc/tidings"))
    }

    fn errors(text: &str) -> Vec<String> {
        let found = judged(text).findings;
        found.iter().filter(|it| it.severity == Severity::Error).map(ToString::to_string).collect()
    }

    #[test]
    fn topics_say_what_differs_from_the_defaults() {
        let text = "[streams]\npath = \"events\"\ndurability = \"relaxed\"\n\
            [streams.defaults]\nmax_deliveries = 7\nretention = { max_events = 10 }\n\
            [[streams.topic]]\nname = \"orders.created\"\nordered = true\nretention = { max_age = \"1h\" }\n\
            [[streams.topic]]\nname = \"other\"\ndead_letter = \"other_dlq\"\nbackoff = { initial = \"1s\" }\n";
        let judged = judged(text);
        assert_eq!(judged.findings, []);
        let streams = judged.config.unwrap().streams.unwrap();
        let Store::Embedded { path, durability } = streams.store else { panic!("{:?}", streams.store) };
        assert_eq!((path.as_path(), durability), (Path::new("/etc/tidings/events"), Durability::Relaxed));
        let orders = streams.settings.topic("orders.created").unwrap().settings;
        assert!(orders.ordered && orders.max_deliveries.get() == 7);
        assert_eq!(orders.retention.max_events, Some(10));
        assert_eq!(orders.retention.max_age, Some(Duration::from_secs(3_600)));
        assert_eq!(orders.retention.max_bytes, Some(1 << 30));
        let other = streams.settings.topic("other").unwrap().settings;
        assert_eq!(other.dead_letter.as_str(), "other_dlq");
        assert_eq!(other.backoff.initial, Duration::from_secs(1));
        assert!(streams.settings.topic("orders").is_err(), "only configured topics are taken");
    }

    #[test]
    fn a_store_in_redis_has_a_url_and_none_of_what_is_for_the_disk() {
        let text = "[streams]\ndriver = \"redis\"\nurl = \"redis://:secret@h:1\"\nprefix = \"shop\"\n\
                    strict = false\n";
        let judged = judged(text);
        assert_eq!(judged.findings, []);
        let shown = format!("{:?}", judged.config.as_ref().unwrap().streams);
        assert!(shown.contains("redis://:***@h:1") && shown.contains("\"shop\""), "{shown}");
        let shown: Vec<String> = effective(&judged.values).into_iter().map(|(path, ..)| path).collect();
        assert!(shown.contains(&"streams.url".to_owned()));
        assert!(
            !shown.contains(&"streams.path".to_owned()) && !shown.contains(&"streams.durability".to_owned())
        );
    }

    #[test]
    fn what_another_driver_goes_by_is_said_to_have_no_effect() {
        let warned = |text: &str| {
            let judged = judged(text);
            assert!(judged.config.is_some(), "{:?}", judged.findings);
            judged.findings.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let on_redis = "[streams]\ndriver = \"redis\"\nurl = \"redis://h\"\ndurability = \"relaxed\"\n\
                        strict = false\n";
        let on_disk = "[streams]\nurl = \"redis://h\"\nstrict = false\n";
        for (text, begins) in [
            (on_redis, "streams.durability (line 9): has no effect with the redis driver"),
            (on_disk, "streams.url (line 7): has no effect with the embedded driver"),
        ] {
            let found = warned(text);
            assert!(found.len() == 1 && found[0].starts_with(begins), "{text}: {found:?}");
        }
    }

    #[test]
    fn without_the_section_there_are_no_streams() {
        assert!(judged("").config.unwrap().streams.is_none());
        let variable = [("TIDINGS_STREAMS__STRICT".to_owned(), "false".to_owned())];
        let judged = judge(SOUND, &variable, Path::new("/"));
        assert!(judged.config.unwrap().streams.is_some());
    }

    #[test]
    fn the_defaults_of_the_configuration_are_those_of_the_library() {
        let streams = judged("[streams]\nstrict = false\n").config.unwrap().streams.unwrap();
        assert_eq!(streams.settings, Settings { strict: false, ..Settings::default() });
        assert!(matches!(streams.store, Store::Embedded { durability: Durability::Sync, .. }));
    }

    #[test]
    fn what_cannot_be_is_told_with_its_place() {
        for (text, begins) in [
            ("[streams]\ndriver = \"nats\"\n", "streams.url: is required with the nats driver"),
            (
                "[streams]\ndriver = \"nats\"\nurl = \"redis://h\"\n",
                "streams.url (line 8): the URL is none of a NATS server",
            ),
            (
                "[streams]\ndriver = \"nats\"\nurl = \"nats://h\"\nprefix = \"a.b\"\n",
                "streams.prefix (line 9): a prefix has",
            ),
            ("[streams]\ndriver = \"nats\"\nurl = \"nats://h\"\nreplicas = 6\n", "streams.replicas (line 9)"),
            ("[streams]\ndriver = \"redis\"\n", "streams.url: is required"),
            (
                "[streams]\ndriver = \"redis\"\nurl = \"http://h\"\n",
                "streams.url (line 8): the URL is none of a Redis server",
            ),
            (
                "[streams]\ndriver = \"redis\"\nurl = \"redis://h\"\nprefix = \"a/b\"\n",
                "streams.prefix (line 9): a prefix has",
            ),
            ("[streams]\n[[streams.topic]]\nordered = true\n", "streams.topic[0].name: is required"),
            (
                "[streams]\n[[streams.topic]]\nname = \"a\"\n[[streams.topic]]\nname = \"a\"\n",
                "streams.topic[1].name (line 10): an earlier topic has the same name",
            ),
            ("[streams]\n[[streams.topic]]\nname = \"a/b\"\n", "streams.topic[0].name (line 8): '/'"),
            (
                "[streams]\n[[streams.topic]]\nnam = \"a\"\n",
                "streams.topic[0].nam (line 8): unknown key; did you mean",
            ),
            (
                "[streams]\n[streams.defaults]\nbackoff = { initial = \"2m\" }\n",
                "streams (line 6): defaults: backoff",
            ),
            (
                "[streams]\n[streams.defaults]\nmin_idle_time = \"0s\"\n",
                "streams (line 6): defaults: min_idle_time",
            ),
            (
                "[[cache]]\nname = \"c\"\ntee_to_stream = \"t\"\n",
                "cache[0].tee_to_stream (line 8): there are no",
            ),
            (
                "[streams]\n[[streams.topic]]\nname = \"a\"\n[[cache]]\nname = \"c\"\ntee_to_stream = \"t\"\n",
                "cache[0].tee_to_stream (line 11): topic t is not configured",
            ),
        ] {
            let found = errors(text);
            assert!(found.iter().any(|error| error.starts_with(begins)), "{text}: {found:?}");
        }
    }
}

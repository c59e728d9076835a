//! How topics are kept: judged before anything is opened.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::name::{InvalidName, Name};

/// Longest back-off, visibility timeout and idempotency window: beyond a week something else than waiting is wanted.
pub const WAIT_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long to wait before an event that failed is delivered again: doubled with every attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Backoff {
    /// After the first failure. Default: 500 ms.
    pub initial: Duration,
    /// Never longer, jitter included. Default: one minute.
    pub max: Duration,
    /// By which share a wait is shortened or lengthened at random, from 0 to 1. Default: 0.2.
    pub jitter: f64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: Duration::from_millis(500), max: Duration::from_secs(60), jitter: 0.2 }
    }
}

/// What a topic keeps. Of several rules each one removes; what a group has not settled is kept whatever they say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// The newest so many events.
    pub max_events: Option<u64>,
    /// Events of the last so long.
    pub max_age: Option<Duration>,
    /// The newest events of so many bytes together, as they are stored.
    pub max_bytes: Option<u64>,
}

impl Retention {
    /// No rule at all: everything is kept.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

/// How one topic is kept and delivered.
#[derive(Clone, Debug, PartialEq)]
pub struct TopicSettings {
    /// How often an event is delivered to a group before it is a dead letter. Default: 3.
    pub max_deliveries: NonZeroU32,
    /// The dead-letter stream that takes what was given up. Default: `dead_letter`.
    pub dead_letter: Name,
    /// What is kept. Default: the newest 1,000 events of the last seven days, one gibibyte at most.
    pub retention: Retention,
    /// How long a delivery may take before somebody else gets the event. Default: 30 s.
    pub min_idle_time: Duration,
    /// Events of one key are delivered one after the other, and wait for one of theirs that failed. Events without a
    /// key count as of one key. Default: no.
    pub ordered: bool,
    /// How long to wait after a failure.
    pub backoff: Backoff,
    /// How long idempotency keys are remembered. Default: 2 minutes.
    pub idempotency_window: Duration,
}

impl Default for TopicSettings {
    fn default() -> Self {
        let retention = Retention {
            max_events: Some(1_000),
            max_age: Some(Duration::from_secs(7 * 24 * 3600)),
            max_bytes: Some(1 << 30),
        };
        Self {
            max_deliveries: NonZeroU32::new(3).expect("three is not zero"),
            dead_letter: Name::new("dead_letter").expect("it is a name"),
            retention,
            min_idle_time: Duration::from_secs(30),
            ordered: false,
            backoff: Backoff::default(),
            idempotency_window: Duration::from_secs(120),
        }
    }
}

/// Settings that contradict themselves.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidSettings {
    /// A share is from 0 to 1.
    #[error("{topic}: backoff.jitter is a share from 0 to 1, not {jitter}")]
    Jitter {
        /// Of which topic, or `defaults`.
        topic: String,
        /// What was given.
        jitter: f64,
    },
    /// The first wait would be longer than the longest.
    #[error("{topic}: backoff.initial is longer than backoff.max")]
    Backoff {
        /// Of which topic, or `defaults`.
        topic: String,
    },
    /// Longer than [`WAIT_MAX`], or too short to mean anything.
    #[error("{topic}: {field} is from {least:?} to {WAIT_MAX:?}")]
    Wait {
        /// Of which topic, or `defaults`.
        topic: String,
        /// Which one.
        field: &'static str,
        /// The shortest that is taken.
        least: Duration,
    },
}

impl TopicSettings {
    fn validate(&self, topic: &str) -> Result<(), InvalidSettings> {
        let topic = || topic.to_owned();
        if !(0.0..=1.0).contains(&self.backoff.jitter) {
            return Err(InvalidSettings::Jitter { topic: topic(), jitter: self.backoff.jitter });
        }
        if self.backoff.initial > self.backoff.max {
            return Err(InvalidSettings::Backoff { topic: topic() });
        }
        let waits = [
            ("backoff.max", self.backoff.max, Duration::ZERO),
            ("min_idle_time", self.min_idle_time, Duration::from_millis(1)),
            ("idempotency_window", self.idempotency_window, Duration::ZERO),
        ];
        match waits.into_iter().find(|(_, wait, least)| wait < least || *wait > WAIT_MAX) {
            Some((field, _, least)) => Err(InvalidSettings::Wait { topic: topic(), field, least }),
            None => Ok(()),
        }
    }
}

/// How all topics of a store are kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Whether topics that are not configured are refused. Default: yes.
    pub strict: bool,
    /// Of topics that are not configured, where those are not refused.
    pub defaults: TopicSettings,
    /// Of each configured topic.
    pub topics: BTreeMap<Name, TopicSettings>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { strict: true, defaults: TopicSettings::default(), topics: BTreeMap::new() }
    }
}

/// There is no such topic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// It could not be one.
    #[error("topic {0:?}")]
    Name(String, #[source] InvalidName),
    /// Only configured topics are taken, and this one is not.
    #[error("topic {0} is not configured, and streams are strict")]
    NotConfigured(Name),
}

impl Settings {
    /// Judges every topic's settings.
    ///
    /// # Errors
    /// [`InvalidSettings`] of the first that contradicts itself.
    pub fn validate(&self) -> Result<(), InvalidSettings> {
        self.defaults.validate("defaults")?;
        self.topics.iter().try_for_each(|(name, settings)| settings.validate(name.as_str()))
    }

    /// A topic with its settings. Its name is looked up as a whole: dots in it mean nothing.
    ///
    /// # Errors
    /// [`TopicError`].
    pub fn topic(&self, name: &str) -> Result<Topic, TopicError> {
        let name = Name::new(name).map_err(|source| TopicError::Name(name.to_owned(), source))?;
        match self.topics.get(&name) {
            Some(settings) => Ok(Topic { name, settings: Arc::new(settings.clone()) }),
            None if self.strict => Err(TopicError::NotConfigured(name)),
            None => Ok(Topic { name, settings: Arc::new(self.defaults.clone()) }),
        }
    }

    /// A topic that a store has, configured or not: to look at it, to trim it, to settle what is under way. Where settings
    /// are strict, one that is not configured keeps everything until limits are named: what it was to keep is not known.
    #[must_use]
    pub fn stored(&self, name: Name) -> Topic {
        let settings = match self.topics.get(&name) {
            Some(settings) => settings.clone(),
            None if self.strict => TopicSettings { retention: Retention::default(), ..self.defaults.clone() },
            None => self.defaults.clone(),
        };
        Topic { name, settings: Arc::new(settings) }
    }
}

/// A topic's name and how it is kept: what drivers are told with every call, so that none of them keeps settings.
#[derive(Clone, Debug)]
pub struct Topic {
    /// Its name.
    pub name: Name,
    /// How it is kept.
    pub settings: Arc<TopicSettings>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    #[test]
    fn what_a_topic_that_is_not_configured_was_to_keep_is_not_guessed_where_settings_are_strict() {
        let strict =
            Settings { topics: [(name("a"), TopicSettings::default())].into(), ..Settings::default() };
        let kept = |settings: &Settings, topic| settings.stored(name(topic)).settings.retention.clone();
        assert_eq!(kept(&strict, "a"), TopicSettings::default().retention);
        assert_eq!(kept(&strict, "b"), Retention::default());
        let lenient = Settings { strict: false, ..strict };
        assert_eq!(kept(&lenient, "b"), TopicSettings::default().retention);
    }

    #[test]
    fn a_strict_store_has_only_configured_topics_dots_included() {
        let ordered = TopicSettings { ordered: true, ..TopicSettings::default() };
        let topics = BTreeMap::from([(name("orders.created"), ordered)]);
        let mut settings = Settings { topics, ..Settings::default() };
        assert!(settings.topic("orders.created").unwrap().settings.ordered);
        assert_eq!(settings.topic("orders").unwrap_err(), TopicError::NotConfigured(name("orders")));
        assert!(matches!(settings.topic("a/b"), Err(TopicError::Name(..))));
        settings.strict = false;
        assert!(!settings.topic("orders").unwrap().settings.ordered);
    }

    #[test]
    fn settings_that_contradict_themselves_name_their_topic() {
        let broken = |change: fn(&mut TopicSettings)| {
            let mut topic = TopicSettings::default();
            change(&mut topic);
            Settings { topics: BTreeMap::from([(name("orders"), topic)]), ..Settings::default() }.validate()
        };
        assert_eq!(broken(|_| ()), Ok(()));
        let jitter = broken(|topic| topic.backoff.jitter = f64::NAN).unwrap_err();
        assert!(jitter.to_string().starts_with("orders: backoff.jitter"), "{jitter}");
        assert!(broken(|topic| topic.backoff.initial = WAIT_MAX).is_err());
        assert!(broken(|topic| topic.min_idle_time = Duration::ZERO).is_err());
    }
}

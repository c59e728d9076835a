//! Positions: of an event in its topic, of a dead letter in its store, of a moment.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Neither `N` nor `N-M` of decimal numbers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no id")]
pub struct InvalidId(String);

/// Where an event stands in its topic. Ids of a topic only grow; they need not be dense.
///
/// Two numbers, so that it holds a Redis id (`milliseconds-sequence`); stores that count leave the second one at 0,
/// and it is not written then. To others an id is a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EventId {
    major: u64,
    minor: u64,
}

impl EventId {
    /// Before every event.
    pub const ZERO: Self = Self { major: 0, minor: 0 };
    /// After every event.
    pub const MAX: Self = Self { major: u64::MAX, minor: u64::MAX };

    /// The id of a store that counts.
    #[must_use]
    pub const fn new(sequence: u64) -> Self {
        Self { major: sequence, minor: 0 }
    }

    /// An id of two numbers.
    #[must_use]
    pub const fn pair(major: u64, minor: u64) -> Self {
        Self { major, minor }
    }

    /// The number that counts first.
    #[must_use]
    pub const fn major(self) -> u64 {
        self.major
    }

    /// The number that counts where the first is equal.
    #[must_use]
    pub const fn minor(self) -> u64 {
        self.minor
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.minor == 0 { write!(f, "{}", self.major) } else { write!(f, "{}-{}", self.major, self.minor) }
    }
}

impl FromStr for EventId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        // `parse` takes a sign, which no id has.
        let number = |part: &str| match part.bytes().all(|byte| byte.is_ascii_digit()) {
            true => part.parse().map_err(|_| InvalidId(text.to_owned())),
            false => Err(InvalidId(text.to_owned())),
        };
        match text.split_once('-') {
            Some((major, minor)) => Ok(Self { major: number(major)?, minor: number(minor)? }),
            None => Ok(Self::new(number(text)?)),
        }
    }
}

impl TryFrom<String> for EventId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<EventId> for String {
    fn from(id: EventId) -> Self {
        id.to_string()
    }
}

/// Where a dead letter stands in its store. Later ones are greater. To others it is a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeadLetterId(pub EventId);

impl fmt::Display for DeadLetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for DeadLetterId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        text.parse().map(Self)
    }
}

/// A moment of the wall clock, in milliseconds since 1970: what is due has to outlive the process that said so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// What the system's clock says.
    #[must_use]
    #[allow(
        clippy::disallowed_methods,
        reason = "the default of a clock that is injected; no freshness depends on it"
    )]
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(millis(since))
    }

    /// So much later.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(millis(by)))
    }

    /// So much earlier.
    #[must_use]
    pub fn before(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(millis(by)))
    }

    /// How long after an earlier moment; zero if that one is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        for id in [EventId::ZERO, EventId::new(7), EventId::pair(7, 3), EventId::MAX] {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        assert_eq!("1700000000000-0".parse(), Ok(EventId::new(1_700_000_000_000)));
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in ["", "-", "1-", "-1", "+1", "1-2-3", "1.0", " 1", "99999999999999999999"] {
            assert!(text.parse::<EventId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn ids_are_ordered_by_their_first_number_first() {
        assert!(EventId::pair(1, 9) < EventId::pair(2, 0) && EventId::pair(2, 0) < EventId::pair(2, 1));
    }
}

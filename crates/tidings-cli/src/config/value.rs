//! From text to typed values, by kind.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use tidings::streams::Name;
use tidings_proto::id::check_name;
use toml::de::{DeArray, DeValue};

use super::settings::Kind;
use crate::secrets::{SecretUrl, redacted, redacted_url};
use crate::units;

/// A value of a setting.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// Text, a name, an address, a path or a choice.
    Text(String),
    /// A URL.
    Url(SecretUrl),
    /// Several of these.
    List(Vec<String>),
    /// A duration.
    Duration(Duration),
    /// Without end.
    Never,
    /// Bytes.
    Bytes(u64),
    /// A whole number.
    Count(u64),
    /// A share.
    Share(f64),
    /// Yes or no.
    Flag(bool),
}

impl Value {
    /// Reads a value from a TOML file.
    ///
    /// # Errors
    /// What is expected there, and what was found.
    pub(crate) fn from_toml(kind: Kind, value: &DeValue<'_>) -> Result<Self, String> {
        let wrong = || format!("expected {}, found {}", kind.expected(), found(value));
        match (kind, value) {
            (Kind::Flag, DeValue::Boolean(flag)) => Ok(Self::Flag(*flag)),
            (Kind::Addresses | Kind::Texts, DeValue::Array(items)) => list(kind, items).ok_or_else(wrong)?,
            (Kind::Count(..) | Kind::Capacity, DeValue::Integer(number)) => {
                let number = u64::from_str_radix(&number.as_str().replace('_', ""), number.radix());
                number.map_err(|_| wrong()).and_then(|number| Self::count(kind, number))
            }
            (Kind::Share, DeValue::Float(share)) => units::share(share.as_str()).map(Self::Share),
            (Kind::Share, DeValue::Integer(share)) => units::share(share.as_str()).map(Self::Share),
            (Kind::Flag | Kind::Addresses | Kind::Texts | Kind::Count(..) | Kind::Share, _) => Err(wrong()),
            (_, DeValue::String(text)) => Self::from_text(kind, text),
            _ => Err(wrong()),
        }
    }

    /// Reads a value from an environment variable or the table of defaults; lists are separated by commas.
    ///
    /// # Errors
    /// What is expected there.
    pub(crate) fn from_text(kind: Kind, text: &str) -> Result<Self, String> {
        let wrong = || format!("expected {}, found {text:?}", kind.expected());
        match kind {
            Kind::Text | Kind::Path => Ok(Self::Text(text.to_owned())),
            Kind::Url => Ok(Self::Url(SecretUrl(text.to_owned()))),
            Kind::Name => {
                check_name(text).map(|()| Self::Text(text.to_owned())).map_err(|error| error.to_string())
            }
            Kind::Topic => {
                Name::new(text).map(|_| Self::Text(text.to_owned())).map_err(|error| error.to_string())
            }
            Kind::Address => address(text).map(|()| Self::Text(text.to_owned())),
            Kind::Addresses | Kind::Texts => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                items.map(|item| element(kind, item)).collect::<Result<_, _>>().map(Self::List)
            }
            Kind::DurationOrNever if text == "never" => Ok(Self::Never),
            Kind::Duration | Kind::DurationOrNever => units::duration(text).map(Self::Duration),
            Kind::Capacity if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_') => {
                Self::count(kind, text.replace('_', "").parse().map_err(|_| wrong())?)
            }
            Kind::Bytes | Kind::Capacity => units::bytes(text).map(Self::Bytes),
            Kind::Count(..) => Self::count(kind, text.replace('_', "").parse().map_err(|_| wrong())?),
            Kind::Share => units::share(text).map(Self::Share),
            Kind::Flag => text.parse().map(Self::Flag).map_err(|_| wrong()),
            Kind::Choice(words) if words.contains(&text) => Ok(Self::Text(text.to_owned())),
            Kind::Choice(words) => Err(match super::source::closest(text, words) {
                Some(word) => format!("{}; did you mean {word:?}?", wrong()),
                None => wrong(),
            }),
        }
    }

    /// The value as JSON, but for the passwords of URLs.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Count(number) => (*number).into(),
            Self::Share(share) => (*share).into(),
            Self::Flag(flag) => (*flag).into(),
            Self::List(items) => items.iter().map(|item| redacted(item)).collect(),
            Self::Text(text) => redacted(text).into(),
            Self::Url(SecretUrl(url)) => redacted_url(url).into(),
            Self::Duration(duration) => units::show_duration(*duration).into(),
            Self::Never => "never".into(),
            Self::Bytes(bytes) => units::show_bytes(*bytes).into(),
        }
    }

    fn count(kind: Kind, number: u64) -> Result<Self, String> {
        match kind {
            Kind::Count(least, most) if !(least..=most).contains(&number) => {
                Err(format!("expected {}, found {number}", kind.expected()))
            }
            _ => Ok(Self::Count(number)),
        }
    }
}

/// The value in TOML: every JSON literal that occurs here is one of TOML too.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_json().fmt(f)
    }
}

impl Kind {
    /// What is expected, in words.
    pub(crate) fn expected(self) -> String {
        match self {
            Self::Text => "text".to_owned(),
            Self::Url => "a URL".to_owned(),
            Self::Name => "a name".to_owned(),
            Self::Topic => "the name of a topic".to_owned(),
            Self::Address => "an address such as \"127.0.0.1:7401\"".to_owned(),
            Self::Addresses => "a list of addresses such as [\"127.0.0.1:7401\"]".to_owned(),
            Self::Texts => "a list of texts such as [\"n7\"]".to_owned(),
            Self::Path => "a path".to_owned(),
            Self::Duration => "a duration such as \"3s\"".to_owned(),
            Self::DurationOrNever => "a duration such as \"60s\", or \"never\"".to_owned(),
            Self::Bytes => "a size such as \"4MiB\"".to_owned(),
            Self::Capacity => "bytes such as \"64MiB\", or a number of entries".to_owned(),
            Self::Count(0, u64::MAX) => "a whole number".to_owned(),
            Self::Count(least, u64::MAX) => format!("a whole number from {least} on"),
            Self::Count(least, most) => format!("a whole number from {least} to {most}"),
            Self::Share => "a share from 0 to 1".to_owned(),
            Self::Flag => "true or false".to_owned(),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
        }
    }
}

/// Whether the host of an address is this machine only. A name other than `localhost` is not known to be.
pub(crate) fn is_loopback(address: &str) -> bool {
    match address.parse::<SocketAddr>() {
        Ok(address) => address.ip().is_loopback(),
        Err(_) => address.rsplit_once(':').is_some_and(|(host, _)| host == "localhost"),
    }
}

/// Whether an address stands for every address of the machine.
pub(crate) fn is_unspecified(address: &str) -> bool {
    address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_unspecified())
}

/// Checks `host:port`, the host an IP address (IPv6 in brackets) or a name.
fn address(text: &str) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("{text:?} is not an address: {why}"));
    if text.parse::<SocketAddr>().is_ok() {
        return Ok(());
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return wrong("write host:port, such as 127.0.0.1:7401");
    };
    if port.parse::<u16>().is_err() {
        return wrong("the port is a number from 0 to 65535");
    }
    if host.contains(':') || host.contains('[') {
        return wrong("write an IPv6 address in brackets, such as [::1]:7401");
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.is_empty() || host.len() > 253 || !host.split('.').all(label) {
        return wrong("the host is neither an IP address nor a name");
    }
    if host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return wrong("the IP address is not complete or out of range");
    }
    Ok(())
}

fn list(kind: Kind, items: &DeArray<'_>) -> Option<Result<Value, String>> {
    let texts: Option<Vec<&str>> = items.iter().map(|item| item.get_ref().as_str()).collect();
    Some(texts?.into_iter().map(|text| element(kind, text)).collect::<Result<_, _>>().map(Value::List))
}

fn element(kind: Kind, text: &str) -> Result<String, String> {
    if kind == Kind::Addresses {
        address(text)?;
    }
    Ok(text.to_owned())
}

fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_are_accepted() {
        for text in [
            "127.0.0.1:0",
            "[::1]:7401",
            "0.0.0.0:1",
            "shop-headless:7400",
            "a.b_c.example.:443",
            "localhost:1",
        ] {
            assert_eq!(address(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn unusable_addresses_are_refused() {
        for text in [
            "",
            "host",
            "host:",
            "host:70000",
            ":1",
            "::1:7401",
            "1.2.3:80",
            "256.1.1.1:1",
            "a b:1",
            "-a:1",
            "http://a:1",
        ] {
            assert!(address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn capacity_is_bytes_with_a_unit_and_entries_without() {
        assert_eq!(Value::from_text(Kind::Capacity, "64MiB"), Ok(Value::Bytes(64 << 20)));
        assert_eq!(Value::from_text(Kind::Capacity, "100_000"), Ok(Value::Count(100_000)));
    }

    #[test]
    fn misspelt_choices_get_a_suggestion() {
        let error = Value::from_text(Kind::Choice(&["limit", "bypass"]), "limt").unwrap_err();
        assert!(error.contains("did you mean \"limit\""), "{error}");
    }
}

//! Where a node's HTTP API is.

use std::fmt;
use std::net::IpAddr;

use reqwest::Url;

use crate::exit::{Exit, Failure};
use crate::secrets::redacted;

/// The base URL of a node's HTTP API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address(Url);

impl Address {
    /// Reads a URL such as `http://127.0.0.1:7480`.
    ///
    /// # Errors
    /// It is neither an http nor an https URL.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let wrong = |why: &str| {
            Failure::new(Exit::Usage, format!("{:?} is not the URL of a node: {why}", redacted(text)))
        };
        let url =
            Url::parse(text).map_err(|error| wrong(&error.to_string()).hint("write http://HOST:PORT"))?;
        match url.scheme() {
            "http" | "https" if url.has_host() => Ok(Self(url)),
            _ => Err(wrong("it starts with neither http:// nor https://").hint("write http://HOST:PORT")),
        }
    }

    /// Whether what goes there is encrypted, and the other end is known by its certificate.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// Whether it is this machine's own.
    pub(crate) fn is_loopback(&self) -> bool {
        match self.0.host_str() {
            Some("localhost") => true,
            Some(host) => host.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_loopback()),
            None => false,
        }
    }

    /// The URL of a path below it, given by its segments, which are percent-encoded.
    ///
    /// # Errors
    /// A segment is empty, `.` or `..`: URLs cannot carry these.
    pub(crate) fn join(&self, segments: &[&str]) -> Result<Url, Failure> {
        if let Some(segment) = segments.iter().find(|segment| matches!(**segment, "" | "." | "..")) {
            return Err(Failure::new(Exit::Usage, format!("{segment:?} cannot be part of a URL")));
        }
        let mut url = self.0.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        Ok(url)
    }

    /// The URL of an entry of a cache. Where its key is empty, that ends with a slash.
    ///
    /// # Errors
    /// As [`Address::join`], but for empty keys.
    pub(crate) fn entry(&self, cache: &str, key: &str) -> Result<Url, Failure> {
        let entries = ["v1", "caches", cache, "entries"];
        if !key.is_empty() {
            return self.join(&[&entries[..], &[key]].concat());
        }
        let mut url = self.join(&entries)?;
        if let Ok(mut path) = url.path_segments_mut() {
            path.push("");
        }
        Ok(url)
    }

    /// The URL that tells who holds an entry.
    ///
    /// # Errors
    /// As [`Address::entry`].
    pub(crate) fn holders(&self, cache: &str, key: &str) -> Result<Url, Failure> {
        let mut url = self.entry(cache, key)?;
        if let Ok(mut path) = url.path_segments_mut() {
            path.push("where");
        }
        Ok(url)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(redacted(self.0.as_str()).trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_percent_encoded() {
        let address = Address::parse("http://127.0.0.1:7480/base/").unwrap();
        let url = address.join(&["v1", "entries", "a/b c%2F?#ü"]).unwrap();
        assert_eq!(url.as_str(), "http://127.0.0.1:7480/base/v1/entries/a%2Fb%20c%252F%3F%23%C3%BC");
    }

    #[test]
    fn keys_that_urls_cannot_carry_are_refused() {
        let address = Address::parse("http://127.0.0.1:7480").unwrap();
        for key in ["", ".", ".."] {
            assert_eq!(address.join(&["entries", key]).unwrap_err().exit(), Exit::Usage);
        }
    }

    #[test]
    fn an_entry_has_a_url_whatever_its_key_but_dots() {
        let address = Address::parse("http://127.0.0.1:7480/base").unwrap();
        let url = |cache, key| address.entry(cache, key).map(|url| url.to_string());
        let entries = "http://127.0.0.1:7480/base/v1/caches/users/entries/";
        assert_eq!(url("users", "a/b").unwrap(), format!("{entries}a%2Fb"));
        assert_eq!(url("users", "").unwrap(), entries);
        let holders = |key| address.holders("users", key).unwrap().to_string();
        assert_eq!(holders("a/b"), format!("{entries}a%2Fb/where"));
        assert_eq!(holders(""), format!("{entries}/where"));
        for (cache, key) in [("", "k"), ("users", "."), ("users", "..")] {
            assert_eq!(url(cache, key).unwrap_err().exit(), Exit::Usage, "{cache:?} {key:?}");
        }
    }

    #[test]
    fn the_password_of_a_url_is_not_shown() {
        let address = Address::parse("http://me:secret@127.0.0.1:7480/").unwrap();
        assert_eq!(address.to_string(), "http://me:***@127.0.0.1:7480");
        let refused = Address::parse("ftp://me:secret@host").unwrap_err().to_string();
        assert!(refused.contains("me:***@host"), "{refused}");
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (text, expected) in [
            ("http://localhost:1", true),
            ("http://127.0.0.2", true),
            ("http://[::1]:1", true),
            ("http://192.0.2.1", false),
            ("http://localhost.example:1", false),
        ] {
            assert_eq!(Address::parse(text).unwrap().is_loopback(), expected, "{text}");
        }
    }

    #[test]
    fn only_http_urls_are_accepted() {
        for text in ["", "127.0.0.1:7480", "ftp://x", "http://", "https://"] {
            assert_eq!(Address::parse(text).unwrap_err().exit(), Exit::Usage, "{text}");
        }
        assert!(Address::parse("https://127.0.0.1:7480").unwrap().is_encrypted());
        assert!(!Address::parse("http://127.0.0.1:7480").unwrap().is_encrypted());
    }
}

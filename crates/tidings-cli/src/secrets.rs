//! What must not be shown: the passwords that URLs may carry.

use std::fmt;

/// Stands for what is not shown.
const HIDDEN: &str = "***";

/// The parameters by which a URL of a socket may carry a password.
const PASSWORDS: [&str; 2] = ["?pass=", "&pass="];

/// A URL that may carry a password: it is used, and never shown whole.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SecretUrl(pub(crate) String);

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        redacted_url(&self.0).fmt(f)
    }
}

/// A text that is one URL as a whole, whatever blanks it has, as [`redacted`].
pub(crate) fn redacted_url(url: &str) -> String {
    // A blank would end it, and show what is behind.
    let stand_in = |c: char| if c.is_whitespace() { '_' } else { c };
    redacted(&url.chars().map(stand_in).collect::<String>())
}

/// A text in which nothing is readable of a URL's password: `redis://user:***@host`. Where a URL has one word before
/// its host, that may be a token, and is not shown either.
///
/// Up to the next space everything before the last `@` counts as such, so that a password with characters that it
/// should have escaped is not shown in part. Where a URL has its password among its parameters, neither it nor what
/// follows is shown.
pub(crate) fn redacted(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, url)) = rest.split_once("://") {
        shown.push_str(before);
        shown.push_str("://");
        let end = url.find(char::is_whitespace).unwrap_or(url.len());
        rest = url;
        if let Some((user, host)) = url[..end].rsplit_once('@') {
            if let Some((name, _)) = user.split_once(':') {
                shown.push_str(name);
                shown.push(':');
            }
            shown.push_str(HIDDEN);
            shown.push('@');
            rest = &url[end - host.len()..];
        }
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let secret = PASSWORDS.into_iter().find_map(|key| Some(rest[..end].find(key)? + key.len()));
        if let Some(from) = secret {
            shown.push_str(&rest[..from]);
            shown.push_str(HIDDEN);
            rest = &rest[end..];
        }
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_of_urls_are_hidden_and_nothing_else_is() {
        for (text, expected) in [
            ("redis://user:secret@host:6379/0", "redis://user:***@host:6379/0"),
            ("redis://:secret@host", "redis://:***@host"),
            ("nats://token@host", "nats://***@host"),
            ("redis://user:s/e?c#r@e\"t@host", "redis://user:***@host"),
            ("found \"redis://u:p@a\", not nats://v:q@b", "found \"redis://u:***@a\", not nats://v:***@b"),
            ("redis://u:p@a,redis://v:q@b", "redis://u:***@b"),
            ("unix:///run/r.sock?pass=secret&db=2", "unix:///run/r.sock?pass=***"),
            ("redis+unix:///r.sock?db=2&pass=s#e?c", "redis+unix:///r.sock?db=2&pass=***"),
            ("redis://127.0.0.1:6379", "redis://127.0.0.1:6379"),
            ("redis://[::1]:6379", "redis://[::1]:6379"),
            ("write to ops@example.org", "write to ops@example.org"),
            ("://", "://"),
            ("", ""),
        ] {
            assert_eq!(redacted(text), expected);
        }
    }

    #[test]
    fn a_password_with_blanks_is_hidden_where_a_url_is_expected() {
        let url = "redis://user:sec ret@host\n";
        assert_eq!(redacted_url(url), "redis://user:***@host_");
        assert_eq!(format!("{:?}", SecretUrl(url.to_owned())), "\"redis://user:***@host_\"");
    }
}

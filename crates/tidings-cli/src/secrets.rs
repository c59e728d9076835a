//! What must not be shown: the passwords that URLs may carry.

/// Stands for what is not shown.
const HIDDEN: &str = "***";

/// A text in which nothing is readable of a URL's password: `redis://user:***@host`. Where a URL has one word before
/// its host, that may be a token, and is not shown either.
///
/// Up to the next space everything before the last `@` counts as such, so that a password with characters that it
/// should have escaped is not shown in part.
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
            ("redis://127.0.0.1:6379", "redis://127.0.0.1:6379"),
            ("redis://[::1]:6379", "redis://[::1]:6379"),
            ("write to ops@example.org", "write to ops@example.org"),
            ("://", "://"),
            ("", ""),
        ] {
            assert_eq!(redacted(text), expected);
        }
    }
}

//! Fill tokens as text. Opaque to clients: the node that gave one reads it back.

use tidings::{FillToken, Incarnation, Origin};

/// A fill token, with what it is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenText {
    pub(crate) origin: Origin,
    pub(crate) cache: String,
    pub(crate) token: FillToken,
}

impl TokenText {
    /// The token as a header's value. Neither node ids nor names of caches have a colon.
    pub(crate) fn encode(&self) -> String {
        let (id, epoch, began) = self.token.parts();
        let Origin { node, incarnation } = &self.origin;
        format!("{node}:{incarnation}:{}:{id}:{epoch}:{began}", self.cache)
    }

    /// Reads a token; nothing if it is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let node = parts.next()?.parse().ok()?;
        let incarnation = Incarnation(parts.next()?.parse().ok()?);
        let cache = parts.next()?.to_owned();
        let (id, epoch, began) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        let token = FillToken::from_parts(id.parse().ok()?, epoch.parse().ok()?, began.parse().ok()?);
        Some(Self { origin: Origin { node, incarnation }, cache, token })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_back() {
        let origin = Origin { node: "a.b-c_d".parse().unwrap(), incarnation: Incarnation(u64::MAX) };
        let token =
            TokenText { origin, cache: "users.v2".to_owned(), token: FillToken::from_parts(7, 3, u64::MAX) };
        assert_eq!(TokenText::parse(&token.encode()), Some(token));
    }

    #[test]
    fn anything_else_is_no_token() {
        for text in
            ["", ":", "n1", "n1:1:c:1:1", "n1:1:c:1:1:1:1", "n1:x:c:1:1:1", "n 1:1:c:1:1:1", "n1:1:c:-1:1:1"]
        {
            assert_eq!(TokenText::parse(text), None, "{text}");
        }
    }
}

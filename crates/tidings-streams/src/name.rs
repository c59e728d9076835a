//! Names of topics, groups and consumers: judged once, where they come in.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// Longest name, in bytes of UTF-8: percent-encoded, three bytes for each, it still is a file name everywhere.
pub const NAME_BYTES_MAX: usize = 80;

/// A name that no topic, group, consumer or dead-letter stream can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Nothing at all.
    #[error("a name must not be empty")]
    Empty,
    /// Longer than [`NAME_BYTES_MAX`].
    #[error("a name has at most {NAME_BYTES_MAX} bytes, this one {0}")]
    TooLong(usize),
    /// Letters and digits of any script, `.`, `_`, `-` and `:` are allowed.
    #[error("{0:?} is neither a letter nor a digit, nor one of . _ - :")]
    Character(char),
}

/// The name of a topic, a group, a consumer or a dead-letter stream: letters and digits of any script, `.`, `_`, `-`
/// and `:`, at most [`NAME_BYTES_MAX`] bytes. Names are compared byte by byte: case counts.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

impl Name {
    /// Judges a name.
    ///
    /// # Errors
    /// [`InvalidName`].
    pub fn new(text: &str) -> Result<Self, InvalidName> {
        if text.is_empty() {
            return Err(InvalidName::Empty);
        }
        if text.len() > NAME_BYTES_MAX {
            return Err(InvalidName::TooLong(text.len()));
        }
        let odd = |c: &char| !c.is_alphanumeric() && !matches!(c, '.' | '_' | '-' | ':');
        match text.chars().find(odd) {
            Some(odd) => Err(InvalidName::Character(odd)),
            None => Ok(Self(text.into())),
        }
    }

    /// As it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::new(text)
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        Self::new(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.as_str().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_dots_and_of_any_script_are_names() {
        for good in ["orders", "orders.created", "заказы", "注文.v2", "A-b_c:9", ".hidden", ".."] {
            assert_eq!(Name::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn what_is_no_name_is_refused_with_its_reason() {
        assert_eq!(Name::new(""), Err(InvalidName::Empty));
        assert_eq!(Name::new("a/b"), Err(InvalidName::Character('/')));
        assert_eq!(Name::new("a b"), Err(InvalidName::Character(' ')));
        assert_eq!(Name::new("a\0"), Err(InvalidName::Character('\0')));
        assert_eq!(Name::new(&"x".repeat(81)), Err(InvalidName::TooLong(81)));
        assert!(Name::new(&"x".repeat(80)).is_ok());
    }
}

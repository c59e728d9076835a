//! Bearer tokens, and the file in which their hashes are.
//!
//! A token is 256 random bits, so its SHA-256 says nothing of it that could be guessed. What passwords need, a hash that
//! is slow on purpose, would only let strangers make a node work.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::SHA256;
use subtle::ConstantTimeEq;
use tidings_proto::id::check_name;

use super::{Caller, LOOPBACK, Means, Role};
use crate::limits::{TOKEN_BYTES_MAX, TOKEN_FILE_BYTES_MAX, TOKENS_MAX};

/// How a token begins, so that scanners for secrets know one.
const BEGINNING: &str = "tidings_";

/// How a hash begins in the file: what it is.
const HASH: &str = "sha256:";

/// The word for the permission to see values and payloads.
const PAYLOADS: &str = "payloads";

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    pub(super) fn of(digest: ring::digest::Digest) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }

    fn parse(hex: &str) -> Option<Self> {
        if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest")
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn hash(token: &str) -> Digest {
    Digest::of(ring::digest::digest(&SHA256, token.as_bytes()))
}

/// What the file says of a token.
#[derive(Clone, Debug)]
pub(super) struct Token {
    digest: Digest,
    name: Arc<str>,
    role: Role,
    payloads: bool,
}

impl Token {
    pub(super) fn digest(&self) -> Digest {
        self.digest
    }

    pub(super) fn caller(&self, means: Means) -> Caller {
        Caller {
            name: self.name.clone(),
            role: self.role,
            payloads: self.payloads,
            token: Some(self.digest),
            means,
        }
    }
}

/// The tokens that a node knows, by their hashes.
#[derive(Clone, Debug, Default)]
pub struct Tokens(Vec<Token>);

/// Why a line of a token file is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// It has too few words, or too many.
    #[error("a line is NAME ROLE [payloads] sha256:HEX")]
    Form,
    /// The name is none, or one that is taken for those without a token.
    #[error("{0:?} cannot be a token's name")]
    Name(String),
    /// There is no such role.
    #[error("{0:?} is neither viewer, operator nor admin")]
    Role(String),
    /// The hash is not `sha256:` and 64 hexadecimal digits.
    #[error("the hash is not sha256: and 64 hexadecimal digits")]
    Hash,
    /// Another line has the same name, or the same hash.
    #[error("another line has the same name or hash")]
    Twice,
    /// There are more than 256.
    #[error("more than {} tokens", TOKENS_MAX)]
    TooMany,
}

/// A token file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenFileError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Others than its owner could add tokens of their own.
    #[error("others than its owner can write to {0}: chmod 600")]
    Exposed(PathBuf),
    /// A line is none.
    #[error("{path}, line {line}")]
    Line {
        /// In which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Why not.
        #[source]
        source: TokenError,
    },
    /// There is none in it: nobody could do anything.
    #[error("no token in {0}: `tidings token create` makes one")]
    Empty(PathBuf),
}

impl Tokens {
    /// Reads a token file: one token a line, `#` begins a comment.
    ///
    /// # Errors
    /// [`TokenFileError`].
    pub fn read(path: &Path) -> Result<Self, TokenFileError> {
        let failed = |source| TokenFileError::Read { path: path.to_owned(), source };
        let mut file = std::fs::File::open(path).map_err(failed)?;
        if mode(&file.metadata().map_err(failed)?) & 0o022 != 0 {
            return Err(TokenFileError::Exposed(path.to_owned()));
        }
        let mut text = String::new();
        let mut bounded = Read::by_ref(&mut file).take(TOKEN_FILE_BYTES_MAX + 1);
        bounded.read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > TOKEN_FILE_BYTES_MAX {
            return Err(failed(io::Error::from(io::ErrorKind::FileTooLarge)));
        }
        let tokens = Self::parse(&text);
        let tokens =
            tokens.map_err(|(line, source)| TokenFileError::Line { path: path.to_owned(), line, source })?;
        if tokens.0.is_empty() { Err(TokenFileError::Empty(path.to_owned())) } else { Ok(tokens) }
    }

    /// Whether others than its owner can read a token file. Hashes of tokens are no secret, but nobody needs them.
    #[must_use]
    pub fn is_readable_by_others(path: &Path) -> bool {
        path.metadata().is_ok_and(|metadata| mode(&metadata) & 0o044 != 0)
    }

    /// Reads the text of a token file. An error comes with its line, counted from 1.
    ///
    /// # Errors
    /// The first line that is none.
    pub fn parse(text: &str) -> Result<Self, (usize, TokenError)> {
        let (mut tokens, mut seen) = (Vec::new(), BTreeSet::new());
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let at = |error| (index + 1, error);
            let token = token(line).map_err(at)?;
            if !seen.insert(token.name.to_string()) || !seen.insert(format!("{HASH}{}", token.digest)) {
                return Err(at(TokenError::Twice));
            }
            if tokens.len() == TOKENS_MAX {
                return Err(at(TokenError::TooMany));
            }
            tokens.push(token);
        }
        Ok(Self(tokens))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The token with this text. How long that takes does not depend on which it is, or on how much of one is right.
    pub(super) fn find(&self, text: &str) -> Option<&Token> {
        if text.is_empty() || text.len() > TOKEN_BYTES_MAX {
            return None;
        }
        self.by_digest(&hash(text))
    }

    /// Whether the token that a caller has shown still allows all that it did then.
    pub(super) fn allow(&self, caller: &Caller) -> bool {
        let token = caller.token.and_then(|digest| self.by_digest(&digest));
        token.is_some_and(|token| token.role >= caller.role && (token.payloads || !caller.payloads))
    }

    pub(super) fn by_digest(&self, digest: &Digest) -> Option<&Token> {
        let mut found = None;
        for token in &self.0 {
            if token.digest.0.ct_eq(&digest.0).into() {
                found = Some(token);
            }
        }
        found
    }
}

#[cfg(unix)]
fn mode(metadata: &std::fs::Metadata) -> u32 {
    std::os::unix::fs::PermissionsExt::mode(&metadata.permissions())
}

/// Elsewhere nothing is known of who may read and write it.
#[cfg(not(unix))]
fn mode(_: &std::fs::Metadata) -> u32 {
    0
}

fn token(line: &str) -> Result<Token, TokenError> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (name, role, payloads, hash) = match words[..] {
        [name, role, hash] => (name, role, false, hash),
        [name, role, PAYLOADS, hash] => (name, role, true, hash),
        _ => return Err(TokenError::Form),
    };
    if check_name(name).is_err() || name.eq_ignore_ascii_case(LOOPBACK) {
        return Err(TokenError::Name(name.chars().take(64).collect()));
    }
    let role = Role::parse(role).ok_or_else(|| TokenError::Role(role.chars().take(64).collect()))?;
    let digest = hash.strip_prefix(HASH).and_then(Digest::parse).ok_or(TokenError::Hash)?;
    Ok(Token { digest, name: name.into(), role, payloads })
}

/// A token that was just made.
pub struct NewToken {
    text: String,
    line: String,
}

impl fmt::Debug for NewToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewToken").field("line", &self.line).finish_non_exhaustive()
    }
}

impl NewToken {
    /// Makes the token of these random bytes. `payloads`: whether it may see values and payloads.
    ///
    /// # Errors
    /// The name cannot be a token's.
    pub fn new(name: &str, role: Role, payloads: bool, entropy: [u8; 32]) -> Result<Self, TokenError> {
        let text = format!("{BEGINNING}{}", URL_SAFE_NO_PAD.encode(entropy));
        let payloads = if payloads { " payloads" } else { "" };
        let line = format!("{name} {role}{payloads} {HASH}{}", hash(&text));
        token(&line)?;
        Ok(Self { text, line })
    }

    /// The token itself: nobody can find it out later.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Its line for the token file, which holds no secret.
    #[must_use]
    pub fn line(&self) -> &str {
        &self.line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_tokens_line_knows_that_token_and_no_other() {
        let new = NewToken::new("ops", Role::Operator, true, [7; 32]).unwrap();
        assert!(new.text().starts_with("tidings_") && !new.line().contains(new.text()), "{new:?}");
        let tokens = Tokens::parse(&format!("# ours\n\n{}  # by hand\n", new.line())).unwrap();
        let caller = tokens.find(new.text()).unwrap().caller(Means::Token);
        assert_eq!((&*caller.name, caller.role, caller.payloads), ("ops", Role::Operator, true));
        let other = NewToken::new("ops", Role::Operator, false, [8; 32]).unwrap();
        for text in ["", "tidings_", other.text(), &new.text()[1..], &format!("{} ", new.text())] {
            assert!(tokens.find(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_line_that_is_none_is_named() {
        let hash = "0".repeat(64);
        for (line, error) in [
            ("ops", TokenError::Form),
            (&format!("ops admin x sha256:{hash}"), TokenError::Form),
            (&format!("a/b admin sha256:{hash}"), TokenError::Name("a/b".to_owned())),
            (&format!("Loopback admin sha256:{hash}"), TokenError::Name("Loopback".to_owned())),
            (&format!("ops root sha256:{hash}"), TokenError::Role("root".to_owned())),
            ("ops admin sha256:00", TokenError::Hash),
            (&format!("ops admin {hash}"), TokenError::Hash),
            (&format!("ops admin sha256:{}", "+1".repeat(32)), TokenError::Hash),
            (&format!("ops admin sha256:{hash}\nops admin sha256:{}", "1".repeat(64)), TokenError::Twice),
            (&format!("ops admin sha256:{hash}\nqa admin sha256:{hash}"), TokenError::Twice),
        ] {
            let lines = line.lines().count();
            assert_eq!(Tokens::parse(line).unwrap_err(), (lines, error), "{line}");
        }
        let many: String = (0..=TOKENS_MAX).map(|i| format!("t{i} viewer sha256:{i:064x}\n")).collect();
        assert_eq!(Tokens::parse(&many).unwrap_err(), (TOKENS_MAX + 1, TokenError::TooMany));
    }

    #[test]
    fn neither_tokens_nor_hashes_are_shown_for_debugging() {
        let new = NewToken::new("ops", Role::Viewer, false, [7; 32]).unwrap();
        let tokens = Tokens::parse(new.line()).unwrap();
        assert!(!format!("{new:?}").contains(new.text()));
        assert!(format!("{tokens:?}").contains("digest: Digest,"), "{tokens:?}");
    }
}

//! Sessions of browsers: each stands for the token that it was begun with, and for nothing that this may not do now.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use tokio::time::Instant;

use super::tokens::Digest;
use crate::limits::{SESSION_IDLE_TIME, SESSION_TIME, SESSIONS_MAX};

/// Name of a session's cookie. The beginning makes browsers take it from this host alone, and over TLS.
pub(crate) const SESSION_COOKIE: &str = "__Host-tidings";

/// Length of an id as text.
const TEXT_BYTES: usize = 43;

/// What a browser shows: 256 random bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct SessionId([u8; 32]);

impl std::fmt::Debug for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionId")
    }
}

impl SessionId {
    pub(crate) fn new(entropy: [u8; 32]) -> Self {
        Self(entropy)
    }

    pub(crate) fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.len() > TEXT_BYTES {
            return None;
        }
        Some(Self(URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?))
    }

    /// What is kept of it: finding it in a table takes time that depends on this alone.
    fn digest(&self) -> Digest {
        Digest::of(digest(&SHA256, &self.0))
    }
}

#[derive(Clone, Copy, Debug)]
struct Session {
    token: Digest,
    began: Instant,
    used: Instant,
}

impl Session {
    /// When it is over, unless it is used before.
    fn end(&self) -> Instant {
        (self.began + SESSION_TIME).min(self.used + SESSION_IDLE_TIME)
    }

    fn is_over(&self, now: Instant) -> bool {
        now >= self.end()
    }
}

/// At most [`SESSIONS_MAX`]: those that are over, or else the one that was used least recently, give way.
#[derive(Debug, Default)]
pub(super) struct Sessions(HashMap<Digest, Session>);

impl Sessions {
    /// The token that a session stands for. `renews`: whether it counts as used.
    pub(super) fn holder(&mut self, id: &SessionId, now: Instant, renews: bool) -> Option<Digest> {
        let digest = id.digest();
        let session = self.0.get_mut(&digest)?;
        if session.is_over(now) {
            self.0.remove(&digest);
            return None;
        }
        if renews {
            session.used = now;
        }
        Some(session.token)
    }

    /// When a session is over, unless it is used before; `None` if it is. To ask is no use of it.
    pub(super) fn end_of(&self, id: &SessionId, now: Instant) -> Option<Instant> {
        self.0.get(&id.digest()).filter(|session| !session.is_over(now)).map(Session::end)
    }

    pub(super) fn begin(&mut self, id: &SessionId, token: Digest, now: Instant) {
        if self.0.len() >= SESSIONS_MAX {
            self.0.retain(|_, session| !session.is_over(now));
        }
        if self.0.len() >= SESSIONS_MAX
            && let Some(oldest) = self.0.iter().min_by_key(|(_, session)| session.used).map(|(id, _)| *id)
        {
            self.0.remove(&oldest);
        }
        self.0.insert(id.digest(), Session { token, began: now, used: now });
    }

    pub(super) fn end(&mut self, id: &SessionId) {
        self.0.remove(&id.digest());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn id(number: usize) -> SessionId {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        SessionId::new(bytes)
    }

    fn token() -> Digest {
        Digest::of(digest(&SHA256, b"token"))
    }

    #[test]
    fn ids_are_read_back_and_nothing_else_is_one() {
        let id = id(7);
        assert_eq!(SessionId::parse(&id.encode()), Some(id));
        for text in ["", "a", &id.encode()[1..], &format!("{}AA", id.encode()), &"ä".repeat(22)] {
            assert_eq!(SessionId::parse(text), None, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_when_it_is_not_used_and_after_its_time_in_any_case() {
        let (mut sessions, start) = (Sessions::default(), Instant::now());
        sessions.begin(&id(1), token(), start);
        let mut now = start;
        while now + SESSION_IDLE_TIME / 2 < start + SESSION_TIME {
            now += SESSION_IDLE_TIME / 2;
            assert_eq!(sessions.holder(&id(1), now, true), Some(token()));
        }
        assert_eq!(sessions.holder(&id(1), start + SESSION_TIME, true), None);

        sessions.begin(&id(3), token(), start);
        assert_eq!(sessions.holder(&id(3), start + SESSION_IDLE_TIME / 2, false), Some(token()));
        assert_eq!(sessions.end_of(&id(3), start), Some(start + SESSION_IDLE_TIME));
        assert_eq!(sessions.end_of(&id(3), start + SESSION_IDLE_TIME), None);
        assert_eq!(sessions.holder(&id(3), start + SESSION_IDLE_TIME, false), None);

        sessions.begin(&id(2), token(), start);
        assert_eq!(sessions.holder(&id(2), start + SESSION_IDLE_TIME, true), None);
        assert!(sessions.0.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_sessions_as_are_begun_the_newest_are_kept() {
        let (mut sessions, start) = (Sessions::default(), Instant::now());
        for number in 0..2 * SESSIONS_MAX {
            sessions.begin(&id(number), token(), start + Duration::from_millis(number as u64));
        }
        assert_eq!(sessions.0.len(), SESSIONS_MAX);
        let now = start + Duration::from_secs(10);
        assert_eq!(sessions.holder(&id(SESSIONS_MAX - 1), now, true), None);
        assert_eq!(sessions.holder(&id(SESSIONS_MAX), now, true), Some(token()));
        sessions.end(&id(SESSIONS_MAX));
        assert_eq!(sessions.holder(&id(SESSIONS_MAX), now, true), None);
    }
}

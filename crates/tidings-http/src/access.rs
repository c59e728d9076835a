//! Who may do what: roles, tokens, sessions of browsers, and how often somebody may be wrong.

mod failures;
mod sessions;
mod tokens;

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::http::header::{AUTHORIZATION, COOKIE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

pub(crate) use self::failures::network;
use self::failures::{Failures, Verdict};
use self::sessions::Sessions;
pub(crate) use self::sessions::{SESSION_COOKIE, SessionId};
use self::tokens::Digest;
pub use self::tokens::{NewToken, TokenError, TokenFileError, Tokens};
use crate::problem::Problem;

/// What a token's holder may do. Each role may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Look at how things are: no values, no changes.
    Viewer,
    /// Work with caches and streams, and repair what is wrong: also invalidate, drain the node, and make a group go on
    /// from elsewhere.
    Operator,
    /// Everything, also what takes something away for good: caches, groups, events, dead letters, members.
    Admin,
}

impl Role {
    /// All of them, the least first.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// Reads what [`Role::as_str`] writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whom a route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audience {
    /// Whoever can connect.
    Anybody,
    /// The same where health and metrics are open, else viewers.
    Probes,
    /// Holders of a token of this role or a higher one.
    Role(Role),
}

/// What a route asks of its callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    pub(crate) audience: Audience,
    /// It answers values or payloads, which is a permission of its own.
    pub(crate) payloads: bool,
    /// What it does cannot be undone: nothing for a browser's session, unless the configuration says so.
    pub(crate) destroys: bool,
    /// It is what a service does all the time, and does not push what people do out of the trail.
    pub(crate) traffic: bool,
}

impl Needs {
    pub(crate) const ANYBODY: Self = Self::of(Audience::Anybody);
    pub(crate) const PROBES: Self = Self::of(Audience::Probes);
    pub(crate) const VIEWER: Self = Self::of(Audience::Role(Role::Viewer));
    pub(crate) const OPERATOR: Self = Self::of(Audience::Role(Role::Operator));
    pub(crate) const ADMIN: Self = Self::of(Audience::Role(Role::Admin));

    const fn of(audience: Audience) -> Self {
        Self { audience, payloads: false, destroys: false, traffic: false }
    }

    /// Whether a request that takes this, and is no safe one, changes nothing but who is logged in, so that whoever has
    /// any token can make it without end: all else takes more than a viewer.
    pub(crate) fn is_of_nothing(self) -> bool {
        !matches!(self.audience, Audience::Role(role) if role > Role::Viewer)
    }

    pub(crate) const fn payloads(self) -> Self {
        Self { payloads: true, ..self }
    }

    pub(crate) const fn destroys(self) -> Self {
        Self { destroys: true, ..self }
    }

    pub(crate) const fn traffic(self) -> Self {
        Self { traffic: true, ..self }
    }
}

/// How a caller showed who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Means {
    /// Not at all: a loopback address without tokens.
    Loopback,
    /// With its token.
    Token,
    /// As a browser, with the session that it began with a token.
    Session(SessionId),
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) name: Arc<str>,
    pub(crate) role: Role,
    pub(crate) payloads: bool,
    /// The token that it showed, or began its session with.
    pub(crate) token: Option<Digest>,
    pub(crate) means: Means,
}

/// What the configuration says of permissions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Switches {
    pub(crate) open_health_and_metrics: bool,
    pub(crate) allow_payloads: bool,
    pub(crate) allow_destructive_actions: bool,
}

/// Decides who asks, and whether that may be.
pub(crate) struct Access {
    /// `None`: whoever can connect may do everything, which is for loopback addresses only.
    tokens: Option<ArcSwap<Tokens>>,
    switches: Switches,
    failures: Mutex<Failures>,
    sessions: Mutex<Sessions>,
    /// Told whenever somebody may count no more: tokens were replaced, or sessions ended.
    changed: watch::Sender<()>,
    refused: [AtomicU64; 4],
}

/// Why somebody was refused, as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No token was shown.
    Missing,
    /// One that is none.
    Invalid,
    /// One that is none, again and again.
    Limited,
    /// A sound one, which may not do that.
    Forbidden,
}

impl Refusal {
    const NAMES: [&'static str; 4] = ["missing", "invalid", "limited", "forbidden"];
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("switches", &self.switches).finish_non_exhaustive()
    }
}

impl Access {
    pub(crate) fn new(tokens: Option<Tokens>, switches: Switches) -> Self {
        Self {
            tokens: tokens.map(ArcSwap::from_pointee),
            switches,
            failures: Mutex::default(),
            sessions: Mutex::default(),
            changed: watch::Sender::default(),
            refused: Default::default(),
        }
    }

    /// Whether tokens are asked for at all.
    pub(crate) fn has_tokens(&self) -> bool {
        self.tokens.is_some()
    }

    /// Takes other tokens. What sessions may do follows from them at once.
    pub(crate) fn replace(&self, tokens: Tokens) {
        if let Some(held) = &self.tokens {
            held.store(Arc::new(tokens));
            self.changed.send_replace(());
        }
    }

    /// Whether somebody who was let in would be let in now, to all that it might do then. To ask renews no session.
    pub(crate) fn counts(&self, caller: &Caller) -> bool {
        self.counts_until(caller, Instant::now()).is_some()
    }

    /// Until a caller counts no more, which for one without a token is never: what is endless has to end then.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(crate) async fn revoked(&self, caller: &Caller) {
        let mut changed = self.changed.subscribe();
        while let Some(until) = self.counts_until(caller, Instant::now()) {
            let ended = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = ended => {}
                // The sender is this one's.
                _ = changed.changed() => {}
            }
        }
    }

    /// Who somebody who was let in is now, if it may still do what it was let in for. To ask renews no session, and a
    /// token that was right when it was shown is no failure of its address.
    pub(crate) fn again(&self, caller: &Caller, needs: Needs) -> Result<Option<Caller>, Problem> {
        let current = self.current(caller, Instant::now());
        if current.is_none() && caller.means == Means::Token {
            self.count(Refusal::Invalid);
            return Err(unknown_token());
        }
        self.judge(current.as_ref(), needs)?;
        Ok(current)
    }

    fn current(&self, caller: &Caller, now: Instant) -> Option<Caller> {
        let Some(tokens) = &self.tokens else { return Some(caller.clone()) };
        if let Means::Session(id) = &caller.means {
            lock(&self.sessions).end_of(id, now)?;
        }
        let tokens = tokens.load();
        Some(tokens.by_digest(&caller.token?)?.caller(caller.means))
    }

    /// Until when a caller counts if nothing changes; `Some(None)`: without an end.
    fn counts_until(&self, caller: &Caller, now: Instant) -> Option<Option<Instant>> {
        let Some(tokens) = &self.tokens else { return Some(None) };
        if !tokens.load().allow(caller) {
            return None;
        }
        match &caller.means {
            Means::Session(id) => lock(&self.sessions).end_of(id, now).map(Some),
            Means::Loopback | Means::Token => Some(None),
        }
    }

    /// How many were refused, by why.
    pub(crate) fn refused(&self) -> [(&'static str, u64); 4] {
        std::array::from_fn(|index| (Refusal::NAMES[index], self.refused[index].load(Ordering::Relaxed)))
    }

    fn count(&self, why: Refusal) {
        self.refused[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Who asks: nobody in particular, if neither a token nor a session that counts was shown. `renews`: whether this
    /// is a use of the session.
    pub(crate) fn caller(
        &self,
        headers: &HeaderMap,
        address: IpAddr,
        now: Instant,
        renews: bool,
    ) -> Result<Option<Caller>, Problem> {
        let Some(tokens) = &self.tokens else {
            let (name, role) = (Arc::from(LOOPBACK), Role::Admin);
            return Ok(Some(Caller { name, role, payloads: true, token: None, means: Means::Loopback }));
        };
        let tokens = tokens.load();
        let mut shown = headers.get_all(AUTHORIZATION).iter();
        if let Some(first) = shown.next() {
            let sound =
                if shown.next().is_some() { None } else { bearer(first).and_then(|t| tokens.find(t)) };
            return match sound {
                Some(token) => Ok(Some(token.caller(Means::Token))),
                None => Err(self.wrong(address, now)),
            };
        }
        let mut sessions = lock(&self.sessions);
        Ok(cookies(headers).find_map(|id| {
            let token = tokens.by_digest(&sessions.holder(&id, now, renews)?)?;
            Some(token.caller(Means::Session(id)))
        }))
    }

    /// Notes that somebody showed a token that is none.
    fn wrong(&self, address: IpAddr, now: Instant) -> Problem {
        match lock(&self.failures).failed(address, now) {
            Verdict::Refused => {
                self.count(Refusal::Invalid);
                unknown_token()
            }
            Verdict::Limited(wait) => {
                self.count(Refusal::Limited);
                let detail = "too many tokens from this address are unknown";
                let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_failures", detail);
                problem.with_header(RETRY_AFTER, seconds(wait))
            }
        }
    }

    /// Whether a caller, who may be nobody in particular, may do something.
    pub(crate) fn judge(&self, caller: Option<&Caller>, needs: Needs) -> Result<(), Problem> {
        let role = match needs.audience {
            Audience::Anybody => return Ok(()),
            Audience::Probes if self.switches.open_health_and_metrics => return Ok(()),
            Audience::Probes => Role::Viewer,
            Audience::Role(role) => role,
        };
        let Some(caller) = caller else {
            self.count(Refusal::Missing);
            let detail = "a token is needed: authorization: Bearer TOKEN";
            let problem = Problem::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail);
            return Err(problem.with_header(WWW_AUTHENTICATE, HeaderValue::from_static(CHALLENGE)));
        };
        let forbidden = |code, detail: String| {
            self.count(Refusal::Forbidden);
            Err(Problem::new(StatusCode::FORBIDDEN, code, detail))
        };
        if caller.role < role {
            return forbidden(
                "forbidden",
                format!("this takes the role {role}, and the token's is {}", caller.role),
            );
        }
        if needs.payloads && !self.switches.allow_payloads {
            return forbidden("payloads_forbidden", "http.allow_payloads is false on this node".to_owned());
        }
        if needs.payloads && !self.shows_payloads(caller) {
            let detail = "the token may not see values and payloads: it lacks the permission payloads";
            return forbidden("payloads_forbidden", detail.to_owned());
        }
        let is_session = matches!(caller.means, Means::Session(_));
        if needs.destroys && is_session && !self.switches.allow_destructive_actions {
            let detail = "not from a browser: http.allow_destructive_actions is false on this node";
            return forbidden("destructive_forbidden", detail.to_owned());
        }
        Ok(())
    }

    /// Whether a caller may see values and payloads, and what tells something of them.
    pub(crate) fn shows_payloads(&self, caller: &Caller) -> bool {
        self.switches.allow_payloads && caller.payloads
    }

    /// Begins a session for the holder of a token.
    pub(crate) fn log_in(
        &self,
        token: &str,
        address: IpAddr,
        now: Instant,
        id: SessionId,
    ) -> Result<Caller, Problem> {
        let tokens = self.tokens.as_ref().ok_or_else(Problem::not_configured)?.load();
        let Some(token) = tokens.find(token) else { return Err(self.wrong(address, now)) };
        lock(&self.sessions).begin(&id, token.digest(), now);
        // Another one may have given way to it.
        self.changed.send_replace(());
        Ok(token.caller(Means::Session(id)))
    }

    /// Ends the session of a caller, if it has one.
    pub(crate) fn log_out(&self, caller: &Caller) {
        if let Means::Session(id) = &caller.means {
            lock(&self.sessions).end(id);
            self.changed.send_replace(());
        }
    }
}

/// Who asks where no token is needed, in the trail. No token can have this name.
pub(crate) const LOOPBACK: &str = "loopback";

const CHALLENGE: &str = "Bearer realm=\"tidings\"";
const INVALID_CHALLENGE: &str = "Bearer realm=\"tidings\", error=\"invalid_token\"";

fn unknown_token() -> Problem {
    let detail = "this node does not know that token";
    let problem = Problem::new(StatusCode::UNAUTHORIZED, "invalid_token", detail);
    problem.with_header(WWW_AUTHENTICATE, HeaderValue::from_static(INVALID_CHALLENGE))
}

/// A wait in whole seconds, never none.
fn seconds(wait: Duration) -> HeaderValue {
    HeaderValue::from(wait.as_secs().saturating_add(1))
}

fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The sessions that a browser says it has: one, unless somebody put another there.
fn cookies(headers: &HeaderMap) -> impl Iterator<Item = SessionId> {
    let all = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = all.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let named = pairs.filter(|(name, _)| *name == SESSION_COOKIE);
    named.filter_map(|(_, text)| SessionId::parse(text)).take(COOKIES_MAX)
}

/// Session cookies of one request that are looked at: a browser sends one.
const COOKIES_MAX: usize = 2;

/// What is locked here is whole whenever it is not locked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

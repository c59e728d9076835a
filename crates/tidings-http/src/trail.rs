//! The trail: who did what, when, from where, and what came of it. Never values, payloads or tokens.
//!
//! Three rings in memory, so that neither what services do all the time nor what is refused, or open to whoever has any
//! token, pushes out what people did; and if it is asked for a file, to which every line is written before the request
//! is answered.

mod file;

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::StatusCode;
use serde_json::{Value as Json, json};
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::file::{Writer, open};
use crate::access::{Caller, Means};
use crate::limits::{TARGET_BYTES_MAX, TRAIL_MAX};
use crate::quantity::show_time;
use crate::request_id::RequestId;

/// What somebody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What people do.
    Act,
    /// What services do all the time.
    Traffic,
    /// What is not there, or changes no more than who is logged in.
    Nothing,
}

/// What was asked, before it is known what came of it.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) address: IpAddr,
    /// Method and route.
    pub(crate) action: String,
    pub(crate) target: String,
    pub(crate) request: RequestId,
    pub(crate) kind: Kind,
}

/// The outcome of what its caller may not do, or not now.
const REFUSED: &str = "refused";

/// What came of a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// `None`: the caller went away before the answer, and it is not known how far it got.
    pub(crate) status: Option<StatusCode>,
    pub(crate) code: Option<&'static str>,
    pub(crate) detail: Option<String>,
}

impl Outcome {
    fn name(&self) -> &'static str {
        match self.status.map(|status| status.as_u16()) {
            None => "unknown",
            Some(..=399) => "done",
            Some(401 | 403 | 421 | 429) => REFUSED,
            Some(_) => "failed",
        }
    }
}

/// One line of the trail.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    sequence: u64,
    time_ms: u64,
    who: Arc<str>,
    by: &'static str,
    asked: Asked,
    outcome: Outcome,
}

impl Entry {
    pub(crate) fn document(&self) -> Json {
        json!({
            "id": self.sequence.to_string(),
            "time": show_time(self.time_ms),
            "who": &*self.who,
            "by": self.by,
            "address": self.asked.address.to_string(),
            "action": self.asked.action,
            "target": self.asked.target,
            "detail": self.outcome.detail,
            "outcome": self.outcome.name(),
            "status": self.outcome.status.map(|status| status.as_u16()),
            "code": self.outcome.code,
            "request_id": self.asked.request.as_str(),
        })
    }
}

/// Something that callers chose, with everything that could confuse a terminal or a page's reader made visible, and of
/// bounded length.
pub(crate) fn shown(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars() {
        let before = shown.len();
        if c == ' ' || c.is_ascii_graphic() || c.is_alphanumeric() {
            shown.push(c);
        } else {
            // A string takes everything.
            let _ = write!(shown, "\\u{{{:x}}}", u32::from(c));
        }
        if shown.len() > TARGET_BYTES_MAX {
            shown.truncate(before);
            shown.push('…');
            break;
        }
    }
    shown
}

/// Which entries to list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    /// Entries behind this one, in the order of the list.
    pub(crate) after: Option<u64>,
    pub(crate) limit: usize,
    pub(crate) newest_first: bool,
}

/// A part of the trail.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) entries: Vec<Entry>,
    /// Where the next page begins, if there is one.
    pub(crate) next: Option<u64>,
}

#[derive(Debug, Default)]
struct Rings {
    last: u64,
    people: VecDeque<Entry>,
    services: VecDeque<Entry>,
    /// What came to nothing, logins and logouts: whoever has any token can bring that about without end.
    refused: VecDeque<Entry>,
}

impl Rings {
    fn push(&mut self, mut entry: Entry) -> Entry {
        self.last += 1;
        entry.sequence = self.last;
        let ring = match entry.asked.kind {
            _ if entry.outcome.name() == REFUSED => &mut self.refused,
            Kind::Nothing => &mut self.refused,
            Kind::Traffic => &mut self.services,
            Kind::Act => &mut self.people,
        };
        if ring.len() == TRAIL_MAX {
            ring.pop_front();
        }
        ring.push_back(entry.clone());
        entry
    }

    fn page(&self, page: Page) -> Listed {
        let is_behind = |entry: &&Entry| match page.after {
            Some(after) if page.newest_first => entry.sequence < after,
            Some(after) => entry.sequence > after,
            None => true,
        };
        let all = self.people.iter().chain(&self.services).chain(&self.refused);
        let mut found: Vec<&Entry> = all.filter(is_behind).collect();
        found.sort_unstable_by_key(|entry| entry.sequence);
        if page.newest_first {
            found.reverse();
        }
        let more = found.len() > page.limit;
        found.truncate(page.limit);
        let next = found.last().filter(|_| more).map(|entry| entry.sequence);
        Listed { entries: found.into_iter().cloned().collect(), next }
    }
}

/// A line on its way to the file.
#[derive(Debug)]
pub(crate) struct Line {
    text: String,
    written: oneshot::Sender<()>,
}

/// A line that counts as lost unless it gets on its way.
struct Unsent<'a> {
    lost: Option<&'a AtomicU64>,
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        if let Some(lost) = self.lost {
            lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Who did what on this node.
#[derive(Debug)]
pub(crate) struct Trail {
    rings: Mutex<Rings>,
    lines: Option<mpsc::Sender<Line>>,
    /// Lines that are in no file though there is one.
    lost: Arc<AtomicU64>,
}

impl Trail {
    /// With a file, what its writer reads comes from `lines`.
    pub(crate) fn new(lines: Option<mpsc::Sender<Line>>, lost: Arc<AtomicU64>) -> Self {
        Self { rings: Mutex::default(), lines, lost }
    }

    /// Lines that could not be written to the file.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Notes what somebody did, and waits until it is in the file.
    ///
    /// # Cancel safety
    /// It is noted at once; dropped, this only waits no longer for the file, and if there is no room for its line yet,
    /// counts it as lost.
    pub(crate) async fn note(&self, caller: &Caller, asked: Asked, outcome: Outcome) {
        let text = self.remember(caller, asked, outcome);
        let Some(lines) = &self.lines else { return };
        let (written, told) = oneshot::channel();
        // Whether its queue is full and its caller goes away, or its writer has ended.
        let mut unsent = Unsent { lost: Some(&self.lost) };
        if lines.send(Line { text, written }).await.is_ok() {
            unsent.lost = None;
            // What could not be written is counted by who tried.
            let _ = told.await;
        }
    }

    /// Notes what somebody has begun and waits for no more.
    pub(crate) fn note_unfinished(&self, caller: &Caller, asked: Asked) {
        let text = self.remember(caller, asked, Outcome::default());
        let Some(lines) = &self.lines else { return };
        if lines.try_send(Line { text, written: oneshot::channel().0 }).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The entry, as its line.
    fn remember(&self, caller: &Caller, asked: Asked, outcome: Outcome) -> String {
        let by = match caller.means {
            Means::Loopback => "loopback",
            Means::Token => "token",
            Means::Session(_) => "session",
        };
        let (who, time_ms) = (caller.name.clone(), wall_ms());
        let entry = Entry { sequence: 0, time_ms, who, by, asked, outcome };
        let entry = self.rings.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        entry.document().to_string() + "\n"
    }

    pub(crate) fn page(&self, page: Page) -> Listed {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner).page(page)
    }
}

/// The time of day, for people.
#[allow(clippy::disallowed_methods, reason = "the trail says when something was done by the wall clock")]
fn wall_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::pin::pin;

    use axum::http::HeaderMap;
    use futures_util::poll;

    use super::*;
    use crate::access::Role;
    use crate::request_id::RequestIds;

    fn asked(kind: Kind) -> Asked {
        let request = RequestIds::new(1).of(&HeaderMap::new());
        let (action, target) = ("POST /v1/drain".to_owned(), shown("/v1/drain"));
        Asked { address: [127, 0, 0, 1].into(), action, target, request, kind }
    }

    const KINDS: [Kind; 3] = [Kind::Act, Kind::Traffic, Kind::Nothing];

    fn caller() -> Caller {
        Caller { name: "ops".into(), role: Role::Admin, payloads: false, token: None, means: Means::Token }
    }

    #[tokio::test]
    async fn neither_services_nor_what_is_refused_push_out_what_people_did() {
        let refused = Outcome { status: Some(StatusCode::FORBIDDEN), ..Outcome::default() };
        for (kind, outcome) in [
            (Kind::Traffic, Outcome::default()),
            (Kind::Nothing, Outcome { status: Some(StatusCode::NOT_FOUND), ..Outcome::default() }),
            (Kind::Act, refused.clone()),
            (Kind::Traffic, refused),
        ] {
            let trail = Trail::new(None, Arc::default());
            trail.note_unfinished(&caller(), asked(Kind::Act));
            for _ in 0..2 * TRAIL_MAX {
                trail.note(&caller(), asked(kind), outcome.clone()).await;
            }
            let all = trail.page(Page { after: None, limit: usize::MAX, newest_first: false });
            let told = (all.entries.len(), all.entries[0].sequence, all.next);
            assert_eq!(told, (TRAIL_MAX + 1, 1, None), "{kind:?}");
        }
    }

    #[tokio::test]
    async fn a_line_that_finds_no_room_before_its_caller_goes_away_is_counted_as_lost() {
        let (sender, mut lines) = mpsc::channel(1);
        let caller = caller();
        let trail = Trail::new(Some(sender), Arc::default());
        trail.note_unfinished(&caller, asked(Kind::Act));
        assert_eq!(trail.lost(), 0);
        {
            let mut note = pin!(trail.note(&caller, asked(Kind::Act), Outcome::default()));
            assert!(poll!(note.as_mut()).is_pending());
        }
        assert_eq!(trail.lost(), 1);
        lines.recv().await.unwrap();
        // One that is on its way is the writer's, whether or not its caller waits.
        {
            let mut note = pin!(trail.note(&caller, asked(Kind::Act), Outcome::default()));
            assert!(poll!(note.as_mut()).is_pending());
        }
        assert_eq!(trail.lost(), 1);
        drop(lines);
        trail.note(&caller, asked(Kind::Act), Outcome::default()).await;
        assert_eq!(trail.lost(), 2);
    }

    #[test]
    fn pages_meet_without_holes_in_either_order() {
        let trail = Trail::new(None, Arc::default());
        (0..25).for_each(|number| trail.note_unfinished(&caller(), asked(KINDS[number % 3])));
        for newest_first in [false, true] {
            let (mut after, mut seen) = (None, Vec::new());
            loop {
                let page = trail.page(Page { after, limit: 10, newest_first });
                seen.extend(page.entries.iter().map(|entry| entry.sequence));
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(seen.iter().copied().collect::<BTreeSet<_>>(), (1..=25).collect());
            assert!(seen.is_sorted_by(|a, b| if newest_first { a > b } else { a < b }), "{seen:?}");
        }
    }

    #[test]
    fn what_callers_chose_is_shown_harmless_and_short() {
        assert_eq!(shown("/v1/caches/ü%0A"), "/v1/caches/ü%0A");
        assert_eq!(shown("a\u{202e}\u{1b}[2J\n"), "a\\u{202e}\\u{1b}[2J\\u{a}");
        let long = shown(&"\u{7}".repeat(10 * TARGET_BYTES_MAX));
        assert!(long.len() <= TARGET_BYTES_MAX + '…'.len_utf8() && long.ends_with('…'), "{}", long.len());
    }
}

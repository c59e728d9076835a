//! The trail: who did what, when, from where, and what came of it. Never values, payloads or tokens.
//!
//! Two rings in memory, so that what services do all the time does not push out what people did; and if it is asked for
//! a file, to which every line is written before the request is answered.

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

/// What was asked, before it is known what came of it.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) address: IpAddr,
    /// Method and route.
    pub(crate) action: String,
    pub(crate) target: String,
    pub(crate) request: RequestId,
    /// Whether it is what services do all the time.
    pub(crate) traffic: bool,
}

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
            Some(401 | 403 | 421 | 429) => "refused",
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
}

impl Rings {
    fn push(&mut self, mut entry: Entry) -> Entry {
        self.last += 1;
        entry.sequence = self.last;
        let ring = if entry.asked.traffic { &mut self.services } else { &mut self.people };
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
        let mut found: Vec<&Entry> = self.people.iter().chain(&self.services).filter(is_behind).collect();
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
    /// It is noted at once; dropped, this only waits no longer for the file.
    pub(crate) async fn note(&self, caller: &Caller, asked: Asked, outcome: Outcome) {
        let text = self.remember(caller, asked, outcome);
        let Some(lines) = &self.lines else { return };
        let (written, told) = oneshot::channel();
        if lines.send(Line { text, written }).await.is_ok() {
            // What could not be written is counted by who tried.
            let _ = told.await;
        } else {
            self.lost.fetch_add(1, Ordering::Relaxed);
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

    use axum::http::HeaderMap;

    use super::*;
    use crate::access::Role;
    use crate::request_id::RequestIds;

    fn asked(traffic: bool) -> Asked {
        let request = RequestIds::new(1).of(&HeaderMap::new());
        let (action, target) = ("POST /v1/drain".to_owned(), shown("/v1/drain"));
        Asked { address: [127, 0, 0, 1].into(), action, target, request, traffic }
    }

    fn caller() -> Caller {
        Caller { name: "ops".into(), role: Role::Admin, payloads: false, means: Means::Token }
    }

    #[test]
    fn services_do_not_push_out_what_people_did() {
        let trail = Trail::new(None, Arc::default());
        trail.note_unfinished(&caller(), asked(false));
        for _ in 0..2 * TRAIL_MAX {
            trail.note_unfinished(&caller(), asked(true));
        }
        let all = trail.page(Page { after: None, limit: usize::MAX, newest_first: false });
        assert_eq!((all.entries.len(), all.entries[0].sequence, all.next), (TRAIL_MAX + 1, 1, None));
    }

    #[test]
    fn pages_meet_without_holes_in_either_order() {
        let trail = Trail::new(None, Arc::default());
        (0..25).for_each(|number| trail.note_unfinished(&caller(), asked(number % 3 == 0)));
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

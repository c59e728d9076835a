//! Which lives have a session, and so a link.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidings_membership::Record;
use tidings_proto::id::Origin;
use tidings_transport::Link;

use super::Bus;

/// Counts the sessions with each life, and keeps what it said of itself: it has a link while it has a session.
#[derive(Debug, Default)]
pub(super) struct Sessions(pub(super) BTreeMap<Origin, (usize, Record)>);

impl Sessions {
    pub(super) fn begin(&mut self, record: Record) {
        let (count, newest) = self.0.entry(record.origin.clone()).or_insert_with(|| (0, record.clone()));
        *count += 1;
        *newest = record;
    }

    /// What a life with a session said of itself.
    pub(super) fn record(&self, origin: &Origin) -> Option<Record> {
        self.0.get(origin).map(|(_, record)| record.clone())
    }

    /// Returns whether it was the last one.
    pub(super) fn end(&mut self, origin: &Origin) -> bool {
        let Some((count, _)) = self.0.get_mut(origin) else { return false };
        *count -= 1;
        let last = *count == 0;
        if last {
            self.0.remove(origin);
        }
        last
    }
}

/// A session that runs. Dropped, however it ends, it is counted no more; the last one to a life takes the link from it.
pub(super) struct Session {
    pub(super) bus: Arc<Bus>,
    pub(super) origin: Origin,
    pub(super) link: Option<Arc<Link>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut sessions = self.bus.sessions.lock();
        if !sessions.end(&self.origin) {
            return;
        }
        if let Some(membership) = self.bus.membership() {
            match self.link.as_ref().is_some_and(|link| link.was_let_go()) {
                // That it is there is for others to say from now on.
                true => {
                    membership.link_let_go(&self.origin);
                    self.bus.unwanted(&self.origin);
                }
                false => membership.link_down(&self.origin),
            }
        }
        drop(sessions);
        self.bus.unlinked(&self.origin);
    }
}

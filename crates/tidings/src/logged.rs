//! What is logged on a thread, for tests of how much that is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Level, Metadata, Subscriber};

/// Counts events of one level and one part of the crate.
struct Counting {
    level: Level,
    target: &'static str,
    events: Arc<AtomicUsize>,
}

impl Subscriber for Counting {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == self.level && metadata.target().starts_with(self.target)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {
        self.events.fetch_add(1, Ordering::SeqCst);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Counts what this thread logs of a target with a level, until the guard is dropped.
pub(crate) fn events(target: &'static str, level: Level) -> (Arc<AtomicUsize>, DefaultGuard) {
    let events = Arc::<AtomicUsize>::default();
    let guard = tracing::subscriber::set_default(Counting { level, target, events: events.clone() });
    (events, guard)
}

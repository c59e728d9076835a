//! What a subscriber wants of the events that it reads.

use std::sync::Arc;

use tidings_proto::event::EventKind;

use crate::event::{RawEvent, RawTarget, WriterId};
use crate::subscribe::{Item, Scope, Source};

/// Which events of its partitions a subscriber is handed.
pub(crate) struct Filter {
    pub(crate) own: WriterId,
    pub(crate) kinds: Option<Vec<EventKind>>,
    pub(crate) prefix: Option<String>,
    pub(crate) scope: Scope,
}

impl Filter {
    #[inline]
    pub(crate) fn item(&self, event: Arc<RawEvent>, source: &dyn Source) -> Option<Item<Arc<RawEvent>>> {
        match event.fenced {
            Some(slots) => Some(Item::Fenced { slots }),
            None => self.passes(&event, source).then_some(Item::Event(event)),
        }
    }

    #[inline]
    fn passes(&self, event: &RawEvent, source: &dyn Source) -> bool {
        let open = self.kinds.is_none() && self.prefix.is_none() && self.scope == Scope::All;
        event.writer != Some(self.own) && (open || self.chooses(event, source))
    }

    fn chooses(&self, event: &RawEvent, source: &dyn Source) -> bool {
        let kind = self.kinds.as_ref().is_none_or(|kinds| kinds.contains(&event.kind));
        let scope = match self.scope {
            Scope::All => true,
            Scope::Local => event.local,
            Scope::Remote => !event.local,
        };
        let prefix = self.prefix.as_ref().is_none_or(|prefix| match &event.target {
            RawTarget::Key(_) | RawTarget::Keys(_) => {
                let starts =
                    |key: &bytes::Bytes| source.text(key).is_some_and(|text| text.starts_with(prefix));
                event.keys().iter().any(starts)
            }
            _ => true,
        });
        kind && scope && prefix
    }
}

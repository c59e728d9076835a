//! Whether any member hears this node.

use std::time::Duration;

use tidings_proto::time::Tick;

use super::{Coherence, Inner};
use crate::observe::Observation;

impl Coherence {
    /// Whether any member has ever followed this node.
    pub(crate) fn was_heard(&self) -> bool {
        self.inner.lock().heard() > Tick::NEVER
    }

    /// Judges whether this node is expelled, and says so if that has changed.
    pub(crate) fn judge_place(&self) {
        let now = self.domain.clock().now();
        let mut inner = self.inner.lock();
        let heard = inner.heard();
        let others = inner.freshness.misses_somebody();
        if !inner.belonging.judge(heard, others, now) {
            return;
        }
        let expelled = inner.belonging.expelled().is_some();
        drop(inner);
        if expelled {
            let lost_grace = self.bounds().lost_grace;
            tracing::warn!(
                ?lost_grace,
                "expelled: no member has heard this node for so long that they have given it up; \
                what it changes reaches them once they meet again"
            );
        } else {
            tracing::info!("expelled no more: a member hears this node");
        }
        self.observers.tell(Observation::Expelled { expelled });
    }

    /// For how long no member has heard this node, if it is expelled.
    pub(crate) fn expelled(&self) -> Option<Duration> {
        let since = self.inner.lock().belonging.expelled()?;
        Some(self.domain.clock().now().since(since))
    }
}

impl Inner {
    /// When any member last heard this node.
    fn heard(&self) -> Tick {
        let heard = self.peers.values().filter_map(|peer| Some(peer.served.as_ref()?.heard()));
        heard.max().unwrap_or(Tick::NEVER)
    }
}

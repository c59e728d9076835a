//! Where a node has its durable streams: nothing without the feature `streams`.

use std::time::Duration;

/// The streams of a node, once it has any.
#[derive(Debug, Default)]
pub(crate) struct Streaming {
    #[cfg(feature = "streams")]
    running: std::sync::OnceLock<crate::streams::Running>,
}

impl Streaming {
    /// Has consumers finish what they have, in half of the deadline: one that hangs must not cost the node its goodbye.
    /// What is left for the rest.
    #[cfg_attr(
        not(feature = "streams"),
        allow(clippy::unused_async, reason = "there is nothing to wait for")
    )]
    pub(crate) async fn drain(&self, deadline: Duration) -> Duration {
        #[cfg(feature = "streams")]
        if let Some(running) = self.running.get() {
            let began = tokio::time::Instant::now();
            running.drain(began + deadline / 2).await;
            return deadline.saturating_sub(began.elapsed());
        }
        deadline
    }

    /// Publishes what was captured and closes the store, after the node has ended. Whether that was done.
    #[cfg_attr(
        not(feature = "streams"),
        allow(clippy::unused_async, reason = "there is nothing to wait for")
    )]
    pub(crate) async fn close(&self) -> bool {
        #[cfg(feature = "streams")]
        if let Some(running) = self.running.get() {
            return running.close().await;
        }
        true
    }
}

#[cfg(feature = "streams")]
impl Streaming {
    pub(crate) fn set(&self, running: crate::streams::Running) {
        let set = self.running.set(running);
        assert!(set.is_ok(), "invariant: a node gets its streams once, when it is started");
    }

    pub(crate) fn get(&self) -> Option<&crate::streams::Running> {
        self.running.get()
    }
}

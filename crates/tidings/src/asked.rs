//! Questions between members: who answers which.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::RwLock;
use tidings_proto::ask::{Declined, Topic};
use tidings_proto::id::{NodeId, Origin};
use tidings_transport::AskError;

use crate::bus::Bus;

/// Answers questions of one topic. No method may block.
pub(crate) trait Answering: Send + Sync + 'static {
    /// Answers a member's question. Dropped when the member does not wait for it any more.
    fn answer(&self, peer: Origin, question: Bytes) -> BoxFuture<'static, Result<Bytes, Declined>>;
}

/// Who answers questions on this node, by topic. Questions about others are declined.
#[derive(Default)]
pub(crate) struct Asked([RwLock<Option<Arc<dyn Answering>>>; Topic::ALL.len()]);

impl Asked {
    /// Lets questions of a topic be answered so from now on.
    pub(crate) fn serve(&self, topic: Topic, answering: Arc<dyn Answering>) {
        *self.of(topic).write() = Some(answering);
    }

    /// Answers a question.
    pub(crate) fn answer(
        &self,
        peer: Origin,
        topic: Topic,
        question: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, Declined>> {
        let answering = self.of(topic).read().clone();
        match answering {
            Some(answering) => answering.answer(peer, question),
            None => std::future::ready(Err(Declined::Unknown)).boxed(),
        }
    }

    fn of(&self, topic: Topic) -> &RwLock<Option<Arc<dyn Answering>>> {
        &self.0[topic as usize - 1]
    }
}

impl Bus {
    /// Asks a member a question.
    ///
    /// # Errors
    /// [`AskError`]; [`AskError::Unlinked`] at once if the member has no link. One that relays stand for is dialled then,
    /// so that it can be asked later.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(crate) async fn ask(
        &self,
        node: &NodeId,
        topic: Topic,
        question: &[u8],
        within: Duration,
    ) -> Result<Bytes, AskError> {
        let link = self.transport().and_then(|transport| transport.link(node));
        let link = link.ok_or_else(|| {
            self.link_wanted(node);
            AskError::Unlinked
        })?;
        link.ask(topic, question, within).await
    }
}

#[cfg(test)]
#[path = "asked_tests.rs"]
mod tests;

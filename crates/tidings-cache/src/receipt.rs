//! Changes as they were made, and who has applied them.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tidings_proto::event::EventKind;
use tidings_proto::receipt::{Positions, Receipt};

use crate::domain::Domain;

/// There is no receipt. The change is made all the same, and on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiptError {
    /// The cache is [`crate::Mode::Local`]: no peer is told, and none has a copy that this change would concern.
    #[error("the cache is local: no peer is told of its changes")]
    Local,
    /// The node has seeds and has reached none since its start: it does not know who has to apply the change.
    #[error("no seed has been reached: who has to apply the change is not known")]
    NoContact,
    /// Too many receipts are waited for. Whoever needs one asks again with [`Domain::acked`].
    #[error("too many receipts are waited for")]
    TooMany,
    /// The node has ended, and hears no peer any more.
    #[error("this node has ended: it hears no peer any more")]
    Ended,
}

/// The future of a receipt.
pub type ReceiptFuture = Pin<Box<dyn Future<Output = Result<Receipt, ReceiptError>> + Send>>;

/// Where receipts come from: who asks says what has to be applied, and how long it waits.
pub type ReceiptSource = Arc<dyn Fn(Positions, Duration) -> ReceiptFuture + Send + Sync>;

/// A change that was made. It may be dropped: it is on its way to every peer whether or not anybody asks.
#[derive(Clone)]
pub struct Written<'a> {
    /// What it did to this node's cache. Of several values that were stored, `Inserted` if any of them was new.
    pub kind: EventKind,
    /// Where the log has it; nothing for a cache that does not broadcast, and for a change of no key.
    pub positions: Positions,
    /// `None`: the cache tells nobody.
    pub(crate) domain: Option<&'a Domain>,
}

impl fmt::Debug for Written<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Written")
            .field("kind", &self.kind)
            .field("positions", &self.positions)
            .finish_non_exhaustive()
    }
}

impl Written<'_> {
    /// Waits until every peer that was a member when the change was made has applied it, and at most for a time.
    ///
    /// Peers gather acknowledgements for up to 5 ms. Whoever is still missing then is named with the reason; one that
    /// cannot serve an older entry any more is not waited for.
    ///
    /// # Errors
    /// [`ReceiptError`].
    ///
    /// # Cancel safety
    /// Cancel-safe: the change is made, and may be asked about again. Needs a tokio runtime with time.
    pub async fn acked(&self, timeout: Duration) -> Result<Receipt, ReceiptError> {
        match self.domain {
            Some(domain) => domain.acked(&self.positions, timeout).await,
            None => Err(ReceiptError::Local),
        }
    }
}

impl Domain {
    /// Says where receipts come from; the first one counts.
    pub fn set_receipts(&self, source: ReceiptSource) {
        // A node sets it once, before anybody holds the domain.
        let _ = self.receipts().set(source);
    }

    /// As [`Written::acked`], for changes of which only the positions were kept, and for several together. Without
    /// peers there is nobody to wait for.
    ///
    /// # Errors
    /// [`ReceiptError`].
    ///
    /// # Cancel safety
    /// Cancel-safe. Needs a tokio runtime with time.
    pub async fn acked(&self, positions: &Positions, timeout: Duration) -> Result<Receipt, ReceiptError> {
        match self.receipts().get().filter(|_| !positions.is_empty()) {
            Some(source) => source(positions.clone(), timeout).await,
            None => Ok(Receipt::default()),
        }
    }
}

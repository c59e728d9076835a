//! For how long a peer is asked the same.

use std::time::Duration;

use tidings_proto::ask::Declined;
use tidings_proto::audit::Unusable;
use tidings_proto::time::Tick;
use tidings_transport::AskError;

/// How often a peer is asked the same before it is left out of the rest of the cache's sweep.
const TRIES: u32 = 5;

/// How long a peer that is busy with other nodes' questions is asked again and again: some ten of them that audit at
/// once take a few seconds each.
const BUSY_TIME: Duration = Duration::from_secs(30);

/// Between two of them: a page is answered in milliseconds, a link is made anew in some hundred.
pub(super) const TRY_PAUSE: Duration = Duration::from_millis(200);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("the answer makes no sense")]
    Unusable(#[from] Unusable),
}

impl NoAnswer {
    /// Whether the peer may answer the same question a moment later.
    fn passes(&self) -> bool {
        use AskError::{Connection, Read, Unlinked, Write};
        matches!(self, Self::Ask(Unlinked | Connection(_) | Read(_) | Write(_)))
    }

    /// Whether the peer has said nothing in time, and would not the next time.
    pub(super) fn is_late(&self) -> bool {
        matches!(self, Self::Ask(AskError::Late(_)))
    }

    /// Whether the peer answers others meanwhile.
    fn is_busy(&self) -> bool {
        matches!(self, Self::Ask(AskError::Busy | AskError::Declined(Declined::Busy)))
    }
}

/// How long the same question goes on being asked.
pub(super) struct Patience {
    tries: u32,
    busy_until: Tick,
}

impl Patience {
    pub(super) fn from(now: Tick) -> Self {
        Self { tries: TRIES, busy_until: now.after(BUSY_TIME) }
    }

    /// Whether to ask again after this.
    pub(super) fn asks_again(&mut self, error: &NoAnswer, now: Tick) -> bool {
        if error.is_busy() {
            return now < self.busy_until;
        }
        self.tries -= 1;
        error.passes() && self.tries > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_busy_is_asked_for_a_time_and_who_does_not_answer_so_many_times() {
        let (now, end) = (Tick(5), Tick(5).after(BUSY_TIME));
        let mut patience = Patience::from(now);
        let busy = NoAnswer::Ask(AskError::Declined(Declined::Busy));
        assert!((0..100).all(|_| patience.asks_again(&busy, now)));
        assert!(!patience.asks_again(&busy, end));
        let unlinked = NoAnswer::Ask(AskError::Unlinked);
        let again = (0..).take_while(|_| patience.asks_again(&unlinked, end)).count();
        assert_eq!(again, TRIES as usize - 1);
        let failed = NoAnswer::Ask(AskError::Declined(Declined::Failed));
        assert!(!Patience::from(now).asks_again(&failed, now));
    }
}

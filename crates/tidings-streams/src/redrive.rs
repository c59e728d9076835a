//! Retrying many dead letters: at a rate that whoever handles them can bear.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::call::{DeadLetterFilter, DeadLetterPage};
use crate::error::{DeadLetterError, StoreError};
use crate::id::DeadLetterId;
use crate::streams::{BULK_LETTERS, Streams};

/// How far retrying many has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Redriven {
    /// Dead letters that were published again.
    pub retried: u64,
    /// Dead letters that stay, for their group is gone.
    pub stayed: u64,
}

impl Streams {
    /// Retries all dead letters that a filter takes and that are there when it begins, newest first, at most so many a
    /// second. After each the progress is told.
    ///
    /// Cancel-safe: what was retried is retried, the others stay.
    ///
    /// # Errors
    /// [`StoreError`]: some may have been retried; the last progress says how many.
    pub async fn retry_all(
        &self,
        filter: &DeadLetterFilter,
        per_second: NonZeroU32,
        mut progress: impl FnMut(Redriven),
    ) -> Result<Redriven, StoreError> {
        // A rate beyond one a nanosecond would be no interval.
        let pause = (Duration::from_secs(1) / per_second.get()).max(Duration::from_nanos(1));
        let mut times = tokio::time::interval(pause);
        times.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut redriven = Redriven::default();
        let mut page = DeadLetterPage { filter: filter.clone(), after: None, limit: BULK_LETTERS };
        loop {
            let found = self.dead_letters(&page).await?;
            let ids: Vec<DeadLetterId> = found.letters.iter().map(|letter| letter.id).collect();
            for id in ids {
                times.tick().await;
                match self.retry(id).await {
                    Ok(_) => redriven.retried += 1,
                    Err(DeadLetterError::NoGroup) => redriven.stayed += 1,
                    // Somebody else was faster.
                    Err(DeadLetterError::Unknown) => continue,
                    Err(DeadLetterError::Store(error)) => return Err(error),
                }
                progress(redriven);
            }
            // What fails once more meanwhile is newer than all of these.
            let Some(next) = found.next else { return Ok(redriven) };
            page.after = Some(next);
        }
    }
}

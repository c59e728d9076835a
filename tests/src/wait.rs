//! Waiting for a state, with a deadline.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

/// Time between two looks. Short against every state that a test waits for, long against the cost of a look.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks until there is an answer; an error that names what was waited for, and why not yet, at the deadline.
pub async fn until<T>(what: &str, deadline: Duration, mut look: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        match look().await {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() >= end => bail!("not within {deadline:?}: {what}: {error:#}"),
            Err(_) => sleep(LOOK_EVERY).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_deadline_names_what_was_missing() {
        let never =
            until("the sun rises", Duration::from_millis(50), async || -> Result<()> { bail!("still dark") });
        let error = never.await.expect_err("it cannot");
        assert_eq!(error.to_string(), "not within 50ms: the sun rises: still dark");
    }

    #[tokio::test]
    async fn the_first_answer_ends_the_wait() {
        let mut looks = 0;
        let answer = until("three looks", Duration::from_secs(60), async || {
            looks += 1;
            if looks < 3 { bail!("only {looks}") } else { Ok(looks) }
        });
        assert_eq!(answer.await.expect("the third look"), 3);
    }
}

//! Asking before something is destroyed.

use std::io::{self, IsTerminal, Write};

use crate::exit::{Exit, Failure};

/// Asks whether to go on, unless that was said already.
///
/// # Errors
/// Nobody can be asked (exit 2), or the answer is no (exit 6).
pub(super) async fn confirm(what: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::new(Exit::Usage, format!("{what}: nobody is there to be asked"))
            .hint("--yes does it without asking"));
    }
    // Nobody may be there to read it: then nobody answers.
    let _ = write!(io::stderr(), "{what}: go on? [y/N] ");
    // A read cannot be cancelled: Ctrl-C must not wait for it.
    let answer = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map(|_| answer)
    });
    let answer = answer.await.ok().and_then(Result::ok).unwrap_or_default();
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Failure::new(Exit::Conflict, "nothing was done"))
}

//! Being told to stop: once politely, twice for good.

use std::future::Future;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::{Exit, Failure};

/// SIGINT (Ctrl-C) and SIGTERM. While this is there, neither ends the process by itself.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// The system has no room for another listener.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let one = |kind| {
            signal(kind)
                .map_err(|error| Failure::new(Exit::Failed, format!("cannot listen for signals: {error}")))
        };
        Ok(Self { interrupt: one(SignalKind::interrupt())?, terminate: one(SignalKind::terminate())? })
    }

    /// The next one. Cancel-safe.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Lets a shutdown finish, unless another signal comes first.
    ///
    /// # Errors
    /// Exit 130: it came.
    pub(crate) async fn patiently<F: Future>(&mut self, shutdown: F) -> Result<F::Output, Failure> {
        tokio::select! {
            output = shutdown => Ok(output),
            () = self.next() => Err(Failure::silent(Exit::Interrupted)),
        }
    }
}

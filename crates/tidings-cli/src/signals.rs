//! Being told to stop: once politely, twice for good.

use std::future::Future;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::{Exit, Failure};

/// SIGINT (Ctrl-C), SIGTERM and SIGHUP. While this is there, none of them ends the process by itself.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

/// What a signal tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// To stop: SIGINT or SIGTERM.
    Stop,
    /// That the terminal is gone, or that the configuration has changed: SIGHUP.
    Hangup,
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
        Ok(Self {
            interrupt: one(SignalKind::interrupt())?,
            terminate: one(SignalKind::terminate())?,
            hangup: one(SignalKind::hangup())?,
        })
    }

    /// The next one. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.terminate.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::Hangup,
        }
    }

    /// The next SIGINT or SIGTERM; a SIGHUP meanwhile is passed over. Cancel-safe.
    pub(crate) async fn stop(&mut self) {
        while self.next().await != Told::Stop {}
    }

    /// Lets a shutdown finish, unless another signal comes first.
    ///
    /// # Errors
    /// Exit 130: it came.
    pub(crate) async fn patiently<F: Future>(&mut self, shutdown: F) -> Result<F::Output, Failure> {
        tokio::select! {
            output = shutdown => Ok(output),
            () = self.stop() => Err(Failure::silent(Exit::Interrupted)),
        }
    }
}

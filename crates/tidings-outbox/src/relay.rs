//! The task that publishes what was committed.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::{Connection, Pool};
use tidings_streams::{Backoff, Streams, decide};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::outbox::Outbox;
use crate::round::{Halt, Rounds, text_of, timed};
use crate::tables::{Database, Options};
use crate::trouble::Troubles;

/// The least time between two looks at a database of which nobody tells anything.
pub const POLL_MIN: Duration = Duration::from_millis(10);

/// How often a relay that does not lead asks for the lead.
const LEAD_POLL: Duration = Duration::from_secs(1);

/// How long a relay waits before it listens for commits again when that has ended: meanwhile it looks by itself.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);

/// How often keys that went out long ago are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// Most keys that are forgotten in one step, which others wait for.
const FORGOTTEN_MAX: i64 = 1_000;

/// How to relay.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// How often to look whether something was committed, where nobody tells. Default: 500 ms; at least [`POLL_MIN`].
    pub poll: Duration,
    /// How long to wait after a failure. Default: 500 ms, doubled up to one minute, by a fifth shorter or longer.
    pub backoff: Backoff,
    /// How long an idempotency key that an event brought stays taken after the event went out. Default: one day.
    pub remember_keys: Duration,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            poll: Duration::from_millis(500),
            backoff: Backoff::default(),
            remember_keys: Duration::from_secs(24 * 3600),
        }
    }
}

/// What a relay is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RelayState {
    /// It connects to the database.
    #[default]
    Connecting,
    /// Another one relays.
    Standby,
    /// It relays.
    Relaying,
    /// The database or the store failed, and it waits before it tries again.
    BackingOff,
    /// It was stopped, its streams were closed, or a driver of theirs has panicked.
    Ended,
}

/// What a relay is about, and what it has done since it was started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RelayStatus {
    /// Now.
    pub state: RelayState,
    /// Events that it published.
    pub published: u64,
    /// Events that were in their topics already, by the word of the store or by what a topic holds.
    pub found: u64,
    /// Events that it set aside.
    pub failed: u64,
    /// Events that may be published twice: they were looked for, and their topic had been trimmed meanwhile. One counts
    /// each time it is looked for.
    pub unsure: u64,
    /// How often the database, the store or a topic would not.
    pub setbacks: u64,
    /// What the last setback was. `None`: since then all goes well.
    pub error: Option<String>,
}

/// The status, for who changes it and who reads it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared(Arc<Mutex<RelayStatus>>);

impl Shared {
    pub(crate) fn change(&self, change: impl FnOnce(&mut RelayStatus)) {
        change(&mut self.0.lock());
    }
}

/// A relay that runs.
#[derive(Debug)]
#[must_use = "dropping it stops the relay"]
pub struct Relay {
    stop: CancellationToken,
    wake: Arc<Notify>,
    shared: Shared,
    task: Option<JoinHandle<()>>,
}

impl Relay {
    /// What it is about.
    #[must_use]
    pub fn status(&self) -> RelayStatus {
        let mut status = self.shared.0.lock().clone();
        // Who has panicked could not say so.
        if self.task.as_ref().is_none_or(JoinHandle::is_finished) {
            status.state = RelayState::Ended;
        }
        status
    }

    /// Has it look now.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Finishes what it has asked the store for, gives up the lead, closes its connection and ends. What it was.
    ///
    /// Takes as long as the store and the database take for that: a call to a database at most 30 s.
    ///
    /// # Cancel safety
    /// Cancel-safe: dropped, the relay ends all the same.
    ///
    /// # Panics
    /// If a driver of the streams has panicked.
    pub async fn stop(mut self) -> RelayStatus {
        self.stop.cancel();
        if let Some(task) = self.task.take()
            && let Err(error) = task.await
            && let Ok(panic) = error.try_into_panic()
        {
            resume_unwind(panic);
        }
        self.status()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl<DB: Database> Outbox<DB> {
    /// Starts to publish to streams what is committed, on a connection of its own: of the pool it takes the options
    /// only. Has to be called on a runtime.
    ///
    /// Where the database is away, or the table is not there yet, it tries again.
    pub fn relay(&self, pool: &Pool<DB>, streams: Streams, config: RelayConfig) -> Relay {
        let (stop, shared) = (CancellationToken::new(), Shared::default());
        let wake = Arc::clone(self.wakes());
        let life = Life {
            options: pool.connect_options(),
            wake: Arc::clone(&wake),
            stop: stop.clone(),
            failures: 0,
            rounds: Rounds {
                outbox: self.clone(),
                streams,
                config,
                shared: shared.clone(),
                troubles: Troubles::default(),
                stop: stop.clone(),
                rest: Vec::new(),
            },
        };
        let task = Some(TaskTracker::new().spawn(life.run()));
        Relay { stop, wake, shared, task }
    }
}

/// All that a relay is, from its first connection to its end.
struct Life<DB: Database> {
    options: Arc<Options<DB>>,
    wake: Arc<Notify>,
    stop: CancellationToken,
    /// In a row.
    failures: u32,
    rounds: Rounds<DB>,
}

impl<DB: Database> Life<DB> {
    async fn run(mut self) {
        while !self.stop.is_cancelled() {
            self.is(RelayState::Connecting);
            let halt = match self.lead().await {
                Ok(()) => break,
                Err(halt) => halt,
            };
            let error = text_of(&halt);
            self.failures = self.failures.saturating_add(1);
            if self.failures == 1 {
                tracing::warn!(error, table = self.rounds.outbox.table_name(), "nothing is relayed for now");
            }
            self.rounds.shared.change(|status| {
                status.state = RelayState::BackingOff;
                status.setbacks += 1;
                status.error = Some(error);
            });
            if matches!(halt, Halt::Closed) {
                break;
            }
            let wait = decide::backoff(&self.rounds.config.backoff, self.failures, rand::random());
            self.stop.run_until_cancelled(tokio::time::sleep(wait)).await;
        }
        self.is(RelayState::Ended);
    }

    /// Connects, waits for the lead, and relays until the relay is stopped.
    async fn lead(&mut self) -> Result<(), Halt> {
        let (outbox, stop) = (self.rounds.outbox.clone(), self.stop.clone());
        let mut connection = timed(DB::connect(&self.options)).await?;
        let lead = loop {
            if let Some(lead) = timed(DB::lead(&mut connection, outbox.table())).await? {
                break lead;
            }
            self.is(RelayState::Standby);
            self.failures = 0;
            if stop.run_until_cancelled(tokio::time::sleep(LEAD_POLL)).await.is_none() {
                return Ok(());
            }
        };
        self.is(RelayState::Relaying);
        let (options, wake) = (Arc::clone(&self.options), Arc::clone(&self.wake));
        let listening = async {
            loop {
                if let Err(error) = DB::listen(&options, outbox.table(), &wake).await {
                    tracing::debug!(error = &error as &dyn std::error::Error, "commits are not told");
                }
                tokio::time::sleep(LISTEN_AGAIN).await;
            }
        };
        let result = tokio::select! {
            result = self.relay(&mut connection) => result,
            () = listening => unreachable!("it never ends"),
        };
        // Only an end in peace says goodbye: a connection that failed may not answer.
        if result.is_ok() {
            drop(timed(connection.close()).await);
        }
        drop(lead);
        result
    }

    /// Publishes until the relay is stopped.
    async fn relay(&mut self, connection: &mut DB::Connection) -> Result<(), Halt> {
        let mut forget = Instant::now();
        while !self.stop.is_cancelled() {
            let setbacks = self.setbacks();
            let has_worked = match self.rounds.round(connection).await {
                Err(Halt::Stopped) => break,
                ended => ended?,
            };
            self.failures = 0;
            if self.setbacks() == setbacks && self.rounds.troubles.is_empty() {
                self.rounds.shared.change(|status| status.error = None);
            }
            if Instant::now() >= forget {
                let age = i64::try_from(self.rounds.config.remember_keys.as_millis()).unwrap_or(i64::MAX);
                let table = self.rounds.outbox.table();
                let forgotten = timed(DB::forget(connection, table, age, FORGOTTEN_MAX)).await?;
                let is_all = forgotten < FORGOTTEN_MAX.unsigned_abs();
                forget = Instant::now() + if is_all { FORGET_EVERY } else { Duration::ZERO };
            }
            if !has_worked {
                let next = self.rounds.troubles.next(Instant::now()).unwrap_or(Duration::MAX);
                tokio::select! {
                    () = self.wake.notified() => {}
                    () = self.stop.cancelled() => {}
                    () = tokio::time::sleep(next.min(self.rounds.config.poll.max(POLL_MIN))) => {}
                }
            }
        }
        Ok(())
    }

    fn setbacks(&self) -> u64 {
        self.rounds.shared.0.lock().setbacks
    }

    fn is(&self, state: RelayState) {
        self.rounds.shared.change(|status| status.state = state);
    }
}

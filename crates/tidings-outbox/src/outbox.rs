//! The table as a service uses it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tidings_streams::{InvalidEvent, InvalidName, Name, NewEvent, Timestamp};
use tokio::sync::Notify;

use crate::event::NewRow;
use crate::table::Table;
use crate::tables::Database;

/// Longest prefix, in bytes: the longest name that is made of it is within the 63 bytes that PostgreSQL looks at.
pub const PREFIX_BYTES_MAX: usize = 40;

/// Most events that [`Outbox::failed`] answers with at once.
const FAILED_MAX: usize = 1_000;

/// A prefix that no table can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a prefix has at most {PREFIX_BYTES_MAX} bytes of a to z, 0 to 9 and _, and does not begin with a digit: \
     {0:?} is none"
)]
pub struct InvalidPrefix(String);

/// Nothing was written, or, by [`OutboxError::Database`], what the transaction makes of it.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// There can be no such topic. The transaction is as it was.
    #[error("topic {0:?}")]
    Topic(String, #[source] InvalidName),
    /// No topic takes such an event. The transaction is as it was.
    #[error("the event is not valid")]
    Invalid(#[from] InvalidEvent),
    /// The database will not. In PostgreSQL nothing but a rollback, to a savepoint at least, goes on from there.
    #[error("the database will not")]
    Database(#[from] sqlx::Error),
}

/// What became of an event that was published into a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enqueued {
    /// Its idempotency key was taken: it was not written again.
    pub duplicate: bool,
}

/// What is in an outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Committed events that are to be published.
    pub waiting: u64,
    /// How long the oldest of them has been there.
    pub oldest: Option<Duration>,
    /// Events that were set aside.
    pub failed: u64,
}

/// An event that was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedEvent {
    /// Of its row. The rest of the event is in the columns `payload` and `attributes`.
    pub id: i64,
    /// Where it was to be published.
    pub topic: String,
    /// Why it was not.
    pub error: String,
    /// When it was written.
    pub created: Timestamp,
    /// When it was set aside.
    pub failed: Timestamp,
}

/// A table of events that are published when the transaction that wrote them has committed.
///
/// Clones are the same.
pub struct Outbox<DB: Database> {
    table: Arc<Table>,
    wake: Arc<Notify>,
    database: std::marker::PhantomData<fn() -> DB>,
}

impl<DB: Database> Clone for Outbox<DB> {
    fn clone(&self) -> Self {
        let (table, wake) = (Arc::clone(&self.table), Arc::clone(&self.wake));
        Self { table, wake, database: std::marker::PhantomData }
    }
}

impl<DB: Database> fmt::Debug for Outbox<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").field("table", &self.table.name).finish_non_exhaustive()
    }
}

impl<DB: Database> Outbox<DB> {
    /// The outbox in the table `{prefix}outbox`. Asks nothing of the database.
    ///
    /// In PostgreSQL each transaction with events tells relays of its commit (`NOTIFY`).
    ///
    /// # Errors
    /// [`InvalidPrefix`].
    pub fn new(prefix: &str) -> Result<Self, InvalidPrefix> {
        Self::with(prefix, true)
    }

    /// The same, whose transactions tell nobody of their commits: relays see them within [`crate::RelayConfig::poll`],
    /// or when they are told by [`Outbox::wake`]. PostgreSQL lets transactions that notify commit one after the other,
    /// and none of them can be prepared for two-phase commit.
    ///
    /// # Errors
    /// [`InvalidPrefix`].
    pub fn without_notify(prefix: &str) -> Result<Self, InvalidPrefix> {
        Self::with(prefix, false)
    }

    fn with(prefix: &str, notify: bool) -> Result<Self, InvalidPrefix> {
        let odd = |byte: u8| !(byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        let begins_odd = prefix.starts_with(|c: char| c.is_ascii_digit());
        if prefix.len() > PREFIX_BYTES_MAX || prefix.bytes().any(odd) || begins_odd {
            return Err(InvalidPrefix(prefix.to_owned()));
        }
        let table = Arc::new(DB::table(prefix, notify));
        Ok(Self { table, wake: Arc::default(), database: std::marker::PhantomData })
    }

    /// The table's name.
    #[must_use]
    pub fn table_name(&self) -> &str {
        &self.table.name
    }

    /// The statements that make the table and its indexes, for those who have a way of their own to do that. Each
    /// leaves alone what is there.
    #[must_use]
    pub fn schema(&self) -> Vec<String> {
        self.table.schema.iter().map(ToString::to_string).collect()
    }

    /// Makes the table and its indexes where they are not there, as one step.
    ///
    /// # Errors
    /// What the database says.
    pub async fn create_table(&self, connection: &mut DB::Connection) -> Result<(), sqlx::Error> {
        DB::create(connection, &self.table).await
    }

    /// Publishes an event when the transaction commits that the connection is in; a `sqlx::Transaction` lends one.
    /// Without a transaction it is committed at once.
    ///
    /// # Errors
    /// [`OutboxError`].
    ///
    /// # Cancel safety
    /// Not cancel-safe: the event may be written or not. Roll back, to a savepoint at least.
    pub async fn publish(
        &self,
        connection: &mut DB::Connection,
        topic: &str,
        event: NewEvent,
    ) -> Result<Enqueued, OutboxError> {
        if let Err(source) = Name::new(topic) {
            return Err(OutboxError::Topic(topic.to_owned(), source));
        }
        event.validate()?;
        let row = NewRow::new(topic.to_owned(), event, rand::random());
        let is_written = DB::insert(connection, &self.table, row).await?;
        Ok(Enqueued { duplicate: !is_written })
    }

    /// Has the relays of this outbox, and of its clones, look now. For where nobody tells them of commits: SQLite, and
    /// [`Outbox::without_notify`].
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// What is in it, as the connection sees it.
    ///
    /// # Errors
    /// What the database says.
    pub async fn backlog(&self, connection: &mut DB::Connection) -> Result<Backlog, sqlx::Error> {
        DB::backlog(connection, &self.table).await
    }

    /// Events that were set aside, by id, after one; 0 for the first page. At most 1,000 at once.
    ///
    /// # Errors
    /// What the database says.
    pub async fn failed(
        &self,
        connection: &mut DB::Connection,
        after: i64,
        limit: usize,
    ) -> Result<Vec<FailedEvent>, sqlx::Error> {
        let limit = i64::try_from(limit.min(FAILED_MAX)).unwrap_or(i64::MAX);
        DB::failed(connection, &self.table, after, limit).await
    }

    /// Has an event that was set aside be published again. `false`: there is none.
    ///
    /// # Errors
    /// What the database says.
    pub async fn retry(&self, connection: &mut DB::Connection, id: i64) -> Result<bool, sqlx::Error> {
        // What is no id must not stand for all of them.
        let retried = DB::retry(connection, &self.table, Some(id.max(0))).await?;
        self.wake();
        Ok(retried > 0)
    }

    /// Has all events that were set aside be published again; how many.
    ///
    /// # Errors
    /// What the database says.
    pub async fn retry_all(&self, connection: &mut DB::Connection) -> Result<u64, sqlx::Error> {
        let retried = DB::retry(connection, &self.table, None).await?;
        self.wake();
        Ok(retried)
    }

    /// Removes an event that was set aside. `false`: there is none.
    ///
    /// # Errors
    /// What the database says.
    pub async fn discard(&self, connection: &mut DB::Connection, id: i64) -> Result<bool, sqlx::Error> {
        DB::discard(connection, &self.table, id).await
    }

    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    pub(crate) fn wakes(&self) -> &Arc<Notify> {
        &self.wake
    }
}

//! What is asked of a database.

use std::fmt::Debug;

use async_trait::async_trait;
use sqlx::Connection;
use tidings_streams::EventId;
use tokio::sync::Notify;

use crate::event::{NewRow, Row};
use crate::outbox::{Backlog, FailedEvent};
use crate::table::{Dialect, Table};

/// A database that an outbox can be in: `sqlx::Postgres` and `sqlx::Sqlite`, each with the feature of its name.
pub trait Database: Tables {}

impl<DB: Tables> Database for DB {}

/// How a database is connected to.
pub(crate) type Options<DB> = <<DB as sqlx::Database>::Connection as Connection>::Options;

/// What became of rows that were to be published.
#[derive(Debug, Default)]
pub struct Settled {
    /// They are in their topics, and leave nothing behind.
    pub(crate) gone: Vec<i64>,
    /// They are in their topics, and their keys are remembered.
    pub(crate) kept: Vec<i64>,
    /// They were set aside.
    pub(crate) failed: Vec<SetAside>,
}

/// A row that was set aside.
#[derive(Debug)]
pub(crate) struct SetAside {
    pub(crate) id: i64,
    pub(crate) error: String,
    /// Its topic does not have it for sure: whoever tries it again need not look for it.
    pub(crate) is_nowhere: bool,
}

impl SetAside {
    pub(crate) fn new(id: i64, error: String) -> Self {
        Self { id, error, is_nowhere: false }
    }
}

/// What each database does in its own way.
#[async_trait]
pub trait Backend: sqlx::Database + Sized {
    /// Where it differs from others.
    const DIALECT: Dialect;

    /// What a relay holds while it relays, beside its connection.
    type Lead: Debug + Send;

    /// What is to be said about a table.
    fn table(prefix: &str, notify: bool) -> Table;

    /// Makes the table.
    async fn create(connection: &mut Self::Connection, table: &Table) -> sqlx::Result<()>;

    /// Connects as a relay does.
    async fn connect(options: &Options<Self>) -> sqlx::Result<Self::Connection>;

    /// Asks for the lead. `None`: another one has it.
    async fn lead(connection: &mut Self::Connection, table: &Table) -> sqlx::Result<Option<Self::Lead>>;

    /// Wakes a relay whenever somebody commits, as long as there is a connection.
    async fn listen(options: &Options<Self>, table: &Table, wake: &Notify) -> sqlx::Result<()>;
}

/// What is done alike in all databases. Sealed: this module is private.
#[async_trait]
pub trait Tables: Backend {
    /// Writes a row. `false`: its key was taken.
    async fn insert(connection: &mut Self::Connection, table: &Table, row: NewRow) -> sqlx::Result<bool>;

    /// The oldest rows that wait, in order, but those of some topics.
    async fn waiting(
        connection: &mut Self::Connection,
        table: &Table,
        passed_over: &[String],
        (events, bytes): (i64, i64),
    ) -> sqlx::Result<Vec<Row>>;

    /// Notes where the topic of rows ended before they are published.
    async fn mark(
        connection: &mut Self::Connection,
        table: &Table,
        ids: &[i64],
        after: EventId,
    ) -> sqlx::Result<()>;

    /// Notes what became of rows, all in one step.
    async fn settle(connection: &mut Self::Connection, table: &Table, settled: &Settled) -> sqlx::Result<()>;

    /// Forgets keys that went out longer ago than so many milliseconds; how many.
    async fn forget(
        connection: &mut Self::Connection,
        table: &Table,
        age: i64,
        most: i64,
    ) -> sqlx::Result<u64>;

    /// What is in the table.
    async fn backlog(connection: &mut Self::Connection, table: &Table) -> sqlx::Result<Backlog>;

    /// What was set aside, by id.
    async fn failed(
        connection: &mut Self::Connection,
        table: &Table,
        after: i64,
        most: i64,
    ) -> sqlx::Result<Vec<FailedEvent>>;

    /// Has one row that was set aside, or all, wait again; how many.
    async fn retry(connection: &mut Self::Connection, table: &Table, id: Option<i64>) -> sqlx::Result<u64>;

    /// Removes a row that was set aside.
    async fn discard(connection: &mut Self::Connection, table: &Table, id: i64) -> sqlx::Result<bool>;
}

/// Does it for a database: sqlx has a type for each, and no short name for all that they have in common.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
macro_rules! tables {
    ($database:ident) => {
        #[async_trait]
        impl Tables for $database {
            async fn insert(
                connection: &mut Self::Connection,
                table: &Table,
                row: NewRow,
            ) -> sqlx::Result<bool> {
                let insert = sqlx::query(AssertSqlSafe(Arc::clone(&table.insert)))
                    .bind(row.topic)
                    .bind(row.payload.to_vec())
                    .bind(row.attributes)
                    .bind(row.idempotency_key.into_bytes())
                    .bind(i64::from(row.is_keyed));
                Ok(insert.fetch_optional(connection).await?.is_some())
            }

            async fn waiting(
                connection: &mut Self::Connection,
                table: &Table,
                passed_over: &[String],
                (events, bytes): (i64, i64),
            ) -> sqlx::Result<Vec<Row>> {
                let waiting = sqlx::query(AssertSqlSafe(Arc::clone(&table.waiting)))
                    .bind(list(passed_over))
                    .bind(events)
                    .bind(bytes);
                let rows = waiting.fetch_all(connection).await?;
                let row = |row: &<Self as sqlx::Database>::Row| {
                    Ok(Row {
                        id: row.try_get("id")?,
                        topic: row.try_get("topic")?,
                        payload: row.try_get("payload")?,
                        attributes: row.try_get("attributes")?,
                        idempotency_key: row.try_get("idempotency_key")?,
                        is_keyed: row.try_get::<i64, _>("keyed")? != 0,
                        after: row.try_get("after_id")?,
                    })
                };
                rows.iter().map(row).collect()
            }

            async fn mark(
                connection: &mut Self::Connection,
                table: &Table,
                ids: &[i64],
                after: EventId,
            ) -> sqlx::Result<()> {
                let mark = sqlx::query(AssertSqlSafe(Arc::clone(&table.mark)));
                mark.bind(list(ids)).bind(after.to_string()).execute(connection).await.map(drop)
            }

            async fn settle(
                connection: &mut Self::Connection,
                table: &Table,
                settled: &Settled,
            ) -> sqlx::Result<()> {
                let mut transaction = connection.begin().await?;
                for (sql, ids) in [(&table.remove, &settled.gone), (&table.published, &settled.kept)] {
                    if !ids.is_empty() {
                        let settle = sqlx::query(AssertSqlSafe(Arc::clone(sql))).bind(list(ids));
                        settle.execute(&mut *transaction).await?;
                    }
                }
                for one in &settled.failed {
                    let set_aside = sqlx::query(AssertSqlSafe(Arc::clone(&table.set_aside)));
                    // A text of PostgreSQL cannot hold this character.
                    let error = one.error.replace('\0', "\u{fffd}");
                    let set_aside = set_aside.bind(one.id).bind(error).bind(i64::from(one.is_nowhere));
                    set_aside.execute(&mut *transaction).await?;
                }
                transaction.commit().await
            }

            async fn forget(
                connection: &mut Self::Connection,
                table: &Table,
                age: i64,
                most: i64,
            ) -> sqlx::Result<u64> {
                let forget = sqlx::query(AssertSqlSafe(Arc::clone(&table.forget)));
                Ok(forget.bind(age).bind(most).execute(connection).await?.rows_affected())
            }

            async fn backlog(connection: &mut Self::Connection, table: &Table) -> sqlx::Result<Backlog> {
                let row =
                    sqlx::query(AssertSqlSafe(Arc::clone(&table.backlog))).fetch_one(connection).await?;
                let count = |name: &str| row.try_get::<i64, _>(name).map(i64::unsigned_abs);
                let oldest: Option<i64> = row.try_get("oldest")?;
                // A clock that was set back makes nothing younger than new.
                let oldest = oldest.map(|age| Duration::from_millis(age.max(0).unsigned_abs()));
                Ok(Backlog { waiting: count("waiting")?, oldest, failed: count("failed")? })
            }

            async fn failed(
                connection: &mut Self::Connection,
                table: &Table,
                after: i64,
                most: i64,
            ) -> sqlx::Result<Vec<FailedEvent>> {
                let failed = sqlx::query(AssertSqlSafe(Arc::clone(&table.failed))).bind(after).bind(most);
                let moment = |row: &<Self as sqlx::Database>::Row, name: &str| {
                    row.try_get::<i64, _>(name).map(|moment| Timestamp(moment.unsigned_abs()))
                };
                let event = |row: &<Self as sqlx::Database>::Row| {
                    Ok(FailedEvent {
                        id: row.try_get("id")?,
                        topic: row.try_get("topic")?,
                        error: row.try_get("error")?,
                        created: moment(row, "created_at")?,
                        failed: moment(row, "failed_at")?,
                    })
                };
                failed.fetch_all(connection).await?.iter().map(event).collect()
            }

            async fn retry(
                connection: &mut Self::Connection,
                table: &Table,
                id: Option<i64>,
            ) -> sqlx::Result<u64> {
                let retry = sqlx::query(AssertSqlSafe(Arc::clone(&table.retry))).bind(id.unwrap_or(-1));
                Ok(retry.execute(connection).await?.rows_affected())
            }

            async fn discard(
                connection: &mut Self::Connection,
                table: &Table,
                id: i64,
            ) -> sqlx::Result<bool> {
                let discard = sqlx::query(AssertSqlSafe(Arc::clone(&table.discard))).bind(id);
                Ok(discard.execute(connection).await?.rows_affected() > 0)
            }
        }
    };
}
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) use tables;

/// A list as one parameter, which both databases can take apart.
pub(crate) fn list<T: serde::Serialize>(items: &[T]) -> String {
    serde_json::to_string(items).expect("numbers and texts are JSON")
}

//! An outbox in SQLite.

use std::fs::{File, TryLockError};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::{Sqlite, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row as _};
use tidings_streams::{EventId, Timestamp};
use tokio::sync::Notify;

use crate::event::{NewRow, Row};
use crate::outbox::{Backlog, FailedEvent};
use crate::table::{Dialect, Table};
use crate::tables::{Backend, Options, Settled, Tables, list, tables};

#[async_trait]
impl Backend for Sqlite {
    const DIALECT: Dialect = Dialect {
        id: "INTEGER PRIMARY KEY AUTOINCREMENT",
        bytes: "BLOB",
        no_bytes: "x''",
        now: "CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER)",
        ids: "SELECT value FROM json_each($1)",
        texts: "SELECT value FROM json_each($1)",
    };

    /// A lock on a file beside the database, which the system frees when its process ends, however that comes. `None`:
    /// the database is in memory, and nobody else's.
    type Lead = Option<File>;

    fn table(prefix: &str, _notify: bool) -> Table {
        Table::new(prefix, &Self::DIALECT)
    }

    async fn create(connection: &mut SqliteConnection, table: &Table) -> sqlx::Result<()> {
        let mut transaction = connection.begin().await?;
        for statement in &table.schema {
            sqlx::query(AssertSqlSafe(Arc::clone(statement))).execute(&mut *transaction).await?;
        }
        transaction.commit().await
    }

    async fn connect(options: &Options<Self>) -> sqlx::Result<SqliteConnection> {
        options.clone().disable_statement_logging().connect().await
    }

    async fn lead(connection: &mut SqliteConnection, table: &Table) -> sqlx::Result<Option<Option<File>>> {
        let database: String =
            sqlx::query_scalar("SELECT file FROM pragma_database_list WHERE name = 'main'")
                .fetch_one(connection)
                .await?;
        if database.is_empty() {
            return Ok(Some(None));
        }
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(format!("{database}-{}.lock", table.name))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Some(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }

    async fn listen(_options: &Options<Self>, _table: &Table, _wake: &Notify) -> sqlx::Result<()> {
        // Nobody tells of commits.
        std::future::pending().await
    }
}

tables!(Sqlite);

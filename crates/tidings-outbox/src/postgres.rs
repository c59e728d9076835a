//! An outbox in PostgreSQL.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::{PgConnection, PgListener, PgPoolOptions, Postgres};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row as _};
use tidings_streams::{EventId, Timestamp};
use tokio::sync::Notify;

use crate::event::{NewRow, Row};
use crate::outbox::{Backlog, FailedEvent};
use crate::table::{Dialect, Table};
use crate::tables::{Backend, Options, Settled, Tables, list, tables};

/// The upper half of advisory locks of ours, `tdgs`; the lower one is the table's number.
const LOCK_CLASS: i64 = 0x7464_6773;

/// A server notices that a relay's machine is gone, and frees its lock, after 10 s of silence and three questions 5 s
/// apart. By itself it takes two hours.
const KEEPALIVE: &str =
    "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3";

/// The only notification there is of an outbox says nothing: who is told looks.
fn channel(table: &str) -> String {
    format!("{table}_committed")
}

#[async_trait]
impl Backend for Postgres {
    const DIALECT: Dialect = Dialect {
        id: "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
        bytes: "BYTEA",
        no_bytes: "''",
        now: "(EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::BIGINT",
        ids: "SELECT value::BIGINT FROM json_array_elements_text($1::JSON) AS list (value)",
        texts: "SELECT value FROM json_array_elements_text($1::JSON) AS list (value)",
    };

    /// The lock is the session's.
    type Lead = ();

    fn table(prefix: &str, notify: bool) -> Table {
        let mut table = Table::new(prefix, &Self::DIALECT);
        if notify {
            // In the transaction, so it is told at its commit, if at all, and once however many events there are.
            let (insert, channel) = (&table.insert, channel(&table.name));
            table.insert =
                format!("WITH stored AS ({insert}) SELECT id, pg_notify('{channel}', '')::TEXT FROM stored")
                    .into();
        }
        table
    }

    async fn create(connection: &mut PgConnection, table: &Table) -> sqlx::Result<()> {
        let mut transaction = connection.begin().await?;
        // Two that make one table at once would be told that a name is taken, `IF NOT EXISTS` or not.
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(LOCK_CLASS << 32)
            .execute(&mut *transaction)
            .await?;
        for statement in &table.schema {
            sqlx::query(AssertSqlSafe(Arc::clone(statement))).execute(&mut *transaction).await?;
        }
        transaction.commit().await
    }

    async fn connect(options: &Options<Self>) -> sqlx::Result<PgConnection> {
        let options = options.clone().application_name("tidings-outbox").disable_statement_logging();
        let mut connection = options.connect().await?;
        sqlx::raw_sql(KEEPALIVE).execute(&mut connection).await?;
        Ok(connection)
    }

    async fn lead(connection: &mut PgConnection, table: &Table) -> sqlx::Result<Option<()>> {
        let is_ours: bool =
            sqlx::query_scalar("SELECT pg_try_advisory_lock($1 << 32 | $2::REGCLASS::OID::BIGINT)")
                .bind(LOCK_CLASS)
                .bind(&table.name)
                .fetch_one(connection)
                .await?;
        Ok(is_ours.then_some(()))
    }

    async fn listen(options: &Options<Self>, table: &Table, wake: &Notify) -> sqlx::Result<()> {
        let options = options.clone().application_name("tidings-outbox").disable_statement_logging();
        let pool = PgPoolOptions::new().max_connections(1).connect_with(options).await?;
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        listener.listen(&channel(&table.name)).await?;
        // Who has committed before was not heard.
        wake.notify_one();
        while listener.try_recv().await?.is_some() {
            wake.notify_one();
        }
        Ok(())
    }
}

tables!(Postgres);

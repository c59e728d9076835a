//! Both databases, as tests see them.

use std::any::Any;
use std::path::Path;

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, PgPool, Pool, Postgres, Sqlite, SqlitePool};
use tidings_outbox::Database;

use crate::postgres_server::{Server, options_of};

/// A database that a test can say anything to.
#[async_trait]
pub(crate) trait Lab: Database {
    /// What the databases of tests are called in failures.
    const LABEL: &'static str;

    /// A database for one test: how to reach it, from other processes too, and what has to be kept meanwhile.
    async fn found() -> (String, Box<dyn Any + Send + Sync>);

    /// Connects to it.
    fn reach(address: &str) -> Pool<Self>;

    /// Says something to it, and hears how many rows that was about.
    async fn say(connection: &mut Self::Connection, sql: &str) -> u64;

    /// Asks it for texts.
    async fn texts(connection: &mut Self::Connection, sql: &str) -> Vec<String>;
}

#[async_trait]
impl Lab for Sqlite {
    const LABEL: &'static str = "sqlite";

    async fn found() -> (String, Box<dyn Any + Send + Sync>) {
        let home = tempfile::tempdir().expect("a directory");
        let address = home.path().join("shop.db").to_str().expect("UTF-8").to_owned();
        (address, Box::new(home))
    }

    fn reach(address: &str) -> SqlitePool {
        let options = SqliteConnectOptions::new()
            .filename(address)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(std::time::Duration::from_secs(30));
        SqlitePool::connect_lazy_with(options)
    }

    async fn say(connection: &mut Self::Connection, sql: &str) -> u64 {
        let said = sqlx::query(AssertSqlSafe(sql.to_owned())).execute(connection).await;
        said.expect("it is done").rows_affected()
    }

    async fn texts(connection: &mut Self::Connection, sql: &str) -> Vec<String> {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_all(connection).await.expect("an answer")
    }
}

#[async_trait]
impl Lab for Postgres {
    const LABEL: &'static str = "postgres";

    async fn found() -> (String, Box<dyn Any + Send + Sync>) {
        let server = Server::shared().await;
        let name = format!("t{:016x}", rand::random::<u64>());
        let mut connection = sqlx::ConnectOptions::connect(&server.options()).await.expect("it is there");
        Self::say(&mut connection, &format!("CREATE DATABASE {name}")).await;
        let address = format!("{}|{name}", server.home().display());
        (address, Box::new(server) as Box<dyn Any + Send + Sync>)
    }

    fn reach(address: &str) -> PgPool {
        let (home, name) = address.split_once('|').expect("a directory and a name");
        let pool = sqlx::postgres::PgPoolOptions::new().max_connections(5);
        pool.connect_lazy_with(options_of(Path::new(home)).database(name))
    }

    async fn say(connection: &mut Self::Connection, sql: &str) -> u64 {
        let said = sqlx::query(AssertSqlSafe(sql.to_owned())).execute(connection).await;
        said.expect("it is done").rows_affected()
    }

    async fn texts(connection: &mut Self::Connection, sql: &str) -> Vec<String> {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_all(connection).await.expect("an answer")
    }
}

/// Runs a test in both.
macro_rules! in_both {
    ($($name:ident)*) => {
        mod in_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                Box::pin(super::$name::<sqlx::Sqlite>()).await;
            })*
        }
        mod in_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                Box::pin(super::$name::<sqlx::Postgres>()).await;
            })*
        }
    };
}
pub(crate) use in_both;

//! A stream of a Redis server that syncs its file before it answers.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo};
use tidings_benches::clock::{now_ns, seconds_since};
use tokio::task::JoinSet;

use super::{EACH, Rates, Server, batch, free_port, rate, start};
use crate::PUBLISHERS;

const STREAM: &str = "orders";

pub(super) struct Redis {
    connection: MultiplexedConnection,
    _server: Server,
}

impl Redis {
    pub(super) async fn start(home: &Path) -> Result<Self> {
        let port = free_port()?;
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--port"]).arg(port.to_string());
        command.arg("--dir").arg(home).args(["--appendonly", "yes", "--appendfsync", "always"]);
        let server = start(command, port)?;
        let url = format!("redis://{}/", server.address);
        let info = url.into_connection_info()?.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let mut connection =
            Client::open(info)?.get_multiplexed_async_connection_with_config(&config).await?;
        let mut create = redis::cmd("XGROUP");
        create.arg("CREATE").arg(STREAM).arg("g").arg("0").arg("MKSTREAM");
        create.exec_async(&mut connection).await?;
        Ok(Self { connection, _server: server })
    }

    pub(super) async fn round(&self, payload: usize) -> Result<Rates> {
        let begun = now_ns();
        let mut tasks = JoinSet::new();
        for _ in 0..PUBLISHERS {
            let mut connection = self.connection.clone();
            tasks.spawn(async move {
                for _ in 0..EACH {
                    let mut add = redis::cmd("XADD");
                    add.arg(STREAM).arg("*").arg("payload").arg(vec![7_u8; payload]);
                    add.query_async::<String>(&mut connection).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        let published = rate(seconds_since(begun));
        let begun = now_ns();
        self.consume().await?;
        Ok(Rates { published, consumed: rate(seconds_since(begun)) })
    }

    async fn consume(&self) -> Result<()> {
        let (mut left, mut connection) = (PUBLISHERS * EACH, self.connection.clone());
        while left > 0 {
            let mut read = redis::cmd("XREADGROUP");
            read.arg("GROUP").arg("g").arg("c").arg("COUNT").arg(batch(left)?);
            read.arg("STREAMS").arg(STREAM).arg(">");
            type Entry = (String, Vec<(String, Vec<u8>)>);
            let found: Vec<(String, Vec<Entry>)> = read.query_async(&mut connection).await?;
            let entries = found.first().map(|(_, entries)| entries).context("events do not come")?;
            let mut ack = redis::cmd("XACK");
            ack.arg(STREAM).arg("g");
            for (id, _) in entries {
                ack.arg(id);
            }
            let acked: usize = ack.query_async(&mut connection).await?;
            ensure!(acked == entries.len(), "not all are acknowledged");
            left -= entries.len();
        }
        Ok(())
    }
}

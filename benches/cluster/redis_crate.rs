//! Redis pub/sub through the `redis` crate, at its most favourable: pipelines, no response timer, no Nagle delay.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo, Pipeline};
use tokio::task::JoinSet;

use crate::drive::Publisher;
use crate::message::{Message, Sink, TOPIC};
use crate::setup::Setup;

/// Commands sent together in a burst.
const PIPELINE_COMMANDS: usize = 128;

/// Pipelines sent and not yet answered.
const PIPELINES_IN_FLIGHT: usize = 8;

pub(crate) struct RedisCrate {
    connection: MultiplexedConnection,
    pipeline: Pipeline,
    in_flight: JoinSet<redis::RedisResult<()>>,
}

fn client(setup: &Setup) -> Result<Client> {
    let broker: SocketAddr = setup.broker.context("no broker")?;
    let info = format!("redis://{broker}/").into_connection_info()?;
    let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
    Ok(Client::open(info)?)
}

impl RedisCrate {
    pub(crate) async fn connect(setup: &Setup) -> Result<Self> {
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let connection = client(setup)?.get_multiplexed_async_connection_with_config(&config).await?;
        Ok(Self { connection, pipeline: Pipeline::new(), in_flight: JoinSet::new() })
    }
}

impl Publisher for RedisCrate {
    async fn publish(&mut self, message: Message) -> Result<()> {
        self.pipeline.cmd("PUBLISH").arg(TOPIC).arg(&message.bytes()[..]).ignore();
        if self.pipeline.len() >= PIPELINE_COMMANDS { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<()> {
        while let Some(done) = self.in_flight.try_join_next() {
            done??;
        }
        if self.in_flight.len() >= PIPELINES_IN_FLIGHT
            && let Some(done) = self.in_flight.join_next().await
        {
            done??;
        }
        let pipeline = std::mem::take(&mut self.pipeline);
        let mut connection = self.connection.clone();
        self.in_flight.spawn(async move { pipeline.exec_async(&mut connection).await });
        Ok(())
    }
}

pub(crate) async fn subscribe(setup: &Setup, mut sink: Sink, ready: impl FnOnce()) -> Result<()> {
    let mut subscription = client(setup)?.get_async_pubsub().await?;
    subscription.subscribe(TOPIC).await?;
    ready();
    let mut messages = subscription.on_message();
    while let Some(message) = messages.next().await {
        sink.take(Message::parse(message.get_payload_bytes())?)?;
    }
    Ok(())
}

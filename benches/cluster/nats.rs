//! NATS core through `async-nats`.

use anyhow::{Context, Result};
use async_nats::{Client, ConnectOptions};
use bytes::Bytes;
use futures_util::StreamExt;

use crate::drive::Publisher;
use crate::message::{Message, Sink, TOPIC};
use crate::setup::{Setup, System};

/// Messages that the client keeps for a slow reader before it drops them; more than the publisher may be ahead.
const SUBSCRIPTION_CAPACITY: usize = 262_144;

pub(crate) struct Nats(Client);

async fn connect(setup: &Setup) -> Result<Client> {
    let broker = setup.broker.context("no broker")?;
    let options = ConnectOptions::new().subscription_capacity(SUBSCRIPTION_CAPACITY);
    let (options, scheme) = if setup.system == System::NatsTls {
        let authority = setup.certificates.join("ca.pem");
        (options.add_root_certificates(authority).require_tls(true), "tls")
    } else {
        (options, "nats")
    };
    Ok(options.connect(format!("{scheme}://localhost:{}", broker.port())).await?)
}

impl Nats {
    pub(crate) async fn connect(setup: &Setup) -> Result<Self> {
        Ok(Self(connect(setup).await?))
    }
}

impl Publisher for Nats {
    async fn publish(&mut self, message: Message) -> Result<()> {
        Ok(self.0.publish(TOPIC, Bytes::copy_from_slice(&message.bytes())).await?)
    }

    /// Nothing: the client's own task writes whatever has been handed to it.
    async fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

pub(crate) async fn subscribe(setup: &Setup, mut sink: Sink, ready: impl FnOnce()) -> Result<()> {
    let client = connect(setup).await?;
    let mut messages = client.subscribe(TOPIC).await?;
    client.flush().await?;
    ready();
    while let Some(message) = messages.next().await {
        sink.take(Message::parse(&message.payload)?)?;
    }
    Ok(())
}

//! A stream of a NATS server, on files that it syncs before it answers where it can be told to: from release 2.10 on.
//!
//! What is asked of it is asked in its own words, as any client puts them: the client needs nothing for that.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_nats::{Client, Message};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tidings_benches::clock::{now_ns, seconds_since};
use tokio::task::JoinSet;

use super::{EACH, Rates, Server, batch, free_port, rate, start};
use crate::PUBLISHERS;

const SUBJECT: &str = "orders";

/// Longest wait for a batch, in nanoseconds: it is there.
const EXPIRES_NS: u64 = 10_000_000_000;

pub(super) struct Nats {
    client: Client,
    /// Whether it syncs what it acknowledges.
    pub(super) syncs: bool,
    _server: Server,
}

fn accepts(config: &Path) -> Result<bool> {
    let mut test = Command::new("nats-server");
    test.arg("-t").arg("--config").arg(config).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(test.status().context("cannot start nats-server: install it (apt-get install nats-server)")?.success())
}

fn said(answer: &Message) -> Result<Value> {
    let said: Value = serde_json::from_slice(&answer.payload)?;
    ensure!(said.get("error").is_none(), "the server refuses: {said}");
    Ok(said)
}

impl Nats {
    pub(super) async fn start(home: &Path) -> Result<Self> {
        let (port, config) = (free_port()?, home.join("nats.conf"));
        let text = |sync: &str| {
            let mut text = format!("listen: \"127.0.0.1:{port}\"\n");
            let _ = writeln!(text, "jetstream {{ store_dir: {:?} {sync} }}", home.join("nats"));
            text
        };
        fs::write(&config, text(", sync_interval: always"))?;
        let syncs = accepts(&config)?;
        if !syncs {
            fs::write(&config, text(""))?;
        }
        let mut command = Command::new("nats-server");
        command.arg("--config").arg(&config);
        let server = start(command, port)?;
        let client = async_nats::connect(format!("nats://{}", server.address)).await?;
        let stream = json!({
            "name": SUBJECT, "subjects": [SUBJECT], "storage": "file", "retention": "limits", "num_replicas": 1
        });
        let made = client.request("$JS.API.STREAM.CREATE.orders", stream.to_string().into()).await?;
        said(&made)?;
        let consumer = json!({
            "stream_name": SUBJECT,
            "config": { "durable_name": "g", "ack_policy": "explicit", "max_ack_pending": 10_000 }
        });
        let asked =
            client.request("$JS.API.CONSUMER.DURABLE.CREATE.orders.g", consumer.to_string().into()).await?;
        said(&asked)?;
        Ok(Self { client, syncs, _server: server })
    }

    pub(super) async fn round(&self, payload: usize) -> Result<Rates> {
        let begun = now_ns();
        let mut tasks = JoinSet::new();
        for _ in 0..PUBLISHERS {
            let client = self.client.clone();
            tasks.spawn(async move {
                for _ in 0..EACH {
                    said(&client.request(SUBJECT, vec![7_u8; payload].into()).await?)?;
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
        let (mut left, inbox) = (PUBLISHERS * EACH, self.client.new_inbox());
        let mut messages = self.client.subscribe(inbox.clone()).await?;
        while left > 0 {
            let asked = batch(left)?;
            let pull = json!({ "batch": asked, "expires": EXPIRES_NS }).to_string();
            let next = "$JS.API.CONSUMER.MSG.NEXT.orders.g";
            self.client.publish_with_reply(next, inbox.clone(), pull.into()).await?;
            for number in 1..=asked {
                let message = tokio::time::timeout(Duration::from_nanos(EXPIRES_NS), messages.next()).await?;
                let message = message.context("the connection ended")?;
                ensure!(message.status.is_none(), "no event: {:?}", message.status);
                let ack = message.reply.context("nothing to acknowledge to")?;
                if number < asked {
                    self.client.publish(ack, "+ACK".into()).await?;
                } else {
                    // Answered once it and those before it were heard.
                    self.client.request(ack, "+ACK".into()).await?;
                }
            }
            left -= asked;
        }
        Ok(())
    }
}

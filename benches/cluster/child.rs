//! What a child process does: one role of one system, on a current-thread runtime, the cheapest for every reference.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use crate::aside::Aside;
use crate::credit::CreditSender;
use crate::drive::{Publisher, drive};
use crate::message::{Message, Sink};
use crate::nats::Nats;
use crate::quic::Quic;
use crate::redis_crate::RedisCrate;
use crate::redis_raw::RedisRaw;
use crate::setup::{Line, Peer, Role, Setup, System};
use crate::tidings::Tidings;
use crate::{nats, quic, redis_crate, redis_raw, tidings};

/// Longer than any run: the CPU time of a thread that ends is not counted any more.
const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) fn run(setup: &Setup) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(THREAD_KEEP_ALIVE)
        .build()?;
    match setup.role {
        Role::Publisher => runtime.block_on(publish(setup)),
        Role::Subscriber => runtime.block_on(subscribe(setup)),
    }
}

async fn publish(setup: &Setup) -> Result<()> {
    match setup.system {
        System::Tidings | System::TidingsResident | System::TidingsThread => {
            drive(Tidings::connect(setup).await?, setup).await
        }
        System::RedisCrate => drive(RedisCrate::connect(setup).await?, setup).await,
        System::RedisRaw => drive(RedisRaw::connect(setup).await?, setup).await,
        System::NatsTls | System::NatsPlain => drive(Nats::connect(setup).await?, setup).await,
        System::Quinn => drive(Quic::connect(setup).await?, setup).await,
        System::Harness => drive(Nowhere, setup).await,
    }
}

async fn subscribe(setup: &Setup) -> Result<()> {
    let (credit, address) = CreditSender::listen()?;
    let sink = Sink::new(credit, Aside::beside(setup).map(|aside| aside.filled(setup)));
    let listening = |data: Option<SocketAddr>| Line::Listening(Peer { credit: address, data }).say();
    match setup.system {
        System::Tidings | System::TidingsResident | System::TidingsThread => {
            tidings::subscribe(setup, sink, |node| listening(Some(node.address()))).await
        }
        System::RedisCrate => redis_crate::subscribe(setup, sink, || listening(None)).await,
        System::RedisRaw => redis_raw::subscribe(setup, sink, || listening(None)),
        System::NatsTls | System::NatsPlain => nats::subscribe(setup, sink, || listening(None)).await,
        System::Quinn => quic::subscribe(setup, sink, |data| listening(Some(data))).await,
        System::Harness => anyhow::bail!("the harness has no subscribers"),
    }
}

/// Publishes to nobody.
struct Nowhere;

impl Publisher for Nowhere {
    async fn publish(&mut self, message: Message) -> Result<()> {
        std::hint::black_box(message.bytes());
        Ok(())
    }

    async fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

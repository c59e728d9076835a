//! Redis pub/sub with the least that can speak its protocol: what the server and the sockets alone cost.

use std::io::{ErrorKind, Read, Write};
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::drive::Publisher;
use crate::message::{MESSAGE_BYTES, Message, Sink, TOPIC};
use crate::setup::Setup;

/// Commands are written when this many bytes have come together.
const BATCH_BYTES: usize = 16 << 10;

/// What a subscriber reads at once.
const READ_BYTES: usize = 64 << 10;

pub(crate) struct RedisRaw {
    stream: TcpStream,
    head: String,
    batch: Vec<u8>,
}

impl RedisRaw {
    pub(crate) async fn connect(setup: &Setup) -> Result<Self> {
        let stream = TcpStream::connect(setup.broker.context("no broker")?).await?;
        stream.set_nodelay(true)?;
        let head = format!("*3\r\n$7\r\nPUBLISH\r\n${}\r\n{TOPIC}\r\n${MESSAGE_BYTES}\r\n", TOPIC.len());
        Ok(Self { stream, head, batch: Vec::with_capacity(2 * BATCH_BYTES) })
    }

    fn discard_replies(&self) -> Result<()> {
        let mut replies = [0; 4_096];
        loop {
            match self.stream.try_read(&mut replies) {
                Ok(0) => bail!("redis closed the connection"),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Publisher for RedisRaw {
    async fn publish(&mut self, message: Message) -> Result<()> {
        self.batch.extend_from_slice(self.head.as_bytes());
        self.batch.extend_from_slice(&message.bytes());
        self.batch.extend_from_slice(b"\r\n");
        if self.batch.len() >= BATCH_BYTES { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<()> {
        self.stream.write_all(&self.batch).await?;
        self.batch.clear();
        self.discard_replies()
    }
}

/// Reads with blocking calls: a subscriber has nothing else to do.
pub(crate) fn subscribe(setup: &Setup, mut sink: Sink, ready: impl FnOnce()) -> Result<()> {
    let mut stream = std::net::TcpStream::connect(setup.broker.context("no broker")?)?;
    stream.set_nodelay(true)?;
    write!(stream, "SUBSCRIBE {TOPIC}\r\n")?;
    let mut confirmation = [0; 256];
    let count = stream.read(&mut confirmation)?;
    ensure!(confirmation[..count].starts_with(b"*3\r\n$9\r\nsubscribe\r\n"), "no confirmation from redis");
    ready();

    let mut buffer = vec![0; READ_BYTES];
    let mut filled = 0;
    loop {
        let count = stream.read(&mut buffer[filled..])?;
        ensure!(count > 0, "redis closed the connection");
        filled += count;
        let mut at = 0;
        while let Some(push) = Push::parse(&buffer[at..filled])? {
            sink.take(Message::parse(&buffer[at..][push.payload])?)?;
            at += push.bytes;
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
    }
}

/// `*3 message <channel> <payload>`, in a buffer.
struct Push {
    payload: Range<usize>,
    bytes: usize,
}

impl Push {
    /// The first push of the buffer, or nothing if it is not whole yet.
    fn parse(buffer: &[u8]) -> Result<Option<Self>> {
        let mut end = match length(buffer, b'*')? {
            None => return Ok(None),
            Some((elements, at)) => {
                ensure!(elements == 3, "a push of {elements} elements");
                at
            }
        };
        let mut payload = 0..0;
        for _ in 0..3 {
            let Some((bytes, at)) = length(&buffer[end..], b'$')? else { return Ok(None) };
            payload = end + at..end + at + bytes;
            end = payload.end + 2;
            if end > buffer.len() {
                return Ok(None);
            }
        }
        Ok(Some(Self { payload, bytes: end }))
    }
}

/// A line of a sigil and a number: the number, and where the next line begins.
fn length(buffer: &[u8], sigil: u8) -> Result<Option<(usize, usize)>> {
    let Some((first, digits)) = buffer.split_first() else { return Ok(None) };
    ensure!(*first == sigil, "byte {first} where {sigil} belongs");
    let mut number = 0;
    for (at, digit) in digits.iter().enumerate() {
        match digit {
            b'0'..=b'9' => number = number * 10 + usize::from(digit - b'0'),
            b'\r' => return Ok(Some((number, at + 3))),
            other => bail!("byte {other} in a length"),
        }
    }
    Ok(None)
}

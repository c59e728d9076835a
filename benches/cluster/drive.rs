//! The publisher's loop, the same for every system.

use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tidings_benches::clock::{now_ns, seconds_since};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::aside::Aside;
use crate::credit::Credits;
use crate::message::Message;
use crate::setup::{Line, Pace, Phase, Setup};

/// A burst looks at the clock and at the subscribers' credit after this many messages.
const LOOK_EVERY: u64 = 64;

/// A paced phase that takes this many times as long as it should cannot hold its pace.
const OVERTIME: u64 = 4;

/// One system, seen from the writer.
pub(crate) trait Publisher {
    /// Hands over one message. It may be kept back until [`Publisher::flush`].
    async fn publish(&mut self, message: Message) -> Result<()>;

    /// Sees to it that everything handed over is on its way.
    async fn flush(&mut self) -> Result<()>;
}

/// Publishes one phase after another, as standard input asks, until that ends.
pub(crate) async fn drive(publisher: impl Publisher, setup: &Setup) -> Result<()> {
    let credits = Credits::connect(&setup.peers).await?;
    let mut driver =
        Driver { publisher, aside: Aside::beside(setup), credits, sent: 0, departures: Vec::new() };
    Line::Connected.say();
    let mut phases = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = phases.next_line().await? {
        let phase: Phase = serde_json::from_str(&line)?;
        let before = driver.sent;
        let start = now_ns();
        match phase.pace {
            Pace::Burst => driver.burst(start, &phase).await?,
            Pace::PerSecond(rate) => driver.paced(start, phase.milliseconds, rate).await?,
        }
        driver.credits.received(driver.sent).await?;
        let departures = std::mem::take(&mut driver.departures);
        Line::Sent { messages: driver.sent - before, seconds: seconds_since(start), departures }.say();
    }
    Ok(())
}

struct Driver<P> {
    publisher: P,
    aside: Option<Aside>,
    credits: Credits,
    sent: u64,
    departures: Vec<(u64, u64)>,
}

impl<P: Publisher> Driver<P> {
    async fn publish(&mut self, timed: bool, last: bool) -> Result<()> {
        let message = Message { sequence: self.sent, timed, last };
        self.sent += 1;
        if let Some(aside) = &mut self.aside {
            aside.put(message.sequence);
        }
        self.publisher.publish(message).await
    }

    async fn burst(&mut self, start: u64, phase: &Phase) -> Result<()> {
        let end = self.sent.saturating_add(phase.messages_max).saturating_sub(LOOK_EVERY);
        while now_ns() - start < phase.milliseconds * 1_000_000 && self.sent < end {
            for _ in 0..LOOK_EVERY {
                self.publish(false, false).await?;
            }
            self.credits.room(self.sent).await?;
        }
        self.publish(false, true).await?;
        self.publisher.flush().await
    }

    async fn paced(&mut self, start: u64, milliseconds: u64, rate: u32) -> Result<()> {
        let mut ticks = Ticks::every(Duration::from_secs(1) / rate)?;
        let total = u64::from(rate) * milliseconds / 1_000;
        let mut published = 0;
        while published < total {
            // Ticks that were missed are made up for at once; each message carries its own time.
            let due = ticks.next().await?.min(total - published);
            for _ in 0..due {
                published += 1;
                self.departures.push((self.sent, now_ns()));
                self.publish(true, published == total).await?;
                self.publisher.flush().await?;
            }
            let overtime = now_ns() - start > OVERTIME * milliseconds * 1_000_000;
            ensure!(!overtime, "only {published} of {total} messages in {OVERTIME} times their time");
        }
        Ok(())
    }
}

/// A periodic timer of the kernel: the runtime's own timer cannot tick more often than every millisecond.
struct Ticks(AsyncFd<rustix::fd::OwnedFd>);

impl Ticks {
    #[allow(deprecated, reason = "sound for an owned descriptor; the replacement is unsafe")]
    fn every(period: Duration) -> Result<Self> {
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        let period = Timespec { tv_sec: period.as_secs() as i64, tv_nsec: period.subsec_nanos().into() };
        let setting = Itimerspec { it_interval: period, it_value: period };
        rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &setting)?;
        Ok(Self(AsyncFd::new(timer)?))
    }

    /// Waits for the next tick; how many have passed since the last call.
    async fn next(&mut self) -> Result<u64> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut count = [0; 8];
            match ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut count)?)) {
                Ok(read) => {
                    read?;
                    return Ok(u64::from_ne_bytes(count));
                }
                Err(_would_block) => {}
            }
        }
    }
}

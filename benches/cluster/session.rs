//! One publisher and its subscribers, each a process of its own, and what a phase costs them.

use std::collections::HashMap;
use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use tidings_benches::clock::{now_ns, seconds_since};
use tidings_benches::machine::{busy_seconds, cpu_ns, loopback_bytes};

use crate::brokers::Broker;
use crate::setup::{Line, Peer, Phase, Role, Setup, System};

/// Name of the argument that makes this program a child.
pub(crate) const CHILD_ARGUMENT: &str = "--child";

/// What one phase came to.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) messages: u64,
    pub(crate) subscribers: usize,
    /// Until the last subscriber had the last message.
    pub(crate) seconds: f64,
    pub(crate) publisher_cpu_s: f64,
    pub(crate) subscribers_cpu_s: f64,
    pub(crate) broker_cpu_s: f64,
    /// On the loopback interface, the broker's hop included.
    pub(crate) wire_bytes: u64,
    /// Cores that were busy with something else meanwhile.
    pub(crate) other_load: f64,
    /// Sorted, of all subscribers; empty in a burst.
    #[serde(skip)]
    pub(crate) latencies_ns: Vec<u32>,
}

impl Measured {
    pub(crate) fn delivered(&self) -> f64 {
        (self.messages * self.subscribers as u64) as f64
    }

    pub(crate) fn cpu_s(&self) -> f64 {
        self.publisher_cpu_s + self.subscribers_cpu_s + self.broker_cpu_s
    }
}

/// One session: its warm-up, its phase and who takes part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) subscribers: usize,
    pub(crate) warm_up: Phase,
    pub(crate) phase: Phase,
    /// As in [`Setup`].
    pub(crate) resident: u64,
}

/// The processes of one system; they end with this value.
pub(crate) struct Session {
    subscribers: Vec<Process>,
    publisher: Process,
    broker: Option<u32>,
}

impl Session {
    pub(crate) fn start(
        system: System,
        plan: &Plan,
        broker: Option<&Broker>,
        certificates: &Path,
    ) -> Result<Self> {
        let mut setup = Setup {
            system,
            role: Role::Subscriber,
            broker: broker.map(|broker| broker.address),
            certificates: certificates.to_owned(),
            pace: plan.phase.pace,
            resident: plan.resident,
            peers: Vec::new(),
        };
        let mut listening = Vec::new();
        for index in 0..plan.subscribers {
            let mut process = Process::spawn(&setup)?;
            let peer: Peer = match process.line()? {
                Line::Listening(peer) => peer,
                other => bail!("subscriber {index} of {} says {other:?}", system.name()),
            };
            setup.peers.push(peer);
            listening.push(process);
        }
        setup.role = Role::Publisher;
        let mut publisher = Process::spawn(&setup)?;
        match publisher.line()? {
            Line::Connected => {}
            other => bail!("the publisher of {} says {other:?}", system.name()),
        }
        Ok(Self { subscribers: listening, publisher, broker: broker.map(Broker::pid) })
    }

    /// Runs one phase and reads what it cost.
    pub(crate) fn run(&mut self, phase: Phase) -> Result<Measured> {
        let before = Reading::take(self)?;
        self.publisher.send(&phase)?;
        let (messages, seconds, departures) = match self.publisher.line()? {
            Line::Sent { messages, seconds, departures } => (messages, seconds, departures),
            other => bail!("the publisher says {other:?}"),
        };
        let after = Reading::take(self)?;
        let departures: HashMap<u64, u64> = departures.into_iter().collect();
        let mut latencies_ns = Vec::new();
        for (index, subscriber) in self.subscribers.iter_mut().enumerate() {
            match subscriber.line()? {
                Line::Received { messages: received, arrivals } => {
                    ensure!(
                        received == messages,
                        "subscriber {index} received {received} of {messages} messages"
                    );
                    for (sequence, arrived) in arrivals {
                        let departed = departures.get(&sequence).context("a message that was not sent")?;
                        latencies_ns
                            .push(u32::try_from(arrived.saturating_sub(*departed)).unwrap_or(u32::MAX));
                    }
                }
                other => bail!("subscriber {index} says {other:?}"),
            }
        }
        latencies_ns.sort_unstable();
        let wall = seconds_since(before.at_ns) - seconds_since(after.at_ns);
        let used = |before: u64, after: u64| after.saturating_sub(before) as f64 / 1e9;
        let mut measured = Measured {
            messages,
            subscribers: self.subscribers.len(),
            seconds,
            publisher_cpu_s: used(before.publisher_ns, after.publisher_ns),
            subscribers_cpu_s: used(before.subscribers_ns, after.subscribers_ns),
            broker_cpu_s: used(before.broker_ns, after.broker_ns),
            wire_bytes: after.wire_bytes - before.wire_bytes,
            other_load: 0.0,
            latencies_ns,
        };
        measured.other_load = ((after.busy_s - before.busy_s - measured.cpu_s()) / wall).max(0.0);
        Ok(measured)
    }
}

/// All counters at one moment.
struct Reading {
    at_ns: u64,
    publisher_ns: u64,
    subscribers_ns: u64,
    broker_ns: u64,
    busy_s: f64,
    wire_bytes: u64,
}

impl Reading {
    fn take(session: &Session) -> Result<Self> {
        let subscribers = session.subscribers.iter().map(|process| cpu_ns(process.child.id()));
        Ok(Self {
            at_ns: now_ns(),
            publisher_ns: cpu_ns(session.publisher.child.id())?,
            subscribers_ns: subscribers.sum::<Result<u64>>()?,
            broker_ns: session.broker.map_or(Ok(0), cpu_ns)?,
            busy_s: busy_seconds()?,
            wire_bytes: loopback_bytes()?,
        })
    }
}

/// A child of this program; killed with this value.
struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn spawn(setup: &Setup) -> Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .arg(CHILD_ARGUMENT)
            .arg(serde_json::to_string(setup)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().context("no standard input")?;
        let output = BufReader::new(child.stdout.take().context("no standard output")?);
        Ok(Self { child, input, output })
    }

    fn line(&mut self) -> Result<Line> {
        let mut line = String::new();
        ensure!(self.output.read_line(&mut line)? > 0, "a child ended; its reason is above");
        Ok(serde_json::from_str(&line)?)
    }

    fn send(&mut self, phase: &Phase) -> Result<()> {
        let mut line = serde_json::to_string(phase)?;
        line.push('\n');
        Ok(self.input.write_all(line.as_bytes())?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

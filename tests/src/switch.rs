//! A switch in this process: every host's device is a TAP whose other end is here, so that frames can be held back,
//! doubled and overtaken per pair of hosts.
//!
//! A device is read and written as if it were a pipe: one call moves one frame, and readiness is told in the same way.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tappers::{Interface, Tap};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::host::Host;

/// Longest frame: an Ethernet header and the devices' 1,500 bytes, with room for a tag.
const FRAME_BYTES_MAX: usize = 1522;

/// Frames on their way from one host to another: at 1,500 bytes 6 MB, or 100 ms of 480 Mbit/s. More are dropped, as a
/// full queue of a real switch would.
const FRAMES_WAITING_MAX: usize = 4096;

/// How long a frame that is to be overtaken waits for another.
const OVERTAKEN_WITHIN: Duration = Duration::from_millis(5);

/// Passes frames between hosts until it is dropped.
#[derive(Debug)]
pub struct Switch {
    /// By sender and receiver.
    paths: HashMap<(usize, usize), watch::Sender<Path>>,
    #[expect(dead_code, reason = "dropping it ends the tasks")]
    tasks: JoinSet<()>,
}

/// What happens to frames from one host to another.
#[derive(Clone, Copy, Debug, Default)]
struct Path {
    delay: Duration,
    held: bool,
    mess: Mess,
}

/// Shares of the frames, in per cent, that a path delivers otherwise than once and in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mess {
    /// Delivered twice.
    pub twice: u8,
    /// Delivered after the one that comes next.
    pub overtaken: u8,
}

/// The way from one host to another.
struct Port {
    path: watch::Receiver<Path>,
    queue: mpsc::Sender<Frame>,
}

struct Frame {
    due: Instant,
    bytes: Arc<[u8]>,
}

impl Switch {
    /// Gives every host a device `eth0` that ends here.
    pub fn start(hosts: &[Arc<Host>]) -> Result<Self> {
        let devices = hosts.iter().map(|host| open(host)).collect::<Result<Vec<_>>>()?;
        let mut paths = HashMap::new();
        let mut tasks = JoinSet::new();
        for (from, device) in devices.iter().enumerate() {
            let mut ports = Vec::new();
            for (to, device) in devices.iter().enumerate().filter(|(to, _)| *to != from) {
                let (queue, frames) = mpsc::channel(FRAMES_WAITING_MAX);
                let (set, path) = watch::channel(Path::default());
                paths.insert((from, to), set);
                ports.push(Port { path: path.clone(), queue });
                let sender = pipe::Sender::from_file_unchecked(device.try_clone()?)?;
                let random = SmallRng::seed_from_u64((from * devices.len() + to) as u64);
                tasks.spawn(deliver(sender, path, frames, random));
            }
            let receiver = pipe::Receiver::from_file_unchecked(device.try_clone()?)?;
            tasks.spawn(forward(receiver, ports));
        }
        Ok(Self { paths, tasks })
    }

    /// Holds back what one host sends to another from now on.
    pub fn delay(&self, from: usize, to: usize, by: Duration) {
        self.paths[&(from, to)].send_modify(|path| path.delay = by);
    }

    /// Doubles so many of the frames that one host sends to another from now on, and lets so many be overtaken.
    pub fn mess(&self, from: usize, to: usize, mess: Mess) {
        self.paths[&(from, to)].send_modify(|path| path.mess = mess);
    }

    /// Holds back everything that one host sends to another, or lets it all go at once.
    pub fn hold(&self, from: usize, to: usize, held: bool) {
        self.paths[&(from, to)].send_modify(|path| path.held = held);
    }
}

/// Copies every frame of a host to all others: they drop what is not for them.
async fn forward(device: pipe::Receiver, ports: Vec<Port>) {
    let mut buffer = [0; FRAME_BYTES_MAX];
    while device.readable().await.is_ok() {
        let Ok(length) = device.try_read(&mut buffer) else { continue };
        let bytes: Arc<[u8]> = buffer[..length].into();
        for port in &ports {
            let due = Instant::now() + port.path.borrow().delay;
            // A full queue drops, as a switch does.
            let _ = port.queue.try_send(Frame { due, bytes: Arc::clone(&bytes) });
        }
    }
}

/// Delivers what one host sends to another, each frame when it is due.
async fn deliver(
    device: pipe::Sender,
    mut path: watch::Receiver<Path>,
    mut frames: mpsc::Receiver<Frame>,
    mut random: SmallRng,
) {
    // A device that is down refuses it: lost, as on a cable.
    let put = |frame: &Frame| drop(device.try_write(&frame.bytes));
    while let Some(frame) = frames.recv().await {
        sleep_until(frame.due).await;
        let mess = path.borrow().mess;
        let mut strikes = |percent: u8| random.random_range(0..100) < percent;
        let mut overtaking = None;
        if strikes(mess.overtaken)
            && let Ok(Some(next)) = timeout(OVERTAKEN_WITHIN, frames.recv()).await
        {
            sleep_until(next.due).await;
            overtaking = Some(next);
        }
        // Last, for all of this takes time in which the path may come to be held.
        if path.wait_for(|path| !path.held).await.is_err() {
            return;
        }
        overtaking.iter().for_each(put);
        put(&frame);
        if strikes(mess.twice) {
            put(&frame);
        }
    }
}

fn open(host: &Host) -> Result<File> {
    // A device belongs to the namespace of the thread that opens it.
    let opened = host.namespace().enter(|| -> io::Result<File> {
        let mut tap = Tap::new_named(Interface::new("eth0")?)?;
        tap.set_nonblocking(true)?;
        Ok(tap.as_fd().try_clone_to_owned()?.into())
    })?;
    opened.context("cannot make a TAP device")
}

//! The task that runs chitchat, carries its verdicts into the table, and paces gossip.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use chitchat::{ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, spawn_chitchat};
use tidings_proto::id::{Incarnation, NodeId, Origin};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::attest::{AttestError, Attestor, Statement};
use crate::config::{Config, PHI_THRESHOLD, SAMPLE_MAX_INTERVALS, SAMPLES};
use crate::membership::{FIRST_SERIAL, RenewError, Shared};
use crate::seam::{GossipSeam, SeamTransport};
use crate::seeds::Seeds;
use crate::view::{State, View};
use crate::wire::{Identity, RECORD_KEY};

/// Time between rounds of gossip after a change, and for how long.
const FAST_INTERVAL: Duration = Duration::from_millis(200);
const FAST_FOR: Duration = Duration::from_secs(10);

/// Members that one extra round of gossip goes to; chitchat's own rounds go to three as well.
const FANOUT: usize = 3;

/// How long a goodbye waits for live members to show that they know it, and how often it is repeated
/// meanwhile.
const LEAVE_WAIT: Duration = Duration::from_millis(500);
const LEAVE_REPEAT: Duration = Duration::from_millis(50);

/// How often the guard forgets what chitchat has forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// How long chitchat may take to end. It only has to read one command.
const STOP_WAIT: Duration = Duration::from_secs(2);

/// What the handle asks of the driver.
pub(crate) enum Command {
    Leave(oneshot::Sender<()>),
    Renew(oneshot::Sender<Result<(), RenewError>>),
}

pub(crate) struct Driver {
    config: Config,
    shared: Arc<Shared>,
    attestor: Arc<dyn Attestor>,
    seeds: Seeds,
    serial: u64,
    has_left: bool,
    fast_until: Instant,
    /// Turns with every extra round, so that they reach everybody.
    turn: usize,
}

impl Driver {
    pub(crate) fn new(
        config: Config,
        shared: Arc<Shared>,
        attestor: Arc<dyn Attestor>,
        seeds: Seeds,
    ) -> Self {
        let fast_until = Instant::now() + FAST_FOR;
        Self { config, shared, attestor, seeds, serial: FIRST_SERIAL, has_left: false, fast_until, turn: 0 }
    }

    pub(crate) async fn run(
        mut self,
        seam: GossipSeam,
        record: String,
        mut commands: mpsc::Receiver<Command>,
        stop: CancellationToken,
    ) {
        let transport = SeamTransport::new(seam, Arc::clone(&self.shared));
        let initial = vec![(RECORD_KEY.to_owned(), record)];
        let gossip = match spawn_chitchat(self.chitchat(), initial, &transport).await {
            Ok(gossip) => gossip,
            Err(error) => unreachable!("the seam's socket opens once: {error:#}"),
        };
        let mut ended = pin!(gossip.termination_watcher());
        let mut gossips = true;
        let mut live = gossip.with_chitchat(|chitchat| chitchat.live_nodes_watcher()).await;
        let mut views = self.shared.view.subscribe();
        let mut round = Instant::now();
        let mut sweep = round + SWEEP_EVERY;
        loop {
            let deadline = self.deadline();
            tokio::select! {
                () = stop.cancelled() => break,
                end = &mut ended, if gossips => {
                    gossips = false;
                    let error = end.err().map(|error| format!("{error:#}"));
                    tracing::error!(error, "gossip has ended: members are judged by their links alone");
                }
                Some(command) = commands.recv() => self.obey(command, &gossip).await,
                Ok(()) = live.changed() => {
                    let heard = live.borrow_and_update().keys().filter_map(origin_of).collect();
                    self.shared.evidence(|table, now| table.gossiped(&heard, now));
                }
                Ok(()) = views.changed() => {
                    views.mark_unchanged();
                    self.fast_until = Instant::now() + FAST_FOR;
                    round = round.min(Instant::now() + self.interval());
                }
                () = self.shared.wake.notified() => {}
                () = sleep_until(deadline) => self.shared.evidence(|table, now| table.tick(now)),
                () = sleep_until(round) => {
                    self.gossip(&gossip);
                    round = Instant::now() + self.interval();
                }
                () = sleep_until(sweep) => {
                    self.sweep(&gossip).await;
                    sweep = Instant::now() + SWEEP_EVERY;
                }
                seeds = self.seeds.resolved() => self.shared.set_seeds(seeds),
            }
        }
        if timeout(STOP_WAIT, gossip.shutdown()).await.is_err() {
            tracing::warn!("gossip did not end in time");
        }
    }

    fn chitchat(&self) -> ChitchatConfig {
        let me = &self.config.me;
        let interval = self.config.gossip_interval;
        ChitchatConfig {
            chitchat_id: ChitchatId::new(me.origin.node.as_str(), me.origin.incarnation.0, me.address),
            cluster_id: self.config.cluster.clone(),
            gossip_interval: interval,
            listen_addr: me.address,
            // Seeds are gossiped with by this driver, which resolves their names.
            seed_nodes: Vec::new(),
            failure_detector_config: FailureDetectorConfig {
                phi_threshold: PHI_THRESHOLD,
                sampling_window_size: SAMPLES,
                max_interval: interval * SAMPLE_MAX_INTERVALS,
                initial_interval: interval,
                dead_node_grace_period: self.config.gossip_memory,
            },
            // Nothing is ever deleted.
            marked_for_deletion_grace_period: self.config.gossip_memory,
            catchup_callback: None,
            extra_liveness_predicate: None,
        }
    }

    fn interval(&self) -> Duration {
        let interval = self.config.gossip_interval;
        if Instant::now() < self.fast_until { interval.min(FAST_INTERVAL) } else { interval }
    }

    fn deadline(&self) -> Instant {
        let now = self.shared.now();
        let deadline = self.shared.table.lock().deadline(now);
        Instant::now() + deadline.map_or(SWEEP_EVERY, |deadline| deadline.since(now))
    }

    /// One round beside chitchat's own: to a few members in turn while gossip is fast, always to a few that
    /// are not live, for chitchat gives up on these, and to a seed that no live member stands for.
    fn gossip(&mut self, gossip: &ChitchatHandle) {
        let view = self.shared.view.borrow().clone();
        let fast = Instant::now() < self.fast_until;
        self.turn = self.turn.wrapping_add(1);
        let members = view.members.values();
        let mut chosen: BTreeSet<SocketAddr> = BTreeSet::new();
        let silent: Vec<_> = addresses(&view, |state| matches!(state, State::Suspect | State::Lost));
        chosen.extend(in_turn(&silent, self.turn, FANOUT));
        if fast {
            let live: Vec<_> = addresses(&view, |state| state == State::Live);
            chosen.extend(in_turn(&live, self.turn, FANOUT));
        }
        let met: BTreeSet<_> = members
            .filter(|member| member.state == State::Live)
            .map(|member| member.record.address)
            .collect();
        let unmet: Vec<_> = view.seeds.difference(&met).copied().collect();
        chosen.extend(in_turn(&unmet, self.turn, 1));
        chosen.remove(&self.config.me.address);
        for address in chosen {
            send(gossip, address);
        }
    }

    async fn sweep(&self, gossip: &ChitchatHandle) {
        let gossiped: BTreeSet<Identity> = gossip
            .with_chitchat(|chitchat| chitchat.node_states().keys().filter_map(identity_of).collect())
            .await;
        self.shared.guard.lock().retain(&gossiped, self.shared.now());
    }

    async fn obey(&mut self, command: Command, gossip: &ChitchatHandle) {
        match command {
            Command::Leave(done) => {
                if !self.has_left {
                    self.has_left = true;
                    match self.publish(gossip).await {
                        Ok(()) => self.say_goodbye(gossip).await,
                        Err(error) => tracing::warn!(%error, "goodbye could not be signed"),
                    }
                }
                // Whoever asked may have stopped waiting.
                let _ = done.send(());
            }
            Command::Renew(done) => {
                let renewed = if self.has_left {
                    Err(RenewError::Closed)
                } else {
                    self.publish(gossip).await.map_err(RenewError::Sign)
                };
                let _ = done.send(renewed);
            }
        }
    }

    /// Publishes this node's statement under the next serial number.
    async fn publish(&mut self, gossip: &ChitchatHandle) -> Result<(), AttestError> {
        let serial = self.serial + 1;
        let statement = Statement { record: self.config.me.clone(), serial, left: self.has_left };
        let text = statement.publish(&self.config.cluster, &*self.attestor)?;
        let version = gossip
            .with_chitchat(|chitchat| {
                let own = chitchat.self_node_state();
                own.set(RECORD_KEY, &text);
                own.max_version()
            })
            .await;
        debug_assert_eq!(version, serial, "the record is the only key, and only this changes it");
        self.serial = serial;
        self.fast_until = Instant::now() + FAST_FOR;
        Ok(())
    }

    async fn say_goodbye(&self, gossip: &ChitchatHandle) {
        let until = Instant::now() + LEAVE_WAIT;
        loop {
            let view = self.shared.view.borrow().clone();
            let mut waiting = addresses(&view, |state| state == State::Live);
            waiting.retain(|address| !self.shared.guard.lock().knows_me(*address, self.serial));
            if waiting.is_empty() || Instant::now() >= until {
                return;
            }
            for address in waiting {
                send(gossip, address);
            }
            sleep_until(until.min(Instant::now() + LEAVE_REPEAT)).await;
        }
    }
}

fn send(gossip: &ChitchatHandle, address: SocketAddr) {
    // It fails only once chitchat has ended; then the driver is about to end too.
    if gossip.gossip(address).is_err() {
        tracing::debug!(%address, "gossip has ended");
    }
}

fn addresses(view: &View, wanted: impl Fn(State) -> bool) -> Vec<SocketAddr> {
    view.members.values().filter(|member| wanted(member.state)).map(|member| member.record.address).collect()
}

fn in_turn(all: &[SocketAddr], turn: usize, count: usize) -> impl Iterator<Item = SocketAddr> {
    let start = turn.wrapping_mul(count);
    (0..count.min(all.len())).map(move |step| all[start.wrapping_add(step) % all.len()])
}

fn origin_of(id: &ChitchatId) -> Option<Origin> {
    let node = NodeId::new(&id.node_id).ok()?;
    Some(Origin { node, incarnation: Incarnation(id.generation_id) })
}

fn identity_of(id: &ChitchatId) -> Option<Identity> {
    Some(Identity { origin: origin_of(id)?, address: id.gossip_advertise_addr })
}

//! The machines of a cluster, one more than it has nodes, and the processes on them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidings::Identity;
use tokio::sync::Notify;
use turmoil::Sim;

use crate::chance::{Chance, mix};
use crate::host::{CLUSTER, PORT, Service, Setup};
use crate::identity::identities;
use crate::process::Process;
use crate::wire::Cable;
use crate::world::World;

struct Machine {
    name: String,
    address: SocketAddr,
    /// Of the process that runs on it, or will next.
    cable: Arc<Mutex<Arc<Cable>>>,
    runs: Option<Running>,
}

struct Running {
    process: Process,
    number: u64,
    node: usize,
    /// Until when it is stopped.
    stopped_until: Duration,
    leave: Arc<Notify>,
}

/// The number of a process, and the node that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) number: u64,
    pub(crate) node: usize,
}

pub(crate) struct Machines {
    machines: Vec<Machine>,
    nodes: Vec<(String, Identity)>,
    seeds: Vec<String>,
    seed: u64,
    setup: Setup,
    world: Arc<World>,
    /// Processes that know that another one has their place.
    gave_way: BTreeSet<u64>,
}

impl Machines {
    /// Nothing runs on any of them.
    pub(crate) fn new(
        sim: &mut Sim<'static>,
        chance: &mut Chance,
        nodes: usize,
        about: (u64, Setup, Arc<World>),
    ) -> Self {
        let (seed, setup, world) = about;
        let names: Vec<String> = (0..nodes).map(|number| format!("n{number}")).collect();
        let identities = identities(CLUSTER, &names, chance);
        let machine = |number: usize| {
            let name = format!("m{number}");
            let address = SocketAddr::new(sim.lookup(name.as_str()), PORT);
            let cable = Arc::<Mutex<Arc<Cable>>>::default();
            let current = cable.clone();
            sim.host(name.as_str(), move || {
                current.lock().expect("nothing panics while it is locked").clone().carry(PORT)
            });
            sim.crash(name.as_str());
            Machine { name, address, cable, runs: None }
        };
        let machines: Vec<Machine> = (0..=nodes).map(machine).collect();
        let seeds = machines.iter().take(2).map(|machine| machine.address.to_string()).collect();
        Self {
            machines,
            nodes: names.into_iter().zip(identities).collect(),
            seeds,
            seed,
            setup,
            world,
            gave_way: BTreeSet::new(),
        }
    }

    /// How many nodes there should be.
    pub(crate) fn nodes(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.machines.iter().map(|machine| machine.name.as_str())
    }

    /// Where something runs, and what.
    pub(crate) fn running(&self) -> impl Iterator<Item = (usize, Who)> {
        let who = |runs: &Running| Who { number: runs.number, node: runs.node };
        self.machines
            .iter()
            .enumerate()
            .filter_map(move |(at, machine)| Some((at, machine.runs.as_ref().map(who)?)))
    }

    /// Where nothing runs.
    pub(crate) fn free(&self) -> Option<usize> {
        self.machines.iter().position(|machine| machine.runs.is_none())
    }

    /// Starts a process of a node, though it may have one already. Returns its number.
    pub(crate) fn start(&mut self, sim: &mut Sim<'static>, node: usize, at: usize) -> u64 {
        let now = sim.elapsed();
        for (_, other) in self.running().filter(|(_, other)| other.node == node) {
            self.world.record().replaced(other.number, now);
        }
        let number = self.world.record().starts(node);
        let cable = Arc::<Cable>::default();
        let machine = &mut self.machines[at];
        assert!(machine.runs.is_none(), "one process per machine");
        *machine.cable.lock().expect("nothing panics while it is locked") = cable.clone();
        sim.bounce(machine.name.as_str());
        let (name, identity) = self.nodes[node].clone();
        let leave = Arc::<Notify>::default();
        let service = Service {
            number,
            machine: at,
            node: name,
            identity,
            address: machine.address,
            seeds: self.seeds.clone(),
            seed: mix(self.seed ^ mix(1 + number)),
            setup: self.setup,
            cable,
            leave: leave.clone(),
            world: self.world.clone(),
        };
        let process = Process::start(now, |time| service.run(time));
        machine.runs = Some(Running { process, number, node, stopped_until: now, leave });
        number
    }

    /// Ends a process without a word. Returns which it was, and its writes that may still land.
    pub(crate) fn kill(&mut self, sim: &mut Sim<'static>, at: usize) -> Option<(Who, Vec<u64>)> {
        let Running { process, number, node, .. } = self.machines[at].runs.take()?;
        // First, so that nothing leaves any more.
        sim.crash(self.machines[at].name.as_str());
        drop(process);
        self.world.reports().remove(&number);
        let who = Who { number, node };
        // Who may have said goodbye had the place: nobody has it any more.
        if !self.world.record().is_leaving(number) {
            self.stays(who);
        }
        Some((who, self.world.record().died(number, sim.elapsed())))
    }

    /// Tells a process to leave.
    pub(crate) fn leave(&self, at: usize) {
        if let Some(runs) = &self.machines[at].runs {
            self.world.record().leaves(runs.number);
            runs.leave.notify_one();
        }
    }

    /// A process knows that another one has its place, which stays.
    pub(crate) fn gives_way(&mut self, number: u64) {
        self.gave_way.insert(number);
        if let Some((_, who)) = self.running().find(|(_, who)| who.number == number) {
            self.stays(who);
        }
    }

    /// Those that are beside a process, or were, keep their node's place.
    fn stays(&self, beside: Who) {
        for (_, other) in self.running().filter(|(_, other)| other.node == beside.node && *other != beside) {
            if !self.gave_way.contains(&other.number) {
                self.world.record().stays(other.number);
            }
        }
    }

    /// While a node has two processes, either may be taken for the one that is over, whichever began first: the one that is
    /// not heard. What it changes then nobody has to heed.
    fn judge_twins(&self, now: Duration) {
        if self.running().count() <= self.nodes.len() {
            return;
        }
        let runs = |at: usize| self.machines[at].runs.as_ref().is_some_and(|runs| runs.stopped_until <= now);
        let vie = |who: &Who| !self.gave_way.contains(&who.number);
        let vying: Vec<Who> =
            self.running().filter(|(at, _)| runs(*at)).map(|(_, who)| who).filter(vie).collect();
        for who in &vying {
            if vying.iter().any(|other| other != who && other.node == who.node) {
                self.world.record().replaced(who.number, now);
            }
        }
    }

    /// Stops a process until a moment: it is not scheduled, and its clock runs on.
    pub(crate) fn stop(&mut self, at: usize, until: Duration) {
        if let Some(runs) = &mut self.machines[at].runs {
            runs.stopped_until = until;
            self.world.reports().remove(&runs.number);
        }
    }

    /// Has all processes run until now, in any order.
    pub(crate) fn run(&mut self, first: usize, now: Duration) {
        self.judge_twins(now);
        let (before, after) = self.machines.split_at_mut(first);
        for machine in after.iter_mut().chain(before) {
            if let Some(runs) = machine.runs.as_mut().filter(|runs| runs.stopped_until <= now) {
                runs.process.run(now);
            }
        }
    }

    /// Whether every node has one process, and each of these has said since then that it has applied what all others did.
    pub(crate) fn all_well(&self, since: Duration) -> bool {
        let reports = self.world.reports();
        let well = |who: Who| {
            let report = reports.get(&who.number).filter(|report| report.at >= since);
            report.is_some_and(|report| report.sound_with == Some(self.nodes.len()))
        };
        self.running().count() == self.nodes.len() && self.running().all(|(_, who)| well(who))
    }
}

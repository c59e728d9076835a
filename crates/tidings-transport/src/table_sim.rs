//! Two ends with a table each: connections come up in both directions, some are given up half-way, and what one end
//! closes the other learns late. Whatever happens, two ends that were connected stay connected, by one connection.

use proptest::prelude::*;

use super::*;
use crate::limits::IDLE_TIMEOUT;

const STEP_MS: u64 = 10;
const PROBE_MS: u64 = 250;
const SETTLE_MS: u64 = 250;
const END_MS: u64 = 9_000;

/// How a connection comes up.
#[derive(Clone, Debug)]
struct Script {
    begins: u64,
    initiator: usize,
    /// Until the acceptor has it in its table, and from there until the initiator has.
    takes: [u64; 2],
    /// The initiator gives it up, which the acceptor learns after this time.
    given_up: Option<u64>,
    /// Until the other end learns that one has closed it.
    notice: u64,
}

fn scripts() -> impl Strategy<Value = Vec<Script>> {
    let takes = [1_u64..200, 1_u64..200];
    let given_up = prop_oneof![2 => Just(None), 1 => (1_u64..400).prop_map(Some), 1 => Just(Some(u64::MAX))];
    let script = (0_u64..1_500, 0_usize..2, takes, given_up, 1_u64..200);
    let script = script.prop_map(|(begins, initiator, takes, given_up, notice)| Script {
        begins,
        initiator,
        takes,
        given_up,
        notice,
    });
    prop::collection::vec(script, 1..9)
}

fn phases() -> impl Strategy<Value = [u64; 2]> {
    [0_u64..25, 0_u64..25].prop_map(|phases| phases.map(|phase| phase * STEP_MS))
}

/// One end's part in a connection.
#[derive(Clone, Debug)]
enum Part {
    /// Not in the table before then.
    Coming(u64),
    Open(LinkId, Heard),
    /// Learns then that it was closed.
    Closing(u64, LinkId),
    Gone,
}

struct World {
    scripts: Vec<Script>,
    parts: Vec<[Part; 2]>,
    tables: [Table<usize>; 2],
    now: u64,
}

fn at(millis: u64) -> Tick {
    Tick(1).after(std::time::Duration::from_millis(millis))
}

fn name(end: usize) -> NodeId {
    NodeId::new(["a", "b"][end]).unwrap()
}

impl World {
    fn new(scripts: Vec<Script>) -> Self {
        let parts = scripts.iter().map(|script| {
            let accepted = script.begins + script.takes[0];
            let mut parts = [Part::Coming(accepted), Part::Coming(accepted)];
            parts[script.initiator] = match script.given_up {
                None => Part::Coming(accepted + script.takes[1]),
                Some(_) => Part::Gone,
            };
            parts
        });
        let parts = parts.collect();
        Self { scripts, parts, tables: [0, 1].map(|end| Table::new(name(end))), now: 0 }
    }

    fn connected(&self) -> bool {
        self.parts.iter().any(|parts| parts.iter().all(|part| matches!(part, Part::Open(..))))
    }

    /// One end has closed a connection: the other learns it later.
    fn close(&mut self, connection: usize, end: usize) {
        self.parts[connection][end] = Part::Gone;
        let learns = self.now + self.scripts[connection].notice;
        let other = &mut self.parts[connection][1 - end];
        match other {
            Part::Open(id, _) => *other = Part::Closing(learns, *id),
            Part::Coming(_) => *other = Part::Gone,
            Part::Closing(..) | Part::Gone => {}
        }
    }

    fn register(&mut self, connection: usize, end: usize) {
        let script = &self.scripts[connection];
        let initiated = script.initiator == end;
        let port = |end| SocketAddr::from(([127, 0, 0, 1], end as u16 + 1));
        let facts = Facts {
            node: name(1 - end),
            incarnation: Incarnation(1),
            log: LogId(7),
            address: port(1 - end),
            remote: port(1 - end),
            initiated,
        };
        let heard = Heard::default();
        match self.tables[end].register(facts, connection, (at(self.now), heard.clone()), &[]) {
            Ok((id, outcome)) => {
                assert!(outcome.close.is_empty(), "one life replaces nothing");
                self.parts[connection][end] = match script.given_up {
                    None => Part::Open(id, heard),
                    Some(notice) => {
                        let idle = IDLE_TIMEOUT.as_millis() as u64;
                        Part::Closing(self.now + notice.min(idle), id)
                    }
                };
            }
            Err(_) => self.close(connection, end),
        }
    }

    fn step(&mut self, probes: [u64; 2], settles: [u64; 2]) {
        for connection in 0..self.parts.len() {
            for (end, phase) in probes.into_iter().enumerate() {
                match self.parts[connection][end].clone() {
                    Part::Coming(when) if when <= self.now => self.register(connection, end),
                    Part::Closing(when, id) if when <= self.now => {
                        self.tables[end].remove(id, at(self.now));
                        self.parts[connection][end] = Part::Gone;
                    }
                    Part::Open(_, heard)
                        if self.now % PROBE_MS == phase
                            && matches!(self.parts[connection][1 - end], Part::Open(..)) =>
                    {
                        heard.at(at(self.now));
                    }
                    _ => {}
                }
            }
        }
        for (end, phase) in settles.into_iter().enumerate() {
            if self.now % SETTLE_MS == phase {
                for connection in self.tables[end].settle(&name(1 - end), at(self.now)).close {
                    self.close(connection, end);
                }
            }
        }
        self.now += STEP_MS;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn two_ends_that_were_connected_stay_so_and_settle_on_one_connection(
        scripts in scripts(),
        probes in phases(),
        settles in phases(),
    ) {
        let mut world = World::new(scripts);
        let mut connected = false;
        while world.now < END_MS {
            world.step(probes, settles);
            prop_assert!(world.connected() || !connected, "cut off at {} ms", world.now);
            connected = world.connected();
        }
        let left = world.tables.each_ref().map(|table| table.all().copied().collect::<Vec<_>>());
        prop_assert_eq!(&left[0], &left[1]);
        prop_assert_eq!(left[0].len(), usize::from(connected));
    }
}

use std::time::Duration;

use super::*;

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn ms(millis: u64) -> Tick {
    Tick(1).after(Duration::from_millis(millis))
}

/// Node b as another sees it, at port 2.
fn b(initiated: bool) -> Facts {
    let remote = if initiated { at(2) } else { at(40_000) };
    Facts { node: node("b"), incarnation: Incarnation(1), log: LogId(7), address: at(2), remote, initiated }
}

struct Bench {
    table: Table<&'static str>,
    heard: HashMap<&'static str, Heard>,
}

impl Bench {
    fn of(local: &str) -> Self {
        Self { table: Table::new(node(local)), heard: HashMap::new() }
    }

    fn add(&mut self, link: &'static str, facts: Facts, now: Tick) -> (LinkId, Outcome<&'static str>) {
        self.add_after(link, facts, now, &[])
    }

    fn add_after(
        &mut self,
        link: &'static str,
        facts: Facts,
        now: Tick,
        unanswered: &[LinkId],
    ) -> (LinkId, Outcome<&'static str>) {
        let heard = Heard::default();
        self.heard.insert(link, heard.clone());
        self.table.register(facts, link, (now, heard), unanswered).unwrap()
    }

    fn current(&self) -> &'static str {
        self.table.current(&node("b")).unwrap()
    }
}

#[test]
fn simultaneous_dials_settle_on_the_connection_that_the_smaller_id_began() {
    for order in [["dialled", "accepted"], ["accepted", "dialled"]] {
        let mut bench = Bench::of("a");
        for link in order {
            bench.add(link, b(link == "dialled"), ms(0));
        }
        assert_eq!(bench.current(), "dialled", "{order:?}");

        let mut bench = Bench::of("c");
        for link in order {
            bench.add(link, b(link == "dialled"), ms(0));
        }
        assert_eq!(bench.current(), "accepted", "{order:?}");
    }
}

#[test]
fn the_smaller_id_closes_the_loser_after_a_grace() {
    let mut bench = Bench::of("a");
    bench.add("dialled", b(true), ms(0));
    let (_, outcome) = bench.add("accepted", b(false), ms(10));
    assert!(outcome.contested && outcome.close.is_empty() && outcome.turned.is_empty());
    bench.heard["dialled"].at(ms(300));
    assert_eq!(bench.table.settle(&node("b"), ms(509)).close, Vec::<&str>::new());
    let settled = bench.table.settle(&node("b"), ms(510));
    assert_eq!((settled.close, settled.contested), (vec!["accepted"], false));
    assert_eq!(bench.table.all().collect::<Vec<_>>(), [&"dialled"]);
}

#[test]
fn nothing_is_closed_before_the_one_to_keep_has_answered() {
    let mut bench = Bench::of("a");
    bench.add("dialled", b(true), ms(0));
    bench.add("accepted", b(false), ms(10));
    bench.heard["accepted"].at(ms(800));
    assert_eq!(
        bench.table.settle(&node("b"), ms(900)).close,
        Vec::<&str>::new(),
        "the other may not have it"
    );
    let settled = bench.table.settle(&node("b"), ms(1_000));
    assert_eq!((bench.current(), settled.close), ("accepted", vec!["dialled"]), "silence decides");
    // When nothing answers, nothing is closed.
    bench.add("again", b(true), ms(2_000));
    assert_eq!(bench.table.settle(&node("b"), ms(3_500)).close, Vec::<&str>::new());
}

#[test]
fn the_greater_id_closes_nothing() {
    let mut bench = Bench::of("c");
    for link in ["dialled", "accepted"] {
        bench.add(link, b(link == "dialled"), ms(0));
        bench.heard[link].at(ms(900));
    }
    let settled = bench.table.settle(&node("b"), ms(1_000));
    assert_eq!((settled.close, settled.contested), (vec![], true));
}

#[test]
fn a_newer_connection_is_preferred_to_a_silent_one() {
    let mut bench = Bench::of("a");
    bench.add("old", b(true), ms(0));
    bench.add("new", b(false), ms(1_000));
    assert_eq!(bench.current(), "new");
    bench.heard["new"].at(ms(1_100));
    let settled = bench.table.settle(&node("b"), ms(1_250));
    assert_eq!(settled.close, ["old"]);
}

#[test]
fn a_connection_that_is_heard_again_in_time_stays() {
    let mut bench = Bench::of("a");
    bench.add("old", b(true), ms(0));
    bench.add("new", b(true), ms(1_000));
    assert_eq!(bench.current(), "new");
    bench.heard["old"].at(ms(1_100));
    let settled = bench.table.settle(&node("b"), ms(1_250));
    assert_eq!((settled.close, settled.turned), (vec![], vec![("old", true), ("new", false)]));
    assert_eq!(bench.table.settle(&node("b"), ms(1_500)).close, ["new"]);
}

#[test]
fn a_second_dial_beside_a_connection_that_is_heard_is_given_up() {
    let mut bench = Bench::of("a");
    bench.add("old", b(true), ms(0));
    bench.add("new", b(true), ms(10));
    bench.heard["old"].at(ms(500));
    assert_eq!(bench.current(), "old");
    assert_eq!(bench.table.settle(&node("b"), ms(600)).close, ["new"]);
}

#[test]
fn a_later_life_of_the_same_process_replaces_at_once() {
    let mut bench = Bench::of("a");
    bench.add("old", b(true), ms(0));
    let later = Facts { incarnation: Incarnation(2), ..b(false) };
    assert_eq!(bench.table.judge(&later, &[]), Judgement::Welcome);
    let (_, outcome) = bench.add("new", later, ms(1));
    assert_eq!((outcome.close, outcome.turned, outcome.contested), (vec!["old"], vec![("new", true)], false));
    assert_eq!(bench.table.judge(&b(true), &[]), Judgement::Overtaken, "an earlier one comes too late");
}

#[test]
fn another_process_with_the_same_node_id_is_let_in_only_if_the_holder_is_dead() {
    let mut bench = Bench::of("a");
    let (held, _) = bench.add("held", b(true), ms(0));
    for incarnation in [1, 2] {
        let log = LogId(8);
        let rival = Facts { log, address: at(3), incarnation: Incarnation(incarnation), ..b(false) };
        assert_eq!(bench.table.judge(&rival, &[]), Judgement::Ask(vec![(held, "held")]));
        assert_eq!(bench.table.judge(&rival, &[held]), Judgement::Welcome);
    }
    let rival = Facts { log: LogId(8), incarnation: Incarnation(2), address: at(3), ..b(false) };
    assert!(matches!(
        bench.table.register(rival.clone(), "rival", (ms(1), Heard::default()), &[]),
        Err(Judgement::Ask(_))
    ));
    let (_, outcome) = bench.add_after("rival", rival, ms(1), &[held]);
    assert_eq!(outcome.close, ["held"]);
    assert_eq!(bench.current(), "rival");
}

#[test]
fn a_process_restarted_on_its_port_replaces_its_former_self_at_once() {
    let mut bench = Bench::of("a");
    bench.add("old", b(true), ms(0));
    let reborn = Facts { log: LogId(8), incarnation: Incarnation(2), remote: at(2), ..b(false) };
    let (_, outcome) = bench.add("new", reborn, ms(1));
    assert_eq!(outcome.close, ["old"]);
}

#[test]
fn the_address_of_another_live_node_cannot_be_claimed() {
    let mut bench = Bench::of("a");
    let (held, _) = bench.add("held", b(true), ms(0));
    let thief = Facts { node: node("d"), log: LogId(9), ..b(false) };
    assert_eq!(bench.table.judge(&thief, &[]), Judgement::Ask(vec![(held, "held")]));
    let (_, outcome) = bench.add_after("thief", thief, ms(1), &[held]);
    assert_eq!(outcome.close, ["held"], "it was dead");
    assert_eq!(bench.table.at(at(2)), Some(&"thief"));
}

#[test]
fn nodes_that_cannot_be_dialled_share_an_address() {
    let mut bench = Bench::of("a");
    let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
    bench.add("one", Facts { address: nowhere, ..b(false) }, ms(0));
    let other = Facts { node: node("d"), address: nowhere, remote: at(40_001), log: LogId(9), ..b(false) };
    assert_eq!(bench.table.judge(&other, &[]), Judgement::Welcome);
}

#[test]
fn connections_to_one_node_are_bounded() {
    let mut bench = Bench::of("a");
    for link in ["1", "2", "3", "4"] {
        bench.add(link, b(false), ms(0));
    }
    assert_eq!(bench.table.judge(&b(false), &[]), Judgement::Crowded);
}

#[test]
fn a_node_is_found_by_its_own_address_and_by_the_one_it_was_reached_at() {
    let mut bench = Bench::of("a");
    let (id, _) = bench.add("link", b(true), ms(0));
    bench.table.alias(at(99), &node("b"));
    bench.table.alias(at(98), &node("unknown"));
    assert_eq!((bench.table.at(at(2)), bench.table.at(at(99))), (Some(&"link"), Some(&"link")));
    assert_eq!(bench.table.at(at(98)), None);
    bench.table.remove(id, ms(1));
    assert_eq!((bench.table.at(at(2)), bench.table.at(at(99))), (None, None));
    assert!(bench.table.remove(id, ms(1)).is_none());
}

#[test]
fn addresses_of_connections_that_are_gone_are_forgotten() {
    let mut bench = Bench::of("a");
    bench.add("kept", b(true), ms(0));
    for port in 100..200 {
        let (id, _) = bench.add("short", Facts { address: at(port), ..b(false) }, ms(0));
        assert_eq!(bench.table.at(at(port)), Some(&"kept"));
        bench.table.remove(id, ms(1));
        assert_eq!(bench.table.at(at(port)), None);
    }
    assert_eq!(bench.table.addresses.len(), 1);
    assert_eq!(bench.table.at(at(2)), Some(&"kept"));
}

#[test]
fn addresses_without_end_that_lead_to_one_node_are_bounded() {
    let mut bench = Bench::of("a");
    bench.add("link", b(true), ms(0));
    for number in 0..3 * DIAL_ADDRESSES_MAX as u32 {
        bench.table.alias(SocketAddr::from((number.to_be_bytes(), 1)), &node("b"));
    }
    assert!(bench.table.aliases.len() <= DIAL_ADDRESSES_MAX);
    let last = 3 * DIAL_ADDRESSES_MAX as u32 - 1;
    assert_eq!(bench.table.at(SocketAddr::from((last.to_be_bytes(), 1))), Some(&"link"));
}

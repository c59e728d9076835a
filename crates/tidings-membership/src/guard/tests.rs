use proptest::prelude::*;

use super::*;
use crate::attest::tests::{Keyed, record};
use crate::attest::{AttestError, Attestation};
use crate::config::Record;
use crate::wire::Unpacker;

const INTERVAL: Duration = Duration::from_secs(1);

fn identity(record: &Record) -> Identity {
    Identity { origin: record.origin.clone(), address: record.address }
}

/// As a member's frames come.
fn by(record: &Record) -> (&NodeId, SocketAddr) {
    (&record.origin.node, record.address)
}

fn guard() -> (Guard, Arc<Stats>) {
    let stats = Arc::new(Stats::default());
    let attestor: Arc<dyn Attestor> = Arc::new(Keyed { node: "me", secret: "secret" });
    let trust = (attestor, Arc::clone(&stats));
    (Guard::new("demo".into(), identity(&record("me", 1)), trust, INTERVAL), stats)
}

fn now() -> Tick {
    Tick(1).after(Duration::from_secs(10))
}

fn later(seconds: u64) -> Tick {
    now().after(Duration::from_secs(seconds))
}

/// A record as its owner publishes it, or as one publishes it who does not know the secret.
fn published(record: &Record, secret: &'static str) -> Change {
    let statement = Statement { record: record.clone(), serial: 1, left: false };
    let node = record.origin.node.as_str().to_owned();
    let text = statement.publish("demo", &Keyed { node: node.leak(), secret }).unwrap();
    Change { node: identity(record), from: 0, record: Some((1, text)) }
}

fn seen(record: &Record, heartbeat: u64) -> Seen {
    Seen { node: identity(record), heartbeat, version: 1 }
}

fn syn(digest: Vec<Seen>) -> Vec<u8> {
    Message::Syn { cluster: "demo".into(), digest }.encode()
}

fn introduce(guard: &mut Guard, record: &Record) {
    let frame = Message::Ack { delta: vec![published(record, "secret")] }.encode();
    let admitted = guard.admit(by(record), &frame, now()).unwrap();
    assert_eq!(admitted.statements.len(), 1);
}

/// The heartbeats that chitchat is shown of a digest.
fn shown(guard: &mut Guard, from: &Record, digest: Vec<Seen>, now: Tick) -> Vec<u64> {
    let admitted = guard.admit(by(from), &syn(digest), now).unwrap();
    let Message::Syn { digest, .. } =
        Message::parse(&admitted.message, &mut Unpacker::default()).unwrap().message
    else {
        panic!("a Syn")
    };
    digest.iter().map(|seen| seen.heartbeat).collect()
}

#[test]
fn a_node_is_mentioned_only_once_its_record_is_known() {
    let (mut guard, stats) = guard();
    let a = record("a", 1);
    assert!(shown(&mut guard, &a, vec![seen(&a, 1)], now()).is_empty());
    assert_eq!(stats.rejected(Reason::Unattested), 1);
    introduce(&mut guard, &a);
    assert_eq!(shown(&mut guard, &a, vec![seen(&a, 1)], now()).len(), 1);
}

#[test]
fn one_message_introduces_a_node_and_tells_of_it() {
    let (mut guard, _) = guard();
    let (a, b) = (record("a", 1), record("b", 1));
    let message = Message::SynAck { digest: vec![seen(&b, 4)], delta: vec![published(&b, "secret")] };
    let admitted = guard.admit(by(&a), &message.encode(), now()).unwrap();
    assert_eq!(admitted.statements[0].record, b);
    let Message::SynAck { digest, delta } =
        Message::parse(&admitted.message, &mut Unpacker::default()).unwrap().message
    else {
        panic!()
    };
    assert_eq!((digest.len(), delta.len()), (1, 1));
}

#[test]
fn a_forged_record_of_a_third_member_is_left_out() {
    let (mut guard, stats) = guard();
    let (a, b) = (record("a", 1), record("b", 1));
    let delta = vec![published(&b, "guess"), published(&a, "secret")];
    let message = Message::SynAck { digest: vec![seen(&b, 4), seen(&a, 4)], delta };
    for round in 1..=2 {
        let admitted = guard.admit(by(&a), &message.encode(), now()).unwrap();
        let Message::SynAck { digest, delta } =
            Message::parse(&admitted.message, &mut Unpacker::default()).unwrap().message
        else {
            panic!()
        };
        let left: Vec<_> =
            digest.iter().map(|seen| &seen.node).chain(delta.iter().map(|change| &change.node)).collect();
        assert_eq!(left, [&identity(&a), &identity(&a)]);
        assert_eq!(stats.rejected(Reason::Forged), round);
    }
}

#[test]
fn a_record_of_this_node_is_never_taken_from_others() {
    let (mut guard, stats) = guard();
    let (me, a) = (record("me", 1), record("a", 1));
    let frame = Message::Ack { delta: vec![published(&me, "secret")] }.encode();
    let admitted = guard.admit(by(&a), &frame, now()).unwrap();
    assert_eq!(
        Message::parse(&admitted.message, &mut Unpacker::default()).unwrap().message,
        Message::Ack { delta: Vec::new() }
    );
    assert_eq!(stats.rejected(Reason::Forged), 1);
}

#[test]
fn a_record_under_another_serial_is_forged() {
    let (mut guard, stats) = guard();
    let mut change = published(&record("a", 1), "secret");
    change.record.as_mut().unwrap().0 = u64::MAX;
    let frame = Message::Ack { delta: vec![change] }.encode();
    assert!(guard.admit(by(&record("m", 1)), &frame, now()).unwrap().statements.is_empty());
    assert_eq!(stats.rejected(Reason::Forged), 1);
}

#[test]
fn a_heartbeat_that_leaps_is_ignored_and_the_true_one_still_counts() {
    let (mut guard, stats) = guard();
    let (a, b) = (record("a", 1), record("b", 1));
    introduce(&mut guard, &a);
    introduce(&mut guard, &b);
    let first = shown(&mut guard, &a, vec![seen(&a, 5)], now());
    for (round, lie) in [u64::MAX, 1 << 39].into_iter().enumerate() {
        assert!(shown(&mut guard, &b, vec![seen(&a, lie)], now()).is_empty());
        assert_eq!(stats.rejected(Reason::Heartbeat), round as u64 + 1);
    }
    let second = shown(&mut guard, &a, vec![seen(&a, 6)], now());
    assert!(second > first, "{second:?} {first:?}");
}

#[test]
fn a_first_claim_that_is_too_high_yields_to_the_node_itself() {
    let (mut guard, _) = guard();
    let (a, b) = (record("a", 1), record("b", 1));
    introduce(&mut guard, &a);
    let claimed = shown(&mut guard, &b, vec![seen(&a, 1 << 39)], now());
    let own = shown(&mut guard, &a, vec![seen(&a, 2)], now());
    assert!(own > claimed, "{own:?} {claimed:?}");
    let mut message = syn(vec![seen(&a, 77)]);
    guard.release(&mut message).unwrap();
    assert_eq!(message, syn(vec![seen(&a, 2)]), "and what others are told is the truth");
}

#[test]
fn repeated_heartbeats_are_no_news() {
    let (mut guard, _) = guard();
    let (a, b) = (record("a", 1), record("b", 1));
    introduce(&mut guard, &a);
    let first = shown(&mut guard, &a, vec![seen(&a, 5)], now());
    for heartbeat in [5, 4, 0] {
        assert_eq!(shown(&mut guard, &a, vec![seen(&a, heartbeat)], now()), first);
        assert_eq!(shown(&mut guard, &b, vec![seen(&a, heartbeat)], now()), first);
    }
}

#[test]
fn news_come_at_the_pace_of_gossip_after_the_first_few() {
    let (mut guard, _) = guard();
    let a = record("a", 1);
    introduce(&mut guard, &a);
    let mut distinct = BTreeSet::new();
    for step in 0..100_u64 {
        let at = now().after(Duration::from_millis(step * 50));
        distinct.extend(shown(&mut guard, &a, vec![seen(&a, step + 1)], at));
    }
    // Four until 0.15 s, then one per 0.95 s until 4.95 s.
    assert_eq!(distinct.len(), 4 + 5);
}

#[test]
fn other_clusters_and_their_complaints_are_dropped() {
    let (mut guard, _) = guard();
    let a = record("a", 1);
    let other = Message::Syn { cluster: "other".into(), digest: Vec::new() }.encode();
    for frame in [other, Message::BadCluster.encode()] {
        assert_eq!(guard.admit(by(&a), &frame, now()).unwrap_err(), Reason::Cluster);
    }
}

#[test]
fn one_node_cannot_fill_the_table_with_lives() {
    let (mut guard, stats) = guard();
    for incarnation in 1..=LIVES_MAX as u64 + 10 {
        let frame = Message::Ack { delta: vec![published(&record("m", incarnation), "secret")] }.encode();
        guard.admit(by(&record("m", 1)), &frame, now()).unwrap();
    }
    assert_eq!(stats.rejected(Reason::Capacity), 10);
    introduce(&mut guard, &record("a", 1));
    guard.retain(&BTreeSet::new(), later(61));
    introduce(&mut guard, &record("m", 99));
}

#[test]
fn the_digest_of_everybody_fits_into_a_message() {
    for width in [1, 128] {
        let (mut guard, stats) = guard();
        for number in 0..2_000 {
            let node = format!("{number:0>width$}");
            let frame = Message::Ack { delta: vec![published(&record(&node, 1), "secret")] }.encode();
            // One each second, or the peer would use up its share of checks.
            guard.admit(by(&record("a", 1)), &frame, later(number)).unwrap();
        }
        assert!(stats.rejected(Reason::Capacity) > 0);
        let digest: Vec<_> = guard.known.keys().chain([&guard.me]).cloned().collect();
        let digest = digest.into_iter().map(|node| Seen { node, heartbeat: 1, version: 1 }).collect();
        let syn = syn(digest);
        assert!(syn.len() <= DIGEST_BYTES_MAX + 20, "{}", syn.len());
        assert!(Message::parse(&syn, &mut Unpacker::default()).is_ok());
    }
}

#[test]
fn what_was_refused_is_refused_again_without_looking_and_looked_at_again_later() {
    struct Moody(Keyed, std::sync::atomic::AtomicU32);
    impl Attestor for Moody {
        fn sign(&self, message: &[u8]) -> Result<Attestation, AttestError> {
            self.0.sign(message)
        }
        fn verify(
            &self,
            node: &NodeId,
            message: &[u8],
            attestation: &Attestation,
        ) -> Result<(), AttestError> {
            match self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0 => Err(AttestError("not yet valid".into())),
                _ => self.0.verify(node, message, attestation),
            }
        }
    }
    let (mut guard, _) = guard();
    guard.attestor = Arc::new(Moody(Keyed { node: "me", secret: "secret" }, 0.into()));
    let frame = Message::Ack { delta: vec![published(&record("a", 1), "secret")] }.encode();
    let mut statements = |now| guard.admit(by(&record("a", 1)), &frame, now).unwrap().statements.len();
    assert_eq!(
        [statements(now()), statements(later(1)), statements(later(20)), statements(later(21))],
        [0, 0, 1, 0]
    );
}

#[test]
fn a_member_whose_record_does_not_verify_any_more_is_not_heard() {
    let (mut guard, _) = guard();
    let a = record("a", 1);
    introduce(&mut guard, &a);
    guard.attestor = Arc::new(Keyed { node: "me", secret: "secret" });
    guard.cluster = "other".into();
    guard.recheck();
    guard.cluster = "demo".into();
    assert!(shown(&mut guard, &a, vec![seen(&a, 5)], now()).is_empty());
    guard.recheck();
    assert_eq!(shown(&mut guard, &a, vec![seen(&a, 5)], now()).len(), 1);
}

#[test]
fn a_newer_record_of_a_member_that_does_not_verify_any_more_counts() {
    let (mut guard, _) = guard();
    let a = record("a", 1);
    introduce(&mut guard, &a);
    guard.cluster = "other".into();
    guard.recheck();
    guard.cluster = "demo".into();
    let old = Message::Ack { delta: vec![published(&a, "secret")] }.encode();
    guard.admit(by(&a), &old, now()).unwrap();
    assert!(shown(&mut guard, &a, vec![seen(&a, 5)], now()).is_empty());
    let renewed = Statement { record: a.clone(), serial: 2, left: false };
    let text = renewed.publish("demo", &Keyed { node: "a", secret: "secret" }).unwrap();
    let change = Change { node: identity(&a), from: 1, record: Some((2, text)) };
    let new = Message::Ack { delta: vec![change] }.encode();
    assert_eq!(guard.admit(by(&a), &new, now()).unwrap().statements, [renewed]);
    assert_eq!(shown(&mut guard, &a, vec![seen(&a, 5)], now()).len(), 1);
}

#[test]
fn an_address_that_nobody_can_dial_is_not_admitted() {
    let (mut guard, stats) = guard();
    for address in ["0.0.0.0:7401", "10.0.0.1:0"] {
        let a = Record { address: address.parse().unwrap(), ..record("a", 1) };
        let frame = Message::Ack { delta: vec![published(&a, "secret")] }.encode();
        assert!(guard.admit(by(&record("b", 1)), &frame, now()).unwrap().statements.is_empty());
    }
    assert_eq!(stats.rejected(Reason::Operation), 2);
}

#[test]
fn a_peer_that_shows_the_own_serial_knows_it() {
    let (mut guard, _) = guard();
    let (me, a) = (record("me", 1), record("a", 1));
    introduce(&mut guard, &a);
    for version in [1, 2] {
        let digest = vec![Seen { node: identity(&me), heartbeat: 1, version }];
        guard.admit(by(&a), &syn(digest), now()).unwrap();
        assert_eq!(guard.knows_me(a.address, 2), version == 2);
    }
    assert!(!guard.knows_me(record("b", 1).address, 1));
}

proptest! {
    /// Whatever peers send, chitchat is shown no node without a record of its own, and no version but a
    /// signed one.
    #[test]
    fn only_attested_nodes_reach_gossip(
        entries in proptest::collection::vec((0..4_usize, any::<u64>(), 0..4_u8), 0..20),
        kind in 0..3_u8,
    ) {
        let (mut guard, _) = guard();
        let known = record("a", 1);
        introduce(&mut guard, &known);
        let all = [known, record("b", 1), record("b", 2), record("c", 1)];
        let digest: Vec<_> = entries.iter().map(|(node, heartbeat, _)| seen(&all[*node], *heartbeat)).collect();
        let mut delta: Vec<Change> = Vec::new();
        for (node, version, secret) in entries {
            let mut change = published(&all[node], if secret == 0 { "guess" } else { "secret" });
            if secret == 1 {
                change.record.as_mut().unwrap().0 = version.max(2);
            }
            if delta.iter().all(|other| other.node != change.node) {
                delta.push(change);
            }
        }
        let message = match kind {
            0 => Message::Syn { cluster: "demo".into(), digest },
            1 => Message::SynAck { digest, delta },
            _ => Message::Ack { delta },
        };
        let admitted = guard.admit(by(&record("m", 1)), &message.encode(), now()).unwrap();
        let (digest, delta) = match Message::parse(&admitted.message, &mut Unpacker::default()).unwrap().message {
            Message::Syn { digest, .. } => (digest, Vec::new()),
            Message::SynAck { digest, delta } => (digest, delta),
            Message::Ack { delta } => (Vec::new(), delta),
            Message::BadCluster => unreachable!(),
        };
        for change in &delta {
            prop_assert_eq!(change.record.as_ref().unwrap().0, 1);
            prop_assert!(guard.known.contains_key(&change.node));
        }
        for seen in &digest {
            prop_assert!(guard.known.contains_key(&seen.node));
            prop_assert!(seen.heartbeat <= guard.last_news);
        }
    }
}

/// Counts the signatures that are checked.
#[derive(Default)]
struct Counting(std::sync::atomic::AtomicU32);

impl Attestor for Counting {
    fn sign(&self, _: &[u8]) -> Result<Attestation, AttestError> {
        Err(AttestError("it only checks".into()))
    }

    fn verify(&self, node: &NodeId, message: &[u8], attestation: &Attestation) -> Result<(), AttestError> {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Keyed { node: "me", secret: "secret" }.verify(node, message, attestation)
    }
}

fn counting() -> (Guard, Arc<Stats>, Arc<Counting>) {
    let (stats, attestor) = (Arc::new(Stats::default()), Arc::new(Counting::default()));
    let trust: (Arc<dyn Attestor>, _) = (attestor.clone(), Arc::clone(&stats));
    (Guard::new("demo".into(), identity(&record("me", 1)), trust, INTERVAL), stats, attestor)
}

fn checked(attestor: &Counting) -> u32 {
    attestor.0.load(std::sync::atomic::Ordering::Relaxed)
}

fn invented(names: std::ops::Range<u32>, secret: &'static str) -> Vec<u8> {
    let delta = names.map(|n| {
        let mut invented = record("a", 1);
        invented.origin.node = NodeId::new(&format!("x{n}")).unwrap();
        published(&invented, secret)
    });
    Message::Ack { delta: delta.collect() }.encode()
}

#[test]
fn invented_records_cost_a_bounded_number_of_checks_per_frame_and_second() {
    let (mut guard, stats, attestor) = counting();
    let liar = record("m", 1);
    guard.admit(by(&liar), &invented(0..200, "guess"), now()).unwrap();
    assert_eq!((checked(&attestor), stats.rejected(Reason::Budget)), (PER_FRAME, 200 - u64::from(PER_FRAME)));
    for frame in 1..100 {
        guard.admit(by(&liar), &invented(200 * frame..200 * (frame + 1), "guess"), now()).unwrap();
    }
    let spent = checked(&attestor);
    assert!(spent <= 256, "{spent} checks");
    introduce(&mut guard, &record("honest", 1));
    assert_eq!(checked(&attestor), spent + 1, "another peer has a share of its own");
}

#[test]
fn records_beyond_the_budget_count_when_they_come_again() {
    let (mut guard, _, _) = counting();
    let frame = invented(0..150, "secret");
    let admitted =
        |guard: &mut Guard| guard.admit(by(&record("m", 1)), &frame, now()).unwrap().statements.len();
    assert_eq!([64, 64, 22, 0].map(|_| admitted(&mut guard)), [64, 64, 22, 0]);
}

#[test]
fn a_life_beyond_the_limits_is_refused_before_its_signature_is_checked() {
    let (mut guard, stats, attestor) = counting();
    for life in 1..=LIVES_MAX as u64 {
        introduce(&mut guard, &record("a", life));
    }
    let before = checked(&attestor);
    let frame = Message::Ack { delta: vec![published(&record("a", 99), "secret")] }.encode();
    assert!(guard.admit(by(&record("a", 1)), &frame, now()).unwrap().statements.is_empty());
    assert_eq!((checked(&attestor), stats.rejected(Reason::Capacity)), (before, 1));
}

use std::sync::atomic::Ordering;

use tidings_cache::{Clock, ManualClock};
use tidings_proto::frame::PROTOCOL_VERSION;
use tidings_proto::freshness::NAMED_BY_ONE_MAX;
use tidings_proto::hash::HASH_VERSION;
use tidings_proto::id::LogId;
use tidings_proto::log::{ChangeLog, Retention};

use super::naming::REPLACED_NAMED_MAX;
use super::*;

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

fn life(node: &str, incarnation: u64) -> Origin {
    Origin { node: NodeId::new(node).unwrap(), incarnation: Incarnation(incarnation) }
}

fn at(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn named(origin: Origin) -> NamedMember {
    NamedMember { origin, address: at(1), ended: false }
}

fn set(members: impl IntoIterator<Item = NamedMember>) -> MemberSet {
    MemberSet { version: 1, members: members.into_iter().collect() }
}

fn hello(origin: &Origin, wall_ms: u64, members: MemberSet) -> Hello {
    Hello {
        protocols: (PROTOCOL_VERSION, PROTOCOL_VERSION),
        cluster: "shop".to_owned(),
        node: origin.node.clone(),
        incarnation: origin.incarnation,
        log: LogId(1),
        hash_version: HASH_VERSION,
        lanes: Lanes::default(),
        address: at(2),
        zone: String::new(),
        release: String::new(),
        wall_ms,
        age_ms: 0,
        members,
    }
}

/// The coherence of node `me`, whose clock stands still.
fn coherence() -> (Coherence, ManualClock) {
    let (clock, manual) = Clock::manual();
    let origin = life("me", clock.wall_ms());
    let log = Arc::new(ChangeLog::new(Lanes::default(), Retention::default()));
    let bounds = Bounds::default();
    let domain = Domain::new(clock, log, origin.clone(), bounds.max_staleness);
    (Coherence::new(origin.node, domain, Arc::default(), bounds, true), manual)
}

fn wall(coherence: &Coherence) -> u64 {
    coherence.domain.clock().wall_ms()
}

#[test]
fn a_life_of_the_far_future_is_not_believed_and_ends_nobody() {
    let (coherence, _clock) = coherence();
    let (liar, victim) = (life("liar", wall(&coherence)), life("victim", wall(&coherence)));
    coherence.met(&hello(&victim, wall(&coherence), MemberSet::default()));
    coherence.met(&hello(&liar, wall(&coherence), set([named(life("victim", u64::MAX))])));
    coherence.named(&liar.node, &set([named(life("victim", wall(&coherence) + DAY_MS + 1))]));
    assert_eq!(coherence.relevant(), [liar.clone(), victim.clone()]);
    assert_eq!(coherence.hearsay_refused(), 2);
    let soon = life("victim", wall(&coherence) + DAY_MS);
    coherence.named(&liar.node, &set([named(soon.clone())]));
    assert_eq!(coherence.relevant(), [liar, victim.clone(), soon]);
    assert!(!coherence.doubts().contains(&Doubt::UncleanEnd(victim)), "a claim ends nobody");
}

#[test]
fn a_node_whose_clock_is_far_behind_believes_what_its_peers_clocks_allow() {
    let (coherence, _clock) = coherence();
    let now = wall(&coherence) + 1_000 * DAY_MS;
    coherence.met(&hello(&life("a", now - 5 * DAY_MS), now, set([named(life("b", now - DAY_MS))])));
    assert_eq!(coherence.relevant(), [life("a", now - 5 * DAY_MS), life("b", now - DAY_MS)]);
    assert!(coherence.is_credible(Incarnation(now)));
    assert!(!coherence.is_credible(Incarnation(now + 2 * DAY_MS)));
}

#[test]
fn what_is_sent_on_fits_a_frame_and_begins_with_those_who_were_met() {
    let (coherence, _clock) = coherence();
    let now = wall(&coherence);
    let per_peer = u64::try_from(NAMED_BY_ONE_MAX).unwrap();
    for peer in 0..5 {
        let lives = (0..per_peer).map(|number| named(life(&format!("a{peer}-{number}"), now)));
        coherence.met(&hello(&life(&format!("z{peer}"), now), now, set(lives)));
    }
    let sent = coherence.members().borrow().clone();
    assert_eq!(sent.members.len(), MEMBERS_MAX);
    let first: Vec<_> = sent.members[..5].iter().map(|member| member.origin.clone()).collect();
    assert_eq!(first, [0, 1, 2, 3, 4].map(|peer| life(&format!("z{peer}"), now)));
    assert!(coherence.hearsay_refused() > 0);
    assert!(coherence.inner.lock().peers.len() <= MEMBERS_MAX + 5, "what was refused costs nothing");
}

#[test]
fn a_lie_about_an_address_is_mended_by_its_owner() {
    let (coherence, _clock) = coherence();
    let now = wall(&coherence);
    coherence.named(&life("liar", now).node, &set([named(life("b", now))]));
    assert_eq!(coherence.addresses(), [at(1)]);
    coherence.met(&hello(&life("b", now), now, MemberSet::default()));
    assert_eq!(coherence.addresses(), [at(2)]);
}

#[test]
fn the_sums_of_what_was_followed_outlive_the_lives() {
    let (coherence, _clock) = coherence();
    let now = wall(&coherence);
    let count = ENDED_KEPT_MAX as u64 + 10;
    for number in 0..count {
        let origin = life(&format!("n{number}"), now);
        coherence.met(&hello(&origin, now, MemberSet::default()));
        coherence.followed(&origin, at(2), Lanes::default()).counts().resets.fetch_add(1, Ordering::Relaxed);
        coherence.inner.lock().freshness.left(&origin);
        coherence.publish();
    }
    let following = coherence.following();
    assert!(following.len() <= ENDED_KEPT_MAX + 1);
    assert_eq!(following.iter().map(|it| it.resets).sum::<u64>(), count);
    assert_eq!(following.last().unwrap().origin, life("me", 0));
}

#[test]
fn whose_place_a_node_has_taken_is_heeded_by_itself_and_said_when_it_meets_the_former_process() {
    let (coherence, _clock) = coherence();
    let now = wall(&coherence);
    let ended = |node: &str, incarnation| NamedMember { ended: true, ..named(life(node, incarnation)) };
    let said = || coherence.members().borrow().members.clone();
    coherence.met(&hello(&life("a", now), now, set([ended("me", now - 9), ended("b", now - 9)])));
    assert_eq!(said()[1..], [ended("me", now - 9)], "what is said of others is theirs to heed");
    coherence
        .named(&life("a", now).node, &set([ended("me", now - 5), ended("me", now), ended("me", now - 7)]));
    assert_eq!(said()[1..], [ended("me", now - 5)], "its own life has not ended because somebody says so");
    assert_eq!(coherence.relevant(), [life("a", now)]);
}

#[test]
fn replaced_lives_are_named_up_to_a_bound_and_the_oldest_go_first() {
    let (coherence, _clock) = coherence();
    let now = wall(&coherence);
    for number in 0..1_000 {
        coherence.replaced(life(&format!("n{number}"), now + number), at(2));
    }
    let said = coherence.members().borrow().members.clone();
    assert_eq!(said.len(), REPLACED_NAMED_MAX);
    assert!(said.iter().all(|member| member.ended && member.origin.incarnation.0 >= now + 1_000 - 64));
    // What counts is when it was replaced, not when it began: the one just told is needed most.
    coherence.replaced(life("never-restarted", 1), at(2));
    let said = coherence.members().borrow().members.clone();
    assert!(said.iter().any(|member| member.origin == life("never-restarted", 1)), "{said:?}");
}

#[test]
fn no_single_peers_clock_makes_a_life_of_the_far_future_credible() {
    let (coherence, _clock) = coherence();
    let now = wall(&coherence);
    let meet = |node: &str, wall_ms| coherence.met(&hello(&life(node, now), wall_ms, MemberSet::default()));
    meet("a", now);
    meet("liar", u64::MAX);
    let far = Incarnation(now + 2 * DAY_MS);
    assert!(!coherence.is_credible(far) && coherence.is_credible(Incarnation(now + DAY_MS)));
    // This node's own clock may be the one that is wrong.
    meet("b", now + 5 * DAY_MS);
    assert!(coherence.is_credible(far));
    meet("b", now);
    assert!(!coherence.is_credible(far), "what a peer says counts as it said it last");
}

/// Lets two of them exchange their member sets.
fn told(listener: &Coherence, speaker: &str, by: &Coherence) {
    listener.named(&NodeId::new(speaker).unwrap(), &by.members().borrow().clone());
}

#[test]
fn who_never_knew_a_life_that_has_ended_takes_a_floor_for_it_from_whoever_knew_it() {
    let (witness, witness_clock) = coherence();
    let (cut_off, clock) = coherence();
    let now = wall(&witness);
    let (victim, peer) = (life("victim", now), life("witness", now));
    // Both are past their own floors.
    for (coherence, manual) in [(&witness, &witness_clock), (&cut_off, &clock)] {
        coherence.met(&hello(&peer, now, MemberSet::default()));
        coherence.inner.lock().freshness.confirmed(&peer, coherence.domain.clock().now());
        coherence.publish();
        manual.advance(coherence.bounds().write_horizon + coherence.bounds().max_staleness);
        coherence.inner.lock().freshness.confirmed(&peer, coherence.domain.clock().now());
        coherence.publish();
        assert!(coherence.doubts().is_empty(), "{:?}", coherence.doubts());
    }
    witness.met(&hello(&victim, now, MemberSet::default()));
    assert!(witness.forget(&victim.node));
    let named: Vec<_> =
        witness.members().borrow().members.iter().map(|it| (it.origin.clone(), it.ended)).collect();
    assert_eq!(named, [(peer.clone(), false), (victim.clone(), false), (victim.clone(), true)]);
    told(&cut_off, "witness", &witness);
    assert_eq!(cut_off.doubts(), [Doubt::UncleanEnd(victim.clone())]);

    let bounds = witness.bounds();
    witness_clock.advance(bounds.write_horizon + bounds.max_staleness);
    witness.publish();
    assert_eq!(witness.relevant(), std::slice::from_ref(&peer));
    let (late, _clock) = coherence();
    told(&late, "witness", &witness);
    assert!(!late.relevant().contains(&victim), "its own floor is still to come");
    witness_clock.advance(bounds.lost_grace);
    witness.publish();
    assert_eq!(witness.members().borrow().members, [NamedMember { address: at(2), ..named_of(&peer) }]);
}

fn named_of(origin: &Origin) -> NamedMember {
    named(origin.clone())
}

#[test]
fn a_life_that_has_said_goodbye_was_replaced_by_nobody_who_could_meet_it() {
    let (coherence, _clock) = coherence();
    let now = wall(&coherence);
    coherence.met(&hello(&life("n1", now), now, MemberSet::default()));
    coherence.inner.lock().freshness.left(&life("n1", now));
    coherence.replaced(life("n1", now), at(2));
    coherence.publish();
    assert!(coherence.members().borrow().members.is_empty());
}

#[test]
fn a_life_that_was_given_up_and_is_named_as_there_is_dialled_and_no_more() {
    let (coherence, clock) = coherence();
    let now = wall(&coherence);
    let (peer, back) = (life("peer", now), life("back", now));
    coherence.met(&hello(&back, now, MemberSet::default()));
    assert!(coherence.forget(&back.node));
    let bounds = coherence.bounds();
    clock.advance(bounds.write_horizon + bounds.max_staleness);
    coherence.publish();
    assert_eq!((coherence.relevant(), coherence.addresses()), (vec![], vec![]));
    coherence.named(&peer.node, &set([named_of(&back)]));
    let addresses = vec![at(2), at(1)];
    assert_eq!((coherence.relevant(), coherence.addresses()), (vec![], addresses), "its own word first");
    // As ended it would be, by whoever has given it up as well.
    clock.advance(bounds.lost_grace);
    coherence.named(&peer.node, &set([named_of(&back), NamedMember { ended: true, ..named_of(&back) }]));
    assert_eq!(coherence.addresses(), []);
    coherence.named(&peer.node, &set([named_of(&back)]));
    coherence.met(&hello(&back, now, MemberSet::default()));
    assert_eq!((coherence.relevant(), coherence.addresses()), (vec![back], vec![at(2)]));
}

#[test]
fn a_life_that_was_given_up_and_is_heard_by_a_member_is_relevant_again() {
    let (coherence, clock) = coherence();
    let now = wall(&coherence);
    let back = life("back", now);
    coherence.met(&hello(&back, now, MemberSet::default()));
    assert!(coherence.forget(&back.node));
    let bounds = coherence.bounds();
    clock.advance(bounds.write_horizon + bounds.max_staleness);
    coherence.publish();
    let seen = |state| {
        let (zone, release) = (String::new(), String::new());
        let record = tidings_membership::Record { origin: back.clone(), address: at(2), zone, release };
        let member = Member { record, state, since: Tick(1) };
        coherence.seen(&View { members: [(back.node.clone(), member)].into(), ..View::default() });
    };
    seen(State::Lost);
    assert_eq!(coherence.relevant(), []);
    // There was a link once, which is down; gossip hears it.
    seen(State::Suspect);
    assert_eq!(coherence.relevant(), std::slice::from_ref(&back));
    clock.advance(bounds.write_horizon + bounds.max_staleness);
    seen(State::Suspect);
    assert!(coherence.doubts().contains(&Doubt::NeverHeard(back.clone())), "{:?}", coherence.doubts());
}

/// Log lines of this thread, for as long as the guard lives.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn of_this_thread() -> (Self, tracing::subscriber::DefaultGuard) {
        let lines = Self::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (lines, tracing::subscriber::set_default(subscriber))
    }

    fn take(&self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.0.lock());
        String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
    }
}

#[test]
fn doubt_is_one_warning_with_its_reasons_however_long_it_lasts_and_one_line_at_its_end() {
    let (coherence, clock) = coherence();
    let (lines, _guard) = Lines::of_this_thread();
    let member = life("a", wall(&coherence));
    coherence.met(&hello(&member, wall(&coherence), MemberSet::default()));
    let hear = |times: usize| {
        for _ in 0..times {
            clock.advance(Duration::from_secs(1));
            let now = coherence.domain.clock().now();
            coherence.inner.lock().freshness.confirmed(&member, now);
            coherence.publish();
        }
    };
    hear(20);
    assert_eq!(coherence.doubts(), []);
    let said = lines.take();
    assert!(said.len() == 1 && said[0].contains("INFO") && said[0].contains("out of doubt"), "{said:?}");

    for _ in 0..50 {
        clock.advance(Duration::from_millis(200));
        coherence.publish();
    }
    assert_eq!(coherence.doubts(), [Doubt::Unheard(member.clone())]);
    let said = lines.take();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("WARN") && said[0].contains("in doubt"), "{said:?}");
    assert!(said[0].contains("Unheard") && said[0].contains('a'), "{said:?}");
    hear(1);
    assert_eq!((coherence.doubts(), lines.take().len()), (vec![], 1));
}

#[test]
fn a_member_whose_log_has_another_number_of_lanes_is_said_once() {
    let (coherence, _clock) = coherence();
    let (lines, _guard) = Lines::of_this_thread();
    let (alike, other) = (life("alike", 1), life("other", 1));
    for _ in 0..3 {
        coherence.followed(&alike, at(1), Lanes::default());
        coherence.followed(&other, at(2), Lanes::new(16).unwrap());
    }
    let said = lines.take();
    assert!(said.len() == 1 && said[0].contains("node=other theirs=16 ours=4"), "{said:?}");
    assert_eq!(coherence.peer(&other).unwrap().lanes, Lanes::new(16));
}

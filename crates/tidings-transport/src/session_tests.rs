//! Sessions of real links, between nodes that apply nothing and remember what they follow.

use std::net::SocketAddr;
use std::sync::OnceLock;

use tidings_proto::event::{EventKind, Operation};
use tidings_proto::frame::{PROTOCOLS, Refusal};
use tidings_proto::hash::{CacheId, HASH_VERSION};
use tidings_proto::id::{FIRST, Incarnation, LogId, NodeId, Slot};
use tidings_proto::log::{Cursor, Retention};
use tidings_proto::record::{Batch, Draft, DraftTarget, Parts};
use tidings_proto::relay::{Acked, PassedUp};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::*;
use crate::{Authority, Config, Host, Identity, NODE_VALIDITY, SessionFuture, Transport};

const CLUSTER: &str = "shop";

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(30);

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn lanes() -> Lanes {
    Lanes::new(1).unwrap()
}

fn lane() -> LaneId {
    lanes().lane(0).unwrap()
}

fn life(node: &str, incarnation: u64) -> Origin {
    Origin { node: node.parse().unwrap(), incarnation: Incarnation(incarnation) }
}

/// A log with one more change.
pub(super) fn change(log: &ChangeLog) {
    let draft = Draft::new(Parts {
        kind: EventKind::Deleted,
        operation: Operation::Remove,
        ignorable: false,
        cache: CacheId(1),
        slot: Slot::new(0).unwrap(),
        version: None,
        metadata: &[],
        value: None,
        target: DraftTarget::Key(b"k"),
    });
    log.append(Slot::new(0).unwrap(), 1, &draft.unwrap()).unwrap().waiters.wake();
}

/// The node behind a transport.
#[derive(Clone)]
struct Face(Arc<Inner>);

struct Inner {
    me: Origin,
    address: OnceLock<SocketAddr>,
    log: ChangeLog,
    herald: Herald,
    relaying: Relaying,
    followed: Mutex<BTreeMap<Origin, Arc<Followed>>>,
    served: Mutex<BTreeMap<Origin, Arc<Served>>>,
    members: watch::Sender<Arc<MemberSet>>,
    caches: watch::Sender<Arc<Vec<String>>>,
    goodbye: watch::Sender<Option<Vec<Sequence>>>,
    /// Each answer takes one.
    answers: Arc<Semaphore>,
    began: Instant,
}

impl Face {
    fn new(node: &str, incarnation: u64) -> Self {
        Self(Arc::new(Inner {
            me: life(node, incarnation),
            address: OnceLock::new(),
            log: ChangeLog::new(lanes(), Retention::default()),
            herald: Herald::new(lanes()),
            relaying: Relaying::default(),
            followed: Mutex::default(),
            served: Mutex::default(),
            members: watch::Sender::default(),
            caches: watch::Sender::default(),
            goodbye: watch::Sender::default(),
            answers: Arc::new(Semaphore::new(0)),
            began: Instant::now(),
        }))
    }

    fn follows(&self, origin: &Origin) -> Arc<Followed> {
        let new = || Arc::new(Followed::new(origin.clone(), lanes()));
        self.0.followed.lock().entry(origin.clone()).or_insert_with(new).clone()
    }

    fn serves(&self, follower: &Origin) -> Arc<Served> {
        let new = || Arc::new(Served::new(lanes(), Arc::default()));
        self.0.served.lock().entry(follower.clone()).or_insert_with(new).clone()
    }

    fn applied(&self, origin: &Origin) -> Sequence {
        self.follows(origin).with(|follower| follower.applied_in(lane()))
    }

    /// Asks for an origin's changes so from now on.
    fn asks(&self, origin: &Origin, sources: &[&Origin]) {
        let sources = sources.iter().map(|source| source.node.clone()).collect();
        let course = Course { followed: self.follows(origin), sources, hops: 2 };
        self.0.relaying.plan(vec![course], |_| false, Peering::now(self));
    }
}

impl Host for Face {
    fn hello(&self) -> Hello {
        Hello {
            protocols: PROTOCOLS,
            cluster: CLUSTER.to_owned(),
            node: self.0.me.node.clone(),
            incarnation: self.0.me.incarnation,
            log: LogId(1),
            hash_version: HASH_VERSION,
            lanes: lanes(),
            address: *self.0.address.get().unwrap(),
            zone: String::new(),
            release: String::new(),
            wall_ms: 0,
            age_ms: 0,
            members: MemberSet::default(),
        }
    }

    fn admit(&self, _: &Hello) -> Result<(), Refusal> {
        Ok(())
    }

    fn refused(&self, _: SocketAddr, refusal: &Refusal) {
        panic!("{refusal}");
    }

    fn session(&self, link: Arc<Link>) -> SessionFuture {
        Box::pin(run(link, Arc::new(self.clone())))
    }

    fn gossip(&self, _: &Hello, _: Bytes) {}

    fn now(&self) -> Tick {
        Tick(1).after(self.0.began.elapsed())
    }
}

impl Peering for Face {
    fn log(&self) -> &ChangeLog {
        &self.0.log
    }

    fn herald(&self) -> &Herald {
        &self.0.herald
    }

    fn relaying(&self) -> &Relaying {
        &self.0.relaying
    }

    fn me(&self) -> Origin {
        self.0.me.clone()
    }

    fn followed_of(&self, origin: &Origin) -> Option<Arc<Followed>> {
        self.0.followed.lock().get(origin).cloned()
    }

    fn served_of(&self, follower: &Origin) -> Option<Arc<Served>> {
        self.0.served.lock().get(follower).cloned()
    }

    fn now(&self) -> Tick {
        Host::now(self)
    }

    fn wall_ms(&self) -> u64 {
        0
    }

    fn probe_interval(&self) -> Duration {
        PROBE_INTERVAL
    }

    fn followed(&self, peer: &Hello) -> Arc<Followed> {
        self.follows(&life(peer.node.as_str(), peer.incarnation.0))
    }

    fn served(&self, peer: &Hello) -> Arc<Served> {
        self.serves(&life(peer.node.as_str(), peer.incarnation.0))
    }

    fn apply(&self, _: &Arc<Origin>, batch: &BatchRef<'_>, _: Sequence) -> Result<Applied, Unsound> {
        Ok(Applied { next: batch.next(), changes: 0 })
    }

    fn fence(&self, _: &Origin, _: Lanes, _: LaneId, _: FenceReason) {}

    fn progressed(&self, _: &Followed) {}

    fn members_of(&self, _: &Origin, _: &MemberSet) {}

    fn clock_of(&self, _: &Origin, _: u64, _: Tick) {}

    fn caches_of(&self, _: &Origin, _: Vec<String>) {}

    fn members(&self) -> watch::Receiver<Arc<MemberSet>> {
        self.0.members.subscribe()
    }

    fn caches(&self) -> watch::Receiver<Arc<Vec<String>>> {
        self.0.caches.subscribe()
    }

    fn goodbye(&self) -> watch::Receiver<Option<Vec<Sequence>>> {
        self.0.goodbye.subscribe()
    }

    fn canary_wanted(&self, _: LaneId, _: Sequence) {}

    fn asked(&self, _: &Hello, _: Topic, question: Bytes) -> BoxFuture<'static, Result<Bytes, Declined>> {
        let answers = self.0.answers.clone();
        Box::pin(async move {
            answers.acquire().await.unwrap().forget();
            Ok(question)
        })
    }

    fn said_goodbye(&self, _: &Origin) {}
}

/// Two nodes with a link.
struct Pair {
    faces: [Face; 2],
    transports: [Transport; 2],
    _heralds: JoinSet<()>,
}

impl Pair {
    async fn linked() -> Self {
        let authority = Authority::generate(CLUSTER).unwrap();
        let faces = [Face::new("one", 1), Face::new("two", 1)];
        let transports = faces.each_ref().map(|face| {
            let node: NodeId = face.0.me.node.clone();
            let issued = authority.issue(&node, &[], NODE_VALIDITY).unwrap();
            let identity = Identity::from_pem(authority.ca_pem(), &issued.cert_pem, &issued.key_pem).unwrap();
            let listen = "127.0.0.1:0".parse().unwrap();
            let config = Config { cluster: CLUSTER.to_owned(), node, listen, identity, denied: vec![] };
            let transport = Transport::bind(config, Arc::new(face.clone())).unwrap();
            face.0.address.set(transport.local_addr()).unwrap();
            transport
        });
        let mut heralds = JoinSet::new();
        for face in faces.clone() {
            heralds.spawn(async move { face.0.herald.run(&face, false).await });
        }
        transports[0].want(transports[1].local_addr());
        let pair = Self { faces, transports, _heralds: heralds };
        until("linked", || pair.link(0).is_some() && pair.link(1).is_some()).await;
        pair
    }

    /// The link of one of them.
    fn link(&self, of: usize) -> Option<Arc<Link>> {
        self.transports[of].link(&self.faces[1 - of].0.me.node)
    }

    async fn close(self) {
        for transport in self.transports {
            transport.close(Duration::from_secs(2)).await;
        }
    }
}

#[tokio::test]
async fn a_lane_that_another_link_has_asked_for_later_is_asked_for_again_by_the_current_one() {
    let pair = Pair::linked().await;
    let [one, two] = &pair.faces;
    change(&one.0.log);
    until("followed", || two.applied(&one.0.me) == 1).await;
    // As one that had just ceased to be the current one would, and ends without having followed.
    let followed = two.follows(&one.0.me);
    let (asked, _) = followed.state.lock().follow(lane());
    followed.requests.lock()[0].newest = Some(asked);
    change(&one.0.log);
    until("followed on", || two.applied(&one.0.me) == 2).await;
    pair.close().await;
}

#[tokio::test]
async fn a_relay_that_did_not_serve_an_origin_is_asked_again_when_its_turn_comes() {
    let pair = Pair::linked().await;
    let [relay, follower] = &pair.faces;
    let (origin, log) = (life("origin", 1), ChangeLog::new(lanes(), Retention::default()));
    follower.asks(&origin, &[&relay.0.me, &origin]);
    let followed = follower.follows(&origin);
    until("who does not relay is left", || followed.source() == origin.node).await;
    // It has come to hold the origin's first change.
    change(&log);
    let mut batches: Vec<Batch> = Vec::new();
    log.read(lane(), &mut Cursor { next: FIRST }, 1, &mut batches);
    let held = relay.follows(&origin);
    {
        let mut state = held.state.lock();
        let (attempt, _) = state.follow(lane());
        state.on_resume(lane(), attempt, FIRST).unwrap();
        state.applied(lane(), attempt, FIRST + 1);
    }
    relay.0.relaying.turn(true, || Peering::now(relay));
    relay.0.relaying.hold(held.origin(), batches.remove(0));
    assert_eq!(follower.applied(&origin), 0);
    // The origin itself cannot be reached.
    let later = Peering::now(follower).after(Duration::from_secs(5));
    assert!(follower.0.relaying.pass(later, |_| false));
    assert_eq!(followed.source(), relay.0.me.node);
    until("the relay serves it now", || follower.applied(&origin) == FIRST).await;
    pair.close().await;
}

#[tokio::test]
async fn a_link_is_used_while_the_peer_follows_a_lane_or_waits_for_an_answer() {
    let pair = Pair::linked().await;
    let [one, two] = &pair.faces;
    let used = || pair.link(0).is_some_and(|link| link.is_used());
    until("its lanes are followed", used).await;
    two.asks(&one.0.me, &[&life("relay", 1), &one.0.me]);
    until("nothing is followed here", || !used()).await;
    let link = pair.link(1).unwrap();
    let mut asking = JoinSet::new();
    asking.spawn(async move { link.ask(Topic::Audit, b"?", PATIENCE).await.unwrap() });
    until("an answer is waited for", used).await;
    one.0.answers.add_permits(1);
    assert_eq!(asking.join_next().await.unwrap().unwrap().as_ref(), b"?");
    until("nobody waits any more", || !used()).await;
    pair.close().await;
}

#[test]
fn what_is_passed_up_counts_for_the_life_that_it_is_about() {
    let (me, other) = (Face::new("one", 2), life("other", 1));
    let (near, far) = (life("near", 1), life("far", 1));
    let (served, followed) = (me.serves(&near), me.follows(&other));
    // Its former life may be there, too, to be followed to its end.
    let former = me.follows(&life("one", 1));
    let acked = |follower: &Origin| Acked { follower: follower.clone(), lane: lane(), applied: 1 };
    let pass_up = |origin: &Origin, follower: &Origin| {
        let passed = PassedUp { members: 0, origin: origin.clone(), acked: vec![acked(follower)] };
        control::take_passed_up(&me, passed);
    };
    change(&me.0.log);
    served.resumes(lane(), FIRST);
    pass_up(former.origin(), &near);
    assert_eq!((served.lag(&[1]), served.is_proven()), (1, false), "the former life's log was another one");
    pass_up(&me.0.me, &far);
    assert!(me.served_of(&far).is_none(), "nobody becomes a member by it");
    pass_up(&me.0.me, &near);
    assert_eq!((served.lag(&[1]), served.is_proven()), (0, true));
    pass_up(&other, &far);
    assert_eq!(me.0.relaying.take(&followed, None, 9), [], "a node that does not relay passes nothing on");
    me.0.relaying.turn(true, || Peering::now(&me));
    pass_up(former.origin(), &far);
    pass_up(&other, &far);
    assert_eq!(me.0.relaying.take(&followed, None, 9), [acked(&far)]);
    assert_eq!(me.0.relaying.take(&former, None, 9), []);
}

#[test]
fn what_is_passed_up_about_a_lane_that_is_not_there_goes_nowhere() {
    let (me, other, near) = (Face::new("one", 2), life("other", 1), life("near", 1));
    let (_served, followed) = (me.serves(&near), me.follows(&other));
    me.0.relaying.turn(true, || Peering::now(&me));
    // As a peer's bytes may say it.
    let lane: LaneId = tidings_proto::codec::decode(&[200]).unwrap();
    for origin in [&me.0.me, &other] {
        let acked = vec![Acked { follower: near.clone(), lane, applied: 1 }];
        control::take_passed_up(&me, PassedUp { members: 0, origin: origin.clone(), acked });
    }
    assert_eq!(me.0.relaying.take(&followed, None, 9), []);
}

//! A server that is far away.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidings_streams::nats::{Config, Nats};
use tidings_streams::{
    Action, ClaimRequest, Delivered, Driver, GroupError, NewEvent, Outcome, Page, PublishError, Retention,
    Settlement, Start, StoreError, Topic, TopicSettings,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::server::Server;
use super::{PATIENCE, connect, name, request, settings, texts};

/// Events that nobody settles: more than are given up at a time.
const MANY: usize = 100;

/// How long what is said is under way. A dead letter takes two ways, and an event one.
const PAUSE: Duration = Duration::from_millis(12);

/// The same where a dead letter takes so long that only some of those given up at a time are stored in a call.
const LONG_PAUSE: Duration = Duration::from_millis(60);

/// Events that are given up at a time.
const GIVEN_UP: u64 = 64;

/// What a call has: less than the dead letters of all take, more than those of some.
const CALL: Duration = Duration::from_secs(2);

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, pause: Duration) {
    let mut said = vec![0; 65_536];
    while let Ok(length @ 1..) = from.read(&mut said).await {
        tokio::time::sleep(pause).await;
        if to.write_all(&said[..length]).await.is_err() {
            return;
        }
    }
}

/// Passes on what is said to a server, late. What a connection is told once it is `deaf` nobody hears, and it ends.
async fn pass_on(listener: TcpListener, server: String, (pause, deaf): (Duration, Arc<AtomicBool>)) {
    let address = server.trim_start_matches("nats://").to_owned();
    let mut ways = tokio::task::JoinSet::new();
    while let Ok((here, _)) = listener.accept().await {
        let there = TcpStream::connect(&address).await.expect("the server is there");
        let ((mut hears, answers), (heard, says)) = (here.into_split(), there.into_split());
        let deaf = Arc::clone(&deaf);
        ways.spawn(async move {
            let mut says = says;
            let saying = async {
                let mut said = vec![0; 65_536];
                while let Ok(length @ 1..) = hears.read(&mut said).await {
                    if deaf.load(Ordering::Relaxed) && said[..length].windows(4).any(|text| text == b"lost") {
                        deaf.store(false, Ordering::Relaxed);
                        return;
                    }
                    tokio::time::sleep(pause).await;
                    if says.write_all(&said[..length]).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = saying => {}
                () = pass(heard, answers, Duration::ZERO) => {}
            }
        });
    }
}

fn topic(text: &str) -> Topic {
    let once = TopicSettings {
        max_deliveries: NonZeroU32::MIN,
        min_idle_time: Duration::from_millis(1),
        ..settings()
    };
    Topic { name: name(text), settings: once.into() }
}

async fn claim(store: &Nats, topic: &Topic) -> Result<(), GroupError> {
    let request = ClaimRequest { consumer: name("c2"), max: MANY, min_idle: Duration::ZERO };
    store.claim(topic, &name("g"), request).await.map(drop)
}

async fn letters(store: &Nats) -> u64 {
    store.dead_letter_count().await.expect("they can be counted")
}

#[tokio::test]
async fn however_many_are_given_up_each_call_comes_further() {
    let server = Server::start().await;
    let near = connect(&server.url()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a port");
    let url = format!("nats://{}", listener.local_addr().expect("it is bound"));
    let way = pass_on(listener, server.url(), (PAUSE, Arc::default()));
    let calls = async {
        let far = Nats::connect(&url, Config { timeout: CALL, ..Config::default() }).await;
        let (far, group) = (far.expect("the server is there"), name("g"));
        for (number, how) in (1..).zip(["receive", "claim", "maintain"]) {
            let topic = topic(how);
            near.create_group(&topic, &group, Start::Earliest).await.expect("it is made");
            near.publish(&topic, vec![NewEvent::new("a"); MANY]).await.expect("it is published");
            let taken = near.receive(&topic, &group, request("c1", MANY, PATIENCE)).await;
            assert_eq!(taken.expect("it is there").len(), MANY);
            tokio::time::sleep(Duration::from_millis(5)).await;
            while letters(&near).await < number * MANY as u64 {
                let done = match how {
                    "receive" => {
                        far.receive(&topic, &group, request("c2", 1, Duration::ZERO)).await.map(drop)
                    }
                    "claim" => claim(&far, &topic).await,
                    _ => far.maintain(&topic).await.map(drop).map_err(GroupError::from),
                };
                // On a machine that is busy one may come to its end, and has done some of it all the same.
                let is_late = matches!(done, Err(GroupError::Store(StoreError::Unreachable(_))));
                assert!(is_late || done.is_ok(), "by {how}: {done:?}");
            }
            let pending = near.pending(&topic, &group, None, MANY).await.expect("it is there");
            assert!(pending.is_empty(), "{} are left", pending.len());
        }
        far.close().await.expect("it closes");
    };
    tokio::select! {
        () = way => panic!("the way to the server ends"),
        called = timeout(PATIENCE * 2, calls) => called.expect("it comes no further"),
    }
    near.close().await.expect("it closes");
}

#[tokio::test]
async fn of_an_ordered_topic_nothing_is_stored_without_what_comes_before_it() {
    let server = Server::start().await;
    let near = connect(&server.url()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a port");
    let url = format!("nats://{}", listener.local_addr().expect("it is bound"));
    let deaf = Arc::<AtomicBool>::default();
    let way = pass_on(listener, server.url(), (PAUSE, Arc::clone(&deaf)));
    let calls = async {
        let far = Nats::connect(&url, Config { timeout: CALL, ..Config::default() }).await;
        let far = far.expect("the server is there");
        let ordered = TopicSettings { ordered: true, ..settings() };
        let topic = Topic { name: name("orders"), settings: ordered.into() };
        let event = |text: &str| NewEvent::new(text.to_owned()).key("k");
        far.publish(&topic, vec![event("a")]).await.expect("it is published");
        deaf.store(true, Ordering::Relaxed);
        let batch: Vec<_> =
            ["b", "lost"].into_iter().map(event).chain((0..500).map(|_| event("late"))).collect();
        let refused = far.publish(&topic, batch).await;
        assert!(
            matches!(refused, Err(PublishError::Store(StoreError::Unreachable(_)))),
            "answered {refused:?}"
        );
        far.close().await.expect("it closes");
        let group = name("g");
        near.create_group(&topic, &group, Start::Earliest).await.expect("it is made");
        let mut stored = Vec::new();
        loop {
            let taken = near.receive(&topic, &group, request("c1", 1, Duration::ZERO)).await;
            let taken = taken.expect("it can be asked");
            let Some(one) = taken.first() else { break };
            super::ack(&near, &topic, one).await.expect("it is heard");
            stored.extend(texts(&taken));
        }
        assert_eq!(stored, ["a", "b"]);
    };
    tokio::select! {
        () = way => panic!("the way to the server ends"),
        called = timeout(PATIENCE, calls) => called.expect("it ends"),
    }
    near.close().await.expect("it closes");
}

#[tokio::test]
async fn a_batch_of_one_key_is_stored_however_far_away_the_server_is() {
    /// Longer under way, one behind the other, than a call waits for an answer.
    const EVENTS: usize = 200;
    const KEPT: usize = 10;
    let server = Server::start().await;
    let near = connect(&server.url()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a port");
    let url = format!("nats://{}", listener.local_addr().expect("it is bound"));
    let way = pass_on(listener, server.url(), (PAUSE, Arc::default()));
    let calls = async {
        let far = Nats::connect(&url, Config { timeout: CALL, ..Config::default() }).await;
        let far = far.expect("the server is there");
        let retention = Retention { max_events: Some(KEPT as u64), ..Retention::default() };
        let ordered = TopicSettings { ordered: true, retention, ..settings() };
        let topic = Topic { name: name("orders"), settings: ordered.into() };
        let batch = (0..EVENTS).map(|number| NewEvent::new(number.to_string()).key("k")).collect();
        let begun = tokio::time::Instant::now();
        let published = far.publish(&topic, batch).await.expect("it is published");
        assert!(begun.elapsed() > CALL, "it takes too little to say anything");
        assert!(published.windows(2).all(|two| two[0].id < two[1].id), "they are in another order");
        let page = near.read(&topic, &Page { limit: EVENTS, ..Page::default() }).await;
        let kept = page.expect("it can be read").events;
        let kept = kept.iter().map(|event| String::from_utf8_lossy(&event.payload).into_owned());
        let newest: Vec<String> = (EVENTS - KEPT..EVENTS).map(|number| number.to_string()).collect();
        assert_eq!(kept.collect::<Vec<_>>(), newest, "its retention is applied, too");
        far.close().await.expect("it closes");
    };
    tokio::select! {
        () = way => panic!("the way to the server ends"),
        called = timeout(PATIENCE, calls) => called.expect("it ends"),
    }
    near.close().await.expect("it closes");
}

/// Has a group with events that were taken, and that nobody settles.
async fn spent(near: &Nats, topic: &Topic) -> Vec<Delivered> {
    let group = name("g");
    near.create_group(topic, &group, Start::Earliest).await.expect("it is made");
    near.publish(topic, vec![NewEvent::new("a"); MANY]).await.expect("it is published");
    let taken = near.receive(topic, &group, request("c1", MANY, PATIENCE)).await.expect("it is there");
    assert_eq!(taken.len(), MANY);
    tokio::time::sleep(Duration::from_millis(5)).await;
    taken
}

/// On a machine that is busy a call may come to its end, and has done some of it all the same.
fn in_time<T>(done: Result<T, GroupError>) -> Option<T> {
    match done {
        Err(GroupError::Store(StoreError::Unreachable(_))) => None,
        done => Some(done.expect("it is heard")),
    }
}

#[tokio::test]
async fn who_settles_waits_for_no_dead_letters_of_others() {
    let server = Server::start().await;
    let near = connect(&server.url()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a port");
    let url = format!("nats://{}", listener.local_addr().expect("it is bound"));
    let way = pass_on(listener, server.url(), (LONG_PAUSE, Arc::default()));
    let calls = async {
        let far = Nats::connect(&url, Config { timeout: CALL, ..Config::default() }).await;
        let (far, topic) = (far.expect("the server is there"), topic("orders"));
        let taken = spent(&near, &topic).await;
        for _ in 0..2 {
            in_time(claim(&far, &topic).await);
            let pending = near.pending(&topic, &name("g"), None, MANY).await.expect("it is there");
            let unstored = MANY as u64 - pending.len() as u64 - letters(&near).await;
            assert!(unstored <= GIVEN_UP, "{unstored} are given up before others are stored");
        }
        let last = taken.last().expect("there are many");
        let action = Action::Fail { reason: "it fails".to_owned() };
        let word = Settlement { id: last.event.id, tag: Some(last.tag), action };
        let heard = far.settle(&topic, &name("g"), vec![word]).await.expect("it is heard");
        assert!(matches!(heard[..], [Outcome::Buried(_)]), "answered {heard:?}");
        far.close().await.expect("it closes");
    };
    tokio::select! {
        () = way => panic!("the way to the server ends"),
        called = timeout(PATIENCE, calls) => called.expect("it ends"),
    }
    near.close().await.expect("it closes");
}

#[tokio::test]
async fn who_does_not_want_to_wait_gets_what_there_is_before_all_is_given_up() {
    let server = Server::start().await;
    let near = connect(&server.url()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a port");
    let url = format!("nats://{}", listener.local_addr().expect("it is bound"));
    let way = pass_on(listener, server.url(), (LONG_PAUSE, Arc::default()));
    let calls = async {
        let far = Nats::connect(&url, Config { timeout: CALL, ..Config::default() }).await;
        let (far, topic) = (far.expect("the server is there"), topic("orders"));
        spent(&near, &topic).await;
        near.publish(&topic, vec![NewEvent::new("new")]).await.expect("it is published");
        let taken = loop {
            let taken = far.receive(&topic, &name("g"), request("c2", 1, Duration::ZERO)).await;
            if let Some(taken) = in_time(taken) {
                break taken;
            }
        };
        assert_eq!(texts(&taken), ["new"]);
        let stored = letters(&near).await;
        assert!((1..MANY as u64).contains(&stored), "{stored} are stored");
        far.close().await.expect("it closes");
    };
    tokio::select! {
        () = way => panic!("the way to the server ends"),
        called = timeout(PATIENCE, calls) => called.expect("it ends"),
    }
    near.close().await.expect("it closes");
}

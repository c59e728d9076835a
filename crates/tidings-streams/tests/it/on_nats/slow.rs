//! A server that is far away.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidings_streams::nats::{Config, Nats};
use tidings_streams::{ClaimRequest, Driver, GroupError, NewEvent, Start, Topic, TopicSettings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::server::Server;
use super::{PATIENCE, connect, name, request, settings};

/// Events that nobody settles: several times as many as are given up at a time.
const MANY: usize = 240;

/// How long what is said is under way.
const PAUSE: Duration = Duration::from_millis(6);

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
async fn pass_on(listener: TcpListener, server: String, deaf: Arc<AtomicBool>) {
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
                    tokio::time::sleep(PAUSE).await;
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
    let way = pass_on(listener, server.url(), Arc::default());
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
                    "receive" => far.receive(&topic, &group, request("c2", 1, Duration::ZERO)).await.map(drop),
                    "claim" => claim(&far, &topic).await,
                    _ => far.maintain(&topic).await.map(drop).map_err(GroupError::from),
                };
                done.expect("it has time enough for some");
            }
            let pending = near.pending(&topic, &group, None, MANY).await.expect("it is there");
            assert!(pending.is_empty(), "{} are left", pending.len());
        }
        far.close().await.expect("it closes");
    };
    tokio::select! {
        () = way => panic!("the way to the server ends"),
        called = timeout(PATIENCE, calls) => called.expect("it comes no further"),
    }
    near.close().await.expect("it closes");
}

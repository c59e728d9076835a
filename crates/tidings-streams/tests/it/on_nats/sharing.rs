//! Several processes of a service that share groups: whoever writes first, all come to the same state.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tidings_streams::nats::{Config, Nats};
use tidings_streams::{
    Action, DeadLetterFilter, DeadLetterPage, Driver, EventId, GroupError, NewEvent, Outcome, Retention,
    Settlement, Start, TopicSettings, TrimMode,
};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::server::Server;
use super::{PATIENCE, ack, connect, name, publish, request, settings, texts, topic};

/// Long enough for nobody to be late.
const IDLE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn no_two_processes_take_one_event() {
    const EVENTS: usize = 400;
    let server = Server::start().await;
    let topic = topic(TopicSettings { min_idle_time: IDLE, ..settings() });
    let store = connect(&server.url()).await;
    store.create_group(&topic, &name("g"), Start::Earliest).await.expect("it is made");
    let mut processes = JoinSet::new();
    for process in 0..3 {
        let (topic, url) = (topic.clone(), server.url());
        processes.spawn(async move {
            // Where others keep writing a call may come too late for long.
            let config = Config { timeout: PATIENCE, ..Config::default() };
            let store = Nats::connect(&url, config).await.expect("the server is there");
            let mut acked = Vec::new();
            loop {
                let request = request(&format!("c{process}"), 3, Duration::from_secs(3));
                let taken = store.receive(&topic, &name("g"), request).await.expect("it is there");
                if taken.is_empty() {
                    store.close().await.expect("it closes");
                    return acked;
                }
                for one in &taken {
                    assert_eq!(one.tag.attempt, 1, "{} comes again", one.event.id);
                    assert_eq!(ack(&store, &topic, one).await.expect("it is heard"), Outcome::Acked);
                    acked.push(one.event.id);
                }
            }
        });
    }
    for number in 0..EVENTS / 4 {
        let text = number.to_string();
        publish(&store, &topic, &[text.as_str(); 4]).await;
    }
    let mut times = BTreeMap::<EventId, usize>::new();
    while let Some(acked) = timeout(PATIENCE, processes.join_next()).await.expect("they end") {
        acked.expect("it ends well").into_iter().for_each(|id| *times.entry(id).or_default() += 1);
    }
    assert_eq!(times.len(), EVENTS);
    assert!(times.values().all(|times| *times == 1), "{times:?}");
    // A journal that was cut says what the whole one would.
    let fresh = connect(&server.url()).await;
    let groups = fresh.groups(&topic).await.expect("they can be listed");
    assert_eq!((groups[0].lag, groups[0].pending), (0, 0));
    let mut stream = server.jetstream().await.get_stream("tidings+groups").await.expect("it is there");
    let records = stream.info().await.expect("it can be asked").state.messages;
    // Acknowledgements alone were more.
    assert!(records < EVENTS as u64, "the journal has {records} records");
    for store in [fresh, store] {
        store.close().await.expect("it closes");
    }
}

#[tokio::test]
async fn who_waits_is_woken_by_what_other_processes_do() {
    let server = Server::start().await;
    let (here, there) = (connect(&server.url()).await, connect(&server.url()).await);
    let topic = topic(TopicSettings { ordered: true, ..settings() });
    let group = name("g");
    here.create_group(&topic, &group, Start::Earliest).await.expect("it is made");
    let waits = || here.receive(&topic, &group, request("c1", 1, PATIENCE * 2));
    // What is new.
    let publishing = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        publish(&there, &topic, &["a", "b", "c"]).await;
    };
    let (first, ()) = timeout(PATIENCE, async { tokio::join!(waits(), publishing) }).await.expect("it waits");
    let first = first.expect("it is there");
    assert_eq!(texts(&first), ["a"]);
    // What was there, and waited for another of its key.
    let settling = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        ack(&there, &topic, &first[0]).await.expect("it is heard")
    };
    let (second, outcome) =
        timeout(PATIENCE, async { tokio::join!(waits(), settling) }).await.expect("it waits");
    let second = second.expect("it is there");
    assert_eq!((texts(&second), outcome), (vec!["b".to_owned()], Outcome::Acked));
    ack(&here, &topic, &second[0]).await.expect("it is heard");
    // What a pause held back.
    here.set_paused(&topic, &group, true).await.expect("it is there");
    let resuming = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        there.set_paused(&topic, &group, false).await.expect("it is there");
    };
    let (third, ()) = timeout(PATIENCE, async { tokio::join!(waits(), resuming) }).await.expect("it waits");
    assert_eq!(texts(&third.expect("it is there")), ["c"]);
    for store in [here, there] {
        store.close().await.expect("it closes");
    }
}

#[tokio::test]
async fn who_waits_learns_that_the_group_is_gone() {
    let server = Server::start().await;
    let (store, other) = (connect(&server.url()).await, connect(&server.url()).await);
    let (topic, group) = (topic(settings()), name("g"));
    store.create_group(&topic, &group, Start::Earliest).await.expect("it is made");
    let removing = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        other.remove_group(&topic, &group).await.expect("it can be removed")
    };
    let waiting = store.receive(&topic, &group, request("c1", 1, PATIENCE * 2));
    let (received, removed) =
        timeout(PATIENCE, async { tokio::join!(waiting, removing) }).await.expect("it waits");
    assert!(removed && matches!(received, Err(GroupError::Unknown)), "answered {received:?}");
    // What was known of it here counts for nothing where it is made again.
    other.create_group(&topic, &group, Start::Earliest).await.expect("it is made");
    publish(&other, &topic, &["a"]).await;
    let taken = store.receive(&topic, &group, request("c1", 1, PATIENCE)).await.expect("it is there");
    assert_eq!(texts(&taken), ["a"]);
    for store in [store, other] {
        store.close().await.expect("it closes");
    }
}

/// What a process leaves that ends between giving an event up and storing its dead letter.
async fn leave_a_grave(server: &Server, store: &Nats, topic: &tidings_streams::Topic) -> EventId {
    let group = name("g");
    store.create_group(topic, &group, Start::Earliest).await.expect("it is made");
    publish(store, topic, &["a", "b"]).await;
    let taken = store.receive(topic, &group, request("c1", 1, Duration::ZERO)).await.expect("it is there");
    let id = taken[0].event.id;
    let record = format!(
        r#"[{{"Bury":{{"stream":"dead_letter","burial":{{"id":{id},"attempts":1,"consumer":"c1",
           "failure":{{"first":1,"last":2,"error":"it fails"}}}}}}}}]"#
    );
    let context = server.jetstream().await;
    let sent = context.publish("tidings.group.orders.g", record.into()).await.expect("it is sent");
    sent.await.expect("it is stored");
    id
}

#[tokio::test]
async fn what_a_process_gave_up_before_it_ended_is_buried_once_by_another() {
    let server = Server::start().await;
    let one = TopicSettings { max_deliveries: NonZeroU32::MIN, min_idle_time: IDLE, ..settings() };
    let topic = topic(one);
    let (store, other) = (connect(&server.url()).await, connect(&server.url()).await);
    let id = leave_a_grave(&server, &store, &topic).await;
    // Nothing takes it from whoever buries it.
    let nothing = Retention { max_events: Some(0), ..Retention::default() };
    let trimmed = other.trim(&topic, &nothing, TrimMode::default()).await;
    assert_eq!(trimmed.expect("it can be trimmed").removed, 0);
    let group = name("g");
    let (here, there) = tokio::join!(
        store.receive(&topic, &group, request("c1", 1, Duration::ZERO)),
        other.receive(&topic, &group, request("c2", 1, Duration::ZERO)),
    );
    let taken = [here.expect("it is there"), there.expect("it is there")].concat();
    assert_eq!(texts(&taken), ["b"], "what was given up is delivered");
    let page = DeadLetterPage { limit: 10, ..DeadLetterPage::default() };
    let letters = store.dead_letters(&page).await.expect("they can be read").letters;
    assert_eq!(letters.iter().map(|letter| letter.event.id).collect::<Vec<_>>(), [id]);
    let word = Settlement { id, tag: None, action: Action::Fail { reason: "late".to_owned() } };
    let outcomes = other.settle(&topic, &group, vec![word]).await.expect("it is heard");
    assert_eq!(outcomes, [Outcome::Unknown]);
    for store in [store, other] {
        store.close().await.expect("it closes");
    }
}

#[tokio::test]
async fn a_dead_letter_that_was_retried_is_not_buried_again() {
    let server = Server::start().await;
    let one = TopicSettings { max_deliveries: NonZeroU32::MIN, min_idle_time: IDLE, ..settings() };
    let topic = topic(one);
    let store = Arc::new(connect(&server.url()).await);
    leave_a_grave(&server, &store, &topic).await;
    store.maintain(&topic).await.expect("it is maintained");
    let page = DeadLetterPage { filter: DeadLetterFilter::default(), limit: 10, after: None };
    let letters = store.dead_letters(&page).await.expect("they can be read").letters;
    assert_eq!(letters.len(), 1);
    // Two at once publish it once.
    let again = {
        let (store, id) = (Arc::clone(&store), letters[0].id);
        async move { store.retry(id).await }
    };
    let (here, there) = tokio::join!(store.retry(letters[0].id), again);
    let new = here.or(there).expect("one of them is heard");
    store.maintain(&topic).await.expect("it is maintained");
    assert_eq!(store.dead_letter_count().await.expect("they can be counted"), 0);
    let taken = store.receive(&topic, &name("g"), request("c1", 10, Duration::ZERO)).await;
    let taken = taken.expect("it is there");
    assert_eq!(texts(&taken), ["b", "a"]);
    assert_eq!(taken[1].event.id, new);
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn names_and_bytes_of_all_kinds_come_back() {
    let server = Server::start().await;
    let config = Config { prefix: "shop_1-a".to_owned(), ..Config::default() };
    let store = Nats::connect(&server.url(), config).await.expect("the server is there");
    let mut wanted = Vec::new();
    for text in ["orders.created", "заказы.новые", "..", "注文:v2", &"я".repeat(40)] {
        let topic = tidings_streams::Topic { name: name(text), ..topic(settings()) };
        let group = name(text);
        store.create_group(&topic, &group, Start::Earliest).await.expect("it is made");
        let event = NewEvent::new((0..=255).collect::<Vec<u8>>()).key("\r\n").idempotency_key("\0 ключ\n");
        let first = store.publish(&topic, vec![event.clone()]).await.expect("it is published");
        let again = store.publish(&topic, vec![event.clone()]).await.expect("it is published");
        assert!(again[0].duplicate && again[0].id == first[0].id, "{text}: {again:?}");
        let taken = store.receive(&topic, &group, request(text, 9, PATIENCE)).await.expect("it is there");
        assert_eq!((&taken[0].event.payload, taken.len()), (&event.payload, 1), "{text}");
        assert_eq!(taken[0].event.key, event.key);
        let groups = store.groups(&topic).await.expect("they can be listed");
        assert_eq!(groups.iter().map(|group| group.name.clone()).collect::<Vec<_>>(), [group]);
        wanted.push(topic.name);
    }
    wanted.sort();
    assert_eq!(store.topics().await.expect("they can be listed"), wanted);
    store.close().await.expect("it closes");
}

//! Joining, crashing, returning, leaving.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tidings_membership::{Config, Membership, Reason, RenewError, Resolver, StartError, State, View};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{CLUSTER, Keyed, Net, record, state, within};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn three_members_find_each_other_through_one_seed() {
    let net = Net::default();
    let records = [record("a", 1), record("b", 1), record("c", 1)];
    let started = Instant::now();
    let [a, b, c] = net.cluster(&records).await;
    println!("converged in {:?}", started.elapsed());
    assert!(started.elapsed() <= 4 * SECOND, "{:?}", started.elapsed());
    let seen: Vec<_> = c.view().members.values().map(|member| member.record.clone()).collect();
    assert_eq!(seen, records[..2]);
    for member in [a, b, c] {
        for reason in
            [Reason::Forged, Reason::Heartbeat, Reason::Operation, Reason::Malformed, Reason::Capacity]
        {
            assert_eq!(member.stats().rejected(reason), 0, "{}", reason.name());
        }
        member.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_crashed_member_is_lost_within_six_seconds() {
    let net = Net::default();
    let records = [record("a", 1), record("b", 1), record("c", 1)];
    let [a, b, c] = net.cluster(&records).await;
    sleep(30 * SECOND).await;
    drop(c);
    net.cut(&records[2]);
    for member in [&a, &b] {
        let took = within(6 * SECOND, member, |view| state(view, &records[2]) == Some(State::Lost)).await;
        println!("lost in {took:?}");
    }
    assert_eq!(state(&a.view(), &records[1]), Some(State::Live));
}

#[tokio::test(start_paused = true)]
async fn a_returned_member_replaces_its_former_life() {
    let net = Net::default();
    let records = [record("a", 1), record("b", 1), record("c", 1)];
    let [a, b, c] = net.cluster(&records).await;
    c.shutdown().await;
    let next = record("c", 2);
    let c = net.start(&next, &[&records[0]]).await;
    for member in [&a, &b] {
        let took = within(4 * SECOND, member, |view| state(view, &next) == Some(State::Live)).await;
        println!("returned in {took:?}");
        within(6 * SECOND, member, |view| state(view, &records[2]) == Some(State::Lost)).await;
        assert_eq!(member.view().members[&next.origin.node].record, next);
        assert!(member.view().former.contains_key(&records[2].origin));
    }
    within(4 * SECOND, &c, |view| {
        view.members.values().filter(|member| member.state == State::Live).count() == 2
    })
    .await;

    assert!(a.forget(&records[2].origin));
    sleep(20 * SECOND).await;
    assert_eq!(state(&a.view(), &records[2]), None, "gossip does not name it again");
    assert_eq!(state(&a.view(), &next), Some(State::Live));
    assert_eq!(state(&b.view(), &records[2]), Some(State::Lost), "others keep it named");
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_is_known_to_everybody_when_leave_returns() {
    let net = Net::default();
    let records = [record("a", 1), record("b", 1), record("c", 1), record("d", 1)];
    let [a, b, c, d] = net.cluster(&records).await;
    sleep(30 * SECOND).await;
    let started = Instant::now();
    d.leave().await;
    println!("goodbye took {:?}", started.elapsed());
    assert!(started.elapsed() < SECOND / 2);
    for member in [&a, &b, &c] {
        assert_eq!(state(&member.view(), &records[3]), Some(State::Left));
    }
    assert!(matches!(d.renew().await, Err(RenewError::Closed)));
    d.leave().await;
    d.shutdown().await;
    sleep(30 * SECOND).await;
    assert_eq!(state(&a.view(), &records[3]), Some(State::Left));
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_does_not_wait_for_who_cannot_hear_it() {
    let net = Net::default();
    let records = [record("a", 1), record("b", 1), record("c", 1)];
    let [a, _b, c] = net.cluster(&records).await;
    net.cut(&records[1]);
    let started = Instant::now();
    c.leave().await;
    assert_eq!(started.elapsed(), SECOND / 2);
    assert_eq!(state(&a.view(), &records[2]), Some(State::Left));
}

#[tokio::test(start_paused = true)]
async fn a_healed_cut_of_any_length_is_noticed_within_four_seconds() {
    for length in [10, 60, 1_000] {
        let net = Net::default();
        let records = [record("a", 1), record("b", 1), record("c", 1)];
        let [a, b, c] = net.cluster(&records).await;
        net.cut(&records[2]);
        within(6 * SECOND, &a, |view| state(view, &records[2]) == Some(State::Lost)).await;
        within(6 * SECOND, &c, |view| view.members.values().all(|member| member.state == State::Lost)).await;
        sleep(length * SECOND).await;
        net.heal();
        for (member, other) in [(&a, &records[2]), (&b, &records[2]), (&c, &records[0]), (&c, &records[1])] {
            let took = within(4 * SECOND, member, |view| state(view, other) == Some(State::Live)).await;
            println!("cut of {length} s healed in {took:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_member_is_doubted_in_ten_minutes_at_a_fifth_of_loss() {
    let net = Net::default();
    let records = [record("a", 1), record("b", 1), record("c", 1), record("d", 1), record("e", 1)];
    let members = net.cluster(&records).await;
    net.lose(20);
    let mut watches: Vec<_> = members.iter().map(|member| member.watch()).collect();
    watches.iter_mut().for_each(|watch| watch.mark_unchanged());
    sleep(600 * SECOND).await;
    for (watch, member) in watches.iter().zip(&members) {
        assert!(!watch.has_changed().unwrap(), "{:#?}", member.view());
    }
}

#[tokio::test(start_paused = true)]
async fn gossip_is_fast_for_ten_seconds_after_a_change_and_slow_again_later() {
    let net = Net::default();
    let records = [record("a", 1), record("b", 1), record("c", 1)];
    let [a, _b, _c] = net.cluster(&records).await;
    sleep(15 * SECOND).await;
    let rate = async || {
        let (before, bytes) = (net.frames(), a.stats().sent_bytes());
        sleep(8 * SECOND).await;
        ((net.frames() - before) / 8, (a.stats().sent_bytes() - bytes) / 8)
    };
    let (slow, slow_bytes) = rate().await;
    a.link_up(records[1].clone());
    let (fast, _) = rate().await;
    sleep(10 * SECOND).await;
    let (again, _) = rate().await;
    println!(
        "frames per second of three: slow {slow} ({slow_bytes} bytes of one), fast {fast}, slow again {again}"
    );
    assert!(slow <= 20 && again <= slow + 5 && fast > slow + 15, "{slow} {fast} {again}");
}

#[tokio::test(start_paused = true)]
async fn what_links_show_outranks_gossip() {
    let net = Net::default();
    let records = [record("a", 1), record("b", 1)];
    let a = net.start(&records[0], &[]).await;
    a.link_up(records[1].clone());
    assert_eq!(state(&a.view(), &records[1]), Some(State::Live));
    let took = within(2 * SECOND, &a, |view| state(view, &records[1]) == Some(State::Suspect)).await;
    assert_eq!(took, Duration::from_millis(1_500), "a silent link is noticed by itself");
    assert!(a.link_heard(&records[1].origin), "its link is known");
    assert_eq!(state(&a.view(), &records[1]), Some(State::Live));
    a.link_down(&records[1].origin);
    assert_eq!(state(&a.view(), &records[1]), Some(State::Suspect));
    within(6 * SECOND, &a, |view| state(view, &records[1]) == Some(State::Lost)).await;
    a.left(&records[1].origin);
    assert_eq!(state(&a.view(), &records[1]), Some(State::Left));
}

#[tokio::test(start_paused = true)]
async fn a_superseded_node_is_told() {
    let net = Net::default();
    let records = [record("a", 1), record("b", 1)];
    let [a, b] = net.cluster(&records).await;
    let mut later = record("b", 2);
    later.address.set_port(9_999);
    let _b2 = net.start(&later, &[&records[0]]).await;
    within(4 * SECOND, &b, |view| view.superseded_by.as_ref() == Some(&later)).await;
    within(4 * SECOND, &a, |view| view.former.len() == 1 && view.members[&later.origin.node].record == later)
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_renewed_record_reaches_members_and_joiners() {
    let net = Net::default();
    let records = [record("a", 1), record("b", 1)];
    let [a, b] = net.cluster(&records).await;
    b.renew().await.unwrap();
    sleep(3 * SECOND).await;
    b.shutdown().await;
    let c = net.start(&record("c", 1), &[&records[0]]).await;
    within(4 * SECOND, &c, |view| view.life(&records[1].origin).is_some()).await;
    assert_eq!(a.stats().rejected(Reason::Forged), 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_after_shutdown_or_after_the_last_handle_is_dropped() {
    for polite in [true, false] {
        let net = Net::default();
        let records = [record("a", 1), record("b", 1)];
        let members = net.cluster(&records).await;
        for member in members {
            if polite {
                let other = member.clone();
                member.shutdown().await;
                timeout(SECOND, other.leave()).await.unwrap();
            } else {
                drop(member);
            }
        }
        tokio::task::yield_now().await;
        let sent = net.frames();
        sleep(10 * SECOND).await;
        assert_eq!(net.frames(), sent);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go_in_real_time_on_several_threads() {
    let net = Net::default();
    let records = [record("a", 1), record("b", 1), record("c", 1)];
    let mut members = Vec::new();
    for me in &records {
        let mut config = Config::new(CLUSTER, me.clone());
        config.gossip_interval = SECOND / 20;
        config.seeds = vec!["localhost:1".into(), records[0].address.to_string()];
        members.push(net.start_with(config).await);
    }
    let all =
        |wanted: State| move |view: &View| view.members.values().filter(|m| m.state == wanted).count() == 2;
    for member in &members {
        within(20 * SECOND, member, all(State::Live)).await;
    }
    for leaver in &members[1..] {
        leaver.leave().await;
    }
    within(20 * SECOND, &members[0], all(State::Left)).await;
    for member in members {
        timeout(20 * SECOND, member.shutdown()).await.unwrap();
    }
}

#[tokio::test]
async fn unusable_configurations_are_refused_with_the_reason() {
    let check = async |change: fn(&mut Config), expected: &str| {
        let me = record("a", 1);
        let net = Net::default();
        let mut config = Config::new(CLUSTER, me.clone());
        change(&mut config);
        let attestor = Arc::new(Keyed { node: me.origin.node.clone(), secret: "secret" });
        let error: StartError = Membership::start(config, net.seam(&me), attestor).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    };
    check(|config| config.cluster = "a b".into(), "cluster name").await;
    check(|config| config.seeds = vec!["n1".into()], "\"n1\" is not host:port").await;
    check(|config| config.me.address.set_port(0), "10.0.0.1:0 cannot be advertised").await;
    check(|config| config.me.address.set_ip([0, 0, 0, 0].into()), "0.0.0.0").await;
    check(|config| config.me.zone = "z".repeat(129), "128 bytes").await;
    check(|config| config.gossip_interval = Duration::ZERO, "interval").await;
}

/// As on a node's own runtime: what hangs there holds up what else runs there, and its end.
#[test]
fn a_name_server_that_does_not_answer_delays_neither_other_work_nor_the_end() {
    let (go, wait) = std::sync::mpsc::sync_channel::<()>(1);
    let wait = parking_lot::Mutex::new(wait);
    let resolver = Resolver::with(move |name| {
        if name.starts_with("hung") {
            let _ = wait.lock().recv();
        }
        Ok(vec![SocketAddr::from(([10, 0, 0, 9], 9))])
    });
    let (done, ended) = std::sync::mpsc::sync_channel(1);
    let node = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        runtime.block_on(async {
            let net = Net::default();
            let mut config = Config::new(CLUSTER, record("a", 1));
            config.seeds = vec!["hung-1:1".into(), "hung-2:1".into(), "sound:1".into()];
            config.resolver = resolver;
            let member = net.start_with(config).await;
            within(20 * SECOND, &member, |view| view.seeds.len() == 1).await;
            timeout(20 * SECOND, tokio::task::spawn_blocking(|| ())).await.unwrap().unwrap();
            timeout(20 * SECOND, member.shutdown()).await.unwrap();
        });
        drop(runtime);
        done.send(()).unwrap();
    });
    ended.recv_timeout(60 * SECOND).unwrap();
    drop(go);
    node.join().unwrap();
}

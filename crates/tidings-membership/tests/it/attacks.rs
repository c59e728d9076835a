//! What an authenticated peer can say that must change nothing.

use std::sync::Arc;
use std::time::Duration;

use chitchat::{ChitchatMessage, Deserializable as _};
use tidings_membership::{Config, Membership, Reason, Record, State};
use tokio::time::sleep;

use crate::support::forge::{self, Entry};
use crate::support::{Keyed, Net, record, state, within};

const SECOND: Duration = Duration::from_secs(1);

/// Three members; `c` is the one that lies, besides behaving as a member should.
async fn cluster(net: &Net) -> ([Record; 3], [Membership; 3]) {
    let records = [record("a", 1), record("b", 1), record("c", 1)];
    let members = net.cluster(&records).await;
    sleep(20 * SECOND).await;
    (records, members)
}

/// Sends a frame from `c` to `a` again and again, and checks that neither `a` nor anybody else sees a change.
async fn changes_nothing(net: &Net, records: &[Record; 3], members: &[Membership; 3], frame: &[u8]) {
    assert!(ChitchatMessage::deserialize(&mut &frame[..]).is_ok(), "chitchat itself would take it");
    let mut watches: Vec<_> = members.iter().map(Membership::watch).collect();
    watches.iter_mut().for_each(|watch| watch.mark_unchanged());
    for _ in 0..30 {
        net.inject(&records[2], records[0].address, frame.to_vec());
        sleep(SECOND).await;
    }
    for (watch, member) in watches.iter().zip(members) {
        assert!(!watch.has_changed().unwrap(), "{:#?}", member.view());
    }
}

/// That `a` still notices the end of `b`, and its return.
async fn still_notices(net: &Net, records: &[Record; 3], members: &[Membership; 3]) {
    net.cut(&records[1]);
    within(6 * SECOND, &members[0], |view| state(view, &records[1]) == Some(State::Lost)).await;
    net.heal();
    within(4 * SECOND, &members[0], |view| state(view, &records[1]) == Some(State::Live)).await;
}

#[tokio::test(start_paused = true)]
async fn a_forged_syn_ack_neither_kills_a_member_nor_adds_one() {
    let net = Net::default();
    let (records, members) = cluster(&net).await;
    let fake = record("fake", 1);
    // The version that was collected resets what is known of b; the heartbeat silences it.
    let mut operations = forge::set(&records[1], 1_000, "1AAAA", 1_001, 0);
    operations.extend(forge::set(&fake, 0, "1AAAA", 1, 0));
    let frame = forge::syn_ack(&[Entry(&records[1], u64::MAX, 1_001), Entry(&fake, 1, 1)], &operations);
    changes_nothing(&net, &records, &members, &frame).await;
    let stats = members[0].stats();
    for (reason, count) in [(Reason::Heartbeat, 30), (Reason::Unattested, 30), (Reason::Operation, 90)] {
        assert!(stats.rejected(reason) >= count, "{}: {}", reason.name(), stats.rejected(reason));
    }
    still_notices(&net, &records, &members).await;
}

#[tokio::test(start_paused = true)]
async fn a_forged_heartbeat_does_not_silence_a_member() {
    for heartbeat in [u64::MAX, u64::MAX - 1, 1 << 40, 50_000] {
        let net = Net::default();
        let (records, members) = cluster(&net).await;
        let entries = [Entry(&records[1], heartbeat, 1), Entry(&records[0], u64::MAX, 1)];
        changes_nothing(&net, &records, &members, &forge::syn("demo", &entries)).await;
        if heartbeat > 1 << 32 {
            assert!(members[0].stats().rejected(Reason::Heartbeat) >= 30);
        }
        still_notices(&net, &records, &members).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_forged_before_a_member_is_there_does_not_silence_it() {
    let net = Net::default();
    let (records, members) = cluster(&net).await;
    members[1].clone().shutdown().await;
    let next = record("b", 2);
    let b = net.start(&next, &[&records[0]]).await;
    for _ in 0..100 {
        net.inject(&records[2], records[0].address, forge::syn("demo", &[Entry(&next, 1 << 39, 1)]));
        sleep(SECOND / 20).await;
    }
    within(4 * SECOND, &members[0], |view| state(view, &next) == Some(State::Live)).await;
    let mut views = members[0].watch();
    within(6 * SECOND, &members[0], |view| state(view, &records[1]) == Some(State::Lost)).await;
    views.mark_unchanged();
    sleep(60 * SECOND).await;
    assert!(!views.has_changed().unwrap(), "{:#?}", members[0].view());
    b.shutdown().await;
}

/// While a member cannot be reached, nothing stands against another's claim to its address.
#[tokio::test(start_paused = true)]
async fn who_claims_to_be_at_a_members_address_cannot_silence_it() {
    let net = Net::default();
    let (records, members) = cluster(&net).await;
    let thief = Record { address: records[1].address, ..records[2].clone() };
    net.inject(&thief, records[0].address, forge::syn("demo", &[Entry(&records[1], u64::MAX, 1)]));
    sleep(SECOND).await;
    assert!(members[0].stats().rejected(Reason::Heartbeat) > 0, "not its own word");
    let mut views = members[0].watch();
    views.mark_unchanged();
    sleep(60 * SECOND).await;
    assert!(!views.has_changed().unwrap(), "{:#?}", members[0].view());
    still_notices(&net, &records, &members).await;
}

#[tokio::test(start_paused = true)]
async fn a_forged_record_of_a_third_member_changes_nothing() {
    let net = Net::default();
    let (records, members) = cluster(&net).await;
    let moved = Record { address: "10.9.9.9:1".parse().unwrap(), ..records[1].clone() };
    for (version, status) in [(2, 0), (u64::MAX, 0), (2, 1), (u64::MAX, 2)] {
        for about in [&records[0], &records[1], &moved, &record("b", 2)] {
            for value in ["", "1AAAA", "not a record"] {
                net.inject(
                    &records[2],
                    records[0].address,
                    forge::ack(&forge::set(about, 0, value, version, status)),
                );
            }
        }
    }
    changes_nothing(&net, &records, &members, &forge::ack(&forge::set(&records[1], 0, "1AAAA", u64::MAX, 0)))
        .await;
    // Whoever joins now learns the true record from a.
    members[1].clone().shutdown().await;
    net.cut(&records[2]);
    let d = net.start(&record("d", 1), &[&records[0]]).await;
    within(4 * SECOND, &d, |view| {
        view.life(&records[1].origin).is_some_and(|known| known.record == records[1])
    })
    .await;
    assert_eq!(members[0].stats().rejected(Reason::Malformed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_signs_for_another_is_not_believed() {
    let records = [record("a", 1), record("b", 1), record("c", 1)];
    let moved = Record { address: "10.9.9.9:1".parse().unwrap(), ..records[1].clone() };
    for claimed in [record("b", 2), moved, record("fake", 1)] {
        let net = Net::default();
        let members = net.cluster(&records).await;
        let mut watches: Vec<_> = members.iter().map(Membership::watch).collect();
        watches.iter_mut().for_each(|watch| watch.mark_unchanged());
        // It speaks the whole protocol, from an address of its own.
        let liar = record("liar", 1);
        let mut config = Config::new("demo", claimed.clone());
        config.seeds = records.iter().map(|record| record.address.to_string()).collect();
        let attestor = Keyed { node: claimed.origin.node.clone(), secret: "guess" };
        let liar = Membership::start(config, net.seam(&liar), Arc::new(attestor)).await.unwrap();
        sleep(60 * SECOND).await;
        for (watch, member) in watches.iter().zip(&members) {
            assert!(!watch.has_changed().unwrap(), "{:#?}", member.view());
            assert!(member.stats().rejected(Reason::Forged) > 0);
        }
        liar.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_old_record_does_not_bring_a_member_back_that_has_left() {
    let net = Net::default();
    let (records, members) = cluster(&net).await;
    members[1].leave().await;
    assert_eq!(state(&members[0].view(), &records[1]), Some(State::Left));
    let mut views = members[0].watch();
    views.mark_unchanged();
    members[1].clone().shutdown().await;
    sleep(300 * SECOND).await;
    assert!(!views.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn gossip_of_another_cluster_changes_nothing_and_is_not_answered() {
    let net = Net::default();
    let (records, members) = cluster(&net).await;
    for frame in [forge::syn("other", &[Entry(&records[1], u64::MAX, 9)]), forge::bad_cluster()] {
        let before = members[0].stats().rejected(Reason::Cluster);
        changes_nothing(&net, &records, &members, &frame).await;
        assert_eq!(members[0].stats().rejected(Reason::Cluster), before + 30);
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_that_are_no_gossip_are_counted_and_gossip_goes_on() {
    let net = Net::default();
    let (records, members) = cluster(&net).await;
    let mut views = members[0].watch();
    views.mark_unchanged();
    let sound = forge::syn("demo", &[Entry(&records[1], 5, 1)]);
    let mut sent = 0;
    for length in 0..sound.len() {
        net.inject(&records[2], records[0].address, sound[..length].to_vec());
        sent += 1;
    }
    net.inject(&records[2], records[0].address, vec![0xff; 70_000]);
    sleep(60 * SECOND).await;
    assert!(!views.has_changed().unwrap());
    assert_eq!(members[0].stats().rejected(Reason::Malformed), sent);
    assert_eq!(members[0].stats().rejected(Reason::FrameSize), 1);
}

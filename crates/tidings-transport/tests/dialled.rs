//! Whom a node does not keep company with although it has dialled them: they are judged before anything is said.
#![allow(clippy::unwrap_used, reason = "a step that fails fails its test")]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::intruder::{ServerWithoutTls13, lure, lurer, self_signed, server, signed, sound, uri};
use common::*;
use rcgen::ExtendedKeyUsagePurpose;
use tidings_proto::frame::Refusal;
use tidings_transport::{Authority, BroadcastError, RefusedReason};
use time::OffsetDateTime;

const ALPN: &str = "tidings/1/shop";

#[tokio::test]
async fn a_dialled_peer_is_judged_as_well() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let stranger = start(&Authority::generate(CLUSTER).unwrap(), "n2", 1, loopback());
    let denied = start(&authority, "n3", 1, loopback());
    let node = start_denying(&authority, "n1", 1, loopback(), &["n3".to_owned()]);
    node.transport.want(stranger.address());
    until("stranger refused", || node.refused(RefusedReason::UnknownCa) > 0).await;
    node.transport.unwant(stranger.address());
    node.transport.want(denied.address());
    until("denied refused", || node.refused(RefusedReason::Denied) > 0).await;
    until("denied told", || denied.told().contains(&Refusal::Denied)).await;
    assert!(node.host.admitted.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_a_dialled_peer_shows_is_judged_before_anything_is_said() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let other = Authority::generate(CLUSTER).unwrap();
    let spoilt = |spoil: fn(&mut rcgen::CertificateParams)| {
        let mut params = sound(CLUSTER, "n2");
        spoil(&mut params);
        signed(&authority, &params)
    };
    let expired = |params: &mut rcgen::CertificateParams| {
        params.not_after = OffsetDateTime::now_utc() - Duration::from_secs(1)
    };
    let early = |params: &mut rcgen::CertificateParams| {
        params.not_before = OffsetDateTime::now_utc() + Duration::from_secs(600)
    };
    let usage = |params: &mut rcgen::CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]
    };
    let nobody = |params: &mut rcgen::CertificateParams| params.subject_alt_names.truncate(1);
    let elsewhere =
        |params: &mut rcgen::CertificateParams| params.subject_alt_names[1] = uri("spiffe://mall/node/n2");
    let nameless = |params: &mut rcgen::CertificateParams| drop(params.subject_alt_names.remove(0));
    let cases = [
        (signed(&other, &sound(CLUSTER, "n2")), RefusedReason::UnknownCa),
        (self_signed(&sound(CLUSTER, "n2")), RefusedReason::UnknownCa),
        (spoilt(expired), RefusedReason::Expired),
        (spoilt(early), RefusedReason::NotYetValid),
        (spoilt(usage), RefusedReason::WrongEku),
        (spoilt(nobody), RefusedReason::WrongSan),
        (spoilt(nameless), RefusedReason::WrongSan),
        (spoilt(elsewhere), RefusedReason::WrongCluster),
        (signed(&authority, &sound(CLUSTER, "n9")), RefusedReason::Denied),
    ];
    for (shown, reason) in cases {
        dialled(&authority, Arc::new(server(shown, ALPN)), reason).await;
    }
    let sound_server = || server(signed(&authority, &sound(CLUSTER, "n2")), ALPN);
    let no_tls_13 = Arc::new(ServerWithoutTls13(Arc::new(sound_server())));
    dialled(&authority, no_tls_13, RefusedReason::TlsVersion).await;
    let other_protocol = server(signed(&authority, &sound(CLUSTER, "n2")), "tidings/1/mall");
    let node = start(&authority, "n1", 1, loopback());
    let endpoint = lurer(Arc::new(other_protocol));
    node.transport.want(endpoint.local_addr().unwrap());
    // It is the server who says so.
    assert_eq!(lure(&endpoint).await, 0);
    until("refused", || node.transport.stats().broadcast_errors(BroadcastError::Refused) > 0).await;
    // And a sound one is spoken to, so that silence means something.
    let node = start(&authority, "n3", 1, loopback());
    let endpoint = lurer(Arc::new(sound_server()));
    node.transport.want(endpoint.local_addr().unwrap());
    assert!(lure(&endpoint).await > 0);
}

/// Lets a fresh node dial a server that it must refuse.
async fn dialled(authority: &Authority, crypto: Arc<dyn quinn::crypto::ServerConfig>, reason: RefusedReason) {
    let node = start_denying(authority, "n1", 1, loopback(), &["n9".to_owned()]);
    let endpoint = lurer(crypto);
    node.transport.want(endpoint.local_addr().unwrap());
    assert_eq!(lure(&endpoint).await, 0, "{reason:?}: something was said");
    until(reason.as_str(), || node.refused(reason) > 0).await;
    assert_eq!(node.transport.stats().refused_total(), node.refused(reason), "{reason:?}");
    assert!(node.host.admitted.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_process_that_was_replaced_gives_way_to_its_successor_when_it_wakes() {
    let authority = Authority::generate(CLUSTER).unwrap();
    for former_dials in [true, false] {
        let (hub, former) = (start(&authority, "n1", 1, loopback()), start(&authority, "n2", 1, loopback()));
        former.transport.want(hub.address());
        until("linked", || hub.linked_to(&former) && former.linked_to(&hub)).await;
        former.transport.unwant(hub.address());
        former.host.mute.store(true, Ordering::SeqCst);
        let successor = start(&authority, "n2", 2, loopback());
        successor.transport.want(hub.address());
        until("replaced", || successor.linked_to(&hub) && former.transport.links().is_empty()).await;
        let (dialler, target) = if former_dials { (&former, &successor) } else { (&successor, &former) };
        dialler.transport.want(target.address());
        until("told", || !former.told().is_empty()).await;
        dialler.transport.unwant(target.address());
        assert_eq!(former.told()[0], Refusal::DuplicateNode { node: id("n2"), address: successor.address() });
        assert!(successor.told().is_empty(), "{:?}", successor.told());
        assert!(successor.linked_to(&hub));
    }
}

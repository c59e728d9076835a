use std::fs;

use super::*;
use crate::attest::{Attestation, AttestationError};
use crate::authority::{Issued, NODE_VALIDITY};
use crate::stats::RefusedReason;

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn identity(authority: &Authority, issued: &Issued) -> Identity {
    Identity::from_pem(authority.ca_pem(), &issued.cert_pem, &issued.key_pem).unwrap()
}

fn issue(authority: &Authority, name: &str) -> Issued {
    authority.issue(&node(name), &[], NODE_VALIDITY).unwrap()
}

#[test]
fn an_identity_is_read_from_files_and_read_again() {
    let authority = Authority::generate("shop").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let [ca, cert, key] = ["ca.pem", "n1.pem", "n1.key"].map(|name| directory.path().join(name));
    let write = |issued: &Issued| {
        fs::write(&ca, authority.ca_pem()).unwrap();
        fs::write(&cert, &issued.cert_pem).unwrap();
        fs::write(&key, &issued.key_pem).unwrap();
    };
    write(&issue(&authority, "n1"));
    let identity = Identity::from_pem_files(&ca, &cert, &key).unwrap();
    let serial = identity.info().unwrap().serial;

    write(&issue(&authority, "n1"));
    identity.reload().unwrap();
    let reloaded = identity.info().unwrap().serial;
    assert_ne!(reloaded, serial);

    write(&issue(&authority, "n2"));
    assert!(
        matches!(identity.reload(), Err(IdentityError::OtherNode { node: other, .. }) if other == node("n2"))
    );
    fs::remove_file(&key).unwrap();
    assert!(matches!(identity.reload(), Err(IdentityError::Read { path, .. }) if path == key));
    assert_eq!(identity.info().unwrap().serial, reloaded, "a failed reload changes nothing");
}

#[test]
fn unusable_files_are_refused_with_the_reason() {
    let authority = Authority::generate("shop").unwrap();
    let other = Authority::generate("shop").unwrap();
    let (one, two) = (issue(&authority, "n1"), issue(&authority, "n2"));
    let read = Identity::from_pem;
    assert!(matches!(
        read("", &one.cert_pem, &one.key_pem),
        Err(IdentityError::NoCertificate("authority's file"))
    ));
    assert!(matches!(
        read(authority.ca_pem(), "", &one.key_pem),
        Err(IdentityError::NoCertificate("node's file"))
    ));
    assert!(matches!(read(authority.ca_pem(), &one.cert_pem, ""), Err(IdentityError::NoKey)));
    assert!(matches!(read(authority.ca_pem(), &one.cert_pem, &two.key_pem), Err(IdentityError::Key(_))));
    assert!(matches!(
        read(other.ca_pem(), &one.cert_pem, &one.key_pem),
        Err(IdentityError::Unacceptable(webpki::Error::UnknownIssuer))
    ));
    assert!(matches!(
        read(authority.ca_pem(), authority.ca_pem(), &authority.key_pem()),
        Err(IdentityError::NoNode)
    ));
    let now = time::OffsetDateTime::now_utc();
    let (begin, end) = (now - Duration::from_secs(60), now - Duration::from_secs(1));
    let expired = authority.issue_between(&node("n1"), &[], (begin, end)).unwrap();
    assert!(matches!(
        read(authority.ca_pem(), &expired.cert_pem, &expired.key_pem),
        Err(IdentityError::Unacceptable(webpki::Error::CertExpired { .. }))
    ));
}

#[test]
fn an_identity_is_bound_to_its_node_and_cluster() {
    let authority = Authority::generate("shop").unwrap();
    let identity = identity(&authority, &issue(&authority, "n1"));
    assert!(identity.of_node("shop", &node("n1")).is_ok());
    assert!(matches!(identity.of_node("shop", &node("n2")), Err(IdentityError::OtherNode { .. })));
    assert!(matches!(identity.of_node("mall", &node("n1")), Err(IdentityError::OtherNode { .. })));
}

#[test]
fn identities_for_development_trust_each_other_within_a_cluster() {
    let unbound = Identity::development();
    assert!(matches!(unbound.info(), Err(IdentityError::Unbound)));
    assert!(matches!(unbound.sign(b"x"), Err(AttestationError::Own(IdentityError::Unbound))));
    let one = unbound.of_node("shop", &node("n1")).unwrap();
    let two = Identity::development().of_node("shop", &node("n2")).unwrap();
    let elsewhere = Identity::development().of_node("mall", &node("n2")).unwrap();
    let proof = one.sign(b"statement").unwrap();
    two.verify(&node("n1"), b"statement", &proof).unwrap();
    assert!(matches!(
        elsewhere.verify(&node("n1"), b"statement", &proof),
        Err(AttestationError::Name(RefusedReason::WrongCluster))
    ));
}

#[test]
fn secrets_outlive_a_restart_and_are_each_nodes_own() {
    let authority = Authority::generate("shop").unwrap();
    let (one, two) = (issue(&authority, "n1"), issue(&authority, "n2"));
    let secret = |identity: Identity| identity.credentials().unwrap().secret;
    assert_eq!(secret(identity(&authority, &one)), secret(identity(&authority, &one)));
    assert_ne!(secret(identity(&authority, &one)), secret(identity(&authority, &two)));
    let development = |name| secret(Identity::development().of_node("shop", &node(name)).unwrap());
    assert_eq!(development("n1"), development("n1"));
    assert_ne!(development("n1"), development("n2"));
}

#[test]
fn only_the_nodes_own_statement_is_believed() {
    let authority = Authority::generate("shop").unwrap();
    let one = identity(&authority, &issue(&authority, "n1"));
    let two = identity(&authority, &issue(&authority, "n2"));
    let proof = one.sign(b"n1 is at 10.0.0.1").unwrap();
    two.verify(&node("n1"), b"n1 is at 10.0.0.1", &proof).unwrap();

    let verify =
        |claimed: &str, statement: &[u8], proof: &Attestation| two.verify(&node(claimed), statement, proof);
    assert!(matches!(verify("n1", b"n1 is at 10.0.0.2", &proof), Err(AttestationError::Signature(_))));
    let claimed = verify("n2", b"n1 is at 10.0.0.1", &proof);
    assert!(matches!(claimed, Err(AttestationError::OtherNode(signer)) if signer == node("n1")));
    let mixed = Attestation { cert: two.sign(b"").unwrap().cert, ..proof };
    assert!(matches!(verify("n2", b"n1 is at 10.0.0.1", &mixed), Err(AttestationError::Signature(_))));

    let mallory = Authority::generate("shop").unwrap();
    let forged = identity(&mallory, &issue(&mallory, "n1")).sign(b"x").unwrap();
    assert!(matches!(verify("n1", b"x", &forged), Err(AttestationError::Certificate(_))));
    let nonsense = Attestation { cert: vec![1, 2, 3].into(), signature: vec![].into() };
    let refused = verify("n1", b"x", &nonsense);
    assert!(matches!(refused, Err(AttestationError::Name(RefusedReason::BadCertificate))), "{refused:?}");
}

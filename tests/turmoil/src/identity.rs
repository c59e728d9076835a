//! Certificates that are the same for every run of a seed: gossip compresses them, so each of their bits decides
//! about lengths. Ed25519, for the length of other signatures depends on chance.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber, date_time_ymd,
};
use tidings::Identity;

use crate::chance::Chance;

/// One for each node of a cluster.
pub(crate) fn identities(cluster: &str, nodes: &[String], chance: &mut Chance) -> Vec<Identity> {
    let authority_key = key(chance);
    let mut authority = params("authority", 1);
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca = authority.self_signed(&authority_key).expect("sound parameters").pem();
    let issuer = Issuer::from_params(&authority, &authority_key);
    let issue = |(number, node): (usize, &String)| {
        let key = key(chance);
        let mut leaf = params(node, 2 + number as u8);
        let dns = format!("{cluster}.tidings.internal").try_into().expect("a DNS name");
        let uri = format!("spiffe://{cluster}/node/{node}").try_into().expect("ASCII");
        leaf.subject_alt_names = vec![SanType::DnsName(dns), SanType::URI(uri)];
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert = leaf.signed_by(&key, &issuer).expect("sound parameters").pem();
        Identity::from_pem(&ca, &cert, &key.serialize_pem()).expect("a certificate of a node")
    };
    nodes.iter().enumerate().map(issue).collect()
}

/// What precedes the seed of an Ed25519 key in PKCS #8 (RFC 8410).
const PKCS8: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// A key of the simulation's chance: the library that makes keys asks the kernel itself.
fn key(chance: &mut Chance) -> KeyPair {
    let mut key = PKCS8.to_vec();
    key.extend((0..32).map(|_| chance.next() as u8));
    KeyPair::try_from(key).expect("a seed is a key")
}

fn params(name: &str, serial: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from_slice(&[serial]));
    // They are judged by the machine's time, whatever time it is in the simulation.
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2049, 1, 1));
    params
}

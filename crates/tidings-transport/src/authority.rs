//! The certificate authority of one cluster: makes and reads the certificates that nodes identify themselves by.
//!
//! A node's certificate carries one constant DNS name per cluster, which the stock verifier checks, and exactly
//! one URI, `spiffe://<cluster>/node/<node-id>`, which says who it is.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ED25519, SanType, SerialNumber,
};
use ring::digest::{SHA256, digest};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, DnsName};
use tidings_proto::id::{InvalidName, NodeId, check_name};
use time::OffsetDateTime;

use crate::der::{self, Fields};

/// How long an authority's own certificate is valid: ten years. Its key has to be replaced before that.
pub const AUTHORITY_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// How long a node's certificate is valid unless something else is asked for: ninety days.
pub const NODE_VALIDITY: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// A certificate is valid from this long before it was made, so that a node whose clock is behind accepts it.
const CLOCK_SLACK: Duration = Duration::from_secs(5 * 60);

/// Bytes of a random serial number: unique without a register of those given out.
const SERIAL_BYTES: usize = 16;

const SUBJECT_PREFIX: &str = "tidings authority of cluster ";

/// A certificate authority could not be made or read, or could not issue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// Not a valid cluster name.
    #[error("cluster name")]
    Cluster(#[source] InvalidName),
    /// The cluster's name cannot be part of a DNS name: its labels must be 1 to 63 long and not end with a hyphen.
    #[error("cluster name {0:?} cannot be part of a DNS name")]
    ClusterDns(String),
    /// An additional name for a certificate is neither an IP address nor a DNS name.
    #[error("{0:?} is neither an IP address nor a DNS name")]
    Name(String),
    /// The PEM text holds no certificate.
    #[error("no certificate in PEM form")]
    Pem,
    /// The certificate is not one that [`Authority::generate`] made.
    #[error("not the certificate of a tidings authority")]
    Foreign,
    /// The private key is not the one of the certificate.
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
    /// The key cannot be read, or the certificate cannot be made.
    #[error("certificate or key")]
    Certificate(#[source] rcgen::Error),
}

/// A certificate and its private key, both as PEM text.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub cert_pem: String,
    /// The private key. Whoever has it is the node.
    pub key_pem: String,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

/// The certificate authority of one cluster.
pub struct Authority {
    cluster: String,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    params: CertificateParams,
    key: KeyPair,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new authority for a cluster, with a key of its own.
    ///
    /// # Errors
    /// [`AuthorityError::Cluster`] or [`AuthorityError::ClusterDns`] if the name will not do.
    pub fn generate(cluster: &str) -> Result<Self, AuthorityError> {
        Self::with_key(cluster, generate_key()?)
    }

    /// The authority whose certificate and key these are.
    ///
    /// # Errors
    /// [`AuthorityError::Foreign`] if the certificate was not made by [`Authority::generate`],
    /// [`AuthorityError::KeyMismatch`] if the key is another's, and whatever else keeps them from being read.
    pub fn from_pem(ca_pem: &str, key_pem: &str) -> Result<Self, AuthorityError> {
        let certificate =
            CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|_| AuthorityError::Pem)?;
        let fields = der::fields(&certificate).ok_or(AuthorityError::Pem)?;
        let cluster = cluster_of(&fields.subject).ok_or(AuthorityError::Foreign)?;
        let key = KeyPair::from_pem(key_pem).map_err(AuthorityError::Certificate)?;
        let parsed = webpki::anchor_from_trusted_cert(&certificate).map_err(|_| AuthorityError::Foreign)?;
        let mut made = Self::with_key(cluster, key)?;
        let own = webpki::anchor_from_trusted_cert(&made.certificate).map_err(|_| AuthorityError::Foreign)?;
        if own.subject_public_key_info != parsed.subject_public_key_info {
            return Err(AuthorityError::KeyMismatch);
        }
        if own.subject != parsed.subject {
            return Err(AuthorityError::Foreign);
        }
        made.certificate = certificate;
        made.certificate_pem = ca_pem.to_owned();
        Ok(made)
    }

    /// The authority of a cluster with a given key: the same key gives an interchangeable authority.
    pub(crate) fn with_key(cluster: &str, key: KeyPair) -> Result<Self, AuthorityError> {
        dns_name(cluster)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, subject(cluster, &key));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(random_serial());
        (params.not_before, params.not_after) = validity_from_now(AUTHORITY_VALIDITY);
        let certificate = params.self_signed(&key).map_err(AuthorityError::Certificate)?;
        Ok(Self {
            cluster: cluster.to_owned(),
            certificate_pem: certificate.pem(),
            certificate: certificate.der().clone(),
            params,
            key,
        })
    }

    /// The cluster that it speaks for.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Its certificate, which every node of the cluster trusts.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Its private key. Whoever has it can be any node of the cluster.
    #[must_use]
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// A certificate and a new key for a node, valid from now. `sans` are additional IP addresses or DNS names,
    /// for those who look at certificates; tidings itself goes by the node id.
    ///
    /// # Errors
    /// [`AuthorityError::Name`] for an unusable additional name.
    pub fn issue(
        &self,
        node: &NodeId,
        sans: &[String],
        validity: Duration,
    ) -> Result<Issued, AuthorityError> {
        self.issue_between(node, sans, validity_from_now(validity))
    }

    pub(crate) fn issue_between(
        &self,
        node: &NodeId,
        sans: &[String],
        (not_before, not_after): (OffsetDateTime, OffsetDateTime),
    ) -> Result<Issued, AuthorityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, node.as_str());
        params.subject_alt_names = subject_alt_names(&self.cluster, node, sans)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(random_serial());
        (params.not_before, params.not_after) = (not_before, not_after);
        let key = generate_key()?;
        let issuer = Issuer::from_params(&self.params, &self.key);
        let certificate = params.signed_by(&key, &issuer).map_err(AuthorityError::Certificate)?;
        Ok(Issued { cert_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// The node that it identifies, if it has exactly one URI and that names a node.
    pub node: Option<NodeId>,
    /// The cluster of the node, or of the authority.
    pub cluster: Option<String>,
    /// Its serial number, in lower-case hexadecimal digits; what a deny list may name.
    pub serial: String,
    /// Common name of who signed it.
    pub issuer: String,
    /// Start of its validity.
    pub not_before: OffsetDateTime,
    /// End of its validity.
    pub not_after: OffsetDateTime,
    /// Whether it is an authority's.
    pub is_ca: bool,
    /// Its DNS names, IP addresses and URIs.
    pub sans: Vec<String>,
}

/// Reads the first certificate of a PEM text.
///
/// # Errors
/// [`AuthorityError::Pem`] if there is none.
pub fn inspect(pem: &str) -> Result<CertificateInfo, AuthorityError> {
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| AuthorityError::Pem)?;
    describe(&certificate).ok_or(AuthorityError::Pem)
}

/// Reads a certificate in DER form; `None` if it is not one.
pub(crate) fn describe(certificate: &[u8]) -> Option<CertificateInfo> {
    let Fields { serial, issuer, subject, not_before, not_after, is_ca, uris, names } =
        der::fields(certificate)?;
    let name = match &uris[..] {
        [uri] => parse_node_uri(uri),
        _ => None,
    };
    let (cluster, node) = match name {
        Some((cluster, node)) => (Some(cluster), Some(node)),
        None => (cluster_of(&subject).filter(|_| is_ca).map(str::to_owned), None),
    };
    let sans = names.into_iter().chain(uris).collect();
    Some(CertificateInfo { node, cluster, serial, issuer, not_before, not_after, is_ca, sans })
}

/// The DNS name that every certificate of a cluster carries, and that the stock verifier checks.
pub(crate) fn dns_name(cluster: &str) -> Result<DnsName<'static>, AuthorityError> {
    check_name(cluster).map_err(AuthorityError::Cluster)?;
    DnsName::try_from(format!("{cluster}.tidings.internal"))
        .map_err(|_| AuthorityError::ClusterDns(cluster.to_owned()))
}

/// The URI that names a node in its certificate.
pub(crate) fn node_uri(cluster: &str, node: &NodeId) -> String {
    format!("spiffe://{cluster}/node/{node}")
}

/// The cluster and the node that a URI names.
pub(crate) fn parse_node_uri(uri: &str) -> Option<(String, NodeId)> {
    let (cluster, node) = uri.strip_prefix("spiffe://")?.split_once("/node/")?;
    check_name(cluster).ok()?;
    Some((cluster.to_owned(), NodeId::new(node).ok()?))
}

fn subject_alt_names(cluster: &str, node: &NodeId, sans: &[String]) -> Result<Vec<SanType>, AuthorityError> {
    let text = |name: &str| name.try_into().map_err(|_| AuthorityError::Name(name.to_owned()));
    let mut names = vec![
        SanType::DnsName(text(dns_name(cluster)?.as_ref())?),
        SanType::URI(text(&node_uri(cluster, node))?),
    ];
    for name in sans {
        names.push(match name.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) if DnsName::try_from(name.as_str()).is_ok() => SanType::DnsName(text(name)?),
            Err(_) => return Err(AuthorityError::Name(name.clone())),
        });
    }
    Ok(names)
}

/// Common name of an authority. Part of its key is in it, so that a certificate which another authority of the same
/// cluster has signed is one of an unknown issuer, and not one with a bad signature.
fn subject(cluster: &str, key: &KeyPair) -> String {
    let digest = digest(&SHA256, key.public_key_raw());
    let print: String = digest.as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{SUBJECT_PREFIX}{cluster} ({print})")
}

fn cluster_of(subject: &str) -> Option<&str> {
    Some(subject.strip_prefix(SUBJECT_PREFIX)?.split_once(' ')?.0)
}

fn generate_key() -> Result<KeyPair, AuthorityError> {
    KeyPair::generate_for(&PKCS_ED25519).map_err(AuthorityError::Certificate)
}

fn random_serial() -> SerialNumber {
    let mut bytes: [u8; SERIAL_BYTES] = rand::random();
    // The highest bit is a sign, and a leading zero byte would be dropped.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn validity_from_now(validity: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    let end = time::Duration::try_from(validity).ok().and_then(|validity| now.checked_add(validity));
    (now - CLOCK_SLACK, end.unwrap_or_else(|| rcgen::date_time_ymd(4096, 1, 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    #[test]
    fn a_node_certificate_says_who_it_is_for() {
        let authority = Authority::generate("shop").unwrap();
        let sans = ["10.0.0.1".to_owned(), "n1.shop.example".to_owned(), "fd00::1".to_owned()];
        let issued = authority.issue(&node("n1"), &sans, NODE_VALIDITY).unwrap();
        let info = inspect(&issued.cert_pem).unwrap();
        assert_eq!(info.node, Some(node("n1")));
        assert_eq!(info.cluster.as_deref(), Some("shop"));
        assert!(info.issuer.starts_with("tidings authority of cluster shop ("), "{}", info.issuer);
        assert!(!info.is_ca);
        assert_eq!(
            info.sans,
            ["shop.tidings.internal", "10.0.0.1", "n1.shop.example", "fd00::1", "spiffe://shop/node/n1"]
        );
        assert_eq!(info.serial.len(), 2 * SERIAL_BYTES);
        let valid = info.not_after - info.not_before;
        assert!((valid - NODE_VALIDITY - CLOCK_SLACK).abs() < Duration::from_secs(2), "{valid}");
    }

    #[test]
    fn an_authority_can_be_stored_and_read_back() {
        let authority = Authority::generate("shop").unwrap();
        let info = inspect(authority.ca_pem()).unwrap();
        assert!(info.is_ca && info.node.is_none());
        assert_eq!(info.cluster.as_deref(), Some("shop"));
        let read = Authority::from_pem(authority.ca_pem(), &authority.key_pem()).unwrap();
        assert_eq!((read.cluster(), read.ca_pem()), ("shop", authority.ca_pem()));
    }

    #[test]
    fn the_key_of_another_authority_is_refused() {
        let (one, other) = (Authority::generate("shop").unwrap(), Authority::generate("shop").unwrap());
        let mixed = Authority::from_pem(one.ca_pem(), &other.key_pem());
        assert!(matches!(mixed, Err(AuthorityError::KeyMismatch)));
    }

    #[test]
    fn a_node_certificate_is_no_authority() {
        let authority = Authority::generate("shop").unwrap();
        let leaf = authority.issue(&node("n1"), &[], NODE_VALIDITY).unwrap();
        assert!(matches!(Authority::from_pem(&leaf.cert_pem, &leaf.key_pem), Err(AuthorityError::Foreign)));
    }

    #[test]
    fn unusable_names_are_refused() {
        assert!(matches!(Authority::generate("a b"), Err(AuthorityError::Cluster(_))));
        assert!(matches!(Authority::generate("a..b"), Err(AuthorityError::ClusterDns(_))));
        assert!(matches!(Authority::generate(&"x".repeat(64)), Err(AuthorityError::ClusterDns(_))));
        let authority = Authority::generate("shop").unwrap();
        let issued = authority.issue(&node("n1"), &["not a name".to_owned()], NODE_VALIDITY);
        assert!(matches!(issued, Err(AuthorityError::Name(name)) if name == "not a name"));
        assert!(matches!(inspect("nothing"), Err(AuthorityError::Pem)));
    }

    #[test]
    fn only_uris_of_the_documented_form_name_a_node() {
        assert_eq!(parse_node_uri("spiffe://shop/node/n1"), Some(("shop".to_owned(), node("n1"))));
        for uri in
            ["https://shop/node/n1", "spiffe://shop/node/", "spiffe:///node/n1", "spiffe://shop/node/a/b"]
        {
            assert_eq!(parse_node_uri(uri), None, "{uri}");
        }
    }
}

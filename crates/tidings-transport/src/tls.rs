//! The two TLS configurations of a node, made by hand: the easy constructors of rustls and quinn turn on what
//! would let a peer in, or be heard, without showing its certificate in this very handshake.

use std::sync::Arc;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;
use tidings_proto::id::NodeId;

use crate::authority::{dns_name, parse_node_uri};
use crate::der::serial_hex;
use crate::stats::RefusedReason;

/// A TLS configuration could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The verifier of peers' certificates.
    #[error("verifier")]
    Verifier(#[source] VerifierBuilderError),
    /// The protocol versions or cipher suites.
    #[error("protocol")]
    Protocol(#[source] rustls::Error),
    /// QUIC needs a cipher suite that the provider does not have.
    #[error("cipher suites")]
    Suites(#[source] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// The application protocol of a cluster.
pub(crate) fn alpn(cluster: &str) -> Vec<u8> {
    format!("tidings/1/{cluster}").into_bytes()
}

/// The cryptography that everything here uses. Passed explicitly: a library has no business with the process default.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// How this node answers handshakes: TLS 1.3, a client certificate of the cluster's authority, nothing before it,
/// and no second handshake without it.
pub(crate) fn server(
    cluster: &str,
    key: &Arc<CertifiedKey>,
    roots: &Arc<RootCertStore>,
) -> Result<ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
        .build()
        .map_err(TlsError::Verifier)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Protocol)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
    config.alpn_protocols = vec![alpn(cluster)];
    config.max_early_data_size = 0;
    config.send_half_rtt_data = false;
    // A resumed session would skip the checks of validity and of the deny list.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// How this node begins handshakes: TLS 1.3, its own certificate, the stock verifier for the peer's.
pub(crate) fn client(
    cluster: &str,
    key: &Arc<CertifiedKey>,
    roots: &Arc<RootCertStore>,
) -> Result<ClientConfig, TlsError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider())
        .build()
        .map_err(TlsError::Verifier)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Protocol)?
        .with_webpki_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
    config.alpn_protocols = vec![alpn(cluster)];
    config.enable_early_data = false;
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Who the peer is, by the certificate that it has just shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PeerIdentity {
    pub(crate) node: NodeId,
    pub(crate) serial: String,
}

/// The identity of a connection's peer. The path, the validity and the usage of its certificate have been verified
/// by the handshake; what it says is checked here.
pub(crate) fn peer_identity(
    connection: &quinn::Connection,
    cluster: &str,
) -> Result<PeerIdentity, RefusedReason> {
    let shown = connection.peer_identity().ok_or(RefusedReason::NoCertificate)?;
    let chain = shown.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| RefusedReason::NoCertificate)?;
    leaf_identity(chain.first().ok_or(RefusedReason::NoCertificate)?, cluster)
}

/// The identity that a certificate gives within a cluster, once it is verified.
pub(crate) fn leaf_identity(leaf: &CertificateDer<'_>, cluster: &str) -> Result<PeerIdentity, RefusedReason> {
    let leaf = webpki::EndEntityCert::try_from(leaf).map_err(|_| RefusedReason::BadCertificate)?;
    let mut uris = leaf.valid_uri_names();
    let (Some(uri), None) = (uris.next(), uris.next()) else {
        return Err(RefusedReason::WrongSan);
    };
    let (named_cluster, node) = parse_node_uri(uri).ok_or(RefusedReason::WrongSan)?;
    if named_cluster != cluster {
        return Err(RefusedReason::WrongCluster);
    }
    // The handshake checks this name of an acceptor only; a dialer's must have it too.
    let name = dns_name(cluster).map_err(|_| RefusedReason::WrongSan)?;
    leaf.verify_is_valid_for_subject_name(&name.into()).map_err(|_| RefusedReason::WrongSan)?;
    Ok(PeerIdentity { node, serial: serial_hex(leaf.serial()) })
}

#[cfg(test)]
mod tests {
    use crate::authority::{Authority, NODE_VALIDITY};
    use crate::identity::Identity;

    use super::*;

    #[test]
    fn neither_side_sends_or_takes_early_data_or_resumes() {
        let authority = Authority::generate("shop").unwrap();
        let issued = authority.issue(&NodeId::new("n1").unwrap(), &[], NODE_VALIDITY).unwrap();
        let identity = Identity::from_pem(authority.ca_pem(), &issued.cert_pem, &issued.key_pem).unwrap();
        let held = identity.credentials().unwrap();
        assert_eq!(held.server.max_early_data_size, 0);
        assert!(!held.server.send_half_rtt_data);
        assert_eq!(held.server.send_tls13_tickets, 0);
        assert!(!held.server.session_storage.can_cache());
        assert!(!held.server.ticketer.enabled());
        assert!(!held.client.enable_early_data);
        assert!(format!("{:?}", held.client.resumption).contains("NoClientSessionStorage"));
        assert_eq!(held.server.alpn_protocols, [b"tidings/1/shop"]);
        assert_eq!(held.client.alpn_protocols, [b"tidings/1/shop"]);
    }
}

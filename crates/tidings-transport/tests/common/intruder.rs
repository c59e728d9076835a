//! Peers that are not nodes: QUIC clients with certificates and hellos of the test's choice.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::crypto::{self, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, Session};
use quinn::{ClientConfig, ConnectionError, Endpoint, ServerConfig};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectError, ConnectionId, Side, TransportError};
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair as CertifiedPair, PKCS_ED25519,
    SanType,
};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tidings_proto::frame::{Control, Hello};
use tidings_transport::{Authority, inspect};
use time::OffsetDateTime;
use tokio::time::timeout;

use super::{CLUSTER, PATIENCE};

/// A certificate and its key.
pub(crate) struct Shown {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

/// What a sound certificate of a node holds, for a test to spoil.
pub(crate) fn sound(cluster: &str, node: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![format!("{cluster}.tidings.internal")]).unwrap();
    params.subject_alt_names.push(uri(&format!("spiffe://{cluster}/node/{node}")));
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = OffsetDateTime::now_utc() - Duration::from_secs(60);
    params.not_after = OffsetDateTime::now_utc() + Duration::from_secs(3_600);
    params
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// Signs with an authority's key.
pub(crate) fn signed(authority: &Authority, params: &CertificateParams) -> Shown {
    let mut own = CertificateParams::default();
    own.distinguished_name = rcgen::DistinguishedName::new();
    own.distinguished_name.push(DnType::CommonName, inspect(authority.ca_pem()).unwrap().issuer);
    let issuer = Issuer::new(own, CertifiedPair::from_pem(&authority.key_pem()).unwrap());
    let key = CertifiedPair::generate_for(&PKCS_ED25519).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    Shown { chain: vec![certificate.der().clone()], key: PrivateKeyDer::Pkcs8(key.serialize_der().into()) }
}

pub(crate) fn self_signed(params: &CertificateParams) -> Shown {
    let key = CertifiedPair::generate_for(&PKCS_ED25519).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    Shown { chain: vec![certificate.der().clone()], key: PrivateKeyDer::Pkcs8(key.serialize_der().into()) }
}

/// TLS of a client that trusts an authority, shows a certificate or none, and asks for an application protocol.
pub(crate) fn tls(authority: &Authority, shown: Option<Shown>, alpn: &str) -> rustls::ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.ca_pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match shown {
        Some(Shown { chain, key }) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    config
}

pub(crate) fn quic(tls: rustls::ClientConfig) -> ClientConfig {
    ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
}

/// A server that shows a certificate, speaks an application protocol, and asks for no certificate itself.
pub(crate) fn server(shown: Shown, alpn: &str) -> QuicServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(shown.chain, shown.key)
        .unwrap();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    QuicServerConfig::try_from(config).unwrap()
}

/// Waits at an address to be dialled, grants whatever could be sent to it, and says how much that was: the streams that
/// were opened and the datagrams, until the connection ended or failed to come up.
pub(crate) async fn lure(endpoint: &Endpoint) -> usize {
    let lured = async {
        let Ok(connection) = endpoint.accept().await.unwrap().await else { return 0 };
        let mut got = 0;
        loop {
            tokio::select! {
                biased;
                Ok(_) = connection.accept_bi() => got += 1,
                Ok(_) = connection.accept_uni() => got += 1,
                Ok(_) = connection.read_datagram() => got += 1,
                else => return got,
            }
        }
    };
    timeout(PATIENCE, lured).await.expect("nobody came, or it stayed")
}

pub(crate) fn lurer(crypto: Arc<dyn crypto::ServerConfig>) -> Endpoint {
    Endpoint::server(ServerConfig::with_crypto(crypto), super::loopback()).unwrap()
}

/// What an intruder got.
#[derive(Debug)]
pub(crate) struct Got {
    /// Every byte that the node sent on a stream.
    pub(crate) bytes: Vec<u8>,
    /// How the connection ended.
    pub(crate) end: ConnectionError,
}

/// Connects, sends a `Hello` as soon as it can, and reads until it is thrown out.
pub(crate) async fn intrude(config: ClientConfig, target: SocketAddr, hello: &Hello) -> Got {
    intrude_with(config, target, &Control::Hello(hello.clone()).encode()).await
}

/// The same with any bytes in place of the `Hello`.
pub(crate) async fn intrude_with(config: ClientConfig, target: SocketAddr, first: &[u8]) -> Got {
    let local = SocketAddr::new(target.ip(), 0);
    let endpoint = Endpoint::client(local).unwrap();
    let name = format!("{CLUSTER}.tidings.internal");
    let attempt = async {
        let connection = match endpoint.connect_with(config, target, &name).unwrap().await {
            Ok(connection) => connection,
            Err(end) => return Got { bytes: Vec::new(), end },
        };
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let talk = async {
            let Ok((mut send, mut receive)) = connection.open_bi().await else { return };
            // Gossip beside it, which nobody may take note of.
            let _ = connection.send_datagram(bytes::Bytes::from_static(b"\x01early"));
            let _ = send.write_all(first).await;
            while let Ok(Some(chunk)) = receive.read_chunk(usize::MAX, true).await {
                bytes.lock().unwrap().extend_from_slice(&chunk.bytes);
            }
        };
        // What the node would send of its own accord.
        let extra = async {
            tokio::select! {
                Ok(_) = connection.accept_bi() => panic!("a stream of the node's"),
                Ok(_) = connection.accept_uni() => panic!("a gossip stream of the node's"),
                Ok(_) = connection.read_datagram() => panic!("a datagram of the node's"),
                else => {}
            }
        };
        let (end, (), ()) = tokio::join!(connection.closed(), talk, extra);
        let bytes = bytes.lock().unwrap().clone();
        Got { bytes, end }
    };
    timeout(PATIENCE, attempt).await.expect("the intruder was not thrown out")
}

/// A client whose `ClientHello` does not offer TLS 1.3: its extension that names the versions is hidden, which
/// leaves the version field of TLS 1.2.
pub(crate) struct WithoutTls13(pub(crate) Arc<QuicClientConfig>);

impl crypto::ClientConfig for WithoutTls13 {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        Ok(Box::new(Downgraded(self.0.clone().start_session(version, server_name, params)?)))
    }
}

/// The same of a server, whose `ServerHello` has the extension cut out.
pub(crate) struct ServerWithoutTls13(pub(crate) Arc<QuicServerConfig>);

impl crypto::ServerConfig for ServerWithoutTls13 {
    fn initial_keys(&self, version: u32, dst_cid: &ConnectionId) -> Result<Keys, crypto::UnsupportedVersion> {
        self.0.initial_keys(version, dst_cid)
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.0.retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(self: Arc<Self>, version: u32, params: &TransportParameters) -> Box<dyn Session> {
        Box::new(Downgraded(self.0.clone().start_session(version, params)))
    }
}

struct Downgraded(Box<dyn Session>);

/// The extension `supported_versions` of a `ServerHello`.
const SELECTED_VERSION: [u8; 6] = [0x00, 0x2b, 0x00, 0x02, 0x03, 0x04];

/// Cuts the version out of a `ServerHello`, and mends the lengths of the message and of its extensions.
fn cut_version(message: &mut Vec<u8>, begin: usize) {
    let at = begin + message[begin..].windows(6).position(|bytes| bytes == SELECTED_VERSION).unwrap();
    message.drain(at..at + 6);
    // Type, length, version, random; then the session id, the suite and the compression.
    let extensions = begin + 4 + 2 + 32 + 1 + usize::from(message[begin + 38]) + 3;
    for low in [begin + 3, extensions + 1] {
        let length = u16::from_be_bytes([message[low - 1], message[low]]) - 6;
        message[low - 1..=low].copy_from_slice(&length.to_be_bytes());
    }
}

/// The extension `supported_versions` with TLS 1.3 alone.
const SUPPORTED_VERSIONS: [u8; 7] = [0x00, 0x2b, 0x00, 0x03, 0x02, 0x03, 0x04];

impl Session for Downgraded {
    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        let begin = buf.len();
        let keys = self.0.write_handshake(buf);
        // A `ClientHello` is message 1.
        if buf.get(begin) == Some(&1) {
            let written = &mut buf[begin..];
            let at = written.windows(7).position(|bytes| bytes == SUPPORTED_VERSIONS).unwrap();
            written[at..at + 2].copy_from_slice(&[0x7a, 0x7a]);
        }
        // A `ServerHello` is message 2.
        if buf.get(begin) == Some(&2) {
            cut_version(buf, begin);
        }
        keys
    }

    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        self.0.initial_keys(dst_cid, side)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.0.handshake_data()
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.0.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.0.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.0.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.0.is_handshaking()
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.0.read_handshake(buf)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.0.transport_parameters()
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.0.next_1rtt_keys()
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.0.is_valid_retry(orig_dst_cid, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.0.export_keying_material(output, label, context)
    }
}

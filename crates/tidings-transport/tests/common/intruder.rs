//! Peers that are not nodes: QUIC clients with certificates and hellos of the test's choice.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::crypto::{self, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, Session};
use quinn::{ClientConfig, ConnectionError, Endpoint};
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
            let _ = send.write_all(first).await;
            while let Ok(Some(chunk)) = receive.read_chunk(usize::MAX, true).await {
                bytes.lock().unwrap().extend_from_slice(&chunk.bytes);
            }
        };
        let (end, ()) = tokio::join!(connection.closed(), talk);
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

struct Downgraded(Box<dyn Session>);

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

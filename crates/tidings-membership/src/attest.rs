//! Records, signed by the member that they are about.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidings_proto::codec;
use tidings_proto::id::{NodeId, Origin};

use crate::config::{Record, TEXT_BYTES_MAX};

/// Longest encoded record, in bytes: room for a chain of certificates, and eight of them fit into one frame.
pub(crate) const RECORD_BYTES_MAX: usize = 8 << 10;

/// Leads every signed statement, so that a signature made here is good for nothing else.
const DOMAIN: &str = "tidings member record 1";

/// Leads every encoded record, so that a later release can write another.
const FORMAT: char = '1';

/// A certificate, and a signature made with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attestation {
    /// The certificate, in an encoding that the [`Attestor`] knows.
    pub certificate: Bytes,
    /// The signature.
    pub signature: Bytes,
}

/// A statement could not be signed, or a signature is not good; says why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AttestError(pub String);

/// Signs as this node, and tells whether another's signature is its own.
pub trait Attestor: Send + Sync + 'static {
    /// Signs a message as this node.
    ///
    /// # Errors
    /// [`AttestError`] if this node's key cannot sign.
    fn sign(&self, message: &[u8]) -> Result<Attestation, AttestError>;

    /// Checks that the certificate is valid now, within this cluster, for that node, and that the signature
    /// of the message was made with its key.
    ///
    /// # Errors
    /// [`AttestError`] if any of this does not hold.
    fn verify(&self, node: &NodeId, message: &[u8], attestation: &Attestation) -> Result<(), AttestError>;
}

/// What a member has signed: its record, the how-manieth of its life this is, and whether it has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Statement {
    pub(crate) record: Record,
    pub(crate) serial: u64,
    pub(crate) left: bool,
}

/// Why a published record is not accepted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// It is not a record that this release reads.
    Unreadable,
    /// It reads, and is not signed by the member that it is about.
    Forged,
}

/// A statement without what chitchat says beside it: node, incarnation, address and serial.
#[derive(Serialize, Deserialize)]
struct Published {
    zone: String,
    release: String,
    left: bool,
    certificate: Vec<u8>,
    signature: Vec<u8>,
}

impl Statement {
    fn message(&self, cluster: &str) -> Vec<u8> {
        let Record { origin, address, zone, release } = &self.record;
        let statement = (DOMAIN, cluster, origin, address, zone, release, self.serial, self.left);
        codec::encode(&statement).expect("strings and numbers always encode")
    }

    /// Signs the statement, and encodes it as text.
    pub(crate) fn publish(&self, cluster: &str, attestor: &dyn Attestor) -> Result<String, AttestError> {
        let Attestation { certificate, signature } = attestor.sign(&self.message(cluster))?;
        let published = Published {
            zone: self.record.zone.clone(),
            release: self.record.release.clone(),
            left: self.left,
            certificate: certificate.into(),
            signature: signature.into(),
        };
        let bytes = codec::encode(&published).map_err(|error| AttestError(error.to_string()))?;
        let mut text = String::from(FORMAT);
        STANDARD_NO_PAD.encode_string(bytes, &mut text);
        if text.len() > RECORD_BYTES_MAX {
            return Err(AttestError(format!(
                "a record of {} bytes exceeds {RECORD_BYTES_MAX}: shorten the certificate chain",
                text.len()
            )));
        }
        Ok(text)
    }

    /// Reads a published record that was found beside this origin, address and serial, and checks its
    /// signature.
    pub(crate) fn verify(
        cluster: &str,
        (origin, address, serial): (&Origin, SocketAddr, u64),
        text: &str,
        attestor: &dyn Attestor,
    ) -> Result<Self, Invalid> {
        let text = text.strip_prefix(FORMAT).filter(|text| text.len() < RECORD_BYTES_MAX);
        let bytes = STANDARD_NO_PAD.decode(text.ok_or(Invalid::Unreadable)?);
        let bytes = bytes.map_err(|_| Invalid::Unreadable)?;
        let published: Published = codec::decode(&bytes).map_err(|_| Invalid::Unreadable)?;
        let Published { zone, release, left, certificate, signature } = published;
        if zone.len() > TEXT_BYTES_MAX || release.len() > TEXT_BYTES_MAX {
            return Err(Invalid::Unreadable);
        }
        let record = Record { origin: origin.clone(), address, zone, release };
        let statement = Self { record, serial, left };
        let attestation = Attestation { certificate: certificate.into(), signature: signature.into() };
        attestor
            .verify(&origin.node, &statement.message(cluster), &attestation)
            .map_err(|_| Invalid::Forged)?;
        Ok(statement)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};

    use tidings_proto::id::Incarnation;

    use super::*;

    /// Keys are `secret ‖ node id`; who does not know the secret cannot sign as another.
    pub(crate) struct Keyed {
        pub(crate) node: &'static str,
        pub(crate) secret: &'static str,
    }

    fn mac(secret: &str, node: &str, message: &[u8]) -> Bytes {
        let mut hasher = DefaultHasher::new();
        (secret, node, message).hash(&mut hasher);
        Bytes::copy_from_slice(&hasher.finish().to_le_bytes())
    }

    impl Attestor for Keyed {
        fn sign(&self, message: &[u8]) -> Result<Attestation, AttestError> {
            Ok(Attestation {
                certificate: Bytes::from_static(self.node.as_bytes()),
                signature: mac(self.secret, self.node, message),
            })
        }

        fn verify(
            &self,
            node: &NodeId,
            message: &[u8],
            attestation: &Attestation,
        ) -> Result<(), AttestError> {
            let sound = attestation.certificate == node.as_str()
                && attestation.signature == mac("secret", node.as_str(), message);
            sound.then_some(()).ok_or_else(|| AttestError("not its signature".into()))
        }
    }

    pub(crate) fn record(node: &str, incarnation: u64) -> Record {
        let port = 7000 + node.bytes().map(u16::from).sum::<u16>();
        Record {
            origin: Origin { node: NodeId::new(node).unwrap(), incarnation: Incarnation(incarnation) },
            address: SocketAddr::from(([10, 0, 0, 1], port)),
            zone: "z1".into(),
            release: "0.1.0".into(),
        }
    }

    #[test]
    fn a_record_verifies_only_beside_the_identity_and_serial_it_was_signed_for() {
        let statement = Statement { record: record("n1", 3), serial: 1, left: false };
        let attestor = Keyed { node: "n1", secret: "secret" };
        let text = statement.publish("demo", &attestor).unwrap();
        let Record { origin, address, .. } = &statement.record;
        let verify = |cluster, origin: &Origin, address, serial| {
            Statement::verify(cluster, (origin, address, serial), &text, &attestor)
        };
        assert_eq!(verify("demo", origin, *address, 1), Ok(statement.clone()));
        assert_eq!(verify("other", origin, *address, 1), Err(Invalid::Forged));
        assert_eq!(verify("demo", origin, *address, 2), Err(Invalid::Forged));
        assert_eq!(verify("demo", origin, "10.0.0.9:1".parse().unwrap(), 1), Err(Invalid::Forged));
        assert_eq!(verify("demo", &record("n1", 4).origin, *address, 1), Err(Invalid::Forged));
        assert_eq!(verify("demo", &record("n2", 3).origin, *address, 1), Err(Invalid::Forged));
    }

    #[test]
    fn a_record_signed_with_another_key_is_forged() {
        let statement = Statement { record: record("n1", 3), serial: 1, left: false };
        let text = statement.publish("demo", &Keyed { node: "n1", secret: "guess" }).unwrap();
        let Record { origin, address, .. } = &statement.record;
        let verified =
            Statement::verify("demo", (origin, *address, 1), &text, &Keyed { node: "n2", secret: "secret" });
        assert_eq!(verified, Err(Invalid::Forged));
    }

    #[test]
    fn text_that_is_no_record_is_unreadable() {
        let attestor = Keyed { node: "n1", secret: "secret" };
        let Record { origin, address, .. } = record("n1", 1);
        let long = format!("1{}", "A".repeat(RECORD_BYTES_MAX));
        for text in ["", "1", "1!", "2AAAA", "1AAAA", &long] {
            let verified = Statement::verify("demo", (&origin, address, 1), text, &attestor);
            assert_eq!(verified, Err(Invalid::Unreadable), "{:.9}", text);
        }
    }
}

//! Statements signed with a node's certificate: what third parties relay is believed only with one.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use rustls::SignatureScheme;
use rustls_pki_types::CertificateDer;
use tidings_proto::id::NodeId;

use crate::denied::DenyList;
use crate::identity::{Identity, IdentityError, verify_chain};
use crate::stats::RefusedReason;
use crate::tls::{leaf_identity, provider};

/// Precedes every signed statement, so that a signature made for this can stand for nothing else.
const CONTEXT: &[u8] = b"tidings/1 attestation\0";

/// Schemes to sign with, best first; the key decides which are possible.
const SCHEMES: [SignatureScheme; 4] = [
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::RSA_PSS_SHA256,
];

/// Proof that a node made a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attestation {
    /// The node's certificate, in DER form.
    pub cert: Bytes,
    /// The signature over the statement by the certificate's key.
    pub signature: Bytes,
}

/// A statement is not proven to be the claimed node's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttestationError {
    /// This node has no identity to sign with, or to verify against.
    #[error("own identity")]
    Own(#[source] IdentityError),
    /// This node's key cannot make a signature.
    #[error("signing")]
    Sign(#[source] rustls::Error),
    /// The certificate is not one of a trusted authority, or not valid now.
    #[error("certificate")]
    Certificate(#[source] webpki::Error),
    /// The certificate does not identify a node of this cluster.
    #[error("the certificate identifies no node of this cluster: {}", .0.as_str())]
    Name(RefusedReason),
    /// The certificate is another node's.
    #[error("the certificate is for node {0}")]
    OtherNode(NodeId),
    /// The node, or its certificate, is on the deny list.
    #[error("denied by the deny list")]
    Denied,
    /// The signature is not that of the certificate's key over this statement.
    #[error("signature")]
    Signature(#[source] webpki::Error),
}

/// Signs as a node, and judges what others have signed, by that node's identity and deny list as they are then. Outlives
/// its transport, and does not keep it.
#[derive(Clone)]
pub struct Notary {
    pub(crate) identity: Identity,
    pub(crate) denied: Arc<ArcSwap<DenyList>>,
}

impl fmt::Debug for Notary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notary").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Notary {
    /// Signs a statement as this node.
    ///
    /// # Errors
    /// As [`Identity::sign`].
    pub fn sign(&self, statement: &[u8]) -> Result<Attestation, AttestationError> {
        self.identity.sign(statement)
    }

    /// Checks that a statement is the claimed node's, as [`Identity::verify`] does, and that neither that node nor its
    /// certificate is denied.
    ///
    /// # Errors
    /// [`AttestationError`]; the statement counts for nothing.
    pub fn verify(
        &self,
        claimed: &NodeId,
        statement: &[u8],
        proof: &Attestation,
    ) -> Result<(), AttestationError> {
        let own = self.identity.credentials().map_err(AttestationError::Own)?;
        let certificate = CertificateDer::from(&proof.cert[..]);
        let named = leaf_identity(&certificate, &own.cluster).map_err(AttestationError::Name)?;
        if self.denied.load().denies(&named) {
            return Err(AttestationError::Denied);
        }
        self.identity.verify(claimed, statement, proof)
    }
}

impl Identity {
    /// Signs a statement as this node.
    ///
    /// # Errors
    /// [`AttestationError::Own`] or [`AttestationError::Sign`].
    pub fn sign(&self, statement: &[u8]) -> Result<Attestation, AttestationError> {
        let own = self.credentials().map_err(AttestationError::Own)?;
        let unusable =
            || AttestationError::Sign(rustls::Error::General("no usable signature scheme".to_owned()));
        let signer = own.key.key.choose_scheme(&SCHEMES).ok_or_else(unusable)?;
        let signature = signer.sign(&in_context(statement)).map_err(AttestationError::Sign)?;
        Ok(Attestation { cert: Bytes::copy_from_slice(own.leaf()), signature: signature.into() })
    }

    /// Checks that a statement is the claimed node's: its certificate is of an authority trusted now, is valid now,
    /// names that node of this cluster, and its key made the signature.
    ///
    /// # Errors
    /// [`AttestationError`]; the statement counts for nothing.
    pub fn verify(
        &self,
        claimed: &NodeId,
        statement: &[u8],
        proof: &Attestation,
    ) -> Result<(), AttestationError> {
        let own = self.credentials().map_err(AttestationError::Own)?;
        let certificate = CertificateDer::from(&proof.cert[..]);
        // What costs nothing first: whoever relays a statement may have made it up.
        let named = leaf_identity(&certificate, &own.cluster).map_err(AttestationError::Name)?;
        if named.node != *claimed {
            return Err(AttestationError::OtherNode(named.node));
        }
        verify_chain(&certificate, own.intermediates(), &own.roots).map_err(AttestationError::Certificate)?;
        let leaf = webpki::EndEntityCert::try_from(&certificate).map_err(AttestationError::Certificate)?;
        let statement = in_context(statement);
        let mut outcome = Err(webpki::Error::InvalidSignatureForPublicKey);
        // The key's type decides which of the algorithms can succeed at all.
        for (scheme, algorithms) in provider().signature_verification_algorithms.mapping {
            if !SCHEMES.contains(scheme) {
                continue;
            }
            for algorithm in *algorithms {
                outcome =
                    outcome.or_else(|_| leaf.verify_signature(*algorithm, &statement, &proof.signature));
            }
        }
        outcome.map_err(AttestationError::Signature)
    }
}

fn in_context(statement: &[u8]) -> Vec<u8> {
    [CONTEXT, statement].concat()
}

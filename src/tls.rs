//! What TLS to brokers and TLS to PostgreSQL have in common: certificates and keys in files, the system's
//! authorities, and signatures of the handshake.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::path::Path;
use webpki::RawPublicKeyEntity;
use x509_cert::Certificate;
use x509_cert::der::{Decode as _, Encode as _};

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("{0}")]
    Pem(#[from] pem::Error),
    #[error("no certificate is in it")]
    NoCertificate,
    #[error(
        "the key in it is encrypted, which is not in this version: write it without a pass phrase, with \
         `openssl pkey`"
    )]
    Encrypted,
    #[error("{0}")]
    Certificate(#[from] rustls::Error),
}

/// All certificates of a PEM file, of which there is at least one.
pub(crate) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let found = CertificateDer::pem_file_iter(file)?.collect::<Result<Vec<_>, _>>()?;
    if found.is_empty() { Err(Unusable::NoCertificate) } else { Ok(found) }
}

/// The first private key of a PEM file.
pub(crate) fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, Unusable> {
    PrivateKeyDer::from_pem_file(file).map_err(|error| {
        let is_encrypted = || {
            std::fs::read_to_string(file).is_ok_and(|text| {
                text.contains("BEGIN ENCRYPTED PRIVATE KEY")
                    || text.contains("Proc-Type: 4,ENCRYPTED")
            })
        };
        match error {
            pem::Error::Io(_) => error.into(),
            _ if is_encrypted() => Unusable::Encrypted,
            _ => error.into(),
        }
    })
}

/// The authorities of these certificates.
pub(crate) fn authorities(
    certificates: Vec<CertificateDer<'static>>,
) -> Result<RootCertStore, Unusable> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate)?;
    }
    Ok(roots)
}

/// The authorities that the system trusts, or why none are to be had: nothing where there simply are none.
pub(crate) fn system_authorities() -> Result<RootCertStore, Option<rustls_native_certs::Error>> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    match roots.add_parsable_certificates(found.certs) {
        (0, _) => Err(found.errors.into_iter().next()),
        _ => Ok(roots),
    }
}

/// Takes any certificate, as was asked for; whoever shows it must still hold its key.
#[derive(Debug)]
pub(crate) struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// The algorithms that certificates and handshakes may be signed with.
pub(crate) fn algorithms() -> WebPkiSupportedAlgorithms {
    ring::default_provider().signature_verification_algorithms
}

/// Checks that whoever shows the certificate holds its key, in TLS 1.2.
pub(crate) fn tls12_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let key = key_of(certificate)?;
    let key = RawPublicKeyEntity::try_from(&key).map_err(|_| CertificateError::BadEncoding)?;
    // A scheme of TLS 1.2 does not say the curve: the one that fits the key is the one.
    let holds = algorithms()
        .mapping
        .iter()
        .filter(|(scheme, _)| *scheme == signed.scheme)
        .flat_map(|(_, algorithms)| *algorithms)
        .any(|algorithm| key.verify_signature(*algorithm, message, signed.signature()).is_ok());
    match holds {
        true => Ok(HandshakeSignatureValid::assertion()),
        false => Err(CertificateError::BadSignature.into()),
    }
}

/// The same in TLS 1.3.
pub(crate) fn tls13_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    verify_tls13_signature_with_raw_key(message, &key_of(certificate)?, signed, &algorithms())
}

/// The key of a certificate. webpki reads no certificate of X.509 version 1, which is what `openssl x509 -req`
/// made for years when it was not told of extensions, also by PostgreSQL's manual.
fn key_of(
    certificate: &CertificateDer<'_>,
) -> Result<SubjectPublicKeyInfoDer<'static>, rustls::Error> {
    if let Ok(parsed) = ParsedCertificate::try_from(certificate) {
        return Ok(parsed.subject_public_key_info());
    }
    let key = Certificate::from_der(certificate)
        .and_then(|parsed| parsed.tbs_certificate().subject_public_key_info().to_der());
    match key {
        Ok(key) => Ok(key.into()),
        Err(_) => Err(CertificateError::BadEncoding.into()),
    }
}

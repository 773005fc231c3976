//! Whether the server's certificate is believed.

use crate::tls::{algorithms, authorities, tls12_signature, tls13_signature};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertRevocationListError, CertificateError, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
};
use std::fmt;
use std::sync::Arc;
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationOptionsBuilder,
};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;
use x509_cert::der::oid::db::rfc5280::ID_KP_SERVER_AUTH;
use x509_cert::ext::pkix::ExtendedKeyUsage;

/// Believes what leads to an authority that we trust, and is for the host that we call where that was asked
/// for: `verify-ca` and `verify-full`.
pub(super) struct Verifier {
    authorities: RootCertStore,
    /// The same as files have them, because a server may show one of them as its own.
    trusted: Vec<CertificateDer<'static>>,
    revoked: Vec<CertRevocationList<'static>>,
    looks_at_name: bool,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("authorities", &self.authorities.len())
            .field("revoked", &self.revoked.len())
            .field("looks_at_name", &self.looks_at_name)
            .finish()
    }
}

impl Verifier {
    pub(super) fn of_system(authorities: RootCertStore, looks_at_name: bool) -> Self {
        Self { authorities, trusted: Vec::new(), revoked: Vec::new(), looks_at_name }
    }

    pub(super) fn of_certificates(
        trusted: Vec<CertificateDer<'static>>,
        looks_at_name: bool,
    ) -> Result<Self, crate::tls::Unusable> {
        let authorities = authorities(trusted.clone())?;
        Ok(Self { authorities, trusted, revoked: Vec::new(), looks_at_name })
    }

    /// What these lists name is not believed, and nor is what no list says anything of, or an old one.
    pub(super) fn without(mut self, revoked: Vec<CertRevocationList<'static>>) -> Self {
        self.revoked = revoked;
        self
    }

    /// The chain and the time.
    fn leads_to_authority(
        &self,
        certificate: &CertificateDer<'_>,
        parsed: &ParsedCertificate<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let (authorities, all) = (&self.authorities, algorithms().all);
        verify_server_cert_signed_by_trust_anchor(parsed, authorities, intermediates, now, all)?;
        let revoked: Vec<_> = self.revoked.iter().collect();
        let Ok(revocation) = RevocationOptionsBuilder::new(&revoked) else { return Ok(()) };
        // By default the whole chain, and unknown is refused, as OpenSSL does it for libpq.
        let revocation = revocation.with_expiration_policy(ExpirationPolicy::Enforce).build();
        EndEntityCert::try_from(certificate)
            .map_err(|_| CertificateError::BadEncoding)?
            .verify_for_usage(
                all,
                &authorities.roots,
                intermediates,
                now,
                KeyUsage::server_auth(),
                Some(revocation),
                None,
            )
            .map(|_| ())
            .map_err(not_unrevoked)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let is_trusted = self.trusted.iter().any(|trusted| trusted == certificate);
        if is_trusted && self.revoked.is_empty() && is_signed_by_itself(certificate) {
            is_in_time(certificate, now)?;
            if self.looks_at_name {
                verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        let parsed = ParsedCertificate::try_from(certificate)?;
        self.leads_to_authority(certificate, &parsed, intermediates, now)?;
        if self.looks_at_name {
            // Names and addresses of the subjectAltName alone. libpq also takes the common name where there
            // are none, which RFC 6125 gave up.
            verify_server_name(&parsed, name)?;
        }
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

/// The reason, where it lies in the lists; the chain was in order without them.
fn not_unrevoked(error: webpki::Error) -> rustls::Error {
    use webpki::Error as E;
    match error {
        E::CertRevoked => CertificateError::Revoked.into(),
        E::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus.into(),
        E::CrlExpired { time, next_update } => {
            CertificateError::ExpiredRevocationListContext { time, next_update }.into()
        }
        error => CertRevocationListError::Other(OtherError(Arc::new(error))).into(),
    }
}

fn parse(certificate: &CertificateDer<'_>) -> Result<Certificate, rustls::Error> {
    Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding.into())
}

/// A server that made its own certificate, which was then copied to us, is as good as any: nobody else has its
/// key. webpki takes no authority's certificate for a server's, and such ones mostly say that they are one.
fn is_signed_by_itself(certificate: &CertificateDer<'_>) -> bool {
    parse(certificate).is_ok_and(|parsed| {
        let body = parsed.tbs_certificate();
        body.issuer() == body.subject()
    })
}

/// The time, and that it may be a server's.
fn is_in_time(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let parsed = parse(certificate)?;
    let body = parsed.tbs_certificate();
    let seconds = |time: x509_cert::time::Time| UnixTime::since_unix_epoch(time.to_unix_duration());
    let not_before = seconds(body.validity().not_before);
    let not_after = seconds(body.validity().not_after);
    if now < not_before {
        return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
    }
    if now > not_after {
        return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
    }
    let usage = body.get_extension::<ExtendedKeyUsage>();
    match usage.map_err(|_| CertificateError::BadEncoding)? {
        Some((_, usage)) if !usage.0.contains(&ID_KP_SERVER_AUTH) => {
            Err(CertificateError::InvalidPurpose.into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::certificates;
    use std::time::Duration;
    use testkit::certificates::Authority;

    /// What is said of the certificate at that time, in seconds since 1970, for a server of this name.
    fn said(verifier: &Verifier, shown: &CertificateDer<'_>, name: &str, at: u64) -> String {
        let (name, at) = (ServerName::try_from(name).unwrap(), Duration::from_secs(at));
        let at = UnixTime::since_unix_epoch(at);
        match verifier.verify_server_cert(shown, &[], &name, &[], at) {
            Ok(_) => "believed".to_owned(),
            Err(rustls::Error::InvalidCertificate(fault)) => format!("{fault:?}"),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_certificate_is_believed_in_its_time_and_for_its_name_whether_of_an_authority_or_its_own() {
        let authority = Authority::new();
        let issued = authority.issue("server", &["db.example"]);
        let own = authority.beside(
            "own",
            &["-newkey", "rsa:2048", "-subj", "/CN=x", "-addext", "subjectAltName=DNS:db.example"],
        );
        let first = |file| certificates(file).unwrap().remove(0);
        let now = UnixTime::now().as_secs();
        let century = 100 * 365 * 86_400;
        for (shown, trusted) in [
            (first(&issued.certificate), first(&authority.file())),
            (first(&own.certificate), first(&own.certificate)),
        ] {
            for looks_at_name in [true, false] {
                let verifier =
                    Verifier::of_certificates(vec![trusted.clone()], looks_at_name).unwrap();
                let said = |name, at| said(&verifier, &shown, name, at);
                assert_eq!(said("db.example", now), "believed");
                let other = said("other.example", now);
                match looks_at_name {
                    true => assert!(other.starts_with("NotValidForName"), "{other}"),
                    false => assert_eq!(other, "believed"),
                }
                assert!(said("db.example", 1).starts_with("NotValidYet"));
                // Those of the test's authority are good for two thousand years.
                assert!(said("db.example", now + 100 * century).starts_with("Expired"));
            }
        }
    }

    #[test]
    fn whose_certificate_is_not_the_very_one_is_not_believed_for_its_name() {
        let authority = Authority::new();
        let arguments = ["-newkey", "rsa:2048", "-subj", "/CN=x"];
        let (one, other) =
            (authority.beside("one", &arguments), authority.beside("other", &arguments));
        let first = |file| certificates(file).unwrap().remove(0);
        let verifier = Verifier::of_certificates(vec![first(&one.certificate)], false).unwrap();
        let now = UnixTime::now().as_secs();
        assert_eq!(said(&verifier, &first(&one.certificate), "x", now), "believed");
        let said = said(&verifier, &first(&other.certificate), "x", now);
        assert!(said.contains("CaUsedAsEndEntity"), "{said}");
    }
}

//! From a connected socket to one under TLS, as `sslmode` and its parameters say.

use super::socket::Socket;
use super::verifier::Verifier;
use crate::config::{
    SslCertMode, SslConfig, SslFile, SslMode, SslNegotiation, SslRoots, TlsVersion,
};
use crate::tls::{Anybody, Unusable, certificates, private_key, system_authorities};
use factlib_protocol::auth::channel_binding::EndPointHash;
use factlib_protocol::tls::{self, TlsError};
use rustls::client::ResolvesClientCert;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateRevocationListDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, OtherError, SignatureScheme,
    SupportedProtocolVersion,
};
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio_rustls::client::TlsStream;
use webpki::{CertRevocationList, OwnedCertRevocationList};

/// A certificate may have hundreds of names; no more than this many are shown in an error.
const NAMES_SHOWN_MAX: usize = 5;

/// Why a connection is not under TLS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsFailure {
    /// A file of ours cannot be used.
    #[error("{keyword} {file}: {cause}")]
    File {
        /// libpq's word for it.
        keyword: &'static str,
        /// Its name.
        file: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The system trusts nobody that we can find.
    #[error("the system's certificates: {0}; name a file in sslrootcert")]
    NoSystemRoots(String),
    /// `verify-full` and a host that no certificate can be for.
    #[error(
        "{0:?} is no name that a certificate can be for; connect by another, or set sslmode=verify-ca"
    )]
    Name(String),
    /// The server has no TLS.
    #[error("the server does not do TLS, and sslmode wants it; set ssl = on there")]
    NotThere,
    /// Asking for it went wrong.
    #[error("{0}")]
    Negotiation(TlsError),
    /// The handshake went wrong, and will again.
    #[error("{0}")]
    Handshake(String),
    /// The connection broke in the handshake.
    #[error(
        "the connection broke in the TLS handshake: {source}{}",
        if *direct { "; sslnegotiation=direct needs PostgreSQL 17 or later" } else { "" }
    )]
    Broken {
        /// How.
        #[source]
        source: io::Error,
        /// Nobody asked the server before.
        direct: bool,
    },
    /// `sslcertmode=require`.
    #[error(
        "the server did not ask for our certificate, and sslcertmode=require wants it to: let a line of \
         pg_hba.conf say clientcert=verify-ca, and set ssl_ca_file there"
    )]
    NotAsked,
}

impl TlsFailure {
    /// True if a log-in in clear text is what `prefer` tries next: the server, or what is between, cannot do
    /// what we do. What is wrong on our own side is not to cost the encryption, and somebody who answers what
    /// no server does is not spoken to again.
    pub(super) fn is_of_the_server(&self) -> bool {
        match self {
            Self::NotThere | Self::Handshake(_) | Self::Broken { .. } => true,
            Self::Negotiation(error) => *error == TlsError::Refused,
            Self::File { .. } | Self::NoSystemRoots(_) | Self::Name(_) | Self::NotAsked => false,
        }
    }

    /// True if it may be otherwise in a moment.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::Broken { .. } | Self::Negotiation(TlsError::Refused))
    }
}

/// A socket under TLS, and what a log-in must know of it.
pub(super) struct Encrypted {
    pub(super) stream: TlsStream<Socket>,
    /// The hash of the certificate that a log-in is bound to; none if none is defined.
    pub(super) server_end_point: Option<Vec<u8>>,
}

/// TLS as it was set up from files that were read just now.
pub(super) struct Tls {
    config: Arc<ClientConfig>,
    identity: Arc<Identity>,
    name: ServerName<'static>,
    cert_mode: SslCertMode,
    negotiation: SslNegotiation,
}

impl Tls {
    /// Reads the files, on a thread where that may take its time.
    pub(super) async fn load(host: &str, ssl: &SslConfig) -> Result<Self, TlsFailure> {
        let (host, ssl) = (host.to_owned(), ssl.clone());
        let load = move || Self::read(&host, &ssl);
        tokio::task::spawn_blocking(load)
            .await
            .unwrap_or_else(|panic| Err(TlsFailure::Handshake(panic.to_string())))
    }

    fn read(host: &str, ssl: &SslConfig) -> Result<Self, TlsFailure> {
        let name = match ServerName::try_from(host.to_owned()) {
            Ok(name) => name,
            Err(_) if ssl.mode == SslMode::VerifyFull => {
                return Err(TlsFailure::Name(host.to_owned()));
            }
            // Nobody looks at it, and an address is not sent.
            Err(_) => ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        };
        let identity = Arc::new(Identity::read(ssl)?);
        let versions: Vec<&'static SupportedProtocolVersion> = [
            (TlsVersion::V1_3, &rustls::version::TLS13),
            (TlsVersion::V1_2, &rustls::version::TLS12),
        ]
        .into_iter()
        .filter(|(version, _)| (ssl.min_version..=ssl.max_version).contains(version))
        .map(|(_, version)| version)
        .collect();
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&versions)
            .map_err(|error| TlsFailure::Handshake(format!("TLS: {error}")))?
            .dangerous()
            .with_custom_certificate_verifier(verifier(ssl)?)
            .with_client_cert_resolver(Arc::<Identity>::clone(&identity));
        config.enable_sni = ssl.sni;
        config.alpn_protocols = vec![tls::ALPN.to_vec()];
        let (cert_mode, negotiation) = (ssl.cert_mode, ssl.negotiation);
        Ok(Self { config: Arc::new(config), identity, name, cert_mode, negotiation })
    }

    /// Shakes hands. Cancel safe: dropping it closes the connection.
    pub(super) async fn encrypt(self, stream: Socket) -> Result<Encrypted, TlsFailure> {
        let direct = self.negotiation == SslNegotiation::Direct;
        let connector = tokio_rustls::TlsConnector::from(self.config);
        let stream =
            connector.connect(self.name, stream).await.map_err(|source| {
                match describe(&source) {
                    Some(words) => TlsFailure::Handshake(words),
                    None => TlsFailure::Broken { source, direct },
                }
            })?;
        let (_, session) = stream.get_ref();
        if direct {
            tls::check_alpn(session.alpn_protocol()).map_err(TlsFailure::Negotiation)?;
        }
        if self.cert_mode == SslCertMode::Require
            && !self.identity.was_asked.load(Ordering::Relaxed)
        {
            return Err(TlsFailure::NotAsked);
        }
        let certificate = session.peer_certificates().and_then(|chain| chain.first());
        let server_end_point = certificate.and_then(|certificate| {
            Some(EndPointHash::of_certificate(certificate)?.digest(certificate))
        });
        Ok(Encrypted { stream, server_end_point })
    }
}

/// Our own certificate, and whether the server wanted to see it.
#[derive(Debug)]
struct Identity {
    key: Option<Arc<CertifiedKey>>,
    was_asked: AtomicBool,
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.was_asked.store(true, Ordering::Relaxed);
        self.key.clone()
    }

    fn has_certs(&self) -> bool {
        self.key.is_some()
    }
}

impl Identity {
    fn read(ssl: &SslConfig) -> Result<Self, TlsFailure> {
        let key = match &ssl.identity {
            Some((certificate, key)) if ssl.cert_mode != SslCertMode::Disable => {
                certified_key(certificate, key)?
            }
            _ => None,
        };
        if key.is_none() && ssl.cert_mode == SslCertMode::Require {
            return Err(TlsFailure::File {
                keyword: "sslcert",
                file: ssl.identity.as_ref().map_or_else(String::new, |(file, _)| shown(&file.path)),
                cause: "there is none, and sslcertmode=require wants one".to_owned(),
            });
        }
        Ok(Self { key, was_asked: AtomicBool::new(false) })
    }
}

fn certified_key(
    certificate: &SslFile,
    key: &SslFile,
) -> Result<Option<Arc<CertifiedKey>>, TlsFailure> {
    if is_absent(certificate) {
        return Ok(None);
    }
    let chain = certificates(&certificate.path).map_err(of_file("sslcert", certificate))?;
    is_private(&key.path).map_err(of_file("sslkey", key))?;
    let secret = private_key(&key.path).map_err(of_file("sslkey", key))?;
    let of_key = of_file::<String>("sslkey", key);
    let certified = CertifiedKey::from_der(chain, secret, &ring::default_provider());
    certified.map(|key| Some(Arc::new(key))).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            of_key(format!("it is not the key of sslcert {}", shown(&certificate.path)))
        }
        error => of_key(error.to_string()),
    })
}

/// As libpq: a key that others can read is no secret. Root's may be read by its group, so that a service
/// account can be let in.
fn is_private(key: &Path) -> Result<(), String> {
    let metadata = fs::metadata(key).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    let too_much = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    match metadata.mode() & too_much {
        0 => Ok(()),
        _ => Err("others can read it; it must have the mode 0600 or less, or 0640 or less if it belongs to \
                  root"
            .to_owned()),
    }
}

fn verifier(ssl: &SslConfig) -> Result<Arc<dyn ServerCertVerifier>, TlsFailure> {
    let looks_at_name = ssl.mode == SslMode::VerifyFull;
    let verifier = match &ssl.roots {
        SslRoots::System => {
            let authorities = system_authorities().map_err(|error| {
                TlsFailure::NoSystemRoots(
                    error.map_or_else(|| "there are none".to_owned(), |error| error.to_string()),
                )
            })?;
            Verifier::of_system(authorities, looks_at_name)
        }
        SslRoots::File(file) if ssl.mode >= SslMode::VerifyCa || !is_absent(file) => {
            let of_roots = of_file("sslrootcert", file);
            let trusted = certificates(&file.path).map_err(|error| match error {
                Unusable::Pem(rustls::pki_types::pem::Error::Io(error)) => of_roots(format!(
                    "{error}; sslmode wants the certificate of the server's authority there, or \
                     sslrootcert=system"
                )),
                error => of_roots(error.to_string()),
            })?;
            Verifier::of_certificates(trusted, looks_at_name)
                .map_err(|error| of_roots(error.to_string()))?
        }
        // libpq's `require` without authorities: whoever listens is kept out, and nobody else.
        SslRoots::File(_) | SslRoots::None => return Ok(Arc::new(Anybody)),
    };
    let revoked = match &ssl.crl {
        Some(file) if !is_absent(file) => {
            revocation_lists(&file.path).map_err(of_file("sslcrl", file))?
        }
        _ => Vec::new(),
    };
    Ok(Arc::new(verifier.without(revoked)))
}

fn revocation_lists(file: &Path) -> Result<Vec<CertRevocationList<'static>>, String> {
    let lists = CertificateRevocationListDer::pem_file_iter(file).map_err(|e| e.to_string())?;
    let lists: Vec<_> = lists
        .map(|list| {
            let list = list.map_err(|error| error.to_string())?;
            let list = OwnedCertRevocationList::from_der(&list);
            list.map(CertRevocationList::from).map_err(|error| error.to_string())
        })
        .collect::<Result<_, _>>()?;
    if lists.is_empty() {
        return Err("no list of revoked certificates is in it".to_owned());
    }
    Ok(lists)
}

/// True if nobody named it and it is not there.
fn is_absent(file: &SslFile) -> bool {
    file.is_default && matches!(file.path.try_exists(), Ok(false))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn of_file<E: fmt::Display>(keyword: &'static str, file: &SslFile) -> impl Fn(E) -> TlsFailure {
    let file = shown(&file.path);
    move |cause| TlsFailure::File { keyword, file: file.clone(), cause: cause.to_string() }
}

/// What went wrong with TLS, in words that say what to do; none if the error is not of TLS.
pub(super) fn describe(error: &io::Error) -> Option<String> {
    use AlertDescription as Alert;
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match error {
        rustls::Error::InvalidCertificate(fault) => of_certificate(fault),
        rustls::Error::InvalidCertRevocationList(fault) => {
            format!("sslcrl cannot be applied to the server's certificate: {fault:?}")
        }
        rustls::Error::InvalidMessage(_) => {
            "what the server sends is not TLS: is this PostgreSQL, without a proxy in between?"
                .to_owned()
        }
        rustls::Error::AlertReceived(Alert::NoApplicationProtocol) => TlsError::Alpn.to_string(),
        rustls::Error::AlertReceived(
            alert
            @ (Alert::HandshakeFailure | Alert::ProtocolVersion | Alert::InsufficientSecurity),
        ) => format!(
            "the server and we have no version, cipher or kind of key of TLS in common ({alert:?}); we do \
             TLS 1.2 and 1.3 with keys of RSA, ECDSA (P-256, P-384) and Ed25519"
        ),
        rustls::Error::AlertReceived(Alert::CertificateRequired) => {
            "the server wants a certificate of ours; name one in sslcert and its key in sslkey"
                .to_owned()
        }
        rustls::Error::AlertReceived(alert) => format!(
            "the server refuses our certificate, or our TLS ({alert:?}): is sslcert of an authority in its \
             ssl_ca_file, and still valid?"
        ),
        rustls::Error::PeerIncompatible(reason) => {
            format!("the server cannot do TLS as we do ({reason:?}); we do TLS 1.2 and 1.3")
        }
        error => format!("TLS: {error}"),
    })
}

fn of_certificate(fault: &CertificateError) -> String {
    use CertificateError as Fault;
    let date = |time: &rustls::pki_types::UnixTime| {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(time.as_secs());
        humantime::format_rfc3339_seconds(time)
    };
    match fault {
        Fault::UnknownIssuer | Fault::BadSignature => "the server's certificate is of an authority that is not \
             trusted; name the file with that authority's certificate in sslrootcert"
            .to_owned(),
        Fault::NotValidForNameContext { expected, presented } => {
            let expected = expected.to_str();
            let names = presented.iter().take(NAMES_SHOWN_MAX).map(|name| plain(name));
            match &*names.collect::<Vec<_>>().join(", ") {
                "" => format!(
                    "the server's certificate is for no host, because it has no subjectAltName; issue one \
                     for {expected}, or set sslmode=verify-ca"
                ),
                names => format!(
                    "the server's certificate is for {names}, and not for {expected}; connect by a name that \
                     it has, or issue one for {expected}"
                ),
            }
        }
        Fault::ExpiredContext { not_after, .. } => format!(
            "the server's certificate has expired, at {}; renew it there, or look at our clock",
            date(not_after)
        ),
        Fault::NotValidYetContext { not_before, .. } => format!(
            "the server's certificate is not valid before {}; look at both clocks",
            date(not_before)
        ),
        Fault::Revoked => "the server's certificate is revoked, says sslcrl; issue another".to_owned(),
        Fault::UnknownRevocationStatus => {
            "sslcrl says nothing of the server's certificate; it must hold a list of its authority, and of \
             each one above but the last"
                .to_owned()
        }
        Fault::ExpiredRevocationListContext { next_update, .. } => {
            format!("the list in sslcrl is out of date since {}; fetch it again", date(next_update))
        }
        Fault::InvalidPurpose | Fault::InvalidPurposeContext { .. } => {
            "the server's certificate is not one for servers; issue one with serverAuth in its extendedKeyUsage".to_owned()
        }
        Fault::Other(OtherError(error)) => match error.downcast_ref::<webpki::Error>() {
            Some(webpki::Error::CaUsedAsEndEntity) => {
                "the server's certificate is an authority's own; put that very certificate into the file of \
                 sslrootcert, or issue the server one that is not (CA:FALSE)"
                    .to_owned()
            }
            Some(webpki::Error::UnsupportedCertVersion) => {
                "the server's certificate is of X.509 version 1, which cannot be verified; issue one with a \
                 subjectAltName"
                    .to_owned()
            }
            _ => format!("the server's certificate is not valid: {error}"),
        },
        fault => format!("the server's certificate is not valid: {fault}"),
    }
}

/// `DnsName("db.example")` as one would write it.
fn plain(name: &str) -> String {
    let inside = name.split_once('(').map_or(name, |(_, inside)| inside.trim_end_matches(')'));
    inside.chars().filter(|c| *c != '"' && !c.is_control()).collect()
}

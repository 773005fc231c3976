//! TLS to brokers: rustls, with the system's roots or given ones, and a certificate of our own where the
//! brokers want one.

use crate::tls::{Anybody, authorities, certificates, private_key, system_authorities};
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// What TLS needs, by the names of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the authorities that we trust, as PEM; the system's where there is none.
    pub ca: Option<PathBuf>,
    /// Our own certificate and those up to the authority's, as PEM, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Whether the broker's certificate is looked at. Without that, anybody in between can read and change
    /// everything.
    pub verify: bool,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {cause}")]
pub struct TlsFilesError {
    what: String,
    cause: String,
}

/// TLS as it was set up, to be shared by all connections.
#[derive(Debug, Clone)]
pub struct Tls(Arc<ClientConfig>);

// Two of one process are one, and nobody compares others.
impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Tls {}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// Which file, and what is wrong with it.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsFilesError> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| TlsFilesError { what: "TLS".to_owned(), cause: e.to_string() })?;
        let builder = if files.verify {
            builder.with_root_certificates(roots(files.ca.as_deref())?)
        } else {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody))
        };
        let config = match &files.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let of_certificate = of_file("KAFKA_SSL_CERTIFICATE_LOCATION", certificate);
                let chain = certificates(certificate).map_err(|e| of_certificate(&e))?;
                let of_key = of_file("KAFKA_SSL_KEY_LOCATION", key);
                let key = private_key(key).map_err(|e| of_key(&e))?;
                builder.with_client_auth_cert(chain, key).map_err(|e| of_key(&e))?
            }
        };
        Ok(Self(Arc::new(config)))
    }

    /// Shakes hands with the broker at `host`, whose certificate must be for that name or address.
    ///
    /// Cancel safe: dropping it closes the connection.
    pub(super) async fn connect(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        tokio_rustls::TlsConnector::from(Arc::clone(&self.0)).connect(name, stream).await
    }
}

fn of_file(setting: &str, file: &Path) -> impl Fn(&dyn std::fmt::Display) -> TlsFilesError {
    let what = format!("{setting} {}", file.display());
    move |cause| TlsFilesError { what: what.clone(), cause: cause.to_string() }
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, TlsFilesError> {
    if let Some(ca) = ca {
        let of_ca = of_file("KAFKA_SSL_CA_LOCATION", ca);
        return certificates(ca).and_then(authorities).map_err(|e| of_ca(&e));
    }
    system_authorities().map_err(|error| TlsFilesError {
        what: "the system's certificates".to_owned(),
        cause: error.map_or_else(
            || "there are none; name a file in KAFKA_SSL_CA_LOCATION".to_owned(),
            |error| error.to_string(),
        ),
    })
}

/// What went wrong with TLS, in words that say what to do; none if the error is not of TLS.
pub(super) fn describe(error: &io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match error {
        rustls::Error::InvalidCertificate(fault) => match fault {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => "the broker's certificate is of an authority that is not \
                                                trusted; name its certificate in KAFKA_SSL_CA_LOCATION"
                .to_owned(),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!(
                    "the broker's certificate is for another host ({fault}); use that name in \
                     KAFKA_BROKERS and the broker's advertised.listeners"
                )
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                format!("the broker's certificate has expired ({fault})")
            }
            fault => format!("the broker's certificate is not valid: {fault}"),
        },
        rustls::Error::InvalidMessage(_) => {
            "this is no TLS: does the listener want KAFKA_SSL=false?".to_owned()
        }
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::BadCertificate,
        ) => {
            format!(
                "the broker wants another certificate of ours, or one at all ({error}): set \
                 KAFKA_SSL_CERTIFICATE_LOCATION and KAFKA_SSL_KEY_LOCATION"
            )
        }
        rustls::Error::AlertReceived(_) => {
            format!("the broker refuses our TLS ({error}): is our certificate of an authority it trusts?")
        }
        error => format!("TLS: {error}"),
    })
}

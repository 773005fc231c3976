//! How the connection to PostgreSQL is encrypted: libpq's `sslmode` and what belongs to it.
//!
//! <https://www.postgresql.org/docs/current/libpq-ssl.html>. Nothing is read here: files are read again for
//! each connection, so that a certificate can be renewed without a restart.
//!
//! Differences from libpq, each on purpose: a file that was named and is not there is an error and not
//! passed over; and a problem with a file never makes `prefer` go on in clear text.

use super::postgres::{Reader, SETTING};
use std::path::{Path, PathBuf};

/// How the connection is encrypted, and whom we believe. Unix sockets never are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SslConfig {
    /// What is asked for.
    pub mode: SslMode,
    /// How TLS begins.
    pub negotiation: SslNegotiation,
    /// The authorities that a server's certificate may be of.
    pub roots: SslRoots,
    /// Lists of certificates that are revoked, as PEM.
    pub crl: Option<SslFile>,
    /// Our own certificate, and its key.
    pub identity: Option<(SslFile, SslFile)>,
    /// Whether our certificate is shown.
    pub cert_mode: SslCertMode,
    /// Whether the server is told the name it is called by, where that is no address.
    pub sni: bool,
    /// The oldest version of TLS.
    pub min_version: TlsVersion,
    /// The newest.
    pub max_version: TlsVersion,
}

/// A file of libpq's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SslFile {
    /// Where it is.
    pub path: PathBuf,
    /// Nobody has named it: it need not be there.
    pub is_default: bool,
}

/// `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS if the server refuses clear text.
    Allow,
    /// TLS if the server has it: the default.
    Prefer,
    /// TLS. The certificate is looked at as by `verify-ca` if there are authorities to look at it with, and
    /// else not at all.
    Require,
    /// TLS, and the certificate is of an authority that we trust.
    VerifyCa,
    /// The same, and it is for the host that we call.
    VerifyFull,
}

impl SslMode {
    const ALL: [Self; 6] =
        [Self::Disable, Self::Allow, Self::Prefer, Self::Require, Self::VerifyCa, Self::VerifyFull];

    /// As libpq calls it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Allow => "allow",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// `sslnegotiation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslNegotiation {
    /// The server is asked first.
    Postgres,
    /// TLS at once, which PostgreSQL 17 and later know.
    Direct,
}

/// `sslrootcert`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SslRoots {
    /// Nothing was said, and there is no home directory to look in.
    None,
    /// The system's.
    System,
    /// Those in a PEM file.
    File(SslFile),
}

/// `sslcertmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslCertMode {
    /// Never.
    Disable,
    /// If the server asks for it and there is one.
    Allow,
    /// The server must ask, and there must be one.
    Require,
}

/// A version of TLS; the oldest ones are not in this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

pub(super) fn read<E: Fn(&str) -> Option<String>>(r: &mut Reader<'_, E>) -> SslConfig {
    let roots = roots(r);
    let mode = mode(r, &roots);
    let negotiation = r.word(
        "sslnegotiation",
        SslNegotiation::Postgres,
        &[("postgres", SslNegotiation::Postgres), ("direct", SslNegotiation::Direct)],
    );
    if negotiation == SslNegotiation::Direct && mode < SslMode::Require {
        r.complain(
            "sslnegotiation",
            "sslnegotiation=direct leaves no way to clear text; it wants sslmode=require, verify-ca or \
             verify-full",
        );
    }
    let cert_mode = r.word(
        "sslcertmode",
        SslCertMode::Allow,
        &[
            ("disable", SslCertMode::Disable),
            ("allow", SslCertMode::Allow),
            ("require", SslCertMode::Require),
        ],
    );
    let certificate = file(r, "sslcert", "postgresql.crt");
    let key = file(r, "sslkey", "postgresql.key");
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (Some(_), None) => {
            r.complain(
                "sslcert",
                "sslcert wants the file of its private key, too: name it in sslkey",
            );
            None
        }
        (None, Some(_)) => {
            r.complain(
                "sslkey",
                "sslkey wants the file of its certificate, too: name it in sslcert",
            );
            None
        }
        (None, None) => None,
    };
    let (min_version, max_version) = versions(r);
    if mode != SslMode::Disable {
        r.refuse(
            "sslpassword",
            &[],
            "encrypted keys are not in this version; write the key without a pass phrase, with \
             `openssl pkey`",
        );
        r.refuse("sslcrldir", &[], "not in this version; name one file in sslcrl");
        r.refuse("sslkeylogfile", &[], "not in this version; remove it");
    }
    SslConfig {
        mode,
        negotiation,
        crl: match &roots {
            // libpq has no default beside the system's authorities, whose lists nobody has.
            SslRoots::System => r.text("sslcrl").map(named),
            _ => file(r, "sslcrl", "root.crl"),
        },
        roots,
        identity,
        cert_mode,
        sni: r.word("sslsni", true, &[("1", true), ("0", false)]),
        min_version,
        max_version,
    }
}

fn mode<E: Fn(&str) -> Option<String>>(r: &mut Reader<'_, E>, roots: &SslRoots) -> SslMode {
    let default = match roots {
        SslRoots::System => SslMode::VerifyFull,
        _ => SslMode::Prefer,
    };
    let mode = r.word("sslmode", default, &SslMode::ALL.map(|mode| (mode.name(), mode)));
    match roots {
        // Anybody has a certificate of one of them, for some name.
        SslRoots::System if mode != SslMode::VerifyFull && mode != SslMode::Disable => r.complain(
            "sslmode",
            "with sslrootcert=system only verify-full means anything; set that, or name a file of your \
             own authority in sslrootcert",
        ),
        SslRoots::None if mode >= SslMode::VerifyCa => r.complain(
            "sslmode",
            "there is nothing to verify a certificate with: name the file of its authority in \
             sslrootcert, or sslrootcert=system",
        ),
        _ => {}
    }
    mode
}

fn roots<E: Fn(&str) -> Option<String>>(r: &Reader<'_, E>) -> SslRoots {
    match r.text("sslrootcert") {
        Some(word) if word == "system" => SslRoots::System,
        _ => file(r, "sslrootcert", "root.crt").map_or(SslRoots::None, SslRoots::File),
    }
}

fn named(path: String) -> SslFile {
    SslFile { path: path.into(), is_default: false }
}

/// The file that was named, or libpq's own in the home directory.
fn file<E: Fn(&str) -> Option<String>>(
    r: &Reader<'_, E>,
    keyword: &'static str,
    default: &str,
) -> Option<SslFile> {
    r.text(keyword).map(named).or_else(|| {
        let path = Path::new(&r.home()?).join(".postgresql").join(default);
        Some(SslFile { path, is_default: true })
    })
}

/// The oldest and the newest.
fn versions<E: Fn(&str) -> Option<String>>(r: &mut Reader<'_, E>) -> (TlsVersion, TlsVersion) {
    let mut read = |keyword, default, old| {
        let Some(found) = r.find(keyword) else { return default };
        match found.text.to_ascii_lowercase().as_str() {
            "tlsv1.2" => return TlsVersion::V1_2,
            "tlsv1.3" => return TlsVersion::V1_3,
            "tlsv1" | "tlsv1.1" if old => {}
            "tlsv1" | "tlsv1.1" => r.problems.add(
                found.setting,
                format!(
                    "{keyword}={}: TLS before 1.2 is not in this version; remove it",
                    found.text
                ),
            ),
            _ => r.problems.add(
                found.setting,
                format!("{keyword} {:?} does not exist; use TLSv1.2 or TLSv1.3", found.text),
            ),
        }
        default
    };
    // What is older than 1.2 is not spoken anyway.
    let min = read("ssl_min_protocol_version", TlsVersion::V1_2, true);
    let max = read("ssl_max_protocol_version", TlsVersion::V1_3, false);
    if min > max {
        let sentence = "is newer than ssl_max_protocol_version: no version is left";
        r.problems.add(SETTING, format!("ssl_min_protocol_version {sentence}"));
    }
    (min, max)
}

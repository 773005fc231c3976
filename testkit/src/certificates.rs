//! Certificates for test servers and clients, made when they are wanted.

use crate::{process, scratch};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// An authority that signs certificates. Its files are in a folder of its own.
#[derive(Debug)]
pub struct Authority {
    folder: PathBuf,
    signer: Signer,
}

/// What an authority signs with, and what keys its certificates are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ECDSA on P-256 with SHA-256.
    Ecdsa,
    /// Ed25519.
    Ed25519,
    /// RSA with SHA-256.
    Rsa,
    /// RSA with SHA-384 and the padding PSS.
    RsaPss,
}

#[derive(Debug)]
enum Signer {
    /// In this process, with ECDSA.
    Own(Box<Issuer<'static, KeyPair>>),
    /// By the command `openssl`: nobody here makes RSA keys, nor Ed25519 keys as OpenSSL reads them.
    Openssl(Kind),
}

/// A certificate with its key, as PEM files.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key (PKCS #8).
    pub key: PathBuf,
    /// Both in one file, key first, as Kafka wants a key store.
    pub both: PathBuf,
}

impl Authority {
    /// A new authority.
    ///
    /// # Panics
    ///
    /// When its folder cannot be made or written.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "no two are alike")]
    pub fn new() -> Self {
        Self::of(Kind::Ecdsa)
    }

    /// A new authority of this kind.
    ///
    /// # Panics
    ///
    /// When its folder cannot be made or written, or `openssl` is missing and needed.
    #[must_use]
    pub fn of(kind: Kind) -> Self {
        let folder = scratch::folder("certificates").unwrap_or_else(|e| panic!("{e}"));
        // Two of one name would be taken for each other.
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let name = format!("test authority {}", COUNT.fetch_add(1, Ordering::Relaxed));
        if kind != Kind::Ecdsa {
            let mut openssl = openssl(&folder, "req -x509 -nodes -days 2 -newkey");
            openssl.arg(key(kind));
            openssl.args([
                "-subj",
                &format!("/CN={name}"),
                "-keyout",
                "ca-key.pem",
                "-out",
                "ca.pem",
            ]);
            run(openssl.args(signing(kind)));
            return Self { folder, signer: Signer::Openssl(kind) };
        }
        let key = KeyPair::generate().expect("a key pair");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).expect("a certificate");
        write(&folder.join("ca.pem"), &certificate.pem());
        Self { folder, signer: Signer::Own(Box::new(Issuer::new(params, key))) }
    }

    /// The file with its own certificate.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// A certificate for these host names and addresses.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    #[must_use]
    pub fn issue(&self, name: &str, hosts: &[&str]) -> Certificate {
        self.sign(name, hosts, |_| {})
    }

    /// One that is not valid any more.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    #[must_use]
    pub fn issue_expired(&self, name: &str, hosts: &[&str]) -> Certificate {
        self.sign(name, hosts, |params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        })
    }

    /// A certificate, and the list that says that it is revoked.
    ///
    /// # Panics
    ///
    /// When they cannot be written.
    #[must_use]
    pub fn issue_revoked(&self, name: &str, hosts: &[&str]) -> (Certificate, PathBuf) {
        let serial = SerialNumber::from_slice(&[0x12, 0x67]);
        let certificate =
            self.sign(name, hosts, |params| params.serial_number = Some(serial.clone()));
        let Signer::Own(issuer) = &self.signer else { panic!("not by openssl") };
        let revoked = RevokedCertParams {
            serial_number: serial,
            revocation_time: date_time_ymd(2025, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2025, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(issuer).and_then(|list| list.pem()).expect("a list");
        let file = self.folder.join(format!("{name}-list.pem"));
        write(&file, &list);
        (certificate, file)
    }

    fn files(&self, name: &str) -> Certificate {
        let file = |what: &str| self.folder.join(format!("{name}{what}.pem"));
        Certificate { certificate: file(""), key: file("-key"), both: file("-both") }
    }

    fn sign(
        &self,
        name: &str,
        hosts: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Certificate {
        let files = self.files(name);
        let issuer = match &self.signer {
            Signer::Own(issuer) => issuer,
            Signer::Openssl(kind) => {
                self.sign_by_openssl(*kind, name, hosts, &files);
                return files;
            }
        };
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).expect("good names");
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let key = KeyPair::generate().expect("a key pair");
        let certificate = params.signed_by(&key, issuer).expect("a certificate").pem();
        let key = key.serialize_pem();
        write(&files.certificate, &certificate);
        write_secret(&files.key, &key);
        write(&files.both, &format!("{key}{certificate}"));
        files
    }

    fn sign_by_openssl(&self, kind: Kind, name: &str, hosts: &[&str], files: &Certificate) {
        let mut extensions = "basicConstraints = CA:FALSE\n".to_owned();
        for (index, host) in hosts.iter().enumerate() {
            let what = if host.parse::<IpAddr>().is_ok() { "IP" } else { "DNS" };
            let start = if index == 0 { "subjectAltName = " } else { "," };
            let _ = write!(extensions, "{start}{what}:{host}");
        }
        write(&self.folder.join("extensions"), &extensions);
        let mut request = openssl(&self.folder, "req -nodes -out request.pem -newkey");
        let subject = format!("/CN={name}");
        run(request.args([key(kind), "-subj", &subject, "-keyout"]).arg(&files.key));
        let mut sign = openssl(
            &self.folder,
            "x509 -req -in request.pem -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 2 -extfile extensions",
        );
        run(sign.args(signing(kind)).arg("-out").arg(&files.certificate));
        let read = |file: &Path| fs::read_to_string(file).expect("what openssl wrote");
        let (key, certificate) = (read(&files.key), read(&files.certificate));
        write_secret(&files.key, &key);
        write(&files.both, &format!("{key}{certificate}"));
    }

    /// A certificate that a server has signed itself, as `openssl req -x509` makes it with these further
    /// arguments; it is not of this authority, and its files are in the same folder.
    ///
    /// # Panics
    ///
    /// When `openssl` fails or is missing.
    #[must_use]
    pub fn beside(&self, name: &str, arguments: &[&str]) -> Certificate {
        let files = self.files(name);
        let mut openssl = openssl(&self.folder, "req -x509 -nodes -days 2");
        run(openssl
            .args(arguments)
            .arg("-keyout")
            .arg(&files.key)
            .arg("-out")
            .arg(&files.certificate));
        files
    }
}

fn key(kind: Kind) -> &'static str {
    if kind == Kind::Ed25519 { "ed25519" } else { "rsa:2048" }
}

fn signing(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::RsaPss => {
            &["-sha384", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"]
        }
        Kind::Ed25519 => &[],
        _ => &["-sha256"],
    }
}

fn openssl(folder: &Path, arguments: &str) -> Command {
    let mut command = Command::new("openssl");
    command.current_dir(folder).args(arguments.split(' '));
    command
}

fn run(command: &mut Command) {
    process::run("openssl", command).unwrap_or_else(|e| panic!("{e}"));
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = scratch::remove(&self.folder);
    }
}

/// Who talks to PostgreSQL may use no key that others can read.
fn write_secret(file: &Path, text: &str) {
    write(file, text);
    fs::set_permissions(file, Permissions::from_mode(0o600))
        .unwrap_or_else(|e| panic!("{}: {e}", file.display()));
}

fn write(file: &Path, text: &str) {
    fs::write(file, text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
}

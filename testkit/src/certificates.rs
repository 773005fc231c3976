//! Certificates for test servers and clients, made when they are wanted.

use crate::scratch;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// An authority that signs certificates. Its files are in a folder of its own.
#[derive(Debug)]
pub struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
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
        let folder = scratch::folder("certificates").unwrap_or_else(|e| panic!("{e}"));
        let key = KeyPair::generate().expect("a key pair");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        // Two of one name would be taken for each other.
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        params.distinguished_name.push(DnType::CommonName, format!("test authority {number}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate");
        write(&folder.join("ca.pem"), &certificate.pem());
        Self { folder, issuer: Issuer::new(params, key) }
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

    fn sign(
        &self,
        name: &str,
        hosts: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Certificate {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).expect("good names");
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let key = KeyPair::generate().expect("a key pair");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        let key = key.serialize_pem();
        let file = |what: &str| self.folder.join(format!("{name}{what}.pem"));
        let files = Certificate { certificate: file(""), key: file("-key"), both: file("-both") };
        write(&files.certificate, &certificate);
        write(&files.key, &key);
        write(&files.both, &format!("{key}{certificate}"));
        files
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = scratch::remove(&self.folder);
    }
}

fn write(file: &Path, text: &str) {
    fs::write(file, text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
}

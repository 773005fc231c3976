//! Tying a log-in to the TLS connection that it runs over, so that nobody stands between.
//!
//! [RFC 5929](https://www.rfc-editor.org/rfc/rfc5929), section 4: `tls-server-end-point`.

use alloc::vec::Vec;
use core::{fmt, str::FromStr};

use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

/// Whether a log-in must be bound to its TLS connection: libpq's `channel_binding`.
///
/// <https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-CHANNEL-BINDING>
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// Where the server offers it and its certificate allows it.
    #[default]
    Prefer,
    /// Always: whatever ends without a verified binding has failed.
    Require,
}

impl FromStr for ChannelBinding {
    type Err = UnknownChannelBinding;

    fn from_str(text: &str) -> Result<Self, UnknownChannelBinding> {
        match text {
            "disable" => Ok(Self::Disable),
            "prefer" => Ok(Self::Prefer),
            "require" => Ok(Self::Require),
            _ => Err(UnknownChannelBinding),
        }
    }
}

/// A text is none of the values of [`ChannelBinding`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownChannelBinding;

impl fmt::Display for UnknownChannelBinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("channel_binding has no such value; use disable, prefer or require")
    }
}

impl core::error::Error for UnknownChannelBinding {}

/// What carries the session, as far as authentication is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Channel<'a> {
    /// A socket without TLS.
    #[default]
    Plain,
    /// A socket with TLS.
    Tls {
        /// The hash of the certificate that the server showed in this very connection
        /// ([`EndPointHash::of_certificate`]); `None` if none is defined for it.
        server_end_point: Option<&'a [u8]>,
    },
}

/// The hash function that `tls-server-end-point` takes a server's certificate with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndPointHash {
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl EndPointHash {
    /// "If the certificate's signatureAlgorithm uses a single hash function, and that hash function is
    /// either MD5 or SHA-1, then use SHA-256"; any other hash function is the one to use.
    ///
    /// `signature` is the algorithm that the certificate is signed with, and `pss_hash` the hash function
    /// among its parameters if that is RSASSA-PSS (absent: SHA-1). Both are the contents of a DER object
    /// identifier, without its tag and length: `as_bytes()` of most libraries for X.509.
    ///
    /// `None` where no hash is defined, as for Ed25519 and Ed448, or it is none of PostgreSQL's.
    #[must_use]
    pub fn of_signature(signature: &[u8], pss_hash: Option<&[u8]>) -> Option<Self> {
        match signature {
            RSASSA_PSS => Self::of_hash(pss_hash.unwrap_or(SHA1)),
            // pkcs-1: md5, sha1, sha224, sha256, sha384 and sha512 WithRSAEncryption.
            [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, hash] => match hash {
                4 | 5 | 11 => Some(Self::Sha256),
                12 => Some(Self::Sha384),
                13 => Some(Self::Sha512),
                14 => Some(Self::Sha224),
                _ => None,
            },
            // ecdsa-with-SHA1, and its successors.
            [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01] => Some(Self::Sha256),
            [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, hash] => match hash {
                1 => Some(Self::Sha224),
                2 => Some(Self::Sha256),
                3 => Some(Self::Sha384),
                4 => Some(Self::Sha512),
                _ => None,
            },
            _ => None,
        }
    }

    fn of_hash(hash: &[u8]) -> Option<Self> {
        match hash {
            // md5
            [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x05] | SHA1 => Some(Self::Sha256),
            // nistAlgorithms hashAlgs
            [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, hash] => match hash {
                1 => Some(Self::Sha256),
                2 => Some(Self::Sha384),
                3 => Some(Self::Sha512),
                4 => Some(Self::Sha224),
                _ => None,
            },
            _ => None,
        }
    }

    /// The hash function for a certificate in DER, as TLS libraries hand it out. It is read just far
    /// enough to find the algorithm; what cannot be read has no hash.
    #[must_use]
    pub fn of_certificate(der: &[u8]) -> Option<Self> {
        // Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm, signatureValue }
        let (certificate, []) = element(der, SEQUENCE)? else { return None };
        let (_, rest) = element(certificate, SEQUENCE)?;
        let (algorithm, _) = element(rest, SEQUENCE)?;
        let (signature, parameters) = element(algorithm, OBJECT_IDENTIFIER)?;
        if signature != RSASSA_PSS {
            return Self::of_signature(signature, None);
        }
        // RSASSA-PSS-params ::= SEQUENCE { hashAlgorithm [0] HashAlgorithm DEFAULT sha1, … }
        let (parameters, _) = element(parameters, SEQUENCE)?;
        let hash = match parameters.first() {
            Some(&HASH_ALGORITHM) => {
                let (hash, _) = element(parameters, HASH_ALGORITHM)?;
                let (hash, _) = element(hash, SEQUENCE)?;
                Some(element(hash, OBJECT_IDENTIFIER)?.0)
            }
            _ => None,
        };
        Self::of_signature(signature, hash)
    }

    /// Hashes the whole certificate, in DER: what goes into [`Channel::Tls`].
    #[must_use]
    pub fn digest(self, certificate: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha224 => Sha224::digest(certificate).to_vec(),
            Self::Sha256 => Sha256::digest(certificate).to_vec(),
            Self::Sha384 => Sha384::digest(certificate).to_vec(),
            Self::Sha512 => Sha512::digest(certificate).to_vec(),
        }
    }
}

/// id-RSASSA-PSS of RFC 4055: the hash is one of its parameters.
const RSASSA_PSS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a];
const SHA1: &[u8] = &[0x2b, 0x0e, 0x03, 0x02, 0x1a];

const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;
const HASH_ALGORITHM: u8 = 0xa0;

/// The contents of the DER element that `der` begins with, if it has this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (len, rest) = der.strip_prefix(&[tag])?.split_first()?;
    let (len, rest) = match len {
        0..=0x7f => (usize::from(*len), rest),
        // Up to 4 bytes of length, which no certificate needs.
        0x81..=0x84 => {
            let (len, rest) = rest.split_at_checked(usize::from(len & 0x7f))?;
            (len.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(len)
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use hex_literal::hex;

    use super::*;

    /// Made, like the others, by
    /// `openssl req -x509 -nodes -days 36500 -subj /CN=x -keyout /dev/null -outform DER -out FILE` and
    /// `-newkey rsa:1024 -sha256`.
    const RSA_SHA256: &[u8] = include_bytes!("fixtures/rsa-sha256.der");
    /// `-newkey rsa:1024 -sha512`
    const RSA_SHA512: &[u8] = include_bytes!("fixtures/rsa-sha512.der");
    /// `-newkey rsa:1024 -sha1`
    const RSA_SHA1: &[u8] = include_bytes!("fixtures/rsa-sha1.der");
    /// `-newkey rsa:1024 -sha384 -sigopt rsa_padding_mode:pss`
    const RSA_PSS_SHA384: &[u8] = include_bytes!("fixtures/rsa-pss-sha384.der");
    /// `-newkey rsa:1024 -sha1 -sigopt rsa_padding_mode:pss`
    const RSA_PSS_SHA1: &[u8] = include_bytes!("fixtures/rsa-pss-sha1.der");
    /// `-newkey ec -pkeyopt ec_paramgen_curve:P-384 -sha384`
    const ECDSA_SHA384: &[u8] = include_bytes!("fixtures/ecdsa-sha384.der");
    /// `-newkey ed25519`
    const ED25519: &[u8] = include_bytes!("fixtures/ed25519.der");

    const ALL: [(&[u8], Option<EndPointHash>); 7] = [
        (RSA_SHA256, Some(EndPointHash::Sha256)),
        (RSA_SHA512, Some(EndPointHash::Sha512)),
        (RSA_SHA1, Some(EndPointHash::Sha256)),
        (RSA_PSS_SHA384, Some(EndPointHash::Sha384)),
        (RSA_PSS_SHA1, Some(EndPointHash::Sha256)),
        (ECDSA_SHA384, Some(EndPointHash::Sha384)),
        (ED25519, None),
    ];

    #[test]
    fn the_hash_is_that_of_the_signature_and_at_least_sha_256() {
        for (index, (certificate, hash)) in ALL.into_iter().enumerate() {
            assert_eq!(EndPointHash::of_certificate(certificate), hash, "{index}");
        }
    }

    #[test]
    fn half_a_certificate_has_no_hash_and_neither_has_one_and_a_half() {
        for (certificate, _) in ALL {
            for len in 0..certificate.len() {
                assert_eq!(EndPointHash::of_certificate(&certificate[..len]), None, "{len}");
            }
            assert_eq!(EndPointHash::of_certificate(&[certificate, b"x"].concat()), None);
        }
    }

    #[test]
    fn a_damaged_certificate_is_read_without_panicking() {
        // Only the walk is of interest, and it sees few bytes of the middle.
        let mut seen = 0;
        for (certificate, hash) in ALL {
            let mut certificate = certificate.to_vec();
            for place in 0..certificate.len() {
                let before = certificate[place];
                for value in [0, 1, 0x06, 0x30, 0x7f, 0x80, 0x84, 0x85, 0xa0, 0xff] {
                    certificate[place] = value;
                    seen += usize::from(EndPointHash::of_certificate(&certificate) != hash);
                }
                certificate[place] = before;
            }
        }
        assert!(seen > 100, "{seen}");
    }

    #[test]
    fn algorithms_that_real_certificates_seldom_have_are_known_too() {
        let rsa = |last: u8| [&RSASSA_PSS[..8], &[last]].concat();
        let ecdsa = |tail: &[u8]| [&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04], tail].concat();
        let nist = |last: u8| [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, last];
        let md5 = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x05];
        let of = |signature: &[u8]| EndPointHash::of_signature(signature, None);
        assert_eq!(of(&rsa(4)), Some(EndPointHash::Sha256), "md5");
        assert_eq!(of(&rsa(12)), Some(EndPointHash::Sha384));
        assert_eq!(of(&rsa(14)), Some(EndPointHash::Sha224));
        assert_eq!(of(&rsa(1)), None, "no signature at all");
        assert_eq!(of(&ecdsa(&[1])), Some(EndPointHash::Sha256), "sha1");
        assert_eq!(of(&ecdsa(&[3, 1])), Some(EndPointHash::Sha224));
        assert_eq!(of(&ecdsa(&[3, 2])), Some(EndPointHash::Sha256));
        assert_eq!(of(&ecdsa(&[3, 4])), Some(EndPointHash::Sha512));
        assert_eq!(of(&ecdsa(&[3, 5])), None);
        assert_eq!(of(&[0x2b, 0x65, 0x71]), None, "Ed448");
        for (hash, expected) in [
            (&nist(1)[..], Some(EndPointHash::Sha256)),
            (&nist(3), Some(EndPointHash::Sha512)),
            (&nist(4), Some(EndPointHash::Sha224)),
            (&nist(8), None),
            (&md5, Some(EndPointHash::Sha256)),
            (b"", None),
        ] {
            assert_eq!(EndPointHash::of_signature(RSASSA_PSS, Some(hash)), expected, "{hash:?}");
        }
    }

    #[test]
    fn a_digest_is_of_the_whole_certificate() {
        for (hash, len, begins) in DIGESTS {
            let digest = hash.digest(RSA_SHA256);
            assert_eq!((digest.len(), &digest[..4]), (len, &begins[..]), "{hash:?}");
        }
    }

    /// `openssl dgst -sha224 rsa-sha256.der`, and so on.
    const DIGESTS: [(EndPointHash, usize, [u8; 4]); 4] = [
        (EndPointHash::Sha224, 28, hex!("9143248d")),
        (EndPointHash::Sha256, 32, hex!("fb513b4f")),
        (EndPointHash::Sha384, 48, hex!("04f9da6d")),
        (EndPointHash::Sha512, 64, hex!("d7dd9b5f")),
    ];

    #[test]
    fn values_are_those_of_libpq() {
        assert_eq!("disable".parse(), Ok(ChannelBinding::Disable));
        assert_eq!("prefer".parse(), Ok(ChannelBinding::Prefer));
        assert_eq!("require".parse(), Ok(ChannelBinding::Require));
        assert_eq!(ChannelBinding::default(), ChannelBinding::Prefer);
        for text in ["", "Require", "required"] {
            assert_eq!(text.parse::<ChannelBinding>(), Err(UnknownChannelBinding));
        }
        assert!(UnknownChannelBinding.to_string().contains("use disable, prefer or require"));
    }
}

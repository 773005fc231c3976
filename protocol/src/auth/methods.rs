//! Which methods of authentication a client goes along with.

use alloc::{borrow::ToOwned, string::String};
use core::fmt;

/// The methods of authentication that a client goes along with.
///
/// The server chooses, so whatever is allowed here can be asked for by anybody who answers in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuthMethods {
    /// Nothing is asked (`trust`, `peer`, `cert`): the server proves nothing either.
    pub trust: bool,
    /// The password as it is. Only over verified TLS, or where the operator says so.
    pub cleartext: bool,
    /// A hash that is as good as the password to whoever records it. As for cleartext.
    pub md5: bool,
    /// SCRAM-SHA-256, and SCRAM-SHA-256-PLUS over TLS.
    pub scram: bool,
}

/// Trust and SCRAM: what shows the password to nobody.
impl Default for AuthMethods {
    fn default() -> Self {
        Self { trust: true, scram: true, ..Self::NONE }
    }
}

impl AuthMethods {
    /// Nothing is allowed.
    pub const NONE: Self = Self { trust: false, cleartext: false, md5: false, scram: false };
    /// Everything that is implemented: what libpq allows without `require_auth`.
    pub const ALL: Self = Self { trust: true, cleartext: true, md5: true, scram: true };

    /// Reads libpq's `require_auth`: `scram-sha-256,md5` allows only these two, and `!none,!password`
    /// takes these two away from `self`. libpq takes them from [`ALL`](Self::ALL); from the
    /// [default](Self::default), a refusal never brings in what must be asked for by name.
    ///
    /// `gss`, `sspi` and `oauth` may be named, and change nothing: they are not implemented. What is left
    /// can be [`NONE`](Self::NONE). Blanks around a name do not count, and nor does an empty list.
    ///
    /// <https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-REQUIRE-AUTH>
    ///
    /// # Errors
    ///
    /// If a name is not known or is there twice, or some are refused and some are not.
    pub fn require(self, list: &str) -> Result<Self, RequireAuthError> {
        if list.is_empty() {
            return Ok(self);
        }
        let names = || list.split(',').map(str::trim);
        let refusing = names().all(|name| name.starts_with('!'));
        let mut allowed = if refusing { self } else { Self::NONE };
        for (at, name) in names().enumerate() {
            if names().take(at).any(|before| before == name) {
                return Err(RequireAuthError::Repeated(name.to_owned()));
            }
            let method = match name.strip_prefix('!') {
                Some(_) if !refusing => return Err(RequireAuthError::Mixed),
                Some(method) => method,
                None => name,
            };
            match method {
                "none" => allowed.trust = !refusing,
                "password" => allowed.cleartext = !refusing,
                "md5" => allowed.md5 = !refusing,
                "scram-sha-256" => allowed.scram = !refusing,
                "gss" | "sspi" | "oauth" => {}
                _ => return Err(RequireAuthError::Unknown(method.to_owned())),
            }
        }
        Ok(allowed)
    }
}

/// Why a `require_auth` cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequireAuthError {
    /// Some methods are refused and some are allowed: what of the others?
    Mixed,
    /// A method is there twice.
    Repeated(String),
    /// There is no such method.
    Unknown(String),
}

impl fmt::Display for RequireAuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mixed => {
                f.write_str("require_auth mixes methods with and without !; write one kind only")
            }
            Self::Repeated(method) => {
                write!(f, "require_auth has the method {method:?} twice; write it once")
            }
            Self::Unknown(method) => write!(
                f,
                "require_auth has no method {method:?}; use scram-sha-256, md5, password or none"
            ),
        }
    }
}

impl core::error::Error for RequireAuthError {}

/// One method, for messages. Displays as its name in `require_auth`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMethod {
    /// Nothing was asked.
    Trust,
    /// The password as it is.
    Cleartext,
    /// The password hashed with MD5.
    Md5,
    /// SCRAM-SHA-256.
    Scram,
}

impl fmt::Display for AuthMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Trust => "none",
            Self::Cleartext => "password",
            Self::Md5 => "md5",
            Self::Scram => "scram-sha-256",
        })
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    fn require(list: &str) -> AuthMethods {
        AuthMethods::default().require(list).unwrap()
    }

    #[test]
    fn a_list_allows_what_it_names_and_nothing_else() {
        let scram = AuthMethods { scram: true, ..AuthMethods::NONE };
        assert_eq!(require("scram-sha-256"), scram);
        assert_eq!(require("password, scram-sha-256"), AuthMethods { cleartext: true, ..scram });
        assert_eq!(
            require("md5,none"),
            AuthMethods { md5: true, trust: true, ..AuthMethods::NONE }
        );
        assert_eq!(require("none,password,md5,scram-sha-256"), AuthMethods::ALL);
        assert_eq!(require(""), AuthMethods::default());
    }

    #[test]
    fn what_is_not_implemented_may_be_named_and_changes_nothing() {
        assert_eq!(require("gss,sspi,oauth"), AuthMethods::NONE);
        assert_eq!(require("!gss,!sspi,!oauth"), AuthMethods::default());
    }

    #[test]
    fn a_refusal_takes_away_and_never_brings_in() {
        let scram = AuthMethods { scram: true, ..AuthMethods::NONE };
        assert_eq!(require("!none"), scram);
        assert_eq!(require("!password, !md5"), AuthMethods::default());
        assert_eq!(AuthMethods::ALL.require("!none,!password,!md5"), Ok(scram));
        assert_eq!(require("!scram-sha-256,!none"), AuthMethods::NONE);
    }

    /// As libpq refuses it: whoever writes a method twice meant another.
    #[test]
    fn a_method_that_is_there_twice_is_refused() {
        for (list, method) in [("md5,scram-sha-256, md5", "md5"), ("!none,!none", "!none")] {
            let error = AuthMethods::ALL.require(list).unwrap_err();
            assert_eq!(error, RequireAuthError::Repeated(method.into()));
        }
    }

    #[test]
    fn a_list_that_cannot_be_is_refused_with_a_sentence() {
        let error = |list| AuthMethods::ALL.require(list).unwrap_err();
        for list in ["md5,!none", "!none,md5", "!none,"] {
            assert_eq!(error(list), RequireAuthError::Mixed, "{list}");
        }
        for (list, name) in [("tls", "tls"), ("md5,", ""), ("!!md5", "!md5"), ("MD5", "MD5")] {
            assert_eq!(error(list), RequireAuthError::Unknown(name.into()), "{list}");
        }
        assert_eq!(
            error("!tls").to_string(),
            "require_auth has no method \"tls\"; use scram-sha-256, md5, password or none"
        );
        assert_eq!(
            error("md5,!none").to_string(),
            "require_auth mixes methods with and without !; write one kind only"
        );
    }
}

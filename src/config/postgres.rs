//! Where PostgreSQL is and how to log in, with libpq's meaning.
//!
//! Parameters: <https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS>;
//! variables: <https://www.postgresql.org/docs/current/libpq-envars.html>. What libpq knows and
//! this version does not do is a problem, unless leaving it out changes nothing.
//!
//! Three differences, each on purpose: a role must be named (libpq takes the operating system's
//! user, which for a service in a container means nothing), a connection attempt without
//! `connect_timeout` ends after 10 s (libpq waits for ever), and several hosts
//! without `target_session_attrs` mean the primary among them (libpq: any).

use super::{Problems, Secret, conninfo};
use factlib_protocol::auth::AuthMethods;
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// How long one connection attempt may take when `connect_timeout` says nothing.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where packagers put the socket (upstream's own default is `/tmp`).
const SOCKET_DIR: &str = "/var/run/postgresql";

const PORT: u16 = 5432;

/// The setting that all problems here belong to.
const SETTING: &str = "MASTER_DATABASE_URL";

/// Every keyword that libpq 18 knows, with its environment variable.
const KEYWORDS: &[(&str, Option<&str>)] = &[
    ("application_name", Some("PGAPPNAME")),
    ("channel_binding", Some("PGCHANNELBINDING")),
    ("client_encoding", Some("PGCLIENTENCODING")),
    ("connect_timeout", Some("PGCONNECT_TIMEOUT")),
    ("dbname", Some("PGDATABASE")),
    ("fallback_application_name", None),
    ("gssdelegation", Some("PGGSSDELEGATION")),
    ("gssencmode", Some("PGGSSENCMODE")),
    ("gsslib", Some("PGGSSLIB")),
    ("host", Some("PGHOST")),
    ("hostaddr", Some("PGHOSTADDR")),
    ("keepalives", None),
    ("keepalives_count", None),
    ("keepalives_idle", None),
    ("keepalives_interval", None),
    ("krbsrvname", Some("PGKRBSRVNAME")),
    ("load_balance_hosts", Some("PGLOADBALANCEHOSTS")),
    ("max_protocol_version", Some("PGMAXPROTOCOLVERSION")),
    ("min_protocol_version", Some("PGMINPROTOCOLVERSION")),
    ("oauth_client_id", None),
    ("oauth_client_secret", None),
    ("oauth_issuer", None),
    ("oauth_scope", None),
    ("options", Some("PGOPTIONS")),
    ("passfile", Some("PGPASSFILE")),
    ("password", Some("PGPASSWORD")),
    ("port", Some("PGPORT")),
    ("replication", None),
    ("require_auth", Some("PGREQUIREAUTH")),
    ("requirepeer", Some("PGREQUIREPEER")),
    ("scram_client_key", None),
    ("scram_server_key", None),
    ("service", Some("PGSERVICE")),
    ("ssl_max_protocol_version", Some("PGSSLMAXPROTOCOLVERSION")),
    ("ssl_min_protocol_version", Some("PGSSLMINPROTOCOLVERSION")),
    ("sslcert", Some("PGSSLCERT")),
    ("sslcertmode", Some("PGSSLCERTMODE")),
    ("sslcompression", Some("PGSSLCOMPRESSION")),
    ("sslcrl", Some("PGSSLCRL")),
    ("sslcrldir", Some("PGSSLCRLDIR")),
    ("sslkey", Some("PGSSLKEY")),
    ("sslkeylogfile", None),
    ("sslmode", Some("PGSSLMODE")),
    ("sslnegotiation", Some("PGSSLNEGOTIATION")),
    ("sslpassword", None),
    ("sslrootcert", Some("PGSSLROOTCERT")),
    ("sslsni", Some("PGSSLSNI")),
    ("target_session_attrs", Some("PGTARGETSESSIONATTRS")),
    ("tcp_user_timeout", None),
    ("user", Some("PGUSER")),
];

pub(super) fn is_keyword(keyword: &str) -> bool {
    KEYWORDS.iter().any(|(known, _)| *known == keyword)
}

/// How to reach PostgreSQL and log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresConfig {
    /// At least one; tried in order.
    pub hosts: Vec<Host>,
    /// The role.
    pub user: String,
    /// The database, whose facts are read.
    pub database: String,
    /// The password, if one was given.
    pub password: Option<Secret>,
    /// What `pg_stat_activity` and `pg_stat_replication` call us.
    pub application_name: String,
    /// Command-line options for the session, passed on as they are.
    pub options: Option<String>,
    /// How the server may let us in (`require_auth`). Without it, by SCRAM and without a password: libpq
    /// would also hand out the password in clear text or as md5 to whoever asks.
    pub auth: AuthMethods,
    /// `disable`, `allow` or `prefer`; all three mean clear text in this version.
    pub sslmode: SslMode,
    /// Which of several hosts will do.
    pub target_session_attrs: TargetSessionAttrs,
    /// How long one attempt at one address may take, login included; none waits for ever.
    pub connect_timeout: Option<Duration>,
    /// `TCP_USER_TIMEOUT` of our end of the socket; none leaves it to the operating system.
    pub tcp_user_timeout: Option<Duration>,
    /// TCP keepalives of our end of the socket; none switches them off.
    pub keepalives: Option<Keepalives>,
}

/// One place where PostgreSQL may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// Over TCP.
    Tcp {
        /// A name, or an address without brackets. Names are looked up anew for every attempt.
        host: String,
        /// The address to connect to instead of looking `host` up (`hostaddr`).
        addr: Option<IpAddr>,
        /// The port.
        port: u16,
    },
    /// Through a Unix socket.
    Unix {
        /// The directory of the socket, absolute; or `@` and a name in Linux's abstract namespace.
        dir: String,
        /// The port, which is part of the socket's name.
        port: u16,
    },
}

impl Host {
    /// The path of a Unix socket. One in the abstract namespace begins with a NUL byte, as tokio
    /// and the kernel want it.
    pub fn socket_path(&self) -> Option<String> {
        match self {
            Self::Tcp { .. } => None,
            Self::Unix { dir, port } => {
                let path = format!("{dir}/.s.PGSQL.{port}");
                Some(match path.strip_prefix('@') {
                    Some(name) => format!("\0{name}"),
                    None => path,
                })
            }
        }
    }
}

impl fmt::Display for Host {
    /// As one would name it in a log: `db:5432`, `[::1]:5432`, `/run/postgresql/.s.PGSQL.5432`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, addr, port } => {
                if host.contains(':') {
                    write!(f, "[{host}]:{port}")?;
                } else {
                    write!(f, "{host}:{port}")?;
                }
                match addr {
                    Some(addr) if addr.to_string() != *host => write!(f, " ({addr})"),
                    _ => Ok(()),
                }
            }
            Self::Unix { dir, port } => write!(f, "{dir}/.s.PGSQL.{port}"),
        }
    }
}

/// The `sslmode`s of this version, all of them clear text: like a libpq that was built without TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS if the server refuses clear text.
    Allow,
    /// TLS if the server has it: the default.
    Prefer,
}

/// Which of several hosts will do (`target_session_attrs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetSessionAttrs {
    /// Whichever answers first.
    Any,
    /// One that takes writes: not in recovery, and `default_transaction_read_only` is off.
    ReadWrite,
    /// One that is not in recovery.
    Primary,
}

/// TCP keepalives; what is not set is left to the operating system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keepalives {
    /// Silence before the first probe.
    pub idle: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
    /// Unanswered probes before the connection counts as dead.
    pub count: Option<u32>,
}

/// The connection string with its fallbacks, and the problems found while reading it.
struct Reader<'a, E> {
    given: HashMap<String, String>,
    env: E,
    problems: &'a mut Problems,
}

/// A value and how to name it in a sentence.
struct Found {
    text: String,
    setting: &'static str,
}

impl<E: Fn(&str) -> Option<String>> Reader<'_, E> {
    /// The value of a keyword; given but empty means libpq's default, as does not given at all.
    fn find(&self, keyword: &'static str) -> Option<Found> {
        if let Some(text) = self.given.get(keyword) {
            return (!text.is_empty()).then(|| Found { text: text.clone(), setting: SETTING });
        }
        let variable = KEYWORDS.iter().find(|(known, _)| *known == keyword)?.1?;
        let text = (self.env)(variable).filter(|text| !text.is_empty())?;
        Some(Found { text, setting: variable })
    }

    fn text(&self, keyword: &'static str) -> Option<String> {
        self.find(keyword).map(|found| found.text)
    }

    /// Reads an integer as libpq does: decimal, blanks around it allowed.
    fn integer(&mut self, keyword: &'static str) -> Option<i32> {
        let found = self.find(keyword)?;
        let number = found.text.trim().parse().ok();
        if number.is_none() {
            self.problems
                .add(found.setting, format!("{keyword} {:?} is not a whole number", found.text));
        }
        number
    }

    fn seconds(&mut self, keyword: &'static str) -> Option<Duration> {
        let seconds = self.integer(keyword)?;
        u64::try_from(seconds).ok().filter(|s| *s > 0).map(Duration::from_secs)
    }

    /// Refuses a parameter that would ask for something this version does not do.
    fn refuse(&mut self, keyword: &'static str, harmless: &[&str], sentence: &str) {
        if let Some(found) = self.find(keyword)
            && !harmless.contains(&found.text.as_str())
        {
            self.problems.add(found.setting, format!("{keyword}: {sentence}"));
        }
    }
}

/// Reads the connection string and libpq's variables; problems go to `problems`.
///
/// `app_name` is `APP_NAME` where it was set.
pub(super) fn read(
    url: Option<&str>,
    app_name: Option<&str>,
    tcp_user_timeout: Duration,
    env: impl Fn(&str) -> Option<String>,
    problems: &mut Problems,
) -> Option<PostgresConfig> {
    let problems_before = problems.len();
    let given: HashMap<_, _> = match url.map(conninfo::parse) {
        Some(Ok(pairs)) => pairs.into_iter().collect(),
        Some(Err(error)) => {
            problems.add(SETTING, error);
            return None;
        }
        None => HashMap::new(),
    };
    let mut r = Reader { given, env, problems };
    if url.is_none() && r.find("host").or_else(|| r.find("hostaddr")).is_none() {
        r.problems
            .add(SETTING, "not set; give a URL such as postgres://owlpost@db.example:5432/app");
        return None;
    }

    let sslmode = sslmode(&mut r);
    refuse_what_is_not_here(&mut r, sslmode);
    let hosts = hosts(&mut r);
    let target_session_attrs = target_session_attrs(&mut r, hosts.len());
    let auth = auth(&mut r);
    let user = r.text("user").unwrap_or_else(|| {
        r.problems.add(SETTING, "names no role; write postgres://ROLE@HOST/DATABASE or set PGUSER");
        String::new()
    });
    let application_name =
        (r.given.get("application_name").cloned().filter(|name| !name.is_empty()))
            .or_else(|| app_name.map(str::to_owned))
            .or_else(|| r.text("application_name"))
            .or_else(|| r.text("fallback_application_name"))
            .unwrap_or_else(|| super::APP_NAME.to_owned());
    for keyword in ["user", "dbname", "application_name", "options", "password"] {
        // Start-up parameters are NUL-terminated strings.
        if let Some(found) = r.find(keyword)
            && found.text.contains('\0')
        {
            r.problems.add(found.setting, format!("{keyword} contains a NUL byte"));
        }
    }
    let connect_timeout = match r.integer("connect_timeout") {
        Some(seconds) => u64::try_from(seconds).ok().filter(|s| *s > 0).map(Duration::from_secs),
        None => Some(CONNECT_TIMEOUT),
    };
    let tcp_user_timeout = match r.integer("tcp_user_timeout") {
        Some(ms) => u64::try_from(ms).ok().filter(|ms| *ms > 0).map(Duration::from_millis),
        None => Some(tcp_user_timeout),
    };
    let keepalives = Keepalives {
        idle: r.seconds("keepalives_idle"),
        interval: r.seconds("keepalives_interval"),
        count: r.integer("keepalives_count").and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0),
    };
    let keepalives = (r.integer("keepalives") != Some(0)).then_some(keepalives);

    let config = PostgresConfig {
        hosts,
        database: r.text("dbname").unwrap_or_else(|| user.clone()),
        user,
        password: r.text("password").map(Secret::new),
        application_name,
        options: r.text("options"),
        auth,
        sslmode,
        target_session_attrs,
        connect_timeout,
        tcp_user_timeout,
        keepalives,
    };
    (problems.len() == problems_before).then_some(config)
}

fn auth<E: Fn(&str) -> Option<String>>(r: &mut Reader<'_, E>) -> AuthMethods {
    let Some(found) = r.find("require_auth") else { return AuthMethods::default() };
    // A refusal takes away from our default and never brings in md5 or clear text.
    let problem = match AuthMethods::default().require(&found.text) {
        Ok(AuthMethods::NONE) => "require_auth leaves no method that this version has; \
             use scram-sha-256, md5, password or none"
            .to_owned(),
        Ok(methods) => return methods,
        Err(error) => error.to_string(),
    };
    r.problems.add(found.setting, problem);
    AuthMethods::default()
}

fn sslmode<E: Fn(&str) -> Option<String>>(r: &mut Reader<'_, E>) -> SslMode {
    let Some(found) = r.find("sslmode") else { return SslMode::Prefer };
    match found.text.as_str() {
        "disable" => return SslMode::Disable,
        "allow" => return SslMode::Allow,
        "prefer" => return SslMode::Prefer,
        mode @ ("require" | "verify-ca" | "verify-full") => r.problems.add(
            found.setting,
            format!(
                "sslmode={mode}: TLS to PostgreSQL is not in this version; use a private network and \
                 sslmode=prefer"
            ),
        ),
        mode => r.problems.add(
            found.setting,
            format!("sslmode {mode:?} does not exist; use disable, allow or prefer"),
        ),
    }
    SslMode::Prefer
}

fn refuse_what_is_not_here<E: Fn(&str) -> Option<String>>(r: &mut Reader<'_, E>, sslmode: SslMode) {
    const NO_TLS: &str =
        "TLS to PostgreSQL is not in this version; remove it or set sslmode=disable";
    if sslmode != SslMode::Disable {
        // libpq ignores these without TLS; here somebody expects TLS and would not get it.
        for keyword in [
            "sslcert",
            "sslkey",
            "sslpassword",
            "sslrootcert",
            "sslcrl",
            "sslcrldir",
            "sslkeylogfile",
            "ssl_min_protocol_version",
            "ssl_max_protocol_version",
        ] {
            r.refuse(keyword, &[], NO_TLS);
        }
        r.refuse("sslcertmode", &["allow", "disable"], NO_TLS);
        r.refuse("sslnegotiation", &["postgres"], NO_TLS);
    }
    r.refuse(
        "channel_binding",
        &["disable", "prefer"],
        "it needs TLS, which is not in this version; remove it",
    );
    r.refuse("gssencmode", &["disable", "prefer"], "GSSAPI is not in this version; remove it");
    r.refuse("requirepeer", &[], "not in this version; remove it");
    r.refuse(
        "service",
        &[],
        "service files are not in this version; write the parameters into MASTER_DATABASE_URL",
    );
    if r.find("password").is_none() {
        r.refuse("passfile", &[], "password files are not in this version; set PGPASSWORD");
    }
    for keyword in ["scram_client_key", "scram_server_key"] {
        r.refuse(keyword, &[], "not in this version; set the password instead");
    }
    for keyword in ["oauth_issuer", "oauth_client_id", "oauth_client_secret", "oauth_scope"] {
        r.refuse(keyword, &[], "OAuth is not in this version; remove it");
    }
    r.refuse("load_balance_hosts", &["disable"], "hosts are tried in order; remove it");
    r.refuse("min_protocol_version", &["3.0"], "this version speaks protocol 3.0; remove it");
    // The facts themselves are never converted; this is about names and error messages.
    r.refuse(
        "client_encoding",
        &["UTF8", "utf8", "UTF-8", "utf-8", "auto"],
        "only UTF8; remove it",
    );
}

fn target_session_attrs<E: Fn(&str) -> Option<String>>(
    r: &mut Reader<'_, E>,
    hosts: usize,
) -> TargetSessionAttrs {
    let default = if hosts > 1 { TargetSessionAttrs::Primary } else { TargetSessionAttrs::Any };
    let Some(found) = r.find("target_session_attrs") else { return default };
    match found.text.as_str() {
        "any" => return TargetSessionAttrs::Any,
        "read-write" => return TargetSessionAttrs::ReadWrite,
        "primary" => return TargetSessionAttrs::Primary,
        attrs @ ("read-only" | "standby" | "prefer-standby") => r.problems.add(
            found.setting,
            format!(
                "target_session_attrs={attrs}: reading from a standby is not in this version; \
                 use primary"
            ),
        ),
        attrs => r.problems.add(
            found.setting,
            format!(
                "target_session_attrs {attrs:?} does not exist; use any, primary or read-write"
            ),
        ),
    }
    default
}

/// Pairs up the lists of hosts, addresses and ports by libpq's rules.
fn hosts<E: Fn(&str) -> Option<String>>(r: &mut Reader<'_, E>) -> Vec<Host> {
    let split = |found: &Option<Found>| -> Vec<String> {
        found.iter().flat_map(|found| found.text.split(',')).map(|s| s.trim().to_owned()).collect()
    };
    let (host, hostaddr, port) = (r.find("host"), r.find("hostaddr"), r.find("port"));
    let (names, addrs, ports) = (split(&host), split(&hostaddr), split(&port));
    let count = names.len().max(addrs.len()).max(1);

    if let Some(hostaddr) = &hostaddr
        && host.is_some()
        && names.len() != addrs.len()
    {
        r.problems.add(
            hostaddr.setting,
            format!(
                "{} for {}; give one each",
                counted(addrs.len(), "hostaddr"),
                counted(names.len(), "host")
            ),
        );
        return Vec::new();
    }
    if let Some(port) = &port
        && ports.len() != 1
        && ports.len() != count
    {
        r.problems.add(
            port.setting,
            format!(
                "{} for {}; give one for all or one each",
                counted(ports.len(), "port"),
                counted(count, "host")
            ),
        );
        return Vec::new();
    }

    let mut hosts = Vec::with_capacity(count);
    for index in 0..count {
        let text = match ports.len() {
            0 | 1 => ports.first(),
            _ => ports.get(index),
        };
        let port_number = match text.map(String::as_str) {
            None | Some("") => PORT,
            Some(text) => match text.parse() {
                Ok(number) if number != 0 => number,
                _ => {
                    let setting = port.as_ref().map_or(SETTING, |found| found.setting);
                    // Behind the colon of a URL an unescaped password can end up: do not repeat it.
                    r.problems.add(setting, "a port is not a number from 1 to 65535");
                    return Vec::new();
                }
            },
        };
        let name = names.get(index).map_or("", String::as_str);
        let addr: Option<IpAddr> = match addrs.get(index).map(String::as_str) {
            None | Some("") => None,
            Some(text) => match text.parse() {
                Ok(addr) => Some(addr),
                Err(_) => {
                    let setting = hostaddr.as_ref().map_or(SETTING, |found| found.setting);
                    r.problems.add(setting, format!("hostaddr {text:?} is not an IP address"));
                    return Vec::new();
                }
            },
        };
        hosts.push(match (name, addr) {
            ("", None) => Host::Unix { dir: SOCKET_DIR.to_owned(), port: port_number },
            ("", Some(ip)) => Host::Tcp { host: ip.to_string(), addr: Some(ip), port: port_number },
            (dir, None) if dir.starts_with(['/', '@']) => {
                Host::Unix { dir: dir.trim_end_matches('/').to_owned(), port: port_number }
            }
            (name, _) if name.contains(['@', '/', ' ', '\0']) => {
                let setting = host.as_ref().map_or(SETTING, |found| found.setting);
                r.problems.add(
                    setting,
                    "a host name contains @, / or a blank; percent-encode what is special in a \
                     password (@ is %40, / is %2F)",
                );
                return Vec::new();
            }
            (name, addr) => Host::Tcp { host: name.to_owned(), addr, port: port_number },
        });
    }
    hosts
}

fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

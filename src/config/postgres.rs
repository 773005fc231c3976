//! Where PostgreSQL is and how to log in, with libpq's meaning.
//!
//! Parameters: <https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS>;
//! variables: <https://www.postgresql.org/docs/current/libpq-envars.html>. What libpq knows and
//! this version does not do is a problem, unless leaving it out changes nothing.
//!
//! Four differences, each on purpose: a role must be named (libpq takes the operating system's
//! user, which for a service in a container means nothing), a connection attempt without
//! `connect_timeout` ends after 10 s (libpq waits for ever), several hosts
//! without `target_session_attrs` mean the primary among them (libpq: any), and the password is shown, in
//! clear text or as md5, only to a server whose certificate was verified for its name, unless
//! `require_auth` says otherwise (libpq: to whoever asks). For TLS there are two more, in [`ssl`].

use super::ssl::{self, SslConfig, SslMode};
use super::{Problems, Secret, conninfo};
use factlib_protocol::auth::AuthMethods;
use factlib_protocol::auth::channel_binding::ChannelBinding;
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long one connection attempt may take when `connect_timeout` says nothing.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where packagers put the socket (upstream's own default is `/tmp`).
pub(crate) const SOCKET_DIR: &str = "/var/run/postgresql";

const PORT: u16 = 5432;

const FILE: &str = "DATABASE_PASSWORD_FILE";
const COMMAND: &str = "DATABASE_PASSWORD_COMMAND";

/// The setting that all problems here belong to.
pub(super) const SETTING: &str = "MASTER_DATABASE_URL";

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
    /// At least one, unless the command needs none; tried in order.
    pub hosts: Vec<Host>,
    /// The role.
    pub user: String,
    /// The database, whose facts are read.
    pub database: String,
    /// Where the password is.
    pub password: PasswordSource,
    /// What `pg_stat_activity` and `pg_stat_replication` call us.
    pub application_name: String,
    /// Command-line options for the session, passed on as they are.
    pub options: Option<String>,
    /// How the server may let us in (`require_auth`). Without it, by SCRAM and without a password.
    pub auth: AuthMethods,
    /// The same where TLS has shown that the server is the one that we call (`verify-full`). Without
    /// `require_auth`, by every method.
    pub auth_verified: AuthMethods,
    /// Whether the log-in must be bound to the TLS connection.
    pub channel_binding: ChannelBinding,
    /// How the connection is encrypted.
    pub ssl: SslConfig,
    /// Which of several hosts will do.
    pub target_session_attrs: TargetSessionAttrs,
    /// How long one attempt at one address may take, login included; none waits for ever.
    pub connect_timeout: Option<Duration>,
    /// `TCP_USER_TIMEOUT` of our end of the socket; none leaves it to the operating system.
    pub tcp_user_timeout: Option<Duration>,
    /// TCP keepalives of our end of the socket; none switches them off.
    pub keepalives: Option<Keepalives>,
}

/// For commands that have nothing to do with a database, where none is set.
pub(super) fn nowhere(own: Own<'_>) -> Option<PostgresConfig> {
    let url = Some("postgres://nobody@/nowhere?sslmode=disable");
    let config = read(Own { url, ..own }, |_| None, &mut Problems::default())?;
    Some(PostgresConfig { hosts: Vec::new(), ..config })
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
    /// What a certificate must be for: the name where there is one, or else the address. Nothing for a Unix
    /// socket.
    pub fn name(&self) -> &str {
        match self {
            Self::Tcp { host, .. } => host,
            Self::Unix { .. } => "",
        }
    }

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

/// Where the password is. What is not in the configuration itself is read again for each connection, so that
/// it can be changed without a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PasswordSource {
    /// Nowhere.
    None,
    /// In the connection string, or in `PGPASSWORD`.
    Given(Secret),
    /// In a file that holds nothing else.
    File(PathBuf),
    /// What a shell prints that runs this.
    Command(Secret),
    /// In a password file of libpq's, if that is there and has a line for us.
    Passfile(PathBuf),
}

impl PasswordSource {
    /// True if it may be another one at the next connection.
    pub fn may_change(&self) -> bool {
        match self {
            Self::None | Self::Given(_) => false,
            Self::File(_) | Self::Command(_) | Self::Passfile(_) => true,
        }
    }
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
pub(super) struct Reader<'a, E> {
    given: HashMap<String, String>,
    env: E,
    pub(super) problems: &'a mut Problems,
}

/// A value and how to name it in a sentence.
pub(super) struct Found {
    pub(super) text: String,
    pub(super) setting: &'static str,
}

impl<E: Fn(&str) -> Option<String>> Reader<'_, E> {
    /// The value of a keyword; given but empty means libpq's default, as does not given at all.
    pub(super) fn find(&self, keyword: &'static str) -> Option<Found> {
        if let Some(text) = self.given.get(keyword) {
            return (!text.is_empty()).then(|| Found { text: text.clone(), setting: SETTING });
        }
        let variable = KEYWORDS.iter().find(|(known, _)| *known == keyword)?.1?;
        let text = (self.env)(variable).filter(|text| !text.is_empty())?;
        Some(Found { text, setting: variable })
    }

    pub(super) fn text(&self, keyword: &'static str) -> Option<String> {
        self.find(keyword).map(|found| found.text)
    }

    /// Where libpq looks for files that nobody has named.
    pub(super) fn home(&self) -> Option<String> {
        (self.env)("HOME").filter(|home| !home.is_empty())
    }

    /// Adds a problem where the keyword's value was found.
    pub(super) fn complain(&mut self, keyword: &'static str, sentence: &str) {
        let setting = self.find(keyword).map_or(SETTING, |found| found.setting);
        self.problems.add(setting, sentence);
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(
        &mut self,
        keyword: &'static str,
        default: T,
        words: &[(&str, T)],
    ) -> T {
        let Some(found) = self.find(keyword) else { return default };
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == found.text) {
            return *value;
        }
        let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let sentence =
            format!("{keyword} {:?} does not exist; use one of {}", found.text, words.join(", "));
        self.problems.add(found.setting, sentence);
        default
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
    pub(super) fn refuse(&mut self, keyword: &'static str, harmless: &[&str], sentence: &str) {
        if let Some(found) = self.find(keyword)
            && !harmless.contains(&found.text.as_str())
        {
            self.problems.add(found.setting, format!("{keyword}: {sentence}"));
        }
    }
}

/// Our own settings that say something about the connection, where they were set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Own<'a> {
    pub(super) url: Option<&'a str>,
    pub(super) password_file: Option<&'a str>,
    pub(super) password_command: Option<&'a str>,
    pub(super) app_name: Option<&'a str>,
    pub(super) tcp_user_timeout: Duration,
}

/// Reads the connection string, our own settings and libpq's variables; problems go to `problems`.
pub(super) fn read(
    own: Own<'_>,
    env: impl Fn(&str) -> Option<String>,
    problems: &mut Problems,
) -> Option<PostgresConfig> {
    let problems_before = problems.len();
    if own.password_file.is_some() && own.password_command.is_some() {
        problems.add(COMMAND, format!("{FILE} is set, too; remove one of them"));
    }
    let given: HashMap<_, _> = match own.url.map(conninfo::parse) {
        Some(Ok(pairs)) => pairs.into_iter().collect(),
        Some(Err(error)) => {
            problems.add(SETTING, error);
            return None;
        }
        None => HashMap::new(),
    };
    let mut r = Reader { given, env, problems };
    if own.url.is_none() && r.find("host").or_else(|| r.find("hostaddr")).is_none() {
        r.problems
            .add(SETTING, "not set; give a URL such as postgres://owlpost@db.example:5432/app");
        return None;
    }

    let ssl = ssl::read(&mut r);
    refuse_what_is_not_here(&mut r);
    let channel_binding = channel_binding(&mut r, ssl.mode);
    let password = password(&mut r, own);
    let hosts = hosts(&mut r);
    let target_session_attrs = target_session_attrs(&mut r, hosts.len());
    let (auth, auth_verified) = auth(&mut r);
    let user = r.text("user").unwrap_or_else(|| {
        r.problems.add(SETTING, "names no role; write postgres://ROLE@HOST/DATABASE or set PGUSER");
        String::new()
    });
    let application_name =
        (r.given.get("application_name").cloned().filter(|name| !name.is_empty()))
            .or_else(|| own.app_name.map(str::to_owned))
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
        None => Some(own.tcp_user_timeout),
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
        password,
        application_name,
        options: r.text("options"),
        auth,
        auth_verified,
        channel_binding,
        ssl,
        target_session_attrs,
        connect_timeout,
        tcp_user_timeout,
        keepalives,
    };
    (problems.len() == problems_before).then_some(config)
}

/// What `require_auth` leaves of what we do by ourselves; the second is for a server that TLS has verified.
fn auth<E: Fn(&str) -> Option<String>>(r: &mut Reader<'_, E>) -> (AuthMethods, AuthMethods) {
    let (plain, verified) = (AuthMethods::default(), AuthMethods::ALL);
    let Some(found) = r.find("require_auth") else { return (plain, verified) };
    // A refusal takes away from our default and never brings in md5 or clear text.
    let problem = match (plain.require(&found.text), verified.require(&found.text)) {
        (Ok(AuthMethods::NONE), _) => "require_auth leaves no method that this version has; \
             use scram-sha-256, md5, password or none"
            .to_owned(),
        (Ok(plain), Ok(verified)) => return (plain, verified),
        (Err(error), _) | (_, Err(error)) => error.to_string(),
    };
    r.problems.add(found.setting, problem);
    (plain, verified)
}

fn channel_binding<E: Fn(&str) -> Option<String>>(
    r: &mut Reader<'_, E>,
    sslmode: SslMode,
) -> ChannelBinding {
    let Some(found) = r.find("channel_binding") else { return ChannelBinding::default() };
    match found.text.parse() {
        Ok(ChannelBinding::Require) if sslmode == SslMode::Disable => r.problems.add(
            found.setting,
            "channel_binding=require needs TLS, which sslmode=disable excludes; remove one of them",
        ),
        Ok(binding) => return binding,
        Err(error) => r.problems.add(found.setting, error.to_string()),
    }
    ChannelBinding::default()
}

/// Ours must be alone: of two places nobody knows which one is meant.
fn password<E: Fn(&str) -> Option<String>>(r: &mut Reader<'_, E>, own: Own<'_>) -> PasswordSource {
    let given = r.find("password");
    let ours = [(FILE, own.password_file), (COMMAND, own.password_command)];
    for (setting, _) in ours.into_iter().filter(|(_, set)| set.is_some()) {
        for keyword in ["password", "passfile"] {
            if let Some(other) = r.find(keyword) {
                let place = other.setting;
                r.problems
                    .add(setting, format!("{place} has a {keyword}, too; remove one of them"));
            }
        }
    }
    match (own.password_file, own.password_command, given) {
        (Some(file), _, _) => PasswordSource::File(file.into()),
        (None, Some(command), _) => PasswordSource::Command(Secret::new(command)),
        (None, None, Some(given)) => PasswordSource::Given(Secret::new(given.text)),
        (None, None, None) => {
            let file = r.text("passfile").map(PathBuf::from);
            let file = file.or_else(|| Some(Path::new(&r.home()?).join(".pgpass")));
            file.map_or(PasswordSource::None, PasswordSource::Passfile)
        }
    }
}

fn refuse_what_is_not_here<E: Fn(&str) -> Option<String>>(r: &mut Reader<'_, E>) {
    r.refuse("gssencmode", &["disable", "prefer"], "GSSAPI is not in this version; remove it");
    r.refuse("requirepeer", &[], "not in this version; remove it");
    r.refuse(
        "service",
        &[],
        "service files are not in this version; write the parameters into MASTER_DATABASE_URL",
    );
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
                    r.problems
                        .add(setting, "a port is not a number from 1 to 65535; write host:port");
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

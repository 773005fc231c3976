//! The configuration: typed once, checked once, all problems at once.
//!
//! ```text
//! flags, environment ──clap──▶ RawConfig (text) ──Config::from_raw──▶ Config (meaning)
//!                                                       └──────────▶ Problems (every one)
//! ```
//!
//! [`Config::from_raw`] is pure: nothing is contacted, no file is read, and the environment is a
//! function it is handed.

mod conninfo;
mod create_topics;
mod delivery;
mod former;
mod postgres;
mod raw;
mod secret;
mod ssl;

pub use former::{DOTENV, dotenv};
pub(crate) use postgres::SOCKET_DIR;
pub use postgres::{Host, Keepalives, PasswordSource, PostgresConfig, TargetSessionAttrs};
pub use raw::{RawConfig, VARIABLES};
pub use secret::Secret;
pub use ssl::{SslCertMode, SslConfig, SslFile, SslMode, SslNegotiation, SslRoots, TlsVersion};

use crate::kafka::{Mechanism, Sasl, TlsFiles};
use crate::postgres::audit_slot::AUDIT_SLOTS;
use crate::relay::Delivery;
use crate::relay::batch::{BATCH_BYTES_FULL, BATCH_BYTES_MAX};
use crate::relay::compression::{Compression, ZSTD_LEVELS};
use crate::relay::kafka::NewTopic;
use crate::relay::poison::{Policies, Policy, TopicPattern};
use crate::relay::producer::IN_FLIGHT_MAX;
use crate::relay::route::is_topic;
use crate::relay::template::{Field, Naming, Template};
use crate::size::human;
use bytesize::ByteSize;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

const APP_NAME: &str = "owlpost";
const KAFKA_PORT: u16 = 9092;
const MIB: u64 = 1024 * 1024;

/// A topic name has at most 249 characters; the dot and an aggregate type take two.
const PREFIX_LEN_MAX: usize = 247;

/// PostgreSQL's `NAMEDATALEN` less the NUL: a longer name would be cut short silently.
pub(crate) const NAME_LEN_MAX: usize = 63;

/// What the relay was told to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The service whose facts are published: `SRC_SERVICE_NAME`, or else the first prefix.
    pub service: String,
    /// The prefixes to publish; at least one, unless the command needs none, and no two alike.
    pub prefixes: Vec<String>,
    /// PostgreSQL.
    pub postgres: PostgresConfig,
    /// The replication slot.
    pub slot: String,
    /// A slot that is made is one that standbys synchronise (PostgreSQL 17 and later).
    pub slot_failover: bool,
    /// The publication.
    pub publication: String,
    /// Kafka.
    pub kafka: KafkaConfig,
    /// How facts are named in Kafka.
    pub naming: Naming,
    /// What a record looks like.
    pub records: RecordConfig,
    /// What becomes of facts that cannot be published.
    pub policies: Policies,
    /// What a topic that is missing is created like, if it is at all.
    pub create_topics: Option<NewTopic>,
    /// What Kafka had before this process is read back, and not published again.
    pub skip_stored: bool,
    /// How often consumers see a fact.
    pub delivery: Delivery,
    /// Every limit.
    pub limits: Limits,
    /// Where the health port listens; none when it is switched off.
    pub http: Option<SocketAddr>,
    /// Where the metrics port listens; none when it is switched off, or is the health port.
    pub metrics: Option<SocketAddr>,
    /// Whether the health port serves the page.
    pub status_page: bool,
    /// How often PostgreSQL is asked about the slot; none never asks.
    pub slot_poll: Option<Duration>,
    /// How long a failure is shown before the process ends.
    pub failure_linger: Duration,
    /// Logs.
    pub log: LogConfig,
    /// What is set and does nothing, or not what it did: no reason to stop.
    pub remarks: Vec<Problem>,
}

/// How to reach Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaConfig {
    /// At least one, unless the command needs none; any of them can name the rest.
    pub brokers: Vec<BrokerAddress>,
    /// What brokers call us in their logs and quotas.
    pub client_id: String,
    /// TLS, where it is asked for.
    pub tls: Option<TlsFiles>,
    /// Who we are, where the brokers want to know.
    pub sasl: Option<Sasl>,
}

/// Where a broker listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerAddress {
    /// A name, or an address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for BrokerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// What a record looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordConfig {
    /// Which moment is the record's timestamp.
    pub timestamp: RecordTimestamp,
    /// Which bytes are the record's value.
    pub value: RecordValue,
    /// Whether each entry of a fact's metadata becomes a header.
    pub metadata_headers: bool,
    /// How batches are compressed.
    pub compression: Compression,
}

/// Which moment is the record's timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordTimestamp {
    /// When the transaction committed.
    Commit,
    /// When the record was encoded.
    Publish,
}

/// Which bytes are the record's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordValue {
    /// The envelope, exactly as emitted.
    Envelope,
    /// The envelope's payload; an absent or empty one is a null value.
    Payload,
}

/// Every limit. [`Config::from_raw`] keeps them in the order that safety needs:
/// `2 * status_interval <= lease < wal_sender_timeout` and `stall < lease`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Encoded bytes that Kafka has not acknowledged, all partitions together.
    pub in_flight_bytes: usize,
    /// The largest protocol message taken from PostgreSQL.
    pub frame_max_bytes: usize,
    /// How long reading may pause before we hang up.
    pub stall: Duration,
    /// After this long without an answer from PostgreSQL nothing is published.
    pub lease: Duration,
    /// How often PostgreSQL is told how far we are.
    pub status_interval: Duration,
    /// `wal_sender_timeout` of our session.
    pub wal_sender_timeout: Duration,
    /// `tcp_user_timeout` of our session, on the server's side. Ours is
    /// [`PostgresConfig::tcp_user_timeout`].
    pub tcp_user_timeout: Duration,
    /// How long one request to Kafka may take.
    pub request: Duration,
    /// A batch of so many bytes is closed.
    pub batch_bytes: usize,
    /// A batch of so many records is closed.
    pub batch_records: usize,
    /// How many batches of a partition may be in flight.
    pub in_flight: usize,
    /// How old what is known of topics may become.
    pub metadata_age: Duration,
    /// The longest pause between two attempts.
    pub backoff_max: Duration,
    /// How long the first contact may take; none tries for ever.
    pub startup: Option<Duration>,
    /// How long Kafka may take to acknowledge what was read when we are told to stop.
    pub shutdown: Duration,
    /// How much write-ahead log the slot of `owlpost audit` may hold back.
    pub audit_wal_bytes: usize,
}

/// Logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// How a line looks.
    pub format: LogFormat,
    /// A level, or `tracing` directives; valid.
    pub level: String,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Human on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// One thing that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The environment variable; its flag is the same word.
    pub setting: &'static str,
    /// What is wrong and what to do; never a secret.
    pub sentence: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.setting, self.sentence)
    }
}

/// Everything that is wrong with the configuration; `Display` gives each its own line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// The problems, in the order of the settings.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    fn add(&mut self, setting: &'static str, sentence: impl Into<String>) {
        self.0.push(Problem { setting, sentence: sentence.into() });
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Which settings a command cannot do without. What is set is checked, needed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// The service's name, or its prefixes.
    pub service: bool,
    /// Where PostgreSQL is.
    pub postgres: bool,
    /// Where Kafka is.
    pub kafka: bool,
    /// The topic of dead letters, whatever the policies are.
    pub dead_letters: bool,
}

impl Needs {
    /// What a relay needs.
    pub const RELAY: Self =
        Self { service: true, postgres: true, kafka: true, dead_letters: false };

    /// What a command needs that contacts nobody.
    pub const NOTHING: Self =
        Self { service: false, postgres: false, kafka: false, dead_letters: false };
}

impl Config {
    /// Gives what was typed a meaning, or says everything that is wrong with it, for a relay.
    ///
    /// `env` looks up libpq's `PG*` variables; our own have already been read by clap.
    pub fn from_raw(
        raw: &RawConfig,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Problems> {
        Self::for_command(raw, Needs::RELAY, env)
    }

    /// The same for a command that needs less. What is neither needed nor set is empty: no prefix, no host
    /// to connect to, no broker.
    pub fn for_command(
        raw: &RawConfig,
        needs: Needs,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let p = &mut problems;

        let (service, prefixes) = service(raw, needs, p);
        let records = RecordConfig {
            value: choice(
                p,
                "KAFKA_VALUE",
                &raw.kafka_value,
                ("envelope", RecordValue::Envelope),
                &[("payload", RecordValue::Payload)],
            ),
            timestamp: choice(
                p,
                "KAFKA_TIMESTAMP",
                &raw.kafka_timestamp,
                ("commit", RecordTimestamp::Commit),
                &[("publish", RecordTimestamp::Publish)],
            ),
            metadata_headers: boolean(p, "METADATA_HEADERS", &raw.metadata_headers),
            compression: compression(raw, p),
        };
        let naming = naming(raw, &prefixes, p);
        let policies = policies(raw, needs, p);
        let create_topics = create_topics::read(raw, p);
        let skip_stored = boolean(p, "SKIP_STORED", &raw.skip_stored);
        // Read before it is needed, because the connection takes it as a fallback.
        let tcp_user_timeout =
            duration(p, "TCP_USER_TIMEOUT", &raw.tcp_user_timeout, ms(4000), ms(500)..=MINUTE * 10);
        let app_name = app_name(raw, p);
        let url = set(&raw.master_database_url);
        let own = postgres::Own {
            url,
            password_file: set(&raw.database_password_file),
            password_command: set(&raw.database_password_command),
            app_name: set(&raw.app_name),
            tcp_user_timeout,
        };
        let postgres = match needs.postgres || url.is_some() || env("PGHOST").is_some() {
            true => postgres::read(own, &env, p),
            false => postgres::nowhere(own),
        };
        let slot = slot(raw, p);
        let slot_failover = boolean(p, "REPLICATION_SLOT_FAILOVER", &raw.replication_slot_failover);
        let publication = publication(raw, p);
        let limits = limits(raw, tcp_user_timeout, p);
        let delivery =
            delivery::read(raw, &slot, &limits, &policies, create_topics.as_ref(), skip_stored, p);
        let brokers = brokers(raw, needs, p);
        let (tls, sasl) = (tls(raw, p), sasl(raw, p));
        let (http, metrics) = listeners(raw, p);
        let status_page = switched_on(p, "STATUS_PAGE", &raw.status_page);
        let slot_poll = slot_poll(raw, p);
        let failure_linger =
            duration(p, "FAILURE_LINGER", &raw.failure_linger, ms(10_000), ms(0)..=MINUTE * 60);
        let mut remarks = former::without_meaning(&env);
        let log = LogConfig {
            format: choice(
                p,
                "LOG_FORMAT",
                &raw.log_format,
                ("auto", LogFormat::Auto),
                &[("human", LogFormat::Human), ("json", LogFormat::Json)],
            ),
            level: log_level(raw, &mut remarks, p),
        };

        match postgres {
            Some(postgres) if p.len() == 0 => Ok(Self {
                service,
                prefixes,
                postgres,
                slot,
                slot_failover,
                publication,
                kafka: KafkaConfig { brokers, client_id: app_name, tls, sasl },
                naming,
                records,
                policies,
                create_topics,
                skip_stored,
                delivery,
                limits,
                http,
                metrics,
                status_page,
                slot_poll,
                failure_linger,
                log,
                remarks,
            }),
            _ => {
                problems.0.sort_by_key(|problem| position(problem.setting));
                Err(problems)
            }
        }
    }
}

/// Where a setting stands in `--help`; libpq's variables stand with the URL.
fn position(setting: &str) -> Option<usize> {
    let listed = |name: &str| VARIABLES.iter().position(|variable| *variable == name);
    listed(setting).or_else(|| listed("MASTER_DATABASE_URL"))
}

const MINUTE: Duration = Duration::from_secs(60);

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What is set: an empty or blank value is how compose files and manifests leave something out.
fn set(raw: &Option<String>) -> Option<&str> {
    raw.as_deref().map(str::trim).filter(|text| !text.is_empty())
}

fn service(raw: &RawConfig, needs: Needs, p: &mut Problems) -> (String, Vec<String>) {
    let service = set(&raw.src_service_name);
    let (setting, list) = match (set(&raw.wal_prefix), service) {
        (Some(list), _) => ("WAL_PREFIX", list),
        (None, Some(service)) => ("SRC_SERVICE_NAME", service),
        (None, None) if !needs.service => return (String::new(), Vec::new()),
        (None, None) => {
            p.add(
                "SRC_SERVICE_NAME",
                "not set; give the name of the service whose facts are published, or WAL_PREFIX",
            );
            return (String::new(), Vec::new());
        }
    };
    let mut prefixes: Vec<String> = Vec::new();
    let parts: Vec<_> =
        if setting == "WAL_PREFIX" { list.split(',').collect() } else { vec![list] };
    for prefix in parts.into_iter().map(str::trim) {
        if prefix.is_empty() {
            p.add(setting, "has an empty prefix; remove the comma too many");
        } else if prefix.len() > PREFIX_LEN_MAX {
            p.add(
                setting,
                format!("{prefix:?} has more than {PREFIX_LEN_MAX} characters; topics end at 249"),
            );
        } else if let Some(c) = prefix.chars().find(|c| !is_topic_char(*c)) {
            p.add(
                setting,
                format!("{prefix:?} contains {c:?}, which no topic may; use a-z A-Z 0-9 . _ -"),
            );
        } else if !prefixes.iter().any(|known| known == prefix) {
            prefixes.push(prefix.to_owned());
        }
    }
    let service = service.map(str::to_owned).or_else(|| prefixes.first().cloned());
    (service.unwrap_or_default(), prefixes)
}

fn is_topic_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

fn app_name(raw: &RawConfig, p: &mut Problems) -> String {
    let name = set(&raw.app_name).unwrap_or(APP_NAME);
    if name.len() > NAME_LEN_MAX || !name.chars().all(|c| c == ' ' || c.is_ascii_graphic()) {
        // PostgreSQL would replace or cut it silently.
        p.add(
            "APP_NAME",
            format!("{name:?} is not 1 to {NAME_LEN_MAX} printable ASCII characters"),
        );
    }
    name.to_owned()
}

fn slot(raw: &RawConfig, p: &mut Problems) -> String {
    let name = set(&raw.replication_slot_name).unwrap_or("factlib_slot");
    let valid = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_');
    if name.starts_with(AUDIT_SLOTS) {
        // Those are moved by audits, and dropped when they hold back too much.
        let words = format!(
            "{name:?} begins with {AUDIT_SLOTS}, as the slots of audits do; choose another"
        );
        p.add("REPLICATION_SLOT_NAME", words);
    }
    if name.len() > NAME_LEN_MAX || !name.bytes().all(valid) {
        p.add(
            "REPLICATION_SLOT_NAME",
            format!(
                "{name:?} is not a slot name; PostgreSQL wants 1 to {NAME_LEN_MAX} of a-z 0-9 _"
            ),
        );
    }
    name.to_owned()
}

fn publication(raw: &RawConfig, p: &mut Problems) -> String {
    let name = set(&raw.publication_name).unwrap_or("facts");
    if name.len() > NAME_LEN_MAX || name.contains('\0') {
        p.add(
            "PUBLICATION_NAME",
            format!("{name:?} has more than {NAME_LEN_MAX} bytes; choose a shorter name"),
        );
    }
    name.to_owned()
}

fn limits(raw: &RawConfig, tcp_user_timeout: Duration, p: &mut Problems) -> Limits {
    let before = p.len();
    let startup =
        duration(p, "STARTUP_TIMEOUT", &raw.startup_timeout, ms(30_000), ms(0)..=MINUTE * 1440);
    let limits = Limits {
        wal_sender_timeout: duration(
            p,
            "WAL_SENDER_TIMEOUT",
            &raw.wal_sender_timeout,
            // The server waits so long for a relay that hangs when it is told to stop.
            ms(9000),
            ms(2000)..=MINUTE * 10,
        ),
        tcp_user_timeout,
        status_interval: duration(
            p,
            "STATUS_INTERVAL",
            &raw.status_interval,
            ms(3000),
            ms(100)..=MINUTE * 5,
        ),
        lease: duration(p, "LEASE", &raw.lease, ms(7000), ms(200)..=MINUTE * 10),
        request: duration(
            p,
            "REQUEST_TIMEOUT",
            &raw.request_timeout,
            ms(10_000),
            ms(100)..=MINUTE * 5,
        ),
        batch_bytes: size(
            p,
            "BATCH_BYTES",
            &raw.batch_bytes,
            BATCH_BYTES_FULL as u64,
            1024..=BATCH_BYTES_MAX as u64,
        ),
        batch_records: number(p, "BATCH_RECORDS", &raw.batch_records, 10_000, 1..=1_000_000),
        in_flight: number(p, "MAX_IN_FLIGHT", &raw.max_in_flight, 5, 1..=IN_FLIGHT_MAX),
        metadata_age: duration(
            p,
            "METADATA_MAX_AGE",
            &raw.metadata_max_age,
            ms(300_000),
            ms(100)..=MINUTE * 1440,
        ),
        in_flight_bytes: size(
            p,
            "IN_FLIGHT_BYTES",
            &raw.in_flight_bytes,
            8 * MIB,
            MIB..=1024 * MIB,
        ),
        frame_max_bytes: size(
            p,
            "FRAME_MAX_BYTES",
            &raw.frame_max_bytes,
            64 * MIB,
            MIB / 16..=1024 * MIB,
        ),
        stall: duration(p, "STALL_TIMEOUT", &raw.stall_timeout, ms(3000), ms(100)..=MINUTE),
        backoff_max: duration(p, "BACKOFF_MAX", &raw.backoff_max, ms(5000), ms(100)..=MINUTE * 5),
        startup: Some(startup).filter(|timeout| !timeout.is_zero()),
        shutdown: duration(
            p,
            "SHUTDOWN_TIMEOUT",
            &raw.shutdown_timeout,
            ms(10_000),
            ms(0)..=MINUTE * 60,
        ),
        audit_wal_bytes: size(
            p,
            "AUDIT_WAL_BYTES",
            &raw.audit_wal_bytes,
            4096 * MIB,
            16 * MIB..=1024 * 1024 * MIB,
        ),
    };
    if p.len() == before {
        check_order(&limits, p);
    }
    limits
}

/// The orders that keep two relays from publishing at once, and keep us from losing the slot by our
/// own doing.
fn check_order(limits: &Limits, p: &mut Problems) {
    let show = humantime::format_duration;
    let Limits { lease, wal_sender_timeout, status_interval, stall, .. } = *limits;
    if lease >= wal_sender_timeout {
        // The server may hand the slot on after wal_sender_timeout: we must be silent by then.
        p.add(
            "LEASE",
            format!(
                "{} is not shorter than WAL_SENDER_TIMEOUT ({}): two relays could publish at once; \
                 lower it",
                show(lease),
                show(wal_sender_timeout)
            ),
        );
    }
    if status_interval * 2 > lease {
        // One lost answer must not end the lease.
        p.add(
            "STATUS_INTERVAL",
            format!(
                "{} is more than half of LEASE ({}): one late answer would end it; lower it",
                show(status_interval),
                show(lease)
            ),
        );
    }
    if stall >= lease {
        // While reading pauses, so do the answers.
        p.add(
            "STALL_TIMEOUT",
            format!(
                "{} is not shorter than LEASE ({}): a pause would end it; lower it",
                show(stall),
                show(lease)
            ),
        );
    }
}

fn brokers(raw: &RawConfig, needs: Needs, p: &mut Problems) -> Vec<BrokerAddress> {
    const SETTING: &str = "KAFKA_BROKERS";
    let Some(list) = set(&raw.kafka_brokers) else {
        if needs.kafka {
            p.add(SETTING, "not set; give at least one host:port");
        }
        return Vec::new();
    };
    let mut brokers: Vec<BrokerAddress> = Vec::new();
    for text in list.split(',').map(str::trim) {
        match broker(text) {
            Ok(broker) if brokers.contains(&broker) => {}
            Ok(broker) => brokers.push(broker),
            Err(error) => p.add(SETTING, error),
        }
    }
    brokers
}

fn broker(text: &str) -> Result<BrokerAddress, String> {
    if text.is_empty() {
        return Err("has an empty entry; remove the comma too many".into());
    }
    if text.contains('@') {
        // Perhaps a password: not repeated.
        return Err("an entry contains @; write host:port alone".into());
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        return Err(format!("{text:?}: write {rest:?} without {scheme}://"));
    }
    let invalid = |what: &str| format!("{text:?}: {what}; write host:port or [address]:port");
    let (host, port) = if let Some(literal) = text.strip_prefix('[') {
        let (host, after) =
            literal.split_once(']').ok_or_else(|| invalid("there is no closing ]"))?;
        if host.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(invalid("there is no IPv6 address in the brackets"));
        }
        match after.strip_prefix(':') {
            None if after.is_empty() => (host, None),
            None => return Err(invalid("only :port may follow ]")),
            port => (host, port),
        }
    } else {
        match text.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err(invalid("an IPv6 address needs brackets"));
            }
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/') {
        return Err(invalid("there is no host name"));
    }
    let port = match port {
        None => KAFKA_PORT,
        Some(port) => match port.parse() {
            Ok(port) if port != 0 => port,
            _ => return Err(invalid("the port is not a number from 1 to 65535")),
        },
    };
    Ok(BrokerAddress { host: host.to_owned(), port })
}

fn tls(raw: &RawConfig, p: &mut Problems) -> Option<TlsFiles> {
    let wanted = boolean(p, "KAFKA_SSL", &raw.kafka_ssl);
    let verify = match set(&raw.kafka_ssl_verification) {
        None => true,
        Some(_) => boolean(p, "KAFKA_SSL_VERIFICATION", &raw.kafka_ssl_verification),
    };
    let file = |raw: &Option<String>| set(raw).map(PathBuf::from);
    let ca = file(&raw.kafka_ssl_ca_location);
    let certificate = file(&raw.kafka_ssl_certificate_location);
    let key = file(&raw.kafka_ssl_key_location);
    let files = [
        ("KAFKA_SSL_CA_LOCATION", ca.is_some()),
        ("KAFKA_SSL_CERTIFICATE_LOCATION", certificate.is_some()),
        ("KAFKA_SSL_KEY_LOCATION", key.is_some()),
    ];
    for (setting, _) in files.into_iter().filter(|(_, given)| *given && !wanted) {
        p.add(setting, "has no effect without KAFKA_SSL=true; set that, or remove this");
    }
    if !verify && ca.is_some() {
        p.add(
            "KAFKA_SSL_VERIFICATION",
            "false makes KAFKA_SSL_CA_LOCATION pointless; remove one of them",
        );
    }
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => {
            p.add("KAFKA_SSL_KEY_LOCATION", "is wanted with KAFKA_SSL_CERTIFICATE_LOCATION");
            None
        }
        (None, Some(_)) => {
            p.add("KAFKA_SSL_CERTIFICATE_LOCATION", "is wanted with KAFKA_SSL_KEY_LOCATION");
            None
        }
    };
    wanted.then_some(TlsFiles { ca, identity, verify })
}

fn sasl(raw: &RawConfig, p: &mut Problems) -> Option<Sasl> {
    // What deployments of the relay's predecessor mean when they say nothing.
    let mechanism = choice(
        p,
        "KAFKA_SASL_MECHANISM",
        &raw.kafka_sasl_mechanism,
        ("SCRAM-SHA-512", Some(Mechanism::ScramSha512)),
        &[
            ("SCRAM-SHA-256", Some(Mechanism::ScramSha256)),
            ("PLAIN", Some(Mechanism::Plain)),
            ("OAUTHBEARER", None),
        ],
    );
    let token = set(&raw.kafka_sasl_oauthbearer_token_file);
    let Some(mechanism) = mechanism else {
        for (name, given) in
            [("KAFKA_USERNAME", &raw.kafka_username), ("KAFKA_PASSWORD", &raw.kafka_password)]
        {
            if set(given).is_some() {
                p.add(name, "has no effect with OAUTHBEARER; remove it");
            }
        }
        if token.is_none() {
            p.add("KAFKA_SASL_OAUTHBEARER_TOKEN_FILE", "is wanted with OAUTHBEARER");
        }
        return token.map(|file| Sasl::Token { file: file.into() });
    };
    if token.is_some() {
        let words =
            "has no effect without KAFKA_SASL_MECHANISM=OAUTHBEARER; set that, or remove this";
        p.add("KAFKA_SASL_OAUTHBEARER_TOKEN_FILE", words);
    }
    match (set(&raw.kafka_username), set(&raw.kafka_password)) {
        (Some(username), Some(password)) => {
            let (username, password) = (username.to_owned(), Secret::new(password));
            return Some(Sasl::Password { mechanism, username, password });
        }
        (Some(_), None) => p.add("KAFKA_PASSWORD", "is wanted with KAFKA_USERNAME"),
        (None, Some(_)) => p.add("KAFKA_USERNAME", "is wanted with KAFKA_PASSWORD"),
        (None, None) => {}
    }
    None
}

/// The health port and the metrics port. Where both are the same, the first has what the second would.
fn listeners(raw: &RawConfig, p: &mut Problems) -> (Option<SocketAddr>, Option<SocketAddr>) {
    let bind = match set(&raw.http_bind) {
        None => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Some(text) => text.parse().unwrap_or_else(|_| {
            p.add(
                "HTTP_BIND",
                format!("{text:?} is not an IP address; use 0.0.0.0, 127.0.0.1 or ::"),
            );
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        }),
    };
    let health = port(p, "WAL_HEALTH_PORT", &raw.wal_health_port, 3001);
    let metrics = port(p, "METRICS_PORT", &raw.metrics_port, 2112);
    let listens = |port: u16| (port != 0).then_some(SocketAddr::new(bind, port));
    (listens(health), listens(metrics).filter(|_| metrics != health))
}

fn slot_poll(raw: &RawConfig, p: &mut Problems) -> Option<Duration> {
    const SETTING: &str = "SLOT_POLL_INTERVAL";
    let interval = duration(p, SETTING, &raw.slot_poll_interval, ms(10_000), ms(0)..=MINUTE * 60);
    if interval > ms(0) && interval < ms(1000) {
        p.add(SETTING, "is below 1s; use 0s for never, or more");
    }
    Some(interval).filter(|interval| !interval.is_zero())
}

/// True unless it is switched off.
fn switched_on(p: &mut Problems, setting: &'static str, raw: &Option<String>) -> bool {
    set(raw).is_none() || boolean(p, setting, raw)
}

fn log_level(raw: &RawConfig, remarks: &mut Vec<Problem>, p: &mut Problems) -> String {
    let level = set(&raw.log_level).unwrap_or("info");
    if former::is_log_level(level) {
        let sentence = format!("{level:?} is above what there is here; error is used");
        remarks.push(Problem { setting: "LOG_LEVEL", sentence });
        return "error".to_owned();
    }
    // A word that is no level would otherwise be taken for the name of a target.
    let is_level = level.parse::<tracing_subscriber::filter::LevelFilter>().is_ok();
    let is_filter =
        level.contains('=') && level.parse::<tracing_subscriber::filter::Targets>().is_ok();
    if !is_level && !is_filter {
        p.add("LOG_LEVEL", format!("{level:?} is no level; use error, warn, info, debug or trace"));
    }
    level.to_owned()
}

fn naming(raw: &RawConfig, prefixes: &[String], p: &mut Problems) -> Naming {
    let mut naming = Naming::default();
    if let Some(text) = set(&raw.topic_template) {
        match Template::parse(text, Field::OF_TOPICS) {
            Ok(template) if template.literals().all(is_topic_part) => naming.topic = template,
            Ok(_) => p.add(
                "TOPIC_TEMPLATE",
                format!("{text:?} has what no topic's name may; use a-z A-Z 0-9 . _ -"),
            ),
            Err(error) => p.add("TOPIC_TEMPLATE", format!("{text:?}: {error}")),
        }
    }
    match set(&raw.key_template) {
        None => {}
        Some("{null}") => naming.key = None,
        Some(text) => match Template::parse(text, Field::OF_KEYS) {
            Ok(template) => naming.key = Some(template),
            Err(error) => p.add("KEY_TEMPLATE", format!("{text:?}: {error}")),
        },
    }
    for entry in set(&raw.topic_prefix_map).into_iter().flat_map(|list| list.split(',')) {
        match entry.split_once('=').map(|(prefix, text)| (prefix.trim(), text.trim())) {
            Some((prefix, text)) if !text.is_empty() && is_topic_part(text) => {
                // Without any, either that is a problem already or nothing will be published.
                if prefixes.is_empty() || prefixes.iter().any(|known| known == prefix) {
                    naming.prefixes.push((prefix.to_owned(), text.to_owned()));
                } else {
                    p.add("TOPIC_PREFIX_MAP", format!("{prefix:?} is none of WAL_PREFIX"));
                }
            }
            _ => p.add(
                "TOPIC_PREFIX_MAP",
                format!("{entry:?}: write prefix=text, the text of a-z A-Z 0-9 . _ -"),
            ),
        }
    }
    naming
}

/// True if it may stand in a topic's name.
fn is_topic_part(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn compression(raw: &RawConfig, p: &mut Problems) -> Compression {
    let level = number(p, "COMPRESSION_LEVEL", &raw.compression_level, 3, ZSTD_LEVELS);
    choice(
        p,
        "COMPRESSION_TYPE",
        &raw.compression_type,
        ("none", Compression::None),
        &[
            ("snappy", Compression::Snappy),
            ("lz4", Compression::Lz4),
            ("zstd", Compression::Zstd(level)),
        ],
    )
}

fn policies(raw: &RawConfig, needs: Needs, p: &mut Problems) -> Policies {
    const POLICIES: [(&str, Policy); 2] =
        [("dead-letter", Policy::DeadLetter), ("skip", Policy::Skip)];
    let general = choice(p, "POISON_POLICY", &raw.poison_policy, ("halt", Policy::Halt), &POLICIES);
    let mut by_topic = Vec::new();
    for entry in set(&raw.poison_policy_topics).into_iter().flat_map(|list| list.split(',')) {
        let entry = entry.trim();
        let is_pattern = |text: &str| !text.is_empty() && is_topic(&text.replace('*', "x"));
        match entry.split_once('=').map(|(topic, policy)| (topic.trim(), policy.trim().parse())) {
            Some((topic, Ok(policy))) if is_pattern(topic) => {
                by_topic.push((TopicPattern::new(topic), policy));
            }
            _ => p.add(
                "POISON_POLICY_TOPICS",
                format!("{entry:?}: write topic=policy, with halt, dead-letter or skip"),
            ),
        }
    }
    let dead_letter_topic = set(&raw.dead_letter_topic).map(Arc::from);
    let wanted = general == Policy::DeadLetter
        || by_topic.iter().any(|(_, policy)| *policy == Policy::DeadLetter);
    match &dead_letter_topic {
        Some(topic) if !is_topic(topic) => p.add(
            "DEAD_LETTER_TOPIC",
            format!("{topic:?} cannot be a topic's name; use a-z A-Z 0-9 . _ -"),
        ),
        Some(_) if !wanted && !needs.dead_letters => p.add(
            "DEAD_LETTER_TOPIC",
            "no policy is dead-letter: set POISON_POLICY or POISON_POLICY_TOPICS, or remove this"
                .to_owned(),
        ),
        None if needs.dead_letters => {
            p.add("DEAD_LETTER_TOPIC", "not set; give the topic where the dead letters are")
        }
        None if wanted => {
            p.add("DEAD_LETTER_TOPIC", "is wanted, because a policy is dead-letter".to_owned())
        }
        _ => {}
    }
    Policies { general, by_topic, dead_letter_topic }
}

/// One of a few words.
fn choice<T: Copy>(
    p: &mut Problems,
    setting: &'static str,
    raw: &Option<String>,
    default: (&str, T),
    others: &[(&str, T)],
) -> T {
    let Some(text) = set(raw) else { return default.1 };
    let mut choices = std::iter::once(&default).chain(others);
    if let Some((_, value)) = choices.find(|(word, _)| *word == text) {
        return *value;
    }
    let words: Vec<_> = std::iter::once(&default).chain(others).map(|(word, _)| *word).collect();
    p.add(setting, format!("{text:?} is not one of: {}", words.join(", ")));
    default.1
}

fn boolean(p: &mut Problems, setting: &'static str, raw: &Option<String>) -> bool {
    match set(raw).map(str::to_ascii_lowercase).as_deref() {
        None | Some("false" | "f" | "0" | "no" | "off") => false,
        Some("true" | "t" | "1" | "yes" | "on") => true,
        Some(text) => {
            p.add(setting, format!("{text:?} is neither true nor false"));
            false
        }
    }
}

fn port(p: &mut Problems, setting: &'static str, raw: &Option<String>, default: u16) -> u16 {
    match set(raw) {
        None => default,
        Some(text) => text.parse().unwrap_or_else(|_| {
            p.add(setting, format!("{text:?} is not a port; use a number from 0 to 65535"));
            default
        }),
    }
}

fn number<N: Copy + PartialOrd + fmt::Display + FromStr>(
    p: &mut Problems,
    setting: &'static str,
    raw: &Option<String>,
    default: N,
    range: RangeInclusive<N>,
) -> N {
    match set(raw).map(|text| (text, text.parse())) {
        None => default,
        Some((_, Ok(number))) if range.contains(&number) => number,
        Some((text, _)) => {
            let (start, end) = (range.start(), range.end());
            p.add(setting, format!("{text:?} is not a number from {start} to {end}"));
            default
        }
    }
}

fn duration(
    p: &mut Problems,
    setting: &'static str,
    raw: &Option<String>,
    default: Duration,
    range: RangeInclusive<Duration>,
) -> Duration {
    let Some(text) = set(raw) else { return default };
    match humantime::parse_duration(text) {
        Ok(duration) if range.contains(&duration) => return duration,
        Ok(_) => p.add(
            setting,
            format!(
                "{text:?} is outside {} to {}",
                humantime::format_duration(*range.start()),
                humantime::format_duration(*range.end())
            ),
        ),
        Err(_) => p.add(
            setting,
            format!("{text:?} is not a duration; write a number with a unit, such as 3s or 500ms"),
        ),
    }
    default
}

fn size(
    p: &mut Problems,
    setting: &'static str,
    raw: &Option<String>,
    default: u64,
    range: RangeInclusive<u64>,
) -> usize {
    let bytes = match set(raw).map(|text| (text, text.parse::<ByteSize>())) {
        None => default,
        Some((_, Ok(size))) if range.contains(&size.as_u64()) => size.as_u64(),
        Some((text, Ok(_))) => {
            let (start, end) = (human(*range.start()), human(*range.end()));
            p.add(setting, format!("{text:?} is outside {start} to {end}"));
            default
        }
        Some((text, Err(_))) => {
            p.add(
                setting,
                format!("{text:?} is not a size; write a number with a unit, such as 8MiB"),
            );
            default
        }
    };
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;

//! What was typed: every setting as text, from a flag or from the environment.

use clap::Args;
use std::fmt;

/// Declares [`RawConfig`]: one field for each setting, whose flag, variable and field name are the
/// same word.
///
/// Everything is text here, so that one run can report every mistake: clap would stop at the first.
macro_rules! settings {
    ($( $heading:literal { $(
        $(#[doc = $doc:literal])+
        $(#[arg($($arg:tt)*)])?
        $field:ident = $env:literal: $kind:literal;
    )* } )*) => {
        /// Every setting as it was typed. A flag wins over its environment variable; what is empty
        /// or
        /// blank counts as not set. [`Config::from_raw`](super::Config::from_raw) gives it a
        /// meaning.
        #[derive(Args, Clone, Default)]
        pub struct RawConfig {
            $($(
                $(#[doc = $doc])+
                #[arg(long, global = true, env = $env, hide_env_values = true, value_name = $kind,
                      help_heading = $heading, $($($arg)*)?)]
                pub $field: Option<String>,
            )*)*
        }

        /// The environment variables that [`RawConfig`] reads, in the order of `--help`.
        pub const VARIABLES: &[&str] = &[$($($env,)*)*];

        impl fmt::Debug for RawConfig {
            /// Names what is set; the values may hold passwords.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut set = f.debug_set();
                $($( if self.$field.is_some() { set.entry(&$env); } )*)*
                set.finish()
            }
        }
    };
}

settings! {
    "What to publish" {
        /// Name of the service whose facts are published. Required unless WAL_PREFIX is set
        src_service_name = "SRC_SERVICE_NAME": "NAME";
        /// The prefixes to publish, comma separated: the second argument of
        /// pg_logical_emit_message, and the first part of every topic. Each of a-z A-Z 0-9 . _ -,
        /// at most 200 characters [default: the service name]
        wal_prefix = "WAL_PREFIX": "PREFIX,...";
        /// The topic of a fact: text with {prefix}, {aggregate_type} and {event_type} [default:
        /// {prefix}.{aggregate_type}]
        topic_template = "TOPIC_TEMPLATE": "TEMPLATE";
        /// What {prefix} is in topic names where it is not the prefix itself: comma separated
        /// prefix=text
        topic_prefix_map = "TOPIC_PREFIX_MAP": "PREFIX=TEXT,...";
        /// The key of a record, which decides its partition: text with {prefix}, {aggregate_type},
        /// {aggregate_id} and {event_type}, or {null} for none [default: {aggregate_id}]
        key_template = "KEY_TEMPLATE": "TEMPLATE";
        /// What goes into a record's value: the envelope exactly as emitted, or its payload alone
        /// [envelope or payload, default: envelope]
        kafka_value = "KAFKA_VALUE": "KIND";
        /// A record's timestamp: when its transaction committed, or when it was published. Brokers
        /// delete at once what is older than retention.ms [commit or publish, default: commit]
        kafka_timestamp = "KAFKA_TIMESTAMP": "KIND";
        /// Whether each entry of a fact's metadata becomes a record header [true or false, default:
        /// false]
        #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        metadata_headers = "METADATA_HEADERS": "BOOL";
        /// What becomes of a fact that cannot be published (unreadable envelope, no such topic or no
        /// right to write to it, too large, refused by the broker): halt there until somebody acts,
        /// publish it to DEAD_LETTER_TOPIC, or skip it, which is counted and logged [halt,
        /// dead-letter or skip, default: halt]
        poison_policy = "POISON_POLICY": "POLICY";
        /// The same for facts of some topics: comma separated topic=policy, where * in a topic
        /// stands for any characters; the first that matches decides
        poison_policy_topics = "POISON_POLICY_TOPICS": "TOPIC=POLICY,...";
        /// Where dead letters go: the fact as it was emitted, with headers that say why. Required
        /// with the policy dead-letter
        dead_letter_topic = "DEAD_LETTER_TOPIC": "TOPIC";
    }
    "PostgreSQL" {
        /// Where the facts are: a postgres:// URL or a keyword=value string with libpq's meaning;
        /// what it leaves out comes from PGHOST, PGPORT, PGUSER, PGPASSWORD, PGDATABASE and libpq's
        /// other PG* variables. Required unless PGHOST is set. Prefer the variable to the flag:
        /// flags are visible to every process. Over a network use sslmode=verify-full, with
        /// sslrootcert=system or your authority's file. md5 and clear text passwords need that or
        /// require_auth. Certificates and keys are read again for each connection
        master_database_url = "MASTER_DATABASE_URL": "URL";
        /// File with the role's password and nothing else. It is read again for each connection, so
        /// whoever changes the password replaces the file
        database_password_file = "DATABASE_PASSWORD_FILE": "FILE";
        /// Command, for /bin/sh, that prints the role's password. It is run again for each connection,
        /// and has 10 s. Prefer the variable to the flag if it holds a secret
        database_password_command = "DATABASE_PASSWORD_COMMAND": "COMMAND";
        /// The replication slot [1 to 63 of a-z 0-9 _, default: factlib_slot]
        replication_slot_name = "REPLICATION_SLOT_NAME": "NAME";
        /// Whether a slot that is made is one that standbys follow, from PostgreSQL 17 on: then a failover
        /// goes on where the primary was [default: false]
        #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        replication_slot_failover = "REPLICATION_SLOT_FAILOVER": "BOOL";
        /// The publication, which stays empty: messages need no table [1 to 63 bytes, default:
        /// facts]
        publication_name = "PUBLICATION_NAME": "NAME";
        /// After this long without a word from us the server gives the slot to a relay that waits;
        /// and it may wait so long for one that hangs when it is to stop [2s to 10m, default: 9s]
        wal_sender_timeout = "WAL_SENDER_TIMEOUT": "DURATION";
        /// How long sent bytes may stay unacknowledged on a TCP connection to PostgreSQL, on both
        /// sides; Unix sockets have no such limit [500ms to 10m, default: 4s]
        tcp_user_timeout = "TCP_USER_TIMEOUT": "DURATION";
        /// How often PostgreSQL is told how far we are and asked for a sign of life; at most half
        /// of LEASE [100ms to 5m, default: 3s]
        status_interval = "STATUS_INTERVAL": "DURATION";
        /// After this long without an answer from PostgreSQL nothing is published until the slot is
        /// ours again; shorter than WAL_SENDER_TIMEOUT [200ms to 10m, default: 7s]
        lease = "LEASE": "DURATION";
        /// How much write-ahead log the slot of `owlpost audit` may hold back; a relay that runs drops it
        /// beyond that, and says so [16MiB to 1TiB, default: 4GiB]
        audit_wal_bytes = "AUDIT_WAL_BYTES": "SIZE";
    }
    "Kafka" {
        /// The brokers to ask first: host or host:port, comma separated, an IPv6 address in
        /// brackets. Required [default port: 9092]
        kafka_brokers = "KAFKA_BROKERS": "HOST:PORT,...";
        /// The user to log in as (SASL)
        kafka_username = "KAFKA_USERNAME": "NAME";
        /// Its password. Prefer the variable to the flag: flags are visible to every process
        kafka_password = "KAFKA_PASSWORD": "PASSWORD";
        /// How to log in; the listener must offer it [SCRAM-SHA-512, SCRAM-SHA-256, PLAIN or
        /// OAUTHBEARER, default: SCRAM-SHA-512]
        kafka_sasl_mechanism = "KAFKA_SASL_MECHANISM": "NAME";
        /// File with the token of OAUTHBEARER. It is read again for each connection, so whoever renews
        /// the token replaces the file
        kafka_sasl_oauthbearer_token_file = "KAFKA_SASL_OAUTHBEARER_TOKEN_FILE": "FILE";
        /// Whether to talk TLS to brokers [default: false]
        #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        kafka_ssl = "KAFKA_SSL": "BOOL";
        /// PEM file with the certificates of the authorities to trust; without it the system's are
        /// trusted
        kafka_ssl_ca_location = "KAFKA_SSL_CA_LOCATION": "FILE";
        /// PEM file with our own certificate, for brokers that want one, and those up to its
        /// authority's
        kafka_ssl_certificate_location = "KAFKA_SSL_CERTIFICATE_LOCATION": "FILE";
        /// PEM file with its private key, not encrypted
        kafka_ssl_key_location = "KAFKA_SSL_KEY_LOCATION": "FILE";
        /// false takes any certificate of a broker: anybody in between can then read and change
        /// everything [default: true]
        kafka_ssl_verification = "KAFKA_SSL_VERIFICATION": "BOOL";
        /// How long one request to Kafka may take before it is sent again [100ms to 5m, default:
        /// 10s]
        request_timeout = "REQUEST_TIMEOUT": "DURATION";
        /// How batches are compressed; one that does not get smaller is sent as it is [none, snappy,
        /// lz4 or zstd, default: none]
        compression_type = "COMPRESSION_TYPE": "CODEC";
        /// The level of zstd [-7 to 22, default: 3]
        compression_level = "COMPRESSION_LEVEL": "NUMBER";
        /// A batch of records for one partition is closed when it has so many bytes. Smaller ones are
        /// sent as soon as PostgreSQL has nothing more at the moment; what a topic refuses as too large
        /// is divided [1KiB to 900KB, default: 384KiB]
        batch_bytes = "BATCH_BYTES": "SIZE";
        /// The same by number of records [1 to 1000000, default: 10000]
        batch_records = "BATCH_RECORDS": "NUMBER";
        /// How many batches of a partition may be on their way at once; the order is kept, whatever
        /// happens to them [1 to 5, default: 5]
        max_in_flight = "MAX_IN_FLIGHT": "NUMBER";
        /// Whether a topic that is missing is created, and what it is like: true for what the cluster
        /// gives by itself, or comma separated name=value with partitions, replication-factor and a
        /// topic's configuration, a value with commas in square brackets, such as
        /// partitions=12,replication-factor=3,min.insync.replicas=2. Whoever emits facts can then create
        /// topics. One that is deleted while the relay runs is not created again [default: false]
        kafka_create_topics = "KAFKA_CREATE_TOPICS": "BOOL|NAME=VALUE,...";
        /// Whether the relay, when it starts, reads back what is at the end of each partition and does not
        /// publish again what lies there already, record for record. After a crash of the relay or of
        /// PostgreSQL that is all but one fact of a partition, at best. It needs the right to read the topics
        /// [default: false]
        #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        skip_stored = "SKIP_STORED": "BOOL";
        /// How old what is known of topics (leaders, number of partitions) may become before the
        /// cluster is asked again [100ms to 1d, default: 5m]
        metadata_max_age = "METADATA_MAX_AGE": "DURATION";
    }
    "Delivery" {
        /// How often consumers see a fact: at-least-once, where repeats after a fault are recognised by
        /// their position, or exactly-once for those that read committed records (isolation.level), where
        /// facts and the relay's position go in Kafka transactions and a second relay fences the first
        /// [at-least-once or exactly-once, default: at-least-once]
        delivery = "DELIVERY": "GUARANTEE";
        /// How long after its first fact a Kafka transaction is committed, at the end of a transaction of
        /// PostgreSQL, or when it has half of IN_FLIGHT_BYTES. Consumers see facts so much later [1ms to
        /// 10s, default: 50ms]
        transaction_interval = "TRANSACTION_INTERVAL": "DURATION";
        /// How long a Kafka transaction may be open before Kafka aborts it; up to the broker's
        /// transaction.max.timeout.ms, longer than REQUEST_TIMEOUT. After a relay was lost, consumers of
        /// committed records may wait so long for the next to start [1s to 15m, default: 1m]
        transaction_timeout = "TRANSACTION_TIMEOUT": "DURATION";
        /// What becomes of a transaction of PostgreSQL that has more than half of IN_FLIGHT_BYTES, or is read
        /// for longer than half of TRANSACTION_TIMEOUT: split it among several Kafka transactions, from the
        /// second on with the header factlib_part, or halt there until somebody acts [split or halt,
        /// default: split]
        large_transactions = "LARGE_TRANSACTIONS": "POLICY";
        /// The topic whose partition 0 the relay's position is kept for, as the offset of a consumer group.
        /// Nothing is written to it, and it is created where it is missing; who deletes it deletes the
        /// position [default: owlpost.position]
        position_topic = "POSITION_TOPIC": "TOPIC";
        /// What a relay does when another one has taken over its transactional id: exit with code 14, or
        /// wait as a standby until the slot is free [exit or standby, default: exit]
        fenced_policy = "FENCED_POLICY": "POLICY";
    }
    "Limits" {
        /// The window: encoded bytes of all partitions since the oldest fact that Kafka has not
        /// acknowledged. Reading pauses before it is full, and a crash repeats no more than it, but
        /// for a larger transaction [1MiB to 1GiB, default: 8MiB]
        in_flight_bytes = "IN_FLIGHT_BYTES": "SIZE";
        /// The largest protocol message taken from PostgreSQL; a fact must fit into one [64KiB to
        /// 1GiB, default: 64MiB]
        frame_max_bytes = "FRAME_MAX_BYTES": "SIZE";
        /// How long reading may pause before we hang up, so that the database is not held up;
        /// shorter than LEASE [100ms to 1m, default: 3s]
        stall_timeout = "STALL_TIMEOUT": "DURATION";
        /// The longest pause between two attempts to reach PostgreSQL or Kafka [100ms to 5m,
        /// default: 5s]
        backoff_max = "BACKOFF_MAX": "DURATION";
        /// How long the first contact with PostgreSQL and with Kafka may take before we give up
        /// with exit code 3; 0s tries for ever. Later losses are always repaired for ever [0s to
        /// 1d, default: 30s]
        startup_timeout = "STARTUP_TIMEOUT": "DURATION";
        /// After SIGTERM or SIGINT, how long Kafka may take to acknowledge what was read [0s to 1h,
        /// default: 10s]
        shutdown_timeout = "SHUTDOWN_TIMEOUT": "DURATION";
    }
    "Health and logs" {
        /// The address that the health port listens on. All IPv4 addresses, because a probe in
        /// another container must reach it; it serves positions and names, no payload and no
        /// secret. 127.0.0.1 hides it, :: takes IPv6 too [default: 0.0.0.0]
        http_bind = "HTTP_BIND": "ADDRESS";
        /// The port of /livez, /readyz, /health and /wait, of /metrics, and of the page at / [0 to
        /// 65535, 0: none, default: 3001]
        wal_health_port = "WAL_HEALTH_PORT": "PORT";
        /// A port of /metrics alone, where existing deployments scrape it [0 to 65535, 0: none,
        /// default: 2112]
        metrics_port = "METRICS_PORT": "PORT";
        /// Whether the health port serves a page for people at /, and the same as /status.json
        /// [default: true]
        #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        status_page = "STATUS_PAGE": "BOOL";
        /// How often PostgreSQL is asked what the slot keeps and how much room is left, on an
        /// ordinary connection of its own; 0s never asks [1s to 1h, default: 10s]
        slot_poll_interval = "SLOT_POLL_INTERVAL": "DURATION";
        /// When a relay that had the stream cannot go on, how long health, metrics and the page still
        /// say why before the process ends with its exit code; SIGTERM ends that at once [0s to 1h,
        /// default: 10s]
        failure_linger = "FAILURE_LINGER": "DURATION";
        /// How we call ourselves: application_name in PostgreSQL, client id in Kafka [1 to 63
        /// printable ASCII characters, default: owlpost]
        app_name = "APP_NAME": "NAME";
        /// Log lines for people, as JSON, or whichever suits standard error [auto, human or json,
        /// default: auto]
        log_format = "LOG_FORMAT": "FORMAT";
        /// What to log: error, warn, info, debug or trace, or tracing's directives such as
        /// info,factlib=debug [default: info]
        log_level = "LOG_LEVEL": "LEVEL";
    }
}

use super::*;
use crate::relay::{ExactlyOnce, LargeTransactions};
use factlib_protocol::auth::AuthMethods;
use factlib_protocol::auth::channel_binding::ChannelBinding;
use std::collections::HashMap;

/// The least that a relay needs.
fn minimal() -> RawConfig {
    RawConfig {
        src_service_name: Some("orders".into()),
        master_database_url: Some("postgres://owlpost@db/app".into()),
        kafka_brokers: Some("kafka".into()),
        ..RawConfig::default()
    }
}

fn no_env(_: &str) -> Option<String> {
    None
}

#[track_caller]
fn accepted(raw: &RawConfig) -> Config {
    Config::from_raw(raw, no_env).unwrap_or_else(|problems| panic!("{problems}"))
}

#[track_caller]
fn refused(raw: &RawConfig) -> String {
    Config::from_raw(raw, no_env).expect_err("a problem").to_string()
}

fn with_url(url: &str, env: &[(&str, &str)]) -> Result<PostgresConfig, String> {
    let raw = RawConfig { master_database_url: Some(url.into()), ..minimal() };
    let env: HashMap<_, _> = env.iter().copied().collect();
    Config::from_raw(&raw, |name| env.get(name).map(|value| (*value).to_owned()))
        .map(|config| config.postgres)
        .map_err(|problems| problems.to_string())
}

#[test]
fn three_settings_are_enough() {
    assert_eq!(
        accepted(&minimal()),
        Config {
            service: "orders".into(),
            prefixes: vec!["orders".into()],
            postgres: PostgresConfig {
                hosts: vec![Host::Tcp { host: "db".into(), addr: None, port: 5432 }],
                user: "owlpost".into(),
                database: "app".into(),
                password: PasswordSource::None,
                application_name: "owlpost".into(),
                options: None,
                auth: AuthMethods { trust: true, scram: true, md5: false, cleartext: false },
                auth_verified: AuthMethods::ALL,
                channel_binding: ChannelBinding::Prefer,
                ssl: SslConfig {
                    mode: SslMode::Prefer,
                    negotiation: SslNegotiation::Postgres,
                    roots: SslRoots::None,
                    crl: None,
                    identity: None,
                    cert_mode: SslCertMode::Allow,
                    sni: true,
                    min_version: TlsVersion::V1_2,
                    max_version: TlsVersion::V1_3,
                },
                target_session_attrs: TargetSessionAttrs::Any,
                connect_timeout: Some(ms(10_000)),
                tcp_user_timeout: Some(ms(4_000)),
                keepalives: Some(Keepalives::default()),
            },
            slot: "factlib_slot".into(),
            slot_failover: false,
            publication: "facts".into(),
            kafka: KafkaConfig {
                brokers: vec![BrokerAddress { host: "kafka".into(), port: 9092 }],
                client_id: "owlpost".into(),
                tls: None,
                sasl: None,
            },
            naming: Naming::default(),
            records: RecordConfig {
                timestamp: RecordTimestamp::Commit,
                value: RecordValue::Envelope,
                metadata_headers: false,
                compression: Compression::None,
            },
            policies: Policies::HALT,
            create_topics: None,
            skip_stored: false,
            delivery: Delivery::AtLeastOnce,
            limits: Limits {
                in_flight_bytes: 8 << 20,
                frame_max_bytes: 64 << 20,
                stall: ms(3_000),
                lease: ms(7_000),
                status_interval: ms(3_000),
                wal_sender_timeout: ms(9_000),
                tcp_user_timeout: ms(4_000),
                request: ms(10_000),
                batch_bytes: 384 << 10,
                batch_records: 10_000,
                in_flight: 5,
                metadata_age: ms(300_000),
                backoff_max: ms(5_000),
                startup: Some(ms(30_000)),
                shutdown: ms(10_000),
                audit_wal_bytes: 4 << 30,
            },
            http: Some(SocketAddr::from(([0, 0, 0, 0], 3001))),
            metrics: Some(SocketAddr::from(([0, 0, 0, 0], 2112))),
            status_page: true,
            slot_poll: Some(ms(10_000)),
            failure_linger: ms(10_000),
            log: LogConfig { format: LogFormat::Auto, level: "info".into() },
            remarks: Vec::new(),
        }
    );
}

/// Everything that factlib's relay in Go reads, as a deployment of it may have it.
#[test]
fn factlibs_variables_are_taken_as_they_are_and_what_means_nothing_is_named() {
    let url = "postgres://postgres:postgres@localhost:5432/westeros";
    let raw = RawConfig {
        app_name: Some("owlpost".into()),
        src_service_name: Some("westeros".into()),
        wal_prefix: Some("westeros".into()),
        master_database_url: Some(url.into()),
        kafka_brokers: Some("localhost:9093,localhost:9094".into()),
        kafka_username: Some("u".into()),
        kafka_password: Some("p".into()),
        // Whatever Go's strconv.ParseBool takes.
        kafka_ssl: Some("T".into()),
        wal_health_port: Some("3001".into()),
        replication_slot_name: Some("factlib_slot".into()),
        publication_name: Some("facts".into()),
        metrics_port: Some("2112".into()),
        log_level: Some("DPANIC".into()),
        ..RawConfig::default()
    };
    let env = |name: &str| match name {
        "DGN" => Some("local".to_owned()),
        "GOMEMLIMIT" => Some("64MiB".to_owned()),
        "GOGC" => Some(" ".to_owned()),
        _ => None,
    };
    let config = Config::from_raw(&raw, env).unwrap();
    assert_eq!(config.prefixes, ["westeros"]);
    assert_eq!(config.kafka.brokers.len(), 2);
    assert!(config.kafka.tls.is_some() && config.kafka.sasl.is_some());
    assert_eq!((config.slot.as_str(), config.publication.as_str()), ("factlib_slot", "facts"));
    assert_eq!(config.log.level, "error");
    let remarks: Vec<String> = config.remarks.iter().map(ToString::to_string).collect();
    assert_eq!(
        remarks,
        [
            "DGN: chose the format of factlib's log lines, and does nothing here; use LOG_FORMAT (human or json)",
            "GOMEMLIMIT: is for programs in Go, and does nothing here; use IN_FLIGHT_BYTES, which bounds memory",
            "LOG_LEVEL: \"DPANIC\" is above what there is here; error is used",
        ]
    );
}

#[test]
fn a_command_misses_only_what_it_needs() {
    let missed = |needs| match Config::for_command(&RawConfig::default(), needs, no_env) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(|problem| problem.setting).collect(),
    };
    let everything = Needs { dead_letters: true, ..Needs::RELAY };
    assert_eq!(
        missed(everything),
        ["SRC_SERVICE_NAME", "DEAD_LETTER_TOPIC", "MASTER_DATABASE_URL", "KAFKA_BROKERS"]
    );
    assert_eq!(missed(Needs { kafka: true, ..Needs::NOTHING }), ["KAFKA_BROKERS"]);
    assert_eq!(missed(Needs { postgres: true, ..Needs::NOTHING }), ["MASTER_DATABASE_URL"]);
    assert_eq!(missed(Needs { service: true, ..Needs::NOTHING }), ["SRC_SERVICE_NAME"]);
    let nothing = Config::for_command(&RawConfig::default(), Needs::NOTHING, no_env).unwrap();
    assert!(nothing.prefixes.is_empty() && nothing.kafka.brokers.is_empty());
    assert!(nothing.postgres.hosts.is_empty());
    // What is set is checked all the same; what belongs to a prefix is not, where there is none.
    let raw = RawConfig {
        kafka_brokers: Some("http://kafka".into()),
        master_database_url: Some("http://db".into()),
        topic_prefix_map: Some("orders=sales".into()),
        dead_letter_topic: Some("dead".into()),
        ..RawConfig::default()
    };
    let needs = Needs { dead_letters: true, ..Needs::NOTHING };
    let problems = Config::for_command(&raw, needs, no_env).unwrap_err();
    let settings: Vec<_> = problems.iter().map(|problem| problem.setting).collect();
    assert_eq!(settings, ["MASTER_DATABASE_URL", "KAFKA_BROKERS"]);
}

#[test]
fn every_setting_takes_effect() {
    let some = |text: &str| Some(text.to_owned());
    let config = accepted(&RawConfig {
        wal_prefix: some("orders, billing,orders"),
        topic_template: some("eu.{prefix}"),
        topic_prefix_map: some("orders=sales, billing=money"),
        key_template: some("{null}"),
        kafka_value: some("payload"),
        kafka_timestamp: some("publish"),
        metadata_headers: some("yes"),
        poison_policy: some("skip"),
        poison_policy_topics: some("orders.audit=dead-letter, *.order=halt"),
        dead_letter_topic: some("dead.letters"),
        database_password_file: some("/run/password"),
        replication_slot_name: some("orders_1"),
        replication_slot_failover: some("true"),
        publication_name: some("Orders' facts"),
        wal_sender_timeout: some("1m 30s"),
        tcp_user_timeout: some("2s"),
        status_interval: some("500ms"),
        lease: some("30s"),
        audit_wal_bytes: some("64MiB"),
        kafka_brokers: some("a:1,b, [2001:db8::1]:19092,[::1],b:9092"),
        kafka_ssl: some("true"),
        kafka_ssl_certificate_location: some("/etc/owl.pem"),
        kafka_ssl_key_location: some("/etc/owl.key"),
        kafka_ssl_verification: some("yes"),
        request_timeout: some("4s"),
        in_flight_bytes: some("1MiB"),
        frame_max_bytes: some("65536"),
        stall_timeout: some("1s"),
        compression_type: some("zstd"),
        compression_level: some("-3"),
        batch_bytes: some("64KiB"),
        batch_records: some("500"),
        max_in_flight: some("1"),
        kafka_create_topics: some(
            "partitions=12, replication-factor=3,cleanup.policy=[compact,delete],retention.ms=1",
        ),
        skip_stored: some("on"),
        delivery: some("at-least-once"),
        metadata_max_age: some("1m"),
        backoff_max: some("1s"),
        startup_timeout: some("0s"),
        shutdown_timeout: some("25s"),
        http_bind: some("::1"),
        wal_health_port: some("8080"),
        metrics_port: some("9464"),
        status_page: some("off"),
        slot_poll_interval: some("0s"),
        failure_linger: some("1m"),
        app_name: some("relay 7"),
        log_format: some("json"),
        log_level: some("info,factlib=debug"),
        kafka_username: some("owl"),
        kafka_password: some("hunter2"),
        // What is empty or blank counts as not set.
        kafka_sasl_mechanism: some(""),
        kafka_ssl_ca_location: some(" "),
        ..minimal()
    });
    assert_eq!(config.service, "orders");
    assert_eq!(config.prefixes, ["orders", "billing"]);
    assert_eq!(
        config.records,
        RecordConfig {
            timestamp: RecordTimestamp::Publish,
            value: RecordValue::Payload,
            metadata_headers: true,
            compression: Compression::Zstd(-3),
        }
    );
    assert_eq!(
        config.policies,
        Policies {
            general: Policy::Skip,
            by_topic: vec![
                (TopicPattern::new("orders.audit"), Policy::DeadLetter),
                (TopicPattern::new("*.order"), Policy::Halt)
            ],
            dead_letter_topic: Some("dead.letters".into()),
        }
    );
    let topic = Template::parse("eu.{prefix}", Field::OF_TOPICS).unwrap();
    let map = [("orders", "sales"), ("billing", "money")];
    let prefixes = map.map(|(prefix, text)| (prefix.to_owned(), text.to_owned())).into();
    assert_eq!(config.naming, Naming { topic, key: None, prefixes });
    assert_eq!((&*config.slot, &*config.publication), ("orders_1", "Orders' facts"));
    let brokers: Vec<_> = config.kafka.brokers.iter().map(ToString::to_string).collect();
    assert_eq!(brokers, ["a:1", "b:9092", "[2001:db8::1]:19092", "[::1]:9092"]);
    assert_eq!(config.kafka.client_id, "relay 7");
    let identity = Some(("/etc/owl.pem".into(), "/etc/owl.key".into()));
    assert_eq!(config.kafka.tls, Some(TlsFiles { ca: None, identity, verify: true }));
    let sasl = config.kafka.sasl.as_ref().unwrap();
    let Sasl::Password { mechanism, username, password } = sasl else { panic!("{sasl:?}") };
    assert_eq!((*mechanism, &**username), (Mechanism::ScramSha512, "owl"));
    assert_eq!(password.expose(), "hunter2");
    assert_eq!(config.postgres.password, PasswordSource::File("/run/password".into()));
    let token = || RawConfig {
        kafka_sasl_mechanism: Some("OAUTHBEARER".into()),
        kafka_sasl_oauthbearer_token_file: Some("/run/token".into()),
        ..minimal()
    };
    assert_eq!(accepted(&token()).kafka.sasl, Some(Sasl::Token { file: "/run/token".into() }));
    assert_eq!(
        refused(&RawConfig { kafka_sasl_oauthbearer_token_file: None, ..token() }),
        "KAFKA_SASL_OAUTHBEARER_TOKEN_FILE: is wanted with OAUTHBEARER"
    );
    assert_eq!(
        refused(&RawConfig { kafka_username: Some("owl".into()), ..token() }),
        "KAFKA_USERNAME: has no effect with OAUTHBEARER; remove it"
    );
    assert!(!format!("{config:?}").contains("hunter2"));
    assert_eq!(config.postgres.application_name, "relay 7");
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(
        config.create_topics,
        Some(NewTopic {
            partitions: Some(12),
            replication_factor: Some(3),
            configs: vec![pair("cleanup.policy", "compact,delete"), pair("retention.ms", "1")],
        })
    );
    assert!(config.skip_stored);
    assert_eq!(
        config.limits,
        Limits {
            in_flight_bytes: 1 << 20,
            frame_max_bytes: 1 << 16,
            stall: ms(1000),
            lease: ms(30_000),
            status_interval: ms(500),
            wal_sender_timeout: ms(90_000),
            tcp_user_timeout: ms(2000),
            request: ms(4000),
            batch_bytes: 65_536,
            batch_records: 500,
            in_flight: 1,
            metadata_age: ms(60_000),
            backoff_max: ms(1000),
            startup: None,
            shutdown: ms(25_000),
            audit_wal_bytes: 64 << 20,
        }
    );
    assert_eq!(config.postgres.tcp_user_timeout, Some(ms(2000)));
    assert_eq!(config.http, Some("[::1]:8080".parse().unwrap()));
    assert_eq!(config.metrics, Some("[::1]:9464".parse().unwrap()));
    assert_eq!((config.status_page, config.slot_poll), (false, None));
    assert_eq!(config.failure_linger, ms(60_000));
    assert_eq!(
        config.log,
        LogConfig { format: LogFormat::Json, level: "info,factlib=debug".into() }
    );

    let off = RawConfig { wal_health_port: some("0"), metrics_port: some("0"), ..minimal() };
    assert_eq!((accepted(&off).http, accepted(&off).metrics), (None, None));
    let same = RawConfig { metrics_port: some("3001"), ..minimal() };
    assert_eq!(accepted(&same).metrics, None, "the health port has them");
    let prefix = RawConfig { src_service_name: None, wal_prefix: some("a,b"), ..minimal() };
    assert_eq!(accepted(&prefix).service, "a");
}

#[test]
fn all_problems_are_reported_at_once_and_in_order() {
    let text = |text: &str| Some(text.to_owned());
    let raw = RawConfig {
        wal_prefix: text("orders,bad prefix,,\u{e4}"),
        topic_template: text("{prefix}/{aggregate_type}"),
        topic_prefix_map: text("orders=a b,carts=c,orders"),
        key_template: text("{id}"),
        kafka_value: text("both"),
        kafka_timestamp: text("now"),
        metadata_headers: text("maybe"),
        poison_policy: text("drop"),
        dead_letter_topic: None,
        poison_policy_topics: text("orders.audit=dead-letter,x y=skip,orders.*=drop,skip"),
        master_database_url: text("postgres://db:5432/app?sslmode=require&fun=1"),
        database_password_file: text("/run/password"),
        database_password_command: text("cat /run/password"),
        replication_slot_name: text("Factlib-Slot"),
        replication_slot_failover: text("no way"),
        publication_name: Some("x".repeat(64)),
        wal_sender_timeout: text("15"),
        tcp_user_timeout: text("1h"),
        status_interval: text("soon"),
        lease: text("-1s"),
        audit_wal_bytes: text("1MiB"),
        kafka_brokers: text("PLAINTEXT://kafka:9092,kafka:0,::1,[::1,:9092,kafka:x,"),
        kafka_username: None,
        kafka_password: text("hunter2"),
        kafka_ssl: text("perhaps"),
        kafka_sasl_mechanism: text("GSSAPI"),
        kafka_sasl_oauthbearer_token_file: text("/run/token"),
        kafka_ssl_ca_location: text("ca.pem"),
        kafka_ssl_certificate_location: text("owl.pem"),
        kafka_ssl_key_location: None,
        kafka_ssl_verification: text("false"),
        request_timeout: text("1d"),
        in_flight_bytes: text("1KiB"),
        frame_max_bytes: text("big"),
        stall_timeout: text("1ms"),
        compression_type: text("brotli"),
        compression_level: text("23"),
        batch_bytes: text("1MiB"),
        batch_records: text("0"),
        max_in_flight: text("6"),
        kafka_create_topics: text("partitions=0,replication-factor=x,6,a=1,a=2"),
        skip_stored: text("never"),
        delivery: text("twice"),
        transaction_interval: text("50"),
        transaction_timeout: text("1h"),
        large_transactions: text("join"),
        position_topic: text("a/b"),
        fenced_policy: text("fight"),
        metadata_max_age: text("1"),
        backoff_max: text("1h"),
        startup_timeout: text("2d"),
        shutdown_timeout: text("2h"),
        http_bind: text("localhost"),
        wal_health_port: text("70000"),
        metrics_port: text("-1"),
        status_page: text("maybe"),
        slot_poll_interval: text("10ms"),
        failure_linger: text("2h"),
        app_name: text("b\u{fc}ro"),
        log_format: text("xml"),
        log_level: text("loud"),
        src_service_name: None,
    };
    let problems = Config::from_raw(&raw, no_env).unwrap_err();
    let expected = r#"
WAL_PREFIX: "bad prefix" contains ' ', which no topic may; use a-z A-Z 0-9 . _ -
WAL_PREFIX: has an empty prefix; remove the comma too many
WAL_PREFIX: "ä" contains 'ä', which no topic may; use a-z A-Z 0-9 . _ -
TOPIC_TEMPLATE: "{prefix}/{aggregate_type}" has what no topic's name may; use a-z A-Z 0-9 . _ -
TOPIC_PREFIX_MAP: "orders=a b": write prefix=text, the text of a-z A-Z 0-9 . _ -
TOPIC_PREFIX_MAP: "carts" is none of WAL_PREFIX
TOPIC_PREFIX_MAP: "orders": write prefix=text, the text of a-z A-Z 0-9 . _ -
KEY_TEMPLATE: "{id}": {id} is none of the placeholders here
KAFKA_VALUE: "both" is not one of: envelope, payload
KAFKA_TIMESTAMP: "now" is not one of: commit, publish
METADATA_HEADERS: "maybe" is neither true nor false
POISON_POLICY: "drop" is not one of: halt, dead-letter, skip
POISON_POLICY_TOPICS: "x y=skip": write topic=policy, with halt, dead-letter or skip
POISON_POLICY_TOPICS: "orders.*=drop": write topic=policy, with halt, dead-letter or skip
POISON_POLICY_TOPICS: "skip": write topic=policy, with halt, dead-letter or skip
DEAD_LETTER_TOPIC: is wanted, because a policy is dead-letter
MASTER_DATABASE_URL: unknown parameter "fun", in postgres://db:5432/app?sslmode=require&fun=1
DATABASE_PASSWORD_COMMAND: DATABASE_PASSWORD_FILE is set, too; remove one of them
REPLICATION_SLOT_NAME: "Factlib-Slot" is not a slot name; PostgreSQL wants 1 to 63 of a-z 0-9 _
REPLICATION_SLOT_FAILOVER: "no way" is neither true nor false
PUBLICATION_NAME: "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx" has more than 63 bytes; choose a shorter name
WAL_SENDER_TIMEOUT: "15" is not a duration; write a number with a unit, such as 3s or 500ms
TCP_USER_TIMEOUT: "1h" is outside 500ms to 10m
STATUS_INTERVAL: "soon" is not a duration; write a number with a unit, such as 3s or 500ms
LEASE: "-1s" is not a duration; write a number with a unit, such as 3s or 500ms
AUDIT_WAL_BYTES: "1MiB" is outside 16.0 MiB to 1.0 TiB
KAFKA_BROKERS: "PLAINTEXT://kafka:9092": write "kafka:9092" without PLAINTEXT://
KAFKA_BROKERS: "kafka:0": the port is not a number from 1 to 65535; write host:port or [address]:port
KAFKA_BROKERS: "::1": an IPv6 address needs brackets; write host:port or [address]:port
KAFKA_BROKERS: "[::1": there is no closing ]; write host:port or [address]:port
KAFKA_BROKERS: ":9092": there is no host name; write host:port or [address]:port
KAFKA_BROKERS: "kafka:x": the port is not a number from 1 to 65535; write host:port or [address]:port
KAFKA_BROKERS: has an empty entry; remove the comma too many
KAFKA_USERNAME: is wanted with KAFKA_PASSWORD
KAFKA_SASL_MECHANISM: "GSSAPI" is not one of: SCRAM-SHA-512, SCRAM-SHA-256, PLAIN, OAUTHBEARER
KAFKA_SASL_OAUTHBEARER_TOKEN_FILE: has no effect without KAFKA_SASL_MECHANISM=OAUTHBEARER; set that, or remove this
KAFKA_SSL: "perhaps" is neither true nor false
KAFKA_SSL_CA_LOCATION: has no effect without KAFKA_SSL=true; set that, or remove this
KAFKA_SSL_CERTIFICATE_LOCATION: has no effect without KAFKA_SSL=true; set that, or remove this
KAFKA_SSL_KEY_LOCATION: is wanted with KAFKA_SSL_CERTIFICATE_LOCATION
KAFKA_SSL_VERIFICATION: false makes KAFKA_SSL_CA_LOCATION pointless; remove one of them
REQUEST_TIMEOUT: "1d" is outside 100ms to 5m
COMPRESSION_TYPE: "brotli" is not one of: none, snappy, lz4, zstd
COMPRESSION_LEVEL: "23" is not a number from -7 to 22
BATCH_BYTES: "1MiB" is outside 1.0 KiB to 878.9 KiB
BATCH_RECORDS: "0" is not a number from 1 to 1000000
MAX_IN_FLIGHT: "6" is not a number from 1 to 5
KAFKA_CREATE_TOPICS: partitions=0 is not a number from 1 to 10000
KAFKA_CREATE_TOPICS: replication-factor=x is not a number from 1 to 32767
KAFKA_CREATE_TOPICS: "6": write true, false, or name=value with partitions, replication-factor or a topic's configuration
KAFKA_CREATE_TOPICS: a is given twice; remove one
SKIP_STORED: "never" is neither true nor false
METADATA_MAX_AGE: "1" is not a duration; write a number with a unit, such as 3s or 500ms
DELIVERY: "twice" is not one of: at-least-once, exactly-once
TRANSACTION_INTERVAL: "50" is not a duration; write a number with a unit, such as 3s or 500ms
TRANSACTION_TIMEOUT: "1h" is outside 1s to 15m
LARGE_TRANSACTIONS: "join" is not one of: split, halt
POSITION_TOPIC: "a/b" cannot be a topic's name; use a-z A-Z 0-9 . _ -
FENCED_POLICY: "fight" is not one of: exit, standby
IN_FLIGHT_BYTES: "1KiB" is outside 1.0 MiB to 1.0 GiB
FRAME_MAX_BYTES: "big" is not a size; write a number with a unit, such as 8MiB
STALL_TIMEOUT: "1ms" is outside 100ms to 1m
BACKOFF_MAX: "1h" is outside 100ms to 5m
STARTUP_TIMEOUT: "2d" is outside 0s to 1day
SHUTDOWN_TIMEOUT: "2h" is outside 0s to 1h
HTTP_BIND: "localhost" is not an IP address; use 0.0.0.0, 127.0.0.1 or ::
WAL_HEALTH_PORT: "70000" is not a port; use a number from 0 to 65535
METRICS_PORT: "-1" is not a port; use a number from 0 to 65535
STATUS_PAGE: "maybe" is neither true nor false
SLOT_POLL_INTERVAL: is below 1s; use 0s for never, or more
FAILURE_LINGER: "2h" is outside 0s to 1h
APP_NAME: "büro" is not 1 to 63 printable ASCII characters
LOG_FORMAT: "xml" is not one of: auto, human, json
LOG_LEVEL: "loud" is no level; use error, warn, info, debug or trace
"#;
    assert_eq!(problems.to_string(), expected.trim());
    // Every setting has its turn; the names of a service and of a file have none that is wrong by itself, and
    // of user and password only one can be missing.
    let named: Vec<_> = problems.iter().map(|problem| problem.setting).collect();
    let exempt = ["SRC_SERVICE_NAME", "DATABASE_PASSWORD_FILE", "KAFKA_PASSWORD"];
    for variable in VARIABLES.iter().filter(|variable| !exempt.contains(variable)) {
        assert!(named.contains(variable), "{variable} was not refused");
    }
}

#[test]
fn exactly_once_has_settings_of_its_own() {
    let some = |text: &str| Some(text.to_owned());
    let exactly_once = || RawConfig { delivery: some("exactly-once"), ..minimal() };
    let of = |raw| match accepted(&raw).delivery {
        Delivery::ExactlyOnce(settings) => settings,
        Delivery::AtLeastOnce => panic!("at least once"),
    };
    let by_default = ExactlyOnce {
        slot: "factlib_slot".into(),
        position_topic: "owlpost.position".into(),
        position_topic_like: NewTopic {
            partitions: Some(1),
            replication_factor: None,
            configs: Vec::new(),
        },
        timeout: MINUTE,
        interval: ms(50),
        bytes_max: 4 << 20,
        facts_max: 100_000,
        large: LargeTransactions::Split,
        standby: false,
    };
    assert_eq!(of(exactly_once()), by_default);
    let all = of(RawConfig {
        transaction_interval: some("1s"),
        transaction_timeout: some("15m"),
        large_transactions: some("halt"),
        position_topic: some("orders-position"),
        fenced_policy: some("standby"),
        replication_slot_name: some("other"),
        in_flight_bytes: some("1MiB"),
        kafka_create_topics: some("partitions=6,replication-factor=3,retention.ms=1"),
        ..exactly_once()
    });
    let expected = ExactlyOnce {
        slot: "other".into(),
        position_topic: "orders-position".into(),
        position_topic_like: NewTopic {
            replication_factor: Some(3),
            ..by_default.position_topic_like
        },
        timeout: MINUTE * 15,
        interval: ms(1000),
        bytes_max: 1 << 19,
        large: LargeTransactions::Halt,
        standby: true,
        ..by_default
    };
    assert_eq!(all, expected);
}

#[test]
fn what_does_not_go_with_exactly_once_is_refused() {
    let some = |text: &str| Some(text.to_owned());
    let exactly_once = RawConfig {
        delivery: some("exactly-once"),
        transaction_interval: some("5s"),
        transaction_timeout: some("10s"),
        position_topic: some("dead"),
        poison_policy: some("dead-letter"),
        dead_letter_topic: some("dead"),
        skip_stored: some("true"),
        ..minimal()
    };
    assert_eq!(
        refused(&exactly_once),
        "\
SKIP_STORED: has no place with DELIVERY=exactly-once, which repeats nothing; remove it
TRANSACTION_INTERVAL: 5s is not shorter than half of TRANSACTION_TIMEOUT (10s); lower it
TRANSACTION_TIMEOUT: 10s is not longer than REQUEST_TIMEOUT (10s): one slow answer would end a transaction; raise it
POSITION_TOPIC: is DEAD_LETTER_TOPIC, too: who deletes that would delete the position; choose another"
    );
    let at_least_once = RawConfig {
        transaction_interval: some("50ms"),
        transaction_timeout: some("1m"),
        large_transactions: some("split"),
        position_topic: some("p"),
        fenced_policy: some("exit"),
        ..minimal()
    };
    let refused = refused(&at_least_once);
    let lines: Vec<_> = refused.lines().collect();
    assert_eq!(lines.len(), 5);
    for line in lines {
        let words = "has no effect without DELIVERY=exactly-once; set that, or remove this";
        assert!(line.ends_with(words), "{line}");
    }
}

#[test]
fn what_is_missing_is_named() {
    assert_eq!(
        refused(&RawConfig::default()),
        "\
SRC_SERVICE_NAME: not set; give the name of the service whose facts are published, or WAL_PREFIX
MASTER_DATABASE_URL: not set; give a URL such as postgres://owlpost@db.example:5432/app
KAFKA_BROKERS: not set; give at least one host:port"
    );
    let long = RawConfig { src_service_name: Some("x".repeat(248)), ..minimal() };
    assert!(refused(&long).ends_with("has more than 247 characters; topics end at 249"));
}

#[test]
fn a_bracket_without_another_creates_no_topic() {
    for (text, words) in [
        ("cleanup.policy=[compact,delete", "a bracket has no other"),
        ("cleanup.policy=compact]", "a bracket has no other"),
        ("[x=y]", "\"[x\" is no name of a topic's configuration"),
    ] {
        let refused =
            refused(&RawConfig { kafka_create_topics: Some(text.to_owned()), ..minimal() });
        assert!(refused.contains(words), "{refused}");
    }
}

#[test]
fn a_slot_of_audits_is_no_relays() {
    let name = Some("owlpost_audit_orders".to_owned());
    let refused = refused(&RawConfig { replication_slot_name: name, ..minimal() });
    assert!(refused.starts_with("REPLICATION_SLOT_NAME: "), "{refused}");
    assert!(refused.contains("as the slots of audits do"), "{refused}");
}

#[test]
fn limits_that_do_not_fit_together_are_refused() {
    let text = |text: &str| Some(text.to_owned());
    let raw = RawConfig { lease: text("9s"), ..minimal() };
    assert_eq!(
        refused(&raw),
        "LEASE: 9s is not shorter than WAL_SENDER_TIMEOUT (9s): two relays could publish at once; \
         lower it"
    );
    let raw = RawConfig { lease: text("3s"), ..minimal() };
    assert_eq!(
        refused(&raw),
        "STATUS_INTERVAL: 3s is more than half of LEASE (3s): one late answer would end it; lower it\n\
         STALL_TIMEOUT: 3s is not shorter than LEASE (3s): a pause would end it; lower it"
    );
}

/// What the connection string itself says.
fn given(password: Option<&str>) -> PasswordSource {
    password.map_or(PasswordSource::None, |text| PasswordSource::Given(Secret::new(text)))
}

fn tcp(host: &str, port: u16) -> Host {
    Host::Tcp { host: host.into(), addr: None, port }
}

fn unix(dir: &str, port: u16) -> Host {
    Host::Unix { dir: dir.into(), port }
}

/// The examples of libpq's manual and of its own tests; each was also put to libpq's
/// `PQconninfoParse`, which agrees but for the blanks around a URL. Expected: hosts, user,
/// password, database.
#[test]
fn connection_strings_mean_what_libpq_says() {
    let socket = || unix("/var/run/postgresql", 5432);
    type Expected = (Vec<Host>, &'static str, Option<&'static str>, &'static str);
    let table: Vec<(&str, Expected)> = vec![
        (
            "postgresql://u:secret@host:12345/db",
            (vec![tcp("host", 12345)], "u", Some("secret"), "db"),
        ),
        ("postgres://u@host/db", (vec![tcp("host", 5432)], "u", None, "db")),
        ("postgresql://u@host:12345/", (vec![tcp("host", 12345)], "u", None, "u")),
        ("postgresql://u@host", (vec![tcp("host", 5432)], "u", None, "u")),
        ("  postgresql://u@host\n", (vec![tcp("host", 5432)], "u", None, "u")),
        ("postgresql://u@", (vec![socket()], "u", None, "u")),
        ("postgres://u@/db", (vec![socket()], "u", None, "db")),
        ("postgres://u@:12345/db", (vec![unix("/var/run/postgresql", 12345)], "u", None, "db")),
        ("postgres://u@host:/", (vec![tcp("host", 5432)], "u", None, "u")),
        ("postgresql://host/db?user=u", (vec![tcp("host", 5432)], "u", None, "db")),
        ("postgresql://host/db?user=u&port=1", (vec![tcp("host", 1)], "u", None, "db")),
        ("postgresql://host/db?u%73er=u", (vec![tcp("host", 5432)], "u", None, "db")),
        ("postgresql://host:12345?user=u", (vec![tcp("host", 12345)], "u", None, "u")),
        ("postgresql://u@host?", (vec![tcp("host", 5432)], "u", None, "u")),
        ("postgresql://u@%68ost/%64b", (vec![tcp("host", 5432)], "u", None, "db")),
        ("postgresql://u@[::1]:12345/db", (vec![tcp("::1", 12345)], "u", None, "db")),
        ("postgresql://u@[2001:db8::1234]/", (vec![tcp("2001:db8::1234", 5432)], "u", None, "u")),
        ("postgresql://u@[::1]", (vec![tcp("::1", 5432)], "u", None, "u")),
        (
            "postgres://u@?host=/path/to/socket",
            (vec![unix("/path/to/socket", 5432)], "u", None, "u"),
        ),
        ("postgres://u@:1/db?host=/a/b/", (vec![unix("/a/b", 1)], "u", None, "db")),
        ("postgres://u@%2Fvar%2Flib%2Fpg/db", (vec![unix("/var/lib/pg", 5432)], "u", None, "db")),
        (
            "postgresql:///mydb?host=localhost&port=5433&user=u",
            (vec![tcp("localhost", 5433)], "u", None, "mydb"),
        ),
        (
            "postgresql://u@host1:123,host2:456,[::1],host4/somedb",
            (
                vec![tcp("host1", 123), tcp("host2", 456), tcp("::1", 5432), tcp("host4", 5432)],
                "u",
                None,
                "somedb",
            ),
        ),
        ("postgresql://u@a,b/?port=6543", (vec![tcp("a", 6543), tcp("b", 6543)], "u", None, "u")),
        (
            "postgresql://u:p%40ss%2Fw%3Ard@host/",
            (vec![tcp("host", 5432)], "u", Some("p@ss/w:rd"), "u"),
        ),
        ("postgresql://u:a:b?c@host/", (vec![tcp("host", 5432)], "u", Some("a:b?c"), "u")),
        (
            "postgresql://u@host/db?user=me@server",
            (vec![tcp("host", 5432)], "me@server", None, "db"),
        ),
        ("postgresql://u@host/a+b", (vec![tcp("host", 5432)], "u", None, "a+b")),
        (
            "host=localhost port=5432 dbname=mydb user=u",
            (vec![tcp("localhost", 5432)], "u", None, "mydb"),
        ),
        ("user = u  host = 'h'", (vec![tcp("h", 5432)], "u", None, "u")),
        (
            r"user=u host=h password='it\'s \\ a secret'",
            (vec![tcp("h", 5432)], "u", Some(r"it's \ a secret"), "u"),
        ),
        (r"user=u host=h password=a\ b\'c", (vec![tcp("h", 5432)], "u", Some("a b'c"), "u")),
        ("user=u host=h dbname=''", (vec![tcp("h", 5432)], "u", None, "u")),
        ("user=u host=a user=v", (vec![tcp("a", 5432)], "v", None, "v")),
        ("user=u host=a,b port=1,", (vec![tcp("a", 1), tcp("b", 5432)], "u", None, "u")),
        ("user=u host=,b", (vec![socket(), tcp("b", 5432)], "u", None, "u")),
        ("user=u host=@abstract", (vec![unix("@abstract", 5432)], "u", None, "u")),
    ];
    for (text, (hosts, user, password, database)) in table {
        let config = with_url(text, &[]).unwrap_or_else(|problems| panic!("{text}: {problems}"));
        assert_eq!(config.hosts, hosts, "{text}");
        assert_eq!(config.user, user, "{text}");
        assert_eq!(config.password, given(password), "{text}");
        assert_eq!(config.database, database, "{text}");
    }
}

#[test]
fn parameters_mean_what_libpq_says() {
    let config = |query: &str| with_url(&format!("postgres://u@h/?{query}"), &[]).unwrap();
    assert_eq!(config("connect_timeout=3").connect_timeout, Some(ms(3000)));
    assert_eq!(config("connect_timeout=0").connect_timeout, None);
    assert_eq!(config("connect_timeout=-1").connect_timeout, None);
    assert_eq!(config("tcp_user_timeout=250").tcp_user_timeout, Some(ms(250)));
    assert_eq!(config("tcp_user_timeout=0").tcp_user_timeout, None);
    assert_eq!(config("keepalives=0").keepalives, None);
    assert_eq!(
        config("keepalives_idle=60&keepalives_interval=5&keepalives_count=3").keepalives,
        Some(Keepalives { idle: Some(ms(60_000)), interval: Some(ms(5000)), count: Some(3) })
    );
    assert_eq!(
        config("options=-c%20statement_timeout%3D5s").options.as_deref(),
        Some("-c statement_timeout=5s")
    );
    assert_eq!(config("application_name=x").application_name, "x");
    assert_eq!(config("fallback_application_name=x").application_name, "x");
    assert_eq!(config("replication=true&channel_binding=prefer&gssencmode=disable"), config(""));
    assert_eq!(
        config("client_encoding=UTF8&krbsrvname=pg&max_protocol_version=latest&sslcompression=1"),
        config("")
    );

    let hosts = |query: &str| config(query).hosts;
    let addr = "192.0.2.7".parse().unwrap();
    assert_eq!(
        hosts("hostaddr=192.0.2.7"),
        [Host::Tcp { host: "h".into(), addr: Some(addr), port: 5432 }]
    );
    assert_eq!(hosts("hostaddr=192.0.2.7")[0].to_string(), "h:5432 (192.0.2.7)");
    assert_eq!(
        with_url("user=u hostaddr=192.0.2.7", &[]).unwrap().hosts,
        [Host::Tcp { host: "192.0.2.7".into(), addr: Some(addr), port: 5432 }]
    );

    let attrs = |url: &str| with_url(url, &[]).unwrap().target_session_attrs;
    assert_eq!(attrs("postgres://u@a/"), TargetSessionAttrs::Any);
    assert_eq!(attrs("postgres://u@a,b/"), TargetSessionAttrs::Primary);
    assert_eq!(attrs("postgres://u@a,b/?target_session_attrs=any"), TargetSessionAttrs::Any);
    assert_eq!(
        attrs("postgres://u@a/?target_session_attrs=read-write"),
        TargetSessionAttrs::ReadWrite
    );
}

#[test]
fn md5_and_clear_text_must_be_asked_for_by_name() {
    let auth =
        |list: &str| with_url(&format!("user=u host=h require_auth='{list}'"), &[]).unwrap().auth;
    let only = |trust, scram, md5, cleartext| AuthMethods { trust, scram, md5, cleartext };
    assert_eq!(auth(""), only(true, true, false, false));
    assert_eq!(auth("scram-sha-256"), only(false, true, false, false));
    assert_eq!(auth("md5"), only(false, false, true, false));
    assert_eq!(auth("password, scram-sha-256"), only(false, true, false, true));
    assert_eq!(auth("gss,none"), only(true, false, false, false));
    assert_eq!(auth("!none"), only(false, true, false, false));
    assert_eq!(auth("!password,!md5"), only(true, true, false, false));

    // Unless TLS has shown whose server it is.
    let auth = |list: &str| {
        with_url(&format!("user=u host=h require_auth='{list}'"), &[]).unwrap().auth_verified
    };
    assert_eq!(auth(""), AuthMethods::ALL);
    assert_eq!(auth("scram-sha-256"), only(false, true, false, false));
    assert_eq!(auth("!none"), only(false, true, true, true));
}

#[test]
fn parameters_of_tls_mean_what_libpq_says() {
    let with = |query: &str, env: &[(&str, &str)]| {
        let url = format!("postgres://u@h/?{query}");
        with_url(&url, env).unwrap_or_else(|problems| panic!("{url}: {problems}")).ssl
    };
    let ssl = |query: &str| with(query, &[]);
    let named = |path: &str| SslFile { path: path.into(), is_default: false };
    for (word, mode) in [
        ("disable", SslMode::Disable),
        ("allow", SslMode::Allow),
        ("prefer", SslMode::Prefer),
        ("require", SslMode::Require),
        ("verify-ca", SslMode::VerifyCa),
        ("verify-full", SslMode::VerifyFull),
    ] {
        let found = ssl(&format!("sslmode={word}&sslrootcert=/ca.pem"));
        assert_eq!((found.mode, found.roots), (mode, SslRoots::File(named("/ca.pem"))), "{word}");
        assert_eq!(with("sslrootcert=/ca.pem", &[("PGSSLMODE", word)]).mode, mode);
    }
    assert_eq!(ssl("ssl=true").mode, SslMode::Require);
    let system = ssl("sslrootcert=system");
    assert_eq!((system.mode, system.roots), (SslMode::VerifyFull, SslRoots::System));
    assert_eq!(ssl("sslmode=disable&sslrootcert=system").mode, SslMode::Disable);
    assert_eq!(ssl("sslmode=require&sslnegotiation=direct").negotiation, SslNegotiation::Direct);
    assert_eq!(ssl("sslnegotiation=postgres"), ssl(""));
    let both = ssl("sslcert=a.crt&sslkey=a.key&sslcrl=a.crl");
    assert_eq!(both.identity, Some((named("a.crt"), named("a.key"))));
    assert_eq!(both.crl, Some(named("a.crl")));
    assert_eq!(ssl("sslcertmode=disable").cert_mode, SslCertMode::Disable);
    assert_eq!(ssl("sslcertmode=require").cert_mode, SslCertMode::Require);
    assert!(!ssl("sslsni=0").sni && ssl("sslsni=1").sni);
    let versions = |query: &str| (ssl(query).min_version, ssl(query).max_version);
    assert_eq!(versions("ssl_min_protocol_version=tlsv1.3"), (TlsVersion::V1_3, TlsVersion::V1_3));
    assert_eq!(versions("ssl_max_protocol_version=TLSv1.2"), (TlsVersion::V1_2, TlsVersion::V1_2));
    assert_eq!(versions("ssl_min_protocol_version=TLSv1"), (TlsVersion::V1_2, TlsVersion::V1_3));

    // The home directory has files, too, which need not be there.
    let home = |name: &str| {
        let path = PathBuf::from("/home/owl/.postgresql").join(name);
        SslFile { path, is_default: true }
    };
    let at_home = with("sslmode=verify-ca", &[("HOME", "/home/owl")]);
    assert_eq!(at_home.roots, SslRoots::File(home("root.crt")));
    assert_eq!(at_home.crl, Some(home("root.crl")));
    assert_eq!(at_home.identity, Some((home("postgresql.crt"), home("postgresql.key"))));
    let half = with("sslcert=a.crt", &[("HOME", "/home/owl")]);
    assert_eq!(half.identity, Some((named("a.crt"), home("postgresql.key"))));
    assert_eq!(with("sslrootcert=system", &[("HOME", "/home/owl")]).crl, None);

    let files = [
        ("PGSSLROOTCERT", "/r.crt"),
        ("PGSSLCERT", "/o.crt"),
        ("PGSSLKEY", "/o.key"),
        ("PGSSLCRL", "/r.crl"),
        ("PGSSLNEGOTIATION", "direct"),
        ("PGSSLCERTMODE", "require"),
        ("PGSSLSNI", "0"),
        ("PGSSLMINPROTOCOLVERSION", "TLSv1.3"),
        ("PGSSLMAXPROTOCOLVERSION", "TLSv1.3"),
        ("PGSSLMODE", "verify-full"),
    ];
    assert_eq!(
        with("", &files),
        SslConfig {
            mode: SslMode::VerifyFull,
            negotiation: SslNegotiation::Direct,
            roots: SslRoots::File(named("/r.crt")),
            crl: Some(named("/r.crl")),
            identity: Some((named("/o.crt"), named("/o.key"))),
            cert_mode: SslCertMode::Require,
            sni: false,
            min_version: TlsVersion::V1_3,
            max_version: TlsVersion::V1_3,
        }
    );
    let binding = |query: &str, env: &[(&str, &str)]| {
        with_url(&format!("postgres://u@h/?{query}"), env).unwrap().channel_binding
    };
    assert_eq!(binding("channel_binding=require", &[]), ChannelBinding::Require);
    assert_eq!(binding("", &[("PGCHANNELBINDING", "disable")]), ChannelBinding::Disable);
}

#[test]
fn a_password_is_in_one_place() {
    let with = |file: &str, command: &str, url: &str, env: &[(&str, &str)]| {
        let raw = RawConfig {
            master_database_url: Some(url.into()),
            database_password_file: Some(file.into()),
            database_password_command: Some(command.into()),
            ..minimal()
        };
        let env: HashMap<_, _> = env.iter().copied().collect();
        Config::from_raw(&raw, |name| env.get(name).map(|value| (*value).to_owned()))
            .map(|config| config.postgres.password)
            .map_err(|problems| problems.to_string())
    };
    let url = "postgres://u@h";
    let home = ("HOME", "/home/owl");
    let passfile = |file: &str| Ok(PasswordSource::Passfile(file.into()));
    assert_eq!(with("", "", url, &[]), Ok(PasswordSource::None));
    assert_eq!(with("/f", "", url, &[home]), Ok(PasswordSource::File("/f".into())));
    let command = PasswordSource::Command(Secret::new("vault hunter2"));
    assert!(!format!("{command:?}").contains("hunter2"));
    assert_eq!(with("", "vault hunter2", url, &[home]), Ok(command));
    assert_eq!(with("", "", url, &[home]), passfile("/home/owl/.pgpass"));
    assert_eq!(with("", "", url, &[home, ("PGPASSFILE", "/p")]), passfile("/p"));
    assert_eq!(with("", "", "postgres://u@h?passfile=/q", &[("PGPASSFILE", "/p")]), passfile("/q"));
    assert_eq!(with("", "", "postgres://u:s@h?passfile=/q", &[home]), Ok(given(Some("s"))));
    assert_eq!(with("", "", url, &[home, ("PGPASSWORD", "s")]), Ok(given(Some("s"))));

    for (file, command, url, env, problem) in [
        (
            "/f",
            "",
            "postgres://u:hunter2@h",
            None,
            "DATABASE_PASSWORD_FILE: MASTER_DATABASE_URL has a password, too; remove one of them",
        ),
        (
            "",
            "c",
            url,
            Some(("PGPASSWORD", "hunter2")),
            "DATABASE_PASSWORD_COMMAND: PGPASSWORD has a password, too; remove one of them",
        ),
        (
            "/f",
            "",
            url,
            Some(("PGPASSFILE", "/p")),
            "DATABASE_PASSWORD_FILE: PGPASSFILE has a passfile, too; remove one of them",
        ),
        (
            "/f",
            "c",
            url,
            None,
            "DATABASE_PASSWORD_COMMAND: DATABASE_PASSWORD_FILE is set, too; remove one of them",
        ),
    ] {
        let env: Vec<_> = env.into_iter().collect();
        assert_eq!(with(file, command, url, &env), Err(problem.to_owned()));
    }
}

#[test]
fn variables_stand_in_for_what_the_string_leaves_out() {
    let env = [
        ("PGHOST", "envhost"),
        ("PGPORT", "6000"),
        ("PGUSER", "envuser"),
        ("PGPASSWORD", "envsecret"),
        ("PGDATABASE", "envdb"),
        ("PGAPPNAME", "envapp"),
        ("PGCONNECT_TIMEOUT", "7"),
        ("PGSSLMODE", "disable"),
        ("PGREQUIREAUTH", "md5"),
        ("PGOPTIONS", "-c a=b"),
    ];
    let config = with_url("", &env).unwrap();
    assert_eq!(config.hosts, [tcp("envhost", 6000)]);
    assert_eq!((&*config.user, &*config.database), ("envuser", "envdb"));
    assert_eq!(config.password, given(Some("envsecret")));
    assert_eq!(config.application_name, "envapp");
    assert_eq!(config.connect_timeout, Some(ms(7000)));
    assert_eq!(config.ssl.mode, SslMode::Disable);
    assert!(config.auth.md5 && !config.auth.scram);
    assert_eq!(config.options.as_deref(), Some("-c a=b"));

    // The string wins; given but empty is libpq's default, not the variable.
    let config =
        with_url("host=h port='' user=u password=p dbname=d sslmode=prefer", &env).unwrap();
    assert_eq!(config.hosts, [tcp("h", 5432)]);
    assert_eq!((&*config.user, &*config.database), ("u", "d"));
    assert_eq!(config.password, given(Some("p")));
    assert_eq!(config.ssl.mode, SslMode::Prefer);

    let problems =
        with_url("postgres://u@h", &[("PGSSLMODE", "verify-full"), ("PGPORT", "x")]).unwrap_err();
    assert_eq!(
        problems,
        "PGSSLMODE: there is nothing to verify a certificate with: name the file of its authority in \
         sslrootcert, or sslrootcert=system\n\
         PGPORT: a port is not a number from 1 to 65535; write host:port"
    );
}

#[test]
fn bad_connection_strings_are_refused_in_one_sentence() {
    const ENCODE: &str =
        "; percent-encode what is special in a password (@ is %40, / is %2F, : is %3A, % is %25)";
    let no_roots = "there is nothing to verify a certificate with: name the file of its authority in sslrootcert, \
                    or sslrootcert=system";
    let system = "with sslrootcert=system only verify-full means anything; set that, or name a file of your own \
                  authority in sslrootcert";
    let direct = "sslnegotiation=direct leaves no way to clear text; it wants sslmode=require, verify-ca or \
                  verify-full";
    let table: Vec<(&str, String)> = vec![
        ("nonsense", "it is neither a postgres:// URL nor a keyword=value string".into()),
        ("postgre://u@h", "it is neither a postgres:// URL nor a keyword=value string".into()),
        ("mysql://u@h/?a=b", "it is neither a postgres:// URL nor a keyword=value string".into()),
        ("postgres://db/app", "names no role; write postgres://ROLE@HOST/DATABASE or set PGUSER".into()),
        ("postgres://[::1", "the IPv6 address has no closing ], in postgres://[::1".into()),
        ("postgres://[]", "there is no IPv6 address between [ and ], in postgres://[]".into()),
        ("postgres://[::1]z", "only :port may follow the ] of an IPv6 address, in postgres://[::1]z".into()),
        ("postgres://h?zzz", "a parameter after ? has no =, in postgres://h?zzz".into()),
        ("postgres://h?a=b&c", "unknown parameter \"a\", in postgres://h?a=b&c".into()),
        (
            "postgres://h?user=a=b",
            "a parameter after ? has two =; percent-encode the second as %3D, in postgres://h?user=a=b".into(),
        ),
        (
            "postgres://u:s3cret@h?uzer=x",
            format!("unknown parameter \"uzer\", in postgres://u:***@h?uzer=x{ENCODE}"),
        ),
        ("postgres://a%00b", "%00 is not allowed, in postgres://a%00b".into()),
        ("postgres://%zz", "a % is not followed by two hexadecimal digits, in postgres://%zz".into()),
        ("postgres://%1", "a % is not followed by two hexadecimal digits, in postgres://%1".into()),
        ("postgres://%ff@h", format!("the percent-encoded bytes are not UTF-8, in postgres://%ff@h{ENCODE}")),
        ("postgres://u@h:99999", "a port is not a number from 1 to 65535; write host:port".into()),
        ("postgres://u@h:0", "a port is not a number from 1 to 65535; write host:port".into()),
        ("postgres://u@h?sslmode=on", "sslmode \"on\" does not exist; use one of disable, allow, prefer, require, verify-ca, verify-full".into()),
        ("postgres://u@h?sslmode=verify-ca", no_roots.into()),
        ("postgres://u@h?sslmode=verify-full", no_roots.into()),
        ("postgres://u@h?sslmode=verify-ca&sslrootcert=system", system.into()),
        ("postgres://u@h?sslmode=prefer&sslrootcert=system", system.into()),
        ("postgres://u@h?sslnegotiation=direct", direct.into()),
        ("postgres://u@h?sslnegotiation=direct&sslmode=prefer", direct.into()),
        ("postgres://u@h?sslmode=require&sslnegotiation=tls", "sslnegotiation \"tls\" does not exist; use one of postgres, direct".into()),
        ("postgres://u@h?sslcertmode=no", "sslcertmode \"no\" does not exist; use one of disable, allow, require".into()),
        ("postgres://u@h?sslsni=yes", "sslsni \"yes\" does not exist; use one of 1, 0".into()),
        ("postgres://u@h?sslcert=a.crt", "sslcert wants the file of its private key, too: name it in sslkey".into()),
        ("postgres://u@h?sslkey=a.key", "sslkey wants the file of its certificate, too: name it in sslcert".into()),
        ("postgres://u@h?sslpassword=x", "sslpassword: encrypted keys are not in this version; write the key without a pass phrase, with `openssl pkey`".into()),
        ("postgres://u@h?sslcrldir=x", "sslcrldir: not in this version; name one file in sslcrl".into()),
        ("postgres://u@h?sslkeylogfile=x", "sslkeylogfile: not in this version; remove it".into()),
        ("postgres://u@h?ssl_max_protocol_version=TLSv1.1", "ssl_max_protocol_version=TLSv1.1: TLS before 1.2 is not in this version; remove it".into()),
        ("postgres://u@h?ssl_min_protocol_version=1.2", "ssl_min_protocol_version \"1.2\" does not exist; use TLSv1.2 or TLSv1.3".into()),
        ("postgres://u@h?ssl_min_protocol_version=TLSv1.3&ssl_max_protocol_version=TLSv1.2", "ssl_min_protocol_version is newer than ssl_max_protocol_version: no version is left".into()),
        ("postgres://u@h?channel_binding=yes", "channel_binding has no such value; use disable, prefer or require".into()),
        ("postgres://u@h?sslmode=disable&channel_binding=require", "channel_binding=require needs TLS, which sslmode=disable excludes; remove one of them".into()),
        ("postgres://u@h?gssencmode=require", "gssencmode: GSSAPI is not in this version; remove it".into()),
        ("postgres://u@h?service=x", "service: service files are not in this version; write the parameters into MASTER_DATABASE_URL".into()),
        ("postgres://u@h?load_balance_hosts=random", "load_balance_hosts: hosts are tried in order; remove it".into()),
        ("postgres://u@h?target_session_attrs=standby", "target_session_attrs=standby: reading from a standby is not in this version; use primary".into()),
        ("postgres://u@h?target_session_attrs=fast", "target_session_attrs \"fast\" does not exist; use any, primary or read-write".into()),
        ("postgres://u@h?connect_timeout=3s", "connect_timeout \"3s\" is not a whole number".into()),
        ("postgres://u@h?hostaddr=h", "hostaddr \"h\" is not an IP address".into()),
        ("host=a,b hostaddr=192.0.2.1 user=u", "1 hostaddr for 2 hosts; give one each".into()),
        ("host=a port=1,2,3 user=u", "3 ports for 1 host; give one for all or one each".into()),
        ("user=u host=h require_auth=tls", "require_auth has no method \"tls\"; use scram-sha-256, md5, password or none".into()),
        ("user=u host=h require_auth=md5,!none", "require_auth mixes methods with and without !; write one kind only".into()),
        ("user=u host=h require_auth=gss", "require_auth leaves no method that this version has; use scram-sha-256, md5, password or none".into()),
        ("host=h user='u", "the quote around the value of user is not closed".into()),
        ("host=h user u", "a keyword is not followed by =; quote values with spaces in '...'".into()),
        ("host=h fun=1", "unknown parameter \"fun\"".into()),
    ];
    for (text, sentence) in table {
        let problems = with_url(text, &[]).expect_err(text);
        assert_eq!(problems, format!("MASTER_DATABASE_URL: {sentence}"), "{text}");
    }
}

/// Each holds `hunter2`, most of them wrongly quoted: no error and no `Debug` may show a piece of
/// it.
#[test]
fn a_password_is_never_shown() {
    let urls = [
        "postgres://u:hunter2@h/db",
        "postgres://u:hunter2@h:99999/db",
        "postgres://u:hunter2@h/db?sslmode=require",
        "postgres://u:hunter2@h/db?fun=1",
        "postgres://u:hun@ter2@h/db?fun=1",
        "postgres://u:hun@ter2@h/db",
        "postgres://u:hun/ter2@h/db",
        "postgres://u:hun/ter2?x=ter2@h/db",
        "postgres://u:hun/ter2?x&ter2=y@h/db",
        "postgres://u:hun%ter2@h/db",
        "postgres://u:hun%00ter2@h/db",
        "postgres://h/db?user=u&password=hunter2",
        "postgres://h/db?user=u&password=hunter2&fun=1",
        "postgres://h/db?user=u&password=hun&ter2=1",
        "postgres://h/db?user=u&password=hun&ter2",
        "postgres://h/db?user=u&p%61ssword=hunter2&fun=1",
        "postgres://h/db?user=u&password=hun=ter2",
        "postgres://h/db?user=u&sslpassword=hunter2",
        "host=h user=u password=hunter2 fun=1",
        "host=h user=u password=hun ter2",
        "host=h user=u password=hun ter2 dbname=x",
        "host=h user=u password=hun ter2=x",
        "host=h user=u password='hunter2",
        "hunter2",
        "mysql://u:hunter2@h/?a=b",
        "postgres:/u:hunter2@h/?a=b",
    ];
    for url in urls {
        let raw = RawConfig { master_database_url: Some(url.into()), ..minimal() };
        let shown = format!("{raw:?} {:?}", Config::from_raw(&raw, no_env));
        for piece in ["hunter2", "hun", "ter2"] {
            assert!(!shown.contains(piece), "{url} shows {shown}");
        }
        if let Err(problems) = Config::from_raw(&raw, no_env) {
            assert!(!problems.to_string().contains("ter2"), "{url} shows {problems}");
        }
    }
    let raw = RawConfig {
        master_database_url: Some("postgres://u:hunter2@h/db".into()),
        kafka_password: Some("hunter2".into()),
        ..minimal()
    };
    let shown = format!("{raw:?} {}", refused(&raw));
    assert!(!shown.contains("hunter2"), "{shown}");
    let config = with_url("postgres://u:hunter2@h/db", &[]).unwrap();
    assert!(format!("{config:?}").contains("password: Given(***)"));
}

#[test]
fn a_socket_has_libpqs_name() {
    assert_eq!(unix("/tmp", 5433).socket_path().as_deref(), Some("/tmp/.s.PGSQL.5433"));
    assert_eq!(unix("@pg", 5432).socket_path().as_deref(), Some("\0pg/.s.PGSQL.5432"));
    assert_eq!(tcp("h", 1).socket_path(), None);
    assert_eq!(tcp("::1", 5432).to_string(), "[::1]:5432");
}

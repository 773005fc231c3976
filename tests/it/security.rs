//! TLS and SASL to a real broker: every combination connects, and what is wrong is said in one sentence.

use crate::commands::Shell;
use crate::postgres_security::{HERE, server};
use crate::support::{PATIENCE, count, emit, lsn, relay, stop, wait_confirmed, wait_state};
use crate::typed::settings_alone;
use std::sync::OnceLock;
use testkit::certificates::{Authority, Certificate};
use testkit::checker::Checker;
use testkit::workload::Workload;
use testkit::{Kafka, Postgres, oracle, owlpost, wait};

const PASSWORD: &str = "correct horse battery";

/// One broker with a listener of each kind.
struct Secure {
    kafka: Kafka,
    authority: Authority,
    client: Certificate,
    /// An authority that nobody knows, and a certificate of it.
    stranger: Authority,
    strangers: Certificate,
}

fn secure() -> &'static Secure {
    static SECURE: OnceLock<Secure> = OnceLock::new();
    SECURE.get_or_init(|| {
        let authority = Authority::new();
        let broker = authority.issue("broker", &["127.0.0.1", "localhost"]);
        let elsewhere = authority.issue("elsewhere", &["kafka.example.com"]);
        let expired = authority.issue_expired("expired", &["127.0.0.1"]);
        let client = authority.issue("client", &[]);
        let stranger = Authority::new();
        let strangers = stranger.issue("client", &[]);

        let mut builder = Kafka::builder();
        for (name, protocol, certificate) in [
            ("SASLPLAIN", "SASL_PLAINTEXT", None),
            ("TLS", "SSL", Some(&broker)),
            ("MUTUAL", "SSL", Some(&broker)),
            ("SASLTLS", "SASL_SSL", Some(&broker)),
            ("SASLMUTUAL", "SASL_SSL", Some(&broker)),
            ("ELSEWHERE", "SSL", Some(&elsewhere)),
            ("EXPIRED", "SSL", Some(&expired)),
            ("BRIEF", "SASL_SSL", Some(&broker)),
            ("ONLYPLAIN", "SASL_PLAINTEXT", None),
            ("BEARER", "SASL_SSL", Some(&broker)),
        ] {
            let key = |key: &str| format!("listener.name.{}.{key}", name.to_lowercase());
            builder = builder.listener(name, protocol);
            if let Some(certificate) = certificate {
                let both = certificate.both.display().to_string();
                let ca = authority.file().display().to_string();
                builder = builder
                    .setting(&key("ssl.keystore.type"), "PEM")
                    .setting(&key("ssl.keystore.location"), &both)
                    .setting(&key("ssl.truststore.type"), "PEM")
                    .setting(&key("ssl.truststore.location"), &ca);
            }
            if name.contains("MUTUAL") {
                builder = builder.setting(&key("ssl.client.auth"), "required");
            }
            if protocol.starts_with("SASL") {
                let mechanisms = match name {
                    "ONLYPLAIN" => "PLAIN",
                    "BEARER" => "OAUTHBEARER",
                    _ => "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
                };
                let module = "org.apache.kafka.common.security";
                let plain =
                    format!("{module}.plain.PlainLoginModule required user_owl=\"{PASSWORD}\";");
                let scram = format!("{module}.scram.ScramLoginModule required;");
                let bearer = format!(
                    "{module}.oauthbearer.OAuthBearerLoginModule required \
                     unsecuredLoginStringClaim_sub=\"broker\";"
                );
                builder = builder
                    .setting(&key("oauthbearer.sasl.jaas.config"), &bearer)
                    .setting(&key("sasl.enabled.mechanisms"), mechanisms)
                    .setting(&key("plain.sasl.jaas.config"), &plain)
                    .setting(&key("scram-sha-256.sasl.jaas.config"), &scram)
                    .setting(&key("scram-sha-512.sasl.jaas.config"), &scram);
            }
            if name == "BEARER" {
                // Only then does a broker look at how long the token is good.
                builder = builder.setting(&key("oauthbearer.connections.max.reauth.ms"), "3600000");
            }
            if name == "BRIEF" {
                for mechanism in ["plain", "scram-sha-256", "scram-sha-512"] {
                    builder = builder
                        .setting(&key(&format!("{mechanism}.connections.max.reauth.ms")), "1500");
                }
            }
        }
        let kafka = builder.start();
        let secure = Secure { kafka, authority, client, stranger, strangers };
        // Two in one request are refused.
        for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
            secure.add_user(mechanism, "owl", PASSWORD);
        }
        secure
    })
}

impl Secure {
    fn add_user(&self, mechanism: &str, name: &str, password: &str) {
        let brokers = self.kafka.bootstrap();
        let credential = format!("{mechanism}=[password={password}]");
        let arguments = [
            "--bootstrap-server",
            &brokers,
            "--alter",
            "--add-config",
            &credential,
            "--entity-type",
            "users",
            "--entity-name",
            name,
        ];
        self.kafka.java("kafka.admin.ConfigCommand", &arguments);
    }

    /// A relay that talks to this listener.
    fn relay(&self, prefix: &str, postgres: &Postgres, listener: &str) -> owlpost::Command {
        relay(prefix, postgres, &self.kafka)
            .env("KAFKA_BROKERS", self.kafka.bootstrap_of(listener, "127.0.0.1"))
            .env("STARTUP_TIMEOUT", "3s")
    }

    fn tls(&self, command: owlpost::Command) -> owlpost::Command {
        command
            .env("KAFKA_SSL", "true")
            .env("KAFKA_SSL_CA_LOCATION", self.authority.file().display())
    }
}

fn identity(command: owlpost::Command, certificate: &Certificate) -> owlpost::Command {
    command
        .env("KAFKA_SSL_CERTIFICATE_LOCATION", certificate.certificate.display())
        .env("KAFKA_SSL_KEY_LOCATION", certificate.key.display())
}

fn sasl(command: owlpost::Command, mechanism: &str) -> owlpost::Command {
    command
        .env("KAFKA_USERNAME", "owl")
        .env("KAFKA_PASSWORD", PASSWORD)
        .env("KAFKA_SASL_MECHANISM", mechanism)
}

/// It does not start, with this exit code and these words, and shows no password.
#[track_caller]
fn refused(command: owlpost::Command, words: &[&str]) {
    let relay = command.spawn();
    let status = relay.wait_exit(PATIENCE);
    let text = relay.log_text();
    assert_eq!(status.code(), Some(3), "{text}");
    let sentence = text.lines().rfind(|line| line.starts_with("owlpost: ")).unwrap();
    for word in words {
        assert!(sentence.contains(word), "{word:?} is not in {sentence}");
    }
    for secret in ["battery", "wrong password"] {
        assert!(!text.contains(secret), "{text}");
    }
}

#[test]
fn what_is_secure_on_both_sides_passes_the_check_and_publishes_what_it_reads() {
    let secure = secure();
    let certificate = secure.authority.issue("database", HERE);
    let postgres = server(Postgres::builder().tls(&certificate, &secure.authority));
    secure.kafka.create_topic("both.order", 2, &[]);
    let url = format!(
        "postgres://scram:correct%20horse%20battery@localhost:{}/app?sslmode=verify-full&\
         channel_binding=require&require_auth=scram-sha-256&sslrootcert={}",
        postgres.port(),
        secure.authority.file().display()
    );
    let command = || {
        sasl(secure.tls(secure.relay("both", &postgres, "SASLTLS")), "SCRAM-SHA-512")
            .env("MASTER_DATABASE_URL", &url)
    };
    let check = || {
        let check = command().arg("check").spawn();
        let code = check.wait_exit(PATIENCE).code();
        assert_eq!(code, Some(0), "{}", check.log_text());
        let words = "over TLSv1_3 (sslmode=verify-full), the log-in bound to it";
        assert!(check.stdout().contains(words), "{}", check.stdout());
    };
    check();
    let relay = command().env("LOG_LEVEL", "debug").spawn();
    relay.wait_ready();
    check();
    assert!(relay.log_text().contains(r#""channel_bound":true"#), "{}", relay.log_text());
    let load = Workload { facts: 2000, ..Workload::new("both", 1) };
    load.run(&postgres);
    wait_confirmed(&relay, &postgres, PATIENCE);
    let (status, metrics) = relay.get("/metrics").unwrap();
    assert_eq!(status, 200);
    assert!(!metrics.contains("battery") && metrics.contains("owlpost_"), "{metrics}");
    stop(&relay);
    assert!(!relay.log_text().contains("battery"), "{}", relay.log_text());
    let truth = crate::support::truth(&postgres);
    let records = secure.kafka.read_topic("both.order");
    Checker::new(&truth).check(&records).assert_clean();
}

/// Settings that a document shows without a command after them are for secure servers, as these are.
#[test]
fn the_secure_settings_of_the_documents_lead_from_postgresql_to_kafka() {
    let secure = secure();
    let stories = settings_alone();
    assert_eq!(stories.len(), 1, "others need a server here: {stories:#?}");
    // As these say.
    let certificate = secure.authority.issue("documented", HERE);
    let postgres = Postgres::builder()
        .hba(&["hostssl all owlpost all scram-sha-256", "hostnossl all owlpost all reject"])
        .tls(&certificate, &secure.authority)
        .start();
    let role = "SET password_encryption = 'scram-sha-256';
        CREATE ROLE owlpost LOGIN REPLICATION PASSWORD 'secret'; GRANT CREATE ON DATABASE app TO owlpost";
    postgres.client().batch_execute(role).unwrap();
    secure.add_user("SCRAM-SHA-512", "owlpost", "secret");
    secure.kafka.create_topic("documented.order", 1, &[]);
    let authority = secure.authority.file().display().to_string();
    let meant = |line: &String| {
        let meant = line
            .replace("db.example:5432", &format!("localhost:{}", postgres.port()))
            .replace(
                "kafka-1.example:9094,kafka-2.example:9094",
                &secure.kafka.bootstrap_of("SASLTLS", "localhost"),
            )
            .replace("/etc/owlpost/ca.pem", &authority);
        assert!(!meant.contains(".example") && !meant.contains("/etc/"), "{meant}");
        meant
    };
    let shell = Shell::empty()
        .env("SRC_SERVICE_NAME", "documented")
        .env("WAL_HEALTH_PORT", "0")
        .env("METRICS_PORT", "0");
    for story in stories {
        let settings = story.iter().map(meant).collect::<Vec<_>>().join("; ");
        let typed = |line: &str| shell.run(&format!("{settings}; owlpost {line}")).ended(0);
        let said = typed("check");
        assert!(said.out.contains("over TLS, as owlpost by SCRAM-SHA-512"), "{said:?}");
        typed("init");
        typed("emit --aggregate-type order");
        typed("drain --until now");
        assert_eq!(count(&secure.kafka, "documented.order"), 1);
    }
}

#[test]
fn every_mechanism_logs_in_with_and_without_tls_and_certificate() {
    let secure = secure();
    let postgres = Postgres::builder().start();
    secure.kafka.create_topic("secure.order", 1, &[]);
    let mut expected = 0;
    for listener in ["SASLPLAIN", "SASLTLS", "SASLMUTUAL", "TLS", "MUTUAL"] {
        let mechanisms: &[_] = match listener.starts_with("SASL") {
            true => &[Some("PLAIN"), Some("SCRAM-SHA-256"), Some("SCRAM-SHA-512")],
            false => &[None],
        };
        for mechanism in mechanisms {
            let mut command = secure.relay("secure", &postgres, listener).env("LOG_LEVEL", "trace");
            if listener != "SASLPLAIN" {
                command = secure.tls(command);
            }
            if listener.ends_with("MUTUAL") {
                command = identity(command, &secure.client);
            }
            if let Some(mechanism) = mechanism {
                command = sasl(command, mechanism);
            }
            let relay = command.spawn();
            relay.wait_ready();
            expected += 1;
            let fact =
                format!(r#"{{"id":"{expected}","aggregate_type":"order","aggregate_id":"k"}}"#);
            emit(&postgres, true, "secure", fact.as_bytes());
            wait_confirmed(&relay, &postgres, PATIENCE);
            assert_eq!(count(&secure.kafka, "secure.order"), expected, "{listener} {mechanism:?}");
            stop(&relay);
            assert!(!relay.log_text().contains("battery"), "{}", relay.log_text());
        }
    }
    assert_eq!(expected, 11);
}

/// Coordinators are other connections than leaders, and log in as these do.
#[test]
fn transactions_go_over_tls_with_sasl_and_each_fact_is_seen_once_though_the_relay_is_killed() {
    const OWN_SLOT: &str = "sealed";
    let secure = secure();
    let postgres = Postgres::builder().start();
    secure.kafka.create_topic("sealed.order", 2, &[]);
    // This Kafka is everybody's here: another slot is another transactional id.
    let command = sasl(secure.tls(secure.relay("sealed", &postgres, "SASLTLS")), "SCRAM-SHA-512")
        .env("DELIVERY", "exactly-once")
        .env("REPLICATION_SLOT_NAME", OWN_SLOT)
        .env("IN_FLIGHT_BYTES", "1MiB");
    let check = |words: &str| {
        let check = command.clone().arg("check").spawn();
        let code = check.wait_exit(PATIENCE).code();
        let said = check.stdout();
        assert!(code == Some(0) && said.contains(words), "{words}: {said}");
    };
    check("keeps no position; one was begun and aborted");
    let slot = || oracle::slot(&mut postgres.client(), OWN_SLOT).unwrap();
    let doomed = command.clone().spawn();
    doomed.wait_ready();
    let workload = Workload { facts: 4000, payload: 40..=400, ..Workload::new("sealed", 1) };
    let running = workload.start(&postgres);
    doomed.wait_until("some facts to be stored", PATIENCE, || {
        count(&secure.kafka, "sealed.order") >= 500
    });
    doomed.kill9();
    wait::until("the slot to be free", PATIENCE, || slot().active_pid.is_none());
    let relay = command.clone().spawn();
    running.wait();
    let written = lsn(&postgres, "SELECT pg_current_wal_flush_lsn()");
    relay.wait_until("the relay to confirm everything", PATIENCE, || slot().confirmed >= written);
    stop(&relay);
    let records = crate::committed::all_committed(&secure.kafka, "sealed.order");
    let truth = crate::support::truth(&postgres);
    Checker::new(&truth).prefix("sealed").check(&records).assert_clean();
    check("-sealed keeps ");

    let status = command.arg("status").arg("--sample").arg("10ms").spawn();
    let code = status.wait_exit(PATIENCE).code();
    let said = status.stdout();
    assert!(code == Some(0) && said.contains(", where the slot stands"), "{said}");
    assert!(!relay.log_text().contains("battery") && !said.contains("battery"), "{said}");
}

#[test]
fn ssl_with_user_and_password_means_scram_sha_512_over_tls_as_it_did() {
    let secure = secure();
    let postgres = Postgres::builder().start();
    let command = secure
        .tls(secure.relay("asbefore", &postgres, "SASLTLS"))
        .env("KAFKA_USERNAME", "owl")
        .env("KAFKA_PASSWORD", PASSWORD);
    let relay = command.spawn();
    relay.wait_ready();
    stop(&relay);
}

#[test]
fn who_may_not_log_in_is_told_so() {
    let secure = secure();
    let postgres = Postgres::builder().start();
    let at = |listener: &str| secure.relay("stranger", &postgres, listener);
    for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let wrong = sasl(at("SASLPLAIN"), mechanism).env("KAFKA_PASSWORD", "a wrong password");
        refused(wrong, &["does not let user \"owl\" in", mechanism, "check KAFKA_USERNAME"]);
        let unknown = sasl(at("SASLPLAIN"), mechanism).env("KAFKA_USERNAME", "nobody");
        refused(unknown, &["does not let user \"nobody\" in", mechanism]);
    }
    let other = sasl(at("ONLYPLAIN"), "SCRAM-SHA-512");
    refused(other, &["does not offer SCRAM-SHA-512, but PLAIN", "KAFKA_SASL_MECHANISM"]);
    refused(at("SASLPLAIN"), &["closed the connection", "KAFKA_USERNAME"]);
}

#[test]
fn what_is_wrong_with_tls_is_said() {
    let secure = secure();
    let postgres = Postgres::builder().start();
    let at = |listener: &str| secure.relay("tlsless", &postgres, listener);
    let tls = |listener: &str| secure.tls(at(listener));
    let strangers_ca = secure.stranger.file();
    refused(
        tls("TLS").env("KAFKA_SSL_CA_LOCATION", strangers_ca.display()),
        &["authority that is not trusted", "KAFKA_SSL_CA_LOCATION"],
    );
    refused(tls("ELSEWHERE"), &["for another host", "kafka.example.com", "KAFKA_BROKERS"]);
    refused(tls("EXPIRED"), &["has expired"]);
    refused(tls("MUTUAL"), &["certificate of ours", "KAFKA_SSL_CERTIFICATE_LOCATION"]);
    refused(identity(tls("MUTUAL"), &secure.strangers), &["refuses our TLS"]);
    refused(tls("SASLPLAIN"), &["KAFKA_SSL=false"]);
    refused(at("TLS"), &["KAFKA_SSL=true"]);

    // Asked not to look, we do not.
    let blind =
        at("ELSEWHERE").env("KAFKA_SSL", "true").env("KAFKA_SSL_VERIFICATION", "false").spawn();
    blind.wait_ready();
    assert!(blind.log_text().contains("anybody may pass for a broker"), "{}", blind.log_text());
    stop(&blind);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let secure = secure();
    let postgres = Postgres::builder().start();
    let at = || secure.tls(secure.relay("fileless", &postgres, "TLS"));
    let swapped = Certificate {
        certificate: secure.client.key.clone(),
        key: secure.client.certificate.clone(),
        both: secure.client.both.clone(),
    };
    let foreign = Certificate { key: secure.strangers.key.clone(), ..secure.client.clone() };
    for (command, words) in [
        (at().env("KAFKA_SSL_CA_LOCATION", "/no/such/file.pem"), "KAFKA_SSL_CA_LOCATION /no/such"),
        (at().env("KAFKA_SSL_CA_LOCATION", secure.client.key.display()), "no certificate is in it"),
        (identity(at(), &swapped), "KAFKA_SSL_CERTIFICATE_LOCATION"),
        (identity(at(), &foreign), "KAFKA_SSL_KEY_LOCATION"),
    ] {
        let relay = command.spawn();
        assert_eq!(relay.wait_exit(PATIENCE).code(), Some(2), "{}", relay.log_text());
        assert!(relay.log_text().contains(words), "{}", relay.log_text());
    }
}

/// A token without a signature, as a broker takes it that was not told whom to trust: whose it is, and for how
/// many seconds from now.
fn token(subject: &str, seconds: i64) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let now = i64::try_from(now.as_secs()).unwrap();
    let head = BASE64.encode(r#"{"alg":"none"}"#);
    let claims = format!(
        r#"{{"sub":"{subject}","iat":{},"exp":{}}}"#,
        now.min(now + seconds) - 1,
        now + seconds
    );
    format!("{head}.{}.", BASE64.encode(claims))
}

#[test]
fn the_bearer_of_a_token_logs_in_and_a_new_token_is_taken_without_a_restart() {
    let secure = secure();
    let postgres = Postgres::builder().start();
    secure.kafka.create_topic("bearer.order", 2, &[]);
    let file = tempfile::NamedTempFile::new().unwrap();
    let command = secure
        .tls(secure.relay("bearer", &postgres, "BEARER"))
        .env("KAFKA_SASL_MECHANISM", "OAUTHBEARER")
        .env("KAFKA_SASL_OAUTHBEARER_TOKEN_FILE", file.path().display())
        .env("LOG_LEVEL", "info,factlib=debug");
    std::fs::write(file.path(), token("owl", -60)).unwrap();
    refused(
        command.clone(),
        &["does not take our token: {\"status\":\"invalid_token\"}", "TOKEN_FILE"],
    );
    std::fs::write(file.path(), "no.such.token").unwrap();
    refused(command.clone(), &["does not take our token"]);

    std::fs::write(file.path(), token("owl", 12)).unwrap();
    let relay = command.spawn();
    relay.wait_ready();
    let load = Workload { facts: 10_000_000, writers: 2, ..Workload::new("bearer", 1) };
    let load = load.start(&postgres);
    relay.wait_until("facts to flow", PATIENCE, || count(&secure.kafka, "bearer.order") > 0);
    // All connections are there, and none of them for long.
    std::fs::write(file.path(), token("owl", 3600)).unwrap();
    relay.wait_until("another log-in", PATIENCE, || {
        relay.log_text().contains("before the session ends")
    });
    load.stop();
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);
    let truth = crate::support::truth(&postgres);
    Checker::new(&truth).check(&secure.kafka.read_topic("bearer.order")).assert_clean();
}

/// The broker ends a session that lasts longer than it said (KIP-368).
#[test]
fn sessions_that_end_are_renewed_without_a_loss_or_a_repeat() {
    let secure = secure();
    let postgres = Postgres::builder().start();
    secure.kafka.create_topic("brief.order", 2, &[]);
    let command = secure.tls(secure.relay("brief", &postgres, "BRIEF"));
    let relay = sasl(command, "SCRAM-SHA-256").env("LOG_LEVEL", "info,factlib=debug").spawn();
    relay.wait_ready();
    let load = Workload { facts: 10_000_000, writers: 2, ..Workload::new("brief", 1) };
    let load = load.start(&postgres);
    relay.wait_until("five sessions", 2 * PATIENCE, || {
        relay.log_text().matches("before the session ends").count() >= 5
    });
    load.stop();
    wait_state(&relay, "streaming");
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);
    let log = relay.log_text();
    assert!(!log.contains("produce is repeated"), "{log}");
    let truth = crate::support::truth(&postgres);
    Checker::new(&truth).check(&secure.kafka.read_topic("brief.order")).assert_clean();
}

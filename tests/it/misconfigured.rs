//! Misconfigurations: `owlpost check` and `owlpost run` name each in one sentence that says what to do.
//!
//! A table for each set of servers. A row is a relay's command, what `check` must say and how `run` must end, or
//! where it must stand; all of it word for word.

use crate::support::{PATIENCE, binary, emit, stop};
use std::net::TcpListener;
use testkit::certificates::Authority;
use testkit::{Kafka, Owlpost, Postgres, owlpost, port};

/// How `check` sees it.
#[derive(Debug, Clone)]
enum Check {
    /// Exit code 11, and a failure with this sentence.
    Failure(String),
    /// Exit code 0, and a warning with this sentence.
    Warning(String),
    /// The configuration itself is wrong: exit code 2, and this line.
    Refused(String),
}

/// What becomes of `run`.
#[derive(Debug, Clone)]
enum Run {
    /// It ends with this code and this sentence.
    Ends(i32, String),
    /// It stays, is not ready, and says on `/health` that it is in this state, and why.
    Stays(&'static str, String),
}

/// A misconfiguration.
struct Row {
    name: &'static str,
    command: owlpost::Command,
    check: Check,
    run: Run,
}

/// Both say the same.
fn same(name: &'static str, command: owlpost::Command, code: i32, sentence: &str) -> Row {
    let sentence = sentence.to_owned();
    Row { name, command, check: Check::Failure(sentence.clone()), run: Run::Ends(code, sentence) }
}

/// Several at once, because most of the time goes by waiting; all that fail are told.
#[track_caller]
fn hold(rows: Vec<Row>) {
    const AT_ONCE: usize = 6;
    let mut failures = Vec::new();
    for rows in rows.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            let running: Vec<_> = rows
                .iter()
                .map(|row| (row.name, scope.spawn(|| checked(row).and_then(|()| ran(row)))))
                .collect();
            for (name, row) in running {
                match row.join() {
                    Ok(Ok(())) => {}
                    Ok(Err(said)) => failures.push(format!("{name}: {said}")),
                    Err(panic) => {
                        let said = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                        failures.push(format!("{name}: {said}"));
                    }
                }
            }
        });
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

/// True if the text is the pattern, where `#` stands for a number.
fn is(text: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('#');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap()) else { return false };
    for part in parts {
        let number = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        match number.strip_prefix(part).filter(|_| number.len() < rest.len()) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    rest.is_empty()
}

/// One sentence that says what to do, and shows no password.
fn is_a_sentence(sentence: &str) -> Result<(), String> {
    if sentence.lines().count() != 1 || sentence.len() > 600 || sentence.contains(PASSWORD) {
        return Err(format!("not one sentence: {sentence}"));
    }
    // Hints are questions.
    match sentence.contains("; ") || sentence.contains('?') {
        true => Ok(()),
        false => Err(format!("without a remedy: {sentence}")),
    }
}

fn checked(row: &Row) -> Result<(), String> {
    let check = row.command.clone().arg("check").arg("--json").spawn();
    let code = check.wait_exit(PATIENCE).code();
    let said = check.log_text();
    let (expected_code, verdict, sentence) = match &row.check {
        Check::Failure(sentence) => (11, "failure", sentence),
        Check::Warning(sentence) => (0, "warning", sentence),
        Check::Refused(line) => {
            return match code == Some(2) && said.lines().any(|found| is(found, line)) {
                true => is_a_sentence(line),
                false => Err(format!("check ended with {code:?}, not 2 and {line:?}:\n{said}")),
            };
        }
    };
    let found = check.stdout();
    let mut sentences = found.lines().filter_map(|line| {
        let check: serde_json::Value = serde_json::from_str(line).ok()?;
        let seen = check["seen"].as_str()?;
        let remedy = check["remedy"].as_str().map(|remedy| format!("; {remedy}"));
        (check["verdict"] == verdict).then(|| format!("{seen}{}", remedy.unwrap_or_default()))
    });
    match sentences.find(|found| is(found, sentence)) {
        Some(found) if code == Some(expected_code) => is_a_sentence(&found),
        _ => Err(format!(
            "check ended with {code:?}, not {expected_code} and a {verdict} {sentence:?}:\n{said}"
        )),
    }
}

fn ran(row: &Row) -> Result<(), String> {
    let relay = row.command.clone().spawn();
    let sentence = match &row.run {
        Run::Ends(code, sentence) => {
            let status = relay.wait_exit(PATIENCE);
            let said = relay.stderr();
            let found = said.lines().last().unwrap_or_default();
            // Problems of the configuration stand on lines of their own.
            let found = found.strip_prefix("owlpost: ").unwrap_or(found).to_owned();
            if status.code() != Some(*code) || !is(&found, sentence) {
                return Err(format!(
                    "run ended with {status}, not {code} and {sentence:?}:\n{said}"
                ));
            }
            found
        }
        Run::Stays(state, sentence) => {
            let mut found = None;
            relay.wait_until(&format!("{state}: {sentence}"), PATIENCE, || {
                let health = relay.try_health().unwrap_or_default();
                let reasons = [&health["blocked"]["reason"], &health["reason"]];
                let mut reasons = reasons.into_iter().filter_map(|reason| reason.as_str());
                found = reasons.find(|reason| is(reason, sentence)).map(str::to_owned);
                health["state"] == *state && health["ready"] == false && found.is_some()
            });
            found.unwrap()
        }
    };
    if relay.log_text().contains(PASSWORD) {
        return Err("run shows a password".to_owned());
    }
    is_a_sentence(&sentence)
}

const PASSWORD: &str = "s3cret-Pa55";

/// A relay for this server, with slot, publication and prefix of its own, and no Kafka.
fn at(postgres: &Postgres, name: &str) -> owlpost::Command {
    Owlpost::command(binary())
        .env("SRC_SERVICE_NAME", name)
        .env("REPLICATION_SLOT_NAME", name)
        .env("PUBLICATION_NAME", name)
        .env("MASTER_DATABASE_URL", postgres.url())
        .env("KAFKA_BROKERS", "127.0.0.1:1")
        .env("STARTUP_TIMEOUT", "2s")
}

fn execute(postgres: &Postgres, sql: &str) {
    postgres.client().batch_execute(sql).unwrap();
}

const RIGHTS: &str = "the role needs LOGIN and REPLICATION, and CREATE on the database where the publication is \
     not there yet: another role may run `owlpost init`";

#[test]
fn postgresql_misconfigured() {
    let postgres = Postgres::builder()
        .hba(&[
            "host all locked 127.0.0.1/32 scram-sha-256",
            "host all stranger 127.0.0.1/32 reject",
        ])
        // COMMITs do not wait for it.
        .setting("synchronous_standby_names", "standby1, sync_relay")
        .setting("synchronous_commit", "local")
        .setting("max_replication_slots", "40")
        .setting("max_wal_senders", "40")
        .start();
    execute(
        &postgres,
        "SET password_encryption = 'scram-sha-256';
         CREATE ROLE locked LOGIN REPLICATION PASSWORD 'the right one';
         CREATE ROLE stranger LOGIN REPLICATION;
         CREATE ROLE rightless LOGIN;
         CREATE ROLE reader LOGIN REPLICATION;
         CREATE PUBLICATION no_slot;
         CREATE PUBLICATION copied;
         COMMENT ON PUBLICATION copied IS 'owlpost: slot copied, system 7, consistent point 0/1'",
    );
    execute(&postgres, "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
    for slot in [
        "pg_create_logical_replication_slot('no_publication', 'pgoutput')",
        "pg_create_logical_replication_slot('plugin', 'test_decoding')",
        "pg_create_logical_replication_slot('two_phase', 'pgoutput', false, true)",
        "pg_create_physical_replication_slot('physical')",
    ] {
        execute(&postgres, &format!("SELECT {slot}"));
    }
    let system = postgres.ask("SELECT system_identifier FROM pg_control_system()");
    let at = |name: &str| at(&postgres, name);
    let as_role = |name: &str, role: &str| {
        at(name).env("MASTER_DATABASE_URL", postgres.url_as(role, PASSWORD))
    };
    let init = at("prefixes").env("WAL_PREFIX", "orders,billing").arg("init").spawn();
    assert_eq!(init.wait_exit(PATIENCE).code(), Some(0), "{}", init.log_text());

    let latin = at("latin")
        .env("MASTER_DATABASE_URL", postgres.url().replace("/app", "/latin"))
        .env("KAFKA_BROKERS", Kafka::shared().bootstrap());
    let init = latin.clone().arg("init").spawn();
    assert_eq!(init.wait_exit(PATIENCE).code(), Some(0), "{}", init.log_text());
    let latin_url = postgres.url().replace("/app", "/latin");
    let fact = r#"{"aggregate_type":"order","aggregate_id":"é"}"#;
    ::postgres::Client::connect(&latin_url, ::postgres::NoTls)
        .unwrap()
        .execute("SELECT pg_logical_emit_message(true, 'latin', $1::text)", &[&fact])
        .unwrap();

    let nobody = port::free();
    let url = format!("postgres://relay:{PASSWORD}@127.0.0.1");
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let taken_port = taken.local_addr().unwrap().port();
    let in_use = format!(
        "cannot listen on 0.0.0.0:{taken_port} for health checks: Address already in use (os error 98); choose \
         another WAL_HEALTH_PORT or HTTP_BIND"
    );
    let walsender = match postgres.major() {
        ..16 => "must be superuser or replication role to start walsender (SQLSTATE 42501)",
        _ => {
            "permission denied to start WAL sender (SQLSTATE 42501); detail: Only roles with the REPLICATION \
             attribute may start a WAL sender process."
        }
    };
    let bad_port = "MASTER_DATABASE_URL: a port is not a number from 1 to 65535; write host:port";
    hold(vec![
        same(
            "wrong password",
            as_role("password", "locked"),
            3,
            "password authentication failed for user \"locked\" (SQLSTATE 28P01); look at the password, and at \
             where it is read",
        ),
        same(
            "pg_hba.conf",
            as_role("hba", "stranger"),
            3,
            "pg_hba.conf rejects connection for host \"127.0.0.1\", user \"stranger\", database \"app\", no \
             encryption (SQLSTATE 28000); use TLS (sslmode=verify-full), or let pg_hba.conf have a line for us \
             without it",
        ),
        same(
            "unknown database",
            at("database").env("MASTER_DATABASE_URL", postgres.url().replace("/app", "/nowhere")),
            3,
            "database \"nowhere\" does not exist (SQLSTATE 3D000); look at the database in MASTER_DATABASE_URL",
        ),
        same(
            "no REPLICATION right",
            as_role("replication", "rightless"),
            8,
            &format!("{walsender}; {RIGHTS}"),
        ),
        Row {
            name: "no CREATE right",
            command: as_role("creation", "reader"),
            check: Check::Failure(
                "reader may not make publication creation in database app; GRANT CREATE ON DATABASE app TO \
                 reader, or let another role run `owlpost init`"
                    .to_owned(),
            ),
            run: Run::Ends(8, format!("permission denied for database app (SQLSTATE 42501); {RIGHTS}")),
        },
        same(
            "slot of another plugin",
            at("plugin"),
            4,
            "slot plugin uses the output plugin test_decoding; choose another REPLICATION_SLOT_NAME",
        ),
        same(
            "physical slot",
            at("physical"),
            4,
            "slot physical is a physical slot; choose another REPLICATION_SLOT_NAME",
        ),
        same(
            "two-phase slot",
            at("two_phase"),
            4,
            "slot two_phase decodes two-phase transactions, whose facts would come before they are committed; \
             make one without two_phase",
        ),
        same(
            "slot of another database",
            at("no_publication")
                .env("MASTER_DATABASE_URL", postgres.url().replace("/app", "/latin")),
            4,
            "slot no_publication belongs to database app, not to latin; slots are named per cluster: choose \
             another REPLICATION_SLOT_NAME",
        ),
        same(
            "publication missing",
            at("no_publication"),
            6,
            "slot no_publication is there, but publication no_publication is not: before PostgreSQL 18 the slot \
             cannot be read past the first row change; if the name is right, drop the slot (facts in it are \
             lost) and run `owlpost init`",
        ),
        same(
            "slot missing",
            at("no_slot"),
            4,
            "publication no_slot is there, but slot no_slot is not: it was dropped or never came along with a \
             failover or a restore, and facts committed since are not delivered; to accept that gap, run \
             `owlpost init --accept-gap`",
        ),
        same(
            "publication of another cluster",
            at("copied"),
            5,
            &format!(
                "publication copied was made for another cluster (its comment: \"slot copied, system 7, \
                 consistent point 0/1\"; this one is system {system}): a restored or copied database; make a new \
                 publication and slot with `owlpost init` under other names, or drop these"
            ),
        ),
        same(
            "prefix left out",
            at("prefixes").env("WAL_PREFIX", "orders"),
            4,
            "slot prefixes was set up for the prefix billing too, and WAL_PREFIX (orders) leaves it out: its \
             facts would be passed over for good; correct WAL_PREFIX, or run `owlpost init` with it to accept \
             that",
        ),
        same(
            "synchronous standby",
            at("synchronous").env("APP_NAME", "sync_relay"),
            8,
            "synchronous_standby_names is \"standby1, sync_relay\" and would make this session (application_name \
             sync_relay) a synchronous standby, for which every COMMIT waits; name the standbys that are meant, \
             or choose another APP_NAME",
        ),
        same(
            "nobody at the address",
            at("nobody").env("MASTER_DATABASE_URL", format!("{url}:{nobody}/app")),
            3,
            &format!(
                "cannot connect to PostgreSQL at 127.0.0.1:{nobody}: Connection refused (os error 111); check \
                 host and port in MASTER_DATABASE_URL, and that the server runs and listens there"
            ),
        ),
        Row {
            name: "bad URL",
            command: at("url").env("MASTER_DATABASE_URL", format!("{url}:five/app")),
            check: Check::Refused(bad_port.to_owned()),
            run: Run::Ends(2, bad_port.to_owned()),
        },
        same(
            "health port taken",
            at("port").env("WAL_HEALTH_PORT", taken_port),
            2,
            &in_use,
        ),
        same(
            "no broker at the address",
            at("broker"),
            3,
            "no Kafka broker answers: 127.0.0.1:1: cannot connect: Connection refused (os error 111) (does a \
             broker run there, and is KAFKA_BROKERS right?)",
        ),
        Row {
            name: "server_encoding",
            command: latin,
            check: Check::Warning(
                "LATIN1: an envelope that is emitted as text is written in it, and unreadable with other letters \
                 than ASCII; emit convert_to(envelope, 'UTF8')"
                    .to_owned(),
            ),
            run: Run::Stays(
                "halted",
                "unreadable envelope: not a JSON envelope: it is not UTF-8, from byte 42 on: it was \
                 emitted in another format, or with a prefix that is another's; correct the emitter, and see \
                 POISON_POLICY"
                    .to_owned(),
            ),
        },
    ]);
}

#[test]
fn a_server_that_cannot_serve() {
    let replica = Postgres::builder().setting("wal_level", "replica").start();
    let no_walsender = Postgres::builder().setting("max_wal_senders", "0");
    let no_walsender = no_walsender.setting("wal_level", "replica").start();
    let no_slot = Postgres::builder().setting("max_replication_slots", "1").start();
    execute(&no_slot, "SELECT pg_create_physical_replication_slot('other')");
    let primary = Postgres::builder().start();
    let standby = primary.standby();
    // From 17 on the server quotes its settings.
    let quote = if replica.major() < 17 { "" } else { "\"" };
    let full = format!(
        "number of requested standby connections exceeds {quote}max_wal_senders{quote} (currently 0) (SQLSTATE \
         53300); end walsenders that nobody needs, or raise max_wal_senders and restart the server"
    );
    hold(vec![
        same(
            "wal_level",
            at(&replica, "level"),
            8,
            "wal_level is replica, and logical decoding needs logical; set wal_level = logical in \
             postgresql.conf and restart the server",
        ),
        same("no free walsender", at(&no_walsender, "walsender"), 3, &full),
        Row {
            name: "no free slot",
            command: at(&no_slot, "one_more"),
            check: Check::Failure(
                "all 1 replication slots are in use, and slot one_more is to be made; drop one that nobody \
                 needs, or raise max_replication_slots and restart the server"
                    .to_owned(),
            ),
            run: Run::Ends(
                8,
                format!(
                    "all replication slots are in use (SQLSTATE 53400); hint: Free one or increase \
                     {quote}max_replication_slots{quote}."
                ),
            ),
        },
        same(
            "standby",
            at(&standby, "following"),
            3,
            "this server is a standby, and slot following is its primary's; name the primary in \
             MASTER_DATABASE_URL, or all hosts",
        ),
    ]);
}

#[test]
fn tls_to_postgresql_misconfigured() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let certificate = authority.issue("server", &["db.example.com"]);
    let encrypted = Postgres::builder().tls(&certificate, &authority).start();
    let clear = Postgres::builder().start();
    let with = |postgres: &Postgres, name: &str, parameters: &str| {
        at(postgres, name)
            .env("MASTER_DATABASE_URL", format!("{}?{parameters}", postgres.url()))
            // As in a container, where nothing else says whom to trust.
            .env("HOME", "/nonexistent")
    };
    let trusting = |name: &str, mode: &str, authority: &Authority| {
        let file = authority.file();
        with(&encrypted, name, &format!("sslmode={mode}&sslrootcert={}", file.display()))
    };
    let refused =
        |postgres: &Postgres, cause: &str| format!("127.0.0.1:{}: {cause}", postgres.port());
    let not_trusted = refused(
        &encrypted,
        "the server's certificate is of an authority that is not trusted; name the file with that authority's \
         certificate in sslrootcert",
    );
    hold(vec![
        same("wrong authority", trusting("stranger", "verify-full", &stranger), 3, &not_trusted),
        same("wrong authority, any name", trusting("any", "verify-ca", &stranger), 3, &not_trusted),
        // libpq does so, too: a file of authorities turns require into verify-ca.
        same(
            "wrong authority, require",
            trusting("require", "require", &stranger),
            3,
            &not_trusted,
        ),
        same(
            "authorities of the system",
            with(&encrypted, "system", "sslmode=verify-full&sslrootcert=system")
                .env("SSL_CERT_FILE", stranger.file().display()),
            3,
            &not_trusted,
        ),
        same(
            "certificate of another host",
            trusting("elsewhere", "verify-full", &authority),
            3,
            &refused(
                &encrypted,
                "the server's certificate is for db.example.com, and not for 127.0.0.1; connect by a name that it \
                 has, or issue one for 127.0.0.1",
            ),
        ),
        same(
            "no file of authorities",
            with(&encrypted, "nofile", "sslmode=verify-full"),
            3,
            &refused(
                &encrypted,
                "sslrootcert /nonexistent/.postgresql/root.crt: No such file or directory (os error 2); sslmode \
                 wants the certificate of the server's authority there, or sslrootcert=system",
            ),
        ),
        same(
            "server without TLS",
            with(&clear, "clear", "sslmode=require"),
            3,
            &refused(
                &clear,
                "the server does not do TLS, and sslmode wants it; set ssl = on there",
            ),
        ),
    ]);
}

/// One broker that asks who comes, and lets not everybody do everything.
struct Guarded {
    kafka: Kafka,
    authority: Authority,
    stranger: Authority,
}

fn guarded() -> Guarded {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let broker = authority.issue("broker", &["127.0.0.1"]);
    let elsewhere = authority.issue("elsewhere", &["kafka.example.com"]);
    let mut builder = Kafka::builder()
        .listener("TLS", "SSL")
        .listener("ELSEWHERE", "SSL")
        .listener("LOGIN", "SASL_PLAINTEXT")
        .setting("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer")
        .setting("super.users", "User:ANONYMOUS;User:owl");
    for (name, certificate) in [("tls", &broker), ("elsewhere", &elsewhere)] {
        let key = |key: &str| format!("listener.name.{name}.ssl.keystore.{key}");
        builder = builder
            .setting(&key("type"), "PEM")
            .setting(&key("location"), &certificate.both.display().to_string());
    }
    let plain = format!(
        "org.apache.kafka.common.security.plain.PlainLoginModule required user_owl=\"{PASSWORD}\" \
         user_guest=\"{PASSWORD}\";"
    );
    let kafka = builder
        .setting("listener.name.login.sasl.enabled.mechanisms", "PLAIN")
        .setting("listener.name.login.plain.sasl.jaas.config", &plain)
        .start();
    // Whoever may write to some topic may be an idempotent producer.
    for (operation, topic) in
        [("Write", "elsewhere"), ("Describe", "readable.order"), ("Write", "undescribed.order")]
    {
        let brokers = kafka.bootstrap();
        kafka.java(
            "org.apache.kafka.tools.AclCommand",
            &[
                "--bootstrap-server",
                &brokers,
                "--add",
                "--allow-principal",
                "User:guest",
                "--operation",
                operation,
                "--topic",
                topic,
            ],
        );
    }
    Guarded { kafka, authority, stranger }
}

#[test]
fn kafka_misconfigured() {
    let guarded = guarded();
    let kafka = &guarded.kafka;
    let postgres = Postgres::builder()
        .setting("max_replication_slots", "40")
        .setting("max_wal_senders", "40")
        .start();
    for (topic, settings) in [
        ("hidden.order", &[][..]),
        ("readable.order", &[]),
        ("clocked.order", &[("message.timestamp.before.max.ms", "1")]),
        ("small.order", &[("max.message.bytes", "1000")]),
        ("letters", &[("cleanup.policy", "compact")]),
        ("held.order", &[]),
    ] {
        kafka.create_topic(topic, 1, settings);
    }
    let relay = |name: &str, listener: &str| {
        let brokers = match listener {
            "" => kafka.bootstrap(),
            listener => kafka.bootstrap_of(listener, "127.0.0.1"),
        };
        at(&postgres, name).env("KAFKA_BROKERS", brokers)
    };
    let fixed = |name: &str| relay(name, "").env("TOPIC_TEMPLATE", format!("{name}.order"));
    let tls = |command: owlpost::Command, authority: &Authority| {
        command.env("KAFKA_SSL", "true").env("KAFKA_SSL_CA_LOCATION", authority.file().display())
    };
    let login = |command: owlpost::Command, user: &str| {
        command
            .env("KAFKA_USERNAME", user)
            .env("KAFKA_PASSWORD", PASSWORD)
            .env("KAFKA_SASL_MECHANISM", "PLAIN")
    };
    let guest = |name: &str| {
        let command = login(relay(name, "LOGIN"), "guest");
        command.env("TOPIC_TEMPLATE", format!("{name}.order"))
    };
    let address = |listener: &str| kafka.bootstrap_of(listener, "127.0.0.1");
    let unanswered = |listener: &str, cause: &str| {
        format!("no Kafka broker answers: {}: {cause}", address(listener))
    };

    let first = relay("held", "").spawn();
    first.wait_ready();
    let facts = ["absent", "hidden", "readable", "clocked", "small"];
    // What is committed before the slot is there is not published.
    for name in facts.iter().chain(&["undelivered", "compacted"]) {
        let init = relay(name, "").arg("init").spawn();
        assert_eq!(init.wait_exit(PATIENCE).code(), Some(0), "{}", init.log_text());
    }
    for prefix in facts {
        let payload = if prefix == "small" { "x".repeat(2000) } else { String::new() };
        let fact =
            format!(r#"{{"aggregate_type":"order","aggregate_id":"1","payload":"{payload}"}}"#);
        emit(&postgres, true, prefix, fact.as_bytes());
    }
    for prefix in ["undelivered", "compacted"] {
        emit(&postgres, true, prefix, b"{ no envelope");
    }
    let dead_letters = |name: &str, topic: &str| {
        relay(name, "").env("POISON_POLICY", "dead-letter").env("DEAD_LETTER_TOPIC", topic)
    };
    let failure = |sentence: &str| Check::Failure(sentence.to_owned());
    hold(vec![
        same(
            "wrong authority",
            tls(relay("authority", "TLS"), &guarded.stranger),
            3,
            &unanswered(
                "TLS",
                "the broker's certificate is of an authority that is not trusted; name its certificate in \
                 KAFKA_SSL_CA_LOCATION",
            ),
        ),
        same(
            "certificate of another host",
            tls(relay("elsewhere", "ELSEWHERE"), &guarded.authority),
            3,
            &unanswered(
                "ELSEWHERE",
                "the broker's certificate is for another host (certificate not valid for name \"127.0.0.1\"; \
                 certificate is only valid for DnsName(\"kafka.example.com\")); use that name in KAFKA_BROKERS and the \
                 broker's advertised.listeners",
            ),
        ),
        same(
            "clear text to TLS",
            relay("clear", "TLS"),
            3,
            &unanswered(
                "TLS",
                "asked for its versions: closed the connection (does this listener want KAFKA_SSL=true?)",
            ),
        ),
        same(
            "TLS to clear text",
            tls(relay("encrypted", "LOGIN"), &guarded.authority),
            3,
            &unanswered(
                "LOGIN",
                "no TLS handshake: tls handshake eof (does the listener want KAFKA_SSL=false?)",
            ),
        ),
        same(
            "wrong password",
            login(relay("wrong", "LOGIN"), "owl").env("KAFKA_PASSWORD", "wrong"),
            3,
            &unanswered(
                "LOGIN",
                "the broker does not let user \"owl\" in by PLAIN: Authentication failed: Invalid username or \
                 password; check KAFKA_USERNAME, KAFKA_PASSWORD and KAFKA_SASL_MECHANISM",
            ),
        ),
        same(
            "mechanism not offered",
            login(relay("mechanism", "LOGIN"), "owl").env("KAFKA_SASL_MECHANISM", "SCRAM-SHA-512"),
            3,
            &unanswered(
                "LOGIN",
                "the listener does not offer SCRAM-SHA-512, but PLAIN; set KAFKA_SASL_MECHANISM",
            ),
        ),
        same(
            "no log-in",
            relay("unnamed", "LOGIN"),
            3,
            &unanswered(
                "LOGIN",
                "closed the connection (does this listener want KAFKA_USERNAME and KAFKA_PASSWORD?)",
            ),
        ),
        Row {
            name: "topic missing",
            command: fixed("absent"),
            check: failure(
                "topic absent.order is not there, and a fact for it halts the relay; create it, or set \
                 KAFKA_CREATE_TOPICS",
            ),
            run: Run::Stays(
                "halted",
                "topic absent.order cannot be used (UNKNOWN_TOPIC_OR_PARTITION); create it, or allow this \
                 client to describe and write to it"
                    .to_owned(),
            ),
        },
        Row {
            name: "no right to describe the topic",
            command: guest("hidden"),
            check: failure(
                "this client may not describe topic hidden.order (TOPIC_AUTHORIZATION_FAILED); allow it to \
                 describe and to write to it",
            ),
            run: Run::Stays(
                "halted",
                "topic hidden.order cannot be used (TOPIC_AUTHORIZATION_FAILED); create it, or allow this client \
                 to describe and write to it"
                    .to_owned(),
            ),
        },
        Row {
            name: "no right to write to the topic",
            command: guest("readable"),
            check: failure("this client may not write to topic readable.order; allow it WRITE"),
            run: Run::Stays(
                "halted",
                "TOPIC_AUTHORIZATION_FAILED: this client may not write to the topic; give it the right"
                    .to_owned(),
            ),
        },
        Row {
            name: "timestamps refused",
            command: fixed("clocked"),
            check: failure(
                "topic clocked.order refuses facts that were committed more than 1ms ago (INVALID_TIMESTAMP), \
                 which halts the relay at the slightest delay; raise message.timestamp.before.max.ms, or set \
                 KAFKA_TIMESTAMP=publish",
            ),
            run: Run::Stays(
                "halted",
                "INVALID_TIMESTAMP: the record's time is further from the broker's clock than \
                 message.timestamp.before.max.ms or message.timestamp.after.max.ms of topic clocked.order allows; \
                 raise them, or set KAFKA_TIMESTAMP=publish"
                    .to_owned(),
            ),
        },
        Row {
            name: "max.message.bytes",
            command: fixed("small"),
            check: Check::Warning(
                "topic small.order takes 1000 bytes at once and BATCH_BYTES is 393216, so that batches are \
                 refused and divided, and a fact beyond it halts the relay; raise max.message.bytes, or lower \
                 BATCH_BYTES"
                    .to_owned(),
            ),
            run: Run::Stays(
                "halted",
                "MESSAGE_TOO_LARGE: one record of # bytes is over the topic's limit; raise max.message.bytes of \
                 topic small.order"
                    .to_owned(),
            ),
        },
        Row {
            name: "dead-letter topic missing",
            command: dead_letters("undelivered", "undelivered.dead"),
            check: failure(
                "topic undelivered.dead is not there, and the first dead letter halts the relay; create it, or \
                 set KAFKA_CREATE_TOPICS",
            ),
            run: Run::Stays(
                "halted",
                "unreadable envelope: not a JSON envelope: this is not JSON, in line 1, column 3: it was emitted \
                 in another format, or with a prefix that is another's; correct the emitter, and see POISON_POLICY; \
                 the dead-letter topic undelivered.dead cannot be \
                 used (UNKNOWN_TOPIC_OR_PARTITION); create it, or allow this client to write to it"
                    .to_owned(),
            ),
        },
        Row {
            name: "dead-letter topic compacted",
            command: dead_letters("compacted", "letters"),
            check: failure(
                "topic letters is compacted, and refuses dead letters that have no key; set \
                 cleanup.policy=delete",
            ),
            run: Run::Stays(
                "halted",
                "INVALID_RECORD: the broker takes the topic's other records, and not this one (without a key, to a \
                 compacted topic? with a timestamp that it does not allow?); its log says more"
                    .to_owned(),
            ),
        },
        Row {
            name: "second relay",
            command: relay("held", ""),
            check: Check::Warning(
                "another relay reads slot held: process # (owlpost) at 127.0.0.1, and one that is started waits \
                 until it ends; stop that, if it is not meant"
                    .to_owned(),
            ),
            run: Run::Stays(
                "waiting_for_slot",
                "replication slot \"held\" is active for PID # (SQLSTATE 55006); this process waits until \
                 that one ends: stop that, if it is not meant"
                    .to_owned(),
            ),
        },
    ]);
    stop(&first);
}

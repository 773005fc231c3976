//! Log-ins to a real PostgreSQL: every `sslmode` with every kind of certificate and every method, and what is
//! wrong is said in one sentence. Then the relay itself, over TLS, while passwords and certificates change.

use crate::support::{PATIENCE, emit, read, relay, stop, wait_confirmed, wait_state};
use factlib::config::{Config, PostgresConfig, RawConfig};
use factlib::postgres::{Connection, Failure};
use factlib::relay::gone::Gone;
use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use testkit::certificates::{Authority, Certificate, Kind};
use testkit::checker::Checker;
use testkit::postgres;
use testkit::workload::Workload;
use testkit::{Kafka, Postgres};

const PASSWORD: &str = "correct horse battery";

/// What the server's certificate is for.
pub(crate) const HERE: &[&str] = &["127.0.0.1", "localhost"];

/// A role for each method, named after it; what has no line of its own is trusted on loopback.
const HBA: &[&str] = &[
    "host all plain 127.0.0.1/32 password",
    "host all hashed 127.0.0.1/32 md5",
    "host all scram 127.0.0.1/32 scram-sha-256",
    "hostssl all carded 127.0.0.1/32 cert",
    "hostnossl all carded 127.0.0.1/32 reject",
    "hostssl all twofold 127.0.0.1/32 scram-sha-256 clientcert=verify-ca",
    "hostnossl all twofold 127.0.0.1/32 reject",
    "hostssl all crypt 127.0.0.1/32 trust",
    "hostnossl all crypt 127.0.0.1/32 reject",
    "hostssl all bare 127.0.0.1/32 reject",
    "hostnossl all bare 127.0.0.1/32 trust",
    "host all nobody 127.0.0.1/32 reject",
];

pub(crate) fn server(builder: postgres::Builder) -> Postgres {
    let postgres = builder.hba(HBA).start();
    let mut client = postgres.client();
    for role in
        ["trusty", "plain", "hashed", "scram", "carded", "twofold", "crypt", "bare", "nobody"]
    {
        let hash = if role == "hashed" { "md5" } else { "scram-sha-256" };
        let sql = format!(
            "SET password_encryption = '{hash}'; CREATE ROLE {role} LOGIN REPLICATION PASSWORD '{PASSWORD}'; \
             GRANT CREATE ON DATABASE app TO {role}"
        );
        client.batch_execute(&sql).unwrap();
    }
    postgres
}

/// A server with a good certificate, which nobody changes.
struct Secure {
    postgres: Postgres,
    authority: Authority,
    /// Of the role `carded`.
    client: Certificate,
    stranger: Authority,
}

fn secure() -> &'static Secure {
    static SECURE: OnceLock<Secure> = OnceLock::new();
    SECURE.get_or_init(|| {
        let authority = Authority::new();
        let certificate = authority.issue("server", HERE);
        let client = authority.issue("carded", &[]);
        let postgres = server(Postgres::builder().tls(&certificate, &authority));
        Secure { postgres, authority, client, stranger: Authority::new() }
    })
}

fn config(parameters: &str, env: &[(&str, &str)]) -> PostgresConfig {
    let text = |text: &str| Some(text.to_owned());
    let raw = RawConfig {
        src_service_name: text("s"),
        master_database_url: text(parameters),
        kafka_brokers: text("k"),
        ..RawConfig::default()
    };
    let env =
        |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, v)| (*v).to_owned());
    Config::from_raw(&raw, env).unwrap_or_else(|e| panic!("{parameters}: {e}")).postgres
}

fn connect_with(config: &PostgresConfig) -> Result<Connection, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(Connection::connect(config))
}

/// What a log-in led to: whether it is encrypted, as the server sees it, or why there is none.
fn log_in(postgres: &Postgres, role: &str, parameters: &str) -> Result<bool, String> {
    log_in_at(postgres, "127.0.0.1", role, parameters, &[])
}

fn log_in_at(
    postgres: &Postgres,
    host: &str,
    role: &str,
    parameters: &str,
    env: &[(&str, &str)],
) -> Result<bool, String> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("login{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let config = config(
        &format!(
            "host={host} port={} dbname=app user={role} password='{PASSWORD}' application_name={name} {parameters}",
            postgres.port()
        ),
        env,
    );
    match connect_with(&config) {
        Ok(_connection) => Ok(postgres.ask(&format!(
            "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = '{name}'"
        )) == "t"),
        Err(failure) => {
            let (Gone::Refused(_, words) | Gone::Lost(words)) = Gone::from(failure) else {
                panic!("it ends the relay");
            };
            for secret in ["battery", "horse"] {
                assert!(!words.contains(secret), "{words}");
            }
            Err(words)
        }
    }
}

#[track_caller]
fn refused(result: Result<bool, String>, words: &[&str]) {
    let sentence = result.expect_err("it is let in");
    assert!(!sentence.contains('\n'), "{sentence}");
    for word in words {
        assert!(sentence.contains(word), "{word:?} is not in {sentence}");
    }
}

/// A certificate of the server's.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Shown {
    Good(Kind),
    /// Its own authority, and its certificate is with us.
    SelfSigned,
    Expired,
    Elsewhere,
    Stranger,
}

const MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// What is wrong with the certificate, for who looks at it in this mode.
fn fault(shown: Shown, mode: &str, roots: bool) -> Option<&'static str> {
    if !roots || mode == "disable" || mode == "allow" {
        return None;
    }
    match shown {
        Shown::Good(_) | Shown::SelfSigned => None,
        Shown::Expired => Some("the server's certificate has expired"),
        Shown::Stranger => Some("authority that is not trusted"),
        Shown::Elsewhere if mode == "verify-full" => {
            Some("is for db.example.com, 10.1.2.3, and not for 127.0.0.1")
        }
        Shown::Elsewhere => None,
    }
}

/// Every mode with every certificate and every method, held to what libpq's manual says of it.
#[test]
fn every_sslmode_with_every_certificate_and_every_method_is_as_libpq_has_it() {
    let ecdsa = Authority::new();
    let client = ecdsa.issue("carded", &[]);
    let good = ecdsa.issue("server", HERE);
    let postgres = server(Postgres::builder().tls(&good, &ecdsa));
    let identity =
        format!("sslcert={} sslkey={}", client.certificate.display(), client.key.display());

    let [rsa, pss, ed25519] = [Kind::Rsa, Kind::RsaPss, Kind::Ed25519].map(|kind| {
        let authority = Authority::of(kind);
        let certificate = authority.issue("server", HERE);
        (authority, certificate)
    });
    let stranger = Authority::new();
    let own = ecdsa.beside(
        "own",
        &["-newkey", "rsa:2048", "-subj", "/CN=own", "-addext", "subjectAltName=IP:127.0.0.1"],
    );
    let expired = ecdsa.issue_expired("expired", HERE);
    let elsewhere = ecdsa.issue("elsewhere", &["db.example.com", "10.1.2.3"]);
    let strangers = stranger.issue("server", HERE);
    let mut log_ins = 0;
    for (shown, certificate, roots) in [
        (Shown::Good(Kind::Ecdsa), &good, ecdsa.file()),
        (Shown::Good(Kind::Rsa), &rsa.1, rsa.0.file()),
        (Shown::Good(Kind::RsaPss), &pss.1, pss.0.file()),
        (Shown::Good(Kind::Ed25519), &ed25519.1, ed25519.0.file()),
        (Shown::SelfSigned, &own, own.certificate.clone()),
        (Shown::Expired, &expired, ecdsa.file()),
        (Shown::Elsewhere, &elsewhere, ecdsa.file()),
        (Shown::Stranger, &strangers, ecdsa.file()),
    ] {
        postgres.show_certificate(certificate);
        for mode in MODES {
            for with_roots in [true, false] {
                if !with_roots && mode.starts_with("verify") {
                    continue;
                }
                let mut parameters = format!("sslmode={mode}");
                if with_roots {
                    parameters += &format!(" sslrootcert={}", roots.display());
                }
                let fault = fault(shown, mode, with_roots);
                let is_tls = !["disable", "allow"].contains(&mode) && fault.is_none();
                let case =
                    |role: &str, more: &str| format!("{shown:?}, {parameters} {more}, {role}");
                let expect = |role: &str, more: &str, expected: Result<bool, &str>| {
                    let found = log_in(&postgres, role, &format!("{parameters} {more}"));
                    // What is wrong with TLS is wrong whoever logs in, unless clear text may be.
                    let expected = match fault {
                        Some(fault) if mode != "prefer" => Err(fault),
                        _ => expected,
                    };
                    match (&found, expected) {
                        (Ok(found), Ok(expected)) if *found == expected => {}
                        (Err(found), Err(expected)) if found.contains(expected) => {}
                        _ => panic!("{}: {found:?}, and not {expected:?}", case(role, more)),
                    }
                };
                expect("trusty", "", Ok(is_tls));
                expect("scram", "", Ok(is_tls));
                // A certificate that is signed by Ed25519 has no hash that a log-in could be bound to.
                let binding = match (is_tls, shown) {
                    (false, _) => {
                        Err("channel binding is required, and this connection has no TLS")
                    }
                    (true, Shown::Good(Kind::Ed25519)) => Err("no hash is defined"),
                    (true, _) => Ok(true),
                };
                if mode != "disable" {
                    expect("scram", "channel_binding=require", binding);
                    let unbound = Err("channel binding is required");
                    expect("trusty", "channel_binding=require", unbound);
                    log_ins += 2;
                }
                for (role, method) in [("plain", "password"), ("hashed", "md5")] {
                    let shows = match mode {
                        "verify-full" => Ok(is_tls),
                        _ => Err("shows it to whoever listens"),
                    };
                    expect(role, "", shows);
                    expect(role, &format!("require_auth={method}"), Ok(is_tls));
                    expect(role, "require_auth=scram-sha-256", Err("or allow the method"));
                }
                // These are refused without TLS, which is what `allow` waits for; but then it looks at the
                // certificate.
                let fault_of_allow = match mode {
                    "allow" => self::fault(shown, "require", with_roots),
                    _ => None,
                };
                let carded = match mode {
                    "disable" => Err("use TLS (sslmode=verify-full)"),
                    "prefer" if fault.is_some() => Err("over TLS: "),
                    _ => fault_of_allow.map_or(Ok(true), Err),
                };
                expect("carded", &identity, carded);
                expect("twofold", &identity, carded);
                log_ins += 10;
            }
        }
    }
    assert_eq!(log_ins, 8 * (10 * 10 + 8 * 2));
}

#[test]
fn what_pg_hba_conf_refuses_with_or_without_tls_is_tried_the_other_way_where_sslmode_lets_us() {
    let postgres = &secure().postgres;
    for (role, mode, expected) in [
        ("crypt", "allow", Ok(true)),
        ("crypt", "prefer", Ok(true)),
        ("crypt", "disable", Err("use TLS")),
        ("bare", "prefer", Ok(false)),
        ("bare", "allow", Ok(false)),
        ("bare", "require", Err("; a line of pg_hba.conf must let this role in")),
        ("nobody", "prefer", Err("no encryption (SQLSTATE 28000); use TLS")),
        ("nobody", "allow", Err("; in clear text: ")),
        ("nobody", "require", Err("pg_hba.conf rejects")),
    ] {
        let found = log_in(postgres, role, &format!("sslmode={mode}"));
        match expected {
            Ok(expected) => assert_eq!(found, Ok(expected), "{role} {mode}"),
            Err(words) => refused(found, &[words]),
        }
    }
    // A wrong password is as wrong in clear text, and said once.
    let wrong = log_in(postgres, "scram", "password=wrong").unwrap_err();
    assert_eq!(wrong.matches("password authentication failed").count(), 1, "{wrong}");
    refused(Err(wrong), &["28P01", "look at the password"]);
}

#[test]
fn a_server_without_tls_is_gone_on_with_in_clear_text_only_where_sslmode_lets_us() {
    let postgres = server(Postgres::builder());
    let roots = secure().authority.file();
    for mode in MODES {
        let found =
            log_in(&postgres, "scram", &format!("sslmode={mode} sslrootcert={}", roots.display()));
        match mode {
            "disable" | "allow" | "prefer" => assert_eq!(found, Ok(false), "{mode}"),
            _ => refused(found, &["127.0.0.1", "does not do TLS", "set ssl = on"]),
        }
    }
    refused(log_in(&postgres, "scram", "channel_binding=require"), &["has no TLS"]);
}

#[test]
fn a_unix_socket_is_never_encrypted_whatever_sslmode_says() {
    let Secure { postgres, authority, .. } = secure();
    let folder = postgres.socket_dir().display().to_string();
    let parameters = format!("sslmode=verify-full sslrootcert={}", authority.file().display());
    assert_eq!(log_in_at(postgres, &folder, "trusty", &parameters, &[]), Ok(false));
}

#[test]
fn a_certificate_of_ours_is_shown_where_the_server_asks_for_it() {
    let Secure { postgres, client, stranger, .. } = secure();
    let identity = |certificate: &Certificate| {
        let (certificate, key) = (certificate.certificate.display(), certificate.key.display());
        format!("sslmode=require sslcert={certificate} sslkey={key}")
    };
    let ours = identity(client);
    assert_eq!(log_in(postgres, "carded", &ours), Ok(true));
    assert_eq!(log_in(postgres, "carded", &format!("{ours} sslcertmode=require")), Ok(true));
    for role in ["carded", "twofold"] {
        let advice = ["requires a valid client certificate", "sslcert"];
        refused(log_in(postgres, role, "sslmode=require"), &advice);
        refused(log_in(postgres, role, &format!("{ours} sslcertmode=disable")), &advice);
    }
    refused(
        log_in(postgres, "carded", "sslmode=require sslcertmode=require"),
        &["sslcert", "sslcertmode=require wants one"],
    );
    let strangers = identity(&stranger.issue("carded", &[]));
    refused(log_in(postgres, "carded", &strangers), &["refuses our certificate", "ssl_ca_file"]);
    let other = secure().authority.issue("another", &[]);
    refused(log_in(postgres, "carded", &identity(&other)), &["common name of sslcert"]);

    // A server without an authority for clients asks for nothing.
    let certificate = secure().authority.issue("server", HERE);
    let incurious = server(
        Postgres::builder().tls(&certificate, &secure().authority).setting("ssl_ca_file", ""),
    );
    assert_eq!(log_in(&incurious, "scram", &ours), Ok(true));
    refused(
        log_in(&incurious, "scram", &format!("{ours} sslcertmode=require")),
        &["did not ask for our certificate", "clientcert=verify-ca"],
    );
}

#[test]
fn files_that_cannot_be_used_are_named_and_never_cost_the_encryption() {
    let Secure { postgres, authority, client, stranger } = secure();
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &Path, name: &str, mode: u32| {
        let file = folder.path().join(name);
        fs::copy(from, &file).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        file.display().to_string()
    };
    let certificate = client.certificate.display().to_string();
    let (key, ca) = (client.key.display().to_string(), authority.file().display().to_string());
    let open = copy(&client.key, "open.key", 0o644);
    let of_group = copy(&client.key, "group.key", 0o640);
    let strangers = stranger.issue("carded", &[]).key.display().to_string();
    let encrypted = folder.path().join("encrypted.key").display().to_string();
    let pkey = ["pkey", "-in", &key, "-aes256", "-passout", "pass:hunter2", "-out", &encrypted];
    assert!(std::process::Command::new("openssl").args(pkey).status().unwrap().success());
    for mode in ["prefer", "require"] {
        for (parameters, words) in [
            ("sslrootcert=/no/such.pem".to_owned(), ["sslrootcert /no/such.pem", "No such file"]),
            (format!("sslrootcert={key}"), ["sslrootcert", "no certificate is in it"]),
            (
                format!("sslcert=/no/such.pem sslkey={key}"),
                ["sslcert /no/such.pem", "No such file"],
            ),
            (format!("sslcert={certificate} sslkey=/no/such"), ["sslkey /no/such", "No such file"]),
            (format!("sslcert={certificate} sslkey={open}"), ["open.key", "others can read it"]),
            (format!("sslcert={certificate} sslkey=/tmp"), ["sslkey /tmp", "not a regular file"]),
            (
                format!("sslcert={certificate} sslkey={strangers}"),
                ["sslkey", "not the key of sslcert"],
            ),
            (format!("sslcert={certificate} sslkey={encrypted}"), ["sslkey", "openssl pkey"]),
            (
                format!("sslrootcert={ca} sslcrl={ca}"),
                ["sslcrl", "no list of revoked certificates"],
            ),
            (format!("sslrootcert={ca} sslcrl=/no/crl"), ["sslcrl /no/crl", "No such file"]),
        ] {
            let found = log_in(postgres, "trusty", &format!("sslmode={mode} {parameters}"));
            refused(found, &words);
        }
    }
    // Whose it is depends on who runs the tests.
    let is_root = fs::metadata(&of_group).unwrap().uid() == 0;
    let parameters = format!("sslmode=require sslcert={certificate} sslkey={of_group}");
    let found = log_in(postgres, "carded", &parameters);
    assert_eq!(found.is_ok(), is_root, "{found:?}");
}

#[test]
fn files_in_the_home_directory_are_used_if_they_are_there() {
    let Secure { postgres, authority, client, stranger } = secure();
    let home = tempfile::tempdir().unwrap();
    let env = [("HOME", home.path().to_str().unwrap())];
    let log_in = |role, parameters| log_in_at(postgres, "127.0.0.1", role, parameters, &env);
    assert_eq!(log_in("scram", "sslmode=require"), Ok(true));
    refused(
        log_in("scram", "sslmode=verify-full"),
        &[".postgresql/root.crt", "sslrootcert=system"],
    );

    let folder = home.path().join(".postgresql");
    fs::create_dir(&folder).unwrap();
    fs::copy(stranger.file(), folder.join("root.crt")).unwrap();
    // As libpq: `require` looks, because it can.
    refused(log_in("scram", "sslmode=require"), &["not trusted"]);
    fs::copy(authority.file(), folder.join("root.crt")).unwrap();
    assert_eq!(log_in("scram", "sslmode=verify-full"), Ok(true));

    fs::copy(&client.certificate, folder.join("postgresql.crt")).unwrap();
    refused(log_in("carded", ""), &[".postgresql/postgresql.key", "No such file"]);
    fs::copy(&client.key, folder.join("postgresql.key")).unwrap();
    assert_eq!(log_in("carded", ""), Ok(true));
}

#[test]
fn a_certificate_that_is_revoked_or_not_for_servers_is_refused() {
    let authority = Authority::new();
    let (revoked, list) = authority.issue_revoked("revoked", HERE);
    let good = authority.issue("server", HERE);
    let own = authority.beside(
        "client",
        &["-newkey", "rsa:2048", "-subj", "/CN=x", "-addext", "extendedKeyUsage=clientAuth"],
    );
    let nameless = authority.beside("nameless", &["-newkey", "rsa:2048", "-subj", "/CN=127.0.0.1"]);
    let postgres = server(Postgres::builder().tls(&good, &authority));
    let verified = |mode: &str, roots: &Path| {
        let parameters = format!("sslmode={mode} sslrootcert={}", roots.display());
        log_in(&postgres, "scram", &parameters)
    };
    for mode in ["require", "verify-ca", "verify-full"] {
        let listed = format!("{} sslcrl={}", authority.file().display(), list.display());
        postgres.show_certificate(&good);
        assert_eq!(verified(mode, listed.as_ref()), Ok(true), "{mode}");
        postgres.show_certificate(&revoked);
        refused(verified(mode, listed.as_ref()), &["is revoked, says sslcrl"]);
        assert_eq!(verified(mode, &authority.file()), Ok(true), "{mode}");
    }
    let other = Authority::new();
    let (_, others) = other.issue_revoked("revoked", HERE);
    let listed = format!("{} sslcrl={}", authority.file().display(), others.display());
    refused(verified("verify-ca", listed.as_ref()), &["sslcrl says nothing"]);

    postgres.show_certificate(&own);
    refused(verified("verify-ca", &own.certificate), &["not one for servers"]);
    refused(verified("verify-ca", &authority.file()), &["an authority's own", "CA:FALSE"]);
    postgres.show_certificate(&nameless);
    refused(verified("verify-full", &nameless.certificate), &["no subjectAltName", "127.0.0.1"]);
    assert_eq!(verified("verify-ca", &nameless.certificate), Ok(true));
}

/// As `openssl x509 -req` made them for years without further arguments, also in PostgreSQL's manual:
/// `openssl ecparam -genkey -name prime256v1 -noout -out version1.key`,
/// `openssl req -new -key version1.key -subj /CN=x | openssl x509 -req -signkey version1.key -days 36500`.
#[test]
fn a_certificate_of_the_first_version_encrypts_and_is_believed_if_it_is_the_very_one() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        let file = folder.path().join(name);
        fs::write(&file, text).unwrap();
        file
    };
    let first = Certificate {
        certificate: put("version1.crt", include_str!("fixtures/version1.crt")),
        key: put("version1.key", include_str!("fixtures/version1.key")),
        both: folder.path().join("none"),
    };
    let postgres = server(Postgres::builder().tls(&first, &authority));
    for version in ["TLSv1.2", "TLSv1.3"] {
        let log_in = |mode: &str, roots: &str| {
            let version =
                format!("ssl_min_protocol_version={version} ssl_max_protocol_version={version}");
            let parameters = format!("sslmode={mode} {version} channel_binding=require");
            log_in(&postgres, "scram", &format!("{parameters} {roots}"))
        };
        assert_eq!(log_in("require", ""), Ok(true));
        let own = format!("sslrootcert={}", first.certificate.display());
        assert_eq!(log_in("verify-ca", &own), Ok(true));
        refused(log_in("verify-full", &own), &["X.509 version 1", "subjectAltName"]);
        let other = format!("sslrootcert={}", authority.file().display());
        refused(log_in("verify-ca", &other), &["X.509 version 1"]);
    }
}

#[test]
fn versions_of_tls_and_names_are_as_asked_for() {
    let Secure { postgres, authority, .. } = secure();
    let roots = format!("sslmode=verify-full sslrootcert={}", authority.file().display());
    let at = |host: &str, parameters: &str| {
        log_in_at(postgres, host, "scram", &format!("{roots} {parameters}"), &[])
    };
    for parameters in
        ["ssl_max_protocol_version=TLSv1.2", "ssl_min_protocol_version=TLSv1.3", "sslsni=0"]
    {
        assert_eq!(at("127.0.0.1", &format!("{parameters} channel_binding=require")), Ok(true));
        assert_eq!(at("localhost", parameters), Ok(true));
    }
    // The name is what counts, wherever it leads.
    assert_eq!(at("localhost", "hostaddr=127.0.0.1"), Ok(true));
    refused(at("db.example.com", "hostaddr=127.0.0.1"), &["not for db.example.com"]);

    let certificate = authority.issue("server", HERE);
    let builder = Postgres::builder().tls(&certificate, authority);
    let old = server(builder.setting("ssl_max_protocol_version", "TLSv1.2"));
    let parameters = format!("{roots} channel_binding=require");
    assert_eq!(log_in(&old, "scram", &parameters), Ok(true));
    refused(
        log_in(&old, "scram", &format!("{roots} ssl_min_protocol_version=TLSv1.3")),
        &["in common", "TLS 1.2 and 1.3"],
    );
}

#[test]
fn tls_begins_at_once_with_a_server_that_knows_it() {
    let Secure { postgres: old, authority, .. } = secure();
    let parameters = format!(
        "sslmode=verify-full sslnegotiation=direct channel_binding=require sslrootcert={}",
        authority.file().display()
    );
    if old.major() < 17 {
        refused(log_in(old, "scram", &parameters), &["sslnegotiation=direct needs PostgreSQL 17"]);
    }
    let certificate = authority.issue("server17", HERE);
    let new = server(Postgres::builder().major(17).tls(&certificate, authority));
    assert_eq!(log_in(&new, "scram", &parameters), Ok(true));
    assert_eq!(log_in(&new, "scram", "sslmode=require"), Ok(true));
}

/// A server that sends this as its answer to the first message of each connection, and then nothing.
fn scripted(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket: TcpStream = socket.unwrap();
            let mut request = [0; 8];
            if socket.read_exact(&mut request).is_ok() && socket.write_all(answer).is_ok() {
                // To its end, so that nothing is reset.
                let _ = socket.shutdown(std::net::Shutdown::Write);
                let _ = socket.read_to_end(&mut Vec::new());
            }
        }
    });
    port
}

#[test]
fn what_stands_behind_the_answer_to_the_request_for_tls_is_never_read_as_the_servers() {
    let forged = b"S\x52\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
    for (answer, words) in [
        (&forged[..], "not TLS"),
        (b"S", "broke in the TLS handshake"),
        (b"E\0\0\0\x10SFATAL\0Mforged\0\0", "answers the request for TLS with an error"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "answers the request for TLS with byte 0x48 ('H')"),
        (b"", "closed the connection"),
    ] {
        let port = scripted(answer);
        let config = config(&format!("host=127.0.0.1 port={port} user=u sslmode=require"), &[]);
        let failure = connect_with(&config).unwrap_err().to_string();
        assert!(failure.contains(words), "{words:?} is not in {failure}");
        assert!(!failure.contains("forged"), "{failure}");
    }
}

#[test]
fn a_host_that_does_not_answer_in_time_gives_way_to_the_next() {
    let Secure { postgres, authority, .. } = secure();
    // It takes connections and says nothing, to one that asks for TLS and to one that shakes hands.
    let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = silent.local_addr().unwrap().port();
    let parameters = |hosts: &str, ports: &str| {
        format!(
            "host={hosts} port={ports} dbname=app user=scram password='{PASSWORD}' connect_timeout=1 \
             sslmode=verify-full sslrootcert={}",
            authority.file().display()
        )
    };
    let alone = config(&parameters("127.0.0.1", &port.to_string()), &[]);
    let failure = connect_with(&alone).unwrap_err().to_string();
    assert!(failure.contains("did not let us in within connect_timeout"), "{failure}");
    let both = format!("{port},{}", postgres.port());
    assert!(connect_with(&config(&parameters("127.0.0.1,127.0.0.1", &both), &[])).is_ok());
    // Nor does one whose certificate is not believed keep us from the next.
    let elsewhere =
        server(Postgres::builder().tls(&authority.issue("elsewhere", &["x.example"]), authority));
    let both = format!("{},{}", elsewhere.port(), postgres.port());
    assert!(connect_with(&config(&parameters("127.0.0.1,127.0.0.1", &both), &[])).is_ok());
    drop(silent);
}

#[test]
fn a_password_comes_from_libpqs_own_file() {
    let Secure { postgres, .. } = secure();
    let file = tempfile::NamedTempFile::new().unwrap();
    let line = format!("127.0.0.1:{}:app:scram:{PASSWORD}\n", postgres.port());
    fs::write(file.path(), format!("*:*:other:*:wrong\n{line}*:*:*:*:wrong\n")).unwrap();
    let parameters = format!("host=127.0.0.1 port={} dbname=app user=scram", postgres.port());
    let passfile = file.path().to_str().unwrap();
    assert!(connect_with(&config(&parameters, &[("PGPASSFILE", passfile)])).is_ok());
    assert!(connect_with(&config(&format!("{parameters} passfile={passfile}"), &[])).is_ok());
    let home = tempfile::tempdir().unwrap();
    fs::copy(file.path(), home.path().join(".pgpass")).unwrap();
    let at_home = config(&parameters, &[("HOME", home.path().to_str().unwrap())]);
    assert!(connect_with(&at_home).is_ok());
    fs::set_permissions(home.path().join(".pgpass"), Permissions::from_mode(0o644)).unwrap();
    let failure = connect_with(&at_home).unwrap_err().to_string();
    assert!(failure.contains("asks for a password"), "{failure}");
}

fn shows_no_secret(log: &str, key: &Path) {
    for secret in ["battery", "horse", "staple"] {
        assert!(!log.contains(secret), "{log}");
    }
    let key = fs::read_to_string(key).unwrap();
    let key = key.lines().nth(1).unwrap();
    assert!(key.len() > 20 && !log.contains(key), "{log}");
}

fn kill_walsenders(postgres: &Postgres) {
    let _ = postgres.ask("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_replication");
}

/// Bound to TLS by its log-in, under load, while the password is changed and connections are cut.
#[test]
fn a_relay_over_tls_loses_and_repeats_nothing_while_its_password_changes() {
    let Secure { authority, client, .. } = secure();
    let certificate = authority.issue("rotating", HERE);
    let postgres = server(Postgres::builder().tls(&certificate, authority));
    Kafka::shared().create_topic("tls.order", 2, &[]);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), format!("{PASSWORD}\n")).unwrap();
    let url = format!(
        "postgres://scram@localhost:{}/app?sslmode=verify-full&channel_binding=require",
        postgres.port()
    );
    // The system's authorities, as OpenSSL is told of others.
    let relay = relay("tls", &postgres, Kafka::shared())
        .env("MASTER_DATABASE_URL", format!("{url}&sslrootcert=system&require_auth=scram-sha-256"))
        .env("SSL_CERT_FILE", authority.file().display())
        .env("DATABASE_PASSWORD_FILE", file.path().display())
        .env("BACKOFF_MAX", "200ms")
        .env("LOG_LEVEL", "trace")
        .spawn();
    relay.wait_ready();
    assert!(relay.log_text().contains(r#""channel_bound":true"#), "{}", relay.log_text());
    let load = Workload { facts: 20_000, writers: 2, ..Workload::new("tls", 1) };
    let load = load.start(&postgres);
    for password in ["correct horse staple", "battery staple"] {
        let mut client = postgres.client();
        client.batch_execute(&format!("ALTER ROLE scram PASSWORD '{password}'")).unwrap();
        kill_walsenders(&postgres);
        relay.wait_until("the old password to be refused", PATIENCE, || {
            let log = relay.log_text();
            log.rfind("28P01").is_some_and(|refused| !log[refused..].contains("is streaming"))
        });
        fs::write(file.path(), password).unwrap();
        wait_state(&relay, "streaming");
    }
    load.wait();
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);
    shows_no_secret(&relay.log_text(), &client.key);
    let truth = crate::support::truth(&postgres);
    Checker::new(&truth).check(&Kafka::shared().read_topic("tls.order")).assert_clean();
}

#[test]
fn certificates_of_both_sides_change_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let put = |from: &Path, name: &str| {
        fs::copy(from, file("new")).unwrap();
        fs::rename(file("new"), file(name)).unwrap();
    };
    let (before, after) = (Authority::new(), Authority::of(Kind::Rsa));
    let postgres = server(Postgres::builder().tls(&before.issue("server", HERE), &before));
    let client = before.issue("carded", &[]);
    put(&before.file(), "root.crt");
    put(&client.certificate, "owl.crt");
    put(&client.key, "owl.key");
    Kafka::shared().create_topic("cards.order", 1, &[]);
    let path = folder.path().display();
    let relay = relay("cards", &postgres, Kafka::shared())
        .env(
            "MASTER_DATABASE_URL",
            format!(
                "host=127.0.0.1 port={} dbname=app user=carded sslmode=verify-full \
                 sslrootcert={path}/root.crt sslcert={path}/owl.crt sslkey={path}/owl.key",
                postgres.port()
            ),
        )
        .env("BACKOFF_MAX", "200ms")
        .env("LOG_LEVEL", "trace")
        .spawn();
    relay.wait_ready();
    let fact = |id: u32| format!(r#"{{"id":"{id}","aggregate_type":"order","aggregate_id":"k"}}"#);
    emit(&postgres, true, "cards", fact(1).as_bytes());
    read(&relay, Kafka::shared(), "cards.order", 1);

    // The server first: what it shows is not believed, and what we show is not taken.
    postgres.show_certificate(&after.issue("server", HERE));
    postgres.trust_clients_of(&after);
    kill_walsenders(&postgres);
    emit(&postgres, true, "cards", fact(2).as_bytes());
    relay.wait_until("the new certificate to be refused", PATIENCE, || {
        relay.log_text().contains("is of an authority that is not trusted")
    });
    put(&after.file(), "root.crt");
    relay.wait_until("our old certificate to be refused", PATIENCE, || {
        relay.log_text().contains("refuses our certificate")
    });
    let renewed = after.issue("carded", &[]);
    put(&renewed.key, "owl.key");
    put(&renewed.certificate, "owl.crt");
    read(&relay, Kafka::shared(), "cards.order", 2);
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);
    shows_no_secret(&relay.log_text(), &client.key);
    shows_no_secret(&relay.log_text(), &renewed.key);
}

#[test]
fn a_command_is_asked_for_the_password_at_each_connection_and_its_failure_is_said() {
    let Secure { postgres, .. } = secure();
    Kafka::shared().create_topic("asked.order", 1, &[]);
    let folder = tempfile::tempdir().unwrap();
    let (asked, word) = (folder.path().join("asked"), folder.path().join("word"));
    let script = format!("echo asked >> {}; cat {} || exit 3", asked.display(), word.display());
    let relay = relay("asked", postgres, Kafka::shared())
        .env("MASTER_DATABASE_URL", format!("postgres://scram@127.0.0.1:{}/app", postgres.port()))
        .env("REPLICATION_SLOT_NAME", "asked")
        .env("PUBLICATION_NAME", "asked")
        .env("DATABASE_PASSWORD_COMMAND", script)
        .env("BACKOFF_MAX", "200ms")
        .env("STARTUP_TIMEOUT", "0s")
        .spawn();
    // From the start on it may come later, or be a wrong one at first.
    relay.wait_until("the failure to be said", PATIENCE, || {
        relay.log_text().contains("DATABASE_PASSWORD_COMMAND failed (exit status: 3): cat: ")
    });
    fs::write(&word, "staple").unwrap();
    relay.wait_until("the wrong password to be refused", PATIENCE, || {
        relay.log_text().contains("28P01")
    });
    fs::write(&word, PASSWORD).unwrap();
    relay.wait_ready();
    stop(&relay);
    assert!(fs::read_to_string(&asked).unwrap().lines().count() >= 3);
    let log = relay.log_text();
    assert!(!log.contains("battery") && !log.contains("staple"), "{log}");
}

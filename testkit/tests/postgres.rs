//! Starting and ending real PostgreSQL.
#![allow(clippy::unwrap_used, reason = "tests")]

use testkit::{Mode, Postgres, process};

fn rows(postgres: &Postgres) -> i64 {
    postgres.client().query_one("SELECT count(*) FROM t", &[]).unwrap().get(0)
}

#[test]
fn survives_stops_kills_and_starts_and_leaves_nothing() {
    let postgres = Postgres::builder().setting("wal_sender_timeout", "7s").start();
    assert_eq!(postgres.ask("SHOW wal_level"), "logical");
    assert_eq!(postgres.ask("SHOW wal_sender_timeout"), "7s");
    assert_eq!(postgres.ask("SELECT current_database()"), "app");
    assert!(postgres.ask("SHOW server_version").starts_with(&postgres.major().to_string()));
    let mut client = postgres.client();
    client.batch_execute("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").unwrap();

    postgres.stop(Mode::Fast);
    assert_eq!(postgres.pid(), None);
    assert!(postgres.try_client().is_err());
    postgres.start_again();
    assert_eq!(rows(&postgres), 1);

    postgres.client().batch_execute("INSERT INTO t VALUES (2)").unwrap();
    let _open_session = postgres.client();
    postgres.kill9();
    postgres.start_again();
    assert_eq!(rows(&postgres), 2);
    postgres.restart(Mode::Immediate);
    assert_eq!(rows(&postgres), 2);
    assert!(postgres.log_text().contains("ready to accept connections"));

    let (pid, data) = (postgres.pid().unwrap(), postgres.data_dir());
    drop(postgres);
    assert!(!process::is_running(pid));
    assert!(!data.exists());
}

#[test]
fn a_user_with_a_password_needs_it() {
    let postgres = Postgres::builder()
        .hba(&["host all relay 127.0.0.1/32 scram-sha-256"])
        .own_identifier()
        .start();
    postgres.client().batch_execute("CREATE ROLE relay LOGIN PASSWORD 'secret'").unwrap();
    let connect =
        |password| postgres::Client::connect(&postgres.url_as("relay", password), postgres::NoTls);
    connect("secret").unwrap();
    assert!(connect("wrong").is_err());
    postgres::Client::connect(&postgres.url(), postgres::NoTls).unwrap();

    let other = Postgres::builder().start();
    let identifier = "SELECT system_identifier FROM pg_control_system()";
    assert_ne!(postgres.ask(identifier), other.ask(identifier));
}

#[test]
fn a_setting_that_no_server_takes_is_quoted_in_the_error() {
    let error = Postgres::builder().setting("no_such_setting", "1").try_start().unwrap_err();
    assert!(error.to_string().contains("no_such_setting"), "{error}");
}

//! Which sessions of PostgreSQL commands take, which rights they need, and which time-outs they have.

use crate::commands::Shell;
use crate::support::{PATIENCE, SLOT, count, drop_slots, relay, stop, wait_confirmed};
use testkit::{Kafka, Postgres, wait};

const EMIT: &str = "owlpost emit --aggregate-type order --json";

#[test]
fn who_only_asks_or_emits_needs_neither_a_walsender_nor_replication() {
    let postgres = Postgres::builder().setting("max_wal_senders", "1").start();
    let kafka = Kafka::shared();
    kafka.create_topic("ordinary.order", 1, &[]);
    postgres.client().batch_execute("CREATE ROLE clerk LOGIN").unwrap();
    let relay = relay("ordinary", &postgres, kafka).spawn();
    relay.wait_ready();

    // The relay has the only walsender.
    let shell = Shell::new("ordinary", &postgres, kafka)
        .env("WAL_HEALTH_PORT", &relay.health_port().to_string());
    let clerk = shell.clone().env("MASTER_DATABASE_URL", &postgres.url_as("clerk", "none"));
    for shell in [&shell, &clerk] {
        let emitted = shell.run(EMIT).ended(0).json();
        let barrier = emitted["wait_lsn"].as_str().unwrap();
        shell.run(&format!("owlpost wait --lsn {barrier}")).ended(0);
        let status = shell.run("owlpost status --sample 10ms --json").ended(0).json();
        assert_eq!(status["state"], "active", "{status}");
    }
    assert_eq!(count(kafka, "ordinary.order"), 2);

    // What streams does need one, and says so.
    let full = "end walsenders that nobody needs, or raise max_wal_senders";
    let said = shell.run("owlpost tail --limit 1").ended(3);
    assert!(said.err.contains(full), "{said:?}");
    // A check looks on: the relay that runs has what it needs.
    let said = shell.run("owlpost check").ended(0);
    assert!(said.out.contains(full) && said.out.contains("wal_level"), "{said:?}");
    let said = shell.run("owlpost check --canary=order").ended(0);
    assert!(said.out.contains("is in Kafka after"), "{said:?}");
    stop(&relay);
    let said = shell.run("owlpost check").ended(0);
    assert!(!said.out.contains(full), "{said:?}");
}

#[test]
fn a_server_without_room_for_ordinary_sessions_is_asked_through_a_walsender() {
    let postgres = Postgres::builder().setting("max_connections", "6").start();
    let kafka = Kafka::shared();
    let shell = Shell::new("crowded", &postgres, kafka);
    shell.run("owlpost init").ended(0);
    postgres.client().batch_execute("CREATE ROLE clerk LOGIN").unwrap();
    let clerk = shell.clone().env("MASTER_DATABASE_URL", &postgres.url_as("clerk", "none"));
    let right = "the role needs LOGIN and REPLICATION";
    assert!(clerk.run("owlpost tail --limit 1").ended(8).err.contains(right));
    // All that is wrong is said in one go.
    let said = clerk.run("owlpost check --json").ended(11);
    assert!(said.out.contains("REPLICATION") && said.out.contains("wal_level"), "{said:?}");

    let crowd: Vec<_> = std::iter::from_fn(|| postgres.try_client().ok()).take(100).collect();
    assert!(crowd.len() < 100, "there is room for all");
    shell.run("owlpost status --sample 10ms").ended(0);
    shell.run(EMIT).ended(0);
    // Neither here nor there: what is said is of ordinary sessions, because that is what was wanted.
    let said = clerk.run("owlpost status --sample 10ms").ended(3);
    assert!(said.err.contains("SQLSTATE"), "{said:?}");
    drop(crowd);
    wait::until("there is room again", PATIENCE, || postgres.try_client().is_ok());
    assert_eq!(postgres.ask("SELECT slot_name FROM pg_replication_slots"), SLOT);
    drop_slots(&postgres);
}

/// What administrators set for applications, and also for the role of the relay where they set it for all.
#[test]
fn timeouts_that_are_set_for_everybody_do_not_end_what_the_relay_does() {
    // The first that ends transactions, whatever they do; sending a large one is one to the server.
    let postgres = Postgres::builder().major(17).start();
    let kafka = Kafka::shared();
    kafka.create_topic("patient.order", 1, &[]);
    postgres
        .client()
        .batch_execute(
            "CREATE ROLE hurried LOGIN SUPERUSER;
             ALTER ROLE hurried SET statement_timeout = '100ms';
             ALTER ROLE hurried SET lock_timeout = '100ms';
             ALTER ROLE hurried SET transaction_timeout = '100ms';
             ALTER ROLE hurried SET idle_session_timeout = '100ms';
             ALTER ROLE hurried SET idle_in_transaction_session_timeout = '100ms'",
        )
        .unwrap();
    let command = relay("patient", &postgres, kafka)
        .env("MASTER_DATABASE_URL", postgres.url_as("hurried", "none"));

    // A slot that is made waits for whoever writes.
    let mut open = postgres.client();
    open.batch_execute("BEGIN; SELECT pg_current_xact_id()").unwrap();
    let init = command.clone().arg("init").spawn();
    let waits = "SELECT count(*) FROM pg_stat_activity
                 WHERE usename = 'hurried' AND wait_event_type = 'Lock'
                   AND clock_timestamp() - state_change > interval '1 s'";
    init.wait_until("init to wait for longer than that", PATIENCE, || postgres.ask(waits) == "1");
    open.batch_execute("COMMIT").unwrap();
    assert_eq!(init.wait_exit(PATIENCE).code(), Some(0), "{}", init.log_text());

    // For seconds, in a build for tests.
    postgres
        .client()
        .batch_execute(
            r#"SELECT count(pg_logical_emit_message(true, 'patient',
                   format('{"aggregate_type":"order","aggregate_id":"%s","payload":"%s"}', n, repeat('x', 200))))
               FROM generate_series(1, 100000) n"#,
        )
        .unwrap();
    let relay = command.spawn();
    wait_confirmed(&relay, &postgres, 2 * PATIENCE);
    stop(&relay);
    assert_eq!(count(kafka, "patient.order"), 100_000);
    let log = postgres.log_text();
    assert!(!log.contains("timeout"), "{log}");
}

//! Which sessions of PostgreSQL commands take, and which rights they need.

use crate::commands::Shell;
use crate::support::{PATIENCE, SLOT, count, drop_slots, relay, stop};
use testkit::{Kafka, Postgres};

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
    testkit::wait::until("there is room again", PATIENCE, || postgres.try_client().is_ok());
    assert_eq!(postgres.ask("SELECT slot_name FROM pg_replication_slots"), SLOT);
    drop_slots(&postgres);
}

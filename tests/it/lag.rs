//! How old the oldest fact is that is not published, by `owlpost status`, and how it says that it knows.

use crate::commands::Shell;
use crate::support::{PATIENCE, emit, relay, wait_confirmed, wait_state};
use testkit::{Kafka, Postgres};

fn fact(id: &str) -> String {
    format!(r#"{{"id":"{id}","aggregate_type":"order","aggregate_id":"{id}"}}"#)
}

/// The server's clock.
fn clock(postgres: &Postgres) -> f64 {
    postgres.ask("SELECT extract(epoch FROM clock_timestamp())").parse().unwrap()
}

/// What is said of the lag, beside its seconds.
fn known(report: &serde_json::Value) -> (&str, &str) {
    let text = |name: &str| report[name].as_str().unwrap_or("nothing");
    (text("lag_seconds_is"), text("lag_seconds_by"))
}

const STATUS: &str = "owlpost status --sample 10ms --json";

#[test]
fn without_a_relay_the_log_tells_when_the_oldest_fact_was_committed() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("aged.order", 1, &[]);
    let shell = Shell::new("aged", &postgres, kafka).env("WAL_HEALTH_PORT", "0");
    shell.run("owlpost init").ended(0);
    // Others' facts and rows are older, and wait for nobody.
    emit(&postgres, true, "others", b"not ours");
    let _ = postgres.ask("SELECT pg_sleep(1.2)::text");
    let before = clock(&postgres);
    emit(&postgres, true, "aged", fact("1").as_bytes());
    let after = clock(&postgres);
    let _ = postgres.ask("SELECT pg_sleep(0.3)::text");
    emit(&postgres, true, "aged", fact("2").as_bytes());
    for more in ["", " --facts"] {
        let asked = clock(&postgres);
        let report = shell.run(&format!("{STATUS}{more}")).ended(0).json();
        let answered = clock(&postgres);
        assert_eq!(known(&report), ("exact", "log"), "{report}");
        let lag = report["lag_seconds"].as_f64().unwrap();
        // The commit's time has milliseconds in Kafka.
        let (least, most) = (asked - after - 0.001, answered - before + 0.001);
        assert!((least..=most).contains(&lag), "{lag}, not {least}..{most}");
        assert_eq!(report["facts_behind"]["counted"].as_u64(), (!more.is_empty()).then_some(2));
    }
    let said = shell.run("owlpost status --sample 10ms").ended(0);
    assert!(said.out.contains(" old, by its commit in the log"), "{said:?}");
    let slots = "SELECT count(*) FROM pg_replication_slots";
    assert_eq!(postgres.ask(slots), "1", "what it read through is gone");

    // Nothing of ours, however much is written.
    shell.run("owlpost drain --until now").ended(0);
    for _ in 0..3 {
        emit(&postgres, true, "others", b"not ours");
    }
    let report = shell.run(STATUS).ended(0).json();
    assert_eq!(known(&report), ("exact", "log"), "{report}");
    assert_eq!(report["lag_seconds"], 0.0);

    // A message outside of a transaction does not say when it was written, but what follows it does.
    emit(&postgres, false, "aged", fact("3").as_bytes());
    emit(&postgres, true, "aged", fact("4").as_bytes());
    for more in ["", " --facts"] {
        let report = shell.run(&format!("{STATUS}{more}")).ended(0).json();
        assert_eq!(known(&report), ("at_least", "log"), "{report}");
    }

    // Watching, the log is read once while the slot stands.
    let watch = format!("timeout --preserve-status --signal=INT 3 {STATUS} --watch 100ms");
    let said = shell.run(&watch).ended(0);
    let reports: Vec<serde_json::Value> =
        said.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(reports.len() > 3, "{said:?}");
    let ages: Vec<f64> = reports.iter().map(|r| r["lag_seconds"].as_f64().unwrap()).collect();
    assert!(ages.is_sorted() && ages[0] < ages[ages.len() - 1], "{ages:?}");
}

#[test]
fn without_the_right_to_read_the_log_what_is_known_is_a_bound() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    let owner = Shell::new("bounded", &postgres, kafka).env("WAL_HEALTH_PORT", "0");
    owner.run("owlpost init").ended(0);
    postgres.client().batch_execute("CREATE ROLE clerk LOGIN").unwrap();
    let clerk = owner.clone().env("MASTER_DATABASE_URL", &postgres.url_as("clerk", "none"));
    // The slot stands at a checkpoint.
    owner.run("owlpost init --audit").ended(0);
    postgres.client().batch_execute("CHECKPOINT").unwrap();
    let advance = "SELECT pg_replication_slot_advance('factlib_slot', pg_current_wal_lsn())::text";
    let _ = postgres.ask(advance);
    let checkpointed = clock(&postgres);
    emit(&postgres, true, "bounded", fact("1").as_bytes());
    let report = clerk.run(STATUS).ended(0).json();
    assert_eq!(known(&report), ("at_most", "checkpoint"), "{report}");
    let lag = report["lag_seconds"].as_f64().unwrap();
    // Checkpoints have whole seconds.
    assert!(lag <= clock(&postgres) - checkpointed + 10.0, "{report}");
    let why = report["log_not_read"].as_str().unwrap();
    assert!(why.contains("REPLICATION"), "{report}");
    let said = clerk.run("owlpost status --sample 10ms").ended(0);
    assert!(said.out.contains("before the last checkpoint is confirmed"), "{said:?}");

    // And nothing behind a later checkpoint.
    postgres.client().batch_execute("CHECKPOINT").unwrap();
    let report = clerk.run(STATUS).ended(0).json();
    assert_eq!(known(&report), ("nothing", "nothing"), "{report}");
    assert_eq!(report["lag_seconds"], serde_json::Value::Null);
    let said = clerk.run("owlpost status --sample 10ms").ended(0);
    assert!(
        said.out.contains("oldest fact   not known (") && said.out.contains("--facts"),
        "{said:?}"
    );
    clerk.run("owlpost status --facts").ended(8);
    assert_eq!(known(&owner.run(STATUS).ended(0).json()), ("exact", "log"));
}

#[test]
fn a_relay_that_runs_says_it_or_has_confirmed_what_was_there_a_moment_ago() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("fresh.order", 1, &[]);
    let relay = relay("fresh", &postgres, kafka).spawn();
    relay.wait_ready();
    let here = Shell::new("fresh", &postgres, kafka)
        .env("WAL_HEALTH_PORT", &relay.health_port().to_string());
    let elsewhere = here.clone().env("WAL_HEALTH_PORT", "0");
    emit(&postgres, true, "fresh", fact("1").as_bytes());
    wait_confirmed(&relay, &postgres, PATIENCE);
    for shell in [&here, &elsewhere] {
        let report = shell.run("owlpost status --sample 3s --json").ended(0).json();
        let (is, by) = known(&report);
        assert!(matches!((is, by), ("exact", "position") | ("at_most", "samples")), "{report}");
        assert!(report["lag_seconds"].as_f64().unwrap() < 60.0, "{report}");
    }

    // It holds facts that it cannot publish.
    let before = clock(&postgres);
    emit(&postgres, true, "fresh", b"junk");
    let after = clock(&postgres);
    wait_state(&relay, "halted");
    emit(&postgres, true, "fresh", fact("2").as_bytes());
    let asked = clock(&postgres);
    let report = here.run(STATUS).ended(0).json();
    let answered = clock(&postgres);
    assert_eq!(known(&report), ("exact", "relay"), "{report}");
    let lag = report["lag_seconds"].as_f64().unwrap();
    // By its clock, which is the server's as it was told a while ago.
    let (least, most) = (asked - after - 1.0, answered - before + 1.0);
    assert!((least..=most).contains(&lag), "{lag}, not {least}..{most}");
    assert!(here.run("owlpost status --sample 10ms").ended(0).out.contains("says the relay"));
    // Facts are counted beside it.
    let report = elsewhere.run(&format!("{STATUS} --facts")).ended(0).json();
    assert_eq!(known(&report), ("exact", "log"), "{report}");
    assert_eq!(report["facts_behind"], serde_json::json!({ "counted": 2, "all": true }));
    let read = report["lag_seconds"].as_f64().unwrap();
    assert!(read >= lag - 1.0, "{read} after {lag}");
    // Another slot's relay is not believed.
    let other = here.env("REPLICATION_SLOT_NAME", "other").env("PUBLICATION_NAME", "other");
    other.run("owlpost init").ended(0);
    emit(&postgres, true, "fresh", fact("3").as_bytes());
    assert_eq!(known(&other.run(STATUS).ended(0).json()), ("exact", "log"));
    relay.kill9();
}

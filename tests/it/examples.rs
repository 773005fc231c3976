//! The protocol crate's example clients, each a page, stream from a real server; and the example services of the crate
//! that emits, at work.

use crate::clients::Language;
use crate::support::{PATIENCE, binary, confirmed, emit, lsn};
use std::path::PathBuf;
use std::process::Command;
use testkit::{Lsn, Postgres, wait};

/// Where cargo puts a workspace's examples: beside the tests.
pub(crate) fn example(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let program = tests.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(
        program.exists(),
        "{program:?} is built by `cargo test --workspace`, or `scripts/clients`"
    );
    program
}

/// What the client prints until it has read everything that is committed by now.
fn streamed(client: &str, postgres: &Postgres) -> String {
    let endpos: Lsn = lsn(postgres, "SELECT pg_current_wal_insert_lsn()");
    let address = format!("127.0.0.1:{}", postgres.port());
    let endpos_text = endpos.to_string();
    let output = Command::new(example(client))
        .args([&address, "reader", "app", "factlib_slot", "facts", &endpos_text])
        .env("PGPASSWORD", "pencil")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The server reads the last status when it comes to it.
    wait::until("what was printed to be confirmed", PATIENCE, || confirmed(postgres) >= endpos);
    String::from_utf8(output.stdout).unwrap()
}

fn each_fact_is_printed_once_and_confirmed(client: &str) {
    let postgres = Postgres::builder().hba(&["host all reader 127.0.0.1/32 scram-sha-256"]).start();
    let set_up = "SET password_encryption = 'scram-sha-256';
        CREATE ROLE reader LOGIN REPLICATION PASSWORD 'pencil';
        CREATE PUBLICATION facts";
    postgres.client().batch_execute(set_up).unwrap();
    let slot = "SELECT pg_create_logical_replication_slot('factlib_slot', 'pgoutput')::text";
    let _ = postgres.ask(slot);
    emit(&postgres, true, "orders", b"one");
    emit(&postgres, false, "orders", b"two");
    assert_eq!(streamed(client, &postgres), "one\ntwo\n");
    emit(&postgres, true, "orders", b"three");
    assert_eq!(streamed(client, &postgres), "three\n");
}

#[test]
fn the_client_on_std_net_prints_each_fact_once_and_confirms_it() {
    each_fact_is_printed_once_and_confirmed("recvlogical");
}

#[test]
fn the_client_on_tokio_prints_each_fact_once_and_confirms_it() {
    each_fact_is_printed_once_and_confirmed("recvlogical_tokio");
}

/// What `make example` shows.
#[test]
fn each_order_is_shipped_once_though_shipping_is_killed_and_all_facts_come_twice() {
    if !Language::Rust.is_ready() {
        return;
    }
    let examples = example("orders").parent().unwrap().to_owned();
    let programs = testkit::example::Programs { owlpost: binary(), examples };
    let readme = include_str!("../../README.md");
    let mut said = Vec::new();
    testkit::example::run(&programs, |line| said.push(line.to_owned())).unwrap();
    for line in [
        "12 orders, 12 shipments",
        "a relay with an older slot published all of it again: 24 records",
        "shipping passed over 12 repeats",
        "12 orders, 12 shipments: 0 orders without one, 0 with two",
    ] {
        assert!(said.iter().any(|known| known == line), "{said:#?}");
        assert!(readme.lines().any(|known| known == line), "the README does not have: {line}");
    }
}

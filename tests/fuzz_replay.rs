//! What the fuzz targets do, on a stable toolchain, with every input that was worth keeping: seeds made
//! from what real servers sent, and inputs that once failed.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails"
)]

#[path = "../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "a crate of its own when a fuzzer builds it")]
mod targets;

use std::{fs, path::Path};

fn replay(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut inputs = 0;
    for file in fs::read_dir(&corpus).unwrap() {
        let input = fs::read(file.unwrap().path()).unwrap();
        run(&input);
        // Cut off and changed a little, too: what a fuzzer would try first.
        for cut in 0..input.len().min(64) {
            run(&input[..cut]);
            let mut changed = input.clone();
            changed[cut] ^= 0x81;
            run(&changed);
        }
        inputs += 1;
    }
    assert!(inputs > 0, "{corpus:?} holds nothing");
}

#[test]
fn frames_are_the_same_however_they_arrive() {
    replay("frame", targets::frame);
}

#[test]
fn messages_of_a_server_say_the_same_again() {
    replay("backend", targets::backend);
}

#[test]
fn messages_of_a_client_say_the_same_again() {
    replay("frontend", targets::frontend);
}

#[test]
fn payloads_of_a_stream_say_the_same_again() {
    replay("replication", targets::replication);
}

#[test]
fn messages_of_the_plugin_say_the_same_again() {
    replay("pgoutput", targets::pgoutput);
}

#[test]
fn an_impostor_is_never_believed() {
    replay("scram", targets::scram);
}

#[test]
fn certificates_are_not_read_past_their_end() {
    replay("certificate", targets::certificate);
}

#[test]
fn a_session_does_not_depend_on_how_its_bytes_are_cut() {
    replay("session", targets::session);
}

#[test]
fn envelopes_that_are_read_can_be_used() {
    replay("envelope", targets::envelope);
}

#[test]
fn urls_never_show_their_password() {
    replay("url", targets::url);
}

#[test]
fn record_batches_are_read_or_refused() {
    replay("record_batch", targets::record_batch);
}

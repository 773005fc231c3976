//! The checker must not be the one who is fooled: every kind of bad log is caught.
#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "helpers of tests")]

use std::sync::Arc;
use testkit::checker::{Checker, Report, Violation, absent};
use testkit::envelope::OutboxEvent;
use testkit::workload::Truth;
use testkit::{Lsn, Record};

const TOPIC: &str = "orders.order";

fn truth() -> Vec<Truth> {
    let fact = |n: i64| {
        let aggregate_id = format!("k{}", n % 3);
        let event = OutboxEvent {
            id: format!("id-{n}"),
            aggregate_type: "order".to_owned(),
            aggregate_id: aggregate_id.clone(),
            event_type: "made".to_owned(),
            payload: vec![u8::try_from(n).unwrap_or(0); 10],
            ..OutboxEvent::default()
        };
        Truth {
            fact_id: event.id.clone(),
            aggregate_type: event.aggregate_type.clone(),
            aggregate_id,
            event_type: event.event_type.clone(),
            key_seq: n / 3 + 1,
            content: event.to_bytes(),
            xid: 700 + n.cast_unsigned(),
            lsn: Lsn(1000 + n.cast_unsigned()),
        }
    };
    (0..12).map(fact).collect()
}

/// k0 and k1 in partition 0, k2 in partition 1.
fn log(truth: &[Truth]) -> Vec<Record> {
    let mut offsets = [0, 0];
    let record = |(n, fact): (usize, &Truth)| {
        let partition = usize::from(fact.aggregate_id == "k2");
        offsets[partition] += 1;
        let headers = [
            ("event_id", fact.fact_id.clone()),
            ("event_type", fact.event_type.clone()),
            ("LSN", fact.lsn.to_string()),
            ("factlib_position", format!("{n:08x}")),
            ("factlib_source", "1/2".to_owned()),
        ];
        Record {
            topic: Arc::from(TOPIC),
            partition: i32::from(fact.aggregate_id == "k2"),
            offset: offsets[partition] - 1,
            timestamp_ms: 5,
            key: Some(fact.aggregate_id.clone().into_bytes()),
            value: Some(fact.content.clone()),
            headers: headers.map(|(name, value)| (name.to_owned(), value.into_bytes())).to_vec(),
        }
    };
    truth.iter().enumerate().map(record).collect()
}

/// The one with that id, again, behind everything.
fn again(log: &[Record], id: &str) -> Record {
    let mut record = log.iter().find(|r| r.header("event_id") == Some(id)).cloned().expect("there");
    record.offset = 100;
    record
}

fn check(truth: &[Truth], log: &[Record]) -> Report {
    Checker::new(truth).prefix("orders").allow_repeats().check(log)
}

/// Exactly one violation, of the expected kind.
#[track_caller]
fn caught(report: &Report, kind: impl Fn(&Violation) -> bool) {
    assert!(report.violations.len() == 1 && kind(&report.violations[0]), "{report}");
    assert!(std::panic::catch_unwind(|| report.assert_clean()).is_err());
}

#[test]
fn a_good_log_is_clean_with_and_without_honest_repeats() {
    let truth = truth();
    let mut log = log(&truth);
    let report = Checker::new(&truth).prefix("orders").check(&log);
    report.assert_clean();
    assert_eq!((report.facts, report.records, report.repeats), (12, 12, 0));

    for (number, id) in ["id-6", "id-7", "id-9"].into_iter().enumerate() {
        let mut repeat = again(&log, id);
        repeat.offset += i64::try_from(number).unwrap_or(0);
        log.push(repeat);
    }
    let report = check(&truth, &log);
    report.assert_clean();
    assert_eq!((report.facts, report.repeats, report.rewinds.len()), (12, 3, 1));
    assert_eq!((report.rewinds[0].records, report.rewinds[0].offset), (3, 100));
    assert!(report.rewinds[0].bytes > 3 * 40);
    // Strictly, each of them is one too many.
    assert_eq!(Checker::new(&truth).check(&log).violations.len(), 3);
}

#[test]
fn no_truth_proves_nothing() {
    caught(&check(&[], &[]), |v| matches!(v, Violation::EmptyTruth));
}

#[test]
fn a_truth_that_says_something_twice_is_refused() {
    let mut truth = truth();
    let log = log(&truth);
    truth.push(truth[0].clone());
    caught(&check(&truth, &log), |v| matches!(v, Violation::TruthRepeatsId(_)));
}

#[test]
fn a_lost_fact_is_caught() {
    let truth = truth();
    let mut log = log(&truth);
    log.remove(4);
    caught(&check(&truth, &log), |v| matches!(v, Violation::Lost(fact) if fact.fact_id == "id-4"));
    let wanted: Vec<&Truth> = truth.iter().collect();
    assert_eq!(absent(&wanted, &log), [&truth[4]]);
}

#[test]
fn a_fact_that_was_never_committed_is_caught() {
    let mut truth = truth();
    let log = log(&truth);
    truth.remove(11);
    caught(&check(&truth, &log), |v| matches!(v, Violation::Phantom(_, id) if id == "id-11"));
    let mut nameless = log[..11].to_vec();
    nameless.push(log[10].clone());
    nameless[11].headers.remove(0);
    nameless[11].offset = 99;
    caught(&check(&truth, &nameless), |v| matches!(v, Violation::Phantom(_, id) if id.is_empty()));
}

#[test]
fn facts_of_an_aggregate_in_the_wrong_order_are_caught_by_number_and_by_position() {
    let truth = truth();
    let mut log = log(&truth);
    let (a, b) = (log[0].offset, log[3].offset);
    (log[0].offset, log[3].offset) = (b, a);
    let report = check(&truth, &log);
    let by_number = report.violations.iter().any(|v| matches!(v, Violation::OutOfOrder(..)));
    let by_position =
        report.violations.iter().any(|v| matches!(v, Violation::PositionNotIncreasing(..)));
    assert!(by_number && by_position, "{report}");
}

#[test]
fn a_position_that_stands_still_is_caught() {
    let truth = truth();
    let mut log = log(&truth);
    let position = log[0].headers[3].clone();
    log[1].headers[3] = position;
    caught(&check(&truth, &log), |v| matches!(v, Violation::PositionNotIncreasing(..)));
}

#[test]
fn an_altered_repeat_is_caught_whatever_was_altered() {
    let truth = truth();
    let good = log(&truth);
    let alterations: [fn(&mut Record); 5] = [
        |record| record.value = Some(b"other".to_vec()),
        |record| record.key = None,
        |record| record.headers[3].1[0] = b'9',
        |record| record.timestamp_ms += 1,
        |record| record.partition = 1,
    ];
    for alter in alterations {
        let mut log = good.clone();
        let mut repeat = again(&log, "id-3");
        alter(&mut repeat);
        log.push(repeat);
        caught(&check(&truth, &log), |v| matches!(v, Violation::AlteredRepeat(..)));
    }
}

#[test]
fn a_wrong_key_value_topic_or_header_is_caught() {
    let truth = truth();
    let good = log(&truth);
    let alterations: [fn(&mut Record); 8] = [
        |record| record.value = None,
        |record| record.key = Some(b"other".to_vec()),
        |record| record.headers[1].1 = b"other".to_vec(),
        |record| record.headers[2].1 = b"0/1".to_vec(),
        |record| record.headers[4].1 = b"3/4".to_vec(),
        |record| drop(record.headers.remove(4)),
        |record| record.headers.push(("LSN".to_owned(), Vec::new())),
        |record| record.headers.push(("trace_id".to_owned(), b"1".to_vec())),
    ];
    for alter in alterations {
        let mut log = good.clone();
        alter(&mut log[10]);
        caught(&check(&truth, &log), |v| matches!(v, Violation::Wrong(..)));
    }
    let elsewhere = Checker::new(&truth).prefix("invoices").check(&good);
    assert_eq!(elsewhere.violations.len(), 12);
}

#[test]
fn a_wrong_partition_is_caught_by_company_and_by_java() {
    let truth = truth();
    let mut log = log(&truth);
    let keys = ["k0", "k1", "k2"].map(str::to_owned);
    let where_java_puts_them = Checker::new(&truth).partitions(&keys, &[0, 0, 1]);
    where_java_puts_them.check(&log).assert_clean();
    let elsewhere = Checker::new(&truth).partitions(&keys, &[0, 0, 0]).check(&log);
    assert!(elsewhere.violations.iter().all(|v| matches!(v, Violation::WrongPartition(..))));
    assert_eq!(elsewhere.violations.len(), 4);
    // The last fact of k0 strays.
    log[9].partition = 1;
    log[9].offset = 50;
    // Its position is smaller than that of the fact before it there, too, unless it comes last.
    log[9].headers[3].1 = b"ffffffff".to_vec();
    caught(&check(&truth, &log), |v| matches!(v, Violation::WrongPartition(..)));
}

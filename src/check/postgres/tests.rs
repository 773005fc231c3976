//! What follows from a server, without one.

use super::*;
use crate::config::RawConfig;
use crate::postgres::survey::{Role, Setting, Transport};
use crate::postgres::{Found, FoundPublication, FoundSlot};
use crate::relay::Identity;
use crate::relay::gone::ExitKind;
use crate::relay::seeded_bug::Seeded;
use crate::run;
use factlib_protocol::Lsn;
use serde_json::json;

const NOW: f64 = 1_800_000_000.0;

fn raw() -> RawConfig {
    RawConfig {
        src_service_name: Some("orders".to_owned()),
        master_database_url: Some("postgres://owlpost@db/app".to_owned()),
        kafka_brokers: Some("kafka".to_owned()),
        ..RawConfig::default()
    }
}

fn config() -> Config {
    Config::from_raw(&raw(), |_| None).unwrap()
}

/// A server that has everything, as PostgreSQL 18 would tell.
fn survey() -> Survey {
    let comment = "owlpost: slot factlib_slot, system 7, prefixes orders, consistent point 0/1";
    let found = Found {
        pages: None,
        system: 7,
        database: "app".to_owned(),
        version: 180_004,
        wal_level: "logical".to_owned(),
        in_recovery: false,
        synchronous_standby_names: "standby1".to_owned(),
        application_name: "owlpost".to_owned(),
        publication: Some(FoundPublication {
            comment: Some(comment.to_owned()),
            has_tables: false,
        }),
        slot: Some(FoundSlot {
            plugin: Some("pgoutput".to_owned()),
            database: Some("app".to_owned()),
            wal_status: Some("reserved".to_owned()),
            two_phase: false,
            confirmed_flush: Some(Lsn(8)),
            synced: false,
        }),
    };
    let settings = [
        ("max_slot_wal_keep_size", "-1", "-1"),
        ("idle_replication_slot_timeout", "0", "0"),
        ("server_encoding", "UTF8", "UTF8"),
        ("max_replication_slots", "10", "10"),
        ("max_wal_senders", "10", "10"),
        ("server_version", "18.4", "18.4"),
    ];
    let settings = settings.map(|(name, value, shown)| {
        (name.to_owned(), Setting { value: value.to_owned(), shown: shown.to_owned() })
    });
    Survey {
        transport: Transport::Clear,
        not_replicating: None,
        identity: Identity {
            system: 7,
            timeline: 1,
            wal_flushed: Lsn(16),
            history: Vec::new(),
            database: 5,
            confirmed_flush: Lsn(8),
        },
        found,
        settings: settings.into(),
        functions: None,
        role: Role {
            name: "owlpost".to_owned(),
            may_create: true,
            owns_publication: true,
            sees_all: true,
        },
        slot: Some(SlotState {
            columns: json!({"active_pid": null, "wal_status": "reserved", "safe_wal_size": null}),
            retained: Some(4096),
            ahead: Some(-8),
            reader: None,
        }),
        slots: 1,
        walsenders: 1,
        oldest_open: None,
        oldest_prepared: None,
        clock: NOW,
    }
}

/// Everything that is not well, once this is changed.
fn said_of(
    config: &Config,
    running: Option<&Running>,
    change: impl FnOnce(&mut Survey),
) -> Vec<Check> {
    let mut survey = survey();
    change(&mut survey);
    let ask = run::ask(config, Seeded::default(), None, false);
    let mut checks = judge(config, &ask, &survey, running, NOW);
    checks.retain(|check| check.verdict != Verdict::Ok);
    checks
}

#[track_caller]
fn one(change: impl FnOnce(&mut Survey), verdict: Verdict, words: &str) {
    let said = said_of(&config(), None, change);
    let [check] = said.as_slice() else { panic!("{said:?}") };
    assert_eq!(check.verdict, verdict, "{check}");
    assert!(check.to_string().contains(words) && check.remedy.is_some(), "{check:?}");
}

fn set(survey: &mut Survey, name: &str, value: &str, shown: &str) {
    let setting = Setting { value: value.to_owned(), shown: shown.to_owned() };
    survey.settings.insert(name.to_owned(), setting);
}

fn open(seconds: u64) -> Option<OpenTransaction> {
    Some(OpenTransaction { age: Duration::from_secs(seconds), whose: "process 7".to_owned() })
}

#[test]
fn it_is_said_what_the_connection_goes_through() {
    let tls = |channel_bound| Transport::Tls { version: Some("TLSv1_3"), channel_bound };
    for (transport, mode, words) in [
        (Transport::UnixSocket, "prefer", "over a Unix socket"),
        (Transport::Clear, "prefer", "in clear text"),
        (tls(false), "require", "over TLSv1_3 (sslmode=require)"),
        (tls(true), "prefer", "over TLSv1_3 (sslmode=prefer), the log-in bound to it"),
    ] {
        let url = format!("postgres://owlpost@db/app?sslmode={mode}");
        let raw = RawConfig { master_database_url: Some(url), ..raw() };
        let config = Config::from_raw(&raw, |_| None).unwrap();
        let ask = run::ask(&config, Seeded::default(), None, false);
        let checks = judge(&config, &ask, &Survey { transport, ..survey() }, None, NOW);
        let said = checks.iter().find(|check| check.name == "PostgreSQL").unwrap().to_string();
        assert!(said.ends_with(words), "{said}");
    }
}

#[test]
fn a_sound_server_has_no_fault_before_and_after_the_first_start() {
    assert_eq!(said_of(&config(), None, |_| {}), []);
    let empty = |survey: &mut Survey| {
        (survey.found.publication, survey.found.slot, survey.slot) = (None, None, None);
    };
    assert_eq!(said_of(&config(), None, empty), []);
}

#[test]
fn what_somebody_may_be_sorry_for_is_a_warning() {
    type Change = fn(&mut Survey);
    let table: [(Change, &str); 14] = [
        (
            |s| s.identity.confirmed_flush = Lsn(0x1A4_4E8F),
            "slot factlib_slot stands at 0/1A44E8F, where no record of the log ends",
        ),
        (|s| s.found.version = 150_013, "15.13 has defects"),
        (|s| s.found.publication.as_mut().unwrap().has_tables = true, "has tables"),
        (|s| s.walsenders = 10, "9 of 10 walsenders run: one is left"),
        (|s| set(s, "max_slot_wal_keep_size", "64", "64MB"), "64MB: a relay that is away"),
        (|s| set(s, "idle_replication_slot_timeout", "60", "1min"), "1min: a relay that is away"),
        (|s| set(s, "server_encoding", "SQL_ASCII", "SQL_ASCII"), "SQL_ASCII: an envelope"),
        (|s| s.functions = Some("0.9.0".to_owned()), "version 0.9.0, and this owlpost has 1.0.0"),
        (|s| s.clock = NOW + 3600.4, "3600 s ahead of the one here"),
        (|s| s.clock = NOW - 61.0, "61 s behind the one here"),
        (|s| s.oldest_open = open(3601), "open for 1h 1s: process 7"),
        (|s| s.oldest_prepared = open(301), "prepared for 5m 1s: process 7"),
        (
            |s| s.slot.as_mut().unwrap().columns["wal_status"] = "unreserved".into(),
            "slot factlib_slot holds back 4.0 KiB of it (unreserved)",
        ),
        (
            |s| s.slot.as_mut().unwrap().columns["safe_wal_size"] = 1_048_576.into(),
            "(reserved, 1.0 MiB until it is lost)",
        ),
    ];
    for (change, words) in table {
        one(change, Verdict::Warning, words);
    }
    // Short ones pass.
    assert_eq!(said_of(&config(), None, |s| s.oldest_open = open(299)), []);
}

#[test]
fn a_server_without_a_walsender_for_us_is_a_failure_unless_the_relay_has_the_last() {
    let full = || Some(Gone::Lost("no walsender is left; end some".to_owned()));
    one(|s| s.not_replicating = full(), Verdict::Failure, "no walsender is left");
    let running = Running {
        slot: "factlib_slot".to_owned(),
        ready: true,
        state: "streaming".to_owned(),
        reason: None,
    };
    let read = |s: &mut Survey| {
        s.slot.as_mut().unwrap().columns["active_pid"] = 7.into();
        (s.walsenders, s.not_replicating) = (10, full());
    };
    let said = said_of(&config(), Some(&running), read);
    let [check] = said.as_slice() else { panic!("{said:?}") };
    assert_eq!((check.verdict, check.name.as_str()), (Verdict::Warning, "PostgreSQL"));
    // Without the right a relay would not start, whoever reads the slot now.
    let refused = |s: &mut Survey| {
        read(s);
        let reason = "permission denied; the role needs REPLICATION".to_owned();
        s.not_replicating = Some(Gone::Refused(ExitKind::Unsuitable, reason));
    };
    assert_eq!(said_of(&config(), Some(&running), refused)[0].verdict, Verdict::Failure);
}

#[test]
fn what_keeps_the_relay_from_starting_is_a_failure() {
    type Change = fn(&mut Survey);
    let table: [(Change, &str); 8] = [
        (
            |s| s.slot.as_mut().unwrap().ahead = Some(299_959),
            "slot factlib_slot stands at 0/8, 299959 bytes past the end of the log",
        ),
        (|s| s.found.version = 130_010, "PostgreSQL 13 cannot stream logical messages"),
        (|s| s.found.wal_level = "replica".to_owned(), "set wal_level = logical"),
        (|s| s.found.synchronous_standby_names = "*".to_owned(), "for which every COMMIT waits"),
        (
            |s| {
                (s.found.publication, s.found.slot, s.slot) = (None, None, None);
                s.role.may_create = false;
            },
            "GRANT CREATE ON DATABASE app TO owlpost",
        ),
        (
            |s| {
                (s.found.publication, s.found.slot, s.slot) = (None, None, None);
                s.slots = 10;
            },
            "all 10 replication slots are in use, and slot factlib_slot is to be made",
        ),
        (
            |s| {
                let initialising = "owlpost: initialising, system 7".to_owned();
                s.found.publication.as_mut().unwrap().comment = Some(initialising);
                s.role.owns_publication = false;
            },
            "does not own publication facts",
        ),
        (
            |s| {
                s.found.slot.as_mut().unwrap().wal_status = Some("lost".to_owned());
                s.slot.as_mut().unwrap().columns["wal_status"] = "lost".into();
            },
            "slot factlib_slot is lost",
        ),
    ];
    for (change, words) in table {
        one(change, Verdict::Failure, words);
    }
}

#[test]
fn other_prefixes_than_were_set_up_are_a_failure_if_one_is_left_out_and_else_a_warning() {
    let recorded = |prefixes: &'static str| {
        move |survey: &mut Survey| {
            survey.found.publication.as_mut().unwrap().comment = Some(format!(
                "owlpost: slot factlib_slot, system 7, prefixes {prefixes}, consistent point 0/1"
            ));
        }
    };
    one(recorded("orders billing"), Verdict::Failure, "for the prefix billing too");
    let more = Config { prefixes: vec!["orders".to_owned(), "new".to_owned()], ..config() };
    let said = said_of(&more, None, recorded("orders"));
    assert_eq!((said.len(), said[0].verdict), (1, Verdict::Warning), "{said:?}");
    assert!(said[0].to_string().contains("without the prefixes new"), "{said:?}");
}

#[test]
fn several_faults_are_told_together() {
    let change = |survey: &mut Survey| {
        survey.found.wal_level = "replica".to_owned();
        survey.found.slot = None;
        survey.slot = None;
        set(survey, "server_encoding", "LATIN1", "LATIN1");
    };
    let said = said_of(&config(), None, change);
    let names: Vec<_> = said.iter().map(|check| check.name.as_str()).collect();
    assert_eq!(names, ["wal_level", "slot and publication", "server_encoding"]);
}

#[test]
fn another_relay_that_reads_the_slot_is_a_warning_and_ours_is_none() {
    let read = |survey: &mut Survey| {
        let slot = survey.slot.as_mut().unwrap();
        slot.columns["active_pid"] = 4711.into();
        slot.reader = Some("process 4711 (owlpost) at 10.0.0.7".to_owned());
    };
    one(
        read,
        Verdict::Warning,
        "process 4711 (owlpost) at 10.0.0.7, and one that is started waits",
    );
    let running: Running = serde_json::from_value(json!({
        "slot": "factlib_slot", "ready": true, "state": "streaming", "reason": null
    }))
    .unwrap();
    assert_eq!(said_of(&config(), Some(&running), read), []);
    let waiting = Running { ready: false, state: "waiting_for_slot".to_owned(), ..running };
    assert_eq!(said_of(&config(), Some(&waiting), read).len(), 1);
}

#[test]
fn a_slot_that_standbys_should_follow_and_do_not_is_a_warning() {
    let config = Config { slot_failover: true, ..config() };
    let said = said_of(&config, None, |survey| {
        survey.slot.as_mut().unwrap().columns["failover"] = false.into();
    });
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].to_string().contains("was made without failover"), "{said:?}");
    let old = said_of(&config, None, |survey| {
        (survey.found.version, survey.found.slot, survey.slot) = (150_018, None, None);
    });
    assert!(old.iter().any(|check| check.name == "REPLICATION_SLOT_FAILOVER"), "{old:?}");
}

#[test]
fn sql_functions_that_are_absent_or_newer_are_no_fault() {
    for version in [None, Some("1.0.0"), Some("1.10.0")] {
        let change = |survey: &mut Survey| survey.functions = version.map(str::to_owned);
        assert_eq!(said_of(&config(), None, change), []);
    }
}

//! What pgoutput said on PostgreSQL 14 to 18, at every protocol version, is understood, and can be said
//! again byte for byte.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]

mod fixtures;

use std::collections::{BTreeMap, BTreeSet};
use std::{env, fs};

use bytes::BytesMut;
use factlib_protocol::{
    Lsn, Timestamp,
    pgoutput::{Columns, Message, OldTuple, Prepare, Tuple, Value},
};
use fixtures::{Capture, captures};

#[test]
fn what_is_decoded_can_be_said_again_byte_for_byte() {
    for Capture { mut decoder, messages, .. } in captures() {
        for message in messages {
            let decoded = decoder.decode(&message.data).unwrap();
            let mut out = BytesMut::from(&b"before"[..]);
            decoded.encode(&mut out).unwrap();
            assert_eq!(out[6..], message.data, "{decoded:?}");
        }
    }
}

#[test]
fn what_is_walked_can_be_built_again_byte_for_byte() {
    fn rebuild<'a>(tuple: &mut Tuple<'a>, out: &'a mut BytesMut) {
        Tuple::encode(&tuple.values().collect::<Vec<_>>(), out).unwrap();
        *tuple = Tuple::decode(out).unwrap();
    }
    fn rebuild_old<'a>(old: &mut OldTuple<'a>, out: &'a mut BytesMut) {
        match old {
            OldTuple::Key(tuple) | OldTuple::Full(tuple) => rebuild(tuple, out),
        }
    }
    for Capture { mut decoder, messages, .. } in captures() {
        for message in messages {
            let mut decoded = decoder.decode(&message.data).unwrap();
            let (mut old, mut new) = (BytesMut::new(), BytesMut::new());
            match &mut decoded {
                Message::Insert(insert) => rebuild(&mut insert.new, &mut new),
                Message::Update(update) => {
                    rebuild(&mut update.new, &mut new);
                    if let Some(row) = &mut update.old {
                        rebuild_old(row, &mut old);
                    }
                }
                Message::Delete(delete) => rebuild_old(&mut delete.old, &mut old),
                Message::Relation(relation) => {
                    let columns = relation.columns.iter().collect::<Vec<_>>();
                    Columns::encode(&columns, &mut new).unwrap();
                    relation.columns = Columns::decode(&new).unwrap();
                }
                _ => {}
            }
            let mut out = BytesMut::new();
            decoded.encode(&mut out).unwrap();
            assert_eq!(out[..], message.data, "{decoded:?}");
        }
    }
}

/// The server's own columns are the oracle: two fields that change places would go unnoticed above.
#[test]
fn positions_and_transactions_are_those_the_server_files_messages_under() {
    for Capture { major, stream, mut decoder, messages } in captures() {
        let (mut open, mut block) = (None, None);
        for (at, message) in messages.iter().enumerate() {
            let Some((lsn, xid)) = message.filed else { continue };
            // The header says the same, or nothing where more is to come at this position.
            let origin_follows = messages.get(at + 1).is_some_and(|next| next.data[0] == b'O');
            let more = matches!(message.data[0], b'R' | b'Y') || origin_follows;
            let header = if more { Lsn::INVALID } else { lsn };
            assert_eq!(message.wal_start, header, "{lsn} on {major}, {stream}");
            match decoder.decode(&message.data).unwrap() {
                Message::Begin(begin) => {
                    assert_eq!((begin.xid, open), (xid, None));
                    open = Some((begin.final_lsn, begin.commit_timestamp));
                }
                Message::Commit(commit) => {
                    assert_eq!(commit.end_lsn, lsn);
                    assert_eq!(open.take(), Some((commit.commit_lsn, commit.commit_timestamp)));
                    assert!(commit.commit_lsn < commit.end_lsn);
                }
                Message::Message(logical) => {
                    assert_eq!(logical.lsn, lsn);
                    assert_eq!(logical.transactional, open.is_some() || block.is_some());
                }
                Message::StreamStart(start) => {
                    assert_eq!((start.xid, block), (xid, None));
                    block = Some(xid);
                }
                Message::StreamStop => assert_eq!(block.take(), Some(xid)),
                Message::StreamCommit(commit) => {
                    assert_eq!((commit.xid, commit.end_lsn), (xid, lsn));
                    assert!(commit.commit_lsn < commit.end_lsn);
                }
                Message::StreamAbort(abort) => assert!(abort.xid <= abort.subxid),
                Message::BeginPrepare(prepare) => {
                    assert_eq!((prepare.xid, open), (xid, None));
                    open = Some((prepare.prepare_lsn, prepare.prepare_timestamp));
                }
                Message::Prepare(prepare) => {
                    assert_eq!((prepare.xid, prepare.end_lsn), (xid, lsn));
                    assert_eq!(open.take(), Some((prepare.prepare_lsn, prepare.prepare_timestamp)));
                }
                Message::StreamPrepare(Prepare { xid: prepared, end_lsn, .. }) => {
                    assert_eq!((prepared, end_lsn), (xid, lsn));
                }
                Message::CommitPrepared(commit) => {
                    assert_eq!((commit.xid, commit.end_lsn), (xid, lsn));
                    assert!(commit.commit_lsn < commit.end_lsn);
                }
                Message::RollbackPrepared(rollback) => {
                    assert_eq!((rollback.xid, rollback.rollback_end_lsn), (xid, lsn));
                    assert!(rollback.prepare_end_lsn < rollback.rollback_end_lsn);
                    assert!(rollback.prepare_timestamp < rollback.rollback_timestamp);
                }
                _ => assert!(open.is_some() || block.is_some(), "rows stand in transactions"),
            }
        }
        assert!(open.is_none() && block.is_none());
    }
}

#[test]
fn a_transaction_that_is_rolled_back_while_it_is_told_is_taken_back() {
    for Capture { stream, mut decoder, messages, .. } in captures() {
        if !stream.ends_with("-aborted") {
            continue;
        }
        let (mut parts, mut rolled_back, mut messages_behind) = (BTreeSet::new(), Vec::new(), 0);
        for message in &messages {
            match decoder.decode(&message.data).unwrap() {
                Message::Insert(insert) => drop(parts.insert(insert.xid.unwrap())),
                // Said behind the savepoint, and yet it has the number of the whole.
                Message::Message(said) => {
                    assert_eq!(said.xid, parts.first().copied());
                    messages_behind += 1;
                }
                Message::StreamAbort(abort) => {
                    // Only the newest version says where and when.
                    assert_eq!(abort.abort.is_some(), stream.starts_with("v4"));
                    if let Some(at) = abort.abort {
                        assert_eq!(at.lsn, message.wal_start);
                        assert!(at.timestamp > Timestamp(800_000_000_000_000));
                    }
                    rolled_back.push(abort.subxid);
                }
                _ => {}
            }
        }
        // The savepoint's part, and then all of it, which has the smaller number.
        rolled_back.reverse();
        assert_eq!(parts.into_iter().collect::<Vec<_>>(), rolled_back);
        assert_eq!((rolled_back.len(), messages_behind), (2, 1));
    }
}

/// In words, what stands in `capture.sql`, without what differs from run to run: `told/` holds it for each
/// stream, read against the script by a person, and what a version says otherwise stands beside its captures.
/// With `TOLD=write` the files are made anew, to be read again.
#[test]
fn the_script_is_told_as_it_was_written() {
    for capture in captures() {
        let (major, stream) = (capture.major, capture.stream);
        let told = tell_all(capture);
        let own = fixtures::folder().join(format!("pg{major}/{stream}.told.txt"));
        let shared = fixtures::folder().join(format!("told/{stream}.txt"));
        let expected = match fs::read_to_string(&own) {
            Ok(own) => own,
            Err(_) => fs::read_to_string(&shared).unwrap_or_default(),
        };
        if env::var_os("TOLD").is_some_and(|what| what == "write") && told != expected {
            let file = if expected.is_empty() { shared } else { own };
            fs::write(file, told).unwrap();
        } else {
            let difference = told.lines().zip(expected.lines()).position(|(a, b)| a != b);
            assert!(told == expected, "{major} {stream}, line {difference:?}:\n{told}");
        }
    }
}

#[test]
fn binary_values_are_told_apart_from_text() {
    for Capture { stream, mut decoder, messages, .. } in captures() {
        if stream != "v1-binary" {
            continue;
        }
        let first = messages
            .iter()
            .find_map(|message| match decoder.decode(&message.data).unwrap() {
                Message::Insert(insert) => Some(insert.new),
                _ => None,
            })
            .unwrap();
        let values: Vec<_> = first.values().collect();
        // 12.50 as numeric_send writes it: two digits in base 10,000, weight 0, positive, scale 2.
        let price = b"\0\x02\0\0\0\0\0\x02\0\x0c\x13\x88";
        assert_eq!(
            values,
            [
                Value::Binary(b"\0\0\0\x01"),
                Value::Binary(b"owl"),
                Value::Binary(b"calm"),
                Value::Binary(price)
            ]
        );
        assert_eq!((first.len(), first.values().len(), first.is_empty()), (4, 4, false));
    }
}

/// The line without its numbers, but for the transaction: filled rows differ in no more.
fn kind(line: &str) -> String {
    let (transaction, change) = match line.split_once(' ') {
        Some((transaction, change)) if transaction.starts_with('#') => (transaction, change),
        _ => ("", line),
    };
    format!("{transaction} {}", change.replace(|c: char| c.is_ascii_digit(), ""))
}

fn tell_all(capture: Capture) -> String {
    let Capture { mut decoder, messages, .. } = capture;
    let (mut told, mut names, mut last) = (String::new(), BTreeMap::new(), (String::new(), 0));
    let mut xids: Vec<u32> = Vec::new();
    let mut flush = |(line, times): (String, usize)| match times {
        0 => {}
        1 => told = format!("{told}{line}\n"),
        _ => told = format!("{told}{line}, and {} more like it\n", times - 1),
    };
    for message in &messages {
        let line = tell(decoder.decode(&message.data).unwrap(), &mut names, &mut xids);
        let (kind, last_kind) = (kind(&line), kind(&last.0));
        if kind == last_kind && line.contains("bytes") {
            last.1 += 1;
        } else {
            flush(std::mem::replace(&mut last, (line, 1)));
        }
    }
    flush(last);
    told
}

fn tell(message: Message<'_>, names: &mut BTreeMap<u32, String>, xids: &mut Vec<u32>) -> String {
    let short = |bytes: &[u8]| match bytes.len() {
        100.. => format!("{} bytes", bytes.len()),
        _ => bytes.escape_ascii().to_string().replace("\\\"", "\""),
    };
    let row = |tuple: Tuple<'_>| {
        let values = tuple.values().map(|value| match value {
            Value::Null => "NULL".into(),
            Value::UnchangedToast => "TOAST".into(),
            Value::Text(text) => short(text),
            Value::Binary(bytes) => format!("binary {}", short(bytes)),
        });
        format!(" ({})", values.collect::<Vec<String>>().join(", "))
    };
    let old_row = |old: OldTuple<'_>| match old {
        OldTuple::Key(tuple) => " key".to_owned() + &row(tuple),
        OldTuple::Full(tuple) => " full".to_owned() + &row(tuple),
    };
    // Transactions by the order in which they are named.
    let mut name = |xid: u32| match xids.iter().position(|known| *known == xid) {
        Some(at) => format!("#{at}"),
        None => {
            xids.push(xid);
            format!("#{}", xids.len() - 1)
        }
    };
    let mut of = |xid: Option<u32>| xid.map_or(String::new(), |xid| name(xid) + " ");
    // What came from elsewhere says when it committed there; the rest happened at capture.
    let at = |timestamp: Timestamp| match timestamp < Timestamp(770_000_000_000_000) {
        true => format!(" at {}", timestamp.0),
        false => String::new(),
    };
    match message {
        Message::Begin(begin) => format!("Begin{}", at(begin.commit_timestamp)),
        Message::Commit(_) => "Commit".into(),
        Message::Message(message) => {
            let content = match short(message.content) {
                long if long.ends_with("bytes") => long,
                short => format!("'{short}'"),
            };
            let prefix = short(message.prefix);
            format!("{}Message {} {prefix} {content}", of(message.xid), message.transactional)
        }
        Message::Origin(origin) => format!("Origin {} {}", short(origin.name), origin.commit_lsn),
        Message::Type(kind) => {
            format!("{}Type {}.{}", of(kind.xid), short(kind.namespace), short(kind.name))
        }
        Message::Relation(relation) => {
            names.insert(relation.id, short(relation.name));
            let (namespace, name) = (short(relation.namespace), short(relation.name));
            let identity = relation.replica_identity;
            let mut told = format!("{}Relation {namespace}.{name} {identity:?}", of(relation.xid));
            for column in relation.columns.iter() {
                told = told + " " + &short(column.name) + if column.key { "!" } else { "" };
                if column.type_modifier != -1 {
                    told += &format!("/{}", column.type_modifier);
                }
            }
            told
        }
        Message::Insert(insert) => {
            format!("{}Insert {}{}", of(insert.xid), names[&insert.relation], row(insert.new))
        }
        Message::Update(update) => {
            let old = update.old.map(old_row).unwrap_or_default();
            let table = &names[&update.relation];
            format!("{}Update {table}{old}{}", of(update.xid), row(update.new))
        }
        Message::Delete(delete) => {
            format!("{}Delete {}{}", of(delete.xid), names[&delete.relation], old_row(delete.old))
        }
        Message::Truncate(truncate) => {
            let mut told = of(truncate.xid) + "Truncate";
            told += if truncate.cascade { " cascade" } else { "" };
            told += if truncate.restart_identity { " restart identity" } else { "" };
            assert_eq!(truncate.relations.len(), truncate.relations.iter().len());
            truncate.relations.iter().for_each(|id| told = format!("{told} {}", names[&id]));
            told
        }
        Message::StreamStart(start) => {
            let first = if start.first_segment { " first" } else { "" };
            format!("StreamStart {}{first}", of(Some(start.xid)).trim())
        }
        Message::StreamStop => "StreamStop".into(),
        Message::StreamCommit(commit) => {
            let at = at(commit.commit_timestamp);
            format!("StreamCommit {}{at}", of(Some(commit.xid)).trim())
        }
        Message::StreamAbort(abort) => {
            let at = if abort.abort.is_some() { ", with place and time" } else { "" };
            format!("StreamAbort {}{}{at}", of(Some(abort.xid)), of(Some(abort.subxid)).trim())
        }
        Message::BeginPrepare(prepare) => format!("BeginPrepare '{}'", short(prepare.gid)),
        Message::Prepare(prepare) => format!("Prepare '{}'", short(prepare.gid)),
        Message::CommitPrepared(commit) => format!("CommitPrepared '{}'", short(commit.gid)),
        Message::RollbackPrepared(rollback) => {
            format!("RollbackPrepared '{}'", short(rollback.gid))
        }
        Message::StreamPrepare(prepare) => {
            format!("StreamPrepare {}'{}'", of(Some(prepare.xid)), short(prepare.gid))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_kind_of_message_was_captured() {
    let (mut seen, mut seen_in_blocks) = (BTreeMap::new(), BTreeMap::new());
    for Capture { major, messages, .. } in captures() {
        let mut in_block = false;
        for message in messages {
            let tag = message.data[0];
            let seen = if in_block { &mut seen_in_blocks } else { &mut seen };
            seen.entry(tag).or_insert_with(BTreeSet::new).insert(major);
            in_block = tag == b'S' || in_block && tag != b'E';
        }
    }
    for (seen, tags, from) in [
        (&seen, &b"BCMORYIUDTScA"[..], 14),
        (&seen, b"bPKrp", 15),
        (&seen_in_blocks, b"MORYIUDTE", 14),
    ] {
        for tag in tags {
            let on: Vec<u32> = seen[tag].iter().copied().collect();
            let majors = fixtures::MAJORS.into_iter().filter(|major| *major >= from);
            assert_eq!(on, majors.collect::<Vec<_>>(), "{}", char::from(*tag));
        }
    }
}

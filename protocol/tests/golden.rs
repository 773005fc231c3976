//! What a real server sent is understood, and can be said again byte for byte.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]

mod fixtures;

use bytes::BytesMut;
use factlib_protocol::{
    Frame, Lsn, Timestamp, backend, frontend,
    pgoutput::{Columns, Decoder, Message, OldTuple, ReplicaIdentity, Tuple, Value},
    replication::{self, StandbyStatusUpdate, TimelineSwitch},
};
use fixtures::Speaker;

#[test]
fn what_is_decoded_can_be_said_again_byte_for_byte() {
    for message in fixtures::pgoutput().into_iter().flatten() {
        let decoded = Decoder::default().decode(&message.data).unwrap();
        let mut out = BytesMut::from(&b"before"[..]);
        decoded.encode(&mut out).unwrap();
        assert_eq!(out[6..], message.data, "{decoded:?}");
    }
}

#[test]
fn what_is_walked_can_be_built_again_byte_for_byte() {
    for message in fixtures::pgoutput().into_iter().flatten() {
        let mut decoded = Decoder::default().decode(&message.data).unwrap();
        let (mut old, mut new) = (BytesMut::new(), BytesMut::new());
        fn rebuild<'a>(tuple: &mut Tuple<'a>, out: &'a mut BytesMut) {
            Tuple::encode(&tuple.values().collect::<Vec<_>>(), out).unwrap();
            *tuple = Tuple::decode(out).unwrap();
        }
        fn rebuild_old<'a>(old: &mut OldTuple<'a>, out: &'a mut BytesMut) {
            match old {
                OldTuple::Key(tuple) | OldTuple::Full(tuple) => rebuild(tuple, out),
            }
        }
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
                Columns::encode(&relation.columns.iter().collect::<Vec<_>>(), &mut new).unwrap();
                relation.columns = Columns::decode(&new).unwrap();
            }
            _ => {}
        }
        let mut out = BytesMut::new();
        decoded.encode(&mut out).unwrap();
        assert_eq!(out[..], message.data, "{decoded:?}");
    }
}

/// The server's own columns are the oracle: two fields that change places would go unnoticed above.
#[test]
fn positions_and_transactions_are_those_the_server_files_messages_under() {
    let mut order = Vec::new();
    for messages in fixtures::pgoutput() {
        let mut open = None;
        for message in &messages {
            match Decoder::default().decode(&message.data).unwrap() {
                Message::Begin(begin) => {
                    assert_eq!(begin.xid, message.xid);
                    open = Some(begin);
                }
                Message::Commit(commit) => {
                    let begin = open.take().unwrap();
                    assert_eq!(commit.end_lsn, message.lsn);
                    assert_eq!(commit.commit_lsn, begin.final_lsn);
                    assert_eq!(commit.commit_timestamp, begin.commit_timestamp);
                    assert!(commit.commit_lsn < commit.end_lsn);
                    order.push(commit.end_lsn);
                }
                Message::Message(logical) => {
                    assert_eq!(logical.lsn, message.lsn);
                    assert_eq!(logical.transactional, open.is_some());
                }
                _ => assert!(open.is_some(), "rows stand inside transactions"),
            }
        }
        assert!(open.is_none());
        assert!(order.is_sorted());
        order.clear();
    }
}

/// `capture.sql`, line by line, without what differs from run to run. For a domain, the server names the
/// type beneath it.
const TOLD: &str = "\
Message false orders 'not of this transaction'
Begin
Message true orders '{\"id\":\"1\",\"type\":\"placed\"}'
Message true  '\\x00\\xff\\x00'
Message true \\xc3\\xa9 ''
Message true long 300 bytes
Commit
Begin
Type public.mood
Relation public.by_key Default id! name feeling price/655366
Insert by_key (1, owl, calm, 12.50)
Insert by_key (2, NULL, NULL, NULL)
Insert by_key (3, , alert, -0.01)
Commit
Begin
Update by_key (1, eagle owl, calm, 12.50)
Commit
Begin
Update by_key key (2, NULL, NULL, NULL) (4, NULL, NULL, NULL)
Commit
Begin
Delete by_key key (3, NULL, NULL, NULL)
Commit
Begin
Relation public.by_full Full id! name!
Insert by_full (1, a)
Insert by_full (NULL, NULL)
Commit
Begin
Update by_full full (1, a) (1, b)
Commit
Begin
Delete by_full full (NULL, NULL)
Delete by_full full (1, b)
Commit
Begin
Relation public.by_index Index a b!/24 c
Insert by_index (1, k, 2024-02-29 12:34:56.789012+00)
Commit
Begin
Update by_index key (NULL, k, NULL) (1, l, 2024-02-29 12:34:56.789012+00)
Commit
Begin
Delete by_index key (NULL, l, NULL)
Commit
Begin
Type .int4
Relation public.by_nothing Nothing n
Insert by_nothing (7)
Commit
Begin
Relation public.wide Default id! big small
Insert wide (1, 3000 bytes, s)
Commit
Begin
Update wide (1, TOAST, unchanged)
Commit
Begin
Update wide key (1, NULL, NULL) (2, TOAST, unchanged)
Commit
Begin
Relation public.child Default id! parent
Insert child (1, 1)
Insert child (2, 4)
Commit
Begin
Type public.mood
Relation public.by_key Default id! name feeling price/655366
Relation public.child Default id! parent
Truncate restart identity by_key child
Commit
Begin
Relation public.by_full Full id! name!
Truncate by_full
Commit
Begin
Type public.mood
Relation public.by_key Default id! name feeling price/655366
Relation public.child Default id! parent
Truncate cascade by_key child
Commit
Begin at 762525296789012
Origin elsewhere AB/CDEF
Insert by_nothing (8)
Commit
";

#[test]
fn the_script_is_told_as_it_was_written() {
    let [text, _] = fixtures::pgoutput();
    let mut told = String::new();
    let mut names = std::collections::BTreeMap::new();
    for message in &text {
        told += &tell(Decoder::default().decode(&message.data).unwrap(), &mut names);
        told.push('\n');
    }
    assert!(told.lines().eq(TOLD.lines()), "{told}");
}

#[test]
fn binary_values_are_told_apart_from_text() {
    let [_, binary] = fixtures::pgoutput();
    let first = binary
        .iter()
        .find_map(|message| match Decoder::default().decode(&message.data).unwrap() {
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

fn tell(message: Message<'_>, names: &mut std::collections::BTreeMap<u32, String>) -> String {
    let short = |bytes: &[u8]| match bytes.len() {
        100.. => format!("{} bytes", bytes.len()),
        _ => bytes.escape_ascii().to_string().replace("\\\"", "\""),
    };
    let row = |tuple: Tuple<'_>| {
        let values = tuple.values().map(|value| match value {
            Value::Null => "NULL".into(),
            Value::UnchangedToast => "TOAST".into(),
            Value::Text(text) => short(text),
            Value::Binary(_) => "binary".into(),
        });
        format!(" ({})", values.collect::<Vec<String>>().join(", "))
    };
    let old_row = |old: OldTuple<'_>| match old {
        OldTuple::Key(tuple) => " key".to_owned() + &row(tuple),
        OldTuple::Full(tuple) => " full".to_owned() + &row(tuple),
    };
    match message {
        // The last transaction says when its origin committed; the others happened at capture.
        Message::Begin(begin) if begin.commit_timestamp < Timestamp(770_000_000_000_000) => {
            format!("Begin at {}", begin.commit_timestamp.0)
        }
        Message::Begin(_) => "Begin".into(),
        Message::Commit(_) => "Commit".into(),
        Message::Message(message) => {
            let content = match short(message.content) {
                long if long.ends_with("bytes") => long,
                short => format!("'{short}'"),
            };
            format!("Message {} {} {content}", message.transactional, short(message.prefix))
        }
        Message::Origin(origin) => format!("Origin {} {}", short(origin.name), origin.commit_lsn),
        Message::Type(kind) => format!("Type {}.{}", short(kind.namespace), short(kind.name)),
        Message::Relation(relation) => {
            names.insert(relation.id, short(relation.name));
            let (namespace, name) = (short(relation.namespace), short(relation.name));
            let identity: ReplicaIdentity = relation.replica_identity;
            let mut told = format!("Relation {namespace}.{name} {identity:?}");
            for column in relation.columns.iter() {
                told = told + " " + &short(column.name) + if column.key { "!" } else { "" };
                if column.type_modifier != -1 {
                    told += &format!("/{}", column.type_modifier);
                }
            }
            told
        }
        Message::Insert(insert) => format!("Insert {}{}", names[&insert.relation], row(insert.new)),
        Message::Update(update) => {
            let old = update.old.map(old_row).unwrap_or_default();
            format!("Update {}{old}{}", names[&update.relation], row(update.new))
        }
        Message::Delete(delete) => {
            format!("Delete {}{}", names[&delete.relation], old_row(delete.old))
        }
        Message::Truncate(truncate) => {
            let mut told = String::from("Truncate");
            told += if truncate.cascade { " cascade" } else { "" };
            told += if truncate.restart_identity { " restart identity" } else { "" };
            assert_eq!(truncate.relations.len(), truncate.relations.iter().len());
            truncate.relations.iter().for_each(|id| told = format!("{told} {}", names[&id]));
            told
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_message_of_the_server_can_be_said_again_byte_for_byte() {
    for message in fixtures::server_messages() {
        let frame = Frame::decode(&message, 30_000).unwrap().unwrap();
        assert_eq!(frame.encoded_len(), message.len());
        let decoded = backend::Message::decode(frame).unwrap();
        let mut out = BytesMut::new();
        decoded.encode(&mut out).unwrap();
        assert_eq!(out[..], message, "{decoded:?}");
        assert_eq!(decoded.tag(), frame.tag);

        // Built from its parts as well.
        out.clear();
        match decoded {
            backend::Message::DataRow(row) => {
                backend::DataRow::encode(&row.columns().collect::<Vec<_>>(), &mut out).unwrap();
            }
            backend::Message::RowDescription(description) => {
                let fields = description.fields().collect::<Vec<_>>();
                backend::RowDescription::encode(&fields, &mut out).unwrap();
            }
            backend::Message::ErrorResponse(fields) => {
                backend::ErrorFields::encode(&fields.iter().collect::<Vec<_>>(), &mut out).unwrap();
            }
            backend::Message::CopyData(payload) => {
                replication::Message::decode(payload).unwrap().encode(&mut out).unwrap();
            }
            _ => continue,
        }
        assert_eq!(out[..], message, "{decoded:?}");
    }
}

#[test]
fn a_stream_is_opened_and_read_as_pg_recvlogical_does() {
    let session = fixtures::session(fixtures::STREAM);
    let said = |speaker| {
        session.iter().filter(move |(who, _)| *who == speaker).map(|(_, message)| &message[..])
    };

    let mut commands = BytesMut::new();
    frontend::query(replication::identify_system(), &mut commands).unwrap();
    let options = [("proto_version", "1"), ("publication_names", "facts"), ("messages", "true")];
    let start = replication::start_logical("recorded", Lsn::INVALID, &options);
    frontend::query(&start, &mut commands).unwrap();
    let queries: Vec<&[u8]> = said(Speaker::Client).filter(|message| message[0] == b'Q').collect();
    assert_eq!(queries[queries.len() - 2..].concat(), commands);

    let mut facts = Vec::new();
    for message in said(Speaker::Server) {
        let frame = Frame::decode(message, 30_000).unwrap().unwrap();
        match backend::Message::decode(frame).unwrap() {
            backend::Message::DataRow(row) if row.len() == 4 => {
                let columns: Vec<_> = row.columns().collect();
                assert_eq!(columns[1..], [Some(&b"1"[..]), Some(b"0/21EB6B8"), Some(b"owl")]);
            }
            backend::Message::CopyData(payload) => match replication::Message::decode(payload)
                .unwrap()
            {
                replication::Message::XLogData(piece) => {
                    assert!(piece.server_clock > Timestamp(0) && piece.wal_end == piece.wal_start);
                    if let Message::Message(fact) = Decoder::default().decode(piece.data).unwrap() {
                        assert_eq!(fact.lsn, piece.wal_start);
                        facts.push((fact.lsn.to_string(), fact.content.to_vec()));
                    }
                }
                replication::Message::PrimaryKeepalive(keepalive) => {
                    assert!(!keepalive.reply_requested)
                }
                other => panic!("{other:?}"),
            },
            _ => {}
        }
    }
    // What pg_logical_emit_message returned when this was recorded.
    let expected = [("0/21EB608", "one"), ("0/21EB648", "two"), ("0/21EB6B8", "three")];
    assert_eq!(facts, expected.map(|(lsn, content)| (lsn.to_owned(), content.as_bytes().to_vec())));
}

#[test]
fn status_updates_are_written_as_pg_recvlogical_writes_them() {
    let mut seen = Vec::new();
    for (speaker, message) in fixtures::session(fixtures::STREAM) {
        if speaker == Speaker::Client && message[0] == b'd' {
            let status = StandbyStatusUpdate::decode(&message[5..]).unwrap();
            let mut out = BytesMut::new();
            status.encode(&mut out);
            assert_eq!(out[..], message);
            assert_eq!(out.len(), StandbyStatusUpdate::ENCODED_LEN);
            seen.push((status.write, status.flush, status.apply, status.reply_requested));
        }
    }
    let end = Lsn(0x21E_B6B8);
    let zero = Lsn::INVALID;
    assert_eq!(seen, [(zero, zero, zero, false), (end, end, zero, false)]);
}

#[test]
fn two_promotions_are_read_from_their_history() {
    let switch = |timeline, lsn: &str| TimelineSwitch { timeline, switch: lsn.parse().unwrap() };
    assert_eq!(
        replication::timeline_switches(fixtures::HISTORY),
        Ok(vec![switch(1, "0/222F4E8"), switch(2, "0/222F640")])
    );
}

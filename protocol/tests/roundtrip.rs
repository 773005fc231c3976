//! Whatever can be said is read as it was meant, and said again in the same bytes.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use bytes::BytesMut;
use factlib_protocol::{
    EncodeError, Frame, Lsn, Timestamp,
    backend::{
        Authentication, CopyFormats, DataRow, ErrorFields, Field, Formats, Message, Oids,
        RowDescription, Strings, TransactionStatus,
    },
    frontend::{self, FirstMessage, SaslInitialResponse, Target},
    replication::{
        self, CreatedSlot, HotStandbyFeedback, IdentifySystem, NextTimeline, PrimaryKeepalive,
        ReadSlot, StandbyMessage, StandbyStatusUpdate, TimelineHistory, XLogData,
    },
};
use proptest::{collection::vec, option, prelude::*};

/// What a zero-terminated string can hold.
fn cstr() -> impl Strategy<Value = Vec<u8>> {
    vec(1..=u8::MAX, 0..20)
}

fn text() -> impl Strategy<Value = String> {
    "[^\0]{0,20}"
}

fn name() -> impl Strategy<Value = String> {
    "[^\0]{1,20}"
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..40)
}

fn values() -> impl Strategy<Value = Vec<Option<Vec<u8>>>> {
    vec(option::of(bytes()), 0..6)
}

fn lsn() -> impl Strategy<Value = Lsn> {
    any::<u64>().prop_map(Lsn)
}

fn clock() -> impl Strategy<Value = Timestamp> {
    any::<i64>().prop_map(Timestamp)
}

fn borrowed(values: &[Option<Vec<u8>>]) -> Vec<Option<&[u8]>> {
    values.iter().map(Option::as_deref).collect()
}

fn frame(bytes: &[u8]) -> Frame<'_> {
    let frame = Frame::decode(bytes, 1 << 20).unwrap().unwrap();
    assert_eq!(frame.encoded_len(), bytes.len());
    frame
}

/// What the server's message is when it arrives; it is the same bytes when it is said again.
fn heard(bytes: &[u8]) -> Message<'_> {
    let message = Message::decode(frame(bytes)).unwrap();
    let mut again = BytesMut::new();
    message.encode(&mut again).unwrap();
    assert_eq!(again, bytes);
    message
}

fn there_and_back(message: Message<'_>) {
    let mut out = BytesMut::new();
    message.encode(&mut out).unwrap();
    assert_eq!(heard(&out), message);
}

/// The same for a client's message, which `write` says.
fn told(
    write: impl FnOnce(&mut BytesMut) -> Result<(), EncodeError>,
    check: impl FnOnce(frontend::Message<'_>),
) {
    let mut out = BytesMut::new();
    write(&mut out).unwrap();
    let message = frontend::Message::decode(frame(&out)).unwrap();
    let mut again = BytesMut::new();
    message.encode(&mut again).unwrap();
    assert_eq!(again, out);
    check(message);
}

/// The same for the first message.
fn told_first(
    write: impl FnOnce(&mut BytesMut) -> Result<(), EncodeError>,
    check: impl FnOnce(FirstMessage<'_>),
) {
    let mut out = BytesMut::new();
    write(&mut out).unwrap();
    let (message, len) = FirstMessage::decode(&out, 1 << 20).unwrap().unwrap();
    assert_eq!(len, out.len());
    let mut again = BytesMut::new();
    message.encode(&mut again).unwrap();
    assert_eq!(again, out);
    check(message);
}

fn answer(said: frontend::Message<'_>) -> frontend::PasswordMessage<'_> {
    match said {
        frontend::Message::Password(answer) => answer,
        other => panic!("{other:?}"),
    }
}

proptest! {
    #[test]
    fn steps_of_authentication(
        salt: [u8; 4],
        mechanisms in vec(name(), 1..4),
        data in bytes(),
        code in 13u32..,
    ) {
        let list: String = mechanisms.iter().map(|name| format!("{name}\0")).collect();
        let list = Strings::new(list.as_bytes()).unwrap();
        prop_assert!(list.iter().eq(mechanisms.iter().map(String::as_str)));
        for step in [
            Authentication::Ok,
            Authentication::CleartextPassword,
            Authentication::Md5Password { salt },
            Authentication::Sasl(list),
            Authentication::SaslContinue(&data),
            Authentication::SaslFinal(&data),
            Authentication::Other { code, data: &data },
        ] {
            there_and_back(Message::Authentication(step));
        }
    }

    #[test]
    fn the_servers_short_messages(
        process_id: u32,
        secret_key in vec(any::<u8>(), 4..=256),
        version: u32,
        options in vec(name(), 0..4),
        tag in text(),
        value in cstr(),
        payload in bytes(),
        result in option::of(bytes()),
    ) {
        let list: String = options.iter().map(|name| format!("{name}\0")).collect();
        let unrecognized = Strings::new(list.as_bytes()).unwrap();
        for message in [
            Message::BackendKeyData { process_id, secret_key: &secret_key },
            Message::NegotiateProtocolVersion { version, unrecognized },
            Message::CommandComplete(&tag),
            Message::CopyData(&payload),
            Message::CopyDone,
            Message::EmptyQueryResponse,
            Message::ParseComplete,
            Message::BindComplete,
            Message::CloseComplete,
            Message::NoData,
            Message::PortalSuspended,
            Message::FunctionCallResponse(result.as_deref()),
            Message::ParameterStatus { name: &tag, value: &value },
            Message::ReadyForQuery(TransactionStatus::Idle),
            Message::ReadyForQuery(TransactionStatus::Open),
            Message::ReadyForQuery(TransactionStatus::Failed),
            Message::NotificationResponse { process_id, channel: &value, payload: &value },
        ] {
            there_and_back(message);
        }
    }

    #[test]
    fn formats_and_types(codes in vec(any::<i16>(), 0..9), oids in vec(any::<u32>(), 0..9), binary: bool) {
        let raw: Vec<u8> = codes.iter().flat_map(|code| code.to_be_bytes()).collect();
        let columns = Formats::new(&raw).unwrap();
        prop_assert!(columns.iter().eq(codes));
        let formats = CopyFormats { binary, columns };
        there_and_back(Message::CopyInResponse(formats));
        there_and_back(Message::CopyOutResponse(formats));
        there_and_back(Message::CopyBothResponse(formats));
        let raw: Vec<u8> = oids.iter().flat_map(|oid| oid.to_be_bytes()).collect();
        let types = Oids::new(&raw).unwrap();
        prop_assert!(types.iter().eq(oids));
        there_and_back(Message::ParameterDescription(types));
    }

    #[test]
    fn rows(columns in values()) {
        let columns = borrowed(&columns);
        let mut out = BytesMut::new();
        DataRow::encode(&columns, &mut out).unwrap();
        let Message::DataRow(row) = heard(&out) else { panic!() };
        prop_assert!(row.columns().eq(columns.iter().copied()));
        prop_assert_eq!((row.len(), row.is_empty()), (columns.len(), columns.is_empty()));
    }

    #[test]
    fn descriptions_of_rows(
        fields in vec((cstr(), any::<(u32, i16, u32)>(), any::<(i16, i32, i16)>()), 0..6),
    ) {
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, (table, attribute, type_oid), (type_len, type_modifier, format))| Field {
                name,
                table: *table,
                attribute: *attribute,
                type_oid: *type_oid,
                type_len: *type_len,
                type_modifier: *type_modifier,
                format: *format,
            })
            .collect();
        let mut out = BytesMut::new();
        RowDescription::encode(&fields, &mut out).unwrap();
        let Message::RowDescription(description) = heard(&out) else { panic!() };
        prop_assert!(description.fields().eq(fields.iter().copied()));
    }

    #[test]
    fn errors_and_notices(fields in vec((1..=u8::MAX, cstr()), 0..6)) {
        let fields: Vec<_> = fields.iter().map(|(code, text)| (*code, &text[..])).collect();
        let mut out = BytesMut::new();
        ErrorFields::encode(&fields, &mut out).unwrap();
        let Message::ErrorResponse(said) = heard(&out) else { panic!() };
        prop_assert!(said.iter().eq(fields.iter().copied()));
        let mut out = BytesMut::new();
        ErrorFields::encode_notice(&fields, &mut out).unwrap();
        prop_assert!(matches!(heard(&out), Message::NoticeResponse(again) if again == said));
    }

    #[test]
    fn first_messages(
        version in prop::sample::select(vec![frontend::PROTOCOL_3_0, frontend::PROTOCOL_3_2]),
        params in vec((name(), text()), 0..5),
        process_id: u32,
        secret_key in vec(any::<u8>(), 4..=256),
    ) {
        let params: Vec<_> = params.iter().map(|(name, value)| (&**name, &**value)).collect();
        told_first(
            |out| frontend::startup_at(version, params.iter().copied(), out),
            |message| {
                let FirstMessage::StartupMessage(startup) = message else { panic!("{message:?}") };
                assert_eq!(startup.version, version);
                let params = params.iter().map(|(name, value)| (*name, value.as_bytes()));
                assert!(startup.params().eq(params));
            },
        );
        told_first(
            |out| frontend::cancel_request(process_id, &secret_key, out),
            |message| {
                let secret_key = &secret_key[..];
                assert_eq!(message, FirstMessage::CancelRequest { process_id, secret_key });
            },
        );
    }

    #[test]
    fn the_clients_short_messages(
        name in text(),
        rows_max: i32,
        payload in bytes(),
        is_portal: bool,
    ) {
        use frontend::Message;
        let target = if is_portal { Target::Portal } else { Target::Statement };
        let text = name.as_bytes();
        told(|out| frontend::query(&name, out), |said| assert_eq!(said, Message::Query(text)));
        told(|out| frontend::copy_fail(&name, out), |said| assert_eq!(said, Message::CopyFail(text)));
        told(
            |out| frontend::copy_data(&payload, out),
            |said| assert_eq!(said, Message::CopyData(&payload)),
        );
        told(
            |out| frontend::describe(target, &name, out),
            |said| assert_eq!(said, Message::Describe { target, name: text }),
        );
        told(
            |out| frontend::close(target, &name, out),
            |said| assert_eq!(said, Message::Close { target, name: text }),
        );
        told(
            |out| frontend::execute(&name, rows_max, out),
            |said| assert_eq!(said, Message::Execute { portal: text, rows_max }),
        );
    }

    #[test]
    fn answers_to_authentication(mechanism in text(), password in cstr(), data in bytes()) {
        told(
            |out| frontend::password(&password, out),
            |said| assert_eq!(answer(said).password(), Ok(&password[..])),
        );
        told(
            |out| frontend::sasl_initial_response(&mechanism, &data, out),
            |said| {
                let expected = SaslInitialResponse { mechanism: &mechanism, data: Some(&data) };
                assert_eq!(answer(said).sasl_initial_response(), Ok(expected));
            },
        );
        told(|out| frontend::sasl_response(&data, out), |said| assert_eq!(answer(said).0, data));
    }

    #[test]
    fn statements_and_their_parameters(
        name in text(),
        sql in text(),
        oids in vec(any::<u32>(), 0..6),
        formats in vec(any::<i16>(), 0..6),
        values in values(),
        format: i16,
    ) {
        let values = borrowed(&values);
        told(
            |out| frontend::parse(&name, &sql, &oids, out),
            |said| {
                let frontend::Message::Parse(parse) = said else { panic!("{said:?}") };
                assert_eq!((parse.name, parse.sql), (name.as_bytes(), sql.as_bytes()));
                assert!(parse.types.iter().eq(oids.iter().copied()));
            },
        );
        told(
            |out| frontend::bind(&sql, &name, &formats, &values, &[format], out),
            |said| {
                let frontend::Message::Bind(bind) = said else { panic!("{said:?}") };
                assert_eq!((bind.portal, bind.statement), (sql.as_bytes(), name.as_bytes()));
                assert!(bind.formats.iter().eq(formats.iter().copied()));
                assert!(bind.values.iter().eq(values.iter().copied()));
                assert!(bind.result_formats.iter().eq([format]));
            },
        );
        told(
            |out| frontend::function_call(7, &formats, &values, format, out),
            |said| {
                let frontend::Message::FunctionCall(call) = said else { panic!("{said:?}") };
                assert_eq!((call.function, call.result_format), (7, format));
                assert!(call.formats.iter().eq(formats.iter().copied()));
                assert!(call.arguments.iter().eq(values.iter().copied()));
            },
        );
    }

    #[test]
    fn what_is_said_inside_of_copy_data(
        (write, flush, apply) in (lsn(), lsn(), lsn()),
        clock in clock(),
        reply_requested: bool,
        (xmin, xmin_epoch, catalog_xmin, catalog_xmin_epoch) in any::<(u32, u32, u32, u32)>(),
        data in bytes(),
    ) {
        for message in [
            replication::Message::XLogData(XLogData {
                wal_start: write,
                wal_end: flush,
                server_clock: clock,
                data: &data,
            }),
            replication::Message::PrimaryKeepalive(PrimaryKeepalive {
                wal_end: write,
                server_clock: clock,
                reply_requested,
            }),
        ] {
            let mut out = BytesMut::new();
            message.encode(&mut out).unwrap();
            let Message::CopyData(payload) = heard(&out) else { panic!() };
            prop_assert_eq!(replication::Message::decode(payload), Ok(message));
        }
        for message in [
            StandbyMessage::StatusUpdate(StandbyStatusUpdate {
                write,
                flush,
                apply,
                clock,
                reply_requested,
            }),
            StandbyMessage::HotStandbyFeedback(HotStandbyFeedback {
                clock,
                xmin,
                xmin_epoch,
                catalog_xmin,
                catalog_xmin_epoch,
            }),
        ] {
            told(
                |out| {
                    message.encode(out);
                    Ok(())
                },
                |said| {
                    let frontend::Message::CopyData(payload) = said else { panic!("{said:?}") };
                    assert_eq!(StandbyMessage::decode(payload), Ok(message));
                },
            );
        }
    }

    #[test]
    fn answers_to_commands(
        systemid: u64,
        timeline: u32,
        position in lsn(),
        restart in option::of((lsn(), any::<u32>())),
        name in option::of(text()),
        content in bytes(),
    ) {
        let read = |columns: &[Option<&[u8]>], check: &dyn Fn(DataRow<'_>)| {
            let mut out = BytesMut::new();
            DataRow::encode(columns, &mut out).unwrap();
            let Message::DataRow(row) = heard(&out) else { panic!() };
            check(row);
        };
        let (id, tli, at) = (systemid.to_string(), timeline.to_string(), position.to_string());
        let (id, tli, at) = (Some(id.as_bytes()), Some(tli.as_bytes()), Some(at.as_bytes()));
        let bytes = name.as_deref().map(str::as_bytes);
        read(&[id, tli, at, bytes], &|row| {
            let expected = IdentifySystem { systemid, timeline, xlogpos: position, dbname: bytes };
            assert_eq!(IdentifySystem::read(row), Ok(expected));
        });
        read(&[Some(b"s"), at, bytes, bytes], &|row| {
            let expected = CreatedSlot {
                name: "s",
                consistent_point: position,
                snapshot_name: name.as_deref(),
                output_plugin: name.as_deref(),
            };
            assert_eq!(CreatedSlot::read(row), Ok(expected));
        });
        let (restart_lsn, restart_tli) = restart.unzip();
        let texts = restart.map(|(lsn, timeline)| (lsn.to_string(), timeline.to_string()));
        let (lsn, tli_text) = texts.unzip();
        let columns = [bytes, lsn.as_deref().map(str::as_bytes), tli_text.as_deref().map(str::as_bytes)];
        read(&columns, &|row| {
            let slot = |slot_type| ReadSlot { slot_type, restart_lsn, restart_tli };
            assert_eq!(ReadSlot::read(row), Ok(name.as_deref().map(slot)));
        });
        read(&[Some(b"f"), Some(&content)], &|row| {
            let expected = TimelineHistory { filename: "f", content: &content };
            assert_eq!(TimelineHistory::read(row), Ok(expected));
        });
        read(&[tli, at], &|row| {
            let expected = NextTimeline { next_tli: timeline, next_tli_startpos: position };
            assert_eq!(NextTimeline::read(row), Ok(expected));
        });
    }
}

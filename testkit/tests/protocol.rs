//! What the protocol crate says is understood by a real server, and what that answers is read: every
//! replication command in the words of the server's version, and the extended query protocol.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
#![allow(clippy::print_stderr, reason = "what was said is shown when a test fails")]

use bytes::BytesMut;
use factlib_protocol::{
    EncodeError, Frame, Lsn, Timestamp,
    backend::{
        CopyFormats, DataRow, Formats, Message, ServerError, SqlState, TransactionStatus, class,
    },
    frontend::{self, Target},
    handshake::{Credentials, Handshake, Progress, Startup},
    replication::{
        self, CreatedSlot, HotStandbyFeedback, IdentifySystem, NextTimeline, ReadSlot, SlotKind,
        Snapshot, StandbyStatusUpdate, TimelineHistory, alter_slot, create_slot, drop_slot,
        identify_system, quote_identifier, read_slot, show, start_logical, start_physical,
        timeline_history, timeline_switches,
    },
};
use std::fs::Permissions;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;
use testkit::{Mode, Postgres, wait};

/// A client that does nothing by itself.
struct Client {
    socket: TcpStream,
    received: BytesMut,
    out: BytesMut,
}

impl Client {
    fn connect(postgres: &Postgres, replication: Option<&str>) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", postgres.port())).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let (received, mut out) = (BytesMut::new(), BytesMut::new());
        let params: Vec<_> = replication.map(|value| ("replication", value)).into_iter().collect();
        let startup = Startup {
            user: "postgres",
            database: Some("app"),
            params: &params,
            ..Startup::default()
        };
        let credentials = Credentials::default();
        let mut handshake =
            Handshake::start(startup, credentials, "nonce".into(), &mut out).unwrap();
        let mut client = Self { socket, received, out };
        client.send();
        let mut out = BytesMut::new();
        while client.next(|message| handshake.handle(message, &mut out).unwrap()) != Progress::Ready
        {
        }
        client
    }

    fn send(&mut self) {
        self.socket.write_all(&self.out.split()).unwrap();
    }

    /// Waits for a message. Each is the same bytes when it is said again.
    fn next<T>(&mut self, read: impl FnOnce(Message<'_>) -> T) -> T {
        let len = loop {
            if let Some(frame) = Frame::decode(&self.received, 1 << 20).unwrap() {
                break frame.encoded_len();
            }
            let mut piece = [0; 8192];
            let len = self.socket.read(&mut piece).unwrap();
            assert!(len > 0, "the server hung up");
            self.received.extend_from_slice(&piece[..len]);
        };
        let bytes = self.received.split_to(len);
        let message = Message::decode(Frame::decode(&bytes, 1 << 20).unwrap().unwrap()).unwrap();
        let mut again = BytesMut::new();
        message.encode(&mut again).unwrap();
        assert_eq!(again, bytes);
        read(message)
    }

    /// Sends a command and gives what `read` makes of its rows.
    fn ask<T>(
        &mut self,
        command: &str,
        read: impl FnMut(DataRow<'_>) -> T,
    ) -> Result<Vec<T>, ServerError> {
        frontend::query(command, &mut self.out).unwrap();
        self.send();
        let answer = self.answer(read);
        eprintln!(
            "{command}: {}",
            answer.as_ref().map_or_else(ToString::to_string, |_| "ok".into())
        );
        answer
    }

    fn answer<T>(&mut self, mut read: impl FnMut(DataRow<'_>) -> T) -> Result<Vec<T>, ServerError> {
        let (mut rows, mut error) = (Vec::new(), None);
        while !self.next(|message| {
            match message {
                Message::DataRow(row) => rows.push(read(row)),
                Message::ErrorResponse(fields) => error = Some(fields.to_error()),
                _ => {}
            }
            matches!(message, Message::ReadyForQuery(_))
        }) {}
        error.map_or(Ok(rows), Err)
    }

    /// Sends a command that gives one row.
    fn one<T>(&mut self, command: &str, read: impl FnMut(DataRow<'_>) -> T) -> T {
        let mut rows = self.ask(command, read).unwrap_or_else(|error| panic!("{command}: {error}"));
        assert_eq!(rows.len(), 1, "{command}");
        rows.remove(0)
    }

    fn done(&mut self, command: &str) {
        self.ask(command, |_| ()).unwrap_or_else(|error| panic!("{command}: {error}"));
    }

    fn refused(&mut self, command: &str) -> SqlState {
        self.ask(command, |_| ()).unwrap_err().code
    }

    /// Opens a stream, and returns at its beginning.
    fn start(&mut self, command: &str) {
        eprintln!("{command}");
        frontend::query(command, &mut self.out).unwrap();
        self.send();
        self.next(|message| {
            assert_eq!(message, Message::CopyBothResponse(CopyFormats::default()), "{command}");
        });
    }

    /// Ends a stream from this side, and gives what `read` makes of the rows behind it.
    fn end<T>(&mut self, read: impl FnMut(DataRow<'_>) -> T) -> Vec<T> {
        frontend::copy_done(&mut self.out);
        self.send();
        self.answer(read).unwrap()
    }
}

fn logical(snapshot: Snapshot, two_phase: bool, failover: bool) -> SlotKind<'static> {
    SlotKind::Logical { plugin: "pgoutput", snapshot, two_phase, failover }
}

const PLAIN: SlotKind<'static> = SlotKind::Logical {
    plugin: "pgoutput",
    snapshot: Snapshot::Nothing,
    two_phase: false,
    failover: false,
};

#[test]
fn the_server_says_who_it_is_and_how_it_is_set() {
    let postgres = Postgres::builder().start();
    let systemid = postgres.ask("SELECT system_identifier FROM pg_control_system()");
    for (replication, expected) in [("database", Some(&b"app"[..])), ("true", None)] {
        let mut client = Client::connect(&postgres, Some(replication));
        client.one(identify_system(), |row| {
            let system = IdentifySystem::read(row).unwrap();
            assert_eq!((system.systemid.to_string(), system.timeline), (systemid.clone(), 1));
            assert!(system.xlogpos > Lsn::INVALID);
            assert_eq!(system.dbname, expected);
        });
        let read = |row: DataRow<'_>| row.columns().next().flatten().map(<[u8]>::to_vec);
        assert_eq!(client.one(&show("wal_level").unwrap(), read), Some(b"logical".to_vec()));
        assert_eq!(client.refused(&show("o'wl").unwrap()), SqlState(*b"42704"));
        // Why a name with a quote in it is not sent at all.
        assert_eq!(client.refused(r#"SHOW "o""wl""#), SqlState::SYNTAX_ERROR);
    }
}

#[test]
fn a_slot_is_made_in_every_way_that_the_version_has() {
    let postgres = Postgres::builder().start();
    let major = postgres.major();
    let mut client = Client::connect(&postgres, Some("database"));
    let kinds = [
        SlotKind::Physical { reserve_wal: false },
        SlotKind::Physical { reserve_wal: true },
        logical(Snapshot::Export, false, false),
        PLAIN,
        logical(Snapshot::Use, false, false),
        logical(Snapshot::Nothing, true, false),
        logical(Snapshot::Nothing, false, true),
        logical(Snapshot::Export, true, true),
    ];
    for kind in kinds {
        for temporary in [false, true] {
            let SlotKind::Logical { snapshot, two_phase, failover, .. } = kind else {
                let command = create_slot("s", temporary, kind, major).unwrap();
                client.one(&command, |row| {
                    let slot = CreatedSlot::read(row).unwrap();
                    let expected = CreatedSlot {
                        name: "s",
                        consistent_point: Lsn::INVALID,
                        snapshot_name: None,
                        output_plugin: None,
                    };
                    assert_eq!(slot, expected);
                });
                let sql = "SELECT concat(slot_type, temporary, restart_lsn IS NOT NULL) \
                           FROM pg_replication_slots";
                let reserved = kind == SlotKind::Physical { reserve_wal: true };
                let flag = |flag| if flag { "t" } else { "f" };
                let expected = format!("physical{}{}", flag(temporary), flag(reserved));
                assert_eq!(postgres.ask(sql), expected);
                client.done(&drop_slot("s", temporary).unwrap());
                continue;
            };
            let since = if failover {
                17
            } else if two_phase {
                15
            } else {
                10
            };
            let command = create_slot("s", temporary, kind, major);
            if major < since {
                assert!(matches!(command, Err(EncodeError::Version { .. })), "{command:?}");
                continue;
            }
            if failover && temporary {
                // A temporary slot cannot outlive its server.
                assert_eq!(client.refused(&command.unwrap()), SqlState::FEATURE_NOT_SUPPORTED);
                continue;
            }
            if snapshot == Snapshot::Use {
                client.done("BEGIN READ ONLY ISOLATION LEVEL REPEATABLE READ");
            }
            client.one(&command.unwrap(), |row| {
                let slot = CreatedSlot::read(row).unwrap();
                assert!(slot.consistent_point > Lsn::INVALID);
                assert_eq!((slot.name, slot.output_plugin), ("s", Some("pgoutput")));
                assert_eq!(slot.snapshot_name.is_some(), snapshot == Snapshot::Export);
            });
            if snapshot == Snapshot::Use {
                client.done("COMMIT");
            }
            let failover_sql = if major >= 17 { "failover" } else { "false" };
            let sql = format!(
                "SELECT concat(plugin, temporary, two_phase, {failover_sql}) \
                 FROM pg_replication_slots"
            );
            let flag = |flag| if flag { "t" } else { "f" };
            let expected =
                format!("pgoutput{}{}{}", flag(temporary), flag(two_phase), flag(failover));
            assert_eq!(postgres.ask(&sql), expected);
            client.done(&drop_slot("s", true).unwrap());
        }
    }
}

/// What this crate refuses to say to an older server is indeed unknown there.
#[test]
fn what_the_version_does_not_have_the_server_does_not_understand() {
    let postgres = Postgres::builder().start();
    let major = postgres.major();
    let mut client = Client::connect(&postgres, Some("database"));
    client.done(&create_slot("s", false, PLAIN, major).unwrap());
    if major < 15 {
        let two_phase = r#"CREATE_REPLICATION_SLOT "t" LOGICAL "pgoutput" TWO_PHASE"#;
        assert_eq!(client.refused(two_phase), SqlState::SYNTAX_ERROR);
        assert_eq!(client.refused(&read_slot("s", 15).unwrap()), SqlState::SYNTAX_ERROR);
        let listed = create_slot("t", false, PLAIN, 15).unwrap();
        assert_eq!(client.refused(&listed), SqlState::SYNTAX_ERROR);
    } else if major < 17 {
        let failover = create_slot("t", false, logical(Snapshot::Nothing, false, true), 17);
        assert_eq!(client.refused(&failover.unwrap()).class(), class::INTERNAL_ERROR);
        let alter = alter_slot("s", Some(true), None, 17).unwrap();
        assert_eq!(client.refused(&alter), SqlState::SYNTAX_ERROR);
    } else if major < 18 {
        let alter = alter_slot("s", None, Some(true), 18).unwrap();
        assert_eq!(client.refused(&alter).class(), class::INTERNAL_ERROR);
    }
    client.done(&drop_slot("s", false).unwrap());
    assert_eq!(client.refused(&drop_slot("s", false).unwrap()), SqlState::UNDEFINED_OBJECT);
}

#[test]
fn a_slot_is_read_and_altered() {
    let postgres = Postgres::builder().start();
    let major = postgres.major();
    let mut client = Client::connect(&postgres, Some("database"));
    if major >= 15 {
        let kind = SlotKind::Physical { reserve_wal: true };
        client.done(&create_slot("p", false, kind, major).unwrap());
        client.one(&read_slot("p", major).unwrap(), |row| {
            let slot = ReadSlot::read(row).unwrap().unwrap();
            assert_eq!((slot.slot_type, slot.restart_tli), ("physical", Some(1)));
            assert!(slot.restart_lsn > Some(Lsn::INVALID));
        });
        client.one(&read_slot("none", major).unwrap(), |row| {
            assert_eq!(ReadSlot::read(row), Ok(None));
        });
    }
    if major >= 17 {
        client.done(&create_slot("l", false, PLAIN, major).unwrap());
        let slot =
            "SELECT concat(failover, two_phase) FROM pg_replication_slots WHERE plugin <> ''";
        client.done(&alter_slot("l", Some(true), None, major).unwrap());
        assert_eq!(postgres.ask(slot), "tf");
        if major >= 18 {
            client.done(&alter_slot("l", Some(false), Some(true), major).unwrap());
            assert_eq!(postgres.ask(slot), "ft");
        }
    }
}

#[test]
fn a_logical_stream_takes_any_publication_and_both_messages_of_a_standby() {
    let postgres = Postgres::builder().start();
    let publication = quote_identifier("o\"w'l, \\");
    postgres.client().batch_execute(&format!("CREATE PUBLICATION {publication}")).unwrap();
    let mut client = Client::connect(&postgres, Some("database"));
    client.done(&create_slot("s", false, PLAIN, postgres.major()).unwrap());
    let emit = "SELECT pg_logical_emit_message(true, 'orders', 'one')::text";
    let _ = postgres.ask(emit);
    let options =
        [("proto_version", "1"), ("publication_names", &*publication), ("messages", "true")];
    client.start(&start_logical("s", Lsn::INVALID, &options).unwrap());
    let zero = Lsn::INVALID;
    StandbyStatusUpdate {
        write: zero,
        flush: zero,
        apply: zero,
        clock: Timestamp(0),
        reply_requested: true,
    }
    .encode(&mut client.out);
    client.send();
    let (mut keepalive, mut data) = (false, 0);
    while !keepalive || data < 3 {
        client.next(|message| {
            let Message::CopyData(payload) = message else { panic!("{message:?}") };
            match replication::Message::decode(payload).unwrap() {
                replication::Message::XLogData(_) => data += 1,
                _ => keepalive = true,
            }
        });
    }
    assert!(client.end(|_| ()).is_empty());
    client.done(&drop_slot("s", true).unwrap());
}

/// The server's own view of a slot is the oracle for hot-standby feedback, and two timelines that for
/// the history.
#[test]
fn a_physical_stream_is_read_to_the_end_of_its_timeline() {
    let postgres = Postgres::builder().setting("restore_command", "false").start();
    let major = postgres.major();
    let mut client = Client::connect(&postgres, Some("true"));
    let kind = SlotKind::Physical { reserve_wal: true };
    client.done(&create_slot("p", false, kind, major).unwrap());
    let start = client.one(identify_system(), |row| IdentifySystem::read(row).unwrap().xlogpos);

    let xmin: u32 = postgres.ask("SELECT txid_current()").parse().unwrap();
    client.start(&start_physical(Some("p"), start, Some(1)).unwrap());
    let feedback = HotStandbyFeedback {
        clock: Timestamp(0),
        xmin,
        xmin_epoch: 0,
        catalog_xmin: xmin - 1,
        catalog_xmin_epoch: 0,
    };
    feedback.encode(&mut client.out);
    client.send();
    let seen = "SELECT concat(xmin, ' ', catalog_xmin) FROM pg_replication_slots";
    let expected = format!("{xmin} {}", xmin - 1);
    wait::poll("the server to take the feedback", wait::LIMIT, || {
        (postgres.ask(seen) == expected).then_some(())
    })
    .unwrap();
    let _ = postgres.ask("SELECT pg_logical_emit_message(true, 'orders', 'one')::text");
    let mut end = start;
    while end == start {
        client.next(|message| {
            let Message::CopyData(payload) = message else { panic!("{message:?}") };
            if let replication::Message::XLogData(piece) =
                replication::Message::decode(payload).unwrap()
            {
                assert_eq!(piece.wal_start, end);
                end.0 += u64::try_from(piece.data.len()).unwrap();
                assert!(piece.wal_end >= end);
            }
        });
    }
    drop(client);

    // Recovery from an archive that has nothing ends at once, on a timeline of its own.
    postgres.stop(Mode::Fast);
    let signal = postgres.data_dir().join("recovery.signal");
    std::fs::write(&signal, "").unwrap();
    std::fs::set_permissions(&signal, Permissions::from_mode(0o666)).unwrap();
    postgres.start_again();
    wait::poll("the recovery to end", wait::LIMIT, || {
        (postgres.ask("SELECT pg_is_in_recovery()::text") == "false").then_some(())
    })
    .unwrap();

    let mut client = Client::connect(&postgres, Some("true"));
    let system = client.one(identify_system(), |row| IdentifySystem::read(row).unwrap().timeline);
    assert_eq!(system, 2);
    let switches = client.one(&timeline_history(2), |row| {
        let history = TimelineHistory::read(row).unwrap();
        assert_eq!(history.filename, "00000002.history");
        timeline_switches(history.content).unwrap()
    });
    assert_eq!((switches.len(), switches[0].timeline), (1, 1));
    client.start(&start_physical(None, start, Some(1)).unwrap());
    while !client.next(|message| message == Message::CopyDone) {}
    let next = client.end(|row| NextTimeline::read(row).unwrap());
    let next_tli_startpos = switches[0].switch;
    assert_eq!(next, [NextTimeline { next_tli: 2, next_tli_startpos }]);
}

#[test]
fn the_extended_query_protocol_is_understood() {
    let postgres = Postgres::builder().start();
    let mut client = Client::connect(&postgres, None);
    let out = &mut client.out;
    let sql = "SELECT n, $2 FROM generate_series(1, $1) AS n";
    frontend::parse("s", sql, &[23, 25], out).unwrap();
    frontend::describe(Target::Statement, "s", out).unwrap();
    frontend::bind("p", "s", &[1, 0], &[Some(&[0, 0, 0, 3]), None], &[0], out).unwrap();
    frontend::describe(Target::Portal, "p", out).unwrap();
    frontend::execute("p", 2, out).unwrap();
    frontend::flush(out);
    frontend::execute("p", 0, out).unwrap();
    frontend::close(Target::Portal, "p", out).unwrap();
    frontend::parse("", "LISTEN owl", &[], out).unwrap();
    frontend::describe(Target::Statement, "", out).unwrap();
    frontend::parse("", "", &[], out).unwrap();
    frontend::bind("", "", &[], &[], &[], out).unwrap();
    frontend::execute("", 0, out).unwrap();
    frontend::sync(out);
    // int4pl
    frontend::function_call(177, &[], &[Some(b"40"), Some(b"2")], 0, out).unwrap();
    client.send();
    let mut told = Vec::new();
    while told.iter().filter(|told| *told == "ReadyForQuery").count() < 2 {
        let message = client.next(|message| match message {
            Message::ParameterDescription(types) => {
                format!("{:?}", types.iter().collect::<Vec<_>>())
            }
            Message::DataRow(row) => format!("{:?}", row.columns().collect::<Vec<_>>()),
            Message::FunctionCallResponse(value) => value.unwrap().escape_ascii().to_string(),
            other => other.name().to_owned(),
        });
        told.push(message);
    }
    let expected = [
        "ParseComplete",
        "[23, 25]",
        "RowDescription",
        "BindComplete",
        "RowDescription",
        "[Some([49]), None]",
        "[Some([50]), None]",
        "PortalSuspended",
        "[Some([51]), None]",
        "CommandComplete",
        "CloseComplete",
        "ParseComplete",
        "[]",
        "NoData",
        "ParseComplete",
        "BindComplete",
        "EmptyQueryResponse",
        "ReadyForQuery",
        "42",
        "ReadyForQuery",
    ];
    assert_eq!(told, expected);
}

#[test]
fn both_directions_of_a_copy_tell_their_formats() {
    let postgres = Postgres::builder().start();
    let mut client = Client::connect(&postgres, None);
    client.done("CREATE TABLE t (a int, b text)");
    for (command, binary) in [
        ("COPY t FROM STDIN", false),
        ("COPY t FROM STDIN (FORMAT binary)", true),
        ("COPY (SELECT 1, 2) TO STDOUT", false),
        ("COPY (SELECT 1, 2) TO STDOUT (FORMAT binary)", true),
    ] {
        frontend::query(command, &mut client.out).unwrap();
        client.send();
        let columns = Formats::new(if binary { &[0, 1, 0, 1] } else { &[0; 4] }).unwrap();
        let formats = CopyFormats { binary, columns };
        if command.contains("STDIN") {
            client.next(|message| assert_eq!(message, Message::CopyInResponse(formats)));
            frontend::copy_fail("tired", &mut client.out).unwrap();
            client.send();
            let error = client.answer(|_| ()).unwrap_err();
            assert_eq!(error.code, SqlState::QUERY_CANCELED);
            assert!(error.message.contains("tired"), "{error}");
        } else {
            client.next(|message| assert_eq!(message, Message::CopyOutResponse(formats)));
            let idle = Message::ReadyForQuery(TransactionStatus::Idle);
            while !client.next(|message| message == idle) {}
        }
    }
    frontend::query("COPY t FROM STDIN", &mut client.out).unwrap();
    frontend::copy_data(b"1\towl\n", &mut client.out).unwrap();
    frontend::copy_done(&mut client.out);
    client.send();
    client.answer(|_| ()).unwrap();
    assert_eq!(postgres.ask("SELECT concat(a, b) FROM t"), "1owl");
}

#[test]
fn the_longest_first_message_is_the_longest_that_the_server_reads() {
    let postgres = Postgres::builder().start();
    let answer = |len: usize| {
        let mut out = BytesMut::new();
        // Version and end are 5 bytes, `user` and `options` with their zeroes 23.
        let options = " ".repeat(len - 4 - 5 - 23);
        let params = [("user", "postgres"), ("options", &*options)];
        frontend::startup(params, &mut out).unwrap();
        assert_eq!(out.len(), len);
        let mut socket = TcpStream::connect(("127.0.0.1", postgres.port())).unwrap();
        socket.write_all(&out).unwrap();
        let mut tag = [0];
        // A server that refuses the length hangs up with nothing, or with bytes unread.
        socket.read(&mut tag).map_or(0, |read| read) == 1
    };
    assert!(answer(frontend::STARTUP_LEN_MAX));
    assert!(!answer(frontend::STARTUP_LEN_MAX + 1));
}

#[test]
fn a_temporary_slot_is_gone_with_the_first_error() {
    let postgres = Postgres::builder().start();
    let mut client = Client::connect(&postgres, Some("database"));
    let kind = SlotKind::Physical { reserve_wal: true };
    let command = create_slot("short", true, kind, postgres.major()).unwrap();
    client.one(&command, |row| assert_eq!(CreatedSlot::read(row).unwrap().name, "short"));
    let slots = "SELECT count(*)::text FROM pg_replication_slots";
    assert_eq!(postgres.ask(slots), "1");
    client.refused("NO_SUCH_COMMAND");
    assert_eq!(postgres.ask(slots), "0");
}

//! What the two sides of a replication stream say inside `CopyData`, and the commands that open one.
//!
//! <https://www.postgresql.org/docs/current/protocol-replication.html>

use alloc::{format, string::String, vec::Vec};

use bytes::{BufMut, BytesMut};

use crate::{
    error::{DecodeError, EncodeError, Fault},
    lsn::{Lsn, Timestamp},
    reader::Reader,
    writer,
};

/// What the server sends inside `CopyData`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message<'a> {
    /// `w`: a piece of the log, or of what an output plugin makes of it.
    XLogData(XLogData<'a>),
    /// `k`: the server lives.
    PrimaryKeepalive(PrimaryKeepalive),
}

/// `w`: a piece of the log; in logical replication, one message of the output plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XLogData<'a> {
    /// Where the piece starts. In logical replication, the position of what the message is about.
    pub wal_start: Lsn,
    /// How far the server's log goes. In logical replication the server repeats `wal_start`.
    pub wal_end: Lsn,
    /// When it was sent.
    pub server_clock: Timestamp,
    /// The piece: for pgoutput, what [`Decoder::decode`](crate::pgoutput::Decoder::decode) takes.
    pub data: &'a [u8],
}

/// `k`: the server lives, and this is how far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrimaryKeepalive {
    /// How far the server has read its log for this stream.
    pub wal_end: Lsn,
    /// When it was sent.
    pub server_clock: Timestamp,
    /// The server hangs up unless it is answered soon.
    pub reply_requested: bool,
}

impl<'a> Message<'a> {
    /// Reads the payload of one `CopyData`.
    ///
    /// # Errors
    ///
    /// If it is neither message, or too short or too long for it.
    #[inline]
    pub fn decode(payload: &'a [u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(payload);
        match r.u8("CopyData.tag")? {
            b'w' => Ok(Self::XLogData(XLogData {
                wal_start: Lsn(r.u64("XLogData.wal_start")?),
                wal_end: Lsn(r.u64("XLogData.wal_end")?),
                server_clock: Timestamp(r.i64("XLogData.server_clock")?),
                data: r.rest(),
            })),
            b'k' => Reader::all(r.rest(), "PrimaryKeepalive", |r| {
                Ok(Self::PrimaryKeepalive(PrimaryKeepalive {
                    wal_end: Lsn(r.u64("PrimaryKeepalive.wal_end")?),
                    server_clock: Timestamp(r.i64("PrimaryKeepalive.server_clock")?),
                    reply_requested: r.bool("PrimaryKeepalive.reply_requested")?,
                }))
            }),
            other => Err(DecodeError::new("CopyData.tag", Fault::Tag(other))),
        }
    }

    /// Appends the whole `CopyData`, for a server made of this crate.
    ///
    /// # Errors
    ///
    /// If the data is longer than 2 GiB.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        match self {
            Self::XLogData(data) => data.encode(out),
            Self::PrimaryKeepalive(keepalive) => {
                keepalive.encode(out);
                Ok(())
            }
        }
    }
}

impl XLogData<'_> {
    /// Appends the whole `CopyData`.
    ///
    /// # Errors
    ///
    /// If the data is longer than 2 GiB.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        writer::message(Some(b'd'), "XLogData", out, |out| {
            out.put_u8(b'w');
            out.put_u64(self.wal_start.0);
            out.put_u64(self.wal_end.0);
            out.put_i64(self.server_clock.0);
            out.put_slice(self.data);
            Ok(())
        })
    }
}

impl PrimaryKeepalive {
    /// The length on the wire, which counts itself.
    const LENGTH: u32 = 4 + 1 + 2 * 8 + 1;
    /// The whole `CopyData`, in bytes.
    pub const ENCODED_LEN: usize = 1 + Self::LENGTH as usize;

    /// Appends the whole `CopyData`.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u8(b'd');
        out.put_u32(Self::LENGTH);
        out.put_u8(b'k');
        out.put_u64(self.wal_end.0);
        out.put_i64(self.server_clock.0);
        out.put_u8(self.reply_requested.into());
    }
}

/// `r`: how far this client has come.
///
/// All three positions are "last byte + 1". `flush` is the promise that matters: the server may forget
/// everything before it. There is no default, because any default is a promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandbyStatusUpdate {
    /// Received.
    pub write: Lsn,
    /// Safe, whatever happens to the client: the server's `confirmed_flush_lsn`.
    pub flush: Lsn,
    /// Applied; only for show.
    pub apply: Lsn,
    /// The client's clock.
    pub clock: Timestamp,
    /// The server shall answer with a keepalive at once.
    pub reply_requested: bool,
}

impl StandbyStatusUpdate {
    /// The length on the wire, which counts itself.
    const LENGTH: u32 = 4 + 1 + 4 * 8 + 1;
    /// The whole `CopyData`, in bytes.
    pub const ENCODED_LEN: usize = 1 + Self::LENGTH as usize;

    /// Appends the whole `CopyData`.
    #[inline]
    pub fn encode(&self, out: &mut BytesMut) {
        out.reserve(Self::ENCODED_LEN);
        out.put_u8(b'd');
        out.put_u32(Self::LENGTH);
        out.put_u8(b'r');
        out.put_u64(self.write.0);
        out.put_u64(self.flush.0);
        out.put_u64(self.apply.0);
        out.put_i64(self.clock.0);
        out.put_u8(self.reply_requested.into());
    }

    /// Reads the payload of one `CopyData`, for a server made of this crate.
    ///
    /// # Errors
    ///
    /// If it is not this message, or too short or too long for it.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        Reader::all(payload, "StandbyStatusUpdate", |r| {
            match r.u8("CopyData.tag")? {
                b'r' => {}
                other => return Err(DecodeError::new("CopyData.tag", Fault::Tag(other))),
            }
            Ok(Self {
                write: Lsn(r.u64("StandbyStatusUpdate.write")?),
                flush: Lsn(r.u64("StandbyStatusUpdate.flush")?),
                apply: Lsn(r.u64("StandbyStatusUpdate.apply")?),
                clock: Timestamp(r.i64("StandbyStatusUpdate.clock")?),
                reply_requested: r.bool("StandbyStatusUpdate.reply_requested")?,
            })
        })
    }
}

/// Asks for the cluster's system identifier, its timeline, its position and the database's name: one row
/// of four columns.
#[must_use]
pub const fn identify_system() -> &'static str {
    "IDENTIFY_SYSTEM"
}

/// Asks for the file that tells how a timeline came to be: one row of a file name and its content, for
/// [`timeline_switches`].
#[must_use]
pub fn timeline_history(timeline: u32) -> String {
    format!("TIMELINE_HISTORY {timeline}")
}

/// What becomes of the snapshot in which a new slot starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snapshot {
    /// Another session can import it while this one does nothing else.
    Export,
    /// Nothing.
    Nothing,
    /// The transaction of this session goes on in it.
    Use,
}

/// Makes a slot for an output plugin: one row of name, consistent point, snapshot and plugin.
///
/// In the words that all servers since 10 understand, so that the caller need not know which it is.
#[must_use]
pub fn create_logical_slot(
    slot: &str,
    plugin: &str,
    temporary: bool,
    snapshot: Snapshot,
) -> String {
    let (slot, plugin) = (quote_identifier(slot), quote_identifier(plugin));
    let temporary = if temporary { " TEMPORARY" } else { "" };
    let snapshot = match snapshot {
        Snapshot::Export => "EXPORT_SNAPSHOT",
        Snapshot::Nothing => "NOEXPORT_SNAPSHOT",
        Snapshot::Use => "USE_SNAPSHOT",
    };
    format!("CREATE_REPLICATION_SLOT {slot}{temporary} LOGICAL {plugin} {snapshot}")
}

/// Removes a slot; with `wait`, once nobody uses it.
#[must_use]
pub fn drop_slot(slot: &str, wait: bool) -> String {
    format!("DROP_REPLICATION_SLOT {}{}", quote_identifier(slot), if wait { " WAIT" } else { "" })
}

/// Starts the stream of a logical slot. The server takes `start` only if it lies after what the slot has
/// confirmed; [`Lsn::INVALID`] leaves it to the slot.
///
/// `options` are the plugin's. pgoutput's `publication_names` is a list of identifiers: give each to
/// [`quote_identifier`], with commas between them.
///
/// ```
/// use factlib_protocol::{Lsn, replication::{quote_identifier, start_logical}};
///
/// let facts = quote_identifier("facts");
/// let options = [("proto_version", "1"), ("publication_names", &facts), ("messages", "true")];
/// assert_eq!(
///     start_logical("owl", Lsn::INVALID, &options),
///     r#"START_REPLICATION SLOT "owl" LOGICAL 0/0 ("proto_version" '1', "publication_names" '"facts"', "messages" 'true')"#,
/// );
/// ```
#[must_use]
pub fn start_logical(slot: &str, start: Lsn, options: &[(&str, &str)]) -> String {
    let mut command = format!("START_REPLICATION SLOT {} LOGICAL {start}", quote_identifier(slot));
    if !options.is_empty() {
        let options: Vec<String> = options
            .iter()
            .map(|(name, value)| format!("{} {}", quote_identifier(name), quote_literal(value)))
            .collect();
        command.push_str(" (");
        command.push_str(&options.join(", "));
        command.push(')');
    }
    command
}

/// A name as SQL takes it, whatever is in it but a zero byte, which [`query`](crate::frontend::query)
/// refuses.
///
/// Replication commands take it too, but cannot say a `"` inside a name: what would be doubled in SQL is a
/// syntax error there. No slot can have such a name; a publication can, and is named inside a literal.
#[must_use]
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as the replication commands take it, and SQL too unless `standard_conforming_strings` is
/// `off`: then a backslash in it would mean something else.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// One line of a timeline's history: where the next timeline left this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimelineSwitch {
    /// The timeline that was left.
    pub timeline: u32,
    /// The first position that belongs to its successor.
    pub switch: Lsn,
}

/// Reads the content of a timeline history file, oldest switch first.
///
/// # Errors
///
/// If a line is not `timeline position reason`, or the timelines do not increase.
pub fn timeline_switches(content: &[u8]) -> Result<Vec<TimelineSwitch>, DecodeError> {
    let mut switches: Vec<TimelineSwitch> = Vec::new();
    for line in content.split(|byte| *byte == b'\n') {
        // The reason is whatever the operator named a restore point, in no particular encoding.
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let Some(timeline) = words.next().filter(|word| !word.starts_with(b"#")) else { continue };
        let timeline = number(timeline, "TimelineHistory.timeline")?;
        let switch = number(words.next().unwrap_or_default(), "TimelineHistory.switch")?;
        if switches.last().is_some_and(|last| timeline <= last.timeline) {
            return Err(DecodeError::new("TimelineHistory.timeline", Fault::Malformed));
        }
        switches.push(TimelineSwitch { timeline, switch });
    }
    Ok(switches)
}

fn number<T: core::str::FromStr>(word: &[u8], field: &'static str) -> Result<T, DecodeError> {
    let word = core::str::from_utf8(word).ok();
    word.and_then(|word| word.parse().ok()).ok_or(DecodeError::new(field, Fault::Malformed))
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use hex_literal::hex;

    use super::*;

    #[track_caller]
    fn check(payload: &[u8], expected: Message<'_>) {
        assert_eq!(Message::decode(payload), Ok(expected));
        let mut out = BytesMut::new();
        expected.encode(&mut out).unwrap();
        assert_eq!(out[5..], *payload);
        let frame = crate::Frame::decode(&out, 1000).unwrap().unwrap();
        assert_eq!((frame.tag, frame.encoded_len()), (b'd', out.len()));
    }

    #[test]
    fn payloads_are_as_the_manual_draws_them() {
        check(
            &hex!("77 0000000001000001 0000000002000002 0000000000000003 4d00"),
            Message::XLogData(XLogData {
                wal_start: Lsn(0x100_0001),
                wal_end: Lsn(0x200_0002),
                server_clock: Timestamp(3),
                data: b"M\0",
            }),
        );
        let keepalive = PrimaryKeepalive {
            wal_end: Lsn(0x100_0001),
            server_clock: Timestamp(-2),
            reply_requested: true,
        };
        check(
            &hex!("6b 0000000001000001 fffffffffffffffe 01"),
            Message::PrimaryKeepalive(keepalive),
        );

        let status = StandbyStatusUpdate {
            write: Lsn(1),
            flush: Lsn(2),
            apply: Lsn(3),
            clock: Timestamp(4),
            reply_requested: false,
        };
        let mut out = BytesMut::new();
        status.encode(&mut out);
        assert_eq!(
            out[..],
            hex!(
                "64 00000026 72 0000000000000001 0000000000000002 0000000000000003 0000000000000004 00"
            )
        );
        assert_eq!(StandbyStatusUpdate::decode(&out[5..]), Ok(status));
        assert_eq!(out.len(), StandbyStatusUpdate::ENCODED_LEN);
        out.clear();
        keepalive.encode(&mut out);
        assert_eq!(out.len(), PrimaryKeepalive::ENCODED_LEN);
    }

    #[test]
    fn other_payloads_are_refused() {
        for (payload, fault) in [
            (&b""[..], Fault::Truncated),
            (b"x", Fault::Tag(b'x')),
            (b"w1234567812345678123456", Fault::Truncated),
            (b"k1234567812345678\x02", Fault::Tag(2)),
            (b"k1234567812345678\0\0", Fault::Trailing),
        ] {
            assert_eq!(Message::decode(payload).unwrap_err().fault, fault, "{payload:?}");
        }
        assert_eq!(StandbyStatusUpdate::decode(b"h").unwrap_err().fault, Fault::Tag(b'h'));
        let mut longer = [0; 35];
        longer[0] = b'r';
        assert_eq!(StandbyStatusUpdate::decode(&longer).unwrap_err().fault, Fault::Trailing);
    }

    #[test]
    fn names_and_values_cannot_leave_their_quotes() {
        assert_eq!(quote_identifier("owl"), "\"owl\"");
        assert_eq!(quote_identifier("o\"w'l"), "\"o\"\"w'l\"");
        assert_eq!(quote_literal("o\"w'l\\"), "'o\"w''l\\'");
        assert_eq!(
            start_logical("s", Lsn(0x1_0000_00AB), &[]),
            "START_REPLICATION SLOT \"s\" LOGICAL 1/AB"
        );
        assert_eq!(
            create_logical_slot("s", "pgoutput", false, Snapshot::Nothing),
            "CREATE_REPLICATION_SLOT \"s\" LOGICAL \"pgoutput\" NOEXPORT_SNAPSHOT"
        );
        assert_eq!(
            create_logical_slot("s", "pgoutput", true, Snapshot::Use),
            "CREATE_REPLICATION_SLOT \"s\" TEMPORARY LOGICAL \"pgoutput\" USE_SNAPSHOT"
        );
        assert_eq!(drop_slot("s", true), "DROP_REPLICATION_SLOT \"s\" WAIT");
        assert_eq!(timeline_history(3), "TIMELINE_HISTORY 3");
    }

    #[test]
    fn a_history_is_read_line_by_line() {
        let switch = |timeline, switch| TimelineSwitch { timeline, switch: Lsn(switch) };
        let history = b"# comment\n\n1\t0/A0\tno recovery target specified\n  3 1/0 \xff\n";
        assert_eq!(timeline_switches(history), Ok(vec![switch(1, 0xA0), switch(3, 1 << 32)]));
        assert_eq!(timeline_switches(b""), Ok(vec![]));
        for broken in [&b"x\t0/0"[..], b"1", b"1\t0", b"2\t0/1\n1\t0/2", b"1\t0/1\n1\t0/2", b"\xff"]
        {
            assert_eq!(
                timeline_switches(broken).unwrap_err().fault,
                Fault::Malformed,
                "{broken:?}"
            );
        }
    }
}

//! What the two sides of a replication stream say inside `CopyData`, and the commands that open one.
//!
//! <https://www.postgresql.org/docs/current/protocol-replication.html>

mod answer;
mod command;

use bytes::{BufMut, BytesMut};

pub use self::{
    answer::{
        CreatedSlot, IdentifySystem, NextTimeline, ReadSlot, TimelineHistory, TimelineSwitch,
        timeline_switches,
    },
    command::{
        SlotKind, Snapshot, alter_slot, create_slot, drop_slot, identify_system, quote_identifier,
        quote_literal, read_slot, show, start_logical, start_physical, timeline_history,
    },
};
use crate::{
    Xid,
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

/// `w`: a piece of the log.
///
/// In logical replication, one message of the output plugin. In physical replication, bytes of the log as
/// they stand in its files, up to 128 kB of them: the first stands at `wal_start`, the next piece begins
/// where this one ends, and a record may be cut anywhere between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XLogData<'a> {
    /// Where the piece starts. In logical replication, the position of what the message is about, which goes
    /// up and down; `0/0` for a message that only prepares another one (a `Relation`, a `Type`, a `Begin`
    /// with an `Origin` behind it; seen on 14 to 18).
    pub wal_start: Lsn,
    /// How far the server's log goes, which is more than is sent. In logical replication the server
    /// repeats `wal_start`.
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

/// `h`: which rows the queries of a standby still see, so that the primary keeps them.
///
/// An epoch counts how often the 32 bits of transaction numbers have been used up; it is for the server to
/// see that a number is not from a round too long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HotStandbyFeedback {
    /// The client's clock.
    pub clock: Timestamp,
    /// The oldest transaction that the standby's queries do not see as over; 0 to keep nothing more.
    pub xmin: Xid,
    /// Its epoch.
    pub xmin_epoch: u32,
    /// The same for the catalogue, which the standby's own logical slots need; 0 for none.
    pub catalog_xmin: Xid,
    /// Its epoch.
    pub catalog_xmin_epoch: u32,
}

impl HotStandbyFeedback {
    /// The length on the wire, which counts itself.
    const LENGTH: u32 = 4 + 1 + 8 + 4 * 4;
    /// The whole `CopyData`, in bytes.
    pub const ENCODED_LEN: usize = 1 + Self::LENGTH as usize;

    /// Appends the whole `CopyData`.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u8(b'd');
        out.put_u32(Self::LENGTH);
        out.put_u8(b'h');
        out.put_i64(self.clock.0);
        out.put_u32(self.xmin);
        out.put_u32(self.xmin_epoch);
        out.put_u32(self.catalog_xmin);
        out.put_u32(self.catalog_xmin_epoch);
    }
}

/// What a client sends inside `CopyData`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StandbyMessage {
    /// `r`: how far it has come.
    StatusUpdate(StandbyStatusUpdate),
    /// `h`: which rows its queries see.
    HotStandbyFeedback(HotStandbyFeedback),
}

impl StandbyMessage {
    /// Reads the payload of one `CopyData`, for a server made of this crate.
    ///
    /// # Errors
    ///
    /// If it is neither message, or too short or too long for it.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        match payload.first() {
            Some(b'h') => Reader::all(payload, "HotStandbyFeedback", |r| {
                r.u8("CopyData.tag")?;
                Ok(Self::HotStandbyFeedback(HotStandbyFeedback {
                    clock: Timestamp(r.i64("HotStandbyFeedback.clock")?),
                    xmin: r.u32("HotStandbyFeedback.xmin")?,
                    xmin_epoch: r.u32("HotStandbyFeedback.xmin_epoch")?,
                    catalog_xmin: r.u32("HotStandbyFeedback.catalog_xmin")?,
                    catalog_xmin_epoch: r.u32("HotStandbyFeedback.catalog_xmin_epoch")?,
                }))
            }),
            _ => StandbyStatusUpdate::decode(payload).map(Self::StatusUpdate),
        }
    }

    /// Appends the whole `CopyData`.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::StatusUpdate(status) => status.encode(out),
            Self::HotStandbyFeedback(feedback) => feedback.encode(out),
        }
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(StandbyMessage::decode(&out[5..]), Ok(StandbyMessage::StatusUpdate(status)));
        assert_eq!(out.len(), StandbyStatusUpdate::ENCODED_LEN);
        out.clear();
        keepalive.encode(&mut out);
        assert_eq!(out.len(), PrimaryKeepalive::ENCODED_LEN);
    }

    #[test]
    fn feedback_is_as_the_manual_draws_it() {
        let feedback = HotStandbyFeedback {
            clock: Timestamp(1),
            xmin: 2,
            xmin_epoch: 3,
            catalog_xmin: 4,
            catalog_xmin_epoch: 5,
        };
        let mut out = BytesMut::new();
        feedback.encode(&mut out);
        let expected = hex!("64 0000001d 68 0000000000000001 00000002 00000003 00000004 00000005");
        assert_eq!(out[..], expected);
        assert_eq!(out.len(), HotStandbyFeedback::ENCODED_LEN);
        let message = StandbyMessage::HotStandbyFeedback(feedback);
        assert_eq!(StandbyMessage::decode(&out[5..]), Ok(message));
        assert_eq!(StandbyMessage::decode(&out[5..20]).unwrap_err().fault, Fault::Truncated);
        assert_eq!(StandbyMessage::decode(b"x").unwrap_err().fault, Fault::Tag(b'x'));
        assert_eq!(StandbyMessage::decode(b"").unwrap_err().fault, Fault::Truncated);
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
}

//! Messages longer than the limit: read past in constant memory, or the end of the road.
//!
//! The first bytes say whose message it is, so that what is not ours passes whatever its length. Of a
//! fact of ours the policy decides; a dead letter keeps its first part, its length and its SHA-256.

use super::engine::{Flow, Link, Relay, Stuck};
use super::event::End;
use super::exchange::Now;
use super::poison::{self, Cause, Poison, Policy};
use super::position::{Position, Unit};
use super::stream::Letter;
use factlib_protocol::{Lsn, Timestamp};
use sha2::{Digest as _, Sha256};

/// So much of a content is kept for its dead letter.
const KEPT: usize = 64 * 1024;

/// Whose message it is must be seen within so many bytes; a longer prefix is none of ours, which are parts of
/// topic names.
const HEAD_MAX: usize = 1024;

/// Tag and length of the frame; tag, start, end and clock of XLogData.
const XLOG_DATA_LEN: usize = 1 + 4 + 1 + 8 + 8 + 8;

/// What the first bytes of a message say.
#[derive(Debug, PartialEq, Eq)]
enum Head {
    /// More of them must come.
    Incomplete,
    /// Rows of a table, which are not ours to publish; or nothing that a logical stream has.
    Other,
    /// A logical decoding message.
    Message {
        server_clock: Timestamp,
        transactional: bool,
        lsn: Lsn,
        /// None if it is longer than any of ours.
        prefix: Option<Vec<u8>>,
        /// Where the content begins in the frame.
        content_at: usize,
    },
}

impl Head {
    fn decode(frame: &[u8]) -> Self {
        let Some((xlog_data, message)) = frame.split_at_checked(XLOG_DATA_LEN) else {
            return Self::Incomplete;
        };
        let [b'd', _, _, _, _, b'w', rest @ ..] = xlog_data else { return Self::Other };
        let server_clock = rest.last_chunk().map_or(0, |clock| i64::from_be_bytes(*clock));
        let Some((&tag, message)) = message.split_first() else { return Self::Incomplete };
        if tag != b'M' {
            return Self::Other;
        }
        let Some(([flags, lsn @ ..], rest)) = message.split_first_chunk::<9>() else {
            return Self::Incomplete;
        };
        let at = rest.iter().take(HEAD_MAX).position(|byte| *byte == 0);
        let prefix = match at {
            None if rest.len() < HEAD_MAX => return Self::Incomplete,
            None => None,
            Some(at) => rest.get(..at).map(<[u8]>::to_vec),
        };
        let content_at = XLOG_DATA_LEN + 1 + 9 + at.map_or(0, |at| at + 1 + 4);
        if frame.len() < content_at {
            return Self::Incomplete;
        }
        Self::Message {
            server_clock: Timestamp(server_clock),
            transactional: flags & 1 == 1,
            lsn: Lsn(u64::from_be_bytes(*lsn)),
            prefix,
            content_at,
        }
    }
}

/// A message on its way past.
#[derive(Debug)]
pub(super) struct Oversize {
    /// Bytes of the frame that are still to come.
    remaining: usize,
    /// Of a fact of ours.
    fact: Option<OversizeFact>,
    /// Any logical decoding message: its unit, its index, its LSN.
    message: Option<(Unit, u32, Lsn)>,
}

#[derive(Debug)]
struct OversizeFact {
    position: Position,
    timestamp: Timestamp,
    committed: Timestamp,
    /// Bytes before the content that are still to come.
    skip: usize,
    length: u64,
    sha256: Sha256,
    kept: Vec<u8>,
    reason: String,
}

impl Oversize {
    fn take(&mut self, bytes: &[u8]) {
        self.remaining -= bytes.len();
        let Some(fact) = &mut self.fact else { return };
        let skipped = fact.skip.min(bytes.len());
        fact.skip -= skipped;
        let content = bytes.get(skipped..).unwrap_or_default();
        fact.length += content.len() as u64;
        fact.sha256.update(content);
        let kept = content.len().min(KEPT - fact.kept.len());
        fact.kept.extend_from_slice(content.get(..kept).unwrap_or_default());
    }
}

impl Relay {
    /// `frame` is the beginning of one whose body of `length` bytes is over the limit. True if it is passed
    /// or waits, false if more of it must come.
    pub(super) fn oversize(&mut self, now: Now, frame: &[u8], length: usize) -> bool {
        let head = Head::decode(frame);
        let mut oversize = Oversize { remaining: 1 + 4 + length, fact: None, message: None };
        let (server_clock, transactional, lsn, prefix, content_at) = match head {
            Head::Incomplete => return false,
            Head::Other if frame.first() == Some(&b'd') => {
                self.oversize = Some(oversize);
                return true;
            }
            Head::Other => {
                let cause =
                    format!("PostgreSQL sent a message of {length} bytes that is not of its log");
                self.hang_up(now, End::Unreadable, self.settings.backoff_max, cause);
                return true;
            }
            Head::Message { server_clock, transactional, lsn, prefix, content_at } => {
                (server_clock, transactional, lsn, prefix, content_at)
            }
        };
        let dropped = self.stopping.is_some() && !self.still_takes();
        let Link::Streaming(session) = &mut self.link else { return true };
        session.feedback.data();
        if dropped {
            self.oversize = Some(oversize);
            return true;
        }
        let open = session.transaction.as_ref();
        let (unit, index, written) = match open {
            Some(open) => (open.unit, open.next_index, open.commit_timestamp),
            None => (Unit::message(lsn), 0, server_clock),
        };
        let behind = session.last_unit.is_some_and(|last| last >= unit);
        if transactional != open.is_some() || (!transactional && behind) {
            self.out_of_order(now, unit);
            return true;
        }
        oversize.message = Some((unit, index, lsn));
        let prefix = prefix.unwrap_or_default();
        let position = self.position(unit, index);
        if !self.settings.prefixes.iter().any(|ours| ours.as_bytes() == prefix) {
            self.name_foreign(&prefix);
        } else if self.waits_for_position {
            self.stuck = Some(Stuck::Position);
            return true;
        } else if self.enqueued.is_none_or(|enqueued| enqueued < position) {
            let reason = format!(
                "a message of {length} bytes is over FRAME_MAX_BYTES ({}); raise it and restart",
                self.settings.frame_bytes_max
            );
            if self.settings.policies.of(None) == Policy::Halt {
                self.halt(position, lsn, None, reason);
                self.stuck = Some(Stuck::Halted);
                return true;
            }
            let timestamp = if self.settings.timestamp_is_publish { now.clock } else { written };
            oversize.fact = Some(OversizeFact {
                position,
                timestamp,
                committed: written,
                skip: content_at,
                length: 0,
                sha256: Sha256::new(),
                kept: Vec::new(),
                reason,
            });
        }
        self.oversize = Some(oversize);
        true
    }

    /// Takes from `rest` what belongs to a message that is being passed. True when it is past.
    pub(super) fn pass_oversize(&mut self, now: Now, rest: &mut &[u8]) -> bool {
        let Some(mut oversize) = self.oversize.take() else { return true };
        let (bytes, after) = rest.split_at(rest.len().min(oversize.remaining));
        oversize.take(bytes);
        *rest = after;
        if oversize.remaining > 0 {
            self.oversize = Some(oversize);
            return false;
        }
        if let Some(fact) = &oversize.fact
            && let Some((unit, _, lsn)) = oversize.message
            && let Flow::Stuck(stuck) = self.pass_fact(now, fact, unit, lsn)
        {
            self.stuck = Some(stuck);
            self.oversize = Some(oversize);
            return false;
        }
        if let Some((unit, index, lsn)) = oversize.message {
            self.message_taken(unit, index, lsn);
        }
        true
    }

    fn pass_fact(&mut self, now: Now, fact: &OversizeFact, unit: Unit, lsn: Lsn) -> Flow {
        if unit == Unit::message(lsn) {
            self.ledger.begin(unit);
        }
        self.headers.fill_unreadable(&self.source, &fact.position, lsn);
        let sha256 = fact.sha256.clone().finalize();
        poison::describe_cut(&mut self.headers, fact.length, &sha256);
        let poison = Poison::new(Cause::TooLarge, fact.reason.clone(), None, 0);
        let letter = Letter {
            position: fact.position,
            lsn,
            timestamp: fact.timestamp,
            committed: fact.committed,
            key: None,
            value: &fact.kept,
        };
        self.poisoned(now, &letter, poison)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(prefix: &[u8]) -> Vec<u8> {
        let mut frame = b"d\x00\x10\x00\x00w".to_vec();
        frame.extend([0; 16]);
        frame.extend(77_i64.to_be_bytes());
        frame.extend([b'M', 1]);
        frame.extend(0x1234_u64.to_be_bytes());
        frame.extend(prefix);
        frame.push(0);
        frame.extend(1_000_000_u32.to_be_bytes());
        frame
    }

    #[test]
    fn a_head_says_whose_it_is_as_soon_as_it_is_there() {
        let whole = frame(b"orders");
        for len in 0..whole.len() {
            assert_eq!(Head::decode(whole.get(..len).unwrap()), Head::Incomplete, "{len}");
        }
        let expected = Head::Message {
            server_clock: Timestamp(77),
            transactional: true,
            lsn: Lsn(0x1234),
            prefix: Some(b"orders".to_vec()),
            content_at: whole.len(),
        };
        assert_eq!(Head::decode(&whole), expected);
    }

    #[test]
    fn a_prefix_longer_than_any_of_ours_is_not_waited_for() {
        let long = frame(&[b'x'; 5000]);
        assert_eq!(Head::decode(long.get(..1000).unwrap()), Head::Incomplete);
        let Head::Message { prefix: None, .. } = Head::decode(long.get(..2000).unwrap()) else {
            panic!("{:?}", Head::decode(&long))
        };
    }

    #[test]
    fn rows_and_what_is_not_of_the_log_are_others() {
        let mut row = frame(b"");
        *row.get_mut(XLOG_DATA_LEN).unwrap() = b'I';
        assert_eq!(Head::decode(&row), Head::Other);
        *row.first_mut().unwrap() = b'E';
        assert_eq!(Head::decode(&row), Head::Other);
    }
}

//! What the server answers to the commands.
//!
//! <https://www.postgresql.org/docs/current/protocol-replication.html>

use alloc::vec::Vec;

use crate::{
    backend::DataRow,
    error::{DecodeError, Fault},
    lsn::Lsn,
};

/// What `IDENTIFY_SYSTEM` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdentifySystem<'a> {
    /// Drawn when the cluster was made; a standby has its primary's.
    pub systemid: u64,
    /// The timeline that the server writes, or follows.
    pub timeline: u32,
    /// How far its log is flushed.
    pub xlogpos: Lsn,
    /// The database of this session, if it has one, in that database's encoding.
    pub dbname: Option<&'a [u8]>,
}

impl<'a> IdentifySystem<'a> {
    /// Reads the row. Columns that a later server puts behind these are not looked at; so for all rows
    /// here.
    ///
    /// # Errors
    ///
    /// If a column is missing, NULL or not of its type.
    pub fn read(row: DataRow<'a>) -> Result<Self, DecodeError> {
        let mut columns = row.columns();
        Ok(Self {
            systemid: parsed(&mut columns, "IdentifySystem.systemid")?,
            timeline: parsed(&mut columns, "IdentifySystem.timeline")?,
            xlogpos: parsed(&mut columns, "IdentifySystem.xlogpos")?,
            dbname: column(&mut columns, "IdentifySystem.dbname")?,
        })
    }
}

/// What `CREATE_REPLICATION_SLOT` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreatedSlot<'a> {
    /// The slot.
    pub name: &'a str,
    /// Transactions that commit after it are streamed; `0/0` for a physical slot.
    pub consistent_point: Lsn,
    /// The snapshot, if it was exported, for `SET TRANSACTION SNAPSHOT`.
    pub snapshot_name: Option<&'a str>,
    /// The plugin of a logical slot.
    pub output_plugin: Option<&'a str>,
}

impl<'a> CreatedSlot<'a> {
    /// Reads the row.
    ///
    /// # Errors
    ///
    /// If a column is missing, NULL or not of its type.
    pub fn read(row: DataRow<'a>) -> Result<Self, DecodeError> {
        let mut columns = row.columns();
        Ok(Self {
            name: text(&mut columns, "CreatedSlot.slot_name")?
                .ok_or(null("CreatedSlot.slot_name"))?,
            consistent_point: parsed(&mut columns, "CreatedSlot.consistent_point")?,
            snapshot_name: text(&mut columns, "CreatedSlot.snapshot_name")?,
            output_plugin: text(&mut columns, "CreatedSlot.output_plugin")?,
        })
    }
}

/// What `READ_REPLICATION_SLOT` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadSlot<'a> {
    /// `physical`: of other slots the server tells nothing.
    pub slot_type: &'a str,
    /// The oldest position that the slot keeps; `None` before anybody has streamed.
    pub restart_lsn: Option<Lsn>,
    /// The timeline of that position.
    pub restart_tli: Option<u32>,
}

impl<'a> ReadSlot<'a> {
    /// Reads the row, which is all NULL if there is no such slot.
    ///
    /// # Errors
    ///
    /// If a column is missing or not of its type.
    pub fn read(row: DataRow<'a>) -> Result<Option<Self>, DecodeError> {
        let mut columns = row.columns();
        let slot_type = text(&mut columns, "ReadSlot.slot_type")?;
        let restart_lsn = optional(&mut columns, "ReadSlot.restart_lsn")?;
        let restart_tli = optional(&mut columns, "ReadSlot.restart_tli")?;
        Ok(slot_type.map(|slot_type| Self { slot_type, restart_lsn, restart_tli }))
    }
}

/// What `TIMELINE_HISTORY` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimelineHistory<'a> {
    /// The file's name, such as `00000002.history`.
    pub filename: &'a str,
    /// What is in it, for [`timeline_switches`].
    pub content: &'a [u8],
}

impl<'a> TimelineHistory<'a> {
    /// Reads the row.
    ///
    /// # Errors
    ///
    /// If a column is missing or NULL.
    pub fn read(row: DataRow<'a>) -> Result<Self, DecodeError> {
        let (filename, content) = ("TimelineHistory.filename", "TimelineHistory.content");
        let mut columns = row.columns();
        Ok(Self {
            filename: text(&mut columns, filename)?.ok_or(null(filename))?,
            content: column(&mut columns, content)?.ok_or(null(content))?,
        })
    }
}

/// What follows a physical stream that came to the end of its timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextTimeline {
    /// The timeline to go on with.
    pub next_tli: u32,
    /// Where it begins.
    pub next_tli_startpos: Lsn,
}

impl NextTimeline {
    /// Reads the row.
    ///
    /// # Errors
    ///
    /// If a column is missing, NULL or not of its type.
    pub fn read(row: DataRow<'_>) -> Result<Self, DecodeError> {
        let mut columns = row.columns();
        Ok(Self {
            next_tli: parsed(&mut columns, "NextTimeline.next_tli")?,
            next_tli_startpos: parsed(&mut columns, "NextTimeline.next_tli_startpos")?,
        })
    }
}

/// The next column, which must be there and may be NULL.
fn column<'a>(
    columns: &mut impl Iterator<Item = Option<&'a [u8]>>,
    field: &'static str,
) -> Result<Option<&'a [u8]>, DecodeError> {
    columns.next().ok_or(DecodeError::new(field, Fault::Truncated))
}

fn text<'a>(
    columns: &mut impl Iterator<Item = Option<&'a [u8]>>,
    field: &'static str,
) -> Result<Option<&'a str>, DecodeError> {
    let text = column(columns, field)?.map(core::str::from_utf8).transpose();
    text.map_err(|_| DecodeError::new(field, Fault::Utf8))
}

fn optional<'a, T: core::str::FromStr>(
    columns: &mut impl Iterator<Item = Option<&'a [u8]>>,
    field: &'static str,
) -> Result<Option<T>, DecodeError> {
    column(columns, field)?.map(|word| number(word, field)).transpose()
}

fn parsed<'a, T: core::str::FromStr>(
    columns: &mut impl Iterator<Item = Option<&'a [u8]>>,
    field: &'static str,
) -> Result<T, DecodeError> {
    optional(columns, field)?.ok_or(null(field))
}

/// NULL where the manual knows none.
const fn null(field: &'static str) -> DecodeError {
    DecodeError::new(field, Fault::Malformed)
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

    use bytes::BytesMut;

    use super::*;
    use crate::{Frame, backend::Message};

    /// What `read` makes of a row with these columns.
    fn read<T>(columns: &[Option<&str>], read: impl FnOnce(DataRow<'_>) -> T) -> T {
        let columns: Vec<_> = columns.iter().map(|column| column.map(str::as_bytes)).collect();
        let mut out = BytesMut::new();
        DataRow::encode(&columns, &mut out).unwrap();
        let frame = Frame::decode(&out, 1000).unwrap().unwrap();
        let Ok(Message::DataRow(row)) = Message::decode(frame) else { panic!() };
        read(row)
    }

    #[test]
    fn answers_are_read_from_their_rows() {
        let system = ["18446744073709551615", "2", "0/A0"].map(Some);
        for dbname in [None, Some("owl")] {
            read(&[&system[..], &[dbname]].concat(), |row| {
                let expected = IdentifySystem {
                    systemid: u64::MAX,
                    timeline: 2,
                    xlogpos: Lsn(0xA0),
                    dbname: dbname.map(str::as_bytes),
                };
                assert_eq!(IdentifySystem::read(row), Ok(expected));
            });
        }
        read(&[Some("s"), Some("0/A0"), None, Some("pgoutput"), Some("more")], |row| {
            let expected = CreatedSlot {
                name: "s",
                consistent_point: Lsn(0xA0),
                snapshot_name: None,
                output_plugin: Some("pgoutput"),
            };
            assert_eq!(CreatedSlot::read(row), Ok(expected));
        });
        read(&[Some("physical"), Some("0/A0"), Some("1")], |row| {
            let (restart_lsn, restart_tli) = (Some(Lsn(0xA0)), Some(1));
            let expected = ReadSlot { slot_type: "physical", restart_lsn, restart_tli };
            assert_eq!(ReadSlot::read(row), Ok(Some(expected)));
        });
        assert!(read(&[None; 3], |row| ReadSlot::read(row).unwrap().is_none()));
        read(&[Some("00000002.history"), Some("1\t0/A0\t")], |row| {
            let history = TimelineHistory::read(row).unwrap();
            assert_eq!(history.filename, "00000002.history");
            assert_eq!(timeline_switches(history.content).unwrap().len(), 1);
        });
        let next = read(&[Some("2"), Some("0/A0")], NextTimeline::read);
        assert_eq!(next, Ok(NextTimeline { next_tli: 2, next_tli_startpos: Lsn(0xA0) }));
    }

    #[test]
    fn a_row_that_is_not_the_answer_is_refused_and_the_column_named() {
        let system = |columns: &[Option<&str>]| {
            let error = read(columns, |row| IdentifySystem::read(row).unwrap_err());
            (error.field, error.fault)
        };
        assert_eq!(system(&[]), ("IdentifySystem.systemid", Fault::Truncated));
        assert_eq!(system(&[None]), ("IdentifySystem.systemid", Fault::Malformed));
        assert_eq!(system(&[Some("x")]), ("IdentifySystem.systemid", Fault::Malformed));
        let three = ["1", "1", "0/0"].map(Some);
        assert_eq!(system(&three), ("IdentifySystem.dbname", Fault::Truncated));
        let slot = read(&[None], |row| CreatedSlot::read(row).unwrap_err());
        assert_eq!(slot, DecodeError::new("CreatedSlot.slot_name", Fault::Malformed));
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

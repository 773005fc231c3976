//! What Kafka keeps of the relay's position: an offset of a consumer group, committed in the same transaction as the
//! facts before it.

use super::kafka::StoredPosition;
use super::position::{Position, Timelines, Unit};
use factlib_protocol::Lsn;
use serde::{Deserialize, Serialize};

/// The form of the metadata, for who reads it later.
const VERSION: u32 = 1;

/// How far the facts are in Kafka, each once.
///
/// Everything before [`PositionRecord::lsn`] is, and everything up to [`PositionRecord::fact`], which is behind that
/// only in a unit that was split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PositionRecord {
    /// System identifier of the PostgreSQL cluster.
    pub system: u64,
    /// The timeline that `lsn` is on.
    pub timeline: u32,
    /// What PostgreSQL may be told.
    pub lsn: Lsn,
    /// The last fact; none if there never was one.
    pub fact: Option<Position>,
    /// In how many parts the unit of that fact is there already, if it is not there as a whole; else 0.
    pub parts: u32,
}

/// The metadata, as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Metadata {
    version: u32,
    /// As a text: readers of JSON take numbers for floating point.
    system: String,
    timeline: u32,
    /// As people and PostgreSQL write it.
    lsn: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fact: Option<String>,
    #[serde(default, skip_serializing_if = "is_zero")]
    parts: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
const fn is_zero(parts: &u32) -> bool {
    *parts == 0
}

impl PositionRecord {
    /// As Kafka keeps it: the offset is the LSN, which tools show, and the metadata say the rest.
    pub fn to_stored(&self) -> StoredPosition {
        let metadata = Metadata {
            version: VERSION,
            system: self.system.to_string(),
            timeline: self.timeline,
            lsn: self.lsn.to_string(),
            fact: self.fact.map(|fact| fact.to_string()),
            parts: self.parts,
        };
        // Of texts and numbers, so it cannot fail.
        let metadata = serde_json::to_string(&metadata).unwrap_or_default();
        // PostgreSQL's positions end long before the sign.
        StoredPosition { offset: self.lsn.0.cast_signed(), metadata }
    }

    /// What [`PositionRecord::to_stored`] wrote.
    ///
    /// # Errors
    ///
    /// A sentence, if it was not written so: somebody has set the group's offset by hand.
    pub fn from_stored(stored: &StoredPosition) -> Result<Self, String> {
        let unreadable = |why: &str| {
            // Anybody's words.
            let found: String = stored.metadata.chars().take(200).collect();
            format!("offset {} with metadata {found:?}: {why}", stored.offset)
        };
        let metadata: Metadata = serde_json::from_str(&stored.metadata)
            .map_err(|_| unreadable("the metadata are not the relay's"))?;
        if metadata.version != VERSION {
            return Err(unreadable("it was written by a later version of owlpost"));
        }
        let lsn = Lsn(stored.offset.cast_unsigned());
        let system = metadata.system.parse().ok();
        let fact = metadata.fact.map(|fact| Position::from_text(fact.as_bytes()));
        match (system, fact) {
            (Some(system), fact @ (None | Some(Some(_)))) if lsn.to_string() == metadata.lsn => {
                let (timeline, parts) = (metadata.timeline, metadata.parts);
                Ok(Self { system, timeline, lsn, fact: fact.flatten(), parts })
            }
            _ => Err(unreadable("offset and metadata do not fit")),
        }
    }

    /// What it means to a server whose slot stands at `confirmed`, with this history.
    pub fn on(&self, timelines: &Timelines, confirmed: Lsn) -> Standing {
        // Where the timeline of the position ended in the history of the server's.
        let end = match self.timeline == timelines.current() {
            true => None,
            false => match timelines.end_of(self.timeline) {
                Some(end) => Some(end),
                None => return Standing::ElsewhereInHistory,
            },
        };
        match end {
            // Of what comes after the switch Kafka has nothing; what the old timeline had there is gone.
            Some(end) if self.lsn > end => Standing::BeyondTheSwitch { end },
            _ if confirmed > self.lsn => Standing::Gap { bytes: confirmed.0 - self.lsn.0 },
            _ => Standing::Comparable,
        }
    }

    /// The unit that is there in part only.
    pub fn split(&self) -> Option<Unit> {
        self.fact.filter(|_| self.parts > 0).map(|fact| fact.unit)
    }
}

/// See [`PositionRecord::on`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The server may be told it.
    Comparable,
    /// PostgreSQL was told so many bytes of WAL more than Kafka has a position for.
    Gap {
        /// Bytes of WAL.
        bytes: u64,
    },
    /// It was committed on a timeline that another one replaced at `end`, and lies behind that.
    BeyondTheSwitch {
        /// Where the other one began.
        end: Lsn,
    },
    /// The server has never been on its timeline.
    ElsewhereInHistory,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> PositionRecord {
        PositionRecord {
            system: u64::MAX,
            timeline: 2,
            lsn: Lsn(0x16_B374_8000),
            fact: Some(Position {
                timeline: 1,
                unit: Unit::transaction(Lsn(0x151_7030)),
                index: 7,
            }),
            parts: 0,
        }
    }

    #[test]
    fn what_is_stored_is_read_back() {
        let whole = record();
        for record in
            [whole, PositionRecord { fact: None, ..whole }, PositionRecord { parts: 3, ..whole }]
        {
            let stored = record.to_stored();
            assert!(stored.metadata.len() < 300, "{}", stored.metadata);
            assert_eq!(PositionRecord::from_stored(&stored), Ok(record));
        }
        assert_eq!(
            whole.to_stored().metadata,
            r#"{"version":1,"system":"18446744073709551615","timeline":2,"lsn":"16/B3748000","fact":"00000001.0000000001517030.1.00000007"}"#
        );
    }

    #[test]
    fn what_somebody_else_wrote_is_not_a_position() {
        let stored = record().to_stored();
        let moved = StoredPosition { offset: stored.offset + 1, metadata: stored.metadata.clone() };
        let by_hand = StoredPosition { offset: 12, metadata: String::new() };
        let later = stored.metadata.replace("\"version\":1", "\"version\":2");
        let later = StoredPosition { metadata: later, ..stored };
        for (stored, why) in
            [(moved, "do not fit"), (by_hand, "not the relay's"), (later, "later version")]
        {
            let error = PositionRecord::from_stored(&stored).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn positions_of_another_timeline_are_compared_only_before_the_switch() {
        let record = PositionRecord { timeline: 1, lsn: Lsn(100), ..record() };
        let on = |timelines: &Timelines, confirmed| record.on(timelines, Lsn(confirmed));
        let same = Timelines::new(1, Vec::new());
        assert_eq!(on(&same, 100), Standing::Comparable);
        assert_eq!(on(&same, 140), Standing::Gap { bytes: 40 });
        let after = Timelines::new(2, vec![(1, Lsn(120))]);
        assert_eq!(on(&after, 90), Standing::Comparable);
        assert_eq!(on(&after, 110), Standing::Gap { bytes: 10 });
        let before = Timelines::new(2, vec![(1, Lsn(80))]);
        assert_eq!(on(&before, 70), Standing::BeyondTheSwitch { end: Lsn(80) });
        assert_eq!(on(&before, 200), Standing::BeyondTheSwitch { end: Lsn(80) });
        let other = Timelines::new(9, vec![(8, Lsn(80))]);
        assert_eq!(on(&other, 70), Standing::ElsewhereInHistory);
    }
}

//! What Kafka keeps of the relay's position: an offset of a consumer group, committed in the same transaction as the
//! facts before it.

use super::kafka::StoredPosition;
use super::position::{Histories, Position, Timelines, Unit};
use factlib_protocol::Lsn;
use serde::{Deserialize, Serialize};

/// The form of the metadata, for who reads it later.
const VERSION: u32 = 1;

/// So many failovers are kept, of the last ones: a broker takes 4,096 bytes of metadata (`offset.metadata.max.bytes`),
/// and each is 33 at most.
pub const SWITCHES_KEPT: usize = 32;

/// How far the facts are in Kafka, each once.
///
/// Everything before [`PositionRecord::lsn`] is, and everything up to [`PositionRecord::fact`], which is behind that
/// only in a unit that was split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PositionRecord {
    /// System identifier of the PostgreSQL cluster.
    pub system: u64,
    /// The server's history when it was written, of which `lsn` is a place.
    pub timelines: Timelines,
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
    /// Timelines before, and where each ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    history: Vec<(u32, String)>,
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
            timeline: self.timelines.current(),
            history: self
                .timelines
                .ended()
                .iter()
                .map(|(it, end)| (*it, end.to_string()))
                .collect(),
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
        let switch = |(timeline, end): &(u32, String)| Some((*timeline, end.parse().ok()?));
        let history: Option<Vec<_>> = metadata.history.iter().map(switch).collect();
        match (system, fact, history) {
            (Some(system), fact @ (None | Some(Some(_))), Some(history))
                if lsn.to_string() == metadata.lsn =>
            {
                let timelines = Timelines::new(metadata.timeline, history);
                Ok(Self { system, timelines, lsn, fact: fact.flatten(), parts: metadata.parts })
            }
            _ => Err(unreadable("offset and metadata do not fit")),
        }
    }

    /// What it means to a server whose slot stands at `confirmed`, with this history.
    pub fn on(&self, server: &Timelines, confirmed: Lsn) -> Standing {
        let up_to = |from: Lsn, standing| match confirmed > from {
            true => Standing::Gap { from, bytes: confirmed.0 - from.0 },
            false => standing,
        };
        let (timeline, end, is_fork) = match self.timelines.beside(server) {
            Histories::One => return up_to(self.lsn, Standing::Comparable),
            Histories::Apart => return Standing::ElsewhereInHistory,
            Histories::Part { timeline, end, is_fork } => (timeline, end, is_fork),
        };
        let has_facts_beyond = self.fact.is_some_and(|fact| !fact.unit.lies_before(end));
        if self.lsn <= end && !has_facts_beyond {
            return up_to(self.lsn, Standing::Comparable);
        }
        if has_facts_beyond && (is_fork || server.current() < self.timelines.current()) {
            return Standing::Forked { timeline, end };
        }
        // Kafka has all of the common part. What the server has of the same timeline behind that an earlier position may
        // have covered; of the timelines after it Kafka has nothing.
        let beyond = Standing::BeyondTheSwitch { timeline, end };
        server.end_of(timeline).map_or(beyond, |from| up_to(from, beyond))
    }

    /// What it is on a server that left its history at `end`, where `timeline` was the last that both have: Kafka has all
    /// that is before.
    #[must_use]
    pub fn cut(&self, timeline: u32, end: Lsn) -> Self {
        let last = Position { timeline, unit: Unit::message(end), index: u32::MAX };
        let (lsn, fact) = (self.lsn.min(end), self.fact.map(|fact| fact.min(last)));
        Self { lsn, fact, parts: 0, ..self.clone() }
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
        /// Up to where it has everything.
        from: Lsn,
        /// Bytes of WAL.
        bytes: u64,
    },
    /// It is behind the end of what both histories have, and a later timeline goes on from there: a failover to a
    /// server that lagged.
    BeyondTheSwitch {
        /// The last timeline that both have.
        timeline: u32,
        /// Up to where.
        end: Lsn,
    },
    /// The same, with facts behind that place, but the server's timeline has the same number, or a lower one: its
    /// positions are taken for repeats.
    Forked {
        /// The last timeline that both have.
        timeline: u32,
        /// Up to where.
        end: Lsn,
    },
    /// The histories have nothing in common, as far as the position says.
    ElsewhereInHistory,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> PositionRecord {
        PositionRecord {
            system: u64::MAX,
            timelines: Timelines::new(2, vec![(1, Lsn(0x152_0000))]),
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
        let highest = vec![(u32::MAX, Lsn(u64::MAX)); SWITCHES_KEPT + 1];
        for record in [
            whole.clone(),
            PositionRecord { fact: None, ..whole.clone() },
            PositionRecord { parts: 3, ..whole.clone() },
            PositionRecord {
                timelines: Timelines::new(u32::MAX, highest).newest(SWITCHES_KEPT),
                ..whole.clone()
            },
        ] {
            let stored = record.to_stored();
            assert!(stored.metadata.len() < 2048, "{}", stored.metadata);
            assert_eq!(PositionRecord::from_stored(&stored), Ok(record));
        }
        assert_eq!(
            whole.to_stored().metadata,
            r#"{"version":1,"system":"18446744073709551615","timeline":2,"history":[[1,"0/1520000"]],"lsn":"16/B3748000","fact":"00000001.0000000001517030.1.00000007"}"#
        );
    }

    #[test]
    fn what_somebody_else_wrote_is_not_a_position() {
        let stored = record().to_stored();
        let moved = StoredPosition { offset: stored.offset + 1, metadata: stored.metadata.clone() };
        let by_hand = StoredPosition { offset: 12, metadata: String::new() };
        let later = stored.metadata.replace("\"version\":1", "\"version\":2");
        let later = StoredPosition { metadata: later, ..stored };
        let nowhere = stored.metadata.replace("0/1520000", "nowhere");
        let nowhere = StoredPosition { metadata: nowhere, ..stored };
        for (stored, why) in [
            (moved, "do not fit"),
            (nowhere, "do not fit"),
            (by_hand, "not the relay's"),
            (later, "later version"),
        ] {
            let error = PositionRecord::from_stored(&stored).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn positions_of_another_timeline_are_compared_only_before_the_switch() {
        let on = |of: &Timelines, server: &Timelines, confirmed| {
            let record =
                PositionRecord { timelines: of.clone(), lsn: Lsn(100), fact: None, ..record() };
            record.on(server, Lsn(confirmed))
        };
        let history = |current, ended: &[(u32, u64)]| {
            Timelines::new(current, ended.iter().map(|(it, end)| (*it, Lsn(*end))).collect())
        };
        let gap = |from, bytes| Standing::Gap { from: Lsn(from), bytes };
        let first = history(1, &[]);
        assert_eq!(on(&first, &first, 100), Standing::Comparable);
        assert_eq!(on(&first, &first, 140), gap(100, 40));
        let after = history(2, &[(1, 120)]);
        assert_eq!(on(&first, &after, 90), Standing::Comparable);
        assert_eq!(on(&first, &after, 110), gap(100, 10));
        let before = history(2, &[(1, 80)]);
        let beyond = Standing::BeyondTheSwitch { timeline: 1, end: Lsn(80) };
        assert_eq!(on(&first, &before, 70), beyond);
        assert_eq!(on(&first, &before, 90), gap(80, 10));
        let other = history(9, &[(8, 80)]);
        assert_eq!(on(&first, &other, 70), Standing::ElsewhereInHistory);
        // The second failover from one parent.
        assert_eq!(on(&before, &history(3, &[(1, 80)]), 70), beyond);
        assert_eq!(on(&after, &history(3, &[(1, 110)]), 90), Standing::Comparable);
    }

    /// Symptom: a failover to the second of two standbys, whose slot stood behind where the first had left their primary,
    /// was taken for a gap.
    #[test]
    fn what_the_server_was_told_of_the_timeline_that_both_had_is_no_gap() {
        let timelines = Timelines::new(2, vec![(1, Lsn(200))]);
        let record = PositionRecord { timelines, lsn: Lsn(300), ..record() };
        let server = Timelines::new(3, vec![(1, Lsn(220))]);
        let beyond = Standing::BeyondTheSwitch { timeline: 1, end: Lsn(200) };
        assert_eq!(record.on(&server, Lsn(215)), beyond);
        let gap = Standing::Gap { from: Lsn(220), bytes: 10 };
        assert_eq!(record.on(&server, Lsn(230)), gap);
    }

    #[test]
    fn a_timeline_of_the_same_number_or_a_lower_one_is_a_fork_once_there_are_facts_of_it() {
        let history = |current, end| Timelines::new(current, vec![(1, Lsn(end))]);
        let record = |lsn| {
            let unit = Unit::transaction(Lsn(lsn - 1));
            let fact = Some(Position { timeline: 2, unit, index: 0 });
            PositionRecord { timelines: history(2, 80), lsn: Lsn(lsn), fact, ..record() }
        };
        let beyond = |end| Standing::BeyondTheSwitch { timeline: 1, end: Lsn(end) };
        let forked = Standing::Forked { timeline: 1, end: Lsn(70) };
        assert_eq!(record(75).on(&history(2, 70), Lsn(60)), forked);
        assert_eq!(record(70).on(&history(2, 70), Lsn(60)), Standing::Comparable);
        let old_primary = Timelines::new(1, Vec::new());
        let forked = Standing::Forked { timeline: 1, end: Lsn(80) };
        assert_eq!(record(90).on(&old_primary, Lsn(60)), forked);
        assert_eq!(record(80).on(&old_primary, Lsn(60)), Standing::Comparable);
        // The failover was called off before there was a fact.
        let without = PositionRecord { lsn: Lsn(90), ..record(80) };
        assert_eq!(without.on(&old_primary, Lsn(60)), beyond(80));
        // A transaction that is there in part is behind the position.
        let unit = Unit::transaction(Lsn(75));
        let part = PositionRecord {
            fact: Some(Position { timeline: 2, unit, index: 3 }),
            parts: 1,
            ..record(60)
        };
        let forked = Standing::Forked { timeline: 1, end: Lsn(70) };
        assert_eq!(part.on(&history(2, 70), Lsn(60)), forked);
    }

    #[test]
    fn of_a_position_that_is_cut_all_before_is_known_and_nothing_behind() {
        let unit = Unit::transaction(Lsn(100));
        let fact = Some(Position { timeline: 2, unit, index: 3 });
        let split = PositionRecord { lsn: Lsn(75), fact, parts: 2, ..record() };
        assert_eq!(split.cut(1, Lsn(80)).lsn, Lsn(75), "no more than was committed");
        let cut = PositionRecord { lsn: Lsn(90), ..split }.cut(1, Lsn(80));
        let last = cut.fact.unwrap();
        assert_eq!((cut.lsn, cut.parts), (Lsn(80), 0));
        let server = Timelines::new(3, vec![(1, Lsn(80))]);
        for (unit, is_known) in [
            (Unit::transaction(Lsn(79)), true),
            (Unit::message(Lsn(80)), true),
            (Unit::transaction(Lsn(80)), false),
            (Unit::message(Lsn(81)), false),
        ] {
            let position = Position { timeline: server.of(unit), unit, index: 0 };
            assert_eq!(position <= last, is_known, "{unit:?}");
        }
        let earlier = Some(Position { timeline: 1, unit: Unit::message(Lsn(40)), index: 0 });
        assert_eq!(PositionRecord { fact: earlier, ..record() }.cut(1, Lsn(80)).fact, earlier);
    }
}

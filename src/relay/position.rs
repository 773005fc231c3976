//! Where a fact stands in delivery order.
//!
//! Message LSNs go up and down in the stream (they keep the place where they were written, while
//! transactions come in commit order), so nothing here is ever compared by them.

use factlib_protocol::Lsn;
use std::fmt;

/// What kind of [`Unit`] an LSN names. The order decides a tie that really occurs: a
/// non-transactional message's record may end exactly where the next commit record starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// One non-transactional message, named by its own LSN (the end of its WAL record).
    Message = 0,
    /// A transaction, named by `Begin.final_lsn` (the start of its commit record).
    Transaction = 1,
}

/// A delivery unit: what PostgreSQL delivers, and delivers again, as a whole.
///
/// Units arrive in strictly increasing order within a timeline, and the WAL names them: the same
/// unit has the same name in every session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unit {
    /// `Begin.final_lsn`, or the message LSN of a non-transactional message.
    pub lsn: Lsn,
    /// Which of the two `lsn` is.
    pub class: Class,
}

impl Unit {
    /// The transaction whose commit record starts at `final_lsn`.
    pub const fn transaction(final_lsn: Lsn) -> Self {
        Self { lsn: final_lsn, class: Class::Transaction }
    }

    /// The non-transactional message whose record ends at `lsn`.
    pub const fn message(lsn: Lsn) -> Self {
        Self { lsn, class: Class::Message }
    }

    /// Whether the record that names it lies before `lsn`: a commit record is named by its first byte, a
    /// message's record by its end.
    pub fn lies_before(self, lsn: Lsn) -> bool {
        match self.class {
            Class::Transaction => self.lsn < lsn,
            Class::Message => self.lsn <= lsn,
        }
    }
}

/// A fact's place in delivery order: timeline, unit, and index among all messages of its unit.
///
/// The timeline comes first because LSNs are used again after a promotion: a fact that only the old
/// primary ever had must never hide a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The timeline on which the unit was written.
    pub timeline: u32,
    /// The unit.
    pub unit: Unit,
    /// Index among *all* messages of the unit, whatever their prefix, so that another list of
    /// prefixes renumbers nothing.
    pub index: u32,
}

impl Position {
    /// Length of the text form in bytes.
    pub const TEXT_LEN: usize = 8 + 1 + 16 + 1 + 1 + 1 + 8;

    /// `timeline.lsn.class.index` in lower-case hexadecimal of fixed width, so that the order of
    /// the bytes is delivery order.
    pub fn text(&self) -> [u8; Self::TEXT_LEN] {
        let mut text = [b'.'; Self::TEXT_LEN];
        let (timeline, rest) = text.split_at_mut(8);
        let (_, rest) = rest.split_at_mut(1);
        let (lsn, rest) = rest.split_at_mut(16);
        let (_, rest) = rest.split_at_mut(1);
        let (class, rest) = rest.split_at_mut(1);
        let (_, index) = rest.split_at_mut(1);
        timeline.copy_from_slice(&hex(self.timeline));
        let halves = self.unit.lsn.0.to_be_bytes();
        for (place, half) in lsn.as_chunks_mut().0.iter_mut().zip(halves.as_chunks().0) {
            *place = hex(u32::from_be_bytes(*half));
        }
        class.fill(b'0' + self.unit.class as u8);
        index.copy_from_slice(&hex(self.index));
        text
    }
}

impl Position {
    /// Reads what [`Position::text`] wrote.
    pub fn from_text(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok().filter(|text| text.len() == Self::TEXT_LEN)?;
        let mut fields = text.split('.').map(|field| u64::from_str_radix(field, 16).ok());
        let mut field = || fields.next().flatten();
        let timeline = u32::try_from(field()?).ok()?;
        let (lsn, class) = (Lsn(field()?), field()?);
        let unit = match class {
            0 => Unit::message(lsn),
            1 => Unit::transaction(lsn),
            _ => return None,
        };
        Some(Self { timeline, unit, index: u32::try_from(field()?).ok()? })
    }
}

/// Eight digits, all at once: it is in every record.
const fn hex(value: u32) -> [u8; 8] {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let mut digits = value as u64;
    digits = (digits | digits << 16) & 0x0000_ffff_0000_ffff;
    digits = (digits | digits << 8) & 0x00ff_00ff_00ff_00ff;
    digits = (digits | digits << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    let letters = ((digits + 6 * EACH) >> 4) & EACH;
    (digits + b'0' as u64 * EACH + (b'a' - b'9' - 1) as u64 * letters).to_be_bytes()
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { timeline, unit, index } = self;
        write!(f, "{timeline:08x}.{:016x}.{:x}.{index:08x}", unit.lsn.0, unit.class as u8)
    }
}

/// Which timeline wrote which part of the WAL: the server's answer to `TIMELINE_HISTORY`.
///
/// Without it the facts of the common part would carry another timeline after a failover than
/// before, and a consumer could not recognise a repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timelines {
    current: u32,
    /// Ended timelines and the LSN at which each ended, oldest first.
    ended: Vec<(u32, Lsn)>,
}

impl Timelines {
    /// `current` is IDENTIFY_SYSTEM's answer; `ended` lists its ancestors, oldest first, each with
    /// the LSN at which the next one branched off.
    pub fn new(current: u32, ended: Vec<(u32, Lsn)>) -> Self {
        Self { current, ended }
    }

    /// The timeline the server is on.
    pub fn current(&self) -> u32 {
        self.current
    }

    /// Ended timelines, oldest first, and where each ended.
    pub fn ended(&self) -> &[(u32, Lsn)] {
        &self.ended
    }

    /// Where `timeline` ended, if it did.
    pub fn end_of(&self, timeline: u32) -> Option<Lsn> {
        self.ended.iter().find(|(ended, _)| *ended == timeline).map(|(_, end)| *end)
    }

    /// Without what is older than the last `switches`.
    #[must_use]
    pub fn newest(&self, switches: usize) -> Self {
        let from = self.ended.len().saturating_sub(switches);
        Self { current: self.current, ended: self.ended.iter().skip(from).copied().collect() }
    }

    /// How this history lies to that of `other`, of the same cluster: another server, or the same one later.
    ///
    /// Two standbys that are promoted apart from each other both choose the next number that they know of, which may
    /// be the same one; only where it begins tells them apart, if it is not at the same LSN.
    pub fn beside(&self, other: &Self) -> Histories {
        let common = |one: &Self, timeline: u32| one.all().any(|(it, _)| it == timeline);
        let mut ours = self.all().skip_while(|(it, _)| !common(other, *it)).peekable();
        let Some((first, _)) = ours.peek().copied() else { return Histories::Apart };
        let mut theirs = other.all().skip_while(|(it, _)| *it != first).peekable();
        let mut parting = (first, None);
        while let (Some(one), Some(another)) = (ours.peek().copied(), theirs.peek().copied()) {
            if one.0 != another.0 {
                break;
            }
            let ends = [one.1, another.1];
            parting = (one.0, ends.into_iter().flatten().min());
            ours.next();
            theirs.next();
            if one.1 != another.1 {
                break;
            }
        }
        let (timeline, Some(end)) = parting else { return Histories::One };
        let is_fork = ours.any(|(it, _)| theirs.clone().any(|(another, _)| another == it));
        Histories::Part { timeline, end, is_fork }
    }

    /// Each timeline and where it ended; the current one has not.
    fn all(&self) -> impl Iterator<Item = (u32, Option<Lsn>)> + Clone {
        let ended = self.ended.iter().map(|(timeline, end)| (*timeline, Some(*end)));
        ended.chain([(self.current, None)])
    }

    /// The timeline that wrote `unit`.
    pub fn of(&self, unit: Unit) -> u32 {
        let ended = self.ended.iter().find(|(_, switch)| unit.lies_before(*switch));
        ended.map_or(self.current, |(timeline, _)| *timeline)
    }
}

/// See [`Timelines::beside`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Histories {
    /// As far as both are known they are one, and on the same timeline now.
    One,
    /// They are one up to a place.
    Part {
        /// The last timeline that both have.
        timeline: u32,
        /// Where one of them leaves it, or both do.
        end: Lsn,
        /// Behind that both have a timeline of the same number: positions there are of one or the other.
        is_fork: bool,
    },
    /// There is no timeline that both have.
    Apart,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(timeline: u32, unit: Unit, index: u32) -> Position {
        Position { timeline, unit, index }
    }

    #[test]
    fn text_has_the_order_of_delivery() {
        let in_order = [
            position(1, Unit::message(Lsn(0x151_7030)), 0),
            position(1, Unit::transaction(Lsn(0x151_7030)), 0),
            position(1, Unit::transaction(Lsn(0x151_7030)), 10),
            position(1, Unit::transaction(Lsn(0xffff_ffff_0000_0000)), 3),
            position(2, Unit::transaction(Lsn(0x151_7000)), 0),
            position(0x10, Unit::message(Lsn(1)), u32::MAX),
        ];
        for pair in in_order.windows(2) {
            assert!(pair[0] < pair[1]);
            assert!(pair[0].text() < pair[1].text());
        }
        for one in in_order {
            assert_eq!(one.to_string().as_bytes(), one.text());
        }
        assert_eq!(in_order[1].to_string(), "00000001.0000000001517030.1.00000000");
    }

    #[test]
    fn a_unit_of_the_common_part_keeps_its_timeline_after_a_failover() {
        let timelines = Timelines::new(3, vec![(1, Lsn(0x100)), (2, Lsn(0x200))]);
        assert_eq!(timelines.of(Unit::transaction(Lsn(0xff))), 1);
        assert_eq!(timelines.of(Unit::transaction(Lsn(0x100))), 2);
        assert_eq!(timelines.of(Unit::message(Lsn(0x100))), 1);
        assert_eq!(timelines.of(Unit::message(Lsn(0x101))), 2);
        assert_eq!(timelines.of(Unit::transaction(Lsn(0x200))), 3);
    }

    #[test]
    fn two_histories_are_one_up_to_where_the_first_of_them_leaves() {
        let history = |current, ended: &[(u32, u64)]| {
            Timelines::new(current, ended.iter().map(|(it, end)| (*it, Lsn(*end))).collect())
        };
        let part = |timeline, end, is_fork| Histories::Part { timeline, end: Lsn(end), is_fork };
        for (one, another, expected) in [
            (history(1, &[]), history(1, &[]), Histories::One),
            (history(2, &[(1, 80)]), history(2, &[(1, 80)]), Histories::One),
            // A promotion, two of them, and an old primary that is still up.
            (history(1, &[]), history(2, &[(1, 80)]), part(1, 80, false)),
            (history(2, &[(1, 80)]), history(3, &[(1, 80), (2, 90)]), part(2, 90, false)),
            (history(1, &[]), history(3, &[(1, 80), (2, 90)]), part(1, 80, false)),
            // Two of one parent, whose numbers differ, at different places and at the same.
            (history(2, &[(1, 80)]), history(3, &[(1, 70)]), part(1, 70, false)),
            (history(2, &[(1, 80)]), history(3, &[(1, 80)]), part(1, 80, false)),
            // Whose numbers are the same.
            (history(2, &[(1, 80)]), history(2, &[(1, 70)]), part(1, 70, true)),
            (history(3, &[(1, 80), (2, 90)]), history(2, &[(1, 70)]), part(1, 70, true)),
            // What is older than what is known counts as the same.
            (history(3, &[(2, 90)]), history(3, &[(1, 80), (2, 90)]), Histories::One),
            (history(3, &[]), history(4, &[(1, 80), (3, 95)]), part(3, 95, false)),
            (history(2, &[]), history(3, &[(1, 80)]), Histories::Apart),
        ] {
            assert_eq!(one.beside(&another), expected, "{one:?} {another:?}");
            assert_eq!(another.beside(&one), expected, "{another:?} {one:?}");
        }
        assert_eq!(history(3, &[(1, 80), (2, 90)]).newest(1), history(3, &[(2, 90)]));
    }
}

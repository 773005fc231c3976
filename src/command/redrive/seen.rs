//! Which dead letters of a partition have been seen to. Pure.
//!
//! Everything before an offset, and some behind it, because those that are left stay where they are. It is the offset
//! that a consumer group remembers, and the text beside it: `+2-5,+1` means that from the offset on, two are left, six
//! are seen to, one is left, and one is seen to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;

/// A broker takes 4,096 bytes by default (`offset.metadata.max.bytes`).
const METADATA_MAX: usize = 4096;

/// Offsets that have been seen to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// All before this.
    next: i64,
    /// And these: from the key up to, but without, the value. Neither `next` nor another run is adjacent to one.
    behind: BTreeMap<i64, i64>,
}

impl Seen {
    /// What [`Seen::metadata`] wrote. Text that is somebody else's means nothing.
    pub(super) fn read(next: i64, metadata: &str) -> Self {
        let mut seen = Self { next, behind: BTreeMap::new() };
        let mut at = next;
        for run in metadata.split(',') {
            let Some(run) = run.strip_prefix('+') else { break };
            let (left, more) = run.split_once('-').unwrap_or((run, "0"));
            let (Ok(left), Ok(more)) = (left.parse::<u32>(), more.parse::<u32>()) else { break };
            let first = at.saturating_add(i64::from(left));
            at = first.saturating_add(i64::from(more)).saturating_add(1);
            if left == 0 {
                seen.next = at;
            } else {
                seen.behind.insert(first, at);
            }
        }
        seen
    }

    /// What is before `first` is gone.
    pub(super) fn begin(&mut self, first: i64) {
        let Some((_, end)) = self.behind.range(..=first).next_back() else {
            self.next = self.next.max(first);
            return;
        };
        self.next = first.max(*end);
        self.behind = self.behind.split_off(&self.next);
    }

    /// The first that has not been seen to.
    pub(super) fn next(&self) -> i64 {
        self.next
    }

    /// Whether it has been seen to.
    pub(super) fn has(&self, offset: i64) -> bool {
        let run = self.behind.range(..=offset).next_back();
        offset < self.next || run.is_some_and(|(_, end)| offset < *end)
    }

    /// It has been seen to.
    pub(super) fn add(&mut self, offset: i64) {
        self.add_all(offset..offset + 1);
    }

    /// They have been seen to.
    pub(super) fn add_all(&mut self, offsets: Range<i64>) {
        let Range { mut start, mut end } = offsets;
        if start >= end {
            return;
        }
        if let Some((first, _)) =
            self.behind.range(..start).next_back().filter(|(_, e)| **e >= start)
        {
            start = *first;
        }
        // Those that it touches.
        while let Some((first, last)) = self.behind.range(start..=end).next().map(|(f, l)| (*f, *l))
        {
            self.behind.remove(&first);
            end = end.max(last);
        }
        if start > self.next {
            self.behind.insert(start, end);
            return;
        }
        self.next = self.next.max(end);
        // What was before `next` touches nothing else only if it did not move it.
        while let Some((first, last)) = self.behind.first_key_value().map(|(f, l)| (*f, *l)) {
            if first > self.next {
                break;
            }
            self.behind.remove(&first);
            self.next = self.next.max(last);
        }
    }

    /// The text to be remembered beside [`Seen::next`].
    pub(super) fn metadata(&self) -> Result<String, String> {
        let mut text = String::new();
        let mut at = self.next;
        for (first, end) in &self.behind {
            let comma = if text.is_empty() { "" } else { "," };
            // Writing to a String cannot fail.
            let _ = write!(text, "{comma}+{}", first - at);
            if *end > first + 1 {
                let _ = write!(text, "-{}", end - first - 1);
            }
            at = *end;
        }
        if text.len() > METADATA_MAX {
            return Err(
                "too many dead letters are left between those that were sent, so that these cannot be remembered: \
                 see to those that are left, or accept them with --accept-left"
                    .to_owned(),
            );
        }
        Ok(text)
    }
}

/// What of these offsets has no letter, and never will: markers of transactions, and what was aborted.
pub(super) fn gaps(offsets: Range<i64>, letters: impl IntoIterator<Item = i64>) -> Vec<Range<i64>> {
    let mut gaps = Vec::new();
    let mut next = offsets.start;
    for letter in letters {
        gaps.push(next..letter);
        next = letter + 1;
    }
    gaps.push(next..offsets.end);
    gaps.retain(|gap| gap.start < gap.end);
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seen(next: i64, behind: &[i64]) -> Seen {
        let mut seen = Seen { next, behind: BTreeMap::new() };
        behind.iter().for_each(|offset| seen.add(*offset));
        seen
    }

    #[test]
    fn runs_behind_what_is_left_are_written_short() {
        let seen = seen(10, &[12, 13, 14, 15, 16, 17, 19]);
        assert_eq!((seen.next(), seen.metadata().unwrap().as_str()), (10, "+2-5,+1"));
        assert_eq!(Seen::read(10, "+2-5,+1"), seen);
        assert!(seen.has(9) && !seen.has(10) && seen.has(17) && !seen.has(18) && seen.has(19));
    }

    #[test]
    fn what_is_adjacent_moves_the_offset() {
        let mut seen = seen(10, &[11, 12]);
        assert_eq!(seen.next(), 10);
        seen.add(10);
        assert_eq!((seen.next(), seen.metadata().unwrap().as_str()), (13, ""));
        seen.begin(20);
        assert_eq!(seen.next(), 20, "those before have expired");
        seen.add(25);
        seen.add(23);
        seen.add(24);
        assert_eq!(seen.metadata().unwrap(), "+3-2");
        seen.begin(24);
        assert_eq!((seen.next(), seen.metadata().unwrap().as_str()), (26, ""));
    }

    #[test]
    fn markers_between_letters_are_no_letters_that_are_left() {
        // Each in a transaction of its own: letter, marker, letter, ...
        let letters: Vec<i64> = (0..2000).map(|n| 2 * n).collect();
        let mut seen = seen(0, &letters);
        assert!(seen.metadata().is_err());
        for gap in gaps(0..4000, letters) {
            seen.add_all(gap);
        }
        assert_eq!((seen.next(), seen.metadata().unwrap().as_str()), (4000, ""));
        assert_eq!(gaps(4..9, [5, 6, 8]), [4..5, 7..8]);
        assert_eq!(gaps(5..9, []).first(), Some(&(5..9)));
    }

    #[test]
    fn text_of_others_means_nothing() {
        for text in ["", "NO_METADATA", "+", "+x", "+1-", "+1-99999999999", "-3"] {
            assert_eq!(Seen::read(5, text), seen(5, &[]), "{text}");
        }
        assert_eq!(Seen::read(i64::MAX, "+4294967295-4294967295").next(), i64::MAX);
    }

    #[test]
    fn more_than_a_broker_takes_is_refused() {
        let alternating: Vec<i64> = (0..2000).map(|n| 1 + 2 * n).collect();
        assert!(seen(0, &alternating).metadata().is_err());
        assert_eq!(seen(0, &alternating[..100]).metadata().unwrap().len(), 299);
    }

    proptest! {
        #[test]
        fn runs_are_what_their_offsets_are(
            next in 0..20_i64,
            runs in proptest::collection::vec((0..100_i64, 0..9_i64), 0..20),
        ) {
            let (mut at_once, mut one_by_one) = (seen(next, &[]), seen(next, &[]));
            for (start, len) in runs {
                at_once.add_all(start..start + len);
                (start..start + len).for_each(|offset| one_by_one.add(offset));
                prop_assert_eq!(&at_once, &one_by_one);
            }
            for (first, end) in &at_once.behind {
                prop_assert!(*first > at_once.next && !at_once.behind.contains_key(end));
            }
        }

        #[test]
        fn what_is_written_is_read_back(next in 0..50_i64, behind in proptest::collection::vec(0..200_i64, 0..60)) {
            let seen = seen(next, &behind);
            prop_assert_eq!(Seen::read(seen.next(), &seen.metadata().unwrap()), seen);
        }
    }
}

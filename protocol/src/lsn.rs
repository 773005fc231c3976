//! Positions in the write-ahead log, and the server's clock.
//!
//! <https://www.postgresql.org/docs/current/datatype-pg-lsn.html>

use core::{fmt, str::FromStr};

/// A position in the write-ahead log: bytes since the cluster was made.
///
/// Written `X/X` in upper-case hexadecimal, as the server writes it. There is no arithmetic: a position
/// that no server sent must never be confirmed to one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// `0/0`, the server's `InvalidXLogRecPtr`: no position at all.
    pub const INVALID: Self = Self(0);
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lsn({self})")
    }
}

impl FromStr for Lsn {
    type Err = ParseLsnError;

    /// Accepts what the server's `pg_lsn` type accepts: one to eight hexadecimal digits, a slash, and
    /// one to eight more.
    fn from_str(text: &str) -> Result<Self, ParseLsnError> {
        let half = |digits: &str| {
            // `from_str_radix` alone would take a sign.
            if digits.is_empty()
                || digits.len() > 8
                || !digits.is_ascii()
                || digits.starts_with('+')
            {
                return Err(ParseLsnError(()));
            }
            u64::from_str_radix(digits, 16).map_err(|_| ParseLsnError(()))
        };
        let (high, low) = text.split_once('/').ok_or(ParseLsnError(()))?;
        Ok(Self(half(high)? << 32 | half(low)?))
    }
}

/// The text is not an [`Lsn`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseLsnError(());

impl fmt::Display for ParseLsnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a log position is written as two hexadecimal numbers, like 16/B374D848")
    }
}

impl core::error::Error for ParseLsnError {}

/// A moment on the server's clock: microseconds since 2000-01-01 00:00 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

/// From 1970-01-01 to 2000-01-01, in microseconds.
const UNIX_TO_POSTGRES_MICROS: i64 = 946_684_800_000_000;

impl Timestamp {
    /// Microseconds since 1970-01-01 00:00 UTC, at most `i64::MAX`.
    #[inline]
    #[must_use]
    pub const fn unix_micros(self) -> i64 {
        self.0.saturating_add(UNIX_TO_POSTGRES_MICROS)
    }

    /// Whole milliseconds since 1970-01-01 00:00 UTC, rounded down.
    #[inline]
    #[must_use]
    pub const fn unix_millis(self) -> i64 {
        self.unix_micros().div_euclid(1000)
    }

    /// From microseconds since 1970-01-01 00:00 UTC; earlier than a [`Timestamp`] can say becomes its
    /// smallest value.
    #[inline]
    #[must_use]
    pub const fn from_unix_micros(micros: i64) -> Self {
        Self(micros.saturating_sub(UNIX_TO_POSTGRES_MICROS))
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn positions_are_written_as_the_server_writes_them() {
        for (lsn, text) in [
            (Lsn::INVALID, "0/0"),
            (Lsn(0x16_b374_d848), "16/B374D848"),
            (Lsn(0x1_0000_0001), "1/1"),
            (Lsn(u64::MAX), "FFFFFFFF/FFFFFFFF"),
        ] {
            assert_eq!(lsn.to_string(), text);
            assert_eq!(text.parse(), Ok(lsn));
        }
        assert_eq!("16/b374d848".parse(), Ok(Lsn(0x16_b374_d848)));
        assert_eq!("00000016/00000001".parse(), Ok(Lsn(0x16_0000_0001)));
    }

    #[test]
    fn what_the_server_would_refuse_is_refused() {
        for text in [
            "",
            "/",
            "0",
            "0/",
            "/0",
            "+1/0",
            "1/+0",
            "-1/0",
            "1/2/3",
            "123456789/0",
            "g/0",
            " 1/0",
            "é/0",
        ] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn clocks_agree_on_the_epoch() {
        // select extract(epoch from timestamptz '2024-02-29 12:34:56.789012Z') * 1e6
        let leap = Timestamp(762_525_296_789_012);
        assert_eq!(leap.unix_micros(), 1_709_210_096_789_012);
        assert_eq!(leap.unix_millis(), 1_709_210_096_789);
        assert_eq!(Timestamp::from_unix_micros(1_709_210_096_789_012), leap);
        assert_eq!(Timestamp::from_unix_micros(-1).unix_millis(), -1);
        assert_eq!(Timestamp(i64::MAX).unix_micros(), i64::MAX);
        assert_eq!(Timestamp::from_unix_micros(i64::MIN), Timestamp(i64::MIN));
    }
}

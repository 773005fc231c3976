use std::fmt;
use std::str::FromStr;

/// A position in PostgreSQL's write-ahead log, written `X/X` in hexadecimal as the server writes it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(u64);

impl Lsn {
    /// The position as a number of bytes.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

impl From<u64> for Lsn {
    fn from(position: u64) -> Self {
        Self(position)
    }
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

    /// Takes what the server's type `pg_lsn` takes: two numbers of one to eight hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, ParseLsnError> {
        let half = |digits: &str| {
            // `from_str_radix` alone would take a sign.
            let hexadecimal = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            if !hexadecimal || digits.len() > 8 {
                return Err(ParseLsnError(()));
            }
            u64::from_str_radix(digits, 16).map_err(|_| ParseLsnError(()))
        };
        let (high, low) = text.split_once('/').ok_or(ParseLsnError(()))?;
        Ok(Self(half(high)? << 32 | half(low)?))
    }
}

/// The text is not an [`Lsn`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a log position is written as two hexadecimal numbers, like 16/B374D848")]
pub struct ParseLsnError(());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_written_as_it_was_read() {
        for text in ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"] {
            assert_eq!(text.parse::<Lsn>().unwrap().to_string(), text);
        }
        assert_eq!("00000016/b374d848".parse::<Lsn>(), Ok(Lsn::from(0x16_b374_d848)));
    }

    #[test]
    fn what_the_server_would_not_take_is_no_position() {
        for text in
            ["", "/", "0", "0/", "/0", "0/0/0", "+1/0", "1/-1", "100000000/0", "0/x", " 0/0"]
        {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
    }
}

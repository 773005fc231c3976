//! A place in PostgreSQL's write-ahead log, as the server writes it.

use std::fmt;
use std::str::FromStr;

/// A log sequence number: `X/X` in hex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (high, low) = text.split_once('/')?;
            let high = u32::from_str_radix(high, 16).ok()?;
            let low = u32::from_str_radix(low, 16).ok()?;
            Some(Self(u64::from(high) << 32 | u64::from(low)))
        };
        parse().ok_or_else(|| format!("{text:?} is not a log position"))
    }
}

#[cfg(test)]
mod tests {
    use super::Lsn;

    #[test]
    fn reads_what_it_writes() {
        for (text, number) in [("0/0", 0), ("0/16B3748", 0x16b_3748), ("A/FFFFFFFF", 0xa_ffff_ffff)]
        {
            assert_eq!(text.parse(), Ok(Lsn(number)));
            assert_eq!(Lsn(number).to_string(), text);
        }
        assert!("16B3748".parse::<Lsn>().is_err());
    }
}

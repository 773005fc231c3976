//! What the server answers to the commands.

use alloc::vec::Vec;

use crate::{
    error::{DecodeError, Fault},
    lsn::Lsn,
};

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

    use super::*;

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

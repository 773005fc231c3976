//! What others wrote, on a terminal.

use std::fmt::Write as _;

/// The text with everything that a terminal would obey, or that would turn the direction of reading, as an escape;
/// bytes that are no UTF-8 as `\xNN`.
pub(super) fn printable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                _ if c.is_control() || turns_direction(c) => out.extend(c.escape_default()),
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// Marks of Unicode's bidirectional algorithm, and separators that some terminals take for a line's end.
fn turns_direction(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        for (bytes, text) in [
            ("{\"name\": \"Zoë \u{1f989}\"}".as_bytes(), "{\"name\": \"Zoë \u{1f989}\"}"),
            (b"\x1b[2J\x1b]0;gone\x07", "\\u{1b}[2J\\u{1b}]0;gone\\u{7}"),
            (b"line\r\n\tnext\x7f", "line\\r\\n\\tnext\\u{7f}"),
            ("\u{9b}31m".as_bytes(), "\\u{9b}31m"),
            ("abc\u{202e}fed".as_bytes(), "abc\\u{202e}fed"),
            (b"\xff\xfeok", "\\xff\\xfeok"),
        ] {
            assert_eq!(printable(bytes), text);
        }
    }
}

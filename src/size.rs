//! Sizes for people.
//!
//! bytesize reads what people write. Its `Display` is not used: it takes a logarithm, the only one in the binary, and an
//! idle relay has 0.3 MiB of libm in memory for it.

/// In units of 1024, with one digit behind the point: `512 B`, `1.5 KiB`, `8.0 MiB`.
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut size, mut unit) = (bytes as f64 / 1024.0, UNITS[0]);
    for larger in UNITS.into_iter().skip(1) {
        if size < 1024.0 {
            break;
        }
        (size, unit) = (size / 1024.0, larger);
    }
    format!("{size:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::human;

    #[test]
    fn a_size_has_the_largest_unit_of_which_there_is_one() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (900_000, "878.9 KiB"),
            ((1 << 20) - 1, "1024.0 KiB"),
            (8 << 20, "8.0 MiB"),
            (1 << 40, "1.0 TiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(human(bytes), text);
            assert_eq!(human(bytes), bytesize::ByteSize(bytes).to_string());
        }
    }
}

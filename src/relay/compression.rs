//! The codecs of record batches, each framed as Kafka's Java clients read it.
//!
//! <https://kafka.apache.org/documentation/#recordbatch>, KIP-110 (zstd). gzip is left out: zstd is smaller and
//! several times faster.

use std::io::{Read as _, Write as _};

/// `compression.type` of the Java producer, with its level where the codec has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compression {
    /// As they are.
    #[default]
    None,
    /// Snappy, in the blocks of snappy-java.
    Snappy,
    /// LZ4 frames.
    Lz4,
    /// Zstandard, at this level, from [`ZSTD_LEVELS`].
    Zstd(i32),
}

/// Levels of Zstandard.
pub const ZSTD_LEVELS: std::ops::RangeInclusive<i32> = -7..=22;

/// What snappy-java begins with: its magic, its version, and the oldest that can read it.
const SNAPPY_JAVA: &[u8] = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01";

/// snappy-java's block size.
const SNAPPY_BLOCK: usize = 32 * 1024;

impl Compression {
    /// The codec's number in the attributes of a record batch.
    pub fn attributes(self) -> i16 {
        match self {
            Self::None => 0,
            Self::Snappy => 2,
            Self::Lz4 => 3,
            Self::Zstd(_) => 4,
        }
    }

    /// Appends the compressed form of `plain` to `out`. False if it did not get smaller, or there is no
    /// codec: then `out` is as it was.
    pub fn compress(self, plain: &[u8], out: &mut Vec<u8>) -> bool {
        let before = out.len();
        let done = match self {
            Self::None => false,
            Self::Snappy => snappy(plain, out).is_some(),
            Self::Lz4 => lz4(plain, out).is_some(),
            Self::Zstd(level) => zstd::stream::copy_encode(plain, &mut *out, level).is_ok(),
        };
        let smaller = done && out.len() - before < plain.len();
        if !smaller {
            out.truncate(before);
        }
        smaller
    }

    /// The codec that the attributes of a record batch name; none for gzip, and for what there is not.
    pub fn of_attributes(attributes: i16) -> Option<Self> {
        let codecs = [Self::None, Self::Snappy, Self::Lz4, Self::Zstd(0)];
        codecs.into_iter().find(|codec| codec.attributes() == attributes & CODEC)
    }

    /// What [`Compression::compress`] made, back again: `len` bytes.
    pub fn decompress(self, compressed: &[u8], len: usize) -> Option<Vec<u8>> {
        self.unpack(compressed, len).filter(|plain| plain.len() == len)
    }

    /// What somebody has compressed, if it is not longer than `max` bytes.
    pub fn unpack(self, compressed: &[u8], max: usize) -> Option<Vec<u8>> {
        let mut plain = Vec::new();
        // One byte more, to see whether it is longer.
        let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
        match self {
            Self::None => plain.extend_from_slice(compressed),
            Self::Snappy => unsnappy(compressed, max, &mut plain)?,
            Self::Lz4 => {
                let decoder = lz4_flex::frame::FrameDecoder::new(compressed);
                decoder.take(limit).read_to_end(&mut plain).ok()?;
            }
            Self::Zstd(_) => {
                let decoder = zstd::stream::Decoder::new(compressed).ok()?;
                decoder.take(limit).read_to_end(&mut plain).ok()?;
            }
        }
        (plain.len() <= max).then_some(plain)
    }
}

/// The bits of a record batch's attributes that name the codec.
const CODEC: i16 = 0x7;

fn lz4(plain: &[u8], out: &mut Vec<u8>) -> Option<()> {
    use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
    // As the Java producer makes them; it reads no linked blocks.
    let info = FrameInfo::new().block_size(BlockSize::Max64KB).block_mode(BlockMode::Independent);
    let mut encoder = FrameEncoder::with_frame_info(info, out);
    encoder.write_all(plain).ok()?;
    encoder.finish().ok()?;
    Some(())
}

fn snappy(plain: &[u8], out: &mut Vec<u8>) -> Option<()> {
    out.extend_from_slice(SNAPPY_JAVA);
    let mut encoder = snap::raw::Encoder::new();
    for block in plain.chunks(SNAPPY_BLOCK) {
        let block = encoder.compress_vec(block).ok()?;
        out.extend_from_slice(&u32::try_from(block.len()).ok()?.to_be_bytes());
        out.extend_from_slice(&block);
    }
    Some(())
}

fn unsnappy(compressed: &[u8], max: usize, plain: &mut Vec<u8>) -> Option<()> {
    let mut decoder = snap::raw::Decoder::new();
    let Some(mut rest) = compressed.strip_prefix(SNAPPY_JAVA) else {
        // As other clients write it: one block and nothing around it.
        if snap::raw::decompress_len(compressed).ok()? > max {
            return None;
        }
        plain.extend_from_slice(&decoder.decompress_vec(compressed).ok()?);
        return Some(());
    };
    while let Some((len, after)) = rest.split_first_chunk() {
        let (block, after) =
            after.split_at_checked(usize::try_from(u32::from_be_bytes(*len)).ok()?)?;
        if plain.len() + snap::raw::decompress_len(block).ok()? > max {
            return None;
        }
        plain.extend_from_slice(&decoder.decompress_vec(block).ok()?);
        rest = after;
    }
    rest.is_empty().then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Compression; 4] =
        [Compression::Snappy, Compression::Lz4, Compression::Zstd(3), Compression::Zstd(-7)];

    proptest! {
        #[test]
        fn what_was_compressed_comes_back(
            piece in proptest::collection::vec(any::<u8>(), 1..200),
            times in 1..900_usize,
        ) {
            let plain = piece.repeat(times);
            for codec in ALL {
                let mut out = b"before".to_vec();
                if codec.compress(&plain, &mut out) {
                    let compressed = out.strip_prefix(b"before").unwrap();
                    prop_assert!(compressed.len() < plain.len());
                    prop_assert_eq!(codec.decompress(compressed, plain.len()), Some(plain.clone()));
                    prop_assert_eq!(codec.decompress(compressed, plain.len() + 1), None);
                } else {
                    prop_assert_eq!(&out, b"before");
                }
            }
        }

        #[test]
        fn bytes_that_nobody_compressed_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for codec in ALL {
                let _ = codec.decompress(&bytes, 300);
            }
        }
    }

    #[test]
    fn what_does_not_get_smaller_stays_as_it_is() {
        for codec in ALL {
            let mut out = Vec::new();
            assert!(!codec.compress(b"abc", &mut out), "{codec:?}");
            assert!(out.is_empty());
        }
    }
}

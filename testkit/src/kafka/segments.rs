//! What lies in the files of brokers: also what no consumer of committed records sees.

use super::{DATA, Kafka};
use crate::error::{Context as _, Result};
use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind};
use std::path::{Path, PathBuf};

/// Bytes before the records of a batch, its offset and its length among them.
const HEADER: usize = 61;

/// And those that its length does not count.
const PREFIX: usize = 12;

/// The bit of a batch's attributes that says that it ends a transaction.
const CONTROL: u16 = 0x20;

/// A batch as a broker keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Its partition.
    pub partition: i32,
    /// Id and epoch of who wrote it; of what aborts another's transaction, the epoch that this one was given.
    pub producer: (i64, i16),
    /// How many records it has; none if it ends a transaction.
    pub records: usize,
    /// Whether the transaction that it ends is committed.
    pub ends: Option<bool>,
}

impl Kafka {
    /// The batches of a topic, as those who lead its partitions have them in their files by now. Partitions without a leader
    /// are left out.
    ///
    /// # Panics
    ///
    /// When a file cannot be read, or is none of a log.
    #[must_use]
    #[track_caller]
    pub fn batches(&self, topic: &str) -> Vec<Batch> {
        let mut batches = Vec::new();
        for (partition, leader) in self.leaders(topic).into_iter().enumerate() {
            let leader =
                usize::try_from(leader).ok().and_then(|id| self.brokers.get(id.checked_sub(1)?));
            let Some(broker) = leader else { continue };
            let folder = broker.folder.join(DATA).join(format!("{topic}-{partition}"));
            let read = read(&folder, partition as i32, &mut batches);
            read.unwrap_or_else(|e| panic!("{e}"));
        }
        batches
    }
}

fn read(folder: &Path, partition: i32, batches: &mut Vec<Batch>) -> Result<()> {
    let entries = fs::read_dir(folder).context(folder.display())?;
    let is_segment = |file: &PathBuf| file.extension().is_some_and(|kind| kind == "log");
    let mut segments: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(is_segment).collect();
    // They are named by their first offset, with leading zeros.
    segments.sort();
    for segment in segments {
        let file = File::open(&segment).context(segment.display())?;
        let mut file = BufReader::new(file);
        while let Some(batch) = batch(&mut file, partition).context(segment.display())? {
            batches.push(batch);
        }
    }
    Ok(())
}

/// The next one, unless it is not there as a whole.
fn batch(file: &mut (impl io::Read + io::Seek), partition: i32) -> io::Result<Option<Batch>> {
    let mut header = [0; HEADER];
    if !fill(file, &mut header)? {
        return Ok(None);
    }
    let length = u32::from_be_bytes(part(&header, 8)) as usize;
    let rest = (length + PREFIX).checked_sub(HEADER).ok_or(ErrorKind::InvalidData)?;
    let is_control = u16::from_be_bytes(part(&header, 21)) & CONTROL != 0;
    let mut batch = Batch {
        partition,
        producer: (i64::from_be_bytes(part(&header, 43)), i16::from_be_bytes(part(&header, 51))),
        records: u32::from_be_bytes(part(&header, 57)) as usize,
        ends: None,
    };
    if !is_control {
        file.seek_relative(rest as i64)?;
        return Ok(Some(batch));
    }
    let mut record = vec![0; rest];
    if !fill(file, &mut record)? {
        return Ok(None);
    }
    // Length, attributes, differences of time and offset, and the key's length are a byte each; the key is a version and
    // a kind, and 1 commits.
    let kind: [u8; 2] =
        record.get(7..9).and_then(|kind| kind.try_into().ok()).ok_or(ErrorKind::InvalidData)?;
    batch.records = 0;
    batch.ends = match u16::from_be_bytes(kind) {
        0 => Some(false),
        1 => Some(true),
        // Of the brokers among themselves.
        _ => None,
    };
    Ok(Some(batch))
}

fn part<const N: usize>(header: &[u8; HEADER], at: usize) -> [u8; N] {
    std::array::from_fn(|place| header[at + place])
}

/// Whether so much is there.
fn fill(file: &mut impl io::Read, bytes: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

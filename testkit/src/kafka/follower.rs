//! Consumers that are not ours and go on reading: Kafka's own, and librdkafka's.

use super::{Kafka, Record};
use crate::error::{Context as _, Error, Result};
use crate::process::{self, Process};
use crate::provision;
use crate::{scratch, versions, wait};
use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;
use std::time::Duration;

const JAVA: &str = include_str!("Follow.java");
const PYTHON: &str = include_str!("follow.py");

/// No field is larger: what says so is not one of the two programs.
const FIELD_MAX: usize = 64 << 20;

/// A foreign consumer of committed records, in a process of its own, that follows topics from their beginning while
/// brokers come and go. Dropping it ends it.
#[derive(Debug)]
pub struct Follower {
    name: &'static str,
    process: Process,
    folder: PathBuf,
    questions: ChildStdin,
    arriving: Receiver<Frame>,
    arrived: Vec<Record>,
    /// Marks that have come and were not waited for.
    marks: usize,
}

/// What such a program writes.
#[derive(Debug)]
enum Frame {
    Record(Record),
    Mark,
}

impl Kafka {
    /// Kafka's own consumer, with `isolation.level=read_committed`.
    ///
    /// # Panics
    ///
    /// When Java does not start.
    #[must_use]
    #[track_caller]
    pub fn follow_by_java(&self, topics: &[String]) -> Follower {
        let command = |folder: &Path| {
            let source = folder.join("Follow.java");
            fs::write(&source, JAVA).context(source.display())?;
            let mut command = provision::kafka(versions::KAFKA)?.command();
            command.arg("-Xmx512m").arg(&source);
            Ok(command)
        };
        let begun = self.follow("Kafka's consumer", topics, command);
        begun.unwrap_or_else(|e| panic!("{e}"))
    }

    /// librdkafka's, through `confluent_kafka`, which this Python has; `scripts/clients python` makes one.
    ///
    /// # Panics
    ///
    /// When it does not start.
    #[must_use]
    #[track_caller]
    pub fn follow_by_librdkafka(&self, python: &Path, topics: &[String]) -> Follower {
        let command = |folder: &Path| {
            let source = folder.join("follow.py");
            fs::write(&source, PYTHON).context(source.display())?;
            let mut command = process::guarded(python, None);
            command.arg(&source);
            Ok(command)
        };
        let begun = self.follow("librdkafka's consumer", topics, command);
        begun.unwrap_or_else(|e| panic!("{e}"))
    }

    fn follow(
        &self,
        name: &'static str,
        topics: &[String],
        command: impl FnOnce(&Path) -> Result<Command>,
    ) -> Result<Follower> {
        let folder = scratch::folder("follower")?;
        let mut command = command(&folder)?;
        command.arg(self.bootstrap()).arg("read_committed").args(topics);
        let log = File::create(folder.join("stderr")).context(name)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let process = Process::spawn(name, command)?;
        let (Some(questions), Some(output)) = process.pipes() else {
            return Err(Error(format!("{name} has no pipes")));
        };
        let topics: Vec<Arc<str>> = topics.iter().map(|topic| Arc::from(topic.as_str())).collect();
        let (sender, arriving) = mpsc::channel();
        thread::spawn(move || {
            let mut output = BufReader::with_capacity(1 << 16, output);
            // It ends with the program, whose log says why.
            while let Ok(frame) = frame(&mut output, &topics) {
                if sender.send(frame).is_err() {
                    return;
                }
            }
        });
        let (arrived, marks) = (Vec::new(), 0);
        Ok(Follower { name, process, folder, questions, arriving, arrived, marks })
    }
}

impl Follower {
    /// What it has read since it was asked last.
    ///
    /// # Errors
    ///
    /// When it has ended: because it was lost in a log, for example.
    pub fn take_records(&mut self) -> Result<Vec<Record>> {
        self.receive()?;
        Ok(std::mem::take(&mut self.arrived))
    }

    /// Waits until it has read all that is visible by now; [`take_records`](Self::take_records) has it.
    ///
    /// # Errors
    ///
    /// When it has ended, or that takes longer than `limit`.
    pub fn read_to_end(&mut self, limit: Duration) -> Result<()> {
        let asked = self.questions.write_all(b"\n").and_then(|()| self.questions.flush());
        asked.map_err(|e| self.failed(&e.to_string()))?;
        let what = format!("{} at the end of what is committed", self.name);
        wait::poll(&what, limit, || match self.receive() {
            Ok(()) if self.marks == 0 => None,
            received => Some(received),
        })
        .unwrap_or_else(|e| Err(self.failed(&e.to_string())))?;
        self.marks -= 1;
        Ok(())
    }

    fn receive(&mut self) -> Result<()> {
        loop {
            match self.arriving.try_recv() {
                Ok(Frame::Record(record)) => self.arrived.push(record),
                Ok(Frame::Mark) => self.marks += 1,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(self.failed("it has ended")),
            }
        }
    }

    fn failed(&self, how: &str) -> Error {
        let said = super::read_log(&self.folder.join("stderr"));
        Error(format!("{}: {how}\n{}", self.name, process::last_lines(&said, 20)))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.process.kill();
        let _ = scratch::remove(&self.folder);
    }
}

fn frame(from: &mut impl Read, topics: &[Arc<str>]) -> io::Result<Frame> {
    let [kind] = array(from)?;
    match kind {
        b'e' => return Ok(Frame::Mark),
        b'r' => {}
        _ => return Err(ErrorKind::InvalidData.into()),
    }
    let topic = usize::try_from(i32::from_be_bytes(array(from)?)).ok();
    let topic = topic.and_then(|place| topics.get(place)).ok_or(ErrorKind::InvalidData)?;
    Ok(Frame::Record(Record {
        topic: Arc::clone(topic),
        partition: i32::from_be_bytes(array(from)?),
        offset: i64::from_be_bytes(array(from)?),
        timestamp_ms: i64::from_be_bytes(array(from)?),
        key: bytes(from)?,
        value: bytes(from)?,
        headers: (0..i32::from_be_bytes(array(from)?))
            .map(|_| {
                let name = String::from_utf8(bytes(from)?.unwrap_or_default());
                let name = name.map_err(|_| ErrorKind::InvalidData)?;
                Ok((name, bytes(from)?.unwrap_or_default()))
            })
            .collect::<io::Result<_>>()?,
    }))
}

fn array<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut array = [0; N];
    from.read_exact(&mut array)?;
    Ok(array)
}

fn bytes(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let Ok(length) = usize::try_from(i32::from_be_bytes(array(from)?)) else { return Ok(None) };
    if length > FIELD_MAX {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::{Frame, frame};
    use std::sync::Arc;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let mut written = vec![b'e', b'r'];
        for number in [1_i32, 4] {
            written.extend(number.to_be_bytes());
        }
        for number in [9_i64, 1_700_000_000_123] {
            written.extend(number.to_be_bytes());
        }
        // A key, no value, and a header whose value is empty.
        written.extend([
            0, 0, 0, 1, b'k', 255, 255, 255, 255, 0, 0, 0, 1, 0, 0, 0, 1, b'n', 0, 0, 0, 0,
        ]);
        let topics = [Arc::from("first"), Arc::from("second")];
        let mut from = written.as_slice();
        assert!(matches!(frame(&mut from, &topics), Ok(Frame::Mark)));
        let Ok(Frame::Record(record)) = frame(&mut from, &topics) else { panic!("no record") };
        assert_eq!((&*record.topic, record.partition, record.offset), ("second", 4, 9));
        assert_eq!(record.timestamp_ms, 1_700_000_000_123);
        assert_eq!((record.key.as_deref(), record.value), (Some(b"k".as_slice()), None));
        assert_eq!(record.headers, [("n".to_owned(), Vec::new())]);
        assert!(frame(&mut from, &topics).is_err(), "there is no more");
        assert!(frame(&mut [b'?'].as_slice(), &topics).is_err());
        assert!(frame(&mut [b'r', 0, 0, 0, 2].as_slice(), &topics).is_err(), "no such topic");
    }
}

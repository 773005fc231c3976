//! `owlpost redrive`: dead letters back to the topics that they were going to.

mod letter;
mod seen;
mod sender;

use self::letter::{Back, Filter, Verdict};
use self::seen::Seen;
use self::sender::Sender;
use super::printable::printable;
use super::record::Record;
use super::{asked_to_stop, bar, ended, print, say, tls, unwritten};
use crate::config::{Config, RecordValue};
use crate::exit::ExitCode;
use crate::kafka::{Committed, Consumer};
use crate::progress::{Seen as Shown, Terminal, Unit, Work};
use crate::relay::gone::{Exit, ExitKind};
use crate::relay::kafka::Unanswered;
use crate::relay::poison::TopicPattern;
use crate::{run, telemetry};
use clap::Args;
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The consumer group that remembers what was redriven. It never has members.
pub const GROUP: &str = "owlpost-redrive";

const EXAMPLES: &str = "\
Without --yes nothing is sent: it lists what would be. A dead letter goes back with its key, value, time
and headers, to the topic in its header factlib_topic, in the order of the dead-letter topic, and is
acknowledged by all in-sync replicas. Its position does not rise there, so it has no factlib_position:
the header factlib_redrive has the old one, and consumers recognise it by event_id.
Those that cannot go back are left and listed: cut ones (factlib_length), unreadable ones, which no topic
was meant for, those whose topic is still missing, and those that Kafka refuses once more. Then the exit
code is 13.

The offsets of the consumer group owlpost-redrive, and their metadata, remember what was sent, also behind
letters that are left, and it is not sent by a later call unless with --again. If this command is killed,
at most the letters of one fetch (4 MiB) are sent again. Kafka must allow it: READ on the dead-letter topic
and on the group, WRITE to the topics. Two of these at once may send the same letters.

Examples:
  owlpost redrive                                        what is there, and what would become of it
  owlpost redrive --topic 'orders.*' --cause topic-missing --since 2h --limit 100 --yes
  owlpost redrive --yes --json
  owlpost redrive --yes --accept-left                    and never list again what is left
";

/// What to send back.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Redrive {
    /// Only those that were going to this topic; * stands for any characters
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Only those of this cause: topic-missing, not-authorized, too-large, rejected, invalid-topic or
    /// unreadable-envelope
    #[arg(long, value_name = "CAUSE")]
    cause: Option<String>,
    /// Only those whose record is not older: a time such as 2026-01-31T12:00:00Z, or how long ago, such as 2h.
    /// A record's time is that of its commit, unless KAFKA_TIMESTAMP says otherwise
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<SystemTime>,
    /// Not more than so many
    #[arg(long, value_name = "NUMBER")]
    limit: Option<u64>,
    /// Send them
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,
    /// Only list them: what happens without --yes
    #[arg(long)]
    dry_run: bool,
    /// Also those that were sent before
    #[arg(long)]
    again: bool,
    /// What is listed as left is not looked at any more by later calls
    #[arg(long, requires = "yes")]
    accept_left: bool,
    /// One JSON object a line, the last with the numbers
    #[arg(long)]
    json: bool,
}

#[expect(clippy::disallowed_methods, reason = "how long ago is meant from now")]
fn since(text: &str) -> Result<SystemTime, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return SystemTime::now().checked_sub(ago).ok_or_else(|| "is before all times".to_owned());
    }
    humantime::parse_rfc3339_weak(text)
        .map_err(|_| "write a time as 2026-01-31T12:00:00Z, or how long ago, such as 2h".to_owned())
}

/// The numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
struct Numbers {
    redriven: u64,
    left: u64,
    /// Of another topic or cause, or too old.
    filtered: u64,
    /// By an earlier call.
    redriven_before: u64,
}

/// Why it ended early.
enum Ended {
    Kafka(Unanswered),
    Output(io::Error),
}

impl From<Unanswered> for Ended {
    fn from(cause: Unanswered) -> Self {
        Self::Kafka(cause)
    }
}

/// Sends dead letters back, or says what would be sent.
pub async fn redrive(config: &Config, arguments: &Redrive) -> ExitCode {
    let log = telemetry::init(&config.log);
    let tls = match tls(config) {
        Ok(tls) => tls,
        Err(code) => return code,
    };
    let kafka = run::kafka_config(config, tls);
    let Some(topic) = config.policies.dead_letter_topic.clone() else {
        say("owlpost: DEAD_LETTER_TOPIC is not set");
        return ExitCode::Configuration;
    };
    let mut redriving = Redriving {
        arguments,
        filter: Filter {
            topic: arguments.topic.clone().map(TopicPattern::new),
            cause: arguments.cause.clone(),
            since_ms: arguments.since.and_then(unix_ms),
        },
        value_is_payload: config.records.value == RecordValue::Payload,
        topic,
        consumer: Consumer::new(kafka.clone(), run::isolation(config)),
        sender: Sender::new(run::settings(config), kafka),
        there: HashMap::new(),
        numbers: Numbers::default(),
        work: Work::default(),
        looked_at: 0,
        of: 0,
        terminal: log.terminal().cloned(),
    };
    let bar = bar(&log, arguments.json, redriving.work.look());
    let ended_as = tokio::select! {
        ended = redriving.all() => Some(ended),
        () = asked_to_stop() => None,
    };
    drop(bar);
    drop(log);
    let numbers = redriving.numbers;
    match ended_as {
        None => {
            say("owlpost: stopped; letters of the last fetch may be sent again by the next call");
            ExitCode::Unconfirmed
        }
        Some(Err(Ended::Output(error))) => unwritten(&error),
        Some(Err(Ended::Kafka(cause))) => {
            ended(&Exit { kind: ExitKind::Unreachable, reason: cause.to_string() })
        }
        Some(Ok(())) => match print(&summary(numbers, arguments)) {
            Err(error) => unwritten(&error),
            Ok(()) if numbers.left > 0 && !arguments.accept_left => ExitCode::Left,
            Ok(()) => ExitCode::Stopped,
        },
    }
}

fn unix_ms(time: SystemTime) -> Option<i64> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_millis()).ok()
}

fn summary(numbers: Numbers, arguments: &Redrive) -> String {
    let Numbers { redriven, left, filtered, redriven_before } = numbers;
    if arguments.json {
        return serde_json::json!({
            "dry_run": !arguments.yes,
            "redriven": if arguments.yes { redriven } else { 0 },
            "would_be_redriven": if arguments.yes { 0 } else { redriven },
            "left": left,
            "filtered": filtered,
            "redriven_before": redriven_before,
        })
        .to_string();
    }
    let (would, hint) = match arguments.yes {
        true => ("were redriven", ""),
        false => ("would be redriven", "; nothing was sent: --yes sends them"),
    };
    format!(
        "{redriven} dead letters {would}, {left} are left, {filtered} others were not asked for, \
         {redriven_before} were redriven before{hint}"
    )
}

/// What is remembered of a partition that begins and ends there.
fn seen(committed: Option<&Committed>, offsets: Range<i64>) -> Seen {
    let mut seen = committed
        .map_or_else(Seen::default, |committed| Seen::read(committed.offset, &committed.metadata));
    if seen.next() > offsets.end {
        // Somebody has made the topic anew.
        seen = Seen::default();
    }
    seen.begin(offsets.start);
    seen
}

struct Redriving<'a> {
    arguments: &'a Redrive,
    filter: Filter,
    value_is_payload: bool,
    topic: Arc<str>,
    consumer: Consumer,
    sender: Sender,
    /// Topics that were looked for.
    there: HashMap<Arc<str>, bool>,
    numbers: Numbers,
    /// How far it is: letters that were looked at, and all there are.
    work: Work,
    looked_at: u64,
    of: u64,
    /// Where there is a bar in the way of lines.
    terminal: Option<Terminal>,
}

impl Redriving<'_> {
    async fn all(&mut self) -> Result<(), Ended> {
        let topic = Arc::clone(&self.topic);
        let partitions = self.consumer.partitions(&topic).await?;
        if partitions.is_empty() {
            return Err(Unanswered(format!("the dead-letter topic {topic} is not there")).into());
        }
        let committed = self.consumer.committed(GROUP, &topic, &partitions).await?;
        let mut stretches = Vec::new();
        for partition in partitions {
            let offsets = self.consumer.offsets(&topic, partition).await?;
            let committed = committed.iter().find(|committed| committed.partition == partition);
            // Of committed records the end may go back: where `DELIVERY` was another.
            let written = self.consumer.written(&topic, partition).await?;
            let seen = seen(committed, offsets.start..written.max(offsets.end));
            let next = if self.arguments.again { offsets.start } else { seen.next() };
            self.of += u64::try_from(offsets.end - next).unwrap_or(0);
            stretches.push((partition, next..offsets.end, seen));
        }
        for (partition, offsets, seen) in stretches {
            self.partition(partition, offsets, seen).await?;
        }
        Ok(())
    }

    fn is_enough(&self) -> bool {
        self.arguments.limit.is_some_and(|limit| self.numbers.redriven >= limit)
    }

    async fn partition(
        &mut self,
        partition: i32,
        offsets: Range<i64>,
        mut seen: Seen,
    ) -> Result<(), Ended> {
        let topic = Arc::clone(&self.topic);
        let Range { start: mut next, end } = offsets;
        while next < end && !self.is_enough() {
            let mut letters = Vec::new();
            let mut each = |found: crate::kafka::Found<'_>| letters.push(Record::of(&found));
            let from = next;
            next = self.consumer.read_some(&topic, partition, next..end, &mut each).await?;
            let rest = self.letters(partition, from..next.min(end), letters, &mut seen).await?;
            next = rest.unwrap_or(next);
            self.looked_at += u64::try_from(next.min(end) - from).unwrap_or(0);
            self.work.is(Shown {
                what: if self.arguments.yes { "redriving" } else { "looking" }.to_owned(),
                done: self.looked_at,
                of: self.of,
                unit: Unit::Records,
                facts: self.looked_at,
            });
        }
        Ok(())
    }

    /// The letters at some offsets; where those begin that the limit left for later.
    async fn letters(
        &mut self,
        partition: i32,
        offsets: Range<i64>,
        letters: Vec<Record>,
        seen: &mut Seen,
    ) -> Result<Option<i64>, Ended> {
        let mut sent = Vec::new();
        let mut judged = Vec::new();
        let mut rest = None;
        let mut gaps = seen::gaps(offsets, letters.iter().map(|letter| letter.offset));
        for letter in letters {
            let redriven = self.numbers.redriven + sent.len() as u64;
            if self.arguments.limit.is_some_and(|limit| redriven >= limit) {
                rest = Some(letter.offset);
                break;
            }
            if seen.has(letter.offset) && !self.arguments.again {
                self.numbers.redriven_before += 1;
                continue;
            }
            let verdict = match letter.verdict(&self.filter, self.value_is_payload) {
                Verdict::Redrive(back) if !self.is_there(&back.topic).await? => {
                    let topic = &back.topic;
                    Err(format!("topic {topic} is still missing: create it"))
                }
                Verdict::Redrive(back) => {
                    sent.push(back);
                    Ok(())
                }
                Verdict::Left(reason) => Err(reason),
                Verdict::Filtered => {
                    self.numbers.filtered += 1;
                    continue;
                }
            };
            judged.push((letter, verdict));
        }
        if self.arguments.yes {
            gaps.retain(|gap| rest.is_none_or(|rest| gap.end <= rest));
            self.send(partition, &sent, &mut judged, &gaps, seen).await?;
        }
        let mut lines = Vec::with_capacity(judged.len());
        for (letter, verdict) in judged {
            match &verdict {
                Ok(()) => self.numbers.redriven += 1,
                Err(_) => self.numbers.left += 1,
            }
            let verdict = verdict.as_ref().map_err(String::as_str).copied();
            lines.push(self.line(partition, &letter, verdict));
        }
        self.print(&lines).map_err(Ended::Output)?;
        Ok(rest)
    }

    /// Sends those that can go back, and has it remembered, with what is between them and no letter.
    async fn send(
        &mut self,
        partition: i32,
        sent: &[Back],
        judged: &mut [(Record, Result<(), String>)],
        gaps: &[Range<i64>],
        seen: &mut Seen,
    ) -> Result<(), Ended> {
        let accept_left = self.arguments.accept_left;
        let mark = |judged: &[(Record, Result<(), String>)]| {
            let mut after = seen.clone();
            let marked = judged.iter().filter(|(_, verdict)| verdict.is_ok() || accept_left);
            marked.for_each(|(letter, _)| after.add(letter.offset));
            gaps.iter().for_each(|gap| after.add_all(gap.clone()));
            after
        };
        // Nothing is sent that could not be remembered.
        mark(judged).metadata().map_err(Unanswered)?;
        let refused = self.sender.send(sent).await.map_err(|reason| {
            Unanswered(format!(
                "{reason}; up to {} dead letters of partition {partition} may have been sent, which is not \
                 remembered: the next call sends them again",
                sent.len()
            ))
        })?;
        let ok = judged.iter_mut().filter(|(_, verdict)| verdict.is_ok());
        for ((_, verdict), refused) in ok.zip(refused) {
            *verdict = refused;
        }
        let after = mark(judged);
        if after != *seen {
            let remembered = async {
                let metadata = after.metadata().map_err(Unanswered)?;
                let committed = Committed { partition, offset: after.next(), metadata };
                self.consumer.commit(GROUP, &self.topic, &committed).await
            };
            remembered.await.map_err(|cause| {
                Unanswered(format!(
                    "{cause}; {} dead letters of partition {partition} were sent, which is perhaps not \
                     remembered: the next call may send them again",
                    sent.len()
                ))
            })?;
            *seen = after;
        }
        Ok(())
    }

    /// Where a bar is drawn on the same terminal, beside it.
    fn print(&self, lines: &[String]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let lines = lines.join("\n");
        match &self.terminal {
            Some(terminal) => terminal.beside(|| print(&lines)),
            None => print(&lines),
        }
    }

    async fn is_there(&mut self, topic: &Arc<str>) -> Result<bool, Unanswered> {
        if let Some(there) = self.there.get(topic) {
            return Ok(*there);
        }
        let there = !self.consumer.partitions(topic).await?.is_empty();
        self.there.insert(Arc::clone(topic), there);
        Ok(there)
    }

    fn line(&self, partition: i32, letter: &Record, verdict: Result<(), &str>) -> String {
        let text =
            |name: &str| letter.header(name).map(|v| String::from_utf8_lossy(v).into_owned());
        let action = match (verdict, self.arguments.yes) {
            (Err(_), _) => "left",
            (Ok(()), true) => "redriven",
            (Ok(()), false) => "would_be_redriven",
        };
        if self.arguments.json {
            return serde_json::json!({
                "action": action,
                "partition": partition,
                "offset": letter.offset,
                "topic": text(letter::TOPIC),
                "cause": text(letter::CAUSE),
                "event_id": text("event_id"),
                "position": text(crate::relay::route::POSITION),
                "reason": verdict.err(),
            })
            .to_string();
        }
        let shown = |name| letter.header(name).map_or_else(|| "-".to_owned(), printable);
        let why = verdict.err().map(|reason| format!(": {}", printable(reason.as_bytes())));
        format!(
            "{} {partition}@{} {} {} {}{}",
            action.replace('_', " "),
            letter.offset,
            shown(letter::TOPIC),
            shown(letter::CAUSE),
            shown("event_id"),
            why.unwrap_or_default()
        )
    }
}

/// For a letter to be stored: far more than a leader's election takes.
const STORED_MAX: Duration = Duration::from_secs(60);

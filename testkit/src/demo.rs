//! The whole road in one command, for somebody who sees it for the first time.

use crate::error::{Context as _, Error, Result};
use crate::postgres::Mode;
use crate::{Kafka, Owlpost, Postgres, process, provision};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const PREFIX: &str = "demo";
const TOPIC: &str = "demo.order";

/// A fact of the demonstration: id, aggregate, what happened, payload.
struct Fact(&'static str, &'static str, &'static str, &'static str);

/// Transactions, and whether each is committed.
const TRANSACTIONS: [(bool, &[Fact]); 4] = [
    (true, &[Fact("f-1", "order-1", "created", r#"{"total":42}"#)]),
    (
        true,
        &[
            Fact("f-2", "order-2", "created", r#"{"total":7}"#),
            Fact("f-3", "order-1", "paid", r#"{"by":"card"}"#),
        ],
    ),
    (false, &[Fact("f-4", "order-3", "created", r#"{"total":666}"#)]),
    (true, &[Fact("f-5", "order-1", "shipped", r#"{"parcel":"A-17"}"#)]),
];

impl Fact {
    /// The envelope, in its JSON form.
    fn envelope(&self) -> String {
        let Self(id, aggregate, event, payload) = self;
        format!(
            r#"{{"id":"{id}","aggregate_type":"order","aggregate_id":"{aggregate}","event_type":"{event}","payload":{payload}}}"#
        )
    }
}

/// Commits facts and has Kafka's own consumer show them.
///
/// # Errors
///
/// When a step fails, or what arrives is not what was committed.
pub fn run(mut say: impl FnMut(&str)) -> Result<()> {
    let begun = Instant::now();
    provision::setup(&mut say)?;
    let binary = owlpost()?;
    let postgres = Postgres::builder().try_start()?;
    say(&format!("PostgreSQL listens on port {}", postgres.port()));
    let kafka = Kafka::builder().try_start()?;
    say(&format!("Kafka listens on {}", kafka.bootstrap()));
    kafka.create_topic(TOPIC, 3, &[]);
    say(&format!("topic {TOPIC} made, with 3 partitions"));
    let relay = Owlpost::command(&binary)
        .arg("run")
        .servers(&postgres, &kafka)
        .env("SRC_SERVICE_NAME", PREFIX)
        .env("WAL_PREFIX", PREFIX)
        .try_spawn()?;
    relay.try_wait_ready()?;
    say("owlpost run is ready: it made its publication and its slot, and streams");
    emit(&postgres, &mut say)?;
    let expected: Vec<&Fact> = TRANSACTIONS
        .iter()
        .filter(|(committed, _)| *committed)
        .flat_map(|(_, facts)| facts.iter())
        .collect();
    consume(&kafka, &expected, &mut say)?;

    let status = relay.stop(Duration::from_secs(20));
    if !status.success() {
        return Err(Error(format!(
            "owlpost stopped with {}\n{}",
            process::describe(status),
            relay.stderr()
        )));
    }
    let took = postgres.stop(Mode::Fast);
    kafka.stop();
    say(&format!("owlpost, PostgreSQL (in {:.1} s) and Kafka stopped", took.as_secs_f64()));
    let there: Vec<u32> = [Some(relay.pid()), postgres.pid(), kafka.pid(1)]
        .into_iter()
        .flatten()
        .filter(|pid| process::is_running(*pid))
        .collect();
    if !there.is_empty() {
        return Err(Error(format!("still running: {there:?}")));
    }
    drop((relay, postgres, kafka));
    say(&format!("nothing is left running; that took {:.1} s", begun.elapsed().as_secs_f64()));
    Ok(())
}

/// Starts both servers and waits to be ended.
///
/// # Errors
///
/// When one does not start.
pub fn serve(mut say: impl FnMut(&str)) -> Result<()> {
    let postgres = Postgres::builder().try_start()?;
    let kafka = Kafka::builder().try_start()?;
    say(&format!("MASTER_DATABASE_URL={}", postgres.url()));
    say(&format!("KAFKA_BROKERS={}", kafka.bootstrap()));
    let pids: Vec<String> =
        [postgres.pid(), kafka.pid(1)].iter().flatten().map(u32::to_string).collect();
    say(&format!("# processes {}", pids.join(" ")));
    say(&format!("# data in {}", postgres.data_dir().display()));
    loop {
        std::thread::park();
    }
}

/// The relay that was built together with this program, or the one that `OWLPOST` names.
fn owlpost() -> Result<PathBuf> {
    let own = std::env::current_exe().context("where this program is")?;
    let binary =
        std::env::var_os("OWLPOST").map_or_else(|| own.with_file_name("owlpost"), PathBuf::from);
    match binary.is_file() {
        true => Ok(binary),
        false => Err(Error(format!(
            "there is no {}: build it with `cargo build --workspace --bins`, or name it in OWLPOST",
            binary.display()
        ))),
    }
}

fn emit(postgres: &Postgres, say: &mut impl FnMut(&str)) -> Result<()> {
    let mut client = postgres.try_client().context("connecting to PostgreSQL")?;
    for (committed, facts) in TRANSACTIONS {
        let mut transaction = client.transaction().context("BEGIN")?;
        let mut names = Vec::new();
        for fact in facts {
            let emit = "SELECT pg_logical_emit_message(true, $1, $2::text)";
            transaction.execute(emit, &[&PREFIX, &fact.envelope()]).context("emitting a fact")?;
            names.push(format!("{} {}", fact.1, fact.2));
        }
        let names = names.join(", ");
        if committed {
            transaction.commit().context("COMMIT")?;
            say(&format!("committed:   {names}"));
        } else {
            transaction.rollback().context("ROLLBACK")?;
            say(&format!("rolled back: {names}"));
        }
    }
    Ok(())
}

fn consume(kafka: &Kafka, expected: &[&Fact], say: &mut impl FnMut(&str)) -> Result<()> {
    let count = expected.len().to_string();
    let bootstrap = kafka.bootstrap();
    let mut arguments = vec!["--bootstrap-server", &bootstrap, "--topic", TOPIC];
    arguments.extend(["--from-beginning", "--max-messages", &count, "--timeout-ms", "30000"]);
    for property in ["print.partition=true", "print.key=true", "print.headers=true"] {
        arguments.extend(["--formatter-property", property]);
    }
    let class = "org.apache.kafka.tools.consumer.ConsoleConsumer";
    let output = process::run("Kafka's consumer", &mut kafka.java_command(class, &arguments))?;
    let text = String::from_utf8_lossy(&output.stdout);
    say("Kafka's own console consumer shows partition, headers, key and value:");
    text.lines().for_each(|line| say(&format!("  {line}")));
    check(&text, expected)?;
    let stored: i64 = kafka.end_offsets(TOPIC).values().sum();
    if usize::try_from(stored) != Ok(expected.len()) {
        return Err(Error(format!("{stored} records are in Kafka, not {}", expected.len())));
    }
    say(&format!("these are the {count} committed facts, each once, and not the one rolled back"));
    Ok(())
}

/// Whether the consumer printed each fact once, an aggregate's in their order, in one partition.
fn check(printed: &str, expected: &[&Fact]) -> Result<()> {
    let mut lines: Vec<&str> = printed.lines().collect();
    let mut home = std::collections::HashMap::new();
    for fact in expected {
        let Fact(id, aggregate, event, _) = fact;
        let lost = || Error(format!("{aggregate} {event} did not arrive as it was committed"));
        let end = format!("\t{aggregate}\t{}", fact.envelope());
        // The aggregate's first line that is left: a later fact before this one is an error.
        let place = lines.iter().position(|line| line.contains(&format!("\t{aggregate}\t")));
        let line = lines.remove(place.ok_or_else(lost)?);
        let (partition, rest) = line.split_once('\t').ok_or_else(lost)?;
        let headers: Vec<&str> =
            rest.strip_suffix(end.as_str()).ok_or_else(lost)?.split(',').collect();
        for header in [format!("event_id:{id}"), format!("event_type:{event}")] {
            if !headers.contains(&header.as_str()) {
                return Err(Error(format!("{aggregate} {event} has no header {header}: {line}")));
            }
        }
        if *home.entry(*aggregate).or_insert(partition) != partition {
            return Err(Error(format!("{aggregate} is in two partitions")));
        }
    }
    match lines.first() {
        None => Ok(()),
        Some(line) => Err(Error(format!("this was never committed: {line}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::{Fact, check};

    const FACTS: [Fact; 2] = [Fact("a", "k", "made", "1"), Fact("b", "k", "sold", "2")];

    fn line(fact: &Fact, partition: i32) -> String {
        let Fact(id, aggregate, event, _) = fact;
        let envelope = fact.envelope();
        format!(
            "Partition:{partition}\tevent_id:{id},event_type:{event}\t{aggregate}\t{envelope}\n"
        )
    }

    #[test]
    fn the_demonstration_can_fail() {
        let [first, second] = &FACTS;
        let both = [first, second];
        let good = line(first, 1) + &line(second, 1);
        assert_eq!(check(&good, &both), Ok(()));
        let bad = [
            ("one is lost", line(first, 1)),
            ("one is too many", good.clone() + &line(first, 1)),
            ("the order is wrong", line(second, 1) + &line(first, 1)),
            ("two partitions", line(first, 1) + &line(second, 2)),
            ("a header is lost", good.replace("event_id:a,", "")),
            ("a value is altered", good.replace("\"payload\":2", "\"payload\":3")),
        ];
        for (what, printed) in bad {
            assert!(check(&printed, &both).is_err(), "{what}");
        }
    }
}

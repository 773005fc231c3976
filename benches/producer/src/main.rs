//! What a record costs on its way to Kafka: our producer beside rskafka's and librdkafka's, each in a process
//! of its own, with the same allocator, records and headers.
//!
//! `make bench-producer` says how; `-- --quick` for a look.

mod contender;
mod null_broker;

use std::process::{Child, Command, Stdio};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CONTENDERS: [&str; 3] = ["factlib", "rskafka", "librdkafka"];

/// What is produced.
#[derive(Debug, Clone)]
pub struct Case {
    pub brokers: String,
    /// Bytes of a value.
    pub bytes: usize,
    /// Records in a batch.
    pub batch: usize,
    pub partitions: usize,
    pub lz4: bool,
    pub records: usize,
    /// Lone records before them.
    pub lone: usize,
    /// Batches of a partition in flight, of ours.
    pub in_flight: usize,
}

impl Case {
    fn arguments(&self) -> Vec<String> {
        let Self { brokers, bytes, batch, partitions, lz4, records, lone, in_flight } = self;
        [
            brokers.clone(),
            bytes.to_string(),
            batch.to_string(),
            partitions.to_string(),
            lz4.to_string(),
            records.to_string(),
            lone.to_string(),
            in_flight.to_string(),
        ]
        .into()
    }

    fn parse(arguments: &[String]) -> Self {
        let number = |at: usize| arguments[at].parse().expect("a number");
        Self {
            brokers: arguments[0].clone(),
            bytes: number(1),
            batch: number(2),
            partitions: number(3),
            lz4: arguments[4] == "true",
            records: number(5),
            lone: number(6),
            in_flight: number(7),
        }
    }

    /// CPU per record in nanoseconds, rate, RSS, and latency of a lone record.
    fn run(&self, contender: &str) -> [f64; 4] {
        let this = std::env::current_exe().expect("this program");
        let output = Command::new(this).arg(contender).args(self.arguments()).output();
        let output = output.expect("a contender");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("text");
        let numbers: Vec<f64> =
            text.split_whitespace().map(|number| number.parse().expect("a number")).collect();
        numbers.try_into().expect("four numbers")
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("null-broker") => null_broker::serve().expect("a broker"),
        Some(name) if CONTENDERS.contains(&name) => {
            contender::run(name, &Case::parse(&arguments[1..]));
        }
        _ => compare(arguments.iter().any(|argument| argument == "--quick")),
    }
}

struct NullBroker(Child);

impl Drop for NullBroker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn null_broker() -> (NullBroker, String) {
    let this = std::env::current_exe().expect("this program");
    let mut child =
        Command::new(this).arg("null-broker").stdout(Stdio::piped()).spawn().expect("a broker");
    let mut port = String::new();
    let out = child.stdout.take().expect("its output");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut port).expect("a port");
    (NullBroker(child), format!("127.0.0.1:{}", port.trim()))
}

fn median(values: &[f64]) -> (f64, f64, f64) {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

fn compare(quick: bool) {
    let rounds = if quick { 1 } else { 3 };
    let load = || std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("load average at the start: {}", load().trim());
    let (_null, null) = null_broker();
    let kafka = testkit::Kafka::builder().start();
    kafka.create_topic("bench", 12, &[("retention.bytes", "200000000")]);
    println!("{rounds} rounds in turns; ns of CPU a record: median (smallest..largest); ratios of medians\n");
    println!("| broker | value | batch | partitions | codec | factlib | rskafka | librdkafka | / rskafka | / librdkafka |");
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (broker, brokers) in [("null", &null), ("Kafka", &kafka.bootstrap())] {
        for bytes in [256, 1024] {
            for batch in [100, 1000] {
                // A batch of a thousand of the larger ones is over the topic's limit.
                let batch = if bytes == 1024 { batch.min(700) } else { batch };
                for partitions in [1, 12] {
                    for lz4 in [false, true] {
                        let records = match (quick, broker, bytes) {
                            (true, ..) => 100_000,
                            (_, "null", 256) => 1_000_000,
                            (_, "null", _) => 400_000,
                            _ => 200_000,
                        };
                        let case = Case {
                            brokers: brokers.clone(),
                            bytes,
                            batch,
                            partitions,
                            lz4,
                            records,
                            lone: 0,
                            in_flight: 5,
                        };
                        row(broker, &case, rounds);
                    }
                }
            }
        }
    }

    println!("\nA lone record, linger 0, microseconds to its acknowledgement, medians of {rounds} rounds of 1000:\n");
    println!("| broker | factlib | rskafka | librdkafka |\n|---|---|---|---|");
    for (broker, brokers) in [("null", &null), ("Kafka", &kafka.bootstrap())] {
        let case = Case {
            brokers: brokers.clone(),
            bytes: 256,
            batch: 1000,
            partitions: 1,
            lz4: false,
            records: 1000,
            lone: 1000,
            in_flight: 5,
        };
        let cells = CONTENDERS.map(|contender| {
            let rounds: Vec<f64> = (0..rounds).map(|_| case.run(contender)[3]).collect();
            let (median, low, high) = median(&rounds);
            format!("{median:.0} ({low:.0}..{high:.0})")
        });
        println!("| {broker} | {} |", cells.join(" | "));
    }

    println!("\nBatches of a partition in flight, ours, to Kafka, 256 bytes, batches of 100, 1 partition:\n");
    println!("| in flight | ns of CPU a record | records/s |\n|---|---|---|");
    for in_flight in [1, 2, 5] {
        let case = Case {
            brokers: kafka.bootstrap(),
            bytes: 256,
            batch: 100,
            partitions: 1,
            lz4: false,
            records: if quick { 100_000 } else { 300_000 },
            lone: 0,
            in_flight,
        };
        let runs: Vec<[f64; 4]> = (0..rounds).map(|_| case.run("factlib")).collect();
        let (cpu, low, high) = median(&runs.iter().map(|run| run[0]).collect::<Vec<_>>());
        let (rate, slowest, fastest) = median(&runs.iter().map(|run| run[1]).collect::<Vec<_>>());
        println!(
            "| {in_flight} | {cpu:.0} ({low:.0}..{high:.0}) | {rate:.0} ({slowest:.0}..{fastest:.0}) |"
        );
    }

    println!("\nPeak resident set, ours, null broker, 256 bytes, batches of 1000, 12 partitions:\n");
    println!("| records | MiB |\n|---|---|");
    for records in if quick { [100_000, 1_000_000] } else { [1_000_000, 10_000_000] } {
        let case = Case {
            brokers: null.clone(),
            bytes: 256,
            batch: 1000,
            partitions: 12,
            lz4: false,
            records,
            lone: 0,
            in_flight: 5,
        };
        println!("| {records} | {:.1} |", case.run("factlib")[2]);
    }
    println!("\nload average at the end: {}", load().trim());
}

fn row(broker: &str, case: &Case, rounds: usize) {
    let mut costs = CONTENDERS.map(|_| Vec::new());
    for _ in 0..rounds {
        for (contender, costs) in CONTENDERS.into_iter().zip(&mut costs) {
            // rskafka does not set TCP_NODELAY: some sizes of requests wait 40 ms each, which costs it no
            // processor time and us all of ours.
            let records = match (contender, case.batch) {
                ("rskafka", 100) => case.records.min(20_000),
                _ => case.records,
            };
            costs.push(Case { records, ..case.clone() }.run(contender)[0]);
        }
    }
    let medians = costs.each_ref().map(|costs| median(costs));
    let cells = medians.map(|(median, low, high)| format!("{median:.0} ({low:.0}..{high:.0})"));
    let ratio = |other: usize| medians[0].0 / medians[other].0;
    println!(
        "| {broker} | {} | {} | {} | {} | {} | {:.2} | {:.2} |",
        case.bytes,
        case.batch,
        case.partitions,
        if case.lz4 { "lz4" } else { "none" },
        cells.join(" | "),
        ratio(1),
        ratio(2),
    );
}

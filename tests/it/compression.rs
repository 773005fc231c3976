//! What we compress, others read: Kafka's own consumer, and the decoders of rskafka.

use crate::support::{PATIENCE, relay, stop, truth, wait_confirmed};
use std::collections::HashMap;
use testkit::checker::Checker;
use testkit::workload::Workload;
use testkit::{Kafka, Postgres};

/// Publishes a backlog so compressed, so that batches are large, and reads it twice; bytes in the log.
fn log_bytes_of(prefix: &str, codec: &str, level: &str) -> u64 {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    let topic = format!("{prefix}.order");
    kafka.create_topic(&topic, 2, &[]);
    let command = || {
        relay(prefix, &postgres, kafka)
            .env("COMPRESSION_TYPE", codec)
            .env("COMPRESSION_LEVEL", level)
    };
    let init = command().arg("init").spawn();
    assert_eq!(init.wait_exit(PATIENCE).code(), Some(0), "{}", init.log_text());
    Workload { facts: 3000, noise: false, ..Workload::new(prefix, 1) }.run(&postgres);
    let relay = command().spawn();
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);
    let records = kafka.read_topic(&topic);
    Checker::new(&truth(&postgres)).check(&records).assert_clean();

    let arguments = [
        "--bootstrap-server",
        &kafka.bootstrap(),
        "--topic",
        &topic,
        "--from-beginning",
        "--max-messages",
        "3000",
        "--timeout-ms",
        "20000",
        "--formatter-property",
        "print.value=false",
        "--formatter-property",
        "print.key=true",
    ];
    let output = kafka.java("org.apache.kafka.tools.consumer.ConsoleConsumer", &arguments);
    let mut keys: HashMap<String, i64> = HashMap::new();
    for key in String::from_utf8(output.stdout).unwrap().lines() {
        *keys.entry(key.trim().to_owned()).or_default() += 1;
    }
    for record in &records {
        let key = String::from_utf8(record.key.clone().unwrap()).unwrap();
        *keys.entry(key).or_default() -= 1;
    }
    assert!(keys.len() > 100 && keys.values().all(|count| *count == 0), "{keys:?}");
    kafka.log_bytes(&topic)
}

#[test]
fn javas_consumer_reads_every_codec_and_there_is_less_to_read() {
    let plain = log_bytes_of("codec-none", "none", "");
    for (codec, level) in [("snappy", ""), ("lz4", ""), ("zstd", "3"), ("zstd", "-5")] {
        let bytes = log_bytes_of(&format!("codec-{codec}{level}"), codec, level);
        assert!(bytes < plain / 4 * 3, "{codec}{level}: {bytes} of {plain} bytes");
    }
}

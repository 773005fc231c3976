//! Starting and ending real Kafka, and reading what others wrote.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;
use testkit::{Kafka, java_partitions};

/// Writes with rskafka's own client.
fn produce(kafka: &Kafka, topic: &str, partition: i32, values: &[&str]) {
    let key = Some(b"key".to_vec());
    write(kafka, topic, partition, key, values).unwrap_or_else(|e| panic!("{e}"));
}

/// The same with any key; what the broker refuses is an error.
fn write(
    kafka: &Kafka,
    topic: &str,
    partition: i32,
    key: Option<Vec<u8>>,
    values: &[&str],
) -> Result<(), String> {
    use rskafka::client::{
        ClientBuilder,
        partition::{Compression, UnknownTopicHandling},
    };
    use rskafka::record::Record;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let records = values
        .iter()
        .map(|value| Record {
            key: key.clone(),
            value: Some(value.as_bytes().to_vec()),
            headers: BTreeMap::from([("name".to_owned(), b"header".to_vec())]),
            timestamp: rskafka::chrono::DateTime::from_timestamp_millis(1_700_000_000_123).unwrap(),
        })
        .collect();
    runtime.block_on(async {
        let client = ClientBuilder::new(kafka.addresses()).build().await.unwrap();
        let client =
            client.partition_client(topic, partition, UnknownTopicHandling::Error).await.unwrap();
        let produced = client.produce(records, Compression::NoCompression).await;
        produced.map(drop).map_err(|e| format!("{e:?}"))
    })
}

fn values(kafka: &Kafka, topic: &str) -> Vec<String> {
    let read = kafka.read_topic(topic);
    read.into_iter().map(|record| String::from_utf8(record.value.unwrap()).unwrap()).collect()
}

#[test]
fn one_broker_keeps_its_records_through_stops_and_kills() {
    let kafka = Kafka::builder().start();
    kafka.create_topic("things", 3, &[("max.message.bytes", "100000")]);
    assert_eq!(kafka.topics(), ["things"]);
    assert!(kafka.read_topic("things").is_empty());
    produce(&kafka, "things", 2, &["a", "b"]);
    let read = kafka.read_topic("things");
    assert_eq!(read.len(), 2);
    assert_eq!((read[1].partition, read[1].offset), (2, 1));
    assert_eq!(read[1].key.as_deref(), Some(b"key".as_slice()));
    assert_eq!(read[1].value.as_deref(), Some(b"b".as_slice()));
    assert_eq!(read[1].header("name"), Some("header"));
    assert_eq!(read[1].timestamp_ms, 1_700_000_000_123);
    assert_eq!(kafka.end_offsets("things"), BTreeMap::from([(0, 0), (1, 0), (2, 2)]));

    let mut reader = kafka.reader("things");
    assert_eq!(reader.read_to_end().len(), 2);
    let pid = kafka.pid(1).unwrap();
    kafka.restart();
    assert_ne!(kafka.pid(1), Some(pid));
    produce(&kafka, "things", 2, &["c"]);
    kafka.kill9();
    kafka.start_again();
    produce(&kafka, "things", 0, &["d"]);
    // The reader's connection died twice.
    reader.read_until("the last records", Duration::from_secs(20), |records| records.len() == 4);
    assert_eq!(values(&kafka, "things"), ["d", "a", "b", "c"]);

    // A changed setting counts at once: the topic refuses what the Java producer sends.
    kafka.set_topic_config("things", "max.message.bytes", "10");
    let java = "org.apache.kafka.tools.ConsoleProducer";
    let mut command =
        kafka.java_command(java, &["--bootstrap-server", &kafka.bootstrap(), "--topic", "things"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"too large for that\n").unwrap();
    let said = child.wait_with_output().unwrap().stderr;
    assert!(String::from_utf8_lossy(&said).contains("RecordTooLarge"));

    kafka.delete_topic("things");
    assert!(kafka.topics().is_empty());
}

#[test]
fn the_java_consumer_reads_what_was_written() {
    let kafka = Kafka::shared();
    kafka.create_topic("seen-by-java", 2, &[]);
    produce(kafka, "seen-by-java", 1, &["hello"]);
    let printed = kafka.java(
        "org.apache.kafka.tools.consumer.ConsoleConsumer",
        &[
            "--bootstrap-server",
            &kafka.bootstrap(),
            "--topic",
            "seen-by-java",
            "--from-beginning",
            "--max-messages",
            "1",
            "--timeout-ms",
            "20000",
            "--formatter-property",
            "print.partition=true",
            "--formatter-property",
            "print.headers=true",
            "--formatter-property",
            "print.key=true",
        ],
    );
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert_eq!(printed.trim_end(), "Partition:1\tname:header\tkey\thello");
}

#[test]
fn kafkas_own_consumer_reads_what_ours_does() {
    let kafka = Kafka::shared();
    kafka.create_topic("read-twice", 2, &[]);
    produce(kafka, "read-twice", 0, &["a", "ä\n "]);
    write(kafka, "read-twice", 1, None, &[""]).unwrap();
    let ours = kafka.read_topic("read-twice");
    assert_eq!(ours.len(), 3);
    assert_eq!((&ours[2].key, &ours[2].value), (&None, &Some(Vec::new())));
    assert_eq!(kafka.read_topic_by_java("read-twice"), ours);

    // The time of the append is the record's where the topic says so.
    kafka.create_topic("read-late", 1, &[("message.timestamp.type", "LogAppendTime")]);
    produce(kafka, "read-late", 0, &["a"]);
    let ours = kafka.read_topic("read-late");
    assert!(ours[0].timestamp_ms > 1_700_000_000_123, "{ours:?}");
    assert_eq!(kafka.read_topic_by_java("read-late"), ours);
}

#[test]
fn a_compacted_topic_refuses_a_record_without_a_key() {
    let kafka = Kafka::shared();
    kafka.create_topic("compacted", 1, &[("cleanup.policy", "compact")]);
    produce(kafka, "compacted", 0, &["a"]);
    let refused = write(kafka, "compacted", 0, None, &["b"]).unwrap_err();
    assert!(refused.contains("InvalidRecord"), "{refused}");
    assert_eq!(values(kafka, "compacted"), ["a"]);
}

#[test]
fn a_broker_with_another_port_is_the_same_broker() {
    let kafka = Kafka::builder().start();
    kafka.create_topic("stays", 1, &[]);
    produce(&kafka, "stays", 0, &["a"]);
    let before = kafka.bootstrap();
    kafka.stop();
    kafka.change_port(1);
    kafka.start_again();
    assert_ne!(kafka.bootstrap(), before);
    produce(&kafka, "stays", 0, &["b"]);
    assert_eq!(values(&kafka, "stays"), ["a", "b"]);
}

#[test]
fn three_brokers_elect_another_leader() {
    let kafka = Kafka::builder().brokers(3).heap("256m").start();
    kafka.create_topic("copied", 3, &[("min.insync.replicas", "2")]);
    kafka.wait_in_sync("copied");
    produce(&kafka, "copied", 0, &["a"]);
    let leader = kafka.leaders("copied")[0];
    kafka.kill9_broker(usize::try_from(leader).unwrap());
    testkit::wait::until("another leader", testkit::wait::LIMIT, || {
        kafka.leaders("copied").first().is_some_and(|now| *now >= 0 && *now != leader)
    });
    assert_eq!(values(&kafka, "copied"), ["a"]);
    kafka.start_again();
}

#[test]
fn java_says_where_keys_go() {
    // From Kafka's own UtilsTest: the hash of "21" is -973932308.
    let expected = (-973_932_308_i32 & 0x7fff_ffff) % 50;
    assert_eq!(java_partitions(&["21", "21"], 50), [expected, expected]);
    let keys: Vec<String> = (0..1000).map(|n| format!("aggregate-{n}")).collect();
    let partitions = java_partitions(&keys, 4);
    assert!((0..4).all(|p| partitions.contains(&p)));
    assert!(java_partitions(&[[0xff_u8, 0x00, 0x80].as_slice()], 7)[0] < 7);
}

//! Makes a shipment of each order, once: it reads `orders.order` from Kafka and writes each shipment together with how far
//! it has read. `orders.rs` emits the facts; `make example` runs both.
//!
//! ```sh
//! DATABASE_URL=postgres://app@localhost/app KAFKA_BROKERS=localhost:9092 shipping    # until it is killed
//! ```
//!
//! It may be killed at any instant. `PAUSE_MS` (0) is how many milliseconds the work on a shipment takes. The relay has `KAFKA_VALUE=payload`, so that values are the JSON of the orders.
#![expect(clippy::print_stdout, reason = "it says what it does")]

use rskafka::client::ClientBuilder;
use rskafka::client::partition::{PartitionClient, UnknownTopicHandling};
use rskafka::record::{Record, RecordAndOffset};
use serde::Deserialize;
use sqlx::PgPool;
use std::time::Duration;
use tokio::task::JoinSet;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const TOPIC: &str = "orders.order";

/// Of each partition one row for each database that emits into it. `position` tells repeats, and `next_offset` is only
/// where to go on.
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS shipments (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, order_id text NOT NULL, item text NOT NULL);
    CREATE TABLE IF NOT EXISTS consumed (
        partition int, source text, position text COLLATE \"C\" NOT NULL, next_offset bigint NOT NULL,
        PRIMARY KEY (partition, source))";

/// No row is changed if the fact, or one behind it, was worked on before.
const KEEP: &str = "
    INSERT INTO consumed AS kept VALUES ($1, $2, $3, $4)
      ON CONFLICT (partition, source)
      DO UPDATE SET position = excluded.position, next_offset = excluded.next_offset
      WHERE kept.position < excluded.position";

/// What is needed of an order.
#[derive(Deserialize)]
struct Placed {
    item: String,
}

fn header<'a>(record: &'a Record, name: &str) -> Result<&'a str, Failure> {
    let value = record.headers.get(name).ok_or_else(|| format!("a record without {name}"))?;
    Ok(str::from_utf8(value)?)
}

/// The work and the position, both or neither; false if it is a repeat.
async fn ship(
    pool: &PgPool,
    partition: i32,
    read: &RecordAndOffset,
    pause: Duration,
) -> Result<bool, Failure> {
    let record = &read.record;
    let mut tx = pool.begin().await?;
    let kept = sqlx::query(KEEP)
        .bind(partition)
        .bind(header(record, "factlib_source")?)
        .bind(header(record, "factlib_position")?)
        .bind(read.offset + 1)
        .execute(&mut *tx)
        .await?;
    if kept.rows_affected() == 0 {
        return Ok(false);
    }
    if header(record, "event_type")? == "placed" {
        let order = str::from_utf8(record.key.as_deref().unwrap_or_default())?;
        tokio::time::sleep(pause).await;
        let placed: Placed = serde_json::from_slice(record.value.as_deref().unwrap_or_default())?;
        sqlx::query("INSERT INTO shipments (order_id, item) VALUES ($1, $2)")
            .bind(order)
            .bind(placed.item)
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await?;
    Ok(true)
}

async fn consume(pool: PgPool, partition: PartitionClient, pause: Duration) -> Result<(), Failure> {
    let number = partition.partition();
    let next = "SELECT coalesce(max(next_offset), 0) FROM consumed WHERE partition = $1";
    let mut offset: i64 = sqlx::query_scalar(next).bind(number).fetch_one(&pool).await?;
    loop {
        let (records, _) = partition.fetch_records(offset, 1..1_000_000, 1_000).await?;
        for read in records {
            let done = match ship(&pool, number, &read, pause).await? {
                true => "shipped",
                false => "passed over",
            };
            let order = read.record.key.as_deref().unwrap_or_default().escape_ascii();
            println!("{done} order {order}");
            offset = read.offset + 1;
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let pool = PgPool::connect(&std::env::var("DATABASE_URL")?).await?;
    sqlx::raw_sql(TABLES).execute(&pool).await?;
    let pause = std::env::var("PAUSE_MS").map_or(Ok(0), |pause| pause.parse())?;
    let brokers = std::env::var("KAFKA_BROKERS")?.split(',').map(str::to_owned).collect();
    let kafka = ClientBuilder::new(brokers).build().await?;
    let topics = kafka.list_topics().await?;
    let topic = topics.into_iter().find(|topic| topic.name == TOPIC);
    let mut partitions = JoinSet::new();
    for number in topic.ok_or_else(|| format!("there is no topic {TOPIC}"))?.partitions {
        let retry = UnknownTopicHandling::Retry;
        let partition = kafka.partition_client(TOPIC, number, retry).await?;
        partitions.spawn(consume(pool.clone(), partition, Duration::from_millis(pause)));
    }
    // One that ends has failed. What it did not do is done after a restart.
    match partitions.join_next().await {
        Some(ended) => ended?,
        None => Err(format!("topic {TOPIC} has no partitions").into()),
    }
}

//! The example services of `emit/examples` at work: orders are placed over HTTP, and shipped because of what Kafka says.

use crate::error::{Context as _, Error, Result};
use crate::kafka::read_log;
use crate::postgres::Mode;
use crate::process::{self, Process, Signal};
use crate::{Kafka, Owlpost, Postgres, http, owlpost, port, provision, scratch, wait};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const TOPIC: &str = "orders.order";

/// So many orders are placed.
const ORDERS: usize = 12;

/// What takes part, as files.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The relay.
    pub owlpost: PathBuf,
    /// The folder of `orders` and `shipping`.
    pub examples: PathBuf,
}

impl Programs {
    /// Those that were built together with this program.
    ///
    /// # Errors
    ///
    /// When it is not known where this program is.
    pub fn beside_this_one() -> Result<Self> {
        let own = std::env::current_exe().context("where this program is")?;
        Ok(Self {
            owlpost: own.with_file_name("owlpost"),
            examples: own.with_file_name("examples"),
        })
    }
}

/// A service, with what it prints in a file.
struct Service {
    name: &'static str,
    process: Process,
    folder: PathBuf,
}

impl Service {
    fn start(examples: &Path, name: &'static str, environment: &[(&str, String)]) -> Result<Self> {
        let program = examples.join(name);
        if !program.is_file() {
            return Err(Error(format!(
                "there is no {}: `make example` builds it",
                program.display()
            )));
        }
        let folder = scratch::folder(name)?;
        let output = |name: &str| File::create(folder.join(name)).context(name);
        let mut command = process::guarded(program, None);
        command.env_clear().envs(environment.iter().map(|(name, value)| (name, value)));
        command.stdout(output("stdout")?).stderr(output("stderr")?);
        Ok(Self { name, process: Process::spawn(name, command)?, folder })
    }

    /// How many lines it has printed that begin so.
    fn said(&self, begin: &str) -> usize {
        let said = read_log(&self.folder.join("stdout"));
        said.lines().filter(|line| line.starts_with(begin)).count()
    }

    /// Waits until the condition holds, or it has ended.
    fn wait(&self, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
        let error = |why: String| {
            let said = read_log(&self.folder.join("stderr"));
            Error(format!("{why}\n{}", process::last_lines(&said, 20)))
        };
        wait::poll(what, wait::LIMIT, || match (condition(), self.process.ended()) {
            (true, _) => Some(Ok(())),
            (false, Some(status)) => {
                let ended = process::describe(status);
                Some(Err(error(format!("{what}: {} ended with {ended}", self.name))))
            }
            (false, None) => None,
        })
        .unwrap_or_else(|late| Err(error(late.to_string())))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.process.kill();
        let _ = scratch::remove(&self.folder);
    }
}

/// That it is so, or what went wrong.
fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Result<()> {
    match found == wanted {
        true => Ok(()),
        false => Err(Error(format!("{what}: {found:?}, and not {wanted:?}"))),
    }
}

/// Places orders, kills who ships them, publishes everything again, and counts.
///
/// # Errors
///
/// When a step fails, an order is not shipped, or one is shipped twice.
pub fn run(programs: &Programs, mut say: impl FnMut(&str)) -> Result<()> {
    let begun = Instant::now();
    provision::setup(&mut say)?;
    let (postgres, kafka) = (Postgres::builder().try_start()?, Kafka::builder().try_start()?);
    kafka.create_topic(TOPIC, 3, &[]);
    say(&format!("PostgreSQL listens on port {}, Kafka on {}", postgres.port(), kafka.bootstrap()));
    let relay = |command: &[&str], slot: &str| {
        let relay: owlpost::Command =
            command.iter().fold(Owlpost::command(&programs.owlpost), |relay, word| relay.arg(word));
        relay
            .servers(&postgres, &kafka)
            .env("SRC_SERVICE_NAME", "orders")
            .env("KAFKA_VALUE", "payload")
            .env("REPLICATION_SLOT_NAME", format!("{slot}_slot"))
            .env("PUBLICATION_NAME", format!("{slot}_facts"))
            .try_spawn()
    };
    // To its end.
    let done = |command: &[&str], slot: &str| {
        let relay = relay(command, slot)?;
        let status = relay.wait_exit(wait::LIMIT);
        match status.success() {
            true => Ok(()),
            false => Err(Error(format!("owlpost {}: {}", command.join(" "), relay.log_text()))),
        }
    };
    done(&["init"], "second")?;
    let first = relay(&["run"], "first")?;
    first.try_wait_ready()?;

    let database = ("DATABASE_URL", postgres.url());
    let listen = port::free();
    let address = ("LISTEN", format!("127.0.0.1:{listen}"));
    let orders = Service::start(&programs.examples, "orders", &[database.clone(), address])?;
    orders
        .wait("orders to listen", || std::net::TcpStream::connect(("127.0.0.1", listen)).is_ok())?;
    let ship = |pause: &str| {
        let environment = [
            database.clone(),
            ("KAFKA_BROKERS", kafka.bootstrap()),
            ("PAUSE_MS", pause.to_owned()),
        ];
        Service::start(&programs.examples, "shipping", &environment)
    };
    // Slow enough to be killed in the middle: of the whole, and of a transaction.
    let shipping = ship("1000")?;
    say("owlpost relays, orders listens, shipping reads orders.order");

    let place = |item: &str, card: &str| {
        let order = format!(r#"{{"item":"{item}","cents":1999,"card":"{card}"}}"#);
        http::post(listen, "/orders", &order, wait::LIMIT)
    };
    for number in 1..=ORDERS {
        let (status, body) = place(&format!("book {number}"), "visa")?;
        expect(&body, status, 201)?;
        if number == 1 {
            say(&format!("POST /orders: {status} {body}"));
        }
    }
    let (status, body) = place("a yacht", "declined")?;
    expect(&body, status, 402)?;
    say(&format!("{ORDERS} orders placed; POST /orders: {status} {body}, which is rolled back"));

    let count = |table: &str| -> usize {
        postgres.ask(&format!("SELECT count(*) FROM {table}")).parse().unwrap_or_default()
    };
    shipping.wait("a shipment", || shipping.said("shipped") > 0)?;
    shipping.process.kill();
    let made = count("shipments");
    if made >= ORDERS {
        return Err(Error(format!("shipping had made all {made} shipments before it was killed")));
    }
    say(&format!(
        "kill -9 of shipping in the middle of its work, with {made} of {ORDERS} shipments made; started again"
    ));
    drop(shipping);
    let shipping = ship("0")?;
    shipping.wait("the shipments", || count("shipments") >= ORDERS)?;
    say(&format!("{} orders, {} shipments", count("orders"), count("shipments")));

    done(&["drain", "--until", "now"], "second")?;
    let records: i64 = kafka.end_offsets(TOPIC).values().sum();
    say(&format!("a relay with an older slot published all of it again: {records} records"));
    expect("records in Kafka", records, 2 * ORDERS as i64)?;
    shipping.wait("the repeats", || shipping.said("passed over") >= ORDERS)?;
    say(&format!("shipping passed over {} repeats", shipping.said("passed over")));
    let twice = "SELECT count(*) FROM (SELECT FROM shipments GROUP BY order_id HAVING count(*) > 1) AS twice";
    let without =
        "SELECT count(*) FROM orders WHERE id::text NOT IN (SELECT order_id FROM shipments)";
    let (twice, without) = (postgres.ask(twice), postgres.ask(without));
    say(&format!(
        "{} orders, {} shipments: {without} orders without one, {twice} with two",
        count("orders"),
        count("shipments")
    ));
    let counts = [count("orders"), count("shipments"), shipping.said("passed over")];
    expect("orders, shipments and repeats", counts, [ORDERS; 3])?;
    expect("orders without a shipment, and with two", (&*without, &*twice), ("0", "0"))?;

    orders.process.signal(Signal::SIGTERM);
    let ended = orders.process.wait("orders to end", wait::LIMIT)?;
    expect("how orders ended", ended.code(), Some(0))?;
    expect("how owlpost ended", first.stop(Duration::from_secs(20)).code(), Some(0))?;
    drop((shipping, orders, first));
    postgres.stop(Mode::Fast);
    kafka.stop();
    say(&format!("all stopped; that took {:.1} s", begun.elapsed().as_secs_f64()));
    Ok(())
}

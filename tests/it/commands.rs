//! The commands beside `run`, `init` and `audit`: what they say, what they do, how they end; and every command line
//! that the help shows.

use crate::support::{
    PATIENCE, SLOT, binary, confirmed, count, emit, lsn, number, read, relay, stop, wait_confirmed,
    wait_state,
};
use factlib::cli::Cli;
use std::collections::HashSet;
use std::process::{Command, Stdio};
use testkit::workload::Workload;
use testkit::{Kafka, Lsn, Owlpost, Postgres, owlpost, process::Signal};

/// What a command line said, and its exit code.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    /// Standard output as one JSON object.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// That it ended so; itself.
    #[track_caller]
    pub(crate) fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }
}

/// A terminal's worth of environment: `owlpost` can be found, and knows its servers.
#[derive(Debug, Clone)]
pub(crate) struct Shell(Vec<(String, String)>);

impl Shell {
    pub(crate) fn new(prefix: &str, postgres: &Postgres, kafka: &Kafka) -> Self {
        Self::empty()
            .env("SRC_SERVICE_NAME", prefix)
            .env("MASTER_DATABASE_URL", &postgres.url())
            .env("KAFKA_BROKERS", &kafka.bootstrap())
            // The defaults are two ports for all tests of the machine.
            .env("WAL_HEALTH_PORT", "0")
            .env("METRICS_PORT", "0")
    }

    pub(crate) fn empty() -> Self {
        let binary = binary();
        let folder = binary.parent().unwrap();
        Self(Vec::new()).env("PATH", &format!("{}:/usr/bin:/bin", folder.display()))
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.0.retain(|(known, _)| known != name);
        self.0.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.0.retain(|(known, _)| known != name);
        self
    }

    /// A line of `sh`, to be run by the caller; it ends with the thread that starts it.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "sh", "-c", line]);
        command.env_clear().envs(self.0.iter().cloned()).stdin(Stdio::null());
        command
    }

    /// Runs a line of `sh`, to its end.
    pub(crate) fn run(&self, line: &str) -> Said {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "120", "sh", "-c", line]);
        command.env_clear().envs(self.0.iter().cloned()).stdin(Stdio::null());
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Said {
            code: output.status.code().unwrap_or(-1),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }
}

fn fact(id: &str) -> String {
    format!(r#"{{"id":"{id}","aggregate_type":"order","aggregate_id":"{id}","event_type":"paid"}}"#)
}

/// Publication and slot, and the topic of orders.
fn init(command: &owlpost::Command) -> String {
    let init = command.clone().arg("init").spawn();
    assert_eq!(init.wait_exit(PATIENCE).code(), Some(0), "{}", init.log_text());
    init.stdout()
}

/// The end of what is committed. [`insert_lsn`] may stand behind a page's header, where nothing is ever confirmed.
fn flush_lsn(postgres: &Postgres) -> Lsn {
    lsn(postgres, "SELECT pg_current_wal_flush_lsn()")
}

fn insert_lsn(postgres: &Postgres) -> Lsn {
    lsn(postgres, "SELECT pg_current_wal_insert_lsn()")
}

/// The command lines that a help text shows, without what is said beside them.
fn examples(help: &str) -> Vec<String> {
    let commands = ["owlpost", "echo", "curl"];
    let lines = help.lines().filter_map(|line| line.strip_prefix("  "));
    lines
        .filter(|line| line.split(' ').next().is_some_and(|word| commands.contains(&word)))
        .map(|line| line.split("   ").next().unwrap().trim().to_owned())
        .collect()
}

#[test]
fn every_command_line_that_the_help_shows_can_be_run() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("shown.order", 1, &[]);
    kafka.create_topic("shown.dead", 1, &[]);
    let shell = Shell::new("shown", &postgres, kafka)
        .env("POISON_POLICY", "dead-letter")
        .env("DEAD_LETTER_TOPIC", "shown.dead")
        .env("WAL_HEALTH_PORT", "0");
    let command = relay("shown", &postgres, kafka);
    let mut definition = Cli::definition();
    definition.build();
    let of = |command: &clap::Command| {
        let help = [command.get_after_long_help(), command.get_after_help()];
        examples(&help.into_iter().flatten().next().map(ToString::to_string).unwrap_or_default())
    };
    let own = of(&definition);
    let commands = definition.get_subcommands().flat_map(&of);
    let mut left: HashSet<String> = commands.chain(own).collect();
    assert!(left.len() >= 25, "{left:?}");

    let folder = tempfile::tempdir().unwrap();
    let running = std::cell::Cell::new(None);
    let mut run = |begins: &str| {
        let (these, others): (Vec<_>, Vec<_>) = left
            .drain()
            .partition(|line| line.starts_with(begins) && (begins != "owlpost" || line == begins));
        left = others.into_iter().collect();
        assert!(!these.is_empty(), "no example begins with {begins:?}");
        for line in these {
            let mut meant = line.replace("0/16B3748", &insert_lsn(&postgres).to_string());
            if let Some(port) = running.get() {
                meant = meant.replace("localhost:3001", &format!("localhost:{port}"));
            }
            if line == "owlpost" || line.starts_with("owlpost run") || line.contains("--watch") {
                meant = format!("timeout --preserve-status --signal=TERM 3 {meant}");
            }
            shell.run(&format!("cd {} && {meant}", folder.path().display())).ended(0);
        }
    };
    run("owlpost init --audit");
    run("owlpost init");
    // While facts are committed, and before one is published.
    let load = Workload { facts: 1_000_000, ..Workload::new("shown", 1) }.start(&postgres);
    load.wait_for(10, PATIENCE);
    run("owlpost tail");
    load.stop();
    run("owlpost drain");
    run("owlpost");
    run("owlpost run");

    let relay =
        command.env("POISON_POLICY", "dead-letter").env("DEAD_LETTER_TOPIC", "shown.dead").spawn();
    relay.wait_ready();
    running.set(Some(relay.health_port()));
    run("owlpost check");
    run("owlpost emit");
    run("echo ");
    run("owlpost wait");
    run("curl ");
    run("owlpost status");
    run("owlpost audit");
    run("owlpost redrive");
    run("owlpost completions");
    run("owlpost man");
    stop(&relay);
    assert_eq!(left, HashSet::new(), "examples that no test runs");
    let page = std::fs::read_to_string(folder.path().join("man1/owlpost-status.1")).unwrap();
    assert!(page.contains("max_slot_wal_keep_size"), "{page}");
}

#[test]
fn completions_and_manual_pages_need_no_setting_at_all() {
    let shell = Shell::empty();
    for (name, words) in
        [("bash", "_owlpost()"), ("zsh", "#compdef owlpost"), ("fish", "complete -c owlpost")]
    {
        let said = shell.run(&format!("owlpost completions {name}")).ended(0);
        assert!(said.out.contains(words) && said.out.contains("redrive"), "{said:?}");
    }
    shell.run("owlpost completions nosuchshell").ended(2);
    assert!(shell.run("owlpost man").ended(0).out.contains(".TH owlpost 1"));
    let said = shell.run("owlpost man --out /dev/null/man1").ended(2);
    assert!(said.err.contains("cannot write to /dev/null/man1"), "{said:?}");
}

#[test]
fn a_command_asks_for_no_setting_that_it_does_not_use() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    init(&relay("least", &postgres, kafka));
    let shell = Shell::empty().env("MASTER_DATABASE_URL", &postgres.url());
    shell.run("owlpost status --sample 10ms").ended(0);
    shell.run("owlpost wait --lsn 0/1").ended(0);
    shell.run("owlpost emit --prefix least --aggregate-type order").ended(0);
    let said = shell.run("owlpost tail").ended(2);
    assert!(said.err.contains("SRC_SERVICE_NAME: not set"), "{said:?}");
    assert!(!said.err.contains("KAFKA_BROKERS"), "{said:?}");
    shell.clone().env("SRC_SERVICE_NAME", "least").run("owlpost init").ended(0);
    let said = shell.run("owlpost drain --until now").ended(2);
    assert!(said.err.contains("KAFKA_BROKERS: not set"), "{said:?}");
    let said = Shell::empty().env("KAFKA_BROKERS", "kafka").run("owlpost redrive").ended(2);
    assert!(said.err.contains("DEAD_LETTER_TOPIC: not set"), "{said:?}");
    assert!(!said.err.contains("DATABASE_URL"), "{said:?}");
    // What is set is checked all the same.
    let said = shell.env("KAFKA_BROKERS", "http://kafka").run("owlpost status").ended(2);
    assert!(said.err.contains("without http://"), "{said:?}");
}

#[test]
fn a_wait_ends_once_everything_is_confirmed_and_says_if_it_is_not() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("awaited.order", 1, &[]);
    let command = relay("awaited", &postgres, kafka);
    let shell = Shell::new("awaited", &postgres, kafka).without("KAFKA_BROKERS");
    let said = shell.run("owlpost wait --lsn now").ended(4);
    assert!(said.err.contains("slot factlib_slot is not there"), "{said:?}");

    init(&command);
    emit(&postgres, true, "awaited", fact("1").as_bytes());
    let (committed, barrier) = (flush_lsn(&postgres), insert_lsn(&postgres));
    let said = shell.run("owlpost wait --lsn now --timeout 300ms").ended(12);
    assert!(said.err.contains("`owlpost status`") && said.out.is_empty(), "{said:?}");
    let said = shell.run(&format!("owlpost wait --lsn {barrier} --timeout 50ms --json")).ended(12);
    assert_eq!(
        (&said.json()["reached"], &said.json()["lsn"]),
        (&false.into(), &barrier.to_string().into())
    );
    let said = shell.run("owlpost wait --lsn FF/0 --timeout 50ms").ended(12);
    assert!(said.err.contains("is it the right cluster"), "{said:?}");
    assert!(shell.run("owlpost wait --lsn yesterday").ended(2).err.contains("like 16/B374D848"));
    for signal in ["INT", "TERM"] {
        let stopped = format!("timeout --preserve-status --signal={signal} 1");
        let said = shell.run(&format!("{stopped} owlpost wait --lsn FF/0 --json")).ended(12);
        assert_eq!(said.json()["reached"], false, "{said:?}");
        assert!(said.err.contains("stopped: slot factlib_slot is confirmed up to"), "{said:?}");
    }

    let relay = command.spawn();
    let said = shell.run(&format!("owlpost wait --lsn {barrier} --timeout 60s")).ended(0);
    assert!(said.out.contains("confirmed up to"), "{said:?}");
    let said = shell.run(&format!("owlpost wait --lsn {barrier} --json")).ended(0);
    assert_eq!(said.json()["reached"], true, "{said:?}");
    assert_eq!(count(kafka, "awaited.order"), 1, "what was waited for is in Kafka");
    assert!(confirmed(&postgres) >= committed);

    // The relay says the same.
    emit(&postgres, true, "awaited", fact("2").as_bytes());
    let barrier = insert_lsn(&postgres);
    let (status, body) = relay.get(&format!("/wait?lsn={barrier}&timeout=4s")).unwrap();
    assert_eq!(status, 200, "{body}");
    assert_eq!(count(kafka, "awaited.order"), 2);
    // On a server that is idle since its log came to a new segment, the next record begins behind that one's header.
    postgres.client().batch_execute("SELECT pg_switch_wal()").unwrap();
    let barrier = insert_lsn(&postgres);
    assert_eq!(barrier.0 % (1 << 20), 40, "{barrier}");
    shell.run(&format!("owlpost wait --lsn {barrier} --timeout 8s")).ended(0);
    assert_eq!(relay.get(&format!("/wait?lsn={barrier}&timeout=4s")).unwrap().0, 200);
    assert_eq!(insert_lsn(&postgres), barrier, "the log has moved: this shows nothing");
    assert_eq!(relay.get("/wait?lsn=FF/0&timeout=100ms").unwrap().0, 504);
    assert_eq!(relay.get("/wait?lsn=nonsense").unwrap().0, 400);
    // A fact that cannot be published holds up what is behind it.
    emit(&postgres, true, "awaited", b"junk");
    emit(&postgres, true, "awaited", fact("3").as_bytes());
    let barrier = insert_lsn(&postgres);
    wait_state(&relay, "halted");
    let (status, body) = relay.get(&format!("/wait?lsn={barrier}&timeout=4s")).unwrap();
    assert!(status == 503 && body.contains("envelope"), "{status} {body}");
    shell.run(&format!("owlpost wait --lsn {barrier} --timeout 1s")).ended(12);
    relay.kill9();
}

#[test]
fn a_drain_publishes_up_to_its_position_confirms_that_and_stops() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("drainage.order", 2, &[]);
    let command = relay("drainage", &postgres, kafka);
    let shell = Shell::new("drainage", &postgres, kafka);
    let said = shell.run("owlpost drain --until now").ended(4);
    assert!(said.err.contains("`owlpost init` makes them"), "{said:?}");
    assert_eq!(postgres.ask("SELECT count(*) FROM pg_publication"), "0", "it makes nothing");

    init(&command);
    let written = Workload { facts: 500, ..Workload::new("drainage", 1) }.start(&postgres).wait();
    let end = flush_lsn(&postgres);
    let said = shell.run("owlpost drain --until now --timeout 60s").ended(0);
    assert!(said.out.contains("published and confirmed up to"), "{said:?}");
    assert_eq!(count(kafka, "drainage.order"), written.facts);
    assert!(confirmed(&postgres) >= end, "{end} {said:?}");

    // With no fact behind the position, and with nothing new at all.
    postgres.client().batch_execute("CREATE TABLE t (); DROP TABLE t").unwrap();
    let said = shell.run("owlpost drain --until now --timeout 60s --json").ended(0);
    assert_eq!(said.json()["reached"], true);
    shell.run("owlpost drain --until 0/1").ended(0);

    let said = shell.run("owlpost drain --until FF/0 --timeout 2s").ended(12);
    assert!(said.err.contains("stopped before FF/0 was confirmed"), "{said:?}");
    // A relay that runs has the slot.
    let relay = command.spawn();
    relay.wait_ready();
    let said = shell.run("owlpost drain --until FF/0 --timeout 2s --json").ended(12);
    assert_eq!(said.json()["reached"], false);
    assert!(relay.is_ready());
    stop(&relay);
    emit(&postgres, true, "drainage", fact("1").as_bytes());
    let nowhere = shell.env("KAFKA_BROKERS", "127.0.0.1:1").env("STARTUP_TIMEOUT", "1s");
    nowhere.run("owlpost drain --until now").ended(3);
}

#[test]
fn a_status_says_how_the_slot_stands_with_and_without_a_relay() {
    let (postgres, kafka) =
        (Postgres::builder().setting("max_slot_wal_keep_size", "64MB").start(), Kafka::shared());
    kafka.create_topic("stated.order", 1, &[]);
    let command = relay("stated", &postgres, kafka);
    let shell = Shell::new("stated", &postgres, kafka).without("KAFKA_BROKERS");
    let said = shell.run("owlpost status --sample 10ms").ended(4);
    assert!(said.out.contains("factlib_slot IS MISSING"), "{said:?}");
    let said = shell.run("owlpost status --sample 10ms --json").ended(4);
    assert_eq!(
        (&said.json()["state"], &said.json()["publication_exists"]),
        (&"missing".into(), &false.into())
    );

    init(&command);
    for n in 0..7 {
        emit(&postgres, true, "stated", fact(&n.to_string()).as_bytes());
        emit(&postgres, true, "others", b"not ours");
    }
    emit(&postgres, true, "stated", b"junk");
    let mut open = postgres.client();
    open.batch_execute("BEGIN; CREATE TABLE open_one ()").unwrap();
    let said = shell.run("owlpost status --facts --sample 50ms --json").ended(0);
    let report = said.json();
    assert_eq!(report["state"], "inactive");
    assert_eq!(report["confirmed_lsn"], confirmed(&postgres).to_string());
    assert_eq!(report["facts_behind"], serde_json::json!({ "counted": 8, "all": true }));
    assert!(report["lag_bytes"].as_i64().unwrap() > 0, "{report}");
    assert!(report["safe_wal_bytes"].as_i64().unwrap() > 0, "{report}");
    assert!(report["oldest_transaction"]["age_seconds"].as_f64().unwrap() > 0.0, "{report}");
    let before = confirmed(&postgres);
    let said = shell.run("owlpost status --facts --sample 50ms").ended(0);
    for words in ["not in use", "8 wait", "max_slot_wal_keep_size = 64MB", "transaction ", "behind"]
    {
        assert!(said.out.contains(words), "{words}: {said:?}");
    }
    assert_eq!(confirmed(&postgres), before, "it only looks");
    open.batch_execute("ROLLBACK").unwrap();

    let relay = command.env("POISON_POLICY", "skip").spawn();
    wait_confirmed(&relay, &postgres, PATIENCE);
    let load = Workload { facts: 1_000_000, ..Workload::new("stated", 1) }.start(&postgres);
    load.wait_for(10, PATIENCE);
    let report = shell.run("owlpost status --sample 500ms --json").ended(0).json();
    assert_eq!(
        (&report["state"], &report["application_name"]),
        (&"active".into(), &"owlpost".into())
    );
    assert!(report["wal_bytes_per_second"].as_f64().unwrap() > 0.0, "{report}");
    assert!(report["seconds_until_lost"].as_f64().unwrap() > 0.0, "{report}");
    load.stop();
    // It goes on until it is told to stop, or nobody reads.
    let watch = "owlpost status --watch 100ms --sample 10ms --json";
    let said = shell.run(&format!("timeout --preserve-status --signal=INT 2 {watch}")).ended(0);
    assert!(said.out.lines().count() > 2, "{said:?}");
    for line in said.out.lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).unwrap().is_object());
    }
    assert_eq!(shell.run(&format!("{watch} | head -1")).ended(0).out.lines().count(), 1);
    stop(&relay);
    postgres.client().batch_execute("DROP PUBLICATION facts").unwrap();
    assert!(shell.run("owlpost status --sample 10ms").ended(6).out.contains("facts IS MISSING"));
    shell.env("MASTER_DATABASE_URL", "postgres://x@127.0.0.1:1/x").run("owlpost status").ended(3);
}

#[test]
fn what_is_emitted_is_published_all_or_none() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    for topic in ["uttered.order", "uttered.carton"] {
        kafka.create_topic(topic, 1, &[]);
    }
    let relay = relay("uttered", &postgres, kafka).spawn();
    relay.wait_ready();
    let shell = Shell::new("uttered", &postgres, kafka).without("KAFKA_BROKERS");
    let said = shell
        .run(
            "owlpost emit --aggregate-type order --aggregate-id 42 --event-type paid --id seven \
             --payload '{\"cents\": 18446744073709551617}' --metadata tenant=a --metadata x=y=z",
        )
        .ended(0);
    let mut lines = said.out.lines();
    assert!(lines.next().unwrap().starts_with("seven 0/"), "{said:?}");
    let wait = lines.next().unwrap().split('`').nth(1).unwrap();
    shell.run(wait).ended(0);
    let record = &kafka.read_topic("uttered.order")[0];
    assert_eq!(
        (record.key.as_deref(), record.header("event_id")),
        (Some(&b"42"[..]), Some("seven"))
    );
    let value = String::from_utf8(record.value.clone().unwrap()).unwrap();
    assert!(value.contains(r#""payload":{"cents": 18446744073709551617}"#), "{value}");
    assert!(value.contains(r#""metadata":{"tenant":"a","x":"y=z"}"#), "{value}");
    assert_eq!(record.header("LSN").unwrap(), said.out.split_whitespace().nth(1).unwrap());

    // Without an id one is made; what is no JSON is a JSON string; any file is passed on.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("payload");
    std::fs::write(&file, [0, 159, 255]).unwrap();
    let order = "owlpost emit --aggregate-type order --aggregate-id";
    let said = shell.run(&format!("{order} b --payload hello --json")).ended(0).json();
    let id = said["facts"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(id.len(), 36, "{said}");
    shell.run(&format!("{order} c --payload-file {}", file.display())).ended(0);
    let said = shell.run(&format!("{order} d --payload-base64 AJ// --json")).ended(0).json();
    shell.run(&format!("owlpost wait --lsn {}", said["wait_lsn"].as_str().unwrap())).ended(0);
    let records = kafka.read_topic("uttered.order");
    let values: Vec<String> =
        records.iter().map(|r| String::from_utf8(r.value.clone().unwrap()).unwrap()).collect();
    assert_eq!(records[1].header("event_id"), Some(id.as_str()));
    assert!(values[1].contains(r#""payload":"hello""#), "{values:?}");
    assert!(values[2].contains(r#""payload_base64":"AJ//""#), "{values:?}");
    assert!(values[3].contains(r#""payload_base64":"AJ//""#), "{values:?}");

    // Many in one transaction, as they are.
    let lines = r#"{"id":"a","aggregate_type":"carton","aggregate_id":"1","payload":{"n":  1}}

  {"aggregate_type":"carton","aggregate_id":"2"}"#;
    std::fs::write(&file, lines).unwrap();
    let said =
        shell.run(&format!("owlpost emit --stdin --json < {}", file.display())).ended(0).json();
    assert_eq!(
        (&said["facts"][0]["id"], &said["facts"][1]["id"]),
        (&"a".into(), &serde_json::Value::Null)
    );
    let records = read(&relay, kafka, "uttered.carton", 2);
    assert_eq!(records[0].value.as_deref(), lines.lines().next().map(str::as_bytes));
    let unit =
        |record: &testkit::Record| record.header("factlib_position").unwrap()[..27].to_owned();
    assert_eq!(unit(&records[0]), unit(&records[1]), "one transaction");

    // One that the relay could not read, and nothing of all is emitted.
    let before = insert_lsn(&postgres);
    for (lines, words) in [
        ("{\"aggregate_type\":\"carton\"}\n{\"aggregate_type\":7}", "line 2: not a JSON envelope"),
        ("{\"aggregate_type\":\"no topic!\"}", "cannot be a topic's name"),
        ("[]", "line 1: not a JSON object"),
        ("", "has no fact"),
    ] {
        std::fs::write(&file, lines).unwrap();
        let said = shell.run(&format!("owlpost emit --stdin < {}", file.display())).ended(2);
        assert!(said.err.contains(words) && said.err.contains("nothing was emitted"), "{said:?}");
    }
    // One that a topic with Kafka's defaults would refuse, which halts a relay.
    let large = format!(r#"{{"aggregate_type":"carton","payload":"{}"}}"#, "x".repeat(1_048_000));
    std::fs::write(&file, large).unwrap();
    let said = shell.run(&format!("owlpost emit --stdin < {}", file.display())).ended(2);
    assert!(said.err.contains("as a Kafka record, more than --max-record-bytes"), "{said:?}");
    shell.run("owlpost emit").ended(2);
    shell.run("owlpost emit --stdin --aggregate-type order").ended(2);
    shell.run(&format!("{order} x --payload a --payload-base64 AA==")).ended(2);
    assert!(
        shell.run(&format!("{order} x --payload-base64 ?")).ended(2).err.contains("payload_base64")
    );
    let emitted = format!("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '{before}') < 1000");
    assert_eq!(postgres.ask(&format!("SELECT ({emitted})::text")), "true");
    let said = shell.run(&format!("{order} e --prefix elsewhere")).ended(0);
    assert!(said.err.contains("passes it over"), "{said:?}");
    shell
        .env("MASTER_DATABASE_URL", "postgres://x@127.0.0.1:1/x")
        .run(&format!("{order} x"))
        .ended(3);
    assert_eq!(number(&relay, "published"), 6);
    stop(&relay);
}

#[test]
fn many_facts_are_emitted_in_one_transaction_however_large() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("chorus.order", 1, &[]);
    init(&relay("chorus", &postgres, kafka));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lines");
    let filler = "x".repeat(1000);
    let lines: String = (0..5000)
        .map(|n| {
            format!("{{\"id\":\"{n}\",\"aggregate_type\":\"order\",\"payload\":\"{filler}\"}}\n")
        })
        .collect();
    std::fs::write(&file, lines).unwrap();
    let shell = Shell::new("chorus", &postgres, kafka);
    let said =
        shell.run(&format!("owlpost emit --stdin --json < {}", file.display())).ended(0).json();
    assert_eq!(said["facts"].as_array().unwrap().len(), 5000);
    shell.run("owlpost drain --until now").ended(0);
    let records = kafka.read_topic("chorus.order");
    let ids: Vec<_> = records.iter().map(|record| record.header("event_id").unwrap()).collect();
    let expected: Vec<_> = (0..5000).map(|n: u32| n.to_string()).collect();
    assert_eq!(ids, expected);
}

#[test]
fn a_tail_shows_what_is_committed_and_touches_nothing() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    let shell = Shell::new("seen", &postgres, kafka).without("KAFKA_BROKERS");
    let said = shell.run("owlpost tail").ended(6);
    assert!(said.err.contains("publication facts is not there"), "{said:?}");
    init(&relay("seen", &postgres, kafka));
    let begin = confirmed(&postgres);

    // From the relay's slot on: what it has still to publish.
    let content = r#"{"id":"7","aggregate_type":"order","aggregate_id":"42","event_type":"paid",
        "payload":{"text":"\u001b[2J","n":18446744073709551617},"metadata":{"tenant":"a"}}"#;
    let at = emit(&postgres, true, "seen", content.as_bytes());
    let middle = insert_lsn(&postgres);
    emit(&postgres, true, "others", b"not ours");
    emit(&postgres, true, "seen", b"\x1b[2Jjunk");
    emit(&postgres, false, "seen", fact("8").as_bytes());
    let said = shell.run(&format!("owlpost tail --slot {SLOT} --limit 3")).ended(0);
    assert!(said.out.contains(&format!("seen.order 42 paid  {at} 7\n")), "{said:?}");
    assert!(said.out.contains("cannot be published (unreadable-envelope)"), "{said:?}");
    assert!(said.out.contains("\\u{1b}[2Jjunk") && !said.out.contains('\x1b'), "{said:?}");
    let said = shell.run(&format!("owlpost tail --from {begin} --limit 3 --format json")).ended(0);
    let lines: Vec<serde_json::Value> =
        said.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["topic"], "seen.order");
    assert_eq!(lines[0]["payload"]["text"], "\x1b[2J");
    assert!(said.out.contains("18446744073709551617"), "every digit: {said:?}");
    assert_eq!((&lines[0]["metadata"]["tenant"], &lines[0]["key"]), (&"a".into(), &"42".into()));
    assert_eq!(lines[0]["headers"]["LSN"], at.to_string());
    assert_eq!(
        (&lines[1]["cause"], &lines[1]["content_base64"]),
        (&"unreadable-envelope".into(), &"G1sySmp1bms=".into())
    );
    assert_eq!(
        (&lines[2]["event_id"], &lines[2]["payload"]),
        (&"8".into(), &serde_json::Value::Null)
    );
    let said = shell.run(&format!("owlpost tail --from {middle} --limit 2 --format raw")).ended(0);
    assert_eq!(said.out, format!("\x1b[2Jjunk\n{}\n", fact("8")));
    let said = shell.run("owlpost tail --from 0/1").ended(4);
    assert!(said.err.contains("0/1 is too early"), "{said:?}");
    assert!(shell.run("owlpost tail --from FF/0").ended(4).err.contains("the right cluster"));
    shell.run("owlpost tail --slot nosuch").ended(4);
    assert_eq!(confirmed(&postgres), begin, "the relay's slot was moved");

    // From now on; for another prefix than the relay's; until nobody reads any more, or it is stopped.
    let load = Workload { facts: 1_000_000, ..Workload::new("others", 1) }.start(&postgres);
    let others = shell.clone().env("SRC_SERVICE_NAME", "others");
    let said = others.run("owlpost tail --limit 5 --format json").ended(0);
    assert_eq!(said.out.lines().count(), 5, "{said:?}");
    let said = others.run("{ owlpost tail; echo ended $? >&2; } | head -2").ended(0);
    assert_eq!(said.out.lines().count(), 2, "{said:?}");
    assert!(said.err.trim_end().ends_with("ended 0"), "{said:?}");
    others.run("timeout --preserve-status --signal=INT 3 owlpost tail > /dev/null").ended(0);
    load.stop();
    // Also if there is nothing to show any more, and nobody would notice at the next fact.
    others.run("owlpost tail | true").ended(0);
    let slots = "SELECT string_agg(slot_name, ' ') FROM pg_replication_slots";
    testkit::wait::until("the temporary slots to be gone", PATIENCE, || {
        postgres.ask(slots) == SLOT
    });
    shell.env("MASTER_DATABASE_URL", "postgres://x@127.0.0.1:1/x").run("owlpost tail").ended(3);
}

#[test]
fn a_tail_goes_on_after_a_restart_of_the_server_and_says_what_it_missed() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    let command = relay("resumed", &postgres, kafka);
    init(&command);
    let tail = command.arg("tail").arg("--format").arg("json").spawn();
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE temporary AND active";
    let ready = || postgres.try_client().is_ok() && postgres.ask(slots) == "1";
    tail.wait_until("the tail to read", PATIENCE, ready);
    emit(&postgres, true, "resumed", fact("1").as_bytes());
    tail.wait_for_log("\"event_id\":\"1\"", PATIENCE);
    postgres.restart(testkit::postgres::Mode::Fast);
    tail.wait_for_log("what is committed until there is a new slot is not shown", PATIENCE);
    tail.wait_until("the tail to read", PATIENCE, ready);
    emit(&postgres, true, "resumed", fact("2").as_bytes());
    tail.wait_for_log("\"event_id\":\"2\"", PATIENCE);
    tail.signal(Signal::SIGTERM);
    assert_eq!(tail.wait_exit(PATIENCE).code(), Some(0), "{}", tail.log_text());
}

#[test]
fn a_lost_slot_is_made_anew_only_by_who_accepts_the_gap() {
    let (postgres, kafka) =
        (Postgres::builder().setting("max_slot_wal_keep_size", "1MB").start(), Kafka::shared());
    kafka.create_topic("gap.order", 1, &[]);
    let command = relay("gap", &postgres, kafka);
    let shell = Shell::new("gap", &postgres, kafka);
    let said = shell.run("owlpost init --accept-gap").ended(6);
    assert!(said.err.contains("no gap is known"), "{said:?}");
    let begin = shell.run("owlpost init --json").ended(0).json();
    assert_eq!((&begin["created"], &begin["slot"]), (&true.into(), &SLOT.into()));
    assert_eq!(shell.run("owlpost init --json").ended(0).json()["created"], false);
    let said = shell.run("owlpost init --audit --json").ended(0);
    let last: serde_json::Value = serde_json::from_str(said.out.lines().last().unwrap()).unwrap();
    assert_eq!(last["audit_slot"], "owlpost_audit_factlib_slot");
    let _ = postgres.ask("SELECT pg_drop_replication_slot('owlpost_audit_factlib_slot')::text");
    let said = shell.run("owlpost init --accept-gap").ended(4);
    assert!(said.err.contains("no gap to accept"), "{said:?}");
    let relay = command.clone().spawn();
    relay.wait_ready();
    shell.run("owlpost init --accept-gap").ended(4);
    emit(&postgres, true, "gap", fact("published").as_bytes());
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);

    let from = confirmed(&postgres);
    emit(&postgres, true, "gap", fact("lost").as_bytes());
    let lose = || {
        for _ in 0..4 {
            let segment = "SELECT pg_switch_wal(); CREATE TABLE t (); DROP TABLE t";
            postgres.client().batch_execute(segment).unwrap();
        }
        postgres.client().batch_execute("CHECKPOINT").unwrap();
        assert_eq!(postgres.ask("SELECT wal_status FROM pg_replication_slots"), "lost");
    };
    lose();
    let said = shell.run("owlpost init").ended(4);
    assert!(said.err.contains("`owlpost init --accept-gap`"), "{said:?}");
    assert!(shell.run("owlpost status --sample 10ms").ended(4).out.contains("LOST"));
    assert!(shell.run("owlpost wait --lsn now").ended(4).err.contains("is lost"));
    shell.run("owlpost tail --slot factlib_slot").ended(4);
    let said = shell.run("owlpost init --accept-gap").ended(0);
    assert!(
        said.out.contains(&format!("gap from {from} (the last confirmed position)")),
        "{said:?}"
    );
    emit(&postgres, true, "gap", fact("later").as_bytes());
    shell.run("owlpost drain --until now").ended(0);
    let records = kafka.read_topic("gap.order");
    let ids: Vec<_> = records.iter().map(|record| record.header("event_id").unwrap()).collect();
    assert_eq!(ids, ["published", "later"]);

    // Somebody drops the slot: how far it was, nobody knows.
    let point = confirmed(&postgres);
    let _ = postgres.ask(&format!("SELECT pg_drop_replication_slot('{SLOT}')::text"));
    shell.run("owlpost run").ended(4);
    let gap = shell.run("owlpost init --accept-gap --json").ended(0).json();
    assert_eq!(
        (&gap["gap"]["from_is_exact"], &gap["gap"]["to"]),
        (&false.into(), &gap["lsn"]),
        "{gap}"
    );
    assert!(gap["gap"]["from"].as_str().unwrap().parse::<Lsn>().unwrap() <= point, "{gap}");
    // Another cluster's, and a foreign slot, are left alone.
    lose();
    let slot = format!(
        "SELECT pg_drop_replication_slot('{SLOT}');
         SELECT pg_create_logical_replication_slot('{SLOT}', 'test_decoding')"
    );
    postgres.client().batch_execute(&slot).unwrap();
    shell.run("owlpost init --accept-gap").ended(4);
    assert_eq!(postgres.ask("SELECT plugin FROM pg_replication_slots"), "test_decoding");
}

/// A scene with dead letters: three that can go back once the topic is there, one unreadable, one cut.
fn dead_letters(prefix: &'static str, postgres: &Postgres, kafka: &Kafka) -> (Shell, Owlpost) {
    kafka.create_topic(&format!("{prefix}.order"), 1, &[]);
    kafka.create_topic(&format!("{prefix}.dead"), 1, &[]);
    let dead = format!("{prefix}.dead");
    let relay = relay(prefix, postgres, kafka)
        .env("POISON_POLICY", "dead-letter")
        .env("DEAD_LETTER_TOPIC", &dead)
        .env("FRAME_MAX_BYTES", "64KiB")
        .spawn();
    relay.wait_ready();
    let missing = |id: &str| {
        format!(r#"{{"id":"{id}","aggregate_type":"missing","aggregate_id":"k","payload":"{id}"}}"#)
    };
    for content in
        [missing("1"), "junk".to_owned(), missing("2"), fact(&"x".repeat(100_000)), missing("3")]
    {
        emit(postgres, true, prefix, content.as_bytes());
    }
    wait_confirmed(&relay, postgres, PATIENCE);
    assert_eq!(count(kafka, &dead), 5);
    let shell =
        Shell::empty().env("KAFKA_BROKERS", &kafka.bootstrap()).env("DEAD_LETTER_TOPIC", &dead);
    (shell, relay)
}

#[test]
fn dead_letters_go_back_once_in_order_and_what_cannot_is_listed() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    let (shell, relay) = dead_letters("revived", &postgres, kafka);
    let topic = "revived.missing";
    let said = shell.run("owlpost redrive").ended(13);
    assert!(said.out.contains("topic revived.missing is still missing"), "{said:?}");
    assert!(said.out.contains("0 dead letters would be redriven, 5 are left"), "{said:?}");

    kafka.create_topic(topic, 3, &[]);
    let said = shell.run("owlpost redrive").ended(13);
    assert!(said.out.contains("would be redriven 0@0 revived.missing topic-missing 1"), "{said:?}");
    assert!(said.out.contains("left 0@1 - unreadable-envelope"), "{said:?}");
    assert!(said.out.contains("only its first part was kept"), "{said:?}");
    assert!(said.out.contains("3 dead letters would be redriven, 2 are left"), "{said:?}");
    assert!(said.out.contains("--yes sends them"), "{said:?}");
    assert_eq!(count(kafka, topic), 0, "nothing was sent");
    shell.run("owlpost redrive --yes --dry-run").ended(2);

    // Some of them, and then the rest.
    let said = shell.run("owlpost redrive --yes --limit 2 --cause topic-missing").ended(0);
    assert!(said.out.contains("2 dead letters were redriven, 0 are left, 1 others"), "{said:?}");
    let said = shell.run("owlpost redrive --yes --topic 'revived.*' --json").ended(0);
    let lines: Vec<serde_json::Value> =
        said.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{said:?}");
    assert_eq!(
        (&lines[0]["action"], &lines[0]["offset"], &lines[0]["event_id"]),
        (&"redriven".into(), &4.into(), &"3".into())
    );
    assert_eq!((&lines[1]["redriven"], &lines[1]["redriven_before"]), (&1.into(), &1.into()));
    let records = kafka.read_topic(topic);
    let ids: Vec<_> = records.iter().map(|record| record.header("event_id").unwrap()).collect();
    assert_eq!(ids, ["1", "2", "3"]);
    let letters = kafka.read_topic("revived.dead");
    for (record, letter) in records.iter().zip([&letters[0], &letters[2], &letters[4]]) {
        assert_eq!((record.key.as_deref(), &record.value), (Some(&b"k"[..]), &letter.value));
        assert_eq!(record.header("factlib_redrive"), letter.header("factlib_position"));
        assert_eq!(record.header("LSN"), letter.header("LSN"));
        for name in [
            "factlib_position",
            "factlib_cause",
            "factlib_topic",
            "factlib_reason",
            "factlib_attempts",
        ] {
            assert_eq!(record.header(name), None, "{name}");
        }
    }
    let partition = testkit::kafka::java_partitions(&["k"], 3)[0];
    assert!(records.iter().all(|record| record.partition == partition), "{records:?}");

    // They are not sent again, unless somebody wants that; those that are left are listed until they are accepted.
    let said = shell.run("owlpost redrive --yes").ended(13);
    assert!(said.out.contains("0 dead letters were redriven, 2 are left"), "{said:?}");
    let said = shell.run("owlpost redrive --yes --accept-left").ended(0);
    assert!(said.out.contains("2 are left"), "{said:?}");
    let said = shell.run("owlpost redrive --yes").ended(0);
    assert!(said.out.contains("0 dead letters were redriven, 0 are left"), "{said:?}");
    assert_eq!(count(kafka, topic), 3);
    shell.run("owlpost redrive --yes --again --cause topic-missing").ended(0);
    assert_eq!(count(kafka, topic), 6);
    let since = "owlpost redrive --again --cause topic-missing --since";
    assert!(shell.run(&format!("{since} 1h")).ended(0).out.contains("3 dead letters would"));
    assert!(
        shell
            .run(&format!("{since} 2100-01-01T00:00:00Z"))
            .ended(0)
            .out
            .contains("0 dead letters would")
    );
    shell.run(&format!("{since} yesterday")).ended(2);
    stop(&relay);

    let said =
        shell.clone().env("DEAD_LETTER_TOPIC", "revived.nosuch").run("owlpost redrive").ended(3);
    assert!(said.err.contains("dead-letter topic revived.nosuch is not there"), "{said:?}");
    shell.env("KAFKA_BROKERS", "127.0.0.1:1").run("owlpost redrive").ended(3);
}

#[test]
fn a_dead_letter_that_kafka_refuses_once_more_holds_up_no_other() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    for topic in ["again.narrow", "again.dead"] {
        kafka.create_topic(topic, 1, &[("max.message.bytes", "2000")]);
    }
    kafka.set_topic_config("again.dead", "max.message.bytes", "1000000");
    let relay = relay("again", &postgres, kafka)
        .env("POISON_POLICY", "dead-letter")
        .env("DEAD_LETTER_TOPIC", "again.dead")
        .spawn();
    relay.wait_ready();
    kafka.set_topic_config("again.narrow", "max.message.bytes", "600");
    let content = |id: usize| {
        let payload = "p".repeat(id * 1000);
        format!(
            r#"{{"id":"{id}","aggregate_type":"narrow","aggregate_id":"k","payload":"{payload}"}}"#
        )
    };
    for id in [1, 3, 1, 4, 1] {
        emit(&postgres, true, "again", content(id).as_bytes());
    }
    wait_confirmed(&relay, &postgres, PATIENCE);
    assert_eq!(count(kafka, "again.dead"), 5);
    stop(&relay);
    kafka.set_topic_config("again.narrow", "max.message.bytes", "2000");
    let shell = Shell::empty()
        .env("KAFKA_BROKERS", &kafka.bootstrap())
        .env("DEAD_LETTER_TOPIC", "again.dead");
    let said = shell.run("owlpost redrive --yes").ended(13);
    assert!(said.out.contains("3 dead letters were redriven, 2 are left"), "{said:?}");
    assert!(said.out.contains("left 0@1 again.narrow too-large 3: MESSAGE_TOO_LARGE"), "{said:?}");
    assert_eq!(count(kafka, "again.narrow"), 3);
    kafka.set_topic_config("again.narrow", "max.message.bytes", "100000");
    let said = shell.run("owlpost redrive --yes").ended(0);
    assert!(said.out.contains("2 dead letters were redriven, 0 are left"), "{said:?}");
    let records = kafka.read_topic("again.narrow");
    let ids: Vec<_> = records.iter().map(|record| record.header("event_id").unwrap()).collect();
    assert_eq!(ids, ["1", "1", "1", "3", "4"]);
}

//! What the documents have people type. Every line is run here as it stands, by a shell and against real servers at
//! other ports, or is in [`NOT_RUN`] with the reason. A new line that is in neither fails.

use crate::commands::Shell;
use crate::support::{PATIENCE, ask, drop_slots, emit, lsn, skipped};
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use testkit::process::{Signal, signal_pid};
use testkit::{Kafka, Postgres, port, wait};

/// Lines that are not run, and why.
const NOT_RUN: &[(&str, &str)] = &[
    (
        "cargo install --locked --profile dist --path .",
        "builds for minutes what `make footprint` builds, too",
    ),
    ("cargo deny check advisories", "what was found since is another matter than what is in here"),
    (
        "docker build --target static .",
        "no container engine runs here; `make static` builds the same",
    ),
    ("cargo doc --open", "opens a browser; `scripts/lint` builds the pages"),
    ("cargo run --package testkit -- serve", "goes on; `testkit/tests/orphans.rs` runs it"),
    ("cargo run --example subscriber", "`tests/it/subscriber.rs` runs it, and kills it"),
    (
        "kcat -C -e -b localhost:9092 -t orders.order -f '%t %p %o %S %h\\n' | grep LSN=0/1A44E8F",
        "kcat is not here; that the header says this is seen by `what_factlibs_relay_left_behind_is_adopted`",
    ),
    ("pg_restore --exit-on-error", "is of a sentence about other people's dumps"),
    ("scripts/clients", "builds for minutes; `tests/it/clients.rs` runs it"),
    ("scripts/clients python", "a part of it"),
    ("scripts/instructions", "`make test` runs it, for minutes"),
    ("scripts/instructions --prove", "builds for minutes"),
    ("scripts/fuzz 1800", "takes hours; `make test` runs it for seconds"),
    ("scripts/torture-bugs", "takes minutes; part of `make test`"),
    ("pg_upgrade --check", "there are no two installations that have it"),
];

/// What must be there before a line is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    /// Publication and slot.
    Slot,
    /// The relay runs, and all is confirmed.
    Relay,
    /// The publication, and no slot any more.
    SlotLost,
    /// The relay runs, and the slot of an audit was made before some facts.
    AuditSlot,
    /// A dead letter whose topic is there by now.
    DeadLetter,
}

/// What a line does then.
#[derive(Debug, Clone, Copy)]
enum Then {
    /// Ends with 0, and has said this.
    Says(&'static str),
    /// Says this, and goes on until it is told to stop.
    GoesOn(&'static str),
    /// Is the relay, which runs until the story ends.
    Runs,
}

use Before::{AuditSlot, DeadLetter, Nothing, Relay, Slot, SlotLost};
use Then::{GoesOn, Runs, Says};

/// The command lines of `owlpost`.
const OWLPOST: &[(&str, Before, Then)] = &[
    ("owlpost --help", Nothing, Says("MASTER_DATABASE_URL")),
    ("owlpost check", Nothing, Says("0 failures")),
    ("owlpost check --canary", Relay, Says("canary")),
    ("owlpost init", Nothing, Says("consistent point")),
    ("owlpost init --with-sql", Nothing, Says("consistent point")),
    ("owlpost init --sql-only", Nothing, Says("in database app")),
    ("owlpost init --print-sql", Nothing, Says("CREATE OR REPLACE FUNCTION factlib.emit")),
    ("owlpost init --audit", Relay, Says("`owlpost audit` looks at what was confirmed from")),
    ("owlpost init --accept-gap", SlotLost, Says("was made anew; gap from")),
    ("owlpost run", Nothing, Runs),
    ("owlpost status", Slot, Says("factlib_slot")),
    ("owlpost status --facts", Slot, Says("facts")),
    ("owlpost status --watch", Slot, GoesOn("factlib_slot")),
    ("owlpost wait --lsn now", Relay, Says("")),
    ("owlpost wait --lsn 0/16B3748", Relay, Says("")),
    ("owlpost drain --until now", Slot, Says("")),
    ("owlpost tail", Slot, GoesOn("order")),
    ("owlpost tail --format json", Slot, GoesOn("\"aggregate_type\":\"order\"")),
    ("owlpost emit --aggregate-type order --payload {}", Nothing, Says("")),
    ("owlpost emit --stdin", Nothing, Says("")),
    ("owlpost audit", AuditSlot, Says("")),
    ("owlpost audit --json", AuditSlot, Says("\"findings\":0")),
    ("owlpost audit --accept-repeats", AuditSlot, Says("")),
    ("owlpost audit --help", Nothing, Says("--accept-repeats")),
    ("owlpost redrive", DeadLetter, Says("")),
    ("owlpost redrive --yes", DeadLetter, Says("")),
    ("owlpost completions bash", Nothing, Says("_owlpost()")),
    ("owlpost man", Nothing, Says(".TH owlpost 1")),
];

/// With these a span of code begins that is meant for a terminal.
const PROGRAMS: &[&str] = &[
    "GET",
    "apt",
    "apt-get",
    "bash",
    "brew",
    "cargo",
    "curl",
    "docker",
    "dpkg",
    "git",
    "go",
    "helm",
    "initdb",
    "java",
    "journalctl",
    "kubectl",
    "make",
    "mvn",
    "npm",
    "npx",
    "owlpost",
    "pip",
    "podman",
    "promtool",
    "psql",
    "python3",
    "rustup",
    "sudo",
    "systemctl",
];

/// A span or line that is meant for a terminal.
fn is_typed(line: &str) -> bool {
    let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
    let is_program = PROGRAMS.contains(&first) || first.starts_with("pg_");
    is_program && !rest.is_empty() && !first.contains('(') || line.starts_with("scripts/")
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Every document that users are led to.
pub(crate) fn documents() -> Vec<(String, String)> {
    let mut names: Vec<String> = [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "emit/README.md",
        "protocol/README.md",
    ]
    .map(str::to_owned)
    .into();
    let docs = fs::read_dir(path("docs")).unwrap();
    names.extend(docs.map(|doc| format!("docs/{}", doc.unwrap().file_name().to_str().unwrap())));
    names.retain(|name| name.ends_with(".md"));
    names.sort();
    let text = |name: &str| fs::read_to_string(path(name)).unwrap();
    names.iter().map(|name| (name.clone(), text(name))).collect()
}

/// A document in pieces: what stands in each kind of fence, and the spans of code outside of them.
pub(crate) struct Pieces {
    pub(crate) blocks: Vec<(String, Vec<String>)>,
    pub(crate) spans: Vec<String>,
}

impl Pieces {
    pub(crate) fn of(document: &str) -> Self {
        let (mut blocks, mut outside, mut fenced) = (Vec::new(), String::new(), false);
        for line in document.lines() {
            if let Some(kind) = line.trim_start().strip_prefix("```") {
                fenced = !fenced;
                if fenced {
                    blocks.push((kind.trim().to_owned(), Vec::new()));
                }
                // A span does not go on behind it.
                outside.push_str("\n\n");
            } else if fenced {
                blocks.last_mut().unwrap().1.push(line.trim().to_owned());
            } else {
                outside.push_str(line);
                outside.push('\n');
            }
        }
        let one_line = |span: &str| span.split_whitespace().collect::<Vec<_>>().join(" ");
        let paragraphs = outside.split("\n\n");
        let spans = paragraphs.flat_map(|text| text.split('`').skip(1).step_by(2).map(one_line));
        Self { blocks, spans: spans.collect() }
    }
}

/// Lines that are typed one after the other.
type Story = Vec<String>;

/// A line without what is remarked beside it.
fn bare(line: &str) -> String {
    line.split(" #").next().unwrap().trim().to_owned()
}

/// All stories of all documents, each once.
fn stories() -> BTreeSet<Story> {
    let mut stories = BTreeSet::new();
    for (name, text) in documents() {
        let pieces = Pieces::of(&text);
        for (kind, lines) in pieces.blocks {
            match kind.split([' ', ',']).next().unwrap() {
                "sh" => {
                    let lines = lines.iter().map(|line| bare(line));
                    stories.insert(lines.filter(|line| !line.is_empty()).collect());
                }
                // Drawings.
                "" => {
                    let typed = lines.iter().find(|line| is_typed(line));
                    assert_eq!(typed, None, "{name}: this block is one of `sh`");
                }
                // What programs say; and what has tests of its own.
                "text" | "sql" | "hex" | "rust" | "toml" => {}
                other => panic!("{name}: nobody looks at blocks of {other:?}"),
            }
        }
        let typed = pieces.spans.into_iter().filter(|span| is_typed(span));
        stories.extend(typed.map(|line| vec![line]));
    }
    stories
}

/// Whether a story only says what is set, for servers that are not of [`Stage`].
fn is_settings_alone(story: &Story) -> bool {
    story.iter().all(|line| line.starts_with("export "))
}

/// The settings that stand alone, without a command that is typed after them.
pub(crate) fn settings_alone() -> Vec<Story> {
    stories().into_iter().filter(is_settings_alone).collect()
}

/// Whether [`Stage::typed`] knows what to do with a line.
fn is_known(line: &str) -> bool {
    let first = line.split(' ').next().unwrap();
    ["export", "curl", "GET", "pg_waldump", "make"].contains(&first)
        || NOT_RUN.iter().any(|(known, _)| *known == line)
        || OWLPOST.iter().any(|(known, ..)| *known == line)
}

/// The servers of the documents, at other ports.
struct Stage {
    postgres: Postgres,
    kafka: Kafka,
    shell: Shell,
    health: u16,
    metrics: u16,
    output: tempfile::TempDir,
    dead_letters: usize,
}

/// What has been typed of one story.
#[derive(Default)]
struct Scene {
    /// The settings so far, for the shell.
    exports: String,
    relay: Option<Child>,
}

impl Stage {
    fn new() -> Self {
        let postgres = Postgres::builder().hba(&["host all owlpost all scram-sha-256"]).start();
        let sql = "CREATE ROLE owlpost LOGIN REPLICATION PASSWORD 'secret'; GRANT CREATE ON DATABASE app TO owlpost";
        postgres.client().batch_execute(sql).unwrap();
        let kafka = Kafka::builder().start();
        for topic in ["orders.order", "orders.dead", "orders.owlpost_canary", "new.event.order"] {
            kafka.create_topic(topic, 1, &[]);
        }
        let (health, metrics) = (port::free(), port::free());
        let shell = Shell::empty()
            .env("SRC_SERVICE_NAME", "orders")
            .env("MASTER_DATABASE_URL", &postgres.url_as("owlpost", "secret"))
            .env("KAFKA_BROKERS", &kafka.bootstrap())
            .env("POISON_POLICY", "dead-letter")
            .env("DEAD_LETTER_TOPIC", "orders.dead")
            .env("WAL_HEALTH_PORT", &health.to_string())
            .env("METRICS_PORT", &metrics.to_string());
        let output = tempfile::tempdir().unwrap();
        Self { postgres, kafka, shell, health, metrics, output, dead_letters: 0 }
    }

    /// A line as it is typed here: at other ports, and of this server's log.
    fn meant(&self, line: &str) -> String {
        let here = lsn(&self.postgres, "SELECT pg_current_wal_insert_lsn()");
        line.replace("localhost:3001", &format!("localhost:{}", self.health))
            .replace("localhost:2112", &format!("localhost:{}", self.metrics))
            .replace("localhost:5432", &format!("localhost:{}", self.postgres.port()))
            .replace("localhost:9092", &self.kafka.bootstrap())
            .replace("postgres://admin@db/app", &self.postgres.url())
            .replace("0/16B3748", &here.to_string())
    }

    fn emit(&self) {
        let fact = br#"{"aggregate_type":"order","aggregate_id":"42","event_type":"paid","payload":{"by":"card"}}"#;
        emit(&self.postgres, true, "orders", fact);
    }

    /// As it was before the first line.
    fn reset(&self) {
        drop_slots(&self.postgres);
        let client = &mut self.postgres.client();
        for publication in client.query("SELECT pubname::text FROM pg_publication", &[]).unwrap() {
            let name: &str = publication.get(0);
            client.batch_execute(&format!("DROP PUBLICATION {name}")).unwrap();
        }
    }

    fn background(&self, scene: &Scene, line: &str, name: &str) -> Child {
        let file = File::create(self.output.path().join(name)).unwrap();
        let mut command = self.shell.command(&format!("{}exec {line}", scene.exports));
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap()
    }

    fn said(&self, name: &str) -> String {
        fs::read_to_string(self.output.path().join(name)).unwrap()
    }

    fn run(&self, scene: &mut Scene) {
        if scene.relay.is_some() {
            return;
        }
        scene.relay = Some(self.background(scene, "owlpost run", "relay"));
        wait::poll("the relay to stream", PATIENCE, || {
            let ready = std::net::TcpStream::connect(("127.0.0.1", self.health)).is_ok()
                && ask(self.health, "/readyz", "").contains("\"streaming\"");
            ready.then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}: {}", self.said("relay")));
    }

    fn stop(&self, scene: &mut Scene) {
        if let Some(relay) = scene.relay.take() {
            self.end(relay, "relay");
        }
    }

    /// Asks what runs to stop, which is no failure of it.
    fn end(&self, mut child: Child, name: &str) {
        signal_pid(child.id(), Signal::SIGTERM);
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(0), "{}", self.said(name));
    }

    /// Waits until everything that was emitted is confirmed, in whatever slot.
    fn confirmed(&self) {
        let written = lsn(&self.postgres, "SELECT pg_current_wal_flush_lsn()");
        wait::until("the relay to confirm everything", PATIENCE, || {
            lsn(
                &self.postgres,
                "SELECT min(confirmed_flush_lsn) FROM pg_replication_slots WHERE active",
            ) >= written
        });
    }

    fn before(&mut self, scene: &mut Scene, before: Before) {
        let typed = |stage: &Self, line: &str| {
            stage.shell.run(&format!("{}{line}", scene.exports)).ended(0);
        };
        let has_slot = self.postgres.ask("SELECT count(*) FROM pg_replication_slots") != "0";
        match before {
            Nothing => {}
            Slot if has_slot => {}
            Slot => typed(self, "owlpost init"),
            Relay => {
                self.run(scene);
                self.emit();
                self.confirmed();
            }
            SlotLost => {
                typed(self, "owlpost init");
                drop_slots(&self.postgres);
            }
            AuditSlot => {
                let audit = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'factlib_slot_audit'";
                if self.postgres.ask(audit) == "0" {
                    typed(self, "owlpost init --audit");
                }
                self.before(scene, Relay);
            }
            DeadLetter => {
                self.before(scene, Relay);
                self.dead_letters += 1;
                let name = format!("lost{}", self.dead_letters);
                let fact = format!(r#"{{"aggregate_type":"{name}","aggregate_id":"1"}}"#);
                emit(&self.postgres, true, "orders", fact.as_bytes());
                self.confirmed();
                self.kafka.create_topic(&format!("orders.{name}"), 1, &[]);
            }
        }
    }

    /// One line of `owlpost`.
    fn owlpost(&mut self, scene: &mut Scene, line: &str) {
        let (_, before, then) = OWLPOST.iter().find(|(known, ..)| *known == line).unwrap();
        self.before(scene, *before);
        let meant = self.meant(line);
        match then {
            Runs => self.run(scene),
            Says(what) => {
                let stdin = match line.ends_with(" --stdin") {
                    true => r#"echo '{"aggregate_type":"order","aggregate_id":"1"}' | "#,
                    false => "",
                };
                let said = self.shell.run(&format!("{}{stdin}{meant}", scene.exports)).ended(0);
                assert!(said.out.contains(what), "{line}: {said:?}");
            }
            GoesOn(what) => {
                let child = self.background(scene, &meant, "command");
                wait::poll(line, PATIENCE, || {
                    self.emit();
                    self.said("command").contains(what).then_some(())
                })
                .unwrap_or_else(|error| panic!("{error}: {}", self.said("command")));
                self.end(child, "command");
            }
        }
    }

    /// Asks the relay, which answers with 200.
    fn curl(&mut self, scene: &mut Scene, line: &str) {
        self.before(scene, Relay);
        let said = self.shell.run(&format!("{} -w ' %{{http_code}}'", self.meant(line))).ended(0);
        assert!(said.out.ends_with(" 200") && said.out.len() > 10, "{line}: {said:?}");
    }

    /// What a server of the documents' version has in its log.
    fn waldump(&self, line: &str) {
        let documented = Postgres::builder().major(15).start();
        let version = documented.command("pg_waldump").arg("--version").output();
        if !version.is_ok_and(|output| output.status.success()) {
            skipped("pg_waldump is not installed (Debian's package postgresql-15)");
            return;
        }
        let from = lsn(&documented, "SELECT pg_current_wal_insert_lsn()");
        emit(&documented, true, "orders", b"in the log");
        let to = lsn(&documented, "SELECT pg_current_wal_flush_lsn()");
        let folder = documented.data_dir().join("pg_wal");
        let meant = line
            .replace("/var/lib/postgresql/15/main/pg_wal", folder.to_str().unwrap())
            .replace("0/16B3748", &from.to_string())
            .replace("0/16B9000", &to.to_string());
        let words: Vec<&str> = meant.split(' ').collect();
        let output = documented.command(words[0]).args(&words[1..]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("prefix \"orders\""), "{meant}: {output:?}");
    }

    fn typed(&mut self, scene: &mut Scene, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[0] {
            _ if NOT_RUN.iter().any(|(known, _)| *known == line) => {}
            "export" => {
                let meant = self.meant(line);
                scene.exports.push_str(&format!("{meant}; "));
            }
            "owlpost" => self.owlpost(scene, line),
            "curl" => self.curl(scene, line),
            "GET" => self.curl(scene, &format!("curl -s 'localhost:3001{}'", words[1])),
            "pg_waldump" => self.waldump(line),
            // That there is such a target; what it does is done by `make test`, or takes an hour.
            "make" => {
                let place = path("");
                let line = format!("cd {} && {line} --dry-run", place.display());
                Shell::empty().run(&line).ended(0);
            }
            _ => unreachable!("{line}"),
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Some(relay) = &mut self.relay {
            let _ = relay.kill();
            let _ = relay.wait();
        }
    }
}

#[test]
fn every_line_that_a_document_has_people_type_does_what_it_says() {
    let stories = stories();
    let lines: Vec<&String> = stories.iter().flatten().collect();
    assert!(lines.len() > 60, "{lines:?}");
    let mut count: HashMap<&str, usize> = HashMap::new();
    for line in &lines {
        *count.entry(line.split(' ').next().unwrap()).or_default() += 1;
    }
    assert!(count["owlpost"] > 25 && count["make"] > 10 && count["curl"] > 2, "{count:?}");
    let strange: Vec<_> = lines.iter().filter(|line| !is_known(line)).collect();
    assert!(strange.is_empty(), "run them in {}, or say there why not: {strange:#?}", file!());
    let known = NOT_RUN.iter().map(|(line, _)| line).chain(OWLPOST.iter().map(|(line, ..)| line));
    for known in known {
        assert!(lines.iter().any(|line| line == known), "{known}: no document has it any more");
    }

    let mut stage = Stage::new();
    for story in &stories {
        let mut scene = Scene::default();
        for line in story {
            stage.typed(&mut scene, line);
        }
        stage.stop(&mut scene);
        stage.reset();
    }
}

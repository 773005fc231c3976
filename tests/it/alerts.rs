//! The alert rules of `ops/`, judged by Prometheus' own tools and fired by real faults, where they are installed; and the
//! dashboard, whose every metric must be one that there is.

use crate::exactly_once::command as exactly_once;
use crate::support::{PATIENCE, ask, drop_slots, emit, relay, skipped, wait_confirmed};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use testkit::{Kafka, Mode, Postgres, port, wait};

const FACT: &[u8] = br#"{"aggregate_type":"order","aggregate_id":"1","event_type":"paid"}"#;

fn ops(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("ops").join(file)
}

/// False where the program is not installed, which is said loudly.
fn is_installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        skipped(&format!("{program} is not installed (Debian's package prometheus)"));
    }
    found
}

#[track_caller]
fn promtool(arguments: &[&str]) {
    let output =
        Command::new("promtool").args(arguments).current_dir(ops("prometheus")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
}

#[test]
fn the_alert_rules_pass_their_own_tests() {
    if is_installed("promtool") {
        promtool(&["check", "config", "prometheus.yml"]);
        promtool(&["check", "rules", "alerts.yml"]);
        promtool(&["test", "rules", "alerts.test.yml"]);
    }
}

/// Everything that looks like a metric of ours.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let ours =
        |word: &&str| ["owlpost_", "factlib_", "process_"].iter().any(|p| word.starts_with(p));
    text.split(word).filter(ours).collect()
}

/// The names in the documentation, which a test holds to the code; histograms with their series.
fn documented() -> BTreeSet<String> {
    let text = fs::read_to_string(ops("../docs/metrics.md")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    rows.flat_map(|(name, rest)| match rest.starts_with("histogram") {
        true => ["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")).into(),
        false => vec![name.to_owned()],
    })
    .collect()
}

#[test]
fn dashboard_and_alerts_ask_for_metrics_that_there_are() {
    let known = documented();
    assert!(known.len() > 50, "{known:?}");
    let alerts = fs::read_to_string(ops("prometheus/alerts.yml")).unwrap();
    let expressions: Vec<&str> = alerts
        .split("- alert: ")
        .skip(1)
        .map(|rule| rule.split("annotations:").next().unwrap())
        .collect();
    let dashboard = fs::read_to_string(ops("grafana/owlpost.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut queries = Vec::new();
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "two panels have one id: {panel}");
        for target in panel["targets"].as_array().into_iter().flatten() {
            queries.push(target["expr"].as_str().unwrap());
        }
    }
    assert!(queries.len() > 30, "{queries:?}");
    for text in expressions.iter().chain(&queries) {
        for metric in metrics_in(text) {
            assert!(known.contains(metric), "{metric} in {text}");
        }
    }
    if is_installed("promtool") {
        // Grafana's variables in place, each query is one that Prometheus can read.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queries.yml");
        let mut rules = String::from("groups:\n  - name: dashboard\n    rules:\n");
        for (number, query) in queries.iter().enumerate() {
            let query = query.replace("$__rate_interval", "1m").replace("$instance", ".*");
            rules += &format!("      - record: q{number}\n        expr: '{query}'\n");
        }
        fs::write(&path, rules).unwrap();
        promtool(&["check", "rules", path.to_str().unwrap()]);
    }
}

/// What Grafana's own types say of a dashboard; none where they are missing.
fn judged_by_grafana(dashboard: &Path) -> Option<String> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dashboard");
    let folder = tempfile::tempdir().unwrap();
    let judge = folder.path().join("judge");
    let mut build = Command::new("go");
    // Apart from the run: Go says on the same stream what it downloads.
    let Ok(built) = build.args(["build", "-C"]).arg(program).arg("-o").arg(&judge).output() else {
        skipped("go is not installed (1.24 or later), with which Grafana's types are built");
        return None;
    };
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let output = Command::new(judge).arg(dashboard).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.success(), said.is_empty(), "{said}");
    Some(said)
}

#[test]
fn the_dashboard_is_one_by_grafanas_own_types() {
    let file = ops("grafana/owlpost.json");
    let Some(said) = judged_by_grafana(&file) else { return };
    assert_eq!(said, "");
    // It looks into panels and queries.
    let dashboard = fs::read_to_string(file).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.json");
    for (good, bad) in [
        ("\"lineWidth\": 1,", "\"lineWidth\": \"one\","),
        ("\"graphMode\":", "\"grafMode\":"),
        ("\"legendFormat\":", "\"legend\":"),
    ] {
        fs::write(&broken, dashboard.replacen(good, bad, 1)).unwrap();
        assert_ne!(judged_by_grafana(&broken).unwrap(), "", "{bad}");
    }
}

/// A Prometheus that scrapes relays every second.
struct Prometheus {
    process: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// With configuration and alert rules, which are not as patient as they are in `ops/`.
    fn start(metrics_ports: &[u16]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let alerts = fs::read_to_string(ops("prometheus/alerts.yml")).unwrap();
        let patient = |line: &str| line.trim_start().starts_with("for: ");
        let hasty: Vec<&str> = alerts
            .lines()
            .map(|line| if patient(line) { "        for: 1s" } else { line })
            .collect();
        fs::write(folder.path().join("alerts.yml"), hasty.join("\n")).unwrap();
        let targets: Vec<_> =
            metrics_ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let config = fs::read_to_string(ops("prometheus/prometheus.yml"))
            .unwrap()
            .replace("_interval: 15s", "_interval: 1s")
            .replace("localhost:2112", &targets.join("', '"));
        let file = folder.path().join("prometheus.yml");
        fs::write(&file, config).unwrap();
        let port = port::free();
        let log = File::create(folder.path().join("log")).unwrap();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stderr(log)
            .spawn()
            .unwrap();
        let prometheus = Self { process, port, _folder: folder };
        wait::until("Prometheus to listen", PATIENCE, || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        prometheus
    }

    fn get(&self, path: &str) -> serde_json::Value {
        let body = ask(self.port, path, "");
        let start = body.find('{').unwrap_or(0);
        let end = body.rfind('}').map_or(body.len(), |end| end + 1);
        serde_json::from_str(&body[start..end]).unwrap_or_default()
    }

    /// What a query of the dashboard finds now.
    fn ask(&self, query: &str) -> serde_json::Value {
        let query = query
            .replace("$__rate_interval", "5m")
            .replace("$instance", ".*")
            .replace("$job", ".*");
        let query = utf8_percent_encode(&query, NON_ALPHANUMERIC);
        self.get(&format!("/api/v1/query?query={query}"))
    }

    /// The alerts that fire now.
    fn firing(&self) -> BTreeSet<String> {
        let answer = self.get("/api/v1/alerts");
        let alerts = answer["data"]["alerts"].as_array().cloned().unwrap_or_default();
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        firing.map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned()).collect()
    }

    #[track_caller]
    fn wait_firing(&self, alert: &str) {
        let mut firing = BTreeSet::new();
        wait::poll(alert, PATIENCE, || {
            firing = self.firing();
            firing.contains(alert).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}; firing are {firing:?}"));
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn real_faults_fire_the_alerts_that_are_meant_for_them() {
    if !is_installed("prometheus") {
        return;
    }
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::builder().start());
    kafka.create_topic("alarmed.order", 2, &[]);
    let relay = relay("alarmed", &postgres, &kafka)
        .env("SLOT_POLL_INTERVAL", "1s")
        .env("REQUEST_TIMEOUT", "1s")
        .env("STALL_TIMEOUT", "500ms")
        .env("BACKOFF_MAX", "500ms")
        .env("POISON_POLICY_TOPICS", "alarmed.waste=skip")
        .env("FAILURE_LINGER", "10m")
        .spawn();
    relay.wait_ready();
    emit(&postgres, true, "alarmed", FACT);
    wait_confirmed(&relay, &postgres, PATIENCE);
    let prometheus = Prometheus::start(&[relay.metrics_port()]);

    // It takes what it scrapes, and understands it.
    wait::until("a scrape", PATIENCE, || {
        let query = "/api/v1/query?query=owlpost_facts_total";
        prometheus.get(query)["data"]["result"][0]["value"][1] == "1"
    });
    let target = prometheus.get("/api/v1/targets");
    let target = &target["data"]["activeTargets"][0];
    assert_eq!((&target["health"], &target["lastError"]), (&"up".into(), &"".into()), "{target}");
    // Long enough for what would fire without a fault.
    wait::until("some scrapes", PATIENCE, || {
        let count = &prometheus.get("/api/v1/query?query=count_over_time(up%5B1m%5D)");
        let count = count["data"]["result"][0]["value"][1].as_str().map(str::parse::<u32>);
        count.is_some_and(|count| count.unwrap() >= 5)
    });
    assert_eq!(prometheus.firing(), BTreeSet::new());

    emit(&postgres, true, "alarmed", br#"{"aggregate_type":"waste","aggregate_id":"1"}"#);
    prometheus.wait_firing("OwlpostFactsSkipped");

    emit(&postgres, true, "alarmed", br#"{"aggregate_type":"nowhere","aggregate_id":"1"}"#);
    prometheus.wait_firing("OwlpostHalted");
    kafka.create_topic("alarmed.nowhere", 1, &[]);
    wait::until("the halt to end", PATIENCE, || !prometheus.firing().contains("OwlpostHalted"));

    kafka.kill9();
    emit(&postgres, true, "alarmed", FACT);
    prometheus.wait_firing("OwlpostStalled");
    kafka.start_again();
    wait_confirmed(&relay, &postgres, 2 * PATIENCE);
    wait::until("the stall to end", PATIENCE, || !prometheus.firing().contains("OwlpostStalled"));

    postgres.stop(Mode::Fast);
    prometheus.wait_firing("OwlpostNotReady");
    postgres.start_again();
    wait::until("readiness", PATIENCE, || !prometheus.firing().contains("OwlpostNotReady"));

    drop_slots(&postgres);
    prometheus.wait_firing("OwlpostFailed");
    relay.kill9();
    prometheus.wait_firing("OwlpostDown");
}

/// The names in braces of a legend, which are labels.
fn labels_in(legend: &str) -> impl Iterator<Item = &str> {
    legend.split("{{").skip(1).map(|rest| rest.split("}}").next().unwrap().trim())
}

/// Grafana is not here to draw it; what it would draw is asked of Prometheus as it would ask.
#[test]
fn every_panel_of_the_dashboard_has_something_to_draw() {
    if !is_installed("prometheus") {
        return;
    }
    let postgres = Postgres::builder().setting("max_slot_wal_keep_size", "2GB").start();
    let kafka = Kafka::builder().start();
    kafka.create_topic("drawn.order", 2, &[]);
    kafka.create_topic("drawn-once.order", 2, &[]);
    // For what only it has.
    let once = exactly_once("drawn-once", &postgres, &kafka)
        .env("REPLICATION_SLOT_NAME", "drawn_once")
        .env("PUBLICATION_NAME", "drawn_once")
        .spawn();
    once.wait_ready();
    let relay = relay("drawn", &postgres, &kafka)
        .env("SLOT_POLL_INTERVAL", "1s")
        .env("REQUEST_TIMEOUT", "1s")
        .env("STALL_TIMEOUT", "500ms")
        .env("BACKOFF_MAX", "500ms")
        .env("POISON_POLICY_TOPICS", "drawn.waste=skip")
        .spawn();
    relay.wait_ready();
    let prometheus = Prometheus::start(&[relay.metrics_port(), once.metrics_port()]);

    // Something for each: an open transaction, another slot, a fact that is skipped, brokers that are away, a
    // connection that ends.
    let mut open = postgres.client();
    open.batch_execute("BEGIN; SELECT pg_current_xact_id()").unwrap();
    let other = "SELECT pg_create_physical_replication_slot('other')::text";
    let _ = postgres.ask(other);
    emit(&postgres, true, "drawn", FACT);
    emit(&postgres, true, "drawn", br#"{"aggregate_type":"waste","aggregate_id":"1"}"#);
    wait_confirmed(&relay, &postgres, PATIENCE);
    kafka.kill9();
    emit(&postgres, true, "drawn", FACT);
    prometheus.wait_firing("OwlpostStalled");
    kafka.start_again();
    wait_confirmed(&relay, &postgres, 2 * PATIENCE);
    let end =
        "SELECT count(pg_terminate_backend(active_pid)) FROM pg_replication_slots WHERE active";
    let _ = postgres.ask(end);

    let dashboard = fs::read_to_string(ops("grafana/owlpost.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    let mut asked = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = &panel["title"];
        let targets: Vec<_> = panel["targets"].as_array().into_iter().flatten().collect();
        assert!(panel["type"] == "row" || !targets.is_empty(), "{title} asks for nothing");
        for target in targets {
            let query = target["expr"].as_str().unwrap();
            let legend = target["legendFormat"].as_str().unwrap_or_default();
            let mut answer = serde_json::Value::Null;
            let drawn = wait::poll("numbers", PATIENCE, || {
                // What moves is to move.
                emit(&postgres, true, "drawn", FACT);
                emit(&postgres, true, "drawn-once", FACT);
                answer = prometheus.ask(query);
                let series = answer["data"]["result"].as_array()?;
                let is_number = |value: &serde_json::Value| {
                    value.as_str().is_some_and(|text| text.parse::<f64>().is_ok_and(f64::is_finite))
                };
                let all = series.iter().all(|series| is_number(&series["value"][1]));
                (all && !series.is_empty()).then(|| series.clone())
            });
            let series =
                drawn.unwrap_or_else(|error| panic!("{title}: {query}: {error}: {answer}"));
            for label in labels_in(legend) {
                let named = series.iter().all(|series| series["metric"][label].is_string());
                assert!(named, "{title}: nothing has a label {label:?}: {answer}");
            }
            asked += 1;
        }
    }
    assert!(asked > 30, "only {asked} queries");
    // What its variables are chosen from.
    let chosen = prometheus.ask("owlpost_build_info");
    for variable in ["job", "instance"] {
        assert!(chosen["data"]["result"][0]["metric"][variable].is_string(), "{chosen}");
    }
}

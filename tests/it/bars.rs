//! Bars on a terminal: there while something takes long, gone when it is over, never in the way of a line, and
//! nowhere but on a terminal.

use crate::support::{PATIENCE, drop_slots, relay, wait_confirmed, wait_state};
use std::process::Command;
use testkit::proxy::{Direction, Way};
use testkit::{Kafka, Owlpost, Postgres, Proxy, owlpost};

/// So many facts of a kilobyte are far enough behind.
const FACTS: u32 = 60_000;

/// Bytes a second at which those take seconds.
const SLOW: u64 = 25_000_000;

/// The relay's command, on a terminal of 80 columns.
fn on_a_terminal(prefix: &str, postgres: &Postgres, kafka: &Kafka, line: &str) -> owlpost::Command {
    let line =
        format!("stty cols 80 rows 24; echo pid $$; exec {} {line}", env!("CARGO_BIN_EXE_owlpost"));
    Owlpost::command("/usr/bin/script")
        .arg("-qefc")
        .arg(&line)
        .arg("/dev/null")
        .servers(postgres, kafka)
        .env("SRC_SERVICE_NAME", prefix)
        .env("PATH", "/usr/bin:/bin")
        .env("SHELL", "/bin/sh")
        .env("TERM", "xterm-256color")
        .env("NO_COLOR", "1")
}

/// What stands on such a terminal after this was written to it, without what has scrolled away.
fn screen(written: &str) -> String {
    let (rows, columns) = (2000.try_into().unwrap(), 80.try_into().unwrap());
    let mut parser = vt100::Parser::new(rows, columns, 0);
    parser.process(written.as_bytes());
    parser.screen().contents()
}

/// That all that is left are lines, whole, and no bar.
#[track_caller]
fn is_tidy(written: &str, lines: &[&str]) {
    let screen = screen(written);
    for line in lines {
        assert!(screen.contains(line), "{line} in\n{screen}");
    }
    // Of the first the beginning may have scrolled away.
    for line in screen.lines().skip(1).filter(|line| !line.trim().is_empty()) {
        let is_log = line.starts_with("20") && line.contains("Z ");
        let is_said = ["owlpost: ", "published and", "from ", "left ", "0 dead", "would be "];
        assert!(
            is_log || is_said.iter().any(|begin| line.starts_with(begin)),
            "{line} in\n{screen}"
        );
        assert!(!line.contains("s/s") && !line.contains("%  "), "{line} in\n{screen}");
    }
}

/// Ends what runs on the terminal, as its user would from another.
#[track_caller]
fn terminate(relay: &Owlpost) {
    let written = relay.stdout();
    let pid = written.lines().find_map(|line| line.trim().strip_prefix("pid ")).unwrap();
    assert!(Command::new("kill").args(["-TERM", pid]).status().unwrap().success());
    assert_eq!(relay.wait_exit(PATIENCE).code(), Some(0), "{}", relay.stdout());
}

fn emit_many(postgres: &Postgres, prefix: &str, kind: &str) {
    let sql = format!(
        "SELECT pg_logical_emit_message(true, '{prefix}', format('{{\"aggregate_type\":\"{kind}\",\
         \"aggregate_id\":\"%s\",\"payload\":\"%s\"}}', n, repeat('x', 1000))) \
         FROM generate_series(1, {FACTS}) n",
    );
    for _ in 0..2 {
        // The transactions are large, but not all there is.
        let half = sql.replace(&format!("1, {FACTS}"), &format!("1, {}", FACTS / 2));
        let _ = postgres.client().simple_query(&half).unwrap();
    }
}

#[test]
fn a_relay_that_is_far_behind_shows_how_far_until_it_has_caught_up() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    let init = relay("barred", &postgres, kafka).arg("init").spawn();
    assert_eq!(init.wait_exit(PATIENCE).code(), Some(0));
    emit_many(&postgres, "barred", "order");
    // It halts at the first fact, because the topic is missing, so that there is time to look.
    let relay = on_a_terminal("barred", &postgres, kafka, "run").spawn();
    wait_state(&relay, "halted");
    // What is read may end in the middle of a bar.
    relay.wait_until("the bar", PATIENCE, || {
        let written = relay.stdout();
        written.rsplit_once("halted [").is_some_and(|(_, rest)| rest.contains("facts/s"))
    });
    let written = relay.stdout();
    let bar = screen(&written).lines().last().unwrap().to_owned();
    assert!(bar.starts_with("halted [") && bar.contains("MiB left, 0 facts/s"), "{bar}");
    assert!(bar.len() <= 80, "{bar}");
    assert!(written.contains("halted: this fact cannot be published"), "{written}");

    kafka.create_topic("barred.order", 1, &[]);
    wait_confirmed(&relay, &postgres, PATIENCE);
    relay.wait_until("the line", PATIENCE, || relay.stdout().contains("caught up"));
    terminate(&relay);
    let caught_up = format!("caught up facts={FACTS}");
    is_tidy(&relay.stdout(), &["streaming", "halted: this fact", &caught_up, "stopped: "]);

    // The next one is not behind.
    let relay = on_a_terminal("barred", &postgres, kafka, "run").spawn();
    relay.wait_ready();
    wait_confirmed(&relay, &postgres, PATIENCE);
    terminate(&relay);
    assert!(!relay.stdout().contains("left, "), "{}", relay.stdout());
    is_tidy(&relay.stdout(), &["stopped: "]);
}

#[test]
fn a_drain_and_an_audit_show_how_far_they_are_on_a_terminal_and_nowhere_else() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("measured.order", 2, &[]);
    let command = relay("measured", &postgres, kafka);
    let init = command.clone().arg("init").arg("--audit").spawn();
    assert_eq!(init.wait_exit(PATIENCE).code(), Some(0));
    // A machine that is fast reads so much in less time than anything is shown after.
    let proxy = Proxy::to(&format!("127.0.0.1:{}", postgres.port()));
    let slow = Way { bytes_per_second: Some(SLOW), ..Way::default() };
    proxy.set(Direction::ToClient, slow);
    let url = format!("postgres://postgres@{}/app", proxy.address());
    let run = |line: &str| {
        let ran = on_a_terminal("measured", &postgres, kafka, line);
        let ran = ran.env("MASTER_DATABASE_URL", &url).spawn();
        assert_eq!(ran.wait_exit(PATIENCE).code(), Some(0), "{}", ran.stdout());
        ran.stdout()
    };
    emit_many(&postgres, "measured", "order");
    let written = run("drain --until now");
    assert!(written.contains("catching up [") && written.contains(" facts/s"), "{written}");
    is_tidy(&written, &["published and confirmed up to", "streaming"]);
    let written = run("audit");
    assert!(written.contains("reading the log ["), "{written}");
    assert!(written.contains("reading topics ["), "{written}");
    is_tidy(&written, &[&format!("{FACTS} facts")]);

    proxy.heal();

    // Elsewhere there is none, nor where programs read.
    emit_many(&postgres, "measured", "order");
    let piped = command.clone().arg("drain").arg("--until").arg("now").env("TERM", "xterm").spawn();
    assert_eq!(piped.wait_exit(PATIENCE).code(), Some(0), "{}", piped.log_text());
    assert!(!piped.log_text().contains('\r') && !piped.log_text().contains(" left, "));
    emit_many(&postgres, "measured", "order");
    let written = run("drain --until now --json");
    assert!(!written.contains('\x1b') && written.contains("\"reached\":true"), "{written}");
    let written = run("audit --log-format json");
    assert!(!written.contains('\x1b') && written.contains(" facts"), "{written}");
    drop_slots(&postgres);
}

#[test]
fn a_redrive_shows_how_far_it_is_beside_the_letters_that_it_lists() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    kafka.create_topic("relisted.dead", 1, &[]);
    let relay = relay("relisted", &postgres, kafka)
        .env("POISON_POLICY", "dead-letter")
        .env("DEAD_LETTER_TOPIC", "relisted.dead")
        .spawn();
    relay.wait_ready();
    emit_many(&postgres, "relisted", "missing");
    wait_confirmed(&relay, &postgres, PATIENCE);
    relay.kill9();
    let run = |line: &str| {
        let command = on_a_terminal("relisted", &postgres, kafka, line);
        let ran = command.env("DEAD_LETTER_TOPIC", "relisted.dead").spawn();
        assert_eq!(ran.wait_exit(PATIENCE).code(), Some(13), "{}", ran.stdout());
        ran.stdout()
    };
    let written = run("redrive");
    assert!(written.contains("looking ["), "{}", screen(&written));
    is_tidy(&written, &["0 dead letters would be redriven"]);
    assert!(
        written.lines().filter(|line| line.contains("is still missing")).count() >= FACTS as usize
    );
    let written = run("redrive --json");
    assert!(!written.contains('\x1b'), "{}", screen(&written));
}

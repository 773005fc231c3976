//! Documents that are held to the code. `WRITE_DOCUMENTS=1 cargo test --test documents` writes what is generated.

#![expect(clippy::unwrap_used, reason = "a test")]

use bytes::BytesMut;
use clap::error::ErrorKind;
use factlib::cli::Cli;
use factlib::config::VARIABLES;
use factlib::exit::ExitCode;
use factlib::http::State;
use factlib::relay::batch::{OpenBatch, Record};
use factlib::relay::compression::Compression;
use factlib::relay::fact::Fact;
use factlib::relay::kafka::ProducerId;
use factlib::relay::position::{Position, Unit};
use factlib::relay::route::{Headers, Source, partition};
use factlib_protocol::replication::{StandbyStatusUpdate, start_logical};
use factlib_protocol::{Lsn, Timestamp, frontend};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A table cell: no line ends, no bars.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|").replace('<', "\\<")
}

/// Every setting by its heading, as `owlpost --help` has them, and every exit code.
fn configuration() -> String {
    let mut out = String::from(
        "# Configuration\n\n\
         Generated from the code; `owlpost --help` says the same.\n\n\
         Every setting is an environment variable and a flag: the flag is the variable in lower case with dashes, and \
         wins over it. An empty value counts as not set. Durations are written `500ms`, `3s`, `1m 30s`; sizes `64KiB`, \
         `8MiB`. All mistakes are reported at once, before anything is contacted.\n",
    );
    let definition = Cli::definition();
    let mut heading = None;
    for arg in definition.get_arguments().filter(|arg| arg.get_env().is_some()) {
        if arg.get_help_heading() != heading {
            heading = arg.get_help_heading();
            let heading = heading.unwrap();
            write!(out, "\n## {heading}\n\n| variable | value | meaning |\n|---|---|---|\n")
                .unwrap();
        }
        let help = arg.get_long_help().or(arg.get_help()).unwrap().to_string();
        let (meaning, limits) = match help.rsplit_once(" [").or(help.rsplit_once("\n[")) {
            Some((meaning, limits)) if help.ends_with(']') => {
                (meaning, limits.trim_end_matches(']'))
            }
            _ => (help.as_str(), ""),
        };
        let kind = arg.get_value_names().unwrap().join(" ");
        let limits = if limits.is_empty() { String::new() } else { format!(": {limits}") };
        writeln!(
            out,
            "| `{}` | {}{} | {} |",
            arg.get_env().unwrap().to_str().unwrap(),
            cell(&kind),
            cell(&limits),
            cell(meaning)
        )
        .unwrap();
    }
    out.push_str("\n## Exit codes\n\n| code | meaning |\n|---|---|\n");
    for code in ExitCode::ALL {
        writeln!(out, "| {} | {} |", code.number(), cell(code.meaning())).unwrap();
    }
    out
}

#[test]
fn the_configuration_reference_is_what_the_code_says() {
    let name = "docs/configuration.md";
    let generated = configuration();
    if std::env::var_os("WRITE_DOCUMENTS").is_some() {
        std::fs::write(path(name), &generated).unwrap();
    }
    assert!(
        text(name) == generated,
        "{name} is not current: WRITE_DOCUMENTS=1 cargo test --test documents writes it"
    );
}

/// Targets of `[text](target)` that are here.
fn links(markdown: &str) -> impl Iterator<Item = &str> {
    markdown
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter(|target| !target.is_empty() && !target.contains("://") && !target.starts_with('<'))
}

#[test]
fn no_link_in_a_document_leads_nowhere() {
    let mut checked = 0;
    for document in documents() {
        let folder = path(&document).parent().unwrap().to_owned();
        for target in links(&text(&document)) {
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() { path(&document) } else { folder.join(file) };
            assert!(file.exists(), "{document} links to {target}, which is not there");
            if !heading.is_empty() {
                let linked = std::fs::read_to_string(file).unwrap();
                let found = anchors(&linked).any(|anchor| anchor == heading);
                assert!(found, "{document} links to {target}, and there is no such heading");
            }
            checked += 1;
        }
    }
    assert!(checked > 20, "only {checked} links were found");
}

fn documents() -> Vec<String> {
    let mut documents: Vec<String> = [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "protocol/README.md",
        "clients/go/emit/README.md",
        "clients/java/README.md",
        "clients/python/README.md",
        "clients/typescript/README.md",
        "emit/README.md",
    ]
    .map(str::to_owned)
    .into();
    let found = std::fs::read_dir(path("docs")).unwrap().map(|entry| entry.unwrap().file_name());
    documents.extend(found.map(|name| format!("docs/{}", name.into_string().unwrap())));
    documents.retain(|name| name.ends_with(".md"));
    documents
}

/// What GitHub makes of headings, to link to them.
fn anchors(markdown: &str) -> impl Iterator<Item = String> {
    let headings =
        markdown.lines().filter_map(|line| line.trim_start_matches('#').strip_prefix(' '));
    headings.map(|heading| {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    })
}

/// Sources in these folders, of which documents name the tests.
fn sources(folder: &Path, into: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_test_that_a_document_names_exists() {
    let mut code = String::new();
    for folder in ["src", "tests", "emit", "protocol/src", "protocol/tests", "testkit", "torture"] {
        sources(&path(folder), &mut code);
    }
    let (mut named, mut unknown) = (0, Vec::new());
    for document in documents() {
        let text = text(&document);
        for word in text.split('`').skip(1).step_by(2) {
            let word = word.trim_start_matches('…');
            // A sentence; settings and functions have shorter names.
            let is_name =
                word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            if is_name && word.matches('_').count() > 5 {
                named += 1;
                if !code.contains(&format!("{word}(")) {
                    unknown.push(format!("{document}: {word}"));
                }
            }
        }
    }
    assert!(unknown.is_empty(), "there are no such tests: {unknown:#?}");
    assert!(named > 150, "only {named} names were found");
}

/// The lines of each block that is fenced as `kind`.
fn blocks<'a>(markdown: &'a str, kind: &str) -> Vec<Vec<&'a str>> {
    let mut blocks: Vec<Vec<&str>> = Vec::new();
    let (mut fenced, mut wanted) = (false, false);
    for line in markdown.lines() {
        if let Some(fence) = line.trim_start().strip_prefix("```") {
            fenced = !fenced;
            wanted = fenced && fence.split(' ').next() == Some(kind);
            blocks.extend(wanted.then(Vec::new));
        } else if wanted {
            blocks.last_mut().unwrap().push(line.trim());
        }
    }
    assert!(!fenced, "a block is not closed");
    blocks
}

/// Two digits a byte, separated by one space; two spaces end them.
fn hex(line: &str) -> (Vec<u8>, &str) {
    let (digits, remark) = line.split_once("  ").unwrap_or((line, ""));
    let byte = |pair| u8::from_str_radix(pair, 16).unwrap_or_else(|_| panic!("{line}"));
    (digits.split(' ').map(byte).collect(), remark.trim())
}

/// What `docs/how-it-works.md` shows of ours: what the encoders make of what it says there.
fn ours() -> Vec<Vec<u8>> {
    let encoded = |encode: &dyn Fn(&mut BytesMut)| {
        let mut out = BytesMut::new();
        encode(&mut out);
        out.to_vec()
    };
    let startup = encoded(&|out| {
        let parameters = [
            ("user", "owl"),
            ("database", "owl"),
            ("replication", "database"),
            ("application_name", "owlpost"),
            ("client_encoding", "UTF8"),
        ];
        frontend::startup(parameters, out).unwrap();
    });
    let start = encoded(&|out| {
        let options =
            [("proto_version", "1"), ("publication_names", "\"facts\""), ("messages", "true")];
        let command = start_logical("factlib_slot", Lsn::INVALID, &options).unwrap();
        frontend::query(&command, out).unwrap();
    });
    let status = encoded(&|out| {
        let (write, flush) = (Lsn(0x21E_B6B8), Lsn(0x21E_B678));
        let clock = Timestamp(0x3_03F8_93F8_7ADF);
        StandbyStatusUpdate { write, flush, apply: flush, clock, reply_requested: true }
            .encode(out);
    });
    let content = br#"{"aggregate_type":"order","aggregate_id":"42","event_type":"paid","payload":{"by":"card"}}"#;
    let fact = Fact::decode(content).unwrap();
    let unit = Unit::transaction(Lsn(0x21E_B648));
    let position = Position { timeline: 1, unit, index: 0 };
    let source = Source::new(7_711_509_843_797_492_267, 16384);
    let mut headers = Headers::default();
    let lsn = Lsn(0x21E_B608);
    headers.fill(&fact, &source, &position, lsn, false);
    let mut batch = OpenBatch::new(position, Compression::None);
    batch.push(&Record {
        timestamp_ms: 1_795_475_898_934,
        key: Some(fact.aggregate_id.as_bytes()),
        value: Some(content),
        headers: &headers,
    });
    let mut batch = batch.seal();
    batch.set_stamp(ProducerId { id: 1000, epoch: 0 }, 0);

    // What the text says besides.
    let document = text("docs/how-it-works.md");
    for said in [
        format!("partition {} of 12", partition(b"42", 12)),
        format!("position `{position}`"),
        format!("source `{}`", source.as_str()),
        format!("`{}`", str::from_utf8(content).unwrap()),
    ] {
        assert!(document.contains(&said), "{said}");
    }
    vec![startup, start, status, batch.encoded().to_vec()]
}

#[test]
fn the_bytes_in_how_it_works_are_those_of_a_server_or_ours() {
    let mut known = ours();
    for recording in ["login-scram", "stream"] {
        let recording = text(&format!("protocol/tests/fixtures/pg15/{recording}.txt"));
        for line in recording.lines() {
            let (_, digits) = line.split_once(' ').unwrap();
            let pairs = (0..digits.len()).step_by(2).filter_map(|at| digits.get(at..at + 2));
            known.push(pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect());
        }
    }
    let document = text("docs/how-it-works.md");
    let blocks = blocks(&document, "hex");
    // The one with a gap is a request around a batch: `src/kafka/produce.rs` looks at it.
    let whole = blocks.iter().filter(|block| !block.iter().any(|line| line.starts_with("...")));
    let mut shown = 0;
    for block in whole {
        let message: Vec<u8> = block.iter().flat_map(|line| hex(line).0).collect();
        assert!(known.contains(&message), "nobody sends this:\n{}", block.join("\n"));
        block.iter().for_each(|line| remark_is_true(line));
        shown += 1;
    }
    assert!(shown > 20, "only {shown} messages are shown");
}

/// Holds what is said of the bytes of one line to them, as far as it begins with a value: text, a letter and a comma, an
/// LSN, a varint, a number.
fn remark_is_true(line: &str) {
    let (bytes, remark) = hex(line);
    let signed = bytes.iter().fold(0_i64, |sum, byte| sum << 8 | i64::from(*byte));
    let signed = signed << (64 - 8 * bytes.len().min(8)) >> (64 - 8 * bytes.len().min(8));
    let value = remark.split([':', ',', ' ']).next().unwrap();
    let is_true = if let Some(text) = remark.strip_prefix('"') {
        let text = text.rsplit_once('"').unwrap().0;
        bytes.strip_suffix(&[0]).unwrap_or(&bytes) == text.as_bytes()
    } else if let Some(number) = remark.strip_prefix("varint ") {
        let zigzag = bytes.iter().rev().fold(0_i64, |sum, byte| sum << 7 | i64::from(byte & 0x7f));
        let number = number.split(':').next().unwrap().split(' ').next().unwrap();
        number.parse() == Ok(zigzag >> 1 ^ -(zigzag & 1))
    } else if let Ok(lsn) = value.parse::<Lsn>() {
        bytes == lsn.0.to_be_bytes()
    } else if let Ok(number) = value.parse::<i64>() {
        number == signed
    } else if remark.get(1..2).is_some_and(|after| matches!(after, "," | ":")) {
        bytes == remark.as_bytes().get(..1).unwrap()
    } else {
        true
    };
    assert!(is_true, "{line}");
}

/// The words of a command line, without what a shell would take for itself.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut quote) = (vec![String::new()], None);
    for c in line.chars() {
        match (c, quote) {
            ('#', None) if words.last().is_some_and(String::is_empty) => break,
            ('|' | '&' | ';' | '>' | '<', None) => break,
            (' ', None) => words.push(String::new()),
            (c, Some(q)) if c == q => quote = None,
            ('"' | '\'', None) => quote = Some(c),
            (c, _) => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn every_command_line_in_a_document_is_one_that_owlpost_takes() {
    let (mut lines, mut settings) = (0, 0);
    for document in documents() {
        let text = text(&document);
        let fenced = blocks(&text, "sh").into_iter().flatten();
        let inline = text.split('`').skip(1).step_by(2).filter(|span| !span.contains('\n'));
        for line in fenced.chain(inline.filter(|span| span.starts_with("owlpost "))) {
            let mut words = words(line);
            let first = words.iter().position(|word| word != "export" && !word.contains('='));
            for setting in words.drain(..first.unwrap_or(words.len())) {
                let Some((name, _)) = setting.split_once('=') else { continue };
                let known = VARIABLES.contains(&name) || name.starts_with("PG");
                assert!(known, "{document}: {line}: {name} is no setting");
                settings += 1;
            }
            if words.first().is_none_or(|word| word != "owlpost") {
                continue;
            }
            match Cli::try_from_args(&words) {
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
                    ) => {}
                Err(error) => panic!("{document}: {line}\n{error}"),
            }
            lines += 1;
        }
    }
    assert!(lines > 30 && settings > 5, "only {lines} command lines and {settings} settings");
}

#[test]
fn every_state_and_every_exit_code_has_its_advice() {
    // A new state does not compile here, and wants a line there, too.
    let name = |state| match state {
        State::Starting => "starting",
        State::Connecting => "connecting",
        State::WaitingForSlot => "waiting_for_slot",
        State::Streaming => "streaming",
        State::Stalled => "stalled",
        State::Halted => "halted",
        State::Stopping => "stopping",
        State::Failed => "failed",
    };
    let advice = text("docs/operating.md");
    for state in [
        State::Starting,
        State::Connecting,
        State::WaitingForSlot,
        State::Streaming,
        State::Stalled,
        State::Halted,
        State::Stopping,
        State::Failed,
    ] {
        let shown = serde_json::to_value(state).unwrap();
        assert_eq!(shown, name(state));
        let mut rows = advice.lines().filter(|line| line.starts_with("| `"));
        assert!(rows.any(|row| row.contains(&format!("`{}`", name(state)))), "{}", name(state));
    }
    // Where the codes have a page of their own, there.
    let errors = std::fs::read_to_string(path("docs/errors.md")).unwrap_or_default();
    for code in ExitCode::ALL {
        let row = format!("\n| {} | ", code.number());
        assert!(advice.contains(&row) || errors.contains(&row), "no advice for {code:?}");
    }
}

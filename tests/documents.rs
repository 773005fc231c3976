//! Documents that are held to the code. `WRITE_DOCUMENTS=1 cargo test --test documents` writes what is generated.

#![expect(clippy::unwrap_used, reason = "a test")]

use factlib::cli::Cli;
use factlib::exit::ExitCode;
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

/// Targets of `[text](target)` that are files here.
fn links(markdown: &str) -> impl Iterator<Item = &str> {
    markdown.split("](").skip(1).filter_map(|rest| rest.split(')').next()).filter(|target| {
        !target.is_empty() && !target.contains("://") && !target.starts_with(['#', '<'])
    })
}

#[test]
fn no_link_in_a_document_leads_nowhere() {
    let mut documents: Vec<String> =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "protocol/README.md"]
            .map(str::to_owned)
            .into();
    let found = std::fs::read_dir(path("docs")).unwrap().map(|entry| entry.unwrap().file_name());
    documents.extend(found.map(|name| format!("docs/{}", name.into_string().unwrap())));
    let mut checked = 0;
    for document in documents.iter().filter(|name| name.ends_with(".md")) {
        let folder = path(document).parent().unwrap().to_owned();
        for target in links(&text(document)) {
            let file = target.split('#').next().unwrap();
            assert!(folder.join(file).exists(), "{document} links to {target}, which is not there");
            checked += 1;
        }
    }
    assert!(checked > 20, "only {checked} links were found");
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
    for folder in ["src", "tests", "protocol/src", "protocol/tests", "testkit", "torture"] {
        sources(&path(folder), &mut code);
    }
    let (mut named, mut unknown) = (0, Vec::new());
    for document in ["README.md", "SECURITY.md", "docs/faults.md", "docs/rules.md"] {
        let text = text(document);
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

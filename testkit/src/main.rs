//! What `make` calls: fetch what is missing, show the whole road, or keep servers for a while.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

use std::process::ExitCode;

const USAGE: &str = "usage: testkit COMMAND

  setup   fetch PostgreSQL and Apache Kafka where they are missing
  tools   install what only tests use: openssl, valgrind, prometheus and chromium, Debian's packages
  demo    commit facts in PostgreSQL and see them arrive in Kafka
  example place orders with the example services, kill one, and count what they did
  serve   start PostgreSQL and Apache Kafka, say where, and keep them until this process ends
  footprint BINARY what the binary takes: its size, its start, and while it idles
  capture FOLDER   run FOLDER/capture.sql on every PostgreSQL and write down what pgoutput says

PG_MAJOR (14 to 18) chooses PostgreSQL's major; FACTLIB_CACHE the folder of downloads.";

fn main() -> ExitCode {
    let say = |line: &str| println!("{line}");
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["setup"] => testkit::provision::setup(say),
        ["tools"] => testkit::provision::tools(say),
        ["demo"] => testkit::demo::run(say),
        ["example"] => testkit::example::Programs::beside_this_one()
            .and_then(|programs| testkit::example::run(&programs, say)),
        ["serve"] => testkit::demo::serve(say),
        ["footprint", binary] => testkit::footprint::measure(binary.as_ref(), say),
        ["capture", folder] => testkit::capture::capture(folder.as_ref(), say),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("{sentence}");
            ExitCode::FAILURE
        }
    }
}

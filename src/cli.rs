//! The command line.

use crate::check::CheckArgs;
use crate::command::completions::Completions;
use crate::command::drain::Drain;
use crate::command::emit::Emit;
use crate::command::functions::Functions;
use crate::command::man::Man;
use crate::command::redrive::Redrive;
use crate::command::status::Status;
use crate::command::tail::Tail;
use crate::command::wait::Wait;
use crate::config::{Needs, RawConfig};
use crate::exit::ExitCode;
use clap::{ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;

/// Publishes facts committed in PostgreSQL to Kafka.
///
/// A service writes its rows and a fact in one transaction, with
/// pg_logical_emit_message(true, prefix, content). owlpost reads PostgreSQL's write-ahead log and
/// publishes every committed fact to the topic prefix.aggregate_type: in commit order, never lost,
/// repeated only after a fault.
#[derive(Debug, Parser)]
#[command(
    name = "owlpost",
    version,
    color = ColorChoice::Auto,
    after_help = "Examples and exit codes: owlpost --help",
    subcommand_help_heading = "Commands",
)]
pub struct Cli {
    /// What to do; nothing means [`Command::Run`].
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The settings. They may stand before or after the command.
    #[command(flatten)]
    pub config: RawConfig,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Subcommand)]
pub enum Command {
    /// Publish facts until told to stop by SIGTERM or SIGINT (what happens without a command)
    ///
    /// In a database that has neither publication nor slot, `run` makes both first and says so. It
    /// never makes one of them anew: a slot that is gone means that facts may be missing, and stops
    /// the process with its own exit code.
    #[default]
    Run,
    /// Make the publication and the slot, print where the slot begins, and exit
    ///
    /// Facts committed from that point on will be published. An interrupted `init` is resumed;
    /// anything else that is half there is refused. With DELIVERY=exactly-once POSITION_TOPIC is created, too, unless
    /// it is there.
    Init {
        /// Make the slot of `owlpost audit`, too, which begins where the relay's stands now
        ///
        /// It holds back write-ahead log until an audit moves it on; a relay that runs drops it
        /// beyond AUDIT_WAL_BYTES, and says so.
        #[arg(long)]
        audit: bool,
        /// Make a slot that is lost or gone anew, and print the gap that this leaves
        ///
        /// Facts committed in the gap are not in Kafka and never will be by this relay. Only where the
        /// publication says that the slot was ours; one that can still be read is never touched.
        #[arg(long, conflicts_with = "audit")]
        accept_gap: bool,
        /// One JSON object: slot, publication, created, lsn, and gap where one was accepted; another line with
        /// position_topic and created where DELIVERY=exactly-once, and one with audit_slot and its lsn after --audit
        #[arg(long)]
        json: bool,
        /// The SQL functions.
        #[command(flatten)]
        functions: Functions,
    },
    /// Look at everything that the relay needs, and say what is wrong and what to do about it
    ///
    /// Logs in to PostgreSQL and Kafka as the relay would, and looks at versions, settings, rights,
    /// slot, publication, topics and their configuration, in one go. Nothing is made or changed
    /// (but see --canary), and the relay may be running. The exit code is 0 if nothing fails,
    /// whatever is warned of, and 11 if something does; 2, as everywhere, if the configuration
    /// itself is wrong.
    Check(CheckArgs),
    /// Publish up to a position, confirm it, and stop: for upgrades
    Drain(Drain),
    /// Return when everything up to a position is in Kafka and confirmed: for deploys and tests
    Wait(Wait),
    /// Say where the slot stands, how far behind it is, and when it will be lost
    Status(Status),
    /// Show facts on the terminal as they are committed, without Kafka
    Tail(Tail),
    /// Emit one fact, or many from standard input, in one transaction
    Emit(Emit),
    /// Send dead letters back to the topics that they were going to
    Redrive(Redrive),
    /// Compare what was committed with what is in Kafka, since the last audit
    ///
    /// Reads the write-ahead log from the slot that `owlpost init --audit` made up to what the relay has
    /// confirmed, and the topics from ten minutes before, which takes the right to READ them; prints
    /// each fact that is missing, repeated or out of order, each record of a fact that is not this
    /// relay's (no fault), and one line at the end. Where there is none the slot is
    /// moved on and the exit code is 0, else it stays and the code is 10. The relay may be running.
    /// After a crash repeats are no fault, but worth a look: `--accept-repeats`. What a topic's
    /// retention or compaction has removed is missing, too: audit more often than that.
    Audit {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
        /// Repeated facts are printed, and are no reason to fail
        #[arg(long)]
        accept_repeats: bool,
        /// The slot is moved on whatever is found, once it has been seen to
        #[arg(long)]
        accept_all: bool,
    },
    /// Write what a shell needs to complete the command line
    Completions(Completions),
    /// Write the manual pages
    Man(Man),
}

impl Command {
    /// Which settings it cannot do without.
    pub fn needs(&self) -> Needs {
        let postgres = Needs { postgres: true, ..Needs::NOTHING };
        match self {
            Self::Run | Self::Check(_) | Self::Audit { .. } | Self::Drain(_) => Needs::RELAY,
            Self::Init { functions, .. } if functions.are_printed() => Needs::NOTHING,
            Self::Init { functions, .. } => Needs { service: !functions.are_all(), ..postgres },
            Self::Status(status) => Needs { service: status.counts_facts(), ..postgres },
            Self::Wait(_) | Self::Emit(_) => postgres,
            Self::Tail(_) => Needs { service: true, ..postgres },
            Self::Redrive(_) => Needs { kafka: true, dead_letters: true, ..Needs::NOTHING },
            Self::Completions(_) | Self::Man(_) => Needs::NOTHING,
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  export SRC_SERVICE_NAME=orders
  export MASTER_DATABASE_URL=postgres://owlpost:secret@db.example:5432/orders
  export KAFKA_BROKERS=kafka-1.example:9092,kafka-2.example:9092

  owlpost init                         make publication and slot, then exit
  owlpost init --with-sql              and the SQL functions for applications
  owlpost                              publish until stopped
  owlpost check                        is everything as the relay needs it?
  owlpost init --audit                 make the slot that an audit needs
  owlpost audit                        is everything in Kafka, once, in order?
  owlpost status                       where the slot stands, and how long it lasts
  owlpost wait --lsn now               until all that is committed is published
  owlpost run --log-format human       a flag wins over its variable
  curl -s localhost:3001/readyz        200 while facts flow, else 503; why, as JSON

  In the service, inside its own transaction:
  SELECT factlib.emit('order', '42', 'paid', '{\"cents\": 1999}', prefix => 'orders');
  or without the SQL functions:
  SELECT pg_logical_emit_message(true, 'orders',
    '{\"aggregate_type\": \"order\", \"aggregate_id\": \"42\",
      \"event_type\": \"paid\", \"payload\": {\"cents\": 1999}}');

Environment:
  Every setting is a flag and a variable; the flag is the variable in lower case with dashes.
  An empty value counts as not set. Durations: 500ms, 3s, 1m 30s. Sizes: 64KiB, 8MiB.
  What the database URL leaves out comes from libpq's variables: PGHOST, PGPORT, PGUSER,
  PGPASSWORD, PGPASSFILE, PGDATABASE, PGSSLMODE, PGSSLROOTCERT, PGSSLCERT, PGSSLKEY, PGSSLCRL,
  PGSSLNEGOTIATION, PGSSLCERTMODE, PGSSLSNI, PGCHANNELBINDING, PGREQUIREAUTH, PGCONNECT_TIMEOUT,
  PGOPTIONS, PGAPPNAME, PGTARGETSESSIONATTRS; and from ~/.pgpass and ~/.postgresql, as libpq has it.
  Colours follow the terminal and NO_COLOR.
";

impl Cli {
    /// Reads the command line and the environment.
    ///
    /// Help and version are printed, and a usage error explained, by ending the process: with 0, or
    /// with [`ExitCode::Configuration`].
    pub fn from_args() -> Self {
        Self::try_from_args(std::env::args_os()).unwrap_or_else(|error| error.exit())
    }

    /// Reads these arguments (the first is the program's name) and the environment.
    pub fn try_from_args(
        args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Self, clap::Error> {
        let mut command = Self::definition();
        let mut matches = command.try_get_matches_from_mut(args)?;
        Self::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
    }

    /// What to do.
    pub fn action(&self) -> Command {
        self.command.clone().unwrap_or_default()
    }

    /// The command line as clap knows it, for help, completions and manual pages.
    pub fn definition() -> clap::Command {
        Self::command().after_long_help(format!("{EXAMPLES}\nExit codes:\n{}", ExitCode::table()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, VARIABLES};

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_from_args(std::iter::once("owlpost").chain(args.iter().copied()))
    }

    #[test]
    fn clap_finds_no_mistake_in_the_definition() {
        Cli::definition().debug_assert();
    }

    #[test]
    fn run_is_the_default() {
        assert_eq!(parse(&[]).unwrap().action(), Command::Run);
        assert_eq!(parse(&["run"]).unwrap().action(), Command::Run);
        let functions = Functions::default();
        let init = |audit| Command::Init { audit, accept_gap: false, json: false, functions };
        assert_eq!(parse(&["init"]).unwrap().action(), init(false));
        assert_eq!(parse(&["init", "--audit"]).unwrap().action(), init(true));
    }

    #[test]
    fn the_sql_functions_are_had_without_what_a_relay_needs() {
        let needs = |args: &[&str]| parse(args).unwrap().action().needs();
        assert_eq!(needs(&["init", "--with-sql"]), needs(&["init"]));
        let postgres = Needs { postgres: true, ..Needs::NOTHING };
        assert_eq!(needs(&["init", "--sql-only"]), postgres);
        assert_eq!(needs(&["init", "--print-sql"]), Needs::NOTHING);
        for both in ["--with-sql", "--audit", "--accept-gap", "--print-sql"] {
            assert!(parse(&["init", "--sql-only", both]).is_err(), "{both}");
        }
    }

    #[test]
    fn settings_may_stand_before_or_after_the_command() {
        for args in [["--lease", "9s", "init"], ["init", "--lease", "9s"]] {
            let cli = parse(&args).unwrap();
            let functions = Functions::default();
            let init = Command::Init { audit: false, accept_gap: false, json: false, functions };
            assert_eq!((cli.action(), cli.config.lease.as_deref()), (init, Some("9s")));
        }
        let cli = parse(&["--kafka-ssl", "--metadata-headers=false", "run"]).unwrap();
        assert_eq!(cli.config.kafka_ssl.as_deref(), Some("true"));
        assert_eq!(cli.config.metadata_headers.as_deref(), Some("false"));
    }

    #[test]
    fn a_usage_error_has_the_number_of_a_wrong_configuration() {
        let error = parse(&["--no-such-flag"]).unwrap_err();
        assert_eq!(error.exit_code(), i32::from(ExitCode::Configuration.number()));
        assert_eq!(parse(&["--help"]).unwrap_err().exit_code(), 0);
    }

    #[test]
    fn every_flag_is_its_variable_in_lower_case_with_dashes() {
        let definition = Cli::definition();
        let mut variables = Vec::new();
        for arg in definition.get_arguments() {
            let Some(variable) = arg.get_env() else { continue };
            let variable = variable.to_str().unwrap();
            assert_eq!(arg.get_long().unwrap(), variable.to_ascii_lowercase().replace('_', "-"));
            variables.push(variable);
        }
        assert_eq!(variables, VARIABLES);
    }

    #[test]
    fn help_names_every_variable_and_every_exit_code_and_shows_no_value() {
        for mut command in [Cli::definition(), {
            // As `owlpost run --help` has it.
            let mut definition = Cli::definition();
            definition.build();
            definition.find_subcommand("run").unwrap().clone()
        }] {
            let help = command.render_long_help().to_string();
            for variable in VARIABLES {
                assert!(help.contains(&format!("[env: {variable}]")), "{variable} in {help}");
            }
        }
        let help = Cli::definition().render_long_help().to_string();
        for code in ExitCode::ALL {
            let line = format!("\n  {}  {}\n", code.number(), code.meaning());
            assert!(help.contains(&line), "{line} in {help}");
        }
    }

    /// The default that help states is the one that is taken: stating it changes nothing.
    #[test]
    fn help_states_the_defaults_that_hold() {
        let required = [
            "--src-service-name=orders",
            "--master-database-url=postgres://owlpost@db/app",
            "--kafka-brokers=kafka",
        ];
        let config = |extra: &[&str]| {
            let raw = parse(&[&required, extra].concat()).unwrap().config;
            Config::from_raw(&raw, |_| None).unwrap()
        };
        let mut stated = 0;
        for arg in Cli::definition().get_arguments().filter(|arg| arg.get_env().is_some()) {
            let help = arg.get_help().unwrap().to_string();
            let Some((_, default)) = help.split_once("default: ") else { continue };
            let default = default.strip_suffix(']').expect("the default ends the help");
            if default == "the service name" {
                continue;
            }
            let name = arg.get_long().unwrap();
            // What only this has is refused without it.
            let beside: &[&str] = match (arg.get_help_heading(), name) {
                (Some("Delivery"), other) if other != "delivery" => &["--delivery=exactly-once"],
                _ => &[],
            };
            let flag = format!("--{name}={default}");
            assert_eq!(config(&[beside, &[&flag]].concat()), config(beside), "{flag}");
            stated += 1;
        }
        assert!(stated > 20, "only {stated} defaults found");
    }
}

//! `owlpost man`: the manual pages.

use super::{say, unwritten};
use crate::cli::Cli;
use crate::exit::ExitCode;
use clap::Args;
use std::io::Write as _;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  owlpost man > owlpost.1      the page of owlpost itself
  owlpost man --out man1       that and one for each command, as man1/owlpost-status.1 and so on
";

/// Which pages.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = EXAMPLES)]
pub struct Man {
    /// A folder for all pages, which is made if it is not there
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// Writes the manual pages.
pub fn man(arguments: &Man) -> ExitCode {
    let Some(folder) = &arguments.out else {
        let mut page = Vec::new();
        let rendered = clap_mangen::Man::new(Cli::definition()).render(&mut page);
        return match rendered.and_then(|()| std::io::stdout().lock().write_all(&page)) {
            Ok(()) => ExitCode::Stopped,
            Err(error) => unwritten(&error),
        };
    };
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Cli::definition(), folder));
    match written {
        Ok(()) => ExitCode::Stopped,
        Err(error) => {
            say(&format!("owlpost: cannot write to {}: {error}", folder.display()));
            ExitCode::Configuration
        }
    }
}

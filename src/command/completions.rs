//! `owlpost completions`: what a shell needs to complete the command line.

use super::unwritten;
use crate::cli::Cli;
use crate::exit::ExitCode;
use clap::Args;
use clap_complete::Shell;
use std::io::Write as _;

const EXAMPLES: &str = "\
Examples:
  owlpost completions bash > owlpost.bash    for ~/.local/share/bash-completion/completions
  owlpost completions zsh > _owlpost         for a folder of $fpath
  owlpost completions fish > owlpost.fish    for ~/.config/fish/completions
";

/// What to complete.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = EXAMPLES)]
pub struct Completions {
    /// Whose
    shell: Shell,
}

/// Writes the script to standard output.
pub fn completions(arguments: &Completions) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::definition(), "owlpost", &mut script);
    match std::io::stdout().lock().write_all(&script) {
        Ok(()) => ExitCode::Stopped,
        Err(error) => unwritten(&error),
    }
}

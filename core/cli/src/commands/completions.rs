//! `completions`: a script for the user's shell. It asks the binary at every key, so that it knows what the
//! command line and the broker know at that moment (`candidates`).

use std::io::Write;

use clap_complete::Shell;
use clap_complete::env::Shells;

use crate::exit::{Failure, Outcome};

/// Print a completion script for a shell
///
/// Topics and groups are completed too, when the broker answers.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  source <(millstream completions bash)            # in ~/.bashrc; zsh the same
  millstream completions fish > ~/.config/fish/completions/millstream.fish")]
pub(crate) struct Arguments {
    /// The shell.
    shell: Shell,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let shells = Shells::builtins();
    let name = arguments.shell.to_string();
    let shell = shells
        .completer(&name)
        .ok_or_else(|| Failure::failed(format!("no completions for {name}")))?;
    let mut script = Vec::new();
    let program = "millstream";
    shell.write_registration("COMPLETE", program, program, program, &mut script)?;
    std::io::stdout().lock().write_all(&script)?;
    Ok(())
}

//! `completions`: a script for the user's shell.

use std::io::Write;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::exit::Outcome;

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  millstream completions bash > /etc/bash_completion.d/millstream"
)]
pub(crate) struct Arguments {
    shell: Shell,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(
        arguments.shell,
        &mut crate::Arguments::command(),
        "millstream",
        &mut script,
    );
    std::io::stdout().lock().write_all(&script)?;
    Ok(())
}

//! A question before what cannot be undone, on a terminal alone: scripts have nobody to ask, and say with
//! `--yes` that they mean it wherever a person might run them.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use crate::exit::{Failure, Outcome};

/// The flag of commands that ask.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Yes {
    /// Do not ask. Without a terminal nothing is asked.
    #[arg(short = 'y', long)]
    yes: bool,
}

impl Yes {
    /// Ask whether to do what `question` says. Without a terminal, and with `--yes`, the answer is yes.
    pub(crate) fn confirm(self, question: &str) -> Outcome {
        if self.yes || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Ok(());
        }
        let mut stderr = io::stderr().lock();
        write!(stderr, "{question} This cannot be undone. [y/N] ")?;
        stderr.flush()?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        if is_yes(&answer) {
            return Ok(());
        }
        Err(Failure::failed("nothing was done (--yes does not ask)"))
    }
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_yes_is_one() {
        assert!(is_yes("y\n") && is_yes(" YES \n"));
        for no in ["", "\n", "n\n", "yep\n", "yy\n"] {
            assert!(!is_yes(no), "{no:?}");
        }
    }
}

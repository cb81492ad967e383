//! `clock accept`: the broker's wall clock is right, an operator says.

use serde_json::json;

use crate::Global;
use crate::connect::{block_on, client};
use crate::exit::Outcome;
use crate::values::time;

/// Say that the broker's wall clock is right
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Take the broker's wall clock as it is
    ///
    /// A broker doubts its wall clock when it starts with one that is far from the newest record, and
    /// when it leaps while the broker runs. It goes on serving, but retention and the expiry of producers
    /// rest until the clock is right again, or is accepted with this command: look at the time that
    /// `doctor` shows first. Records that were written with a clock in the future keep their time, and
    /// retention counts their age from the accepted one.
    #[command(after_help = "\
Example:
  millstream doctor          # says so when the clock is in doubt
  date                       # is it right now?
  millstream clock accept")]
    Accept,
}

pub(crate) fn run(command: &Command, global: &Global) -> Outcome {
    let Command::Accept = command;
    block_on(async {
        let client = client(global).await?;
        let ms = client.admin().accept_clock().await?;
        client.close().await;
        let at = time(ms);
        global.output.show(
            format!("the broker's clock is accepted: it is {at}"),
            &json!({ "accepted": at, "time_ms": ms }),
        )?;
        Ok(())
    })
}

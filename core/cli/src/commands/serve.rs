//! `serve`: a broker in the foreground.

use serde_json::json;

use crate::Global;
use crate::exit::{Failure, Outcome};
use crate::output::line;
use crate::settings::BrokerFlags;

/// Run a broker
///
/// On a loopback address without a certificate it makes one and writes
/// DIR/context.toml for clients on this machine. On any other address it wants a certificate and
/// principals. Ctrl-C stops gracefully, a second one at once; what was acknowledged is on disk at any
/// moment. SIGHUP takes changed certificates and principals from the settings, without a stop.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  millstream serve --data /var/lib/millstream --listen 127.0.0.1:7411
  millstream serve --config /etc/millstream.toml
  MILLSTREAM_LOG__FLUSH=interval millstream serve --data DIR")]
pub(crate) struct Arguments {
    #[command(flatten)]
    flags: BrokerFlags,
}

pub(crate) fn run(arguments: &Arguments, global: &Global) -> Outcome {
    let config = arguments.flags.load_checked()?;
    let json = global.output.is_json();
    let started = |broker: &millstream_broker::Broker, _stopper| {
        if json {
            let ready = json!({
                "address": broker.address().to_string(),
                "http": broker.http_address().map(|address| address.to_string()),
                "data": broker.data(),
                "context": broker.context(),
            });
            // The broker serves whether or not someone reads this.
            let _ = line(&ready.to_string());
        }
    };
    crate::memory::before_serving(&config.memory);
    let flags = arguments.flags.clone();
    let load = move || flags.load().map_err(|failure| failure.to_string());
    let hangup = millstream_broker::Hangup::Reload(Box::new(load));
    millstream_broker::run(config, &hangup, started).map_err(failure)
}

/// A broker's failure: wrong settings are wrong usage.
pub(crate) fn failure(error: millstream_broker::Error) -> Failure {
    match error {
        millstream_broker::Error::Config(error) => crate::settings::wrong(error),
        error @ millstream_broker::Error::Shards { .. } => Failure::Usage(error.to_string()),
        other => Failure::Failed(other.into()),
    }
}

//! `dev`: a broker that needs nothing: data in ./.millstream, loopback only, everything granted to its owner.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;

use crate::Global;
use crate::commands::{demo, serve};
use crate::exit::{Failure, Outcome};
use crate::output::{line, note};
use crate::settings::BrokerFlags;

/// Run a broker for development: no settings, no root, no TLS step
///
/// Data and certificates live in ./.millstream (or --data), clients find the broker through
/// DIR/context.toml. It listens on loopback only and grants everything to whoever can read that file: its
/// owner. If the default ports are taken, it takes others. Ctrl-C or a closed terminal stops it gracefully.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  millstream dev                 # then, in another terminal: millstream topic create orders
  millstream dev --demo          # and send real input through a bundled component
  tail -F app.log | millstream dev --demo --expr 'level == \"error\"'")]
pub(crate) struct Arguments {
    /// Data directory. Default: ./.millstream.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where clients connect (QUIC over UDP).
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = millstream_broker::listen_address)]
    listen: Option<SocketAddr>,
    /// Where operators look (HTTP).
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = millstream_broker::listen_address)]
    http: Option<SocketAddr>,
    /// Shards of a new data directory. Default: one a core.
    #[arg(long, value_name = "N")]
    shards: Option<u16>,
    /// Send real input (stdin, or this machine's processes) through the bundled json-filter, and print
    /// what comes out. Where that fails, for example for a wrong expression, the broker ends with it.
    #[arg(long)]
    demo: bool,
    #[command(flatten)]
    filter: demo::Filter,
}

pub(crate) fn run(arguments: Arguments, global: &Global) -> Outcome {
    let Arguments {
        data,
        listen,
        http,
        shards,
        demo,
        filter,
    } = arguments;
    let flags = BrokerFlags {
        data,
        listen,
        http,
        shards,
        ..BrokerFlags::default()
    };
    let mut config = flags.load()?;
    // Defaults give way to whoever has the port; what was asked for does not.
    if listen.is_none() && UdpSocket::bind(config.listen).is_err() {
        config.listen.set_port(0);
    }
    if http.is_none() && TcpListener::bind(config.http).is_err() {
        config.http.set_port(0);
    }
    config.check().map_err(crate::settings::wrong)?;
    let json = global.output.is_json();
    let global = global.clone();
    // What ended the demo, and with it the broker.
    let failed = Arc::new(Mutex::new(None));
    let of_demo = Arc::clone(&failed);
    let started = move |broker: &millstream_broker::Broker, stopper| {
        let context = broker.context();
        if json {
            let ready = json!({
                "address": broker.address().to_string(),
                "http": broker.http_address().map(|address| address.to_string()),
                "data": broker.data(),
                "context": context,
            });
            let _ = line(&ready.to_string());
        } else {
            let _ = line(&welcome(broker));
        }
        if demo {
            let global = Global {
                context: Some(context),
                url: None,
                token: None,
                ca: None,
                client_cert: None,
                client_key: None,
                ..global
            };
            let worker = std::thread::Builder::new()
                .name("demo".into())
                .spawn(move || {
                    if let Err(error) = demo::run_beside(&filter, &global) {
                        end(error, &stopper, &of_demo);
                    }
                });
            if let Err(error) = worker {
                note(&format!("no thread for the demo: {error}"));
            }
        }
    };
    crate::memory::before_serving(&config.memory);
    let hangup = millstream_broker::Hangup::Stop;
    millstream_broker::run(config, &hangup, started).map_err(serve::failure)?;
    let failed = failed.lock().unwrap_or_else(PoisonError::into_inner).take();
    failed.map_or(Ok(()), Err)
}

/// A demo that failed stops the broker, whose end then has its exit code; one that failed because the broker
/// stops is no failure.
fn end(error: Failure, stopper: &millstream_broker::Stopper, failed: &Mutex<Option<Failure>>) {
    // Held meanwhile: whoever the stop wakes finds why.
    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
    if stopper.stop() {
        *failed = Some(error);
    } else {
        note(&format!("the demo ended: {error}"));
    }
}

fn welcome(broker: &millstream_broker::Broker) -> String {
    let context = broker.context();
    // The default place needs no --context in the directory where it was started.
    let default = std::path::Path::new(millstream_client::DEV_DIRECTORY)
        .join(millstream_client::CONTEXT_FILE);
    let same = context.canonicalize().ok() == default.canonicalize().ok();
    let export = if same {
        String::new()
    } else {
        format!("  export MILLSTREAM_CONTEXT={}\n", context.display())
    };
    let http = broker.http_address().map_or_else(String::new, |address| {
        format!("  http://{address}/metrics\n")
    });
    format!(
        "Millstream is ready on {}; its data is in {}.\n\nIn another terminal:\n{export}  \
         millstream topic create orders --partitions 4\n  \
         echo 'hello' | millstream pub orders\n  \
         millstream sub orders --from start\n  \
         millstream demo\n{http}\nCtrl-C stops it; what was acknowledged is on disk.",
        broker.address(),
        broker.data().display(),
    )
}

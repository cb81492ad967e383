//! `config check|show`: the settings of a broker, and where each came from.

use serde_json::{Map, Value, json};

use crate::Global;
use crate::commands::serve;
use crate::exit::Outcome;
use crate::output::Table;
use crate::settings::BrokerFlags;

/// Check and show the settings of a broker
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Whether a broker would start with these settings: the judgement is that of the start itself
    ///
    /// Certificates and the data directory are looked at, and left as they are.
    #[command(after_help = "Example:\n  millstream config check --config /etc/millstream.toml")]
    Check(BrokerFlags),
    /// Every setting in effect, and where it came from: flag, environment, file or default
    #[command(after_help = "\
Environment: MILLSTREAM_LISTEN sets listen; two underscores step into a section, so \
MILLSTREAM_LOG__FLUSH sets flush in [log].

Example:
  MILLSTREAM_SHARDS=2 millstream config show --config millstream.toml")]
    Show(BrokerFlags),
}

pub(crate) fn run(command: &Command, global: &Global) -> Outcome {
    match command {
        Command::Check(flags) => {
            let warnings = millstream_broker::check(&flags.load()?).map_err(serve::failure)?;
            let mut text = "a broker would start with these settings".to_owned();
            for warning in &warnings {
                text.push_str(&format!("\nwarning: {warning}"));
            }
            global
                .output
                .show(text, &json!({ "ok": true, "warnings": warnings }))
        }
        Command::Show(flags) => {
            let settings = flags.explained()?;
            let mut table = Table::new(["SETTING", "VALUE", "FROM"]);
            let mut object = Map::new();
            for (name, value, origin) in settings {
                let shown = if is_secret(&name) {
                    "(not shown)".to_owned()
                } else {
                    value
                };
                let json = json!({ "value": as_json(&shown), "from": origin.to_string() });
                object.insert(name.clone(), json);
                table.row([name, shown, origin.to_string()]);
            }
            global
                .output
                .show(table.to_string(), &Value::Object(object))
        }
    }
}

fn is_secret(name: &str) -> bool {
    name.ends_with("token") || name.ends_with("secret") || name.ends_with("password")
}

/// A TOML value as JSON, where it is one of the simple kinds; else as its text.
fn as_json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

//! `plugin …`: components in a running broker.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use millstream_client::FilterSpec;
use serde_json::{Value, json};

use crate::Global;
use crate::connect::{block_on, client};
use crate::exit::{Failure, Outcome};
use crate::output::{Table, hex};
use crate::values::{pair, size};

/// Components that this binary brings along.
const BUNDLED: [(&str, &[u8]); 2] = [
    (
        "json-filter",
        include_bytes!("../../../../plugins/dist/json-filter.wasm"),
    ),
    (
        "key-filter",
        include_bytes!("../../../../plugins/dist/key-filter.wasm"),
    ),
];

/// Deploy, list and remove components
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Deploy a component on a topic
    #[command(after_help = "\
COMPONENT is a .wasm file, or the name of a bundled one:
  json-filter   keeps records whose JSON value satisfies an expression (parameter expr)
  key-filter    keeps records whose key begins with one of some texts (parameter prefix)

Examples:
  millstream plugin deploy json-filter --topic orders --param 'expr=total > 100 && paid'
  millstream plugin deploy ./mine.wasm --topic orders --stage subscribe --name mine --on-error pass")]
    Deploy {
        /// File of the component, or name of a bundled one.
        component: String,
        /// Topic to deploy it on.
        #[arg(long)]
        topic: String,
        /// Name of the deployment. Default: the component's.
        #[arg(long)]
        name: Option<String>,
        /// Where it runs: before records are stored, or for every subscription.
        #[arg(long, default_value = "produce", value_parser = ["produce", "subscribe"])]
        stage: String,
        /// A parameter of the component; may be given several times.
        #[arg(short, long, value_parser = pair, value_name = "KEY=VALUE")]
        param: Vec<(String, String)>,
        /// What becomes of a batch when the component fails.
        #[arg(long, default_value = "reject", value_parser = ["reject", "pass", "drop"])]
        on_error: String,
        /// Memory of an instance, for example 16m. Default: the broker's.
        #[arg(long, value_parser = size, value_name = "SIZE")]
        memory: Option<usize>,
        /// Milliseconds that a batch may take. Default: the broker's.
        #[arg(long, value_name = "MS")]
        batch_ms: Option<u32>,
    },
    /// List what is deployed
    List {
        /// Also the bundled components.
        #[arg(long)]
        bundled: bool,
    },
    /// Take a component off a topic
    Remove {
        /// Name of the deployment.
        name: String,
        /// Topic that it is deployed on.
        #[arg(long)]
        topic: String,
    },
}

/// A bundled component by name.
pub(crate) fn bundled(name: &str) -> Option<&'static [u8]> {
    BUNDLED
        .iter()
        .find(|(bundled, _)| *bundled == name)
        .map(|(_, bytes)| *bytes)
}

pub(crate) fn run(command: Command, global: &Global) -> Outcome {
    block_on(async {
        let output = global.output;
        if matches!(command, Command::List { bundled: true }) {
            let mut table = Table::new(["BUNDLED", "BYTES"]);
            for (name, bytes) in BUNDLED {
                table.row([name.into(), bytes.len().to_string()]);
            }
            let json = BUNDLED
                .iter()
                .map(|(name, bytes)| json!({ "name": name, "bytes": bytes.len() }))
                .collect();
            return output.show(table.to_string(), &json);
        }
        let client = client(global).await?;
        let admin = client.admin();
        match command {
            Command::Deploy {
                component,
                topic,
                name,
                stage,
                param,
                on_error,
                memory,
                batch_ms,
            } => {
                let (default_name, bytes) = component_of(&component)?;
                let filter = FilterSpec {
                    name: name.unwrap_or(default_name),
                    topic,
                    stage,
                    parameters: param,
                    memory_bytes_max: memory.unwrap_or(0) as u64,
                    batch_ms_max: batch_ms.unwrap_or(0),
                    on_error,
                    ..FilterSpec::default()
                };
                let deployed = admin.deploy_filter(&filter, bytes).await?;
                let text = format!(
                    "deployed {} on {} at {}, digest {}",
                    deployed.name,
                    deployed.topic,
                    deployed.stage,
                    hex(&deployed.digest)
                );
                output.show(text, &filter_json(&deployed))?;
            }
            Command::List { .. } => {
                let filters = admin.list_filters().await?;
                let mut table = Table::new([
                    "NAME",
                    "TOPIC",
                    "STAGE",
                    "DIGEST",
                    "ON-ERROR",
                    "STATE",
                    "PARAMETERS",
                ]);
                for filter in &filters {
                    let parameters: Vec<_> = filter
                        .parameters
                        .iter()
                        .map(|(key, value)| format!("{key}={value}"))
                        .collect();
                    table.row([
                        filter.name.clone(),
                        filter.topic.clone(),
                        filter.stage.clone(),
                        hex(filter.digest.get(..6).unwrap_or_default()),
                        filter.on_error.clone(),
                        filter.state.clone(),
                        parameters.join(" "),
                    ]);
                }
                let text = if table.is_empty() {
                    "nothing is deployed".into()
                } else {
                    table.to_string()
                };
                output.show(text, &filters.iter().map(filter_json).collect::<Value>())?;
            }
            Command::Remove { name, topic } => {
                admin.remove_filter(&topic, &name).await?;
                output.show(
                    format!("removed {name} from {topic}"),
                    &json!({ "removed": name, "topic": topic }),
                )?;
            }
        }
        client.close().await;
        Ok(())
    })
}

/// A deployment as JSON.
pub(crate) fn filter_json(filter: &FilterSpec) -> Value {
    json!({
        "name": filter.name,
        "topic": filter.topic,
        "stage": filter.stage,
        "digest": hex(&filter.digest),
        "parameters": filter.parameters.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect::<serde_json::Map<_, _>>(),
        "memory_bytes_max": filter.memory_bytes_max,
        "batch_ms_max": filter.batch_ms_max,
        "on_error": filter.on_error,
        "state": filter.state,
    })
}

/// A component's default name and bytes: a file, or one that is bundled.
fn component_of(component: &str) -> Outcome<(String, Bytes)> {
    let path = Path::new(component);
    let is_path = component.contains(std::path::MAIN_SEPARATOR) || path.extension().is_some();
    if let Some(bytes) = bundled(component).filter(|_| !is_path) {
        return Ok((component.to_owned(), Bytes::from_static(bytes)));
    }
    let bytes = std::fs::read(path).map_err(|error| {
        let names: Vec<_> = BUNDLED.iter().map(|(name, _)| *name).collect();
        Failure::usage(format!(
            "{}: {error}; bundled components are {}",
            path.display(),
            names.join(", ")
        ))
    })?;
    let name = PathBuf::from(component)
        .file_stem()
        .map(|name| name.to_string_lossy().into_owned());
    Ok((name.unwrap_or_else(|| component.to_owned()), bytes.into()))
}

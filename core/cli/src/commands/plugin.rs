//! `plugin …`: components in a running broker.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use millstream_broker::{BUNDLED, Bundled, bundled};
use millstream_client::FilterSpec;
use serde_json::{Value, json};

use crate::Global;
use crate::connect::{block_on, client};
use crate::exit::{Failure, Outcome};
use crate::output::{Table, grouped, hex};
use crate::values::{milliseconds, pair, size, time};

/// Bytes of a library's words about a module in an error.
const WHY_BYTES_MAX: usize = 400;

/// Deploy, list and remove components
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Deploy a component on a topic; one of the same name there is replaced
    #[command(after_help = "\
COMPONENT is a .wasm file (a component, or a module that was built with the SDK), or the name of a bundled one:
  json-filter   keeps records whose JSON value satisfies an expression (parameter expr)
  key-filter    keeps records whose key begins with one of some texts (parameter prefix)
A subscription can use a bundled one without a deployment: `millstream sub --filter json-filter --param expr=…`.

Examples:
  millstream plugin deploy json-filter --topic orders --param 'expr=total > 100 && paid'
  millstream plugin deploy ./mine.wasm --topic orders --name mine --param prefix=eu- --on-error pass")]
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
        /// What becomes of a record that the component cannot judge, and of batches when it does not start.
        /// While it is paused all are refused.
        #[arg(long, default_value = "reject", value_parser = ["reject", "pass", "drop"], value_name = "WHAT")]
        on_error: String,
        /// Memory of an instance, for example 16m. Default: the broker's.
        #[arg(long, value_parser = size, value_name = "SIZE")]
        memory: Option<usize>,
        /// Milliseconds that a batch may take. Default: the broker's.
        #[arg(long, value_parser = milliseconds, value_name = "MS")]
        batch_ms: Option<u32>,
    },
    /// List what is deployed
    #[command(after_help = "\
Examples:
  millstream plugin list
  millstream plugin list --bundled")]
    List {
        /// The bundled components instead; needs no broker.
        #[arg(long)]
        bundled: bool,
    },
    /// Take a component off a topic
    #[command(after_help = "\
Example:
  millstream plugin deploy key-filter --topic orders --param prefix=eu-
  millstream plugin remove key-filter --topic orders")]
    Remove {
        /// Name of the deployment.
        name: String,
        /// Topic that it is deployed on.
        #[arg(long)]
        topic: String,
    },
}

pub(crate) fn run(command: Command, global: &Global) -> Outcome {
    block_on(async {
        let output = global.output;
        if matches!(command, Command::List { bundled: true }) {
            let mut table = Table::new(["BUNDLED", "BYTES", "WHAT IT DOES"]);
            for Bundled { name, about, wasm } in BUNDLED {
                table.row([name.into(), wasm.len().to_string(), about.into()]);
            }
            let json = BUNDLED
                .iter()
                .map(|b| json!({ "name": b.name, "bytes": b.wasm.len(), "about": b.about }));
            return output.list(table.to_string(), json);
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
                let there = admin.list_filters().await?;
                let is_replaced = there
                    .iter()
                    .any(|there| there.topic == filter.topic && there.name == filter.name);
                let deployed = admin.deploy_filter(&filter, bytes).await?;
                let text = format!(
                    "{} {} on {} at {}, digest {}",
                    if is_replaced { "replaced" } else { "deployed" },
                    deployed.name,
                    deployed.topic,
                    deployed.stage,
                    hex(&deployed.digest)
                );
                let mut json = filter_json(&deployed);
                json["replaced"] = is_replaced.into();
                output.show(text, &json)?;
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
                    "ERRORS",
                    "PARAMETERS",
                ]);
                for filter in &filters {
                    let parameters: Vec<_> = filter
                        .parameters
                        .iter()
                        .map(|(key, value)| match filter.values_hidden {
                            true => format!("{key}=(hidden)"),
                            false => format!("{key}={value}"),
                        })
                        .collect();
                    table.row([
                        filter.name.clone(),
                        filter.topic.clone(),
                        filter.stage.clone(),
                        hex(filter.digest.get(..6).unwrap_or_default()),
                        filter.on_error.clone(),
                        filter.state.clone(),
                        errors(filter),
                        parameters.join(" "),
                    ]);
                }
                let mut text = if table.is_empty() {
                    "nothing is deployed".into()
                } else {
                    table.to_string()
                };
                text.extend(filters.iter().filter_map(last_error));
                output.list(text, filters.iter().map(filter_json))?;
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

/// How many, and since when.
fn errors(filter: &FilterSpec) -> String {
    match filter.errors {
        0 => "-".to_owned(),
        errors => format!("{} since {}", grouped(errors), time(filter.errors_since_ms)),
    }
}

/// The last error of a deployment, in a line of its own below the table.
fn last_error(filter: &FilterSpec) -> Option<String> {
    (!filter.last_error.is_empty()).then(|| {
        let (name, topic) = (&filter.name, &filter.topic);
        let at = time(filter.last_error_at_ms);
        format!(
            "\n{name} on {topic}, last error at {at}: {}",
            filter.last_error
        )
    })
}

/// A deployment as JSON.
pub(crate) fn filter_json(filter: &FilterSpec) -> Value {
    json!({
        "name": filter.name,
        "topic": filter.topic,
        "stage": filter.stage,
        "digest": hex(&filter.digest),
        "parameters": filter.parameters.iter().map(|(key, value)| (key.clone(), (!filter.values_hidden).then(|| value.clone()).into())).collect::<serde_json::Map<_, _>>(),
        "memory_bytes_max": filter.memory_bytes_max,
        "batch_ms_max": filter.batch_ms_max,
        "on_error": filter.on_error,
        "state": filter.state,
        "values_hidden": filter.values_hidden,
        "errors": filter.errors,
        "errors_since": some_time(filter.errors_since_ms),
        "last_error": (!filter.last_error.is_empty()).then_some(&filter.last_error),
        "last_error_at": some_time(filter.last_error_at_ms),
    })
}

fn some_time(ms: i64) -> Option<String> {
    (ms != 0).then(|| time(ms))
}

/// A component's default name and bytes: a file, or one that is bundled.
fn component_of(component: &str) -> Outcome<(String, Bytes)> {
    let path = Path::new(component);
    let is_path = component.contains(std::path::MAIN_SEPARATOR) || path.extension().is_some();
    if let Some(bundled) = bundled(component).filter(|_| !is_path) {
        return Ok((component.to_owned(), Bytes::from_static(bundled.wasm)));
    }
    let bytes = std::fs::read(path).map_err(|error| {
        let names: Vec<_> = BUNDLED.iter().map(|bundled| bundled.name).collect();
        Failure::usage(format!(
            "{}: {error}; bundled components are {}",
            path.display(),
            names.join(", ")
        ))
    })?;
    let name = PathBuf::from(component)
        .file_stem()
        .map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_else(|| component.to_owned());
    Ok((name, wrapped(bytes, path)?.into()))
}

/// A core module that the SDK built becomes the component that it describes; all else stays as it is.
fn wrapped(bytes: Vec<u8>, path: &Path) -> Outcome<Vec<u8>> {
    const CORE_MODULE: &[u8; 8] = b"\0asm\x01\0\0\0";
    if !bytes.starts_with(CORE_MODULE) {
        return Ok(bytes);
    }
    let refused = |why: String| {
        Failure::usage(format!(
            "{}: this core module is not of the SDK, or of another version of it: {why}; build it with the \
             SDK of this version (plugins/README.md), or deploy a component",
            path.display()
        ))
    };
    if memchr::memmem::find(&bytes, b"component-type:").is_none() {
        return Err(refused("it does not say for which world it is".to_owned()));
    }
    let encoder = wit_component::ComponentEncoder::default()
        .validate(true)
        .module(&bytes);
    encoder
        .and_then(|mut encoder| encoder.encode())
        .map_err(|error| {
            let mut why = format!("{error:#}");
            why.truncate(why.floor_char_boundary(WHY_BYTES_MAX));
            refused(why)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_module_of_the_sdk_is_told_so_and_components_stay() {
        let path = Path::new("x.wasm");
        let module = b"\0asm\x01\0\0\0".to_vec();
        let refused = wrapped(module, path).expect_err("it describes no world");
        assert!(format!("{refused:?}").contains("SDK"), "{refused:?}");
        for bundled in BUNDLED {
            let same = wrapped(bundled.wasm.to_vec(), path).expect("a component");
            assert_eq!(same, bundled.wasm);
        }
    }
}

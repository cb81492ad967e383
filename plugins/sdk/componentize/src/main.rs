//! Turns a core module that the SDK built into a component, and makes the description of the worlds
//! that the SDK puts into such modules. `wasm-tools component new` does the first as well; this is the
//! same code, pinned.
//!
//! Deliberately absent: compiling (cargo does) and checking what a component does (the broker does).

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context as _, Result, bail};
use wit_component::{ComponentEncoder, StringEncoding};
use wit_parser::Resolve;

const USAGE: &str = "usage: componentize module INPUT.wasm OUTPUT.wasm\n       \
                     componentize world WIT_DIR WORLD OUTPUT";

fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["module", input, output] => module(Path::new(input), Path::new(output)),
        ["world", wit, world, output] => describe(Path::new(wit), world, Path::new(output)),
        _ => bail!(USAGE),
    }
}

/// Wraps a core module. Its custom section `component-type:…` says which world it is made for.
fn module(input: &Path, output: &Path) -> Result<()> {
    let module = fs::read(input).with_context(|| format!("reading {}", input.display()))?;
    let component = ComponentEncoder::default()
        .validate(true)
        .module(&module)
        .context("this module was not built with the SDK, or for another world")?
        .encode()
        .context("the module does not fit its world")?;
    write(output, &component)
}

/// The binary description of a world: what the SDK embeds as `component-type:…`.
fn describe(wit: &Path, world: &str, output: &Path) -> Result<()> {
    let mut resolve = Resolve::default();
    let (package, _) = resolve
        .push_dir(wit)
        .with_context(|| format!("reading {}", wit.display()))?;
    let world = resolve
        .select_world(&[package], Some(world))
        .with_context(|| format!("no world {world} in {}", wit.display()))?;
    let bytes =
        wit_component::metadata::encode(&resolve, world, StringEncoding::UTF8, None, false)?;
    write(output, &bytes)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let parent: PathBuf = path.parent().map(Path::to_owned).unwrap_or_default();
    if !parent.as_os_str().is_empty() {
        fs::create_dir_all(&parent).with_context(|| format!("making {}", parent.display()))?;
    }
    fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
}

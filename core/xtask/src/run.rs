//! Running other programs, and installing what they need.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// The workspace's root: of the checkout that `cargo xtask` was called in, which need not be the one this
/// program was built in when two share a target directory.
pub(crate) fn root() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR");
    manifest
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from)
        .ancestors()
        .nth(2)
        .expect("core/xtask is two below the root")
        .to_path_buf()
}

/// Where build products go: what cargo would use.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A command in the root, with the arguments in one string split at blanks.
pub(crate) fn command(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let program = words.next().expect("a program");
    let program = if program == "cargo" {
        std::env::var("CARGO").unwrap_or_else(|_| "cargo".into())
    } else {
        program.into()
    };
    let mut command = Command::new(program);
    command.args(words).current_dir(root());
    command
}

/// Run it, showing what is run; an exit code other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    println!("$ {shown}");
    let status = command
        .status()
        .with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

fn show(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    std::iter::once(program)
        .chain(command.get_args().map(|a| a.to_string_lossy().into_owned()))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether a program is on the PATH.
pub(crate) fn has(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|d| d.join(program).is_file()))
}

/// Install Debian packages unless `probe` (a path or a program) is there already.
pub(crate) fn debian(probe: &str, packages: &[&str]) -> Result<()> {
    if Path::new(probe).exists() || has(probe) {
        return Ok(());
    }
    println!("installing {} (missing: {probe})", packages.join(" "));
    if !has("apt-get") {
        bail!(
            "`{probe}` is missing and this system has no apt-get: install {} by hand",
            packages.join(" ")
        );
    }
    run(&mut command("apt-get update -q"))?;
    run(command("apt-get install -q -y --no-install-recommends")
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive"))
}

/// A Python virtual environment below the target directory, with `requirements` installed.
/// Returns its interpreter.
pub(crate) fn python(name: &str, requirements: &str) -> Result<PathBuf> {
    debian("python3", &["python3", "python3-venv"])?;
    let venv = target_dir().join("venv").join(name);
    let python = venv.join("bin/python");
    let stamp = venv.join("requirements.installed");
    let wanted = std::fs::read_to_string(requirements)
        .with_context(|| format!("cannot read {requirements}"))?;
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    println!(
        "installing the Python packages of {requirements} into {}",
        venv.display()
    );
    if run(command("python3 -m venv --clear").arg(&venv)).is_err() {
        debian("/nonexistent", &["python3-venv"])?; // Debian's python3 comes without ensurepip
        run(command("python3 -m venv --clear").arg(&venv))?;
    }
    let mut pip = Command::new(&python);
    run(pip
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-r",
            requirements,
        ])
        .current_dir(root()))?;
    std::fs::write(stamp, wanted)?;
    Ok(python)
}

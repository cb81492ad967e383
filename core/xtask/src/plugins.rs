//! `cargo xtask plugins`: the bundled components, from source to `plugins/dist`.
//!
//! A component is built by whichever compiler for WebAssembly there is: a rustup toolchain with the
//! target `wasm32-unknown-unknown` or `wasm32-wasip2`, or a system compiler together with the source of
//! its standard library, which is then built too. `plugins/dist/TOOLCHAIN` names the one that the
//! committed bytes come from: with that one, `--check` compares bytes; with another, it runs the
//! sandbox's tests on what it has built.
//!
//! Nothing of the machine gets into the bytes: locked dependencies, no debug information, and every path
//! is replaced. Deliberately absent: wrapping modules into components, which a small program in
//! `plugins/sdk/componentize` does, so that this one builds fast.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::run::{self, command, debian, root, target_dir};

/// A component that ships is in the repository, so it is small.
const COMPONENT_BYTES_MAX: u64 = 1 << 20;
/// Worlds in `wit/` that the SDK describes to the linker.
const WORLDS: [&str; 1] = ["filter"];
const BARE: &str = "wasm32-unknown-unknown";
const WASI: &str = "wasm32-wasip2";
/// The processor's vector instructions, which every broker has.
const SIMD: &str = "-Ctarget-feature=+simd128";
/// Where Debian's packages put a compiler and the source of its standard library.
const SYSTEM_RUSTC: &str = "/usr/bin/rustc";
const SYSTEM_SOURCE: &str = "lib/rustlib/src/rust";

/// Builds all bundled components; with `check`, changes nothing and fails if the committed ones differ.
pub(crate) fn run(check: bool) -> Result<()> {
    let products = target_dir().join("plugins");
    let componentize = build_componentize(&products)?;
    describe_worlds(&componentize, &products, check)?;

    let pinned = fs::read_to_string(dist().join("TOOLCHAIN")).unwrap_or_default();
    let toolchain = Toolchain::choose(&pinned)?;
    println!("{}", toolchain.describe()?);
    let names = bundled()?;
    build(&toolchain, &names, &products)?;
    let built = products.join("components");
    for name in &names {
        let component = built.join(name).with_extension("wasm");
        let module = products
            .join(toolchain.target)
            .join("release")
            .join(name.replace('-', "_"))
            .with_extension("wasm");
        if toolchain.target == WASI {
            fs::copy(&module, &component)?; // its linker makes components
        } else {
            run::run(
                command_at(&componentize)
                    .arg("module")
                    .arg(&module)
                    .arg(&component),
            )?;
        }
        let bytes = fs::metadata(&component)?.len();
        println!("{name}: {bytes} bytes");
        ensure!(
            bytes <= COMPONENT_BYTES_MAX,
            "{name} has {bytes} bytes, more than the {COMPONENT_BYTES_MAX} that a bundled component may have"
        );
    }

    page(&toolchain, &products, &componentize)?;

    if !check {
        for name in &names {
            let file = Path::new(name).with_extension("wasm");
            fs::copy(built.join(&file), dist().join(&file))?;
        }
        return Ok(fs::write(dist().join("TOOLCHAIN"), toolchain.describe()?)?);
    }
    if toolchain.describe()? == pinned {
        compare(&names, &built)
    } else {
        println!(
            "not the toolchain of plugins/dist/TOOLCHAIN, so behaviour is compared and not bytes"
        );
        run::run(
            command("cargo test --locked -p millstream-sandbox --test bundled")
                .env("MILLSTREAM_PLUGINS_DIST", &built),
        )
    }
}

/// The crate of `plugins/README.md`, as it stands there, passes its test, and makes a component.
fn page(toolchain: &Toolchain, products: &Path, componentize: &Path) -> Result<()> {
    let text = fs::read_to_string(root().join("plugins/README.md"))?;
    let block = |language: &str| {
        let (_, rest) = text
            .split_once(&format!("```{language}\n"))
            .with_context(|| format!("plugins/README.md has no block of {language}"))?;
        let (block, _) = rest.split_once("```").context("it does not end")?;
        Ok::<_, anyhow::Error>(block.to_owned())
    };
    let manifest = block("toml")?;
    let clone = "\"../millstream/plugins/sdk/rust\"";
    ensure!(
        manifest.contains(clone),
        "the page's crate takes the SDK from {clone}"
    );
    let sdk = root().join("plugins/sdk/rust");
    let manifest = manifest.replace(clone, &format!("{:?}", sdk.display().to_string()));
    let dir = products.join("page/big-orders");
    fs::create_dir_all(dir.join("src"))?;
    // A workspace of its own, wherever the target directory lies.
    fs::write(dir.join("Cargo.toml"), format!("{manifest}\n[workspace]\n"))?;
    fs::write(dir.join("src/lib.rs"), block("rust")?)?;
    run::run(
        command("cargo test --quiet")
            .current_dir(&dir)
            .env("CARGO_TARGET_DIR", products),
    )?;
    let mut cargo = cargo(toolchain, &dir, products);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags(toolchain)?);
    run::run(&mut cargo)?;
    let release = products.join(toolchain.target).join("release");
    if toolchain.target == BARE {
        run::run(
            command_at(componentize)
                .arg("module")
                .arg(release.join("big_orders.wasm"))
                .arg(dir.join("big-orders.wasm")),
        )?;
    }
    Ok(())
}

/// Builds the crate in a folder, which need not be of this repository, with whichever compiler there is, and
/// prints where the module is: `millstream plugin deploy` takes it as it is.
pub(crate) fn one(dir: &Path) -> Result<()> {
    let dir = fs::canonicalize(dir).with_context(|| format!("no folder {}", dir.display()))?;
    ensure!(
        dir.join("Cargo.toml").is_file(),
        "{} is no crate",
        dir.display()
    );
    // Not the pinned one: bytes are compared with nothing, and one with a standard library is fast.
    let toolchain = Toolchain::choose("")?;
    let products = dir.join("target");
    let mut cargo = cargo(&toolchain, &dir, &products);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", SIMD);
    run::run(&mut cargo)?;
    let release = products.join(toolchain.target).join("release");
    let mut modules = Vec::new();
    for entry in fs::read_dir(&release).with_context(|| format!("reading {}", release.display()))? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "wasm")
        {
            modules.push(path);
        }
    }
    modules.sort();
    ensure!(
        !modules.is_empty(),
        "nothing was built: Cargo.toml needs `crate-type = [\"cdylib\"]` under [lib]"
    );
    for module in modules {
        println!("{}", module.display());
    }
    Ok(())
}

/// A compiler for WebAssembly.
struct Toolchain {
    rustc: PathBuf,
    target: &'static str,
    /// Source of the standard library, when it has to be built as well.
    source: Option<PathBuf>,
    linker: Option<PathBuf>,
}

impl Toolchain {
    /// The pinned one if it is here, else the first that can do it.
    fn choose(pinned: &str) -> Result<Self> {
        if let Some(found) = Self::pick(pinned) {
            return Ok(found);
        }
        if debian(
            "/usr/lib/rustlib/src/rust/library/std",
            &["rustc-web", "rust-web-src"],
        )
        .is_ok()
            && let Some(found) = Self::pick(pinned)
        {
            return Ok(found);
        }
        bail!(
            "no Rust compiler for WebAssembly is here: `rustup target add {BARE}`, or on Debian \
             `apt-get install rustc-web rust-web-src`"
        );
    }

    fn pick(pinned: &str) -> Option<Self> {
        let mut found = Self::all();
        let pinned = found
            .iter()
            .position(|toolchain| toolchain.describe().is_ok_and(|text| text == pinned));
        (!found.is_empty()).then(|| found.swap_remove(pinned.unwrap_or(0)))
    }

    fn all() -> Vec<Self> {
        let rustc = PathBuf::from(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        let mut found = Vec::new();
        for target in [BARE, WASI] {
            let libraries =
                output(Command::new(&rustc).args(["--print", "target-libdir", "--target", target]));
            if libraries.is_ok_and(|dir| Path::new(&dir).is_dir()) {
                found.push(Self {
                    rustc: rustc.clone(),
                    target,
                    source: None,
                    linker: None,
                });
            }
        }
        let system = Path::new(SYSTEM_RUSTC);
        if let Ok(sysroot) = output(Command::new(system).args(["--print", "sysroot"])) {
            let source = Path::new(&sysroot).join(SYSTEM_SOURCE);
            if source.join("library/std").is_dir()
                && let Some(linker) = linker(&rustc)
            {
                found.push(Self {
                    rustc: system.into(),
                    target: BARE,
                    source: Some(source),
                    linker: Some(linker),
                });
            }
        }
        found
    }

    /// All that the bytes depend on beside the sources and locks.
    fn describe(&self) -> Result<String> {
        let rustc = output(Command::new(&self.rustc).arg("--version"))?;
        let cargo = output(&mut command("cargo --version"))?;
        let linker = match &self.linker {
            Some(linker) => output(Command::new(linker).args(["-flavor", "wasm", "--version"]))?,
            None => "of the compiler".into(),
        };
        let std = if self.source.is_some() {
            "built"
        } else {
            "as shipped"
        };
        let target = self.target;
        Ok(format!(
            "{rustc}\n{cargo}\nlinker: {linker}\ntarget: {target}\nstandard library: {std}\n"
        ))
    }
}

/// The linker for WebAssembly that comes with a rustup toolchain, or is on the path.
fn linker(rustc: &Path) -> Option<PathBuf> {
    let sysroot = PathBuf::from(output(Command::new(rustc).args(["--print", "sysroot"])).ok()?);
    let hosts = fs::read_dir(sysroot.join("lib/rustlib")).ok()?;
    let mut shipped = hosts.filter_map(|host| Some(host.ok()?.path().join("bin/rust-lld")));
    shipped
        .find(|path| path.is_file())
        .or_else(|| run::has("rust-lld").then(|| "rust-lld".into()))
}

fn build_componentize(products: &Path) -> Result<PathBuf> {
    run::run(
        command("cargo build --locked --manifest-path plugins/Cargo.toml -p componentize")
            .env("CARGO_TARGET_DIR", products),
    )?;
    Ok(products.join("debug/componentize"))
}

/// The SDK holds the binary description of each world; `wit/` is where it comes from.
fn describe_worlds(componentize: &Path, products: &Path, check: bool) -> Result<()> {
    for world in WORLDS {
        let committed = root()
            .join("plugins/sdk/rust/src")
            .join(world)
            .with_extension("world");
        let made = products.join("worlds").join(world).with_extension("world");
        run::run(
            command_at(componentize)
                .args(["world", "wit", world])
                .arg(&made),
        )?;
        if !check {
            fs::copy(&made, &committed)?;
        } else if fs::read(&made)? != fs::read(&committed).unwrap_or_default() {
            bail!(
                "{} is not made from wit/: run `cargo xtask plugins`",
                committed.display()
            );
        }
    }
    Ok(())
}

fn build(toolchain: &Toolchain, names: &[String], products: &Path) -> Result<()> {
    // In the workspace itself, so that paths in panic messages are relative to it.
    let mut cargo = cargo(toolchain, &root().join("plugins"), products);
    cargo
        .arg("--locked")
        .env("CARGO_ENCODED_RUSTFLAGS", flags(toolchain)?);
    for name in names {
        cargo.args(["-p", name]);
    }
    run::run(&mut cargo)
}

/// A release build of a crate or workspace with this compiler.
fn cargo(toolchain: &Toolchain, dir: &Path, products: &Path) -> Command {
    let mut cargo = command("cargo build --release");
    cargo
        .current_dir(dir)
        .args(["--target", toolchain.target])
        .env("CARGO_TARGET_DIR", products)
        .env("RUSTC", &toolchain.rustc)
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    if toolchain.source.is_some() {
        cargo
            .arg("-Zbuild-std=std,panic_abort")
            .env("RUSTC_BOOTSTRAP", "1");
    }
    if let Some(linker) = &toolchain.linker {
        let variable = format!(
            "CARGO_TARGET_{}_LINKER",
            toolchain.target.to_uppercase().replace('-', "_")
        );
        cargo.env(variable, linker);
    }
    cargo
}

/// SIMD, and names instead of this machine's paths.
fn flags(toolchain: &Toolchain) -> Result<OsString> {
    let mut flags = vec![OsString::from(SIMD)];
    let mut remap = |path: &Path, name: &str| {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(path);
        flag.push("=");
        flag.push(name);
        flags.push(flag);
    };
    remap(&root().join("plugins"), "plugins");
    if let Some(source) = &toolchain.source {
        remap(source, "rust");
        // The compiler knows the place behind the link as well.
        remap(&fs::canonicalize(source)?, "rust");
    }
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let registries = home.map(|home| home.join("registry/src"));
    // It is there: `componentize` has just been built from it.
    if let Some(Ok(registries)) = registries.map(fs::read_dir) {
        for registry in registries {
            remap(&registry?.path(), "crates");
        }
    }
    Ok(flags.join(&OsString::from("\x1f")))
}

fn compare(names: &[String], built: &Path) -> Result<()> {
    let mut different = Vec::new();
    for name in names {
        let file = Path::new(name).with_extension("wasm");
        let committed = fs::read(dist().join(&file)).unwrap_or_default();
        if fs::read(built.join(&file))? != committed {
            different.push(name.as_str());
        }
    }
    let mut stray = Vec::new();
    for entry in fs::read_dir(dist())? {
        let path = entry?.path();
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.extension().is_some_and(|e| e == "wasm") && !names.contains(&name) {
            stray.push(name);
        }
    }
    ensure!(
        different.is_empty() && stray.is_empty(),
        "plugins/dist is not what the sources make (different: {different:?}, without source: {stray:?}): \
         run `cargo xtask plugins` and commit plugins/dist"
    );
    println!(
        "plugins/dist: {} components, byte for byte what the sources make",
        names.len()
    );
    Ok(())
}

/// Names of the bundled components, sorted.
fn bundled() -> Result<Vec<String>> {
    let dir = root().join("plugins/bundled");
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        if path.join("Cargo.toml").is_file() {
            names.push(
                path.file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
            );
        }
    }
    names.sort();
    Ok(names)
}

fn dist() -> PathBuf {
    root().join("plugins/dist")
}

fn command_at(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// The standard output of a program that succeeds, without its line end.
fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed");
    Ok(String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned())
}

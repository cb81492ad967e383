//! Where examples are run: a directory with a broker of `millstream dev`, and with the files, topics and programs that
//! the examples speak of.
//!
//! An example is changed in three ways only: paths of the system are below the stage, fixed ports are free ones, and
//! measurements are short.

use std::io::Read;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use millstream_e2e::{binary, bundled};

use crate::guest;
const PATIENCE: Duration = Duration::from_secs(8);

/// Passes every filter of the examples.
const RECORD: &str = r#"{"total":150,"paid":true,"level":"error"}"#;

pub(crate) struct Stage {
    root: tempfile::TempDir,
    broker: Option<Running>,
    directories: u32,
    props: Vec<Child>,
}

impl Stage {
    pub(crate) fn new() -> Result<Self> {
        let root = tempfile::tempdir()?;
        let path = root.path();
        for directory in [
            "bin",
            "home",
            "etc",
            "var/lib/millstream",
            ".config/fish/completions",
        ] {
            std::fs::create_dir_all(path.join(directory))?;
        }
        std::os::unix::fs::symlink(binary(), path.join("bin/millstream"))?;
        program(
            &path.join("bin/journalctl"),
            r#"while echo '{"PRIORITY":"3","MESSAGE":"one"}'; do sleep 0.1; done"#,
        )?;
        let config = format!("data = \"{}\"\n", path.join("var/lib/served").display());
        std::fs::write(path.join("etc/millstream.toml"), config)?;
        // Processes whose name holds `ssh`.
        let sleeper = path.join("bin/ssh-of-the-stage");
        let sleep = ["/usr/bin/sleep", "/bin/sleep"]
            .into_iter()
            .find(|sleep| Path::new(sleep).exists())
            .context("there is a sleep")?;
        std::fs::copy(sleep, &sleeper)?;
        let mut stage = Self {
            root,
            broker: None,
            directories: 0,
            props: Vec::new(),
        };
        for _ in 0..5 {
            stage
                .props
                .push(Command::new(&sleeper).arg("3600").spawn()?);
        }
        props(&stage.home())?;
        stage.start_broker()?;
        Ok(stage)
    }

    /// The topics and groups that the help texts speak of, as new, and a deployed filter for examples that
    /// name one.
    pub(crate) fn furnish(&mut self, examples: &[String]) -> Result<()> {
        self.start_broker()?;
        let deploys = if examples.iter().any(|example| example.contains("--filter ")) {
            "millstream plugin deploy json-filter --topic payments --stage subscribe --param 'expr=total > 0'"
        } else {
            ""
        };
        let script = format!(
            "millstream topic delete orders 2> /dev/null
             millstream topic delete copy 2> /dev/null
             set -e
             millstream topic create orders --partitions 4
             millstream topic create copy
             for number in $(seq 50); do echo '{RECORD}'; done | millstream pub orders --partition 0
             for key in a b c d e f; do echo $key='{RECORD}'; done | millstream pub orders --key-separator =
             if [ ! -e furnished ]; then
               millstream topic create orders-eu
               millstream topic create payments
               millstream pub orders-eu '{RECORD}'
               millstream pub payments '{RECORD}'
               touch furnished
             fi
             for group in billing billing-old; do
               millstream sub orders --group $group --exit-at-end > /dev/null
             done
             {deploys}"
        );
        self.shell(&script, &self.home())?.ended()
    }

    /// Run one example.
    pub(crate) fn run(&mut self, example: &str) -> Result<()> {
        let text = self.adapted(example);
        if text.contains("millstream log ") {
            self.stop_broker()?; // it looks into a directory while no broker runs on it
        } else {
            self.start_broker()?;
        }
        if text.contains("topic create orders") {
            let delete = "millstream topic delete orders 2> /dev/null || true";
            self.shell(delete, &self.home())?.ended()?;
        }
        let serves = ["millstream dev", "millstream serve"]
            .iter()
            .any(|command| text.contains(command));
        let directory = if serves {
            self.directories += 1;
            let directory = self.root.path().join(format!("home-{}", self.directories));
            std::fs::create_dir(&directory)?;
            props(&directory)?;
            directory
        } else {
            self.home()
        };
        let mut running = self.shell(&text, &directory)?;
        if !is_endless(&text) {
            return running.ended();
        }
        let shows = |out: &str| match () {
            () if text.contains("--demo") => out.contains("demo/"),
            () if serves => out.contains("ready") || out.contains("serving"),
            () => !out.is_empty(),
        };
        let begun = Instant::now();
        while !shows(&running.out()) {
            ensure!(
                running.child.try_wait()?.is_none(),
                "it ended by itself:\n{}",
                running.out()
            );
            ensure!(
                begun.elapsed() < PATIENCE,
                "it shows nothing:\n{}",
                running.out()
            );
            if text.contains("millstream sub") {
                let topic = if text.contains("logs") {
                    "logs"
                } else {
                    "orders"
                };
                self.shell(&format!("millstream pub {topic} '{RECORD}'"), &self.home())?
                    .ended()?;
            } else {
                std::thread::park_timeout(Duration::from_millis(20));
            }
        }
        running.interrupt()?;
        // What is interrupted with its source may end as that does.
        running.ended_by(!text.contains(" | "))
    }

    fn adapted(&self, example: &str) -> String {
        let root = self.root.path().display();
        let text = example
            .replace("/var/lib/", &format!("{root}/var/lib/"))
            .replace("/etc/", &format!("{root}/etc/"))
            .replace("broker.example:7411", &self.context("url"))
            .replace(":7411", ":0")
            .replace(":7412", ":0");
        let mut words: Vec<&str> = text.split(' ').collect();
        for at in 1..words.len() {
            let is_number = words[at].starts_with(|first: char| first.is_ascii_digit());
            if words[at - 1] == "--records" && is_number {
                words[at] = "2000";
            }
        }
        words.join(" ")
    }

    /// What the context file of the stage's broker says.
    fn context(&self, key: &str) -> String {
        let file = std::fs::read_to_string(self.home().join(".millstream/context.toml"));
        let start = format!("{key} = \"");
        file.unwrap_or_default()
            .lines()
            .find_map(|line| line.strip_prefix(&start)?.strip_suffix('"'))
            .unwrap_or_default()
            .trim_start_matches("millstream://")
            .to_owned()
    }

    fn home(&self) -> PathBuf {
        self.root.path().join("home")
    }

    fn start_broker(&mut self) -> Result<()> {
        if self.broker.is_none() {
            let running = self.shell("exec millstream dev", &self.home())?;
            let begun = Instant::now();
            while !running.out().contains("is ready") {
                ensure!(begun.elapsed() < PATIENCE, "no broker: {}", running.out());
                std::thread::park_timeout(Duration::from_millis(10));
            }
            self.broker = Some(running);
            let context = std::fs::read_to_string(self.home().join(".millstream/context.toml"))?;
            let authority = context.split("\"\"\"").nth(1).unwrap_or_default();
            std::fs::write(self.home().join("ca.pem"), authority)?;
        }
        Ok(())
    }

    fn stop_broker(&mut self) -> Result<()> {
        match self.broker.take() {
            None => Ok(()),
            Some(mut running) => {
                running.interrupt()?;
                running.ended()
            }
        }
    }

    fn shell(&self, text: &str, directory: &Path) -> Result<Running> {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut child = Command::new("bash")
            .args(["-o", "pipefail", "-c", text])
            .current_dir(directory)
            .env(
                "PATH",
                format!("{}:{path}", self.root.path().join("bin").display()),
            )
            .env("MILLSTREAM_LISTEN", "127.0.0.1:0")
            .env("MILLSTREAM_HTTP", "127.0.0.1:0")
            .env_remove("MILLSTREAM_CONTEXT")
            .env_remove("XDG_CONFIG_HOME")
            .env("HOME", self.root.path())
            .envs(
                text.contains("--url")
                    .then(|| ("MILLSTREAM_TOKEN", self.context("token"))),
            )
            .env("TOKEN", self.context("token"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let out = Arc::default();
        let readers = vec![
            collect(child.stdout.take().context("piped")?, Arc::clone(&out)),
            collect(child.stderr.take().context("piped")?, Arc::clone(&out)),
        ];
        Ok(Running {
            child,
            out,
            readers,
        })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for prop in &mut self.props {
            drop(prop.kill());
            drop(prop.wait());
        }
    }
}

/// Whether an example goes on until Ctrl-C.
fn is_endless(text: &str) -> bool {
    let has = |words: &[&str]| text.split_whitespace().any(|word| words.contains(&word));
    if text.contains("millstream dev")
        || text.contains("millstream serve")
        || has(&["--watch"])
        || text.contains("millstream demo") && !has(&["--count", "-n"])
    {
        return true;
    }
    text.contains("millstream sub") && !has(&["--count", "-n", "--exit-at-end", "-e", "--until"])
}

/// Files that the examples name.
fn props(directory: &Path) -> Result<()> {
    let lines = "a:1\nb:2\n";
    let log = format!("{RECORD}\n");
    let config = "shards = 1\n";
    for (name, content) in [
        ("lines-with-keys.txt", lines.as_bytes()),
        ("app.log", log.as_bytes()),
        ("invoice.pdf", b"%PDF\r\n\xff"),
        ("scan.png", b"\x89PNG\r\n\0"),
        ("millstream.toml", config.as_bytes()),
        ("FILE", b"# every setting has its default\n"),
    ] {
        std::fs::write(directory.join(name), content)?;
    }
    std::fs::copy(bundled("key-filter"), directory.join("mine.wasm"))?;
    // What the page on plugins builds beside the clone.
    let built = directory.join("../big-orders/target/wasm32-unknown-unknown/release");
    std::fs::create_dir_all(&built)?;
    let keep = "(call $all (call $records (local.get 8)))";
    let text = guest::wat_component_text("", keep, "", "");
    std::fs::write(built.join("big_orders.wasm"), wat::parse_str(text)?)?;
    Ok(())
}

fn program(path: &Path, script: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, format!("#!/bin/sh\n{script}\n"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// A shell with everything it started. Killed when dropped.
struct Running {
    child: Child,
    out: Arc<Mutex<String>>,
    readers: Vec<std::thread::JoinHandle<()>>,
}

impl Running {
    /// Everything printed so far.
    fn out(&self) -> String {
        self.out.lock().expect("nobody panics with it").clone()
    }

    fn interrupt(&self) -> Result<()> {
        self.signal("-INT")
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let status = Command::new("kill")
            .args([signal, "--", &format!("-{}", self.child.id())])
            .stderr(Stdio::null())
            .status()?;
        ensure!(status.success(), "the process takes a signal");
        Ok(())
    }

    /// Wait for success.
    fn ended(&mut self) -> Result<()> {
        self.ended_by(true)
    }

    fn ended_by(&mut self, itself: bool) -> Result<()> {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if begun.elapsed() > PATIENCE {
                bail!("it does not end:\n{}", self.out());
            }
            std::thread::park_timeout(Duration::from_millis(5));
        };
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        // By Ctrl-C, or by SIGPIPE where the end of a pipe went before its source.
        let interrupted = status.signal().is_some() || matches!(status.code(), Some(130 | 141));
        ensure!(
            status.success() || !itself && interrupted,
            "{status}:\n{}",
            self.out()
        );
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            drop(self.signal("-KILL"));
            drop(self.child.wait());
        }
    }
}

fn collect(
    mut from: impl Read + Send + 'static,
    into: Arc<Mutex<String>>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut block = [0; 4_096];
        while let Ok(count @ 1..) = from.read(&mut block) {
            into.lock()
                .expect("nobody panics with it")
                .push_str(&String::from_utf8_lossy(&block[..count]));
        }
    })
}

//! The real binary under test: start it, stop it, kill it, run its commands. No knowledge of its insides.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// How long anything may take before a test calls it hung. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often other ports are tried when the chosen ones were taken meanwhile.
const PORT_TRIES: u32 = 5;

/// The product's binary: `MILLSTREAM_BIN`, or built now.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("MILLSTREAM_BIN") {
            return path.into();
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["build", "--quiet", "-p", "millstream-cli"])
            .status()
            .expect("cargo runs");
        assert!(status.success(), "the product builds");
        let test = std::env::current_exe().expect("a test knows its own path");
        let target = test
            .ancestors()
            .find(|a| a.join("millstream").is_file())
            .expect("the binary stands beside the tests");
        target.join("millstream")
    })
}

/// A component that ships with the broker.
pub fn bundled(name: &str) -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this");
    let dist = Path::new(&package).join("../../plugins/dist");
    dist.join(name).with_extension("wasm")
}

/// A running broker on its own directory and ports. Killed when dropped.
#[derive(Debug)]
pub struct Broker {
    child: Child,
    data: PathBuf,
    listen: u16,
    http: u16,
    log: Arc<Mutex<Vec<String>>>,
}

/// How to start a broker.
#[derive(Debug)]
pub struct Options {
    data: PathBuf,
    arguments: Vec<String>,
    listen: Option<u16>,
    address: Option<String>,
    wrapper: Vec<String>,
    settings: Vec<(String, String)>,
}

impl Options {
    /// `serve` on `data` with free loopback ports.
    pub fn on(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            arguments: Vec::new(),
            listen: None,
            address: None,
            wrapper: Vec::new(),
            settings: Vec::new(),
        }
    }

    /// Further arguments of `serve`, split at blanks.
    #[must_use]
    pub fn with(mut self, arguments: &str) -> Self {
        self.arguments
            .extend(arguments.split_whitespace().map(str::to_owned));
        self
    }

    /// A setting by its environment variable, without the prefix: `LOG__SEGMENT_BYTES`.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings
            .push((format!("MILLSTREAM_{name}"), value.to_owned()));
        self
    }

    /// Listen on this UDP port: what a restarted broker needs so that its clients find it again.
    #[must_use]
    pub fn listen(mut self, port: u16) -> Self {
        self.listen = Some(port);
        self
    }

    /// Listen on this UDP address and port.
    #[must_use]
    pub fn address(mut self, address: &str) -> Self {
        self.address = Some(address.to_owned());
        self
    }

    /// Start through another program, which must `exec` what follows its own arguments.
    #[must_use]
    pub fn through<S: Into<String>>(mut self, wrapper: impl IntoIterator<Item = S>) -> Self {
        self.wrapper = wrapper.into_iter().map(Into::into).collect();
        self
    }

    /// Start and wait until `/readyz` says yes.
    pub fn start(self) -> Result<Broker> {
        let mut tries = 0..PORT_TRIES;
        loop {
            let mut broker = self.spawn()?;
            match broker.wait_ready() {
                Ok(()) => return Ok(broker),
                // Between the look for a free port and the broker's start another program took it.
                Err(_) if self.lost_a_port(&broker) && tries.next().is_some() => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether a port that was chosen here was taken when the broker wanted it.
    fn lost_a_port(&self, broker: &Broker) -> bool {
        let log = broker.log();
        let taken = |port: u16| log.contains(&format!("127.0.0.1:{port}: Address already in use"));
        taken(broker.http) || self.listen.is_none() && taken(broker.listen)
    }

    /// Start without waiting.
    pub fn spawn(&self) -> Result<Broker> {
        let listen = self.listen.map_or_else(free_udp_port, Ok)?;
        let http = free_tcp_port()?;
        let address = self.address.clone();
        let address = address.unwrap_or_else(|| format!("127.0.0.1:{listen}"));
        let mut command = match self.wrapper.split_first() {
            None => Command::new(binary()),
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(binary());
                command
            }
        };
        let mut child = command
            .arg("serve")
            .arg("--data")
            .arg(&self.data)
            .args(["--listen", &address, "--http", &format!("127.0.0.1:{http}")])
            .args(&self.arguments)
            .env_remove("MILLSTREAM_CONTEXT")
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", binary().display()))?;
        let log = Arc::new(Mutex::new(Vec::new()));
        collect(child.stdout.take().expect("piped"), Arc::clone(&log));
        collect(child.stderr.take().expect("piped"), Arc::clone(&log));
        Ok(Broker {
            child,
            data: self.data.clone(),
            listen,
            http,
            log,
        })
    }
}

impl Broker {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    pub fn url(&self) -> String {
        format!("127.0.0.1:{}", self.listen)
    }

    pub fn context(&self) -> PathBuf {
        self.data.join("context.toml")
    }

    /// Where this process sees the broker's directory, when that is not where the broker sees it.
    pub fn seen_at(&mut self, data: PathBuf) {
        self.data = data;
    }

    /// The UDP port it listens on.
    pub fn port(&self) -> u16 {
        self.listen
    }

    /// The TCP port of its operators' HTTP.
    pub fn http_port(&self) -> u16 {
        self.http
    }

    /// Everything the broker printed so far.
    pub fn log(&self) -> String {
        self.log
            .lock()
            .expect("the collector does not panic")
            .join("\n")
    }

    pub fn wait_ready(&mut self) -> Result<()> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "the broker ended ({status}) before it was ready:\n{}",
                    self.log()
                );
            }
            if self.http("/readyz").is_ok_and(|(status, _)| status == 200)
                && self.context().exists()
            {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < PATIENCE,
                "the broker is not ready after {PATIENCE:?}:\n{}",
                self.log()
            );
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// GET over the operators' HTTP: status and body.
    pub fn http(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.http))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer)?;
        let status = answer
            .split_whitespace()
            .nth(1)
            .and_then(|s| s.parse().ok())
            .context("a status line")?;
        let body = answer
            .split_once("\r\n\r\n")
            .map(|(_, b)| b.to_owned())
            .unwrap_or_default();
        Ok((status, body))
    }

    /// Run a client command against this broker and wait for it.
    pub fn cli<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<Output> {
        self.cli_with(arguments, b"")
    }

    /// The same with something on its standard input.
    pub fn cli_with<S: AsRef<OsStr>>(&self, arguments: &[S], input: &[u8]) -> Result<Output> {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn()?;
        let mut stdin = child.stdin.take().expect("piped");
        let input = input.to_vec();
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input))); // a command may end before it reads all
        let output = child.wait_with_output()?;
        writer.join().expect("the writer does not panic");
        Ok(output)
    }

    /// A client command, not yet started, its output piped.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .env("MILLSTREAM_CONTEXT", self.context())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Run a command that must succeed; its standard output.
    pub fn ok(&self, line: &str) -> Result<String> {
        self.ok_with(line, b"")
    }

    /// The same with something on its standard input. Arguments are split at blanks.
    pub fn ok_with(&self, line: &str, input: &[u8]) -> Result<String> {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let output = self.cli_with(&arguments, input)?;
        ensure!(
            output.status.success(),
            "`millstream {line}` failed ({}):\n{}{}\nbroker:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// `ok` with `-o json`, parsed.
    pub fn json(&self, line: &str) -> Result<serde_json::Value> {
        let text = self.ok(&format!("{line} -o json"))?;
        serde_json::from_str(&text).with_context(|| format!("`{line}` does not print JSON: {text}"))
    }

    /// `ok` of a command that prints a list, with `-o json`: a line for each entry.
    pub fn list(&self, line: &str) -> Result<serde_json::Value> {
        Ok(json_lines(&self.ok(&format!("{line} -o json"))?)?.into())
    }

    pub fn signal(&self, signal: libc::c_int) {
        send_signal(self.pid(), signal);
    }

    /// kill -9, and wait until it is gone.
    pub fn kill(mut self) -> Result<PathBuf> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(self.data.clone())
    }

    /// SIGTERM, and wait for a clean end.
    pub fn stop(mut self) -> Result<PathBuf> {
        self.signal(libc::SIGTERM);
        let status = self.wait_end()?;
        ensure!(
            status.success(),
            "the broker ended with {status}:\n{}",
            self.log()
        );
        Ok(self.data.clone())
    }

    /// Wait until the process ends by itself.
    pub fn wait_end(&mut self) -> Result<std::process::ExitStatus> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(
                begun.elapsed() < PATIENCE,
                "the broker does not end:\n{}",
                self.log()
            );
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Wait for a condition that another process brings about.
pub fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !holds()? {
        ensure!(
            begun.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        std::thread::park_timeout(Duration::from_millis(20));
    }
    Ok(())
}

/// Send a signal through `kill`, so that no unsafe code is needed.
pub fn send_signal(pid: u32, signal: libc::c_int) {
    let status = Command::new("kill")
        .arg(format!("-{signal}"))
        .arg(pid.to_string())
        .status();
    assert!(
        status.is_ok_and(|s| s.success()),
        "process {pid} takes signal {signal}"
    );
}

/// Each line of `text` as JSON.
pub fn json_lines(text: &str) -> Result<Vec<serde_json::Value>> {
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
        .collect()
}

fn collect(from: impl std::io::Read + Send + 'static, into: Arc<Mutex<Vec<String>>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            into.lock().expect("nobody panics with it").push(line);
        }
    });
}

fn free_udp_port() -> Result<u16> {
    Ok(UdpSocket::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn free_tcp_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

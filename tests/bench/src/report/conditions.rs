//! Under which conditions figures came about.

use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::session::Settings;

/// The machine, the product, and how often.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Conditions {
    pub(crate) date: String,
    /// Of the working tree; `-dirty` when it had changes.
    pub(crate) commit: String,
    pub(crate) product: String,
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_gib: f64,
    /// Of the directory that is written to.
    pub(crate) file_system: String,
    /// Largest socket buffers that the kernel grants, in bytes.
    pub(crate) rmem_max: u64,
    pub(crate) wmem_max: u64,
    pub(crate) pairs: usize,
    pub(crate) scale: f64,
}

impl Conditions {
    /// Those of now. What cannot be found out is empty.
    pub(crate) fn now(settings: &Settings, program: &Path) -> Self {
        let proc = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu_info = proc("/proc/cpuinfo");
        let after = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let value = line.map(|rest| rest.trim_start_matches([' ', '\t', ':']));
            value.unwrap_or_default().trim().to_owned()
        };
        let memory_kib = after(&proc("/proc/meminfo"), "MemTotal");
        let memory_kib: f64 = memory_kib
            .split(' ')
            .next()
            .and_then(|kib| kib.parse().ok())
            .unwrap_or(0.0);
        let number = |path| proc(path).trim().parse().unwrap_or(0);
        let directory = settings.data.clone().unwrap_or_else(std::env::temp_dir);
        Self {
            date: says(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"])),
            commit: says(Command::new("git").args(["describe", "--always", "--dirty"])),
            product: says(Command::new(program).arg("--version")),
            kernel: proc("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: after(&cpu_info, "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: (memory_kib / f64::from(1 << 20) * 10.0).round() / 10.0,
            file_system: says(
                Command::new("stat")
                    .args(["-f", "-c", "%T"])
                    .arg(&directory),
            ),
            rmem_max: number("/proc/sys/net/core/rmem_max"),
            wmem_max: number("/proc/sys/net/core/wmem_max"),
            pairs: settings.pairs,
            scale: settings.scale,
        }
    }

    /// In one line.
    pub(crate) fn line(&self) -> String {
        let mut line = format!(
            "{}, {} cores, {} GiB, Linux {}, {}, socket buffers up to {} KiB, client and broker on one machine; commit {}, {}; {} pairs",
            self.cpu,
            self.cores,
            self.memory_gib,
            self.kernel,
            self.file_system,
            self.rmem_max.min(self.wmem_max) >> 10,
            self.commit,
            self.date,
            self.pairs,
        );
        if self.scale != 1.0 {
            line.push_str(&format!(", load x {}", self.scale));
        }
        line
    }
}

/// The first line that a program prints.
fn says(command: &mut Command) -> String {
    let output = command.output().ok();
    let text = output.filter(|output| output.status.success());
    let text = text.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default()
        .lines()
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}

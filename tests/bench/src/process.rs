//! Other processes: started, asked for their CPU time, and never left behind.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child as Std, Command};

use anyhow::{Context as _, Result, bail};

/// A child that is killed when dropped.
#[derive(Debug)]
pub(crate) struct Child(Std);

impl Child {
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        let child = command.spawn();
        child
            .map(Self)
            .with_context(|| format!("cannot start {}", command.get_program().display()))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// The first line of its (piped) standard output.
    pub(crate) fn first_line(&mut self) -> Result<String> {
        let out = self.0.stdout.as_mut().context("its output is not piped")?;
        let mut line = String::new();
        if BufReader::new(out).read_line(&mut line)? == 0 {
            bail!("it ended: {}", self.0.wait()?);
        }
        Ok(line)
    }

    /// An error if it has ended.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        match self.0.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("it ended: {status}"),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail only when it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// CPU time a process has used, all its threads and the kernel on its behalf, in seconds
/// (proc_pid_stat(5), fields 14 and 15; Linux reports them in hundredths).
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    ticks(&stat)
        .map(|ticks| ticks as f64 / 100.0)
        .context("an unreadable /proc/<pid>/stat")
}

fn ticks(stat: &str) -> Option<u64> {
    // The name in parentheses may hold anything, so count from its end: field 3 comes first.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(14 - 3);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Where a program writes: given, or a temporary directory that goes away.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

impl DataDir {
    pub(crate) fn new(given: Option<&Path>) -> Result<Self> {
        if let Some(path) = given {
            return Ok(Self {
                path: path.to_owned(),
                _temporary: None,
            });
        }
        let temporary = tempfile::Builder::new()
            .prefix("millstream-bench-")
            .tempdir()?;
        Ok(Self {
            path: temporary.path().to_owned(),
            _temporary: Some(temporary),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_behind_any_name() {
        let stat = "12 (a) b) 3) S 1 1 1 0 -1 4194560 10 20 30 40 250 75 0 0 20 0 1";
        assert_eq!(ticks(stat), Some(325));
        assert!(cpu_seconds(std::process::id()).is_ok());
    }
}

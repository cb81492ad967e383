//! Other processes: started, asked what they have used, and waited for.
//!
//! Deliberately absent: killing what is left over ([`crate::cleanup`]) and turning what was used into
//! figures ([`crate::meter`]).

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::cleanup::Tracked;
use crate::sys;

/// A line that a process says is shorter.
const LINE_BYTES_MAX: usize = 1 << 20;

/// A child that is killed when dropped.
#[derive(Debug)]
pub(crate) struct Child {
    tracked: Tracked,
    /// A pidfd: readable once the process has ended (pidfd_open(2)).
    end: OwnedFd,
}

impl Child {
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        let tracked = Tracked::spawn(command)?;
        // Nobody waits for it before we do, so its id cannot have been given to another.
        let pid = Pid::from_child(&tracked.child());
        let end = pidfd_open(pid, PidfdFlags::empty()).context("no pidfd")?;
        Ok(Self { tracked, end })
    }

    pub(crate) fn id(&self) -> u32 {
        self.tracked.id()
    }

    /// The first line of its (piped) standard output, which must come by then. Nothing after it can be
    /// read any more.
    pub(crate) fn first_line(&self, longest: Duration) -> Result<String> {
        let out = self.tracked.child().stdout.take();
        let mut out = out.context("its output is not piped")?;
        match first_line(&mut out, longest)? {
            Some(line) => Ok(line),
            None => bail!("it ended without a word: {}", self.wait(longest)?),
        }
    }

    /// Let so much time pass. An error as soon as it ends.
    pub(crate) fn outlives(&self, time: Duration) -> Result<()> {
        match self.ends_within(time)? {
            false => Ok(()),
            true => Err(self.has_ended()),
        }
    }

    /// The same, beside other tasks.
    pub(crate) async fn outlives_beside_tasks(&self, time: Duration) -> Result<()> {
        let end = self.end.try_clone()?;
        match tokio::task::spawn_blocking(move || sys::readable(&end, time)).await?? {
            false => Ok(()),
            true => Err(self.has_ended()),
        }
    }

    /// Wait until it has ended by itself, at most so long.
    pub(crate) fn wait(&self, longest: Duration) -> Result<ExitStatus> {
        ensure!(
            self.ends_within(longest)?,
            "it did not end within {} s",
            longest.as_secs()
        );
        self.tracked.status()
    }

    /// Wait for its end, at most so long. Says whether it came; the process is still there to be asked
    /// what it used.
    fn ends_within(&self, longest: Duration) -> Result<bool> {
        Ok(sys::readable(&self.end, longest)?)
    }

    fn has_ended(&self) -> anyhow::Error {
        match self.tracked.status() {
            Ok(status) => anyhow!("it ended: {status}"),
            Err(error) => error,
        }
    }
}

/// The first line that comes from a pipe by then, without its end; nothing when the other side has gone
/// without one. What came together with it is lost.
pub(crate) fn first_line(
    pipe: &mut (impl Read + AsFd),
    longest: Duration,
) -> Result<Option<String>> {
    let began = Instant::now();
    let (mut line, mut some) = (Vec::new(), [0; 4096]);
    loop {
        let left = longest.saturating_sub(began.elapsed());
        ensure!(
            sys::readable(pipe, left)?,
            "it said nothing within {} s",
            longest.as_secs()
        );
        let length = pipe.read(&mut some)?;
        let came = &some[..length];
        if came.is_empty() {
            return Ok(None);
        }
        let until = came.iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(&came[..until.unwrap_or(came.len())]);
        ensure!(line.len() <= LINE_BYTES_MAX, "it says a line without end");
        if until.is_some() {
            return Ok(Some(String::from_utf8(line)?));
        }
    }
}

/// What a program printed, and the CPU time it used.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) stdout: Vec<u8>,
    pub(crate) cpu_seconds: f64,
}

/// Run a program to its end, at most so long; an exit code other than 0 is an error. Its standard error
/// is ours.
pub(crate) fn finish(command: &mut Command, longest: Duration) -> Result<Finished> {
    let name = command.get_program().display().to_string();
    let child = Child::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
    let out = child.tracked.child().stdout.take();
    let mut out = out.context("its output is piped")?;
    // On a thread of its own: reading has no time limit.
    let reading = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        out.read_to_end(&mut bytes).map(|_| bytes)
    });
    // As long as nobody waits for a process that has ended, what it used can be read.
    if !child.ends_within(longest)? {
        return Err(Overdue {
            seconds: longest.as_secs(),
        }
        .into());
    }
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id()))?;
    ensure!(state(&stat) == Some('Z'), "it ended, and still runs");
    let cpu_seconds = ticks(&stat).context("an unreadable /proc/<pid>/stat")? / TICKS_PER_S;
    let status = child.wait(longest)?;
    let stdout = reading
        .join()
        .map_err(|_| anyhow!("the thread that reads its output panicked"))??;
    ensure!(status.success(), "{name}: {status}");
    Ok(Finished {
        stdout,
        cpu_seconds,
    })
}

/// A program that did not end in time, and was killed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Overdue {
    seconds: u64,
}

impl std::fmt::Display for Overdue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "it did not end within {} s", self.seconds)
    }
}

impl std::error::Error for Overdue {}

/// USER_HZ: 100 on every Linux that there is.
const TICKS_PER_S: f64 = 100.0;

/// CPU time a process has used, all its threads and the kernel on its behalf, in seconds
/// (proc_pid_stat(5), fields 14 and 15), to a hundredth.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("there is no process {pid}"))?;
    let ticks = ticks(&stat).context("an unreadable /proc/<pid>/stat")?;
    Ok(ticks / TICKS_PER_S)
}

fn ticks(stat: &str) -> Option<f64> {
    // The name in parentheses may hold anything, so count from its end: field 3 comes first.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(14 - 3);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64)
}

fn state(stat: &str) -> Option<char> {
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Voluntary and involuntary context switches of the threads that a process has now.
pub(crate) fn context_switches(pid: u32) -> Result<u64> {
    Ok(threads(pid, "status", switches_in)?.values().sum())
}

fn switches_in(status: &str) -> Option<u64> {
    let voluntary = field(status, "voluntary_ctxt_switches:")?;
    Some(voluntary + field(status, "nonvoluntary_ctxt_switches:")?)
}

/// The little that an idle process does, thread by thread: CPU time to a nanosecond, and switches.
#[derive(Debug)]
pub(crate) struct Activity {
    nanos: BTreeMap<u64, u64>,
    switches: BTreeMap<u64, u64>,
}

impl Activity {
    /// All of it so far.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        Ok(Self {
            nanos: threads(pid, "schedstat", |text| {
                text.split_whitespace().next()?.parse().ok()
            })?,
            switches: threads(pid, "status", switches_in)?,
        })
    }

    /// CPU seconds and switches since an earlier look; of threads that ended meanwhile, nothing.
    pub(crate) fn since(&self, earlier: &Self) -> (f64, u64) {
        let nanos = since(&self.nanos, &earlier.nanos);
        (nanos as f64 / 1e9, since(&self.switches, &earlier.switches))
    }
}

fn since(now: &BTreeMap<u64, u64>, earlier: &BTreeMap<u64, u64>) -> u64 {
    let then = |thread| earlier.get(thread).copied().unwrap_or(0);
    now.iter()
        .map(|(thread, value)| value.saturating_sub(then(thread)))
        .sum()
}

/// By thread id, what `read` finds in a file of each of a process's threads.
fn threads(pid: u32, file: &str, read: impl Fn(&str) -> Option<u64>) -> Result<BTreeMap<u64, u64>> {
    let mut all = BTreeMap::new();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = thread?;
        let id = thread.file_name().to_string_lossy().parse()?;
        // A thread may end while we look.
        if let Ok(text) = std::fs::read_to_string(thread.path().join(file)) {
            let value =
                read(&text).with_context(|| format!("an unreadable {file} of process {pid}"))?;
            all.insert(id, value);
        }
    }
    Ok(all)
}

/// Memory of a process in bytes, as `/proc/<pid>/status` has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Resident now (VmRSS).
    pub(crate) resident: u64,
    /// The most that ever was (VmHWM).
    pub(crate) peak: u64,
    /// Of what is resident, what is the process's own and not a file's (RssAnon).
    pub(crate) anonymous: u64,
}

impl Memory {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
            .with_context(|| format!("there is no process {pid}"))?;
        let bytes = |name| {
            let kib = field(&status, name);
            kib.map(|kib| kib << 10)
                .with_context(|| format!("/proc/{pid}/status has no {name}"))
        };
        Ok(Self {
            resident: bytes("VmRSS:")?,
            peak: bytes("VmHWM:")?,
            anonymous: bytes("RssAnon:")?,
        })
    }
}

fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime;

    #[test]
    fn cpu_time_is_read_behind_any_name() {
        let stat = "12 (a) b) 3) S 1 1 1 0 -1 4194560 10 20 30 40 250 75 0 0 20 0 1";
        assert_eq!(ticks(stat), Some(325.0));
        assert_eq!(state(stat), Some('S'));
        assert!(cpu_seconds(std::process::id()).is_ok());
    }

    #[test]
    fn status_fields_are_found_by_their_whole_name() {
        let status = "VmHWM:\t  2048 kB\nVmRSS:\t 1024 kB\nvoluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t3\n";
        assert_eq!(field(status, "VmHWM:"), Some(2048));
        assert_eq!(field(status, "voluntary_ctxt_switches:"), Some(7));
        assert_eq!(field(status, "RssAnon:"), None);
    }

    #[test]
    fn this_process_can_be_read() {
        let memory = Memory::of(std::process::id()).expect("it is read");
        assert!(memory.peak >= memory.anonymous && memory.resident > 0);
        assert!(context_switches(std::process::id()).is_ok());
        let activity = Activity::of(std::process::id()).expect("it is read");
        assert!(activity.nanos.values().sum::<u64>() > 0);
    }

    #[test]
    fn a_thread_that_ended_takes_nothing_back() {
        let earlier = BTreeMap::from([(1, 100), (2, 1000)]);
        let now = BTreeMap::from([(1, 150), (3, 7)]);
        assert_eq!(since(&now, &earlier), 57);
    }

    #[test]
    fn a_program_that_does_not_end_is_overdue() {
        let error = finish(Command::new("sleep").arg("1000"), Duration::ZERO);
        assert!(error.expect_err("it sleeps").is::<Overdue>());
    }

    #[test]
    fn a_child_that_ends_is_noticed_at_once() {
        let hour = Duration::from_secs(3600);
        let child = Child::spawn(&mut Command::new("false")).expect("it starts");
        let error = child.outlives(hour).expect_err("it ends");
        assert!(error.to_string().contains("exit status: 1"), "{error}");
        let runtime = runtime::one_thread().expect("a runtime");
        let error = runtime.block_on(child.outlives_beside_tasks(hour));
        let error = error.expect_err("it has ended");
        assert!(error.to_string().contains("exit status: 1"), "{error}");
        let status = child.wait(hour).expect("it has ended");
        assert_eq!(status.code(), Some(1), "asked again");
    }

    #[test]
    fn a_child_that_stays_outlives_the_time() {
        let child = Child::spawn(Command::new("sleep").arg("1000")).expect("it starts");
        child.outlives(Duration::ZERO).expect("it sleeps");
        let runtime = runtime::one_thread().expect("a runtime");
        let stays = runtime.block_on(child.outlives_beside_tasks(Duration::ZERO));
        stays.expect("it sleeps");
        assert!(child.wait(Duration::ZERO).is_err());
    }

    #[test]
    fn a_first_line_comes_whole_or_by_the_deadline_not_at_all() {
        let hour = Duration::from_secs(3600);
        let said = |script: &str, longest| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).stdout(Stdio::piped());
            let child = Child::spawn(&mut command).expect("it starts");
            child.first_line(longest).map_err(|e| e.to_string())
        };
        let two = said("printf on; printf 'e\\ntwo\\n'; exec sleep 1000", hour);
        assert_eq!(two, Ok("one".to_owned()));
        let none = said("printf half; exit 3", hour);
        assert_eq!(
            none,
            Err("it ended without a word: exit status: 3".to_owned())
        );
        let late = said("exec sleep 1000", Duration::ZERO);
        assert_eq!(late, Err("it said nothing within 0 s".to_owned()));
    }

    #[test]
    fn a_finished_program_tells_what_it_used() {
        let minute = Duration::from_secs(60);
        let finished = finish(Command::new("echo").arg("hello"), minute).expect("it runs");
        assert_eq!(finished.stdout, b"hello\n");
        assert!(finished.cpu_seconds < 1.0);
        assert!(finish(&mut Command::new("false"), minute).is_err());
    }
}

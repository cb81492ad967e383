//! Limits of the process are no failures of the disk: each is reached, what is asked for is refused or
//! waits, nothing stops for good, and a restart without the limit works.

use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::process::{Command, Stdio};

use anyhow::Result;
use millstream_e2e::{Broker, Options, binary, bundled, eventually};

/// Runs what follows under a limit of the shell: `-n 48`.
fn under(limit: &str) -> [String; 4] {
    let script = format!("ulimit {limit} && exec \"$@\"");
    ["sh".into(), "-c".into(), script, "sh".into()]
}

fn round_trip(broker: &Broker, topic: &str) -> Result<()> {
    broker.ok(&format!("topic create {topic} --partitions 1"))?;
    broker.ok_with(&format!("pub {topic}"), b"first\n")?;
    let got = broker.ok(&format!("sub {topic} --from start --count 1 -f %v\\n"))?;
    assert_eq!(got, "first\n");
    Ok(())
}

/// Operators' connections take all descriptors while the log wants new files.
#[test]
fn open_files_that_run_out_are_waited_for() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data"))
        .with("--shards 1")
        .setting("LOG__SEGMENT_BYTES", "4MiB")
        .through(under("-n 40"))
        .start()?;
    let log = broker.log();
    assert!(
        log.contains("40 may be open") && log.contains("LimitNOFILE"),
        "{log}"
    );
    round_trip(&broker, "t")?;
    let held: Vec<TcpStream> = (0..60)
        .filter_map(|_| TcpStream::connect(("127.0.0.1", broker.http_port())).ok())
        .collect();
    eventually("no descriptor is left", || {
        Ok(broker.log().contains("an HTTP connection was not taken"))
    })?;
    // Several files' worth.
    let mut publisher = broker
        .command(&["pub", "t", "--delivery-timeout", "60s", "-o", "json"])
        .stdin(Stdio::piped())
        .spawn()?;
    let mut stdin = publisher.stdin.take().expect("piped");
    let lines = ("z".repeat(1_000) + "\n").repeat(20_000);
    let writer =
        std::thread::spawn(move || std::io::Write::write_all(&mut stdin, lines.as_bytes()));
    eventually("the log feels it, or does not need any", || {
        let felt = broker.log().contains("Too many open files");
        Ok(felt || publisher.try_wait()?.is_some())
    })?;
    drop(held);
    writer.join().expect("no panic")?;
    let output = publisher.wait_with_output()?;
    assert!(output.status.success(), "{output:?}\n{}", broker.log());
    eventually("it is ready again", || Ok(broker.http("/readyz")?.0 == 200))?;
    let data = broker.stop()?;
    let broker = Options::on(data).start()?;
    let described = broker.json("topic describe t")?;
    assert_eq!(described["partitions"][0]["end_offset"], 20_001);
    Ok(())
}

#[test]
fn the_soft_limit_of_open_files_is_raised() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data"))
        .through(under("-S -n 64"))
        .start()?;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", broker.pid()))?;
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .expect("Linux says");
    let numbers: Vec<&str> = files.split_whitespace().skip(3).take(2).collect();
    assert_eq!(numbers[0], numbers[1], "{files}");
    assert!(broker.log().contains("open files"), "{}", broker.log());
    Ok(())
}

/// A shard that cannot write to a file of its own would stop for good: a start says it beforehand.
#[test]
fn a_file_size_limit_below_the_logs_files_ends_a_start_with_its_name() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    let eight_mib = "-f 16384";
    let refused = |segment_bytes: Option<&str>, says: &[&str]| -> Result<()> {
        let mut options = Options::on(&data)
            .with("--shards 1")
            .through(under(eight_mib));
        if let Some(bytes) = segment_bytes {
            options = options.setting("LOG__SEGMENT_BYTES", bytes);
        }
        let mut broker = options.spawn()?;
        assert!(!broker.wait_end()?.success());
        eventually("it names the limit", || {
            let log = broker.log();
            Ok(log.contains("8388608") && says.iter().all(|words| log.contains(words)))
        })
    };
    // Files that it would make.
    refused(None, &["LimitFSIZE", "log.segment_bytes"])?;
    // The doctor, in the same surroundings, names it.
    let doctor = under(eight_mib);
    let output = Command::new(&doctor[0])
        .args(&doctor[1..])
        .arg(binary())
        .args(["doctor", "--offline", "--data"])
        .arg(dir.path())
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("file size") && said.contains("LimitFSIZE"),
        "{said}"
    );
    let broker = Options::on(&data).start()?;
    round_trip(&broker, "t")?;
    broker.stop()?;
    // Files that are there, made before the limit was: a lower setting does not make them shorter.
    refused(Some("4MiB"), &["LimitFSIZE", "shard-0", "9437184"])?;
    round_trip(&Options::on(&data).start()?, "u")
}

#[test]
fn threads_that_cannot_be_had_end_a_start_with_the_limits_name() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    // Nothing limits root: another user, who has no process yet.
    const SOMEBODY: u32 = 54_321;
    // Who made a directory is who this process is.
    let is_root = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(dir.path())?) == 0;
    let wrapper = if is_root {
        // Who may not look into the folder of the binary, either: a copy, in place of the one that follows.
        let copy = dir.path().join("millstream");
        std::fs::copy(binary(), &copy)?;
        for path in [dir.path(), &copy] {
            chown(path, Some(SOMEBODY), Some(SOMEBODY))?;
        }
        let script = "own=$1 && shift 2 && exec prlimit --nproc=1 \"$own\" \"$@\"";
        let user = [format!("--reuid={SOMEBODY}"), format!("--regid={SOMEBODY}")];
        let mut wrapper = vec!["setpriv".to_owned()];
        wrapper.extend(user);
        wrapper.extend(["--clear-groups", "sh", "-c", script, "sh"].map(str::to_owned));
        wrapper.push(copy.to_string_lossy().into_owned());
        wrapper
    } else {
        ["prlimit", "--nproc=1"].map(str::to_owned).to_vec()
    };
    let mut broker = Options::on(&data).through(wrapper).spawn()?;
    assert!(!broker.wait_end()?.success());
    eventually("it names the limit", || {
        let log = broker.log();
        Ok(log.contains("no thread can be started") && log.contains("ulimit -u"))
    })?;
    assert!(!broker.log().contains("panicked"), "{}", broker.log());
    if is_root {
        std::fs::remove_dir_all(&data).ok(); // what it made belongs to somebody else
        chown(dir.path(), Some(0), Some(0))?;
    }
    round_trip(&Options::on(&data).start()?, "t")
}

#[test]
fn no_locked_memory_is_needed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data"))
        .through(under("-l 0"))
        .start()?;
    round_trip(&broker, "t")
}

/// Descriptors run out while the broker runs: what needs one is refused or waits, all else goes on, and
/// afterwards everything works.
#[test]
fn what_needs_a_descriptor_is_refused_or_waits_and_all_else_goes_on() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data"))
        .with("--shards 1")
        .through(under("-n 40"))
        .start()?;
    round_trip(&broker, "t")?;
    let mut held: Vec<TcpStream> = (0..60)
        .filter_map(|_| TcpStream::connect(("127.0.0.1", broker.http_port())).ok())
        .collect();
    eventually("no descriptor is left", || {
        Ok(broker.log().contains("an HTTP connection was not taken"))
    })?;
    let component = bundled("key-filter");
    let deploy = format!(
        "plugin deploy {} --topic t --name f --param prefix=f",
        component.display()
    );
    // A client needs none, and the log's files are open.
    broker.ok_with("pub t", b"second\n")?;
    let both = broker.ok("sub t --from start --exit-at-end -f %v\\n")?;
    assert_eq!(both, "first\nsecond\n");
    // A component is kept in a file of its own.
    let words: Vec<&str> = deploy.split_whitespace().collect();
    let refused = broker.cli(&words)?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("Too many open files"), "{said}");
    // One that waits is taken when there is room for it.
    let waits = held.pop().expect("more than there is room for");
    drop(held);
    drop(waits);
    eventually("it is ready again", || Ok(broker.http("/readyz")?.0 == 200))?;
    broker.ok(&deploy)?;
    broker.ok_with("pub t --key f", b"third\n")?;
    round_trip(&broker, "u")?;
    let filters = broker.list("plugin list")?;
    assert_eq!(filters[0]["state"], "running", "{filters}");
    Ok(())
}

/// Each limit that the broker may meet is named by `doctor`, with what raises it.
#[test]
fn the_doctor_names_each_limit() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let doctor = |through: &[&str]| -> Result<String> {
        let output = Command::new(through[0])
            .args(&through[1..])
            .arg(binary())
            .args(["doctor", "--offline", "--data"])
            .arg(dir.path())
            .output()?;
        assert!(!output.stdout.is_empty(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    // Locked memory counts on old kernels alone: what is said of it there has a test of its own.
    for (limit, name, found, raised_by) in [
        (
            "--nofile=100:100",
            "open files",
            "at most 100",
            "LimitNOFILE",
        ),
        (
            "--nofile=100:200",
            "open files",
            "raises it to 200",
            "LimitNOFILE",
        ),
        ("--nproc=300", "threads", "at most 300", "LimitNPROC"),
        ("--fsize=8388608", "file size", "8.0 MiB", "LimitFSIZE"),
    ] {
        let said = doctor(&["prlimit", limit])?;
        let line = said.lines().find(|line| line.contains(name));
        let line = line.unwrap_or_else(|| panic!("{name}: {said}"));
        assert!(line.contains(found), "{limit}: {line}");
        assert!(said.contains(raised_by), "{limit}: {said}");
    }
    let script = "mount -t tmpfs -o size=512m,nr_inodes=64 tmpfs \"$1\" && shift && exec \"$@\"";
    let path = dir.path().to_string_lossy();
    let inodes = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        &path,
    ];
    let said = doctor(&inodes)?;
    assert!(
        said.contains("inodes are left") && said.contains("df -i"),
        "{said}"
    );
    Ok(())
}

/// A shard that may write nothing more still serves, so that a member reads on; what it read is not
/// committed, and never will be here.
#[test]
fn a_member_whose_commits_fail_for_good_says_so_and_fails() -> Result<()> {
    const RECORDS: usize = 20_000;
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data"))
        .with("--shards 1")
        .start()?;
    broker.ok("topic create t --partitions 1")?;
    let line = "x".repeat(100) + "\n";
    broker.ok_with("pub t", line.repeat(RECORDS).as_bytes())?;
    let count = RECORDS.to_string();
    let member = [
        "sub", "t", "--group", "g", "--from", "start", "--count", &count,
    ];
    let mut reader = broker.command(&member).spawn()?;
    // It has begun, and cannot print the rest before somebody reads it.
    let mut out = BufReader::new(reader.stdout.take().expect("piped"));
    let mut first = String::new();
    out.read_line(&mut first)?;
    let limited = Command::new("prlimit")
        .args(["--pid", &broker.pid().to_string(), "--fsize=4096:4096"])
        .status()?;
    assert!(limited.success());
    let rest = out.lines().collect::<Result<Vec<_>, _>>()?;
    assert_eq!(rest.len(), RECORDS - 1, "everything is read");
    let output = reader.wait_with_output()?;
    let said = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("t/0 was not committed: "), "{said}");
    let stopped = broker.cli_with(&["pub", "t", "--delivery-timeout", "2s"], b"x\n")?;
    assert_eq!(stopped.status.code(), Some(1), "{stopped:?}");
    // It will come again, as it was said: nothing passed for committed.
    let broker = Options::on(broker.kill()?).start()?;
    let group = broker.json("group describe g")?;
    assert!(group["lag"].as_u64() > Some(0), "{group}");
    Ok(())
}

/// A file system without inodes is a full one: refused, served, healed.
#[test]
fn inodes_that_run_out_are_a_full_disk() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("small");
    std::fs::create_dir(&data)?;
    let script = "mount -t tmpfs -o size=512m,nr_inodes=36 tmpfs \"$1\" && mkdir -m 700 \"$1/data\" && shift && exec \"$@\"";
    let wrapper = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
    ];
    let wrapper = wrapper.map(str::to_owned).into_iter();
    let wrapper = wrapper.chain([data.to_string_lossy().into_owned()]);
    let mut broker = Options::on(data.join("data"))
        .with("--shards 1")
        .setting("LOG__SEGMENT_BYTES", "4MiB")
        .through(wrapper)
        .spawn()?;
    let seen = std::path::PathBuf::from(format!("/proc/{}/root", broker.pid()))
        .join(data.join("data").strip_prefix("/")?);
    broker.seen_at(seen);
    broker.wait_ready()?;
    broker.ok("topic create t --partitions 1")?;
    broker.ok("topic create small --partitions 1")?;
    let input = ("x".repeat(1_000) + "\n").repeat(20_000);
    let mut refused = None;
    for _ in 0..10 {
        let output =
            broker.cli_with(&["pub", "t", "--delivery-timeout", "2s"], input.as_bytes())?;
        if !output.status.success() {
            refused = Some(String::from_utf8_lossy(&output.stderr).into_owned());
            break;
        }
    }
    let refused = refused.expect("fifty files do not fit into thirty-six inodes");
    assert!(refused.to_lowercase().contains("disk"), "{refused}");
    assert!(broker.log().contains("inodes"), "{}", broker.log());
    broker.ok("topic delete t")?;
    eventually("it goes on", || {
        Ok(broker
            .cli_with(&["pub", "small", "--delivery-timeout", "2s"], b"again\n")?
            .status
            .success())
    })?;
    Ok(())
}

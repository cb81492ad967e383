//! Hostile surroundings: a directory in use, a read-only one, a full disk, a process that is stopped.

use anyhow::Result;
use millstream_e2e::{Options, eventually, send_signal};

/// Two brokers never share a directory.
#[test]
fn a_directory_in_use_is_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    let mut second = Options::on(broker.data()).spawn()?;
    assert!(!second.wait_end()?.success());
    let pid = broker.pid().to_string();
    eventually("it says who uses it", || {
        Ok(second.log().contains("in use") && second.log().contains(&pid))
    })?;
    broker.ok("topic create still-works")?;
    Ok(())
}

/// The file `lock` is a name that anybody may remove by mistake; the log is held all the same.
#[test]
fn a_removed_lock_file_lets_no_second_broker_in() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create t --partitions 1")?;
    std::fs::remove_file(broker.data().join("lock"))?;
    let mut second = Options::on(broker.data()).spawn()?;
    assert!(!second.wait_end()?.success());
    eventually("it says so", || Ok(second.log().contains("in use")))?;
    broker.ok_with("pub t", b"still alone\n")?;
    let looked = broker.cli(&["log", "verify", &broker.data().to_string_lossy()])?;
    assert!(!looked.status.success(), "nor may anybody look");
    let broker = Options::on(broker.stop()?).start()?;
    assert_eq!(
        broker.ok("sub t --from start --count 1 -f %v\\n")?,
        "still alone\n"
    );
    Ok(())
}

#[test]
fn a_directory_that_others_may_write_to_is_refused() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir()?;
    let data = Options::on(dir.path().join("data")).start()?.stop()?;
    let mode = |mode| std::fs::set_permissions(&data, std::fs::Permissions::from_mode(mode));
    mode(0o770)?;
    let mut broker = Options::on(&data).spawn()?;
    assert!(!broker.wait_end()?.success());
    eventually("it says what to do", || {
        Ok(broker.log().contains("others may write") && broker.log().contains("chmod go-w"))
    })?;
    mode(0o750)?;
    drop(Options::on(&data).start()?);
    Ok(())
}

/// Two shards without a record: it was half a gigabyte.
#[test]
fn an_empty_directory_is_small() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data"))
        .with("--shards 2")
        .start()?;
    let mut bytes = 0;
    for shard in 0..2 {
        for file in std::fs::read_dir(broker.data().join(format!("shard-{shard}")))? {
            bytes += file?.metadata()?.len();
        }
    }
    assert!(bytes <= 80 << 20, "{bytes}");
    Ok(())
}

/// A read-only file system is a clear message, not a panic.
#[test]
fn a_read_only_directory_is_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = Options::on(dir.path().join("data")).start()?.stop()?;
    let script =
        "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\" && shift && exec \"$@\"";
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
    let wrapper = wrapper
        .iter()
        .map(|s| (*s).to_owned())
        .chain([data.to_string_lossy().into_owned()]);
    let mut broker = Options::on(&data).through(wrapper).spawn()?;
    assert!(!broker.wait_end()?.success(), "{}", broker.log());
    eventually("it says so", || {
        Ok(broker.log().to_lowercase().contains("read-only"))
    })?;
    assert!(!broker.log().contains("panicked"), "{}", broker.log());
    Ok(())
}

/// A full disk refuses new records with DISK_FULL, goes on serving, and heals.
#[test]
fn a_full_disk_refuses_serves_and_heals() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("small");
    std::fs::create_dir(&data)?;
    let script =
        "mount -t tmpfs -o size=192m tmpfs \"$1\" && mkdir \"$1/data\" && shift && exec \"$@\"";
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
    let wrapper = wrapper
        .iter()
        .map(|s| (*s).to_owned())
        .chain([data.to_string_lossy().into_owned()]);
    // Outside the mount namespace the directory is seen through the process.
    let mut broker = Options::on(data.join("data"))
        .through(wrapper)
        .with("--shards 1")
        .setting("LOG__SEGMENT_BYTES", "16777216")
        .spawn()?;
    let seen = std::path::PathBuf::from(format!("/proc/{}/root", broker.pid()))
        .join(data.join("data").strip_prefix("/")?);
    broker.seen_at(seen);
    broker.wait_ready()?;
    broker.ok("topic create t --partitions 1")?;
    broker.ok("topic create small --partitions 1")?;
    broker.ok_with("pub small", b"first\n")?;
    let line = "x".repeat(1_000) + "\n";
    let input = line.repeat(20_000);
    let mut refused = None;
    for _ in 0..15 {
        let output =
            broker.cli_with(&["pub", "t", "--delivery-timeout", "3s"], input.as_bytes())?;
        if !output.status.success() {
            refused = Some(String::from_utf8_lossy(&output.stderr).into_owned());
            break;
        }
    }
    let refused = refused.expect("300 MB do not fit into 192 MB");
    assert!(refused.to_lowercase().contains("disk"), "{refused}");
    assert_eq!(
        broker.ok("sub small --from start --count 1 -f %v\\n")?,
        "first\n"
    );
    assert!(
        broker
            .ok("sub t --from start --count 1000 -f %o\\n")?
            .ends_with("999\n")
    );
    // Deleting frees whole files; the broker heals by itself.
    broker.ok("topic delete t")?;
    eventually("space returns", || {
        Ok(broker
            .cli_with(&["pub", "small", "--delivery-timeout", "2s"], b"again\n")?
            .status
            .success())
    })?;
    Ok(())
}

/// A stopped process (SIGSTOP) loses nothing and goes on.
#[test]
fn a_stopped_process_goes_on() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create t --partitions 1")?;
    let line = "y".repeat(200) + "\n";
    let mut publisher = broker
        .command(&["pub", "t", "-o", "json"])
        .stdin(std::process::Stdio::piped())
        .spawn()?;
    let mut stdin = publisher.stdin.take().expect("piped");
    let writer = std::thread::spawn(move || {
        std::io::Write::write_all(&mut stdin, line.repeat(200_000).as_bytes())
    });
    eventually("records arrive", || Ok(end_offset(&broker)? > 0))?;
    send_signal(broker.pid(), libc::SIGSTOP);
    let stopped =
        || Ok(std::fs::read_to_string(format!("/proc/{}/stat", broker.pid()))?.contains(") T "));
    eventually("the process is stopped", stopped)?;
    send_signal(broker.pid(), libc::SIGCONT);
    writer.join().expect("no panic")?;
    let output = publisher.wait_with_output()?;
    assert!(output.status.success(), "{output:?}");
    let said: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(said["acknowledged"], 200_000);
    assert_eq!(end_offset(&broker)?, 200_000);
    Ok(())
}

fn end_offset(broker: &millstream_e2e::Broker) -> Result<u64> {
    Ok(
        broker.json("topic describe t")?["partitions"][0]["end_offset"]
            .as_u64()
            .unwrap_or(0),
    )
}

//! Reaching a broker, and what is said when that fails: ports, certificates, tokens, contexts, signals.

use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use millstream_e2e::{Options, binary, eventually, json_lines};

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A port that is refused ends a command at once; an explicit timeout tries for as long.
#[test]
fn nobody_there_is_said_at_once() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    let context = dir.path().join("context.toml");
    std::fs::copy(broker.context(), &context)?;
    broker.kill()?;
    let list = |more: &[&str]| {
        Command::new(binary())
            .args(["topic", "list", "--context"])
            .arg(&context)
            .args(more)
            .output()
    };
    let output = list(&[])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("nothing listens there"),
        "{}",
        stderr(&output)
    );
    let output = list(&["--wait", "--timeout", "3500ms"])?;
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(
        said.contains("yet, trying for") && said.contains("nothing listens there"),
        "{said}"
    );
    let output = list(&["--url", "nowhere.invalid:1"])?;
    assert!(
        stderr(&output).contains("has no address"),
        "{}",
        stderr(&output)
    );
    Ok(())
}

/// A connection that stood and is lost is said in one line, and ends the command after `--timeout`.
#[test]
fn a_lost_connection_is_said() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create t")?;
    broker.ok_with("pub t", b"a\n")?;
    let mut sub = broker
        .command(&["sub", "t", "--from", "start", "--timeout", "1500ms"])
        .spawn()?;
    let mut first = [0; 2];
    let mut stdout = sub.stdout.take().context("piped")?;
    std::io::Read::read_exact(&mut stdout, &mut first)?;
    let url = broker.url();
    broker.kill()?;
    let output = sub.wait_with_output()?;
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let lines = said.lines().filter(|line| line.contains("lost ("));
    assert_eq!(lines.count(), 1, "{said}");
    assert!(
        said.contains(&url) && said.contains("retrying for"),
        "{said}"
    );
    Ok(())
}

/// Final, said, and in the broker's log with the address it came from.
#[test]
fn refused_certificates_and_tokens_are_final_and_logged() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    let other = Options::on(dir.path().join("other")).start()?;
    let url = format!("millstream://{}", broker.url());
    let list = |context: &std::path::Path, more: &[&str]| -> Result<String> {
        let output = Command::new(binary())
            .args(["topic", "list", "--wait", "--context"])
            .arg(context)
            .args(more)
            .output()?;
        ensure!(output.status.code() == Some(1), "{output:?}");
        Ok(stderr(&output))
    };
    let said = list(&other.context(), &["--url", &url])?;
    assert!(
        said.contains(&format!(
            "the certificate of {} is not of the authority in",
            broker.url()
        )) && said.contains(&other.context().display().to_string())
            && said.contains("--ca FILE"),
        "{said}"
    );
    let ca = other.data().join("tls/ca.pem").display().to_string();
    let said = list(&broker.context(), &["--ca", &ca])?;
    assert!(
        said.contains(&format!("is not of the authority in --ca {ca}")),
        "{said}"
    );
    let said = list(&broker.context(), &["--token", "guessed"])?;
    assert!(
        said.contains("UNAUTHENTICATED") && said.contains("context.toml"),
        "{said}"
    );
    let foreign = dir.path().join("other/tls");
    let (certificate, key) = (foreign.join("client.pem"), foreign.join("client.key"));
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    let said = list(
        &broker.context(),
        &["--client-cert", &certificate, "--client-key", &key],
    )?;
    assert!(said.contains("refused the TLS connection"), "{said}");
    eventually("the broker logs each with its peer", || {
        let log = broker.log();
        let lines = log
            .lines()
            .filter(|line| line.contains("was refused") && line.contains("peer=127.0.0.1:"));
        Ok(lines.count() >= 3)
    })
}

/// Two shards and so two sockets on one port: the second broker hears who has it, and the first loses no packet.
#[test]
fn a_second_broker_on_a_port_is_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let first = Options::on(dir.path().join("first"))
        .with("--shards 2 --threads 2")
        .start()?;
    let mut second = Options::on(dir.path().join("second"))
        .with("--shards 2 --threads 2")
        .listen(first.port())
        .spawn()?;
    assert!(!second.wait_end()?.success());
    let holder = format!("(pid {})", first.pid());
    eventually("it says who has the port", || {
        Ok(second.log().contains("Address already in use") && second.log().contains(&holder))
    })?;
    first.ok("topic create t")?;
    Ok(())
}

/// The broker's address is in the certificate it makes, whatever loopback address that is.
#[test]
fn any_loopback_address_is_served() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let port = std::net::UdpSocket::bind("127.0.0.5:0")?
        .local_addr()?
        .port();
    let broker = Options::on(dir.path().join("data"))
        .address(&format!("127.0.0.5:{port}"))
        .start()?;
    broker.ok("topic list")?;
    Ok(())
}

#[test]
fn contexts_have_names() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    let elsewhere = dir.path().join("elsewhere");
    std::fs::create_dir(&elsewhere)?;
    let run = |line: &str| -> Result<Output> {
        let output = Command::new(binary())
            .args(line.split_whitespace())
            .env("XDG_CONFIG_HOME", dir.path().join("config"))
            .env_remove("MILLSTREAM_CONTEXT")
            .current_dir(&elsewhere)
            .stdin(Stdio::null())
            .output()?;
        Ok(output)
    };
    let ok = |line: &str| -> Result<String> {
        let output = run(line)?;
        ensure!(output.status.success(), "{line}: {}", stderr(&output));
        Ok(String::from_utf8(output.stdout)?)
    };
    assert_eq!(run("topic list")?.status.code(), Some(2), "no context yet");
    let file = broker.context();
    ok(&format!("context add here --context {}", file.display()))?;
    assert_eq!(run("topic list")?.status.code(), Some(2), "none is in use");
    ok("topic list --context here")?;
    ok("context use here")?;
    ok("topic list")?;
    let listed = json_lines(&ok("context list -o json")?)?;
    assert_eq!(
        (&listed[0]["name"], &listed[0]["used"]),
        (&"here".into(), &true.into())
    );
    let shown = ok("context show")?;
    assert!(
        shown.contains(&broker.url()) && !shown.contains("BEGIN"),
        "{shown}"
    );
    // Without any context: all by flags.
    let ca = dir.path().join("data/tls/ca.pem");
    let text: String = std::fs::read_to_string(&file)?;
    let token = text
        .lines()
        .find_map(|line| line.strip_prefix("token = "))
        .context("a token")?
        .trim_matches('"');
    let url = broker.url();
    ok(&format!(
        "topic list --url {url} --ca {} --token {token}",
        ca.display()
    ))?;
    let none = run(&format!("topic list --url {url} --ca {}", ca.display()))?;
    assert!(
        stderr(&none).contains("UNAUTHENTICATED"),
        "{}",
        stderr(&none)
    );
    ok("context remove here")?;
    Ok(())
}

#[test]
fn sighup_reloads_a_served_broker_and_stops_one_in_development() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("broker.toml");
    let principals = |rights: &str| {
        // printf %s secret | sha256sum
        let text = format!(
            "[[principals]]\nname = \"app\"\nrights = [{rights}]\n\
             token_sha256 = \"2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b\"\n"
        );
        std::fs::write(&config, text)
    };
    principals("\"produce\"")?;
    let mut broker = Options::on(dir.path().join("data"))
        .with(&format!("--config {}", config.display()))
        .start()?;
    let create = ["topic", "create", "t", "--token", "secret"];
    assert!(!broker.cli(&create)?.status.success());
    principals("\"produce\", \"admin\"")?;
    broker.signal(libc::SIGHUP);
    eventually("it reloads", || Ok(broker.log().contains("read again")))?;
    assert!(broker.cli(&create)?.status.success());
    principals("\"nonsense\"")?;
    broker.signal(libc::SIGHUP);
    eventually("it says why not", || {
        Ok(broker.log().contains("nothing was reloaded") && broker.log().contains("nonsense"))
    })?;
    broker.signal(libc::SIGTERM);
    assert!(broker.wait_end()?.success());

    let data = dir.path().join("dev");
    // Whoever runs the tests may ignore the signal (nohup), and that is inherited.
    let mut dev = Command::new("env")
        .arg("--default-signal=HUP")
        .arg(binary())
        .args(["dev", "--data"])
        .arg(&data)
        .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let stdout = dev.stdout.take().context("piped")?;
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stdout));
    lines.next().context("it is ready")??;
    millstream_e2e::send_signal(dev.id(), libc::SIGHUP);
    assert!(dev.wait()?.success(), "a goodbye, not an end by signal");
    Ok(())
}

/// 1: the broker says no. 2: the command line is wrong.
#[test]
fn what_the_broker_refuses_is_no_wrong_usage() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    for topic in ["a", "b"] {
        broker.ok(&format!("topic create {topic}"))?;
    }
    let past_the_end = "sub a --from 41 -e";
    for line in ["pub a -p 7", "sub a -p 7 -e", "sub none -e", past_the_end] {
        let arguments: Vec<_> = line.split_whitespace().collect();
        let output = broker.cli_with(&arguments, b"x\n")?;
        assert_eq!(output.status.code(), Some(1), "{line}: {}", stderr(&output));
    }
    // What can be deleted is, and what cannot is named.
    let output = broker.cli(&["topic", "delete", "a", "none", "b"])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("none"), "{}", stderr(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("deleted a, b"));
    assert_eq!(broker.list("topic list")?, serde_json::json!([]));
    Ok(())
}

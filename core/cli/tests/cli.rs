//! The command line by itself: exit codes, settings and their origins, what needs no broker.

use std::path::Path;
use std::process::{Command, Output, Stdio};

struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn millstream(directory: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MILLSTREAM_")) {
        command.env_remove(name);
    }
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs");
    Run {
        code: status.code(),
        stdout: String::from_utf8(stdout).expect("stdout is text"),
        stderr: String::from_utf8(stderr).expect("stderr is text"),
    }
}

fn empty() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

#[test]
fn wrong_usage_is_2_and_says_what_to_do() {
    let directory = empty();
    let path = directory.path();
    for arguments in [
        &["frobnicate"][..],
        &["sub"],
        &["topic", "create"],
        &["sub", "t", "--from", "soon"],
        &["sub", "t", "-f", "%z"],
        &["pub", "t", "--json", "--key-separator", ":"],
        &["bench", "produce", "--size", "much"],
        &["log", "verify", "nowhere"],
        &["serve", "--config", "nowhere.toml"],
    ] {
        let run = millstream(path, arguments, &[]);
        assert_eq!(run.code, Some(2), "{arguments:?}: {}", run.stderr);
        assert!(
            !run.stderr.is_empty() && run.stdout.is_empty(),
            "{arguments:?}"
        );
    }
    let run = millstream(path, &["topic", "list"], &[]);
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("millstream dev"), "{}", run.stderr);
    let run = millstream(path, &["topic", "list", "-o", "json"], &[]);
    let error: serde_json::Value = serde_json::from_str(&run.stderr).expect("an error in JSON");
    assert_eq!(error["error"]["name"], "USAGE");
}

#[test]
fn a_broker_that_is_not_there_is_1() {
    let directory = empty();
    let context = directory.path().join("c.toml");
    let ca = directory.path().join("ca.pem");
    // Port 9 discards; nothing answers there with QUIC.
    std::fs::write(
        &context,
        "url = \"millstream://127.0.0.1:9\"\nca_file = \"ca.pem\"\n",
    )
    .expect("written");
    std::fs::write(&ca, CA).expect("written");
    let variable = [("MILLSTREAM_CONTEXT", context.to_str().expect("a path"))];
    let run = millstream(
        directory.path(),
        &["topic", "list", "--timeout", "300ms"],
        &variable,
    );
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(
        run.stderr.contains("millstream://127.0.0.1:9"),
        "{}",
        run.stderr
    );
    std::fs::write(&context, "url = \"millstream://127.0.0.1:9\"\nurll = 1\n").expect("written");
    let run = millstream(directory.path(), &["topic", "list"], &variable);
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("urll"), "{}", run.stderr);
}

/// With `-o json` every error is one object on stderr, the argument parser's too.
#[test]
fn what_cannot_be_parsed_is_said_in_the_form_that_was_asked_for() {
    let directory = empty();
    for arguments in [
        &["topic", "frobnicate", "-o", "json"][..],
        &["--output=json", "sub"],
        &["-ojson", "sub", "t", "--from", "soon"],
    ] {
        let run = millstream(directory.path(), arguments, &[]);
        assert_eq!(run.code, Some(2), "{arguments:?}");
        let error: serde_json::Value = serde_json::from_str(&run.stderr).expect("JSON");
        assert_eq!(error["error"]["name"], "USAGE");
        let message = error["error"]["message"].as_str().expect("a message");
        assert!(
            !message.is_empty() && !message.starts_with("error"),
            "{message}"
        );
    }
    let run = millstream(directory.path(), &["sub", "--", "-o", "json", "x"], &[]);
    assert!(run.stderr.starts_with("error: "), "{}", run.stderr);
}

#[test]
fn a_log_filter_that_says_nothing_is_wrong_usage() {
    let directory = empty();
    for filter in ["debugg", "quinn=loud"] {
        let variable = [("MILLSTREAM_LOG", filter)];
        let run = millstream(directory.path(), &["config", "check"], &variable);
        assert_eq!(run.code, Some(2), "{}", run.stderr);
        assert!(run.stderr.contains("MILLSTREAM_LOG") && run.stderr.contains(filter));
    }
    let variable = [("MILLSTREAM_LOG", "warn,quinn=debug")];
    let run = millstream(directory.path(), &["config", "check"], &variable);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
}

#[test]
fn settings_come_from_flags_over_environment_over_file_over_defaults() {
    let directory = empty();
    let file = directory.path().join("m.toml");
    std::fs::write(
        &file,
        "listen = \"127.0.0.1:1\"\nshards = 2\n[log]\nspares_ready = 3\n",
    )
    .expect("written");
    let arguments = [
        "config",
        "show",
        "--config",
        "m.toml",
        "--listen",
        "127.0.0.1:3",
        "-o",
        "json",
    ];
    let variables = [
        ("MILLSTREAM_SHARDS", "4"),
        ("MILLSTREAM_LISTEN", "127.0.0.1:2"),
        ("MILLSTREAM_LOG_FORMAT", "json"),
    ];
    let run = millstream(directory.path(), &arguments, &variables);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let shown: serde_json::Value = serde_json::from_str(&run.stdout).expect("JSON");
    let origin = |name: &str| (shown[name]["value"].clone(), shown[name]["from"].clone());
    assert_eq!(origin("listen"), ("127.0.0.1:3".into(), "--listen".into()));
    assert_eq!(origin("shards"), (4.into(), "MILLSTREAM_SHARDS".into()));
    assert_eq!(origin("log.spares_ready"), (3.into(), "file".into()));
    assert_eq!(origin("http").1, "default");
}

#[test]
fn an_unknown_or_unsafe_setting_is_refused() {
    let directory = empty();
    std::fs::write(directory.path().join("m.toml"), "[log]\nsegment_size = 1\n").expect("written");
    let run = millstream(
        directory.path(),
        &["config", "check", "--config", "m.toml"],
        &[],
    );
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("segment_size"), "{}", run.stderr);
    let run = millstream(
        directory.path(),
        &["config", "check"],
        &[("MILLSTREAM_NONSENSE", "1")],
    );
    assert_eq!(run.code, Some(2));
    let run = millstream(
        directory.path(),
        &["serve", "--data", "d", "--listen", "0.0.0.0:0"],
        &[],
    );
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("certificate"), "{}", run.stderr);
    assert!(
        !directory.path().join("d").exists(),
        "nothing is made before the settings are good"
    );
    assert_eq!(
        millstream(directory.path(), &["config", "check"], &[]).code,
        Some(0)
    );
}

#[test]
fn every_command_has_help_and_every_shell_its_completions() {
    let directory = empty();
    for command in [
        "dev", "serve", "topic", "pub", "sub", "group", "plugin", "demo", "log", "bench", "doctor",
        "config",
    ] {
        let run = millstream(directory.path(), &[command, "--help"], &[]);
        assert_eq!(run.code, Some(0), "{command}");
    }
    let help = millstream(directory.path(), &["--help"], &[]).stdout;
    assert!(
        help.contains("Exit codes:") && help.contains("Examples:"),
        "{help}"
    );
    for shell in ["bash", "zsh", "fish"] {
        let run = millstream(directory.path(), &["completions", shell], &[]);
        assert!(
            run.code == Some(0) && run.stdout.contains("millstream"),
            "{shell}"
        );
    }
}

#[test]
fn the_doctor_looks_at_the_machine_without_a_broker() {
    let directory = empty();
    let run = millstream(
        directory.path(),
        &["doctor", "--offline", "-o", "json"],
        &[],
    );
    let report: serde_json::Value = serde_json::from_str(&run.stdout).expect("JSON");
    let checks: Vec<_> = report["checks"]
        .as_array()
        .expect("checks")
        .iter()
        .map(|check| check["check"].clone())
        .collect();
    for name in [
        "io_uring",
        "fdatasync",
        "UDP receive buffer",
        "free disk space",
    ] {
        assert!(checks.contains(&name.into()), "{checks:?}");
    }
    assert_eq!(
        std::fs::read_dir(directory.path()).expect("listed").count(),
        0,
        "it leaves nothing behind"
    );
}

#[test]
fn bundled_components_are_listed_without_a_broker() {
    let directory = empty();
    let run = millstream(
        directory.path(),
        &["plugin", "list", "--bundled", "-o", "json"],
        &[],
    );
    let mut names = Vec::new();
    for line in run.stdout.lines() {
        let listed: serde_json::Value = serde_json::from_str(line).expect("an object a line");
        let bytes = listed["bytes"].as_u64().expect("a number");
        assert!(bytes < 1 << 20, "bundled components stay below 1 MiB");
        names.push(listed["name"].clone());
    }
    assert_eq!(names, ["json-filter", "key-filter"]);
}

/// A self-signed certificate that nothing uses: `openssl req -x509 -newkey ec -pkeyopt
/// ec_paramgen_curve:P-256 -nodes -days 36500 -subj /CN=nobody`.
const CA: &str = include_str!("nobody.pem");

/// Who changes a topic is told the same settings, with their units, as who creates one.
#[test]
fn the_settings_of_a_topic_are_told_wherever_they_are_taken() {
    let directory = empty();
    let settings = |command: &str| {
        let help = millstream(directory.path(), &["topic", command, "--help"], &[]).stdout;
        let (_, settings) = help.split_once("Settings:").expect("settings");
        let (settings, _) = settings.split_once("Example").expect("examples");
        settings.to_owned()
    };
    let told = settings("config");
    assert!(
        told.contains("check.records") && told.contains("12h"),
        "{told}"
    );
    assert_eq!(told, settings("create"));
}

/// Who erred, with what, and what to type instead.
#[test]
fn first_mistakes_are_told_in_words_that_help() {
    let directory = empty();
    let path = directory.path();
    std::fs::write(path.join("ca.pem"), CA).expect("written");
    std::fs::write(path.join("junk.pem"), "junk\n").expect("written");
    std::fs::create_dir(path.join("folder")).expect("made");
    for (line, words) in [
        (
            "serve --data d --listen nohost:1",
            "`nohost` is a name, and a broker listens on",
        ),
        ("dev --listen 127.0.0.1", "`127.0.0.1` has no port"),
        ("serve --data d --http 7412", "127.0.0.1:7411"),
        ("pub t x --delivery-timeout 0", "`0` leaves no time at all"),
        ("topic list --timeout 0s", "`0s` leaves no time at all"),
        (
            "topic list --url h --ca gone.pem",
            "--ca: cannot read gone.pem",
        ),
        (
            "topic list --url h --ca junk.pem",
            "(--ca junk.pem) holds no certificate",
        ),
        (
            "topic list --url h --client-cert ca.pem",
            "--client-cert ca.pem needs its key: --client-key",
        ),
        (
            "topic list --url h --client-key k.pem",
            "--client-key k.pem needs its certificate: --client-cert",
        ),
        (
            "topic list --url h --ca ca.pem --client-cert junk.pem --client-key junk.pem",
            "(--client-cert junk.pem) holds no certificate",
        ),
        (
            "topic list --url h --ca ca.pem --client-cert ca.pem --client-key junk.pem",
            "(--client-key junk.pem) holds no private key",
        ),
        (
            "context add x --url h --ca junk.pem",
            "(--ca junk.pem) holds no certificate",
        ),
        (
            "topic list --url h",
            "no certificate authority to check h:7411 against",
        ),
        (
            "log verify folder",
            "folder is not a broker's data directory",
        ),
        (
            "log inspect folder --shard 3",
            "folder is not a broker's data directory",
        ),
    ] {
        let arguments: Vec<&str> = line.split(' ').collect();
        let home = [("XDG_CONFIG_HOME", path.to_str().expect("text"))];
        let run = millstream(path, &arguments, &home);
        assert_eq!(run.code, Some(2), "{line}: {}", run.stderr);
        assert!(run.stderr.contains(words), "{line}: {}", run.stderr);
    }
    let context = format!("url = \"h:1\"\nca_pem = '''{CA}'''\ncert_file = \"ca.pem\"\n");
    std::fs::write(path.join("context.toml"), context).expect("written");
    let run = millstream(path, &["topic", "list", "--context", "./context.toml"], &[]);
    assert!(
        run.stderr.contains("ca.pem) needs its key: key_file"),
        "{}",
        run.stderr
    );
}

/// Flags of other brokers' tools lead to those that are here, in JSON as well.
#[test]
fn flags_that_others_have_are_answered_with_ours() {
    let directory = empty();
    for (line, words) in [
        ("topic list --server h:1", "`--url HOST:PORT`"),
        ("topic list --broker h:1", "`--url HOST:PORT`"),
        ("sub t --bootstrap-server h:1", "`--url HOST:PORT`"),
        ("pub t --host h", "`--url HOST:PORT`"),
        ("group list -b h:1", "`--url HOST:PORT`"),
        ("serve --port 7411", "`--listen ADDRESS:PORT`"),
        ("sub t --from-beginning", "`--from start`"),
        ("sub t --max-messages 3", "`--count N`"),
    ] {
        for form in ["text", "json"] {
            let arguments: Vec<&str> = line.split(' ').chain(["-o", form]).collect();
            let run = millstream(directory.path(), &arguments, &[]);
            assert_eq!(run.code, Some(2), "{line}: {}", run.stderr);
            assert!(run.stderr.contains(words), "{line}: {}", run.stderr);
            assert!(!run.stderr.contains("--token"), "{line}: {}", run.stderr);
        }
    }
}

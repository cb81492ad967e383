//! What `core/packaging` installs: the files it names are there, the metrics that dashboard and alerts ask for
//! exist, the settings start a broker, and the broker tells the service manager where it stands.

use std::collections::BTreeSet;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use millstream_e2e::{Options, PATIENCE, binary, bundled};

fn packaging() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this");
    Path::new(&package).join("../../core/packaging")
}

/// Names of metrics in a text: words that begin as ours do, without what a histogram adds.
fn metrics_in(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("millstream_") || word.starts_with("process_"))
        .map(|word| word.strip_suffix("_bucket").unwrap_or(word).to_owned())
        .collect()
}

#[test]
fn dashboard_alerts_and_pages_ask_for_metrics_that_exist() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create t --partitions 2")?;
    let component = bundled("json-filter");
    broker.ok(&format!(
        "plugin deploy {} --topic t --stage produce --name f --param expr=n>0",
        component.display()
    ))?;
    broker.ok_with("pub t", b"{\"n\":1}\n")?;
    let refused = broker.cli(&["topic", "describe", "nothing"])?;
    assert!(!refused.status.success());
    let (_, page) = broker.http("/metrics")?;
    let exist: BTreeSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .map(str::to_owned)
        .collect();
    for file in [
        "grafana/millstream.json",
        "prometheus/alerts.yml",
        "../docs/operations.md",
    ] {
        let text = std::fs::read_to_string(packaging().join(file))?;
        let asked = metrics_in(&text);
        ensure!(asked.len() > 5, "{file} asks for no metrics");
        // A page may leave out what several names have in common: `millstream_subscribe_filter_…_total`.
        let begins =
            |begin: &str| begin.ends_with('_') && exist.iter().any(|name| name.starts_with(begin));
        let missing: Vec<_> = asked
            .difference(&exist)
            .filter(|name| !begins(name))
            .collect();
        ensure!(missing.is_empty(), "{file}: no such metrics: {missing:?}");
    }
    serde_json::from_str::<serde_json::Value>(&std::fs::read_to_string(
        packaging().join("grafana/millstream.json"),
    )?)?;
    for sample in [
        "millstream_build_info{version=\"",
        "millstream_topic_records_total{topic=\"t\"} 1",
        "millstream_filter_deployed{topic=\"t\",filter=\"f\",stage=\"produce\"} 1",
        "millstream_requests_refused_total{reason=\"UNKNOWN_TOPIC\"} 1",
        "millstream_handshakes_failed_total{reason=\"tls\"} 0",
    ] {
        ensure!(page.contains(sample), "no {sample} in:\n{page}");
    }
    Ok(())
}

/// Ready when clients can connect, stopping when the end begins: what `Type=notify` waits for.
#[test]
fn the_service_manager_is_told() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("notify");
    let manager = UnixDatagram::bind(&socket)?;
    manager.set_read_timeout(Some(PATIENCE))?;
    let heard = || -> Result<String> {
        let mut bytes = [0; 256];
        let len = manager.recv(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes[..len]).into_owned())
    };
    let environment = format!("NOTIFY_SOCKET={}", socket.display());
    let broker = Options::on(dir.path().join("data"))
        .through(["env", &environment])
        .start()?;
    assert_eq!(heard()?, "READY=1");
    broker.ok("topic list")?;
    broker.stop()?;
    assert_eq!(heard()?, "STOPPING=1");
    Ok(())
}

#[test]
fn the_installed_settings_are_good_and_the_unit_uses_them() -> Result<()> {
    let settings = packaging().join("millstream.toml");
    let check = std::process::Command::new(binary())
        .args(["config", "check", "--config"])
        .arg(&settings)
        .env("MILLSTREAM_DATA", std::env::temp_dir().join("unused"))
        .output()?;
    ensure!(check.status.success(), "{check:?}");
    let unit = std::fs::read_to_string(packaging().join("systemd/millstream.service"))?;
    let start = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart=/usr/bin/millstream "))
        .context("the unit starts the broker")?;
    assert_eq!(start, "serve --config /etc/millstream/millstream.toml");
    assert!(unit.contains("Type=notify"));
    assert!(unit.contains("ExecReload=/bin/kill -HUP $MAINPID"));
    Ok(())
}

/// Every file that the Debian package takes from the tree is there.
#[test]
fn the_packages_files_are_there() -> Result<()> {
    let cli = packaging().join("../cli");
    let manifest = std::fs::read_to_string(cli.join("Cargo.toml"))?;
    let metadata = manifest
        .split_once("[package.metadata.deb]")
        .context("the metadata of the package")?
        .1;
    let files: Vec<&str> = metadata
        .split('"')
        .filter(|word| word.starts_with("../"))
        .collect();
    ensure!(files.len() > 5, "{files:?}");
    for file in files {
        ensure!(cli.join(file).exists(), "{file} is not there");
    }
    // What is a hundred megabytes of symbols comes apart, and the settings are good before the first start.
    ensure!(metadata.contains("dbgsym = true"), "symbols in the package");
    let postinst = std::fs::read_to_string(packaging().join("debian/postinst"))?;
    ensure!(
        postinst.contains("install -d -o millstream -g millstream -m 0700 /var/lib/millstream")
    );
    let image = std::fs::read_to_string(packaging().join("docker/Dockerfile"))?;
    ensure!(image.contains("--profile dist") && image.contains("cargo xtask size /millstream"));
    Ok(())
}

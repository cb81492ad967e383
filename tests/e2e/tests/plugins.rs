//! The one plug point to the end: a component deployed by command changes what is stored or delivered.

use anyhow::Result;
use millstream_e2e::{Options, bundled};

const INPUT: &[u8] = b"{\"level\":\"info\",\"n\":1}\n{\"level\":\"error\",\"n\":2}\n{\"level\":\"info\",\"n\":3}\n{\"level\":\"error\",\"n\":4}\n";

/// At produce: dropped records are never stored and offsets stay dense; it survives a restart and
/// ends when it is removed.
#[test]
fn a_produce_filter_drops_before_storing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create logs --partitions 1")?;
    let component = bundled("json-filter");
    let component = component.display();
    broker.ok(&format!("plugin deploy {component} --topic logs --stage produce --name errors --param expr=level=='error'"))?;
    broker.ok_with("pub logs", INPUT)?;
    assert_eq!(
        broker.ok("sub logs --from start --exit-at-end -f %o:%v\\n")?,
        "0:{\"level\":\"error\",\"n\":2}\n1:{\"level\":\"error\",\"n\":4}\n"
    );

    // Sequences have holes where it dropped something: to verify them would tell loss that is none.
    let words = ["sub", "logs", "--from", "start", "-e", "--verify"];
    let refused = broker.cli(&words)?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(
        said.contains("logs cannot be read with --verify") && said.contains("`errors`"),
        "{said}"
    );

    let broker = Options::on(broker.kill()?).start()?;
    let list = broker.list("plugin list")?;
    assert!(list.to_string().contains("\"errors\""), "{list}");
    broker.ok_with("pub logs", INPUT)?;
    assert_eq!(
        broker.ok("sub logs --from start --exit-at-end -f %o\\n")?,
        "0\n1\n2\n3\n"
    );
    broker.ok("plugin remove errors --topic logs")?;
    broker.ok_with("pub logs", INPUT)?;
    assert_eq!(
        broker
            .ok("sub logs --from start --exit-at-end -f %o\\n")?
            .lines()
            .count(),
        8
    );
    Ok(())
}

/// Per subscription: everything stays stored, offsets stay true.
#[test]
fn a_subscription_filter_drops_on_delivery() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create logs --partitions 1")?;
    broker.ok_with("pub logs", INPUT)?;
    let component = bundled("json-filter");
    let component = component.display();
    broker.ok(&format!("plugin deploy {component} --topic logs --stage subscribe --name errors --param expr=level=='error'"))?;
    assert_eq!(
        broker.ok("sub logs --from start --exit-at-end -f %o\\n")?,
        "1\n3\n"
    );
    broker.ok("plugin remove errors --topic logs")?;
    assert_eq!(
        broker.ok("sub logs --from start --exit-at-end -f %o\\n")?,
        "0\n1\n2\n3\n"
    );
    Ok(())
}

/// Garbage is refused at deployment with words for its author.
#[test]
fn a_broken_component_is_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create t")?;
    let garbage = dir.path().join("garbage.wasm");
    std::fs::write(&garbage, b"\0asm but not really")?;
    let output = broker.cli(&[
        "plugin",
        "deploy",
        &garbage.to_string_lossy(),
        "--topic",
        "t",
        "--stage",
        "produce",
    ])?;
    assert!(!output.status.success());
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("component"),
        "{output:?}"
    );
    broker.ok_with("pub t", b"still works\n")?;
    Ok(())
}

/// One line of very many that is not JSON: it alone is refused, is named by its filter, and the rest is there.
#[test]
fn one_bad_record_costs_one_record() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create logs --partitions 1")?;
    broker.ok("plugin deploy json-filter --topic logs --param expr=n>=0")?;
    let mut lines: Vec<String> = (0..20_001).map(|n| format!("{{\"n\":{n}}}")).collect();
    lines[12_345] = "not JSON".to_owned();
    let input = lines.join("\n") + "\n";
    let output = broker.cli_with(&["pub", "logs"], input.as_bytes())?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("20,000 records acknowledged")
            && told.contains("line 12346: filter `json-filter`"),
        "{told}"
    );
    assert_eq!(
        broker
            .ok("sub logs --from start --exit-at-end -f %o\\n")?
            .lines()
            .count(),
        20_000
    );

    let list = broker.list("plugin list")?;
    assert_eq!(&list[0]["errors"], &serde_json::Value::from(1), "{list}");
    assert!(
        list[0]["state"]
            .as_str()
            .is_some_and(|state| state.contains("running")),
        "{list}"
    );
    assert!(
        list[0]["last_error"]
            .as_str()
            .is_some_and(|text| text.contains("JSON")),
        "{list}"
    );
    Ok(())
}

/// A bundled component is of use to a subscription without a deployment.
#[test]
fn a_bundled_filter_needs_no_deployment() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create logs --partitions 1")?;
    broker.ok_with("pub logs", INPUT)?;
    assert_eq!(
        broker.ok(
            "sub logs --from start --exit-at-end --filter json-filter --param expr=n>2 -f %o\\n"
        )?,
        "2\n3\n"
    );
    Ok(())
}

/// A record that a subscription's filter cannot judge ends the reading behind what came before it, which a group
/// has committed, whether its filter kept all of that or none.
#[test]
fn what_cannot_be_judged_stops_a_subscription_behind_what_came_before() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create logs --partitions 1")?;
    broker.ok_with("pub logs", b"{\"n\":1}\n{\"n\":2}\nbad\n{\"n\":3}\n")?;
    for (group, expression, printed) in [
        ("", "n > 0", "0\n1\n"),
        ("keeps-all", "n > 0", "0\n1\n"),
        ("keeps-one", "n > 1", "1\n"),
        ("keeps-none", "n > 2", ""),
    ] {
        let parameter = format!("expr={expression}");
        let mut words = vec!["sub", "logs", "--from", "start", "-f", "%o\\n"];
        words.extend(["--filter", "json-filter", "--param", &parameter]);
        match group {
            "" => words.push("--exit-at-end"),
            _ => words.extend(["--group", group, "--exit-at-end"]),
        }
        let output = broker.cli(&words)?;
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{group}: {told}");
        assert!(told.contains("offset 2"), "{group}: {told}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), printed, "{group}");
        if !group.is_empty() {
            let described = broker.json(&format!("group describe {group}"))?;
            assert_eq!(described["offsets"][0]["committed"], 2, "{described}");
        }
    }
    Ok(())
}

/// A subscription's own filter is the bundled one, whatever other topics have deployed under that name, and what
/// a deployment does with its failures is not what the subscription does.
#[test]
fn a_subscriptions_filter_is_not_that_of_another_topic() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create logs --partitions 1")?;
    broker.ok("topic create other --partitions 1")?;
    broker.ok("plugin deploy json-filter --topic other --on-error pass --param expr=n==7")?;
    broker.ok_with("pub logs", b"{\"n\":1}\nbad\n")?;
    let sub = |parameter: &[&str]| {
        let mut words = vec!["sub", "logs", "--from", "start", "-e", "-f", "%v\\n"];
        words.extend(["--filter", "json-filter"]);
        words.extend(parameter);
        broker.cli(&words)
    };
    let output = sub(&["--param", "expr=n > 0"])?;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "{\"n\":1}\n");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let output = sub(&[])?;
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("expr"), "{told}");
    Ok(())
}

/// What is there already is not replaced unasked, and where it is, that is said.
#[test]
fn what_is_deployed_is_replaced_only_by_who_says_so() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Options::on(dir.path().join("data")).start()?;
    broker.ok("topic create t --partitions 1")?;
    let said = broker.ok("plugin deploy json-filter --topic t --param expr=n>0")?;
    assert!(said.starts_with("deployed json-filter"), "{said}");
    let demo = broker.cli_with(&["demo", "--topic", "t"], b"{\"n\":1}\n")?;
    let words = String::from_utf8_lossy(&demo.stderr);
    assert_eq!(demo.status.code(), Some(1), "{words}");
    assert!(
        words.contains("plugin remove json-filter --topic t"),
        "{words}"
    );
    let filters = broker.list("plugin list")?;
    assert_eq!(filters[0]["parameters"]["expr"], "n>0", "{filters}");
    let said = broker.ok("plugin deploy json-filter --topic t --param expr=n>1")?;
    assert!(said.starts_with("replaced json-filter"), "{said}");
    Ok(())
}

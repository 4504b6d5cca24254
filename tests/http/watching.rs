//! What `examples/` offers to whoever watches with Prometheus and Grafana, against what a supervisor really tells.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use tidewater_test_support::shell;

use crate::client::get;
use crate::process::{Device, output};
use crate::routes::python_with;
use crate::serving;

fn example(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

/// The alerts as JSON.
fn alerts() -> Value {
    let script = "import json, sys, yaml\nprint(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
    let mut python: Command = python_with("yaml", "python3-yaml");
    let done = output(python.args(["-c", script]).arg(example("alerts.yml")));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&done.stdout).unwrap()
}

fn dashboard() -> Value {
    serde_json::from_slice(&std::fs::read(example("grafana-dashboard.json")).unwrap()).unwrap()
}

/// Everything below a key of this name.
fn all_of<'a>(key: &str, value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(parts) => {
            for (name, part) in parts {
                match part.as_str() {
                    Some(text) if name == key => found.push(text),
                    _ => all_of(key, part, found),
                }
            }
        }
        Value::Array(parts) => parts.iter().for_each(|part| all_of(key, part, found)),
        _ => {}
    }
}

/// The series that an expression asks for: each a metric's name with the labels that it must have, as they are written.
fn asked_for(expression: &str) -> Vec<(String, Vec<String>)> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = vec![];
    let mut rest = expression;
    while let Some(at) = rest.find("tidewater_") {
        rest = &rest[at..];
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let labels =
            after.strip_prefix('{').and_then(|it| it.split_once('}')).map_or("", |(labels, _)| labels);
        let exact =
            labels.split(',').map(str::trim).filter(|label| label.contains("=\"") && !label.contains("!="));
        found.push((name.to_owned(), exact.map(str::to_owned).collect()));
        rest = after;
    }
    found
}

/// A dashboard or an alert that asks for a metric or a state which nobody tells would be silent for ever. And what is told can be
/// seen on the dashboard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_examples_ask_for_what_is_told() {
    let device = Device::new().await;
    device.proxy.start();
    let (process, address) = serving(&mut device.command());
    shell::sqlite3_shell(
        device.path(),
        "CREATE TABLE note (id INTEGER PRIMARY KEY); INSERT INTO note DEFAULT VALUES;",
    );
    device.wait_until_equal(&["note"]).await;
    device.wait_until_flushed();
    let metrics = get(address, "/metrics").body;
    let series: Vec<&str> = metrics.lines().filter(|line| !line.starts_with('#')).collect();
    let named = |line: &str, name: &str| line.strip_prefix(name).is_some_and(|it| it.starts_with(['{', ' ']));
    let assert_told = |expression: &str| {
        for (name, labels) in asked_for(expression) {
            let told = series
                .iter()
                .any(|line| named(line, &name) && labels.iter().all(|label| line.contains(label)));
            assert!(told, "nobody tells {name} {labels:?}, which this asks for: {expression}\n{metrics}");
        }
        let depth = |open, close| expression.matches(open).count() == expression.matches(close).count();
        assert!(depth('(', ')') && depth('{', '}') && depth('[', ']'), "{expression}");
    };

    let (alerts, dashboard) = (alerts(), dashboard());
    let mut expressions = vec![];
    all_of("expr", &alerts, &mut expressions);
    let rules = alerts["groups"][0]["rules"].as_array().unwrap();
    assert!(rules.len() >= 10 && expressions.len() == rules.len(), "{alerts:#}");
    for rule in rules {
        let text = |pointer: &str| rule.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        assert!(text("/alert").starts_with("Tidewater"), "{rule:#}");
        assert!(["critical", "warning", "info"].contains(&text("/labels/severity")), "{rule:#}");
        assert!(text("/annotations/summary").contains("$labels.instance"), "{rule:#}");
        assert!(!text("/annotations/description").is_empty(), "{rule:#}");
    }
    // One is about who does not answer at all.
    let asking = expressions.iter().filter(|expression| !asked_for(expression).is_empty()).count();
    assert_eq!(asking, expressions.len() - 1);
    expressions.iter().for_each(|expression| assert_told(expression));

    let mut shown = vec![];
    all_of("expr", &dashboard, &mut shown);
    all_of("query", &dashboard, &mut shown);
    shown.iter().for_each(|expression| assert_told(expression));
    let panels = dashboard["panels"].as_array().unwrap();
    for panel in panels {
        let has_targets = panel["targets"].as_array().is_some_and(|targets| !targets.is_empty());
        assert!(has_targets && panel["title"].is_string() && panel["gridPos"].is_object(), "{panel:#}");
    }
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has a number of its own");

    let on_it: BTreeSet<String> =
        shown.iter().flat_map(|expression| asked_for(expression)).map(|(name, _)| name).collect();
    for line in metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let family = line.split_once(' ').unwrap().0;
        let names = ["", "_total", "_info", "_bucket"].map(|end| format!("{family}{end}"));
        assert!(names.iter().any(|name| on_it.contains(name)), "{line} is not on the dashboard");
    }
    process.stop();
}

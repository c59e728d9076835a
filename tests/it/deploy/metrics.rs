//! Dashboards and rules: that they ask for metrics that there are, and are what Prometheus understands.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value as Json;
use tidings_tests::directory::Directory;

use super::{document, list, path, succeeds, text};

const DASHBOARDS: [&str; 2] = ["grafana/fleet.json", "grafana/node.json"];
const RULES: [&str; 2] = ["prometheus/rules.yaml", "prometheus/alerts.yaml"];

/// What a histogram's series are called besides.
const OF_HISTOGRAMS: [&str; 3] = ["_bucket", "_sum", "_count"];

/// Labels that a scrape adds, and that histograms have.
const ADDED: [&str; 3] = ["job", "instance", "le"];

/// What `METRICS.md` says of a metric. A test of the HTTP interface holds it against what a node shows.
struct Metric {
    kind: String,
    labels: BTreeSet<String>,
}

fn metrics() -> Result<BTreeMap<String, Metric>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/tidings-http/METRICS.md");
    let text = fs::read_to_string(file)?;
    let row = |line: &str| {
        let cells: Vec<&str> = line.strip_prefix("| `tidings_")?.split('|').map(str::trim).collect();
        let (name, kind, labels) = (cells.first()?, cells.get(1)?, cells.get(3)?);
        let labels = labels.split(',').map(|label| label.trim().trim_matches('`').to_owned());
        let metric = Metric { kind: (*kind).to_owned(), labels: labels.filter(|l| !l.is_empty()).collect() };
        Some((format!("tidings_{}", name.trim_end_matches('`')), metric))
    };
    let metrics: BTreeMap<String, Metric> = text.lines().filter_map(row).collect();
    ensure!(metrics.contains_key("tidings_ready"), "METRICS.md has no table");
    Ok(metrics)
}

/// Every expression of a dashboard, by the panel that it is in.
fn expressions_of(dashboard: &str) -> Result<Vec<(String, String)>> {
    let dashboard: Json = serde_json::from_str(&text(dashboard)?).with_context(|| dashboard.to_owned())?;
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().context("no panels")? {
        let title = panel["title"].as_str().context("a panel without a title")?;
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().context("no expression")?;
            found.push((title.to_owned(), filled_in(expression)));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().context("no variables")? {
        if let Some(query) = variable["query"]["query"].as_str() {
            let series = query.strip_prefix("label_values(").and_then(|rest| rest.rsplit_once(','));
            found.push((variable["name"].to_string(), filled_in(series.context("no label_values")?.0)));
        }
    }
    Ok(found)
}

/// An expression as Grafana asks for it.
fn filled_in(expression: &str) -> String {
    let filled = [("$__rate_interval", "5m"), ("$job", "tidings"), ("$instance", "n1"), ("$cache", "users")];
    filled.iter().fold(expression.to_owned(), |text, (variable, value)| text.replace(variable, value))
}

/// The rules of a file: what each is called, and its expression.
fn rules(file: &str) -> Result<Vec<(String, String)>> {
    let document = document(file)?;
    let rules = list(&document["groups"]).iter().flat_map(|group| list(&group["rules"]));
    let named = rules.map(|rule| {
        let name =
            rule["record"].as_str().or_else(|| rule["alert"].as_str()).context("a rule without a name")?;
        Ok((name.to_owned(), rule["expr"].as_str().context("no expression")?.to_owned()))
    });
    named.collect()
}

/// The series that an expression names, with the labels that it selects them by.
fn series(expression: &str) -> Vec<(String, Vec<String>)> {
    let of_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(start) = rest.find("tidings_") {
        let before = rest[..start].trim_end_matches(of_name).len();
        let name: String = rest[before..].chars().take_while(|c| of_name(*c)).collect();
        rest = &rest[before + name.len()..];
        let selector =
            rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(within, _)| within);
        let label = |matcher: &str| matcher.split(['=', '!']).next().unwrap_or_default().trim().to_owned();
        let labels = selector.split(',').filter(|matcher| !matcher.trim().is_empty()).map(label);
        found.push((name, labels.collect()));
    }
    found
}

#[test]
fn series_are_found_with_their_labels() {
    let found = series("a(x:tidings_b:y{c=\"1\", d!~\"2\"}) / tidings_e_total[5m]");
    let of = |labels: &[&str]| labels.iter().map(|&label| label.to_owned()).collect::<Vec<_>>();
    let expected = [("x:tidings_b:y".to_owned(), of(&["c", "d"])), ("tidings_e_total".to_owned(), of(&[]))];
    assert_eq!(found, expected);
}

#[test]
fn dashboards_and_rules_ask_for_metrics_that_there_are() -> Result<()> {
    let metrics = metrics()?;
    let mut asked = Vec::new();
    for file in DASHBOARDS {
        asked.extend(expressions_of(file)?.into_iter().map(|(name, expression)| (file, name, expression)));
    }
    let mut recorded = BTreeSet::new();
    for file in RULES {
        for (name, expression) in rules(file)? {
            recorded.insert(name.clone());
            asked.push((file, name, expression));
        }
    }
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (file, place, expression) in &asked {
        for (name, labels) in series(expression) {
            seen += 1;
            if name.contains(':') {
                if !recorded.contains(&name) {
                    wrong.push(format!("{file}, {place}: nothing records {name}"));
                }
                continue;
            }
            let histogram = OF_HISTOGRAMS.iter().find_map(|suffix| name.strip_suffix(suffix));
            let of_histogram =
                histogram.and_then(|name| metrics.get(name)).filter(|metric| metric.kind == "histogram");
            let Some(metric) = of_histogram.or_else(|| metrics.get(&name).filter(|m| m.kind != "histogram"))
            else {
                wrong.push(format!("{file}, {place}: no series {name}"));
                continue;
            };
            for label in labels.iter().filter(|l| !metric.labels.contains(*l) && !ADDED.contains(&l.as_str()))
            {
                wrong.push(format!("{file}, {place}: {name} has no label {label}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(seen > asked.len() / 2, "{seen} series in {} expressions", asked.len());
    Ok(())
}

#[test]
fn prometheus_understands_every_expression_of_the_dashboards() -> Result<()> {
    let directory = Directory::create()?;
    let file = directory.path().join("rules.yaml");
    let mut rules = "groups:\n  - name: dashboards\n    rules:\n".to_owned();
    let mut count = 0;
    for dashboard in DASHBOARDS {
        for (_, expression) in expressions_of(dashboard)? {
            // A JSON text is a YAML one.
            writeln!(rules, "      - {{ record: expression:{count}, expr: {} }}", Json::from(expression))?;
            count += 1;
        }
    }
    fs::write(&file, rules.replace("expression:", "expression_"))?;
    let told = succeeds(Command::new("promtool").args(["check", "rules"]).arg(&file))?;
    assert!(told.contains(&format!("{count} rules found")), "{told}");
    Ok(())
}

#[test]
fn rules_and_alerts_do_what_their_tests_say() -> Result<()> {
    let directory = path("prometheus");
    let promtool =
        |arguments: &[&str]| succeeds(Command::new("promtool").current_dir(&directory).args(arguments));
    promtool(&["check", "config", "prometheus.yaml"])?;
    promtool(&["test", "rules", "rules.test.yaml", "alerts.test.yaml"])?;
    for (file, tests) in [(RULES[0], "prometheus/rules.test.yaml"), (RULES[1], "prometheus/alerts.test.yaml")]
    {
        let tests = text(tests)?;
        for (name, _) in rules(file)? {
            assert!(tests.contains(&name), "no test of {name}");
        }
    }
    Ok(())
}

#[test]
fn dashboards_have_ids_of_their_own_and_panels_that_say_what_they_show() -> Result<()> {
    let mut ids = BTreeSet::new();
    for file in DASHBOARDS {
        let dashboard: Json = serde_json::from_str(&text(file)?)?;
        let id = dashboard["uid"].as_str().context("no uid")?;
        assert!(ids.insert(id.to_owned()), "{file}: {id} is another's");
        let mut panels = BTreeSet::new();
        for panel in dashboard["panels"].as_array().context("no panels")? {
            assert!(panels.insert(panel["id"].to_string()), "{file}: {} is another's", panel["id"]);
            let described =
                panel["type"] == "row" || panel["description"].as_str().is_some_and(|d| !d.is_empty());
            assert!(described, "{file}: {} says nothing", panel["title"]);
        }
    }
    Ok(())
}

//! `tidings.example.toml` against what the program itself says of its configuration.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result};
use serde_json::Value as Json;
use tidings_tests::directory::Directory;
use tidings_tests::node::run_program;
use toml::{Table, Value};

use super::{certificates, findings, text};

const EXAMPLE: &str = "tidings.example.toml";

/// What a release says of settings that it does not follow, or not in a node of the program's, or not with the driver of
/// streams that is the default.
const NOT_FOLLOWED: [&str; 3] =
    ["not available in this release", "loader", "has no effect with the embedded driver"];

/// The example with nothing commented out: `#key = value` is a setting, `# text` a comment.
fn uncommented(example: &str) -> String {
    let bare = |line: &str| match line.strip_prefix('#') {
        Some(setting) if !setting.is_empty() && !setting.starts_with(' ') => setting.to_owned(),
        _ => line.to_owned(),
    };
    example.lines().map(|line| bare(line) + "\n").collect()
}

/// Every setting by its path, the entries of lists of tables under `[]`.
fn settings(path: &str, value: &Value, into: &mut BTreeMap<String, Json>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Table(table) => table.iter().for_each(|(name, value)| settings(&below(name), value, into)),
        Value::Array(items) if items.iter().any(Value::is_table) => {
            items.iter().for_each(|item| settings(&format!("{path}[]"), item, into));
        }
        value => {
            let json = serde_json::to_value(value).expect("what is in TOML is in JSON");
            into.insert(path.to_owned(), json);
        }
    }
}

fn read(text: &str) -> Result<BTreeMap<String, Json>> {
    let mut all = BTreeMap::new();
    settings("", &Value::Table(text.parse::<Table>()?), &mut all);
    Ok(all)
}

/// Every setting of the program's schema, with its default if it has one.
fn known(path: &str, schema: &Json, into: &mut BTreeMap<String, Option<Json>>) {
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        if schema["items"]["properties"].is_object() {
            known(&format!("{path}[]"), &schema["items"], into);
        } else if schema["properties"].is_object() {
            known(&path, schema, into);
        } else {
            into.insert(path, schema.get("default").cloned());
        }
    }
}

#[test]
fn the_example_names_every_setting_with_its_default() -> Result<()> {
    let example = text(EXAMPLE)?;
    let schema: Json = serde_json::from_str(&run_program(&["config", "schema"])?)?;
    let mut expected = BTreeMap::new();
    known("", &schema, &mut expected);
    assert!(expected.contains_key("cache[].replica_lag"), "not the schema: {expected:?}");
    // What is not commented out is the reader's to set.
    let (own, all) = (read(&example)?, read(&uncommented(&example))?);
    let mut wrong = Vec::new();
    for (path, default) in &expected {
        match (all.get(path), default) {
            (None, default) => wrong.push(format!("missing: {path}, default {default:?}")),
            (Some(shown), Some(default)) if shown != default && !own.contains_key(path) => {
                wrong.push(format!("{path} is shown as {shown}, and is {default} by default"));
            }
            _ => {}
        }
    }
    wrong.extend(
        all.keys().filter(|path| !expected.contains_key(*path)).map(|path| format!("unknown: {path}")),
    );
    assert!(wrong.is_empty(), "{EXAMPLE}: {wrong:#?}");
    // Those that have a default and are set nevertheless: whoever runs more than one machine has to.
    let changed = |(path, value): (&String, &Json)| {
        let default = expected.get(path).and_then(Option::as_ref)?;
        (default != value).then(|| path.clone())
    };
    assert_eq!(own.iter().filter_map(changed).collect::<Vec<_>>(), ["cluster.listen", "cluster.seeds"]);
    Ok(())
}

#[test]
fn the_example_is_accepted_beside_its_certificates() -> Result<()> {
    let directory = Directory::create()?;
    let file = directory.path().join("n1.toml");
    fs::write(&file, text(EXAMPLE)?)?;
    certificates(&directory.path().join("certs"), "shop", &["n1"])?;
    assert_eq!(findings(&file, &[])?, Vec::<Json>::new());
    Ok(())
}

#[test]
fn what_the_example_comments_out_is_understood_or_said_to_be_of_no_use() -> Result<()> {
    let directory = Directory::create()?;
    let file = directory.path().join("n1.toml");
    // A directory of the machine that is a service's.
    let here = directory.path().to_str().context("no text")?;
    fs::write(&file, uncommented(&text(EXAMPLE)?).replace("/var/lib/tidings", here))?;
    let certs = directory.path().join("certs");
    certificates(&certs, "shop", &["n1"])?;
    // What HTTP is protected with, where it is: a certificate that a node has will do.
    fs::copy(certs.join("n1.pem"), directory.path().join("http.pem"))?;
    fs::copy(certs.join("n1.key"), directory.path().join("http.key"))?;
    let token: Json = serde_json::from_str(&run_program(&["token", "create", "--role", "admin", "--json"])?)?;
    let (tokens, line) = (directory.path().join("tokens"), token["line"].as_str().context("no line")?);
    fs::write(&tokens, line)?;
    fs::set_permissions(&tokens, PermissionsExt::from_mode(0o600))?;
    for finding in findings(&file, &[])? {
        let message = finding["message"].as_str().context("no message")?;
        assert!(NOT_FOLLOWED.iter().any(|known| message.contains(known)), "{finding}");
    }
    Ok(())
}

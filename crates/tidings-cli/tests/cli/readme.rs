//! The commands of the README, as they are written and in their order.

use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::cluster::Node;
use crate::support::{ran, run_in, tidings};

const README: &str = include_str!("../../../../README.md");

/// The code blocks of a language between two texts.
fn blocks<'a>(language: &str, from: &str, to: &str) -> Vec<&'a str> {
    let (_, rest) = README.split_once(from).unwrap_or_else(|| panic!("the README lacks {from:?}"));
    let (part, _) = rest.split_once(to).unwrap_or_else(|| panic!("the README lacks {to:?}"));
    let begin = format!("```{language}\n");
    part.split(&begin[..]).skip(1).map(|block| block.split("```").next().unwrap()).collect()
}

/// Runs commands in a directory as a shell does that finds the program.
fn shell(directory: &Path, commands: &str) -> String {
    let program = tidings();
    let program = Path::new(program.get_program()).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("sh");
    command.args(["-e", "-c", commands]).current_dir(directory).env("PATH", path);
    ran(command.output().unwrap()).exits(0).stdout
}

#[test]
fn a_node_that_other_machines_reach_is_protected_as_the_readme_says() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let first = blocks("sh", "## Run it", "On a loopback address")[0].lines().next().unwrap();
    assert!(first.starts_with("tidings init --out shop"), "{first}");
    shell(path, first);

    let (from, to) = ("On a loopback address", "A viewer looks");
    let [make, use_it] = blocks("sh", from, to)[..] else { panic!("not two blocks of commands") };
    // The address is that of a machine of the reader's.
    shell(path, &make.replace("10.0.0.7", "127.0.0.1"));
    let http = blocks("toml", from, to)[0].replace("10.0.0.7:7480", "127.0.0.1:0");
    let file = path.join("shop/n1.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let section = "[http]\nlisten = \"127.0.0.1:7480\"\n";
    assert!(text.contains(section), "{text}");
    let text = text.replace(section, &http).replace("127.0.0.1:7401", "127.0.0.1:0");
    std::fs::write(&file, text).unwrap();
    let judged = run_in(path, &["config", "check", "shop/n1.toml", "--json"]).exits(0);
    assert_eq!(judged.json()["findings"], serde_json::json!([]));

    let (start, ask) = use_it.trim().split_once('\n').unwrap();
    assert_eq!(start, "tidings node --config shop/n1.toml");
    let node = Node::start(&file);
    assert!(node.url.starts_with("https://127.0.0.1:"), "{}", node.url);
    let told = shell(path, &ask.replace("https://10.0.0.7:7480", &node.url));
    assert!(told.contains("n1"), "{told}");
    node.signal(Signal::TERM);
    assert_eq!(node.ends().0, 0);
}

//! Where values come from: the table of defaults, the file, the environment; later ones win.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use toml::de::{DeTable, DeValue};

use super::finding::Finding;
use super::settings::{self, SETTINGS, Setting};
use super::value::Value;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Origin {
    /// The table of defaults.
    Default,
    /// The file, at a line from 1.
    File(usize),
    /// This environment variable.
    Environment(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(line) => write!(f, "file, line {line}"),
            Self::Environment(name) => f.write_str(name),
        }
    }
}

/// A setting that has a value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The setting.
    pub(crate) setting: &'static Setting,
    /// Its value.
    pub(crate) value: Value,
    /// Where that comes from.
    pub(crate) origin: Origin,
}

/// Every setting that has a value, by path; list positions are numbered (`cache[0].name`).
#[derive(Debug, Default)]
pub(crate) struct Values {
    /// By path.
    pub(crate) entries: BTreeMap<String, Entry>,
    /// Lists of tables, by path, with their lengths.
    pub(crate) lists: BTreeMap<&'static str, usize>,
    /// Tables that the file has, even empty ones, with their lines.
    pub(crate) tables: BTreeMap<String, usize>,
}

/// Prefix and separator of environment variables that override the file.
const VARIABLE_PREFIX: &str = "TIDINGS_";
const VARIABLE_SEPARATOR: &str = "__";

/// Least likeness (Jaro-Winkler) that makes a suggestion: a slip of a letter or two in a word of eight.
const LIKENESS_MIN: f64 = 0.8;

impl Values {
    /// Reads everything, collecting whatever is wrong.
    pub(crate) fn read(text: &str, variables: &[(String, String)], findings: &mut Vec<Finding>) -> Self {
        let mut values = Self::default();
        let (document, errors) = DeTable::parse_recoverable(text);
        let lines = Lines::new(text);
        findings.extend(errors.iter().map(|error| {
            let line = error.span().map(|span| lines.of(span.start));
            Finding::error("", error.message().to_owned()).at(line)
        }));
        if errors.is_empty() {
            Reader { values: &mut values, lines: &lines, findings }.table("", "", 1, document.get_ref());
        }
        for (name, value) in variables {
            values.variable(name, value, findings);
        }
        values.fill_in_defaults();
        values
    }

    /// The value at a path.
    pub(crate) fn get(&self, path: &str) -> Option<&Value> {
        self.entries.get(path).map(|entry| &entry.value)
    }

    /// The line of the file that sets a path, or begins the table of that path.
    pub(crate) fn line(&self, path: &str) -> Option<usize> {
        match self.entries.get(path).map(|entry| &entry.origin) {
            Some(Origin::File(line)) => Some(*line),
            Some(_) => None,
            None => self.tables.get(path).copied(),
        }
    }

    /// Whether the file has this table.
    pub(crate) fn has_table(&self, path: &str) -> bool {
        self.tables.contains_key(path)
    }

    /// How many tables a list has.
    pub(crate) fn count(&self, list: &str) -> usize {
        self.lists.get(list).copied().unwrap_or(0)
    }

    fn variable(&mut self, name: &str, text: &str, findings: &mut Vec<Finding>) {
        let Some(rest) = name.strip_prefix(VARIABLE_PREFIX).filter(|rest| rest.contains(VARIABLE_SEPARATOR))
        else {
            return;
        };
        let path = rest.to_ascii_lowercase().replace(VARIABLE_SEPARATOR, ".");
        let Some(setting) = settings::find(&path) else {
            let known: Vec<&str> =
                SETTINGS.iter().map(|setting| setting.path).filter(|path| !path.contains('[')).collect();
            let finding = Finding::error(name, "this variable overrides no setting");
            findings.push(match closest(&path, &known) {
                Some(path) => finding.help(format!("did you mean {}?", variable_of(path))),
                None => finding.help("tables of a list, such as caches, are set in the file"),
            });
            return;
        };
        match Value::from_text(setting.kind, text) {
            Ok(value) => {
                let origin = Origin::Environment(name.to_owned());
                self.entries.insert(path, Entry { setting, value, origin });
            }
            Err(why) => findings.push(Finding::error(path, why).help(format!("set by the variable {name}"))),
        }
    }

    fn fill_in_defaults(&mut self) {
        for setting in SETTINGS {
            let Some(default) = setting.default else { continue };
            let paths = match setting.path.split_once("[]") {
                Some((list, rest)) => {
                    (0..self.count(list)).map(|index| format!("{list}[{index}]{rest}")).collect()
                }
                None => vec![setting.path.to_owned()],
            };
            for path in paths {
                self.entries.entry(path).or_insert_with(|| Entry {
                    setting,
                    value: default_value(setting, default),
                    origin: Origin::Default,
                });
            }
        }
    }
}

/// The variable that overrides a path.
pub(crate) fn variable_of(path: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", path.replace('.', VARIABLE_SEPARATOR).to_ascii_uppercase())
}

/// The word most like another one, if any is like it at all.
pub(crate) fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let likeness = |other: &&str| strsim::jaro_winkler(word, other);
    let best = known.iter().copied().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(&best) >= LIKENESS_MIN).then_some(best)
}

fn default_value(setting: &Setting, default: &str) -> Value {
    let parsed = DeValue::parse(default).map_err(|error| error.to_string());
    parsed
        .and_then(|value| Value::from_toml(setting.kind, value.get_ref()))
        .expect("invariant: every default in the table can be read, as a test shows")
}

/// Walks a document along the table of settings.
struct Reader<'a> {
    values: &'a mut Values,
    lines: &'a Lines,
    findings: &'a mut Vec<Finding>,
}

impl Reader<'_> {
    /// Reads a table that stands at `path` and is described at `pattern`, where list positions are `[]`.
    fn table(&mut self, pattern: &str, path: &str, line: usize, table: &DeTable<'_>) {
        self.values.tables.insert(path.to_owned(), line);
        for (key, value) in table {
            let line = self.lines.of(key.span().start);
            let (key, value) = (key.get_ref().as_ref(), value.get_ref());
            let pattern_below = join(pattern, key);
            let path_below = join(path, key);
            let known = settings::below(pattern);
            if let Some(setting) = settings::find(&pattern_below) {
                self.setting(setting, path_below, line, value);
            } else if known.contains(&key) {
                match value {
                    DeValue::Table(table) => self.table(&pattern_below, &path_below, line, table),
                    _ => self.wrong(path_below, line, format!("expected a table: write [{pattern_below}]")),
                }
            } else if let Some(list) = known.iter().find(|name| name.strip_suffix("[]") == Some(key)) {
                self.list(&join(pattern, list), &path_below, line, value);
            } else {
                self.unknown(pattern, key, path_below, line, &known);
            }
        }
    }

    fn setting(&mut self, setting: &'static Setting, path: String, line: usize, value: &DeValue<'_>) {
        match Value::from_toml(setting.kind, value) {
            Ok(value) => {
                let origin = Origin::File(line);
                self.values.entries.insert(path, Entry { setting, value, origin });
            }
            Err(why) => self.wrong(path, line, why),
        }
    }

    fn list(&mut self, pattern: &str, path: &str, line: usize, value: &DeValue<'_>) {
        let expected = format!("expected a list of tables: write [[{path}]]");
        let DeValue::Array(items) = value else {
            self.wrong(path.to_owned(), line, expected);
            return;
        };
        let known = SETTINGS
            .iter()
            .find_map(|setting| setting.path.split_once("[]").filter(|(list, _)| *list == path));
        if let Some((list, _)) = known {
            self.values.lists.insert(list, items.iter().count());
        }
        for (index, item) in items.iter().enumerate() {
            match item.get_ref() {
                DeValue::Table(table) => {
                    let line = self.lines.of(item.span().start);
                    self.table(pattern, &format!("{path}[{index}]"), line, table);
                }
                _ => self.wrong(format!("{path}[{index}]"), line, expected.clone()),
            }
        }
    }

    fn unknown(&mut self, pattern: &str, key: &str, path: String, line: usize, known: &[&str]) {
        let names: Vec<&str> = known.iter().map(|name| name.trim_end_matches("[]")).collect();
        let elsewhere = SETTINGS.iter().find(|setting| setting.path.rsplit('.').next() == Some(key));
        let help = match (closest(key, &names), elsewhere) {
            (Some(name), _) => format!("did you mean {name:?}?"),
            (None, Some(setting)) => format!("did you mean {}?", setting.path),
            (None, None) if pattern.is_empty() => format!("there are the sections {}", names.join(", ")),
            (None, None) => format!("[{pattern}] knows {}", names.join(", ")),
        };
        self.findings.push(Finding::error(path, "unknown key").at(Some(line)).help(help));
    }

    fn wrong(&mut self, path: String, line: usize, why: String) {
        self.findings.push(Finding::error(path, why).at(Some(line)));
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// From byte offsets to lines.
struct Lines {
    starts: Vec<usize>,
}

impl Lines {
    fn new(text: &str) -> Self {
        Self {
            starts: text
                .bytes()
                .enumerate()
                .filter(|(_, byte)| *byte == b'\n')
                .map(|(at, _)| at + 1)
                .collect(),
        }
    }

    fn of(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_and_example_can_be_read() {
        for setting in SETTINGS {
            for text in [setting.default.unwrap_or(setting.example), setting.example] {
                let value = DeValue::parse(text).unwrap();
                let value = Value::from_toml(setting.kind, value.get_ref()).unwrap();
                let shown = value.to_string();
                let again = Value::from_toml(setting.kind, DeValue::parse(&shown).unwrap().get_ref());
                assert_eq!(again, Ok(value), "{}: {shown}", setting.path);
            }
        }
    }

    #[test]
    fn every_setting_belongs_to_a_section() {
        for setting in SETTINGS {
            let found = settings::SECTIONS
                .iter()
                .any(|(section, _)| setting.path.starts_with(&format!("{section}.")));
            assert!(found, "{}", setting.path);
        }
    }

    #[test]
    fn the_environment_wins_over_the_file_and_the_file_over_the_default() {
        let mut findings = Vec::new();
        let text = "[coherence]\nmax_staleness = \"1s\"\nlanes = 8\n";
        let variables = [("TIDINGS_COHERENCE__LANES".to_owned(), "16".to_owned())];
        let values = Values::read(text, &variables, &mut findings);
        assert_eq!(findings, []);
        let origin = |path: &str| values.entries[path].origin.clone();
        assert_eq!(values.get("coherence.lanes"), Some(&Value::Count(16)));
        assert_eq!(origin("coherence.lanes"), Origin::Environment("TIDINGS_COHERENCE__LANES".to_owned()));
        assert_eq!(origin("coherence.max_staleness"), Origin::File(2));
        assert_eq!(origin("coherence.log_events"), Origin::Default);
    }

    #[test]
    fn unknown_keys_get_a_line_and_a_suggestion() {
        let mut findings = Vec::new();
        Values::read(
            "[cluster]\nname = \"a\"\nlisten_adr = \"x\"\nlisen = \"y\"\n\n[cash]\n",
            &[],
            &mut findings,
        );
        let text: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert!(
            text.iter().any(|text| text == "cluster.lisen (line 4): unknown key; did you mean \"listen\"?"),
            "{text:?}"
        );
        assert!(
            text.iter().any(|text| text.starts_with("cash (line 6): unknown key; did you mean \"cache\"")),
            "{text:?}"
        );
    }

    #[test]
    fn a_key_of_another_section_is_shown_its_place() {
        let mut findings = Vec::new();
        Values::read("[cluster]\nwrite_horizon = \"1s\"\n", &[], &mut findings);
        assert_eq!(findings[0].help.as_deref(), Some("did you mean coherence.write_horizon?"));
    }

    #[test]
    fn a_variable_without_a_setting_is_an_error_and_others_are_left_alone() {
        let mut findings = Vec::new();
        let variables = [("TIDINGS_COHERENCE__LANE", "1"), ("TIDINGS_URL", "http://x"), ("HOME", "/")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        Values::read("", &variables, &mut findings);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].help.as_deref(), Some("did you mean TIDINGS_COHERENCE__LANES?"));
    }

    #[test]
    fn broken_toml_is_reported_with_its_line() {
        let mut findings = Vec::new();
        Values::read("[cluster]\nname = \n", &[], &mut findings);
        assert_eq!(findings[0].line, Some(2));
    }
}

//! The configuration as text: the effective values, the default file, the JSON schema.

use std::fmt::Write as _;

use serde_json::{Map, Value as Json, json};

use super::settings::{Kind, SECTIONS, SETTINGS, Setting, State};
use super::source::{Entry, Origin, Values, variable_of};
use super::streams::is_idle;

/// Effective values in the order of the table: path, value, origin. Defaults of which the store of streams has no use
/// are not there.
pub(crate) fn effective(values: &Values) -> Vec<(String, Json, Origin)> {
    let mut shown: Vec<(String, &Entry)> = Vec::new();
    for (section, _) in SECTIONS {
        let of_section = |path: &str| path.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'));
        match section.strip_suffix("[]") {
            Some(list) => {
                for index in 0..values.count(list) {
                    shown.extend(ordered(values, &format!("{list}[{index}]")));
                }
            }
            // `streams.defaults` comes as a section of its own.
            None => shown.extend(ordered(values, section).filter(|(path, _)| {
                of_section(path) && (section != "streams" || !path.starts_with("streams.defaults."))
            })),
        }
    }
    shown.retain(|(path, entry)| entry.origin != Origin::Default || !is_idle(values, path));
    shown.into_iter().map(|(path, entry)| (path, entry.value.to_json(), entry.origin.clone())).collect()
}

fn ordered<'a>(values: &'a Values, section: &str) -> impl Iterator<Item = (String, &'a Entry)> {
    let pattern = section.split_once('[').map_or_else(|| section.to_owned(), |(list, _)| format!("{list}[]"));
    let section = section.to_owned();
    SETTINGS.iter().filter_map(move |setting| {
        let rest = setting.path.strip_prefix(&pattern)?.strip_prefix('.')?;
        let path = format!("{section}.{rest}");
        values.entries.get(&path).map(|entry| (path.clone(), entry))
    })
}

/// The effective values as one document.
pub(crate) fn document(values: &Values) -> Json {
    let entry = |(key, value, origin): (String, Json, Origin)| json!({ "key": key, "value": value, "origin": origin });
    effective(values).into_iter().map(entry).collect()
}

/// A file with every default, commented; what has no default, or is not available, is commented out.
pub(crate) fn default_file() -> String {
    let mut text = String::from(
        "# Configuration of a tidings node. What is commented out is unset, or has no effect in this release.\n\
         # Variables override it: ",
    );
    let _ = writeln!(text, "{}=\"1s\" sets coherence.max_staleness.", variable_of("coherence.max_staleness"));
    for (section, about) in SECTIONS {
        let settings: Vec<&Setting> =
            SETTINGS.iter().filter(|setting| section_of(setting) == section).collect();
        let unavailable = settings.iter().all(|setting| setting.state != State::Works);
        // A directory is made only by who asks for one.
        let off = unavailable || section.starts_with("streams");
        let heading = match section.strip_suffix("[]") {
            Some(list) => format!("[[{list}]]"),
            None => format!("[{section}]"),
        };
        let note = if unavailable { " Not available in this release." } else { "" };
        let _ = write!(text, "\n# {about}{note}\n{}{heading}\n", if off { "# " } else { "" });
        for setting in settings {
            let key = setting.path.strip_prefix(section).unwrap_or_default().trim_start_matches('.');
            let (value, off) = filled_in(setting, off);
            let line = format!("{}{key} = {value}", if off { "# " } else { "" });
            let _ = writeln!(text, "{line:<44} # {}", setting.doc);
        }
    }
    text
}

/// A setting's value in the default file, and whether it is commented out. The file is to be accepted as it is:
/// what is required is filled in, and the identity is one for development.
fn filled_in(setting: &Setting, off: bool) -> (&'static str, bool) {
    match setting.path {
        "cluster.name" | "cluster.node_id" | "http.listen" | "cache[].name" => (setting.example, false),
        "tls.development" => ("true", false),
        _ => (
            setting.default.unwrap_or(setting.example),
            off || setting.default.is_none() || setting.state != State::Works,
        ),
    }
}

/// The section a setting stands under: the longest that is a part of its path.
fn section_of(setting: &Setting) -> &'static str {
    let fits = |section: &&str| setting.path.strip_prefix(*section).is_some_and(|rest| rest.starts_with('.'));
    let sections = SECTIONS.into_iter().map(|(section, _)| section).filter(fits);
    sections.max_by_key(|section| section.len()).unwrap_or_default()
}

/// The JSON schema (draft 2020-12) of the configuration.
pub(crate) fn schema() -> Json {
    let mut root = object();
    for setting in SETTINGS {
        let mut here = &mut root;
        let mut parts = setting.path.split('.').peekable();
        while let Some(part) = parts.next() {
            let leaf = parts.peek().is_none().then(|| described(setting));
            here = descend(here, part, leaf);
        }
    }
    root["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    root["title"] = "tidings configuration".into();
    root["required"] = json!(["cluster"]);
    root["properties"]["cluster"]["required"] = json!(["name", "node_id"]);
    root
}

/// The schema of a name within an object's schema; made if it is not there.
fn descend<'a>(object_here: &'a mut Json, part: &str, leaf: Option<Json>) -> &'a mut Json {
    let name = part.trim_end_matches("[]");
    let fresh = match leaf {
        Some(leaf) => leaf,
        None if part.ends_with("[]") => json!({ "type": "array", "items": object() }),
        None => object(),
    };
    let properties = &mut object_here["properties"];
    if properties.get(name).is_none() {
        properties[name] = fresh;
    }
    if part.ends_with("[]") { &mut properties[name]["items"] } else { &mut properties[name] }
}

fn object() -> Json {
    json!({ "type": "object", "additionalProperties": false, "properties": {} })
}

fn described(setting: &Setting) -> Json {
    let mut schema = match setting.kind {
        Kind::Addresses | Kind::Texts => json!({ "type": "array", "items": { "type": "string" } }),
        Kind::Count(least, u64::MAX) => json!({ "type": "integer", "minimum": least }),
        Kind::Count(least, most) => json!({ "type": "integer", "minimum": least, "maximum": most }),
        Kind::Capacity => json!({ "type": ["string", "integer"] }),
        Kind::Share => json!({ "type": "number", "minimum": 0, "maximum": 1 }),
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::Choice(words) => json!({ "enum": words }),
        _ => json!({ "type": "string" }),
    };
    let mut more = Map::new();
    more.insert("description".to_owned(), setting.doc.into());
    if let Some(default) = setting.default.and_then(|default| serde_json::from_str::<Json>(default).ok()) {
        more.insert("default".to_owned(), default);
    }
    if let Some(fields) = schema.as_object_mut() {
        fields.extend(more);
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schema_knows_every_setting() {
        let schema = schema();
        for setting in SETTINGS {
            let pointer: String =
                setting.path.split('.').fold(String::new(), |pointer, part| match part.strip_suffix("[]") {
                    Some(list) => format!("{pointer}/properties/{list}/items"),
                    None => format!("{pointer}/properties/{part}"),
                });
            let found = schema.pointer(&pointer).unwrap_or_else(|| panic!("no {pointer}"));
            assert_eq!(found["description"], setting.doc, "{pointer}");
        }
    }

    #[test]
    fn default_file_names_every_setting() {
        let text = default_file();
        for setting in SETTINGS {
            let key = setting.path.strip_prefix(section_of(setting)).unwrap().trim_start_matches('.');
            assert!(text.contains(&format!("{key} = ")), "{}", setting.path);
        }
    }
}

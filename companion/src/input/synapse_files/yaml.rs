//! A YAML file of Synapse's: the keys that routing depends on, each value with its place.
//!
//! In comes the text, out come [`Node`]s that are asked for what they should be. A value that is something else is
//! reported with its line and the path of its key. All other keys are skipped while parsing, for these files hold secrets,
//! and no message shows a value.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use crate::diagnostic::{Diagnostic, Diagnostics, Place};
use crate::input::facts::Statement;

/// The top-level keys that are kept.
const KEPT: [&str; 16] = [
    "server_name",
    "listeners",
    "worker_listeners",
    "worker_app",
    "worker_name",
    "instance_map",
    "stream_writers",
    "federation_sender_instances",
    "pusher_instances",
    "run_background_tasks_on",
    "notify_appservices_from_worker",
    "update_user_directory_from_worker",
    "enable_media_repo",
    "media_instance_running_background_jobs",
    "max_upload_size",
    "matrix_authentication_service",
];

/// A parsed file.
pub(super) struct File {
    pub path: PathBuf,
    keys: BTreeMap<String, Node>,
}

/// A value and where it begins.
struct Node {
    value: Value,
    line: usize,
    column: usize,
}

enum Value {
    Null,
    Bool(bool),
    Number(i64),
    /// Text, and numbers that are not whole.
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

/// A value with the path of its key, as messages name it.
#[derive(Clone)]
pub(super) struct At<'a> {
    file: &'a Path,
    node: &'a Node,
    pub key: String,
}

impl File {
    /// Parses a file. `None` if that is impossible, which has been said then.
    pub(super) fn parse(path: &Path, text: &str, found: &mut Diagnostics) -> Option<Self> {
        let options = serde_saphyr::options! {
            duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
            with_snippet: false,
        };
        match serde_saphyr::from_str_with_options::<Top>(text, options) {
            Ok(top) => Some(Self {
                path: path.to_owned(),
                keys: top.0,
            }),
            Err(error) => {
                let place = error.location().map_or_else(
                    || Place::file(path),
                    |at| Place::line(path, at.line() as usize, at.column() as usize),
                );
                found.push(unreadable(text, &place));
                None
            }
        }
    }

    /// The value of a top-level key. A key without a value is as good as none, as in Synapse.
    pub(super) fn get(&self, key: &str) -> Option<At<'_>> {
        let node = self.keys.get(key)?;
        let at = At {
            file: &self.path,
            node,
            key: key.to_owned(),
        };
        (!matches!(node.value, Value::Null)).then_some(at)
    }

    /// Whether the file is a table of keys that has any of these.
    pub(super) fn has_any(&self, keys: &[&str]) -> bool {
        keys.iter().any(|key| self.keys.contains_key(*key))
    }
}

/// The reader's own words may quote a value, and a value may be a secret: only the place is told, and a placeholder's name.
fn unreadable(text: &str, place: &Place) -> Diagnostic {
    let line = text.lines().nth(place.line.saturating_sub(1)).unwrap_or("");
    let problem = match placeholder(line.split_once(':').map_or(line, |(_, value)| value)) {
        Some(name) => Diagnostic::error(format!("the placeholder {name} was not filled in"))
            .fix("render the template first, and name the file that Synapse itself reads"),
        None => Diagnostic::error("Synapse could not read this as YAML")
            .fix("check the indentation and quotes of this line and the one above it"),
    };
    let problem = problem.at(place);
    match key_above(text, place.line) {
        Some(key) => problem.key(key),
        None => problem,
    }
}

/// The key at the left margin that a line belongs to. Nothing else of the line may be shown.
fn key_above(text: &str, line: usize) -> Option<&str> {
    let before: Vec<&str> = text.lines().take(line).collect();
    before.into_iter().rev().find_map(|line| {
        let (key, _) = line.split_once(':')?;
        let is_key = !key.is_empty()
            && key
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        is_key.then_some(key)
    })
}

/// The first thing in a text that a template engine should have replaced: `${PORT}`, `$PORT`, `{{ port }}`, `%PORT%`,
/// `@PORT@`, `<port>`.
pub(super) fn placeholder(text: &str) -> Option<&str> {
    let named = |name: &str| {
        let name = name.trim();
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_.-:[]'\" |".contains(c))
    };
    for (open, close) in [
        ("${", "}"),
        ("{{", "}}"),
        ("@", "@"),
        ("%", "%"),
        ("<", ">"),
    ] {
        for (start, _) in text.match_indices(open) {
            let inner = &text[start + open.len()..];
            if let Some(end) = inner.find(close)
                && named(&inner[..end])
            {
                return Some(&text[start..start + open.len() + end + close.len()]);
            }
        }
    }
    let start = text.find('$')?;
    let name = text[start + 1..]
        .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .map_or(&text[start + 1..], |end| &text[start + 1..start + 1 + end]);
    named(name).then_some(&text[start..=start + name.len()])
}

impl<'a> At<'a> {
    /// Where it is, for messages.
    pub(super) fn statement(&self) -> Statement {
        Statement {
            place: Some(Place::line(self.file, self.node.line, self.node.column)),
            key: self.key.clone(),
        }
    }

    /// An error at this value.
    fn wrong(&self, expected: &str, found: &mut Diagnostics) {
        let error = match &self.node.value {
            Value::Text(text) if placeholder(text).is_some() => Diagnostic::error(format!(
                "the placeholder {} was not filled in",
                placeholder(text).unwrap_or_default()
            ))
            .fix("render the template first, and name the file that Synapse itself reads"),
            _ => Diagnostic::error(format!("Synapse expects {expected} here"))
                .fix(format!("write {expected}")),
        };
        found.push(self.statement().on(error));
    }

    /// Text without placeholders.
    pub(super) fn text(&self, found: &mut Diagnostics) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) if placeholder(text).is_none() => Some(text),
            _ => {
                self.wrong("text", found);
                None
            }
        }
    }

    /// Text or a number, as text.
    pub(super) fn scalar(&self, found: &mut Diagnostics) -> Option<String> {
        match &self.node.value {
            Value::Number(number) => Some(number.to_string()),
            _ => self.text(found).map(str::to_owned),
        }
    }

    /// A port. Synapse refuses one in quotes.
    pub(super) fn port(&self, found: &mut Diagnostics) -> Option<u16> {
        let port = match self.node.value {
            Value::Number(number) => u16::try_from(number).ok().filter(|port| *port > 0),
            _ => None,
        };
        if port.is_none() {
            self.wrong("a port from 1 to 65535, without quotes", found);
        }
        port
    }

    /// Whether Python takes it for true.
    pub(super) fn truth(&self) -> bool {
        match &self.node.value {
            Value::Null => false,
            Value::Bool(value) => *value,
            Value::Number(number) => *number != 0,
            Value::Text(text) => !text.is_empty(),
            Value::List(items) => !items.is_empty(),
            Value::Map(entries) => !entries.is_empty(),
        }
    }

    /// `true` or `false`; for `enable_media_repo`, which Synapse compares with `False` itself.
    pub(super) fn boolean(&self, found: &mut Diagnostics) -> Option<bool> {
        match self.node.value {
            Value::Bool(value) => Some(value),
            _ => {
                self.wrong("true or false", found);
                None
            }
        }
    }

    /// The items of a list, each with its index in the key.
    pub(super) fn list(&self, found: &mut Diagnostics) -> Vec<At<'a>> {
        let Value::List(items) = &self.node.value else {
            self.wrong("a list", found);
            return Vec::new();
        };
        items
            .iter()
            .enumerate()
            .map(|(i, node)| At {
                file: self.file,
                node,
                key: format!("{}[{i}]", self.key),
            })
            .collect()
    }

    /// Text, or a list of texts.
    pub(super) fn texts(&self, found: &mut Diagnostics) -> Vec<At<'a>> {
        match self.node.value {
            Value::List(_) => self.list(found),
            _ => vec![self.clone()],
        }
    }

    /// The entries of a map.
    pub(super) fn entries(&self, found: &mut Diagnostics) -> Vec<(&'a str, At<'a>)> {
        let Value::Map(entries) = &self.node.value else {
            self.wrong("a map of keys and values", found);
            return Vec::new();
        };
        entries
            .iter()
            .map(|(name, node)| {
                let key = format!("{}.{name}", self.key);
                let at = At {
                    file: self.file,
                    node,
                    key,
                };
                (name.as_str(), at)
            })
            .collect()
    }

    /// The value of a key of this map, if it has one.
    pub(super) fn get(&self, key: &str) -> Option<At<'a>> {
        let Value::Map(entries) = &self.node.value else {
            return None;
        };
        let (_, node) = entries.iter().rev().find(|(name, _)| name == key)?;
        let at = At {
            file: self.file,
            node,
            key: format!("{}.{key}", self.key),
        };
        (!matches!(node.value, Value::Null)).then_some(at)
    }

    /// Whether it is a map.
    pub(super) fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }
}

/// The file as a whole: a map whose other keys are skipped, or anything else, which Synapse ignores.
struct Top(BTreeMap<String, Node>);

impl<'de> Deserialize<'de> for Top {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Top;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("keys and values")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Top, A::Error> {
                let mut keys = BTreeMap::new();
                while let Some(Name(key)) = map.next_key()? {
                    if KEPT.contains(&key.as_str()) {
                        keys.insert(key, map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Top(keys))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Top, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Top(BTreeMap::new()))
            }

            fn visit_str<E>(self, _: &str) -> Result<Top, E> {
                Ok(Top(BTreeMap::new()))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Top, E> {
                Ok(Top(BTreeMap::new()))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Top, E> {
                Ok(Top(BTreeMap::new()))
            }

            fn visit_unit<E>(self) -> Result<Top, E> {
                Ok(Top(BTreeMap::new()))
            }
        }
        deserializer.deserialize_any(Keys)
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self {
            value: spanned.value,
            line: spanned.defined.line() as usize,
            column: spanned.defined.column() as usize,
        })
    }
}

/// A key, which YAML allows to be of any type.
struct Name(String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match Value::deserialize(deserializer)? {
            Value::Text(text) => text,
            Value::Number(number) => number.to_string(),
            Value::Bool(value) => value.to_string(),
            Value::Null | Value::List(_) | Value::Map(_) => String::new(),
        }))
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_none<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(Value::Number(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(i64::try_from(value)
                    .map_or_else(|_| Value::Text(value.to_string()), Value::Number))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(Value::Text(value.to_string()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(Value::Text(value.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Value::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(Name(key)) = map.next_key()? {
                    entries.push((key, map.next_value()?));
                }
                Ok(Value::Map(entries))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_template_should_have_filled_in_is_known() {
        for (text, expected) in [
            ("${PORT}", Some("${PORT}")),
            (" $PORT", Some("$PORT")),
            ("{{ worker_name }}", Some("{{ worker_name }}")),
            ("sync-@INDEX@", Some("@INDEX@")),
            ("%PORT%", Some("%PORT%")),
            ("<port>", Some("<port>")),
            ("sync1", None),
            ("50%", None),
            ("pa$$word", None),
        ] {
            assert_eq!(placeholder(text), expected, "{text}");
        }
    }

    #[test]
    fn keys_that_say_nothing_about_routing_are_not_kept() {
        let mut found = Diagnostics::default();
        let text = "macaroon_secret_key: x\nworker_name: sync1\nlisteners: &l\n  - {port: 1, tls: no}\nworker_listeners: *l\n";
        let file = File::parse(Path::new("a.yaml"), text, &mut found).unwrap();
        assert!(file.get("macaroon_secret_key").is_none());
        assert_eq!(
            file.get("worker_name").unwrap().text(&mut found),
            Some("sync1")
        );
        let listener = file.get("worker_listeners").unwrap().list(&mut found);
        assert_eq!(listener[0].get("port").unwrap().port(&mut found), Some(1));
        assert!(!listener[0].get("tls").unwrap().truth());
        assert_eq!(
            listener[0].get("port").unwrap().key,
            "worker_listeners[0].port"
        );
        assert!(!found.has_errors());
    }
}

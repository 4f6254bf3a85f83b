//! A YAML file of Synapse's: the keys that routing depends on, each value with its place.
//!
//! In comes the text, out come [`Node`]s that are asked for what they should be. A value that is something else is
//! reported with its line and the path of its key. All other keys are skipped while parsing, for these files hold secrets,
//! and no message shows a value.

use std::path::{Path, PathBuf};

use self::load::{Unreadable, Why};
use crate::diagnostic::{Diagnostic, Diagnostics, Place};
use crate::input::facts::Statement;

mod load;

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
    keys: Vec<Entry>,
}

/// A value and where it begins.
#[derive(Clone)]
struct Node {
    value: Value,
    line: usize,
    column: usize,
}

#[derive(Clone)]
enum Value {
    Null,
    Bool(bool),
    Number(i64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
    /// A number with a point, a date, bytes or a set: nothing that routing depends on is one.
    Other,
}

/// A key with its value. A key that is no text is `None`: Synapse asks for text, to which no number and no `on` is equal.
type Entry = (Option<String>, Node);

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
        match load::load(text, |key| KEPT.contains(&key)) {
            Ok(keys) => Some(Self {
                path: path.to_owned(),
                keys,
            }),
            Err(error) => {
                found.push(unreadable(path, text, &error));
                None
            }
        }
    }

    /// The value of a top-level key. A key without a value is as good as none, as in Synapse.
    pub(super) fn get(&self, key: &str) -> Option<At<'_>> {
        let (_, node) = self
            .keys
            .iter()
            .find(|(name, _)| name.as_deref() == Some(key))?;
        let at = At {
            file: &self.path,
            node,
            key: key.to_owned(),
        };
        (!matches!(node.value, Value::Null)).then_some(at)
    }

    /// Whether the file is a table of keys that has any of these.
    pub(super) fn has_any(&self, keys: &[&str]) -> bool {
        let mut names = self.keys.iter().filter_map(|(name, _)| name.as_deref());
        names.any(|name| keys.contains(&name))
    }
}

/// What Synapse could not read, and where. A value may be a secret, so none is quoted: a placeholder's name and a tag are none.
fn unreadable(path: &Path, text: &str, error: &Unreadable) -> Diagnostic {
    const RENDER: &str = "render the template first, and name the file that Synapse itself reads";
    let line = text.lines().nth(error.line.saturating_sub(1)).unwrap_or("");
    let value = line.split_once(':').map_or(line, |(_, value)| value);
    let unfilled = placeholder(value).filter(|_| !matches!(error.why, Why::Tag(_)));
    let (problem, fix) = match &error.why {
        _ if unfilled.is_some() => {
            let name = unfilled.unwrap_or_default();
            (format!("the placeholder {name} was not filled in"), RENDER)
        }
        Why::Tag(tag) => (
            format!("Synapse knows no tag {tag}, or not for such a value"),
            "write the value itself; if a program fills it in, name the file that Synapse itself reads",
        ),
        Why::Syntax => (
            "Synapse could not read this as YAML".to_owned(),
            "check the indentation and quotes of this line and the one above it",
        ),
        Why::Document => (
            "Synapse reads files of one YAML document, and here a second one begins".to_owned(),
            "put the documents into files of their own, and name each",
        ),
        Why::Key => (
            "a list or a map cannot be a key".to_owned(),
            "check the indentation and quotes of this line and the one above it",
        ),
        Why::Merge => (
            "<< takes a map, or a list of maps".to_owned(),
            "let the alias behind << name a map",
        ),
        Why::Twice => (
            "a key comes twice from the maps behind <<, and it depends on the version of PyYAML which of them counts".to_owned(),
            "write that key beside <<, with the value that is meant",
        ),
        Why::Size => (
            "its aliases make it too large to be a configuration".to_owned(),
            "write out what the aliases name",
        ),
    };
    let place = Place::line(path, error.line, error.column);
    let problem = Diagnostic::error(problem).fix(fix).at(&place);
    match key_above(text, error.line) {
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
            // It may be 0.0, and who writes that?
            Value::Other => true,
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
        let mut named = Vec::new();
        for (name, node) in entries {
            let key = format!("{}.{}", self.key, name.as_deref().unwrap_or("?"));
            let at = At {
                file: self.file,
                node,
                key,
            };
            match name {
                Some(name) => named.push((name.as_str(), at)),
                None => at.wrong(
                    "a key that is text, in quotes if it looks like a number or like true or false",
                    found,
                ),
            }
        }
        named
    }

    /// The value of a key of this map, if it has one.
    pub(super) fn get(&self, key: &str) -> Option<At<'a>> {
        let Value::Map(entries) = &self.node.value else {
            return None;
        };
        let (_, node) = entries
            .iter()
            .find(|(name, _)| name.as_deref() == Some(key))?;
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

    #[test]
    fn what_synapse_cannot_read_is_said_at_its_place() {
        for (text, line, column, problem) in [
            ("server_name: !ENV NAME\n", 1, 14, "no tag !ENV"),
            (
                "a: 1\nmacaroon_secret_key: !vault |\n  6162\n",
                2,
                22,
                "no tag !vault",
            ),
            ("a: 1\n---\nb: 2\n", 2, 1, "a second one begins"),
            ("{a: 1}: 2\n", 1, 9, "cannot be a key"),
            ("a: {port: {{ port }}}\n", 1, 20, "{{ port }}"),
            ("<<: text\n", 1, 5, "takes a map"),
            (
                "a: &a {port: 1}\nb: &b {port: 2}\nc:\n  <<: [*a, *b]\n",
                4,
                7,
                "version of PyYAML",
            ),
            ("a: [1\n", 1, 4, "could not read this as YAML"),
        ] {
            let Err(error) = load::load(text, |_| true).map(drop) else {
                panic!("{text}");
            };
            assert_eq!((error.line, error.column), (line, column), "{text}");
            let said = format!("{:?}", unreadable(Path::new("a.yaml"), text, &error));
            assert!(said.contains(problem), "{text}: {said}");
        }
    }

    #[test]
    fn aliases_of_aliases_end() {
        let mut text = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n".to_owned();
        for n in 1..20 {
            let aliases = vec![format!("*a{}", n - 1); 10].join(", ");
            text += &format!("a{n}: &a{n} [{aliases}]\n");
        }
        let error = load::load(&text, |_| true).map(drop);
        assert!(matches!(error.map_err(|error| error.why), Err(Why::Size)));
    }

    #[test]
    fn a_truth_is_one_of_pyyamls_words() {
        let mut found = Diagnostics::default();
        for (text, expected) in [
            ("no", Some(false)),
            ("On", Some(true)),
            ("n", None),
            ("'no'", None),
            ("0", None),
        ] {
            let text = format!("enable_media_repo: {text}\n");
            let file = File::parse(Path::new("a.yaml"), &text, &mut found).unwrap();
            let at = file.get("enable_media_repo").unwrap();
            let before = found.errors();
            assert_eq!(at.boolean(&mut found), expected, "{text}");
            assert_eq!(found.errors() > before, expected.is_none(), "{text}");
        }
    }
}

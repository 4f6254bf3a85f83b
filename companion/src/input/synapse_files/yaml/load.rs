//! From a text to values, as PyYAML's `safe_load` makes them, which Synapse reads its files with.
//!
//! granit-parser takes YAML 1.2 apart. What a scalar is, what a tag, a merge key and a key that comes twice mean is PyYAML's
//! (resolver.py, constructor.py and composer.py of 6.0): YAML 1.1 in its own reading, in which `n` is text, `no` is false, `010` is 8 and
//! `1:30` is 90.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::num::IntErrorKind;
use std::sync::LazyLock;

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};
use regex::Regex;

use super::{Entry, Node, Value};

/// Why Synapse could not read a file, and where.
pub(super) struct Unreadable {
    pub line: usize,
    pub column: usize,
    pub why: Why,
}

pub(super) enum Why {
    /// It is not YAML.
    Syntax,
    /// PyYAML knows no such tag, or it does not fit its value.
    Tag(String),
    /// There is a second document.
    Document,
    /// A list or a map cannot be a key.
    Key,
    /// `<<` wants a map, or a list of maps.
    Merge,
    /// A key comes more than once from what is behind `<<`. The first counts or the last, as the version of PyYAML has it.
    Twice,
    /// Aliases make it larger than any configuration.
    Size,
}

/// More values than any configuration has, and few enough for aliases of aliases.
const MOST: usize = 1_000_000;

type Result<T> = std::result::Result<T, Unreadable>;

/// The entries of the map that a file is; none if it is something else, which Synapse ignores. Of keys for which `is_kept` says no the
/// value is checked and forgotten.
pub(super) fn load(text: &str, is_kept: impl Fn(&str) -> bool) -> Result<Vec<Entry>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let options = granit_parser::options! { emit_comments: false };
    let mut loader = Loader {
        parser: Parser::new_from_str_with_options(text, options),
        anchors: HashMap::new(),
        doubled: HashSet::new(),
        left: MOST,
    };
    let mut top = Vec::new();
    let mut has_document = false;
    while let Some((event, span)) = loader.next()? {
        match event {
            Event::DocumentStart(..) if has_document => return Err(at(&span, Why::Document)),
            Event::DocumentStart(..) => has_document = true,
            Event::MappingStart(_, anchor, tag) => {
                let node = loader.map(&span, anchor, tag.as_deref(), &is_kept)?;
                if let Value::Map(entries) = node.value {
                    top = entries;
                }
            }
            event if event.is_node() => {
                loader.node(event, &span)?;
            }
            _ => {}
        }
    }
    Ok(top)
}

struct Loader<'t> {
    parser: Parser<'t, StrInput<'t>>,
    anchors: HashMap<usize, Node>,
    /// The anchors of maps in which a key comes twice.
    doubled: HashSet<usize>,
    /// How many values may still be made.
    left: usize,
}

fn at(span: &Span, why: Why) -> Unreadable {
    let start = span.tag_start.unwrap_or(span.start);
    Unreadable {
        line: start.line(),
        column: start.col() + 1,
        why,
    }
}

fn syntax(error: &ScanError) -> Unreadable {
    Unreadable {
        line: error.marker().line(),
        column: error.marker().col() + 1,
        why: Why::Syntax,
    }
}

impl<'t> Loader<'t> {
    fn next(&mut self) -> Result<Option<(Event<'t>, Span)>> {
        self.parser
            .next_event()
            .transpose()
            .map_err(|error| syntax(&error))
    }

    /// The next event within a value, which cannot end here.
    fn inside(&mut self, span: &Span) -> Result<(Event<'t>, Span)> {
        self.next()?.ok_or_else(|| at(span, Why::Syntax))
    }

    fn node(&mut self, event: Event<'t>, span: &Span) -> Result<Node> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar(text, style, tag.as_deref()).map_err(|why| at(span, why))?;
                self.keep(anchor, span, value)
            }
            Event::SequenceStart(_, anchor, tag) => self.list(span, anchor, tag.as_deref()),
            Event::MappingStart(_, anchor, tag) => {
                self.map(span, anchor, tag.as_deref(), &|_| true)
            }
            Event::Alias(anchor) => self.alias(anchor, span),
            _ => Err(at(span, Why::Syntax)),
        }
    }

    /// A value at its place, which an alias may name.
    fn keep(&mut self, anchor: usize, span: &Span, value: Value) -> Result<Node> {
        self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| at(span, Why::Size))?;
        let node = Node {
            value,
            line: span.start.line(),
            column: span.start.col() + 1,
        };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    /// What an anchor names; the place is that of the alias.
    fn alias(&mut self, anchor: usize, span: &Span) -> Result<Node> {
        let named = self.anchors.get(&anchor);
        let value = named.ok_or_else(|| at(span, Why::Syntax))?.value.clone();
        let size = size(&value);
        self.left = self
            .left
            .checked_sub(size)
            .ok_or_else(|| at(span, Why::Size))?;
        self.keep(0, span, value)
    }

    fn list(&mut self, span: &Span, anchor: usize, tag: Option<&Tag>) -> Result<Node> {
        let is_list = fits(tag, &["seq"], &["omap", "pairs"]).map_err(|why| at(span, why))?;
        let mut items = Vec::new();
        loop {
            let (event, place) = self.inside(span)?;
            if event == Event::SequenceEnd {
                break;
            }
            items.push(self.node(event, &place)?);
        }
        let value = if is_list {
            Value::List(items)
        } else {
            Value::Other
        };
        self.keep(anchor, span, value)
    }

    fn map(
        &mut self,
        span: &Span,
        anchor: usize,
        tag: Option<&Tag>,
        is_kept: &dyn Fn(&str) -> bool,
    ) -> Result<Node> {
        let is_map = fits(tag, &["map"], &["set"]).map_err(|why| at(span, why))?;
        let (mut merged, mut entries) = (Vec::new(), Vec::new());
        // Where a key was merged once more.
        let mut again = Vec::new();
        let mut is_doubled = false;
        loop {
            let (event, place) = self.inside(span)?;
            if event == Event::MappingEnd {
                break;
            }
            if is_plain(&event, "<<") {
                let (event, place) = self.inside(span)?;
                if event
                    .alias_id()
                    .is_some_and(|anchor| self.doubled.contains(&anchor))
                {
                    return Err(at(&place, Why::Twice));
                }
                let node = self.node(event, &place)?;
                for (name, node) in to_merge(node).ok_or_else(|| at(&place, Why::Merge))? {
                    if set(&mut merged, name.clone(), node) {
                        again.push((name, place));
                    }
                }
                continue;
            }
            let key = match is_plain(&event, "=") {
                true => Value::Text("=".to_owned()),
                false => self.node(event, &place)?.value,
            };
            let (event, place) = self.inside(span)?;
            let node = self.node(event, &place)?;
            let name = match key {
                Value::Text(name) => Some(name),
                Value::List(_) | Value::Map(_) => return Err(at(&place, Why::Key)),
                _ => None,
            };
            if name.as_deref().is_some_and(is_kept) || name.is_none() {
                is_doubled |= set(&mut entries, name, node);
            }
        }
        let is_own =
            |name: &Option<String>| name.is_some() && entries.iter().any(|(own, _)| own == name);
        if let Some((_, place)) = again.iter().find(|(name, _)| !is_own(name)) {
            return Err(at(place, Why::Twice));
        }
        merged.retain(|(name, _)| !is_own(name));
        if is_doubled {
            self.doubled.insert(anchor);
        }
        merged.append(&mut entries);
        let value = if is_map {
            Value::Map(merged)
        } else {
            Value::Other
        };
        self.keep(anchor, span, value)
    }
}

/// How many values there are in one.
fn size(value: &Value) -> usize {
    match value {
        Value::List(items) => items.iter().map(|node| 1 + size(&node.value)).sum(),
        Value::Map(entries) => entries.iter().map(|(_, node)| 1 + size(&node.value)).sum(),
        _ => 0,
    }
}

/// Sets a key; the last of those that are the same counts (construct_mapping). Whether there was one.
fn set(entries: &mut Vec<Entry>, name: Option<String>, node: Node) -> bool {
    let before = entries.len();
    entries.retain(|(other, _)| other.is_none() || *other != name);
    entries.push((name, node));
    entries.len() == before
}

fn is_plain(event: &Event<'_>, expected: &str) -> bool {
    matches!(event, Event::Scalar(text, ScalarStyle::Plain, _, None) if text == expected)
}

/// The entries that a merge key brings.
fn to_merge(node: Node) -> Option<Vec<Entry>> {
    let maps = match node.value {
        Value::List(maps) => maps,
        _ => vec![node],
    };
    let mut entries = Vec::new();
    for map in maps {
        let Value::Map(more) = map.value else {
            return None;
        };
        entries.extend(more);
    }
    Some(entries)
}

/// The name of a tag in YAML's own namespace; `Err` for one that `safe_load` does not know.
fn known(tag: &Tag) -> std::result::Result<Cow<'_, str>, Why> {
    tag.suffix_in_namespace("tag:yaml.org,2002:")
        .ok_or_else(|| Why::Tag(tag.original()))
}

/// Whether a tag makes of a list or a map what it is without one; of `others` it makes something that no key of Synapse's takes.
fn fits(tag: Option<&Tag>, plain: &[&str], others: &[&str]) -> std::result::Result<bool, Why> {
    let Some(tag) = tag.filter(|tag| tag.original() != "!") else {
        return Ok(true);
    };
    let name = known(tag)?;
    match (plain.contains(&&*name), others.contains(&&*name)) {
        (true, _) => Ok(true),
        (_, true) => Ok(false),
        _ => Err(Why::Tag(tag.original())),
    }
}

/// What a scalar is.
fn scalar(
    text: Cow<'_, str>,
    style: ScalarStyle,
    tag: Option<&Tag>,
) -> std::result::Result<Value, Why> {
    let Some(tag) = tag else {
        return match style {
            ScalarStyle::Plain => resolve(text),
            _ => Ok(Value::Text(text.into_owned())),
        };
    };
    // `!` alone: as if it were plain, whatever its quotes (parser.py).
    if tag.original() == "!" {
        return resolve(text);
    }
    let wrong = || Why::Tag(tag.original());
    Ok(match &*known(tag)? {
        "str" => Value::Text(text.into_owned()),
        "null" => Value::Null,
        "bool" => Value::Bool(truth(&text.to_lowercase()).ok_or_else(wrong)?),
        "int" => integer(&text).ok_or_else(wrong)?,
        "float" | "timestamp" | "binary" => Value::Other,
        _ => return Err(wrong()),
    })
}

/// A plain scalar by its form (resolver.py).
fn resolve(text: Cow<'_, str>) -> std::result::Result<Value, Why> {
    static FORMS: LazyLock<[Regex; 3]> = LazyLock::new(|| {
        [
            // Whole numbers.
            r"^(?:[-+]?0b[01_]+|[-+]?0[0-7_]+|[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+|[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+)$",
            // Numbers with a point.
            r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
            // Dates.
            r"^(?:[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{4}-[0-9][0-9]?-[0-9][0-9]?(?:[Tt]|[ \t]+)[0-9][0-9]?:[0-9]{2}:[0-9]{2}(?:\.[0-9]*)?(?:[ \t]*(?:Z|[-+][0-9][0-9]?(?::[0-9][0-9])?))?)$",
        ]
        .map(|form| Regex::new(form).expect("it was tried"))
    });
    let [whole, fraction, date] = &*FORMS;
    Ok(match &*text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        // They are tags of their own, with which `safe_load` can make nothing but keys.
        "<<" | "=" | "!" | "&" | "*" => return Err(Why::Tag(text.into_owned())),
        word if is_word_of_truth(word) => Value::Bool(truth(&word.to_lowercase()) == Some(true)),
        number if whole.is_match(number) => integer(number).ok_or(Why::Syntax)?,
        other if fraction.is_match(other) || date.is_match(other) => Value::Other,
        _ => Value::Text(text.into_owned()),
    })
}

/// `yes`, `Yes`, `YES` and the like, but not `yES`.
fn is_word_of_truth(word: &str) -> bool {
    let lower = word.to_lowercase();
    let rest = word.get(1..).unwrap_or("");
    let is_even = word == lower
        || word == word.to_uppercase()
        || (word.starts_with(|c: char| c.is_ascii_uppercase()) && rest == rest.to_lowercase());
    is_even && truth(&lower).is_some()
}

fn truth(lower: &str) -> Option<bool> {
    match lower {
        "yes" | "true" | "on" => Some(true),
        "no" | "false" | "off" => Some(false),
        _ => None,
    }
}

/// A whole number in any of its forms (construct_yaml_int); one that no key of Synapse's takes if it is too large.
fn integer(text: &str) -> Option<Value> {
    let digits = text.replace('_', "");
    let (sign, digits) = match digits.strip_prefix(['-', '+']) {
        Some(rest) => (if digits.starts_with('-') { -1 } else { 1 }, rest),
        None => (1, digits.as_str()),
    };
    let of = |digits: &str, radix| match i128::from_str_radix(digits, radix) {
        Ok(number) => Some(i64::try_from(sign * number).ok()),
        Err(error) if *error.kind() == IntErrorKind::PosOverflow => Some(None),
        Err(_) => None,
    };
    let number = if let Some(digits) = digits.strip_prefix("0b") {
        of(digits, 2)
    } else if let Some(digits) = digits.strip_prefix("0x") {
        of(digits, 16)
    } else if digits.len() > 1 && digits.starts_with('0') {
        of(digits, 8)
    } else if digits.contains(':') {
        let parts: Option<Vec<i64>> = digits.split(':').map(|part| part.parse().ok()).collect();
        let add = |sum: i64, part: &i64| sum.checked_mul(60)?.checked_add(*part);
        parts.map(|parts| Some(i64::try_from(sign).ok()? * parts.iter().try_fold(0, add)?))
    } else {
        of(digits, 10)
    };
    number.map(|number| number.map_or(Value::Other, Value::Number))
}

#[cfg(test)]
mod tests;

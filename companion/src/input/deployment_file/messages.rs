//! From a span of the deployment file to a message: line, key and the nearest thing that may have been meant.

use std::ops::Range;

use super::Reader;
use crate::diagnostic::{Diagnostic, Place, nearest};
use crate::input::facts::Statement;

/// A message that is complete but for its fix.
pub(super) struct Unfixed<'r, 'a> {
    reader: &'r mut Reader<'a>,
    diagnostic: Diagnostic,
}

impl Unfixed<'_, '_> {
    /// What to write instead. Takes the message in.
    pub(super) fn fix_with(self, fix: impl Into<String>) {
        self.reader.found.push(self.diagnostic.fix(fix));
    }
}

impl<'a> Reader<'a> {
    /// An error at a span.
    pub(super) fn error(
        &mut self,
        span: &Range<usize>,
        message: impl Into<String>,
    ) -> Unfixed<'_, 'a> {
        let diagnostic = self.place(Diagnostic::error(message), span);
        Unfixed {
            reader: self,
            diagnostic,
        }
    }

    /// A warning at a span.
    pub(super) fn warning(
        &mut self,
        span: &Range<usize>,
        message: impl Into<String>,
    ) -> Unfixed<'_, 'a> {
        let diagnostic = self.place(Diagnostic::warning(message), span);
        Unfixed {
            reader: self,
            diagnostic,
        }
    }

    fn place(&self, diagnostic: Diagnostic, span: &Range<usize>) -> Diagnostic {
        self.statement(span).on(diagnostic)
    }

    /// Where a fact is stated.
    pub(super) fn statement(&self, span: &Range<usize>) -> Statement {
        Statement {
            place: Some(Place::in_text(self.path, self.text, span.clone())),
            key: key_at(self.text, span.start).unwrap_or_default(),
        }
    }

    /// What the TOML reader or serde refused.
    pub(super) fn syntax(&mut self, error: &toml::de::Error) {
        let span = error.span().unwrap_or(0..0);
        let message = error
            .message()
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned();
        let key = key_at(self.text, span.start).unwrap_or_default();
        let message = message.replace("struct ", "table ");
        let fix = fix_of(&message, &key);
        self.error(&span, message).fix_with(fix);
    }
}

/// What to do about a message of serde's or of the TOML reader's.
fn fix_of(message: &str, key: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if message.starts_with("unknown field") {
        let (typed, known) = quoted
            .split_first()
            .map_or(("", &[][..]), |(typed, k)| (*typed, k));
        return match nearest(typed, known.iter().copied()) {
            Some(near) => format!("write {near}"),
            None => format!("use one of {}", known.join(", ")),
        };
    }
    if message.starts_with("duplicate key") {
        return "take one of the two away".to_owned();
    }
    if let Some(missing) = message.strip_prefix("missing field") {
        return format!("add {}", missing.trim().trim_matches('`'));
    }
    if let Some((_, expected)) = message.split_once("expected ") {
        let expected = match expected {
            "u16" => "a number from 0 to 65535, without quotes",
            "u32" => "a number, without quotes",
            "a string" => "text in double quotes",
            "a sequence" if key == "workers" || key == "override" => {
                return format!("write [[{key}]], with two brackets: there may be several");
            }
            "a sequence" => "a list: [\"…\"]",
            "a boolean" => "true or false, without quotes",
            other if other.starts_with("table ") => {
                return format!("write a table: [{key}], and its keys below it");
            }
            other => other,
        };
        return format!("write {expected}");
    }
    "see https://toml.io, or start from what `synapse-companion init` writes".to_owned()
}

/// The path of the key at a place: the table's header above it, and the name on its line.
fn key_at(text: &str, at: usize) -> Option<String> {
    let mut header = String::new();
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim();
        if let Some(name) = trimmed
            .strip_prefix("[[")
            .and_then(|rest| rest.split("]]").next())
        {
            let count = counts.entry(name.trim().to_owned()).or_default();
            header = format!("{}[{count}]", name.trim());
            *count += 1;
        } else if let Some(name) = trimmed
            .strip_prefix('[')
            .and_then(|rest| rest.split(']').next())
            && !line.contains('=')
            && line.starts_with('[')
        {
            name.trim().clone_into(&mut header);
        }
        offset += line.len();
        if offset > at {
            let name = trimmed.split_once('=').map(|(name, _)| name.trim());
            let name = name.filter(|name| !name.is_empty() && !name.contains(['"', '#', '[', ' ']));
            return match (header.is_empty(), name) {
                (true, None) => None,
                (true, Some(name)) => Some(name.to_owned()),
                (false, None) => Some(header),
                (false, Some(name)) => Some(format!("{header}.{name}")),
            };
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_named_with_its_table() {
        let text =
            "[main]\nport = 1\n\n[[workers]]\nname = \"a\"\n[[workers]]\nname = \"b\"\nport = 2\n";
        assert_eq!(
            key_at(text, text.find("1").unwrap()).as_deref(),
            Some("main.port")
        );
        assert_eq!(
            key_at(text, text.find("2").unwrap()).as_deref(),
            Some("workers[1].port")
        );
    }

    #[test]
    fn a_mistyped_key_gets_the_one_that_was_meant() {
        let fix = fix_of(
            "unknown field `prot`, expected one of `name`, `type`, `host`, `port`",
            "",
        );
        assert_eq!(fix, "write port");
    }
}

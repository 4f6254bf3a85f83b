//! What is wrong with the input, said so that it can be put right: file, line, key, and what to write instead.
//!
//! In goes what a reader of the input found, out comes the text on standard error. Everything that reads or judges the
//! input reports through here; nothing else prints.

use std::fmt;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// A place in an input file. Lines and columns count from 1; a line of 0 means the file as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The file as the operator named it.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The text of that line, where it may be shown. Synapse's files hold secrets, so theirs never is.
    pub source: Option<String>,
    /// How many characters of the line are meant.
    pub width: usize,
}

impl Place {
    /// The whole file.
    pub(crate) fn file(file: &Path) -> Self {
        Self::line(file, 0, 0)
    }

    /// A line of a file whose text is not shown.
    pub(crate) fn line(file: &Path, line: usize, column: usize) -> Self {
        Self {
            file: file.to_owned(),
            line,
            column,
            source: None,
            width: 1,
        }
    }

    /// The bytes `span` of `text`, with the line's text.
    pub(crate) fn in_text(file: &Path, text: &str, span: std::ops::Range<usize>) -> Self {
        let start = text.floor_char_boundary_compat(span.start);
        let before = &text[..start];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let source = text[line_start..]
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned();
        let column = text[line_start..start].chars().count() + 1;
        let end = text.floor_char_boundary_compat(span.end.max(start));
        let meant = text[start..end]
            .lines()
            .next()
            .unwrap_or_default()
            .chars()
            .count();
        Self {
            file: file.to_owned(),
            line: before.matches('\n').count() + 1,
            column,
            source: Some(source),
            width: meant.max(1),
        }
    }
}

/// `str::floor_char_boundary` is younger than the oldest Rust that this builds with.
trait FloorCharBoundary {
    fn floor_char_boundary_compat(&self, at: usize) -> usize;
}

impl FloorCharBoundary for str {
    fn floor_char_boundary_compat(&self, at: usize) -> usize {
        let mut at = at.min(self.len());
        while !self.is_char_boundary(at) {
            at -= 1;
        }
        at
    }
}

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    /// Nothing is rendered.
    Error,
    /// It renders, and something that the operator would not expect happens.
    Warning,
    /// It renders, and this is what was decided where the input left a choice.
    Note,
}

/// One thing to put right.
#[derive(Clone, Debug)]
pub(crate) struct Diagnostic {
    severity: Severity,
    message: String,
    // Boxed, because every fallible function returns this type.
    place: Option<Box<Place>>,
    key: Option<String>,
    fix: Option<String>,
}

impl Diagnostic {
    /// Something that stops the command.
    pub(crate) fn error(message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            message: message.into(),
            place: None,
            key: None,
            fix: None,
        }
    }

    /// Something that the operator should know.
    pub(crate) fn warning(message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(message)
        }
    }

    /// What was decided where the input left a choice.
    pub(crate) fn note(message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Note,
            ..Self::error(message)
        }
    }

    /// Where it stands.
    pub(crate) fn at(mut self, place: &Place) -> Self {
        self.place = Some(Box::new(place.clone()));
        self
    }

    /// The key that it is about, as a path: `workers[2].port`.
    pub(crate) fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// What to write instead.
    pub(crate) fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// Whether it stops the command.
    pub(crate) fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        writeln!(f, "{severity}: {}", self.message)?;
        if let Some(place) = &self.place {
            write!(f, "  --> {}", place.file.display())?;
            if place.line > 0 {
                write!(f, ":{}:{}", place.line, place.column)?;
            }
        }
        match (&self.place, &self.key) {
            (Some(_), Some(key)) => writeln!(f, ", key {key}")?,
            (Some(_), None) => writeln!(f)?,
            (None, Some(key)) => writeln!(f, "  --> key {key}")?,
            (None, None) => {}
        }
        if let Some(Place {
            line,
            column,
            source: Some(source),
            width,
            ..
        }) = self.place.as_deref()
        {
            writeln!(f, "{}", snippet(*line, *column, source, *width))?;
        }
        if let Some(fix) = &self.fix {
            writeln!(f, "  = fix: {fix}")?;
        }
        Ok(())
    }
}

/// What was found on the way. Errors are collected, so that one run names all of them.
#[derive(Debug, Default)]
pub(crate) struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    /// Takes one in.
    pub(crate) fn push(&mut self, diagnostic: Diagnostic) {
        self.0.push(diagnostic);
    }

    /// How many of them stop the command.
    pub(crate) fn errors(&self) -> usize {
        self.0.iter().filter(|found| found.is_error()).count()
    }

    /// Whether one of them stops the command.
    pub(crate) fn has_errors(&self) -> bool {
        self.errors() > 0
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(diagnostic: Diagnostic) -> Self {
        Self(vec![diagnostic])
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|diagnostic| diagnostic.fmt(f))
    }
}

/// A line of a file, with what is meant underlined.
fn snippet(line: usize, column: usize, source: &str, width: usize) -> String {
    let byte = |chars: usize| {
        let mut indices = source.char_indices().map(|(at, _)| at);
        indices.nth(chars).unwrap_or(source.len())
    };
    let start = byte(column.saturating_sub(1));
    let end = byte(column.saturating_sub(1) + width);
    let meant = AnnotationKind::Primary.span(start..end);
    let shown = Snippet::source(source).line_start(line).annotation(meant);
    Renderer::plain().render(&[Group::with_level(Level::ERROR).element(shown)])
}

/// The candidate nearest to what was typed, when it is near enough to have been meant.
pub(crate) fn nearest<'a>(
    typed: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(typed, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_counts_lines_and_characters_from_one() {
        let text = "[main]\nhost = \"münchen\"\nport = \"x\"\n";
        let at = text.find("\"x\"").unwrap();
        let place = Place::in_text(Path::new("deployment.toml"), text, at..at + 3);
        assert_eq!((place.line, place.column, place.width), (3, 8, 3));
    }

    #[test]
    fn a_message_names_file_line_key_and_fix() {
        let text = "[[workers]]\ntype = \"synch\"\n";
        let at = text.find("\"synch\"").unwrap();
        let place = Place::in_text(Path::new("deployment.toml"), text, at..at + 7);
        let shown = Diagnostic::error("no such worker type: synch")
            .at(&place)
            .key("workers[0].type")
            .fix("write \"sync\"")
            .to_string();
        assert_eq!(
            shown,
            "error: no such worker type: synch\n  --> deployment.toml:2:8, key workers[0].type\n  \
             |\n2 | type = \"synch\"\n  |        ^^^^^^^\n  = fix: write \"sync\"\n"
        );
    }

    #[test]
    fn only_what_may_have_been_meant_is_suggested() {
        let types = ["sync", "initial_sync", "client_reader"];
        assert_eq!(nearest("synch", types), Some("sync"));
        assert_eq!(nearest("client_raeder", types), Some("client_reader"));
        assert_eq!(nearest("postgres", types), None);
    }
}

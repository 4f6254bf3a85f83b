//! `routes`: the table of `table` for somebody who reads it, or who configures something else by it.

use serde::Serialize;

use crate::cli::Format;
use crate::table::{ROUTES, Route, Split};

/// A row as it is shown.
#[derive(Serialize)]
struct Row {
    id: &'static str,
    section: &'static str,
    pattern: String,
    /// Types of workers that can serve it, best first; main serves it where a deployment has none of them.
    types: Vec<&'static str>,
    /// Methods for which that is so; all if empty. Main serves the others.
    methods: &'static [&'static str],
    /// The type that takes what starts from nothing, where a deployment has it.
    initial: Option<&'static str>,
    why: &'static str,
}

impl Row {
    fn new(route: &Route) -> Self {
        Self {
            id: route.id,
            section: route.section.file(),
            pattern: route.pattern(),
            types: route.to.iter().map(|role| role.name()).collect(),
            methods: match route.split {
                Split::Methods(methods) => methods,
                _ => &[],
            },
            initial: match route.split {
                Split::Since | Split::From => Some("initial_sync"),
                _ => None,
            },
            why: route.why,
        }
    }
}

/// The whole table, in the order in which nginx tries it within a section.
pub(crate) fn shown(format: Format) -> String {
    let rows: Vec<Row> = ROUTES.iter().map(Row::new).collect();
    match format {
        // Strings, lists and options cannot fail to become JSON.
        Format::Json => serde_json::to_string_pretty(&rows).unwrap_or_default() + "\n",
        Format::Markdown => markdown(&rows),
    }
}

fn markdown(rows: &[Row]) -> String {
    let mut text = String::from(
        "| route | section | pattern | worker types, best first | methods | why |\n|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let mut types = row.types.join(", ");
        if types.is_empty() {
            types.push_str("main");
        }
        if let Some(initial) = row.initial {
            types = format!("{types} (from nothing: {initial})");
        }
        let methods = match row.methods {
            [] => "all".to_owned(),
            methods => format!("{}; others: main", methods.join(", ")),
        };
        // A bar ends a cell, in code too.
        let pattern = row.pattern.replace('|', "\\|");
        text += &format!(
            "| {} | {} | `{pattern}` | {types} | {methods} | {} |\n",
            row.id, row.section, row.why
        );
    }
    text
}

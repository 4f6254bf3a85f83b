//! Figures as text: JSON for people and scripts, the Prometheus text format 0.0.4 for scrapers.
//!
//! Prometheus wants one HELP and TYPE for a family and then all its samples, so families are the outer loop and zones the
//! inner; counters end in `_total`, units are base units (seconds), and a zone is a label.

use std::fmt::{self, Write};

use serde_json::{Map, Value, json};

use super::{BUCKETS, FAMILIES, Snapshot};
use crate::shift::Shift;

/// The Content-Type of [`prometheus`].
pub const PROMETHEUS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The Content-Type of [`json()`].
pub const JSON_TYPE: &str = "application/json";

/// A name, a help and a way to read the figure.
type Gauge = (&'static str, &'static str, fn(&Snapshot) -> u64);

const GAUGES: [Gauge; 4] = [
    ("entries", "Entries in use in the zone.", |zone| {
        zone.entries
    }),
    ("capacity", "Entries that the zone has room for.", |zone| {
        zone.capacity
    }),
    (
        "lookups_in_flight",
        "Lookups that wait for the homeserver now.",
        |zone| zone.in_flight,
    ),
    (
        "suspended",
        "1 while lookups are suspended because the homeserver failed repeatedly.",
        |zone| u64::from(zone.suspended),
    ),
];

/// A shift as figures show it, at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Moves<'a> {
    /// Its variable, without the `$`.
    pub variable: &'a str,
    /// What it is.
    pub shift: Shift,
    /// The time of day, in milliseconds since 1970.
    pub now: u64,
}

impl Moves<'_> {
    fn start(&self) -> Option<f64> {
        Some(self.shift.span()?.start() as f64 / 1e3)
    }

    fn end(&self) -> Option<f64> {
        Some(self.shift.span()?.end() as f64 / 1e3)
    }

    fn moved(&self) -> Option<f64> {
        Some(self.shift.moved(self.now))
    }
}

/// A name in JSON and in Prometheus, a help and a way to read the figure.
type ShiftGauge = (
    &'static str,
    &'static str,
    &'static str,
    fn(&Moves<'_>) -> Option<f64>,
);

const SHIFT_GAUGES: [ShiftGauge; 3] = [
    (
        "moved",
        "shift_moved_ratio",
        "The share of all users that have moved.",
        |moves| moves.moved(),
    ),
    (
        "start",
        "shift_start_timestamp_seconds",
        "When the first users move.",
        |moves| moves.start(),
    ),
    (
        "end",
        "shift_end_timestamp_seconds",
        "When all users have moved.",
        |moves| moves.end(),
    ),
];

/// One JSON object: `{"zones": {NAME: {…}}, "shifts": {VARIABLE: {…}}}`. Counts are numbers; `requests` counts by status and `errors` by kind of
/// failure; `lookup_seconds` holds the histogram, its buckets cumulative and keyed by their upper bound.
pub fn json(zones: &[(&str, Snapshot)], shifts: &[Moves<'_>]) -> String {
    let zones = zones
        .iter()
        .map(|(name, zone)| ((*name).to_owned(), zone_json(zone)));
    let shifts = shifts
        .iter()
        .map(|moves| (moves.variable.to_owned(), shift_json(moves)));
    let mut text =
        json!({ "zones": Map::from_iter(zones), "shifts": Map::from_iter(shifts) }).to_string();
    text.push('\n');
    text
}

fn zone_json(zone: &Snapshot) -> Value {
    let mut object = Map::new();
    for (name, _, read) in GAUGES {
        object.insert(name.to_owned(), read(zone).into());
    }
    object.insert("suspended".to_owned(), zone.suspended.into());
    for family in FAMILIES {
        let mut counts = family.counters.iter();
        let value = if family.label.is_some() {
            let counts =
                counts.map(|&(counter, value)| (value.to_owned(), zone.get(counter).into()));
            Value::Object(counts.collect())
        } else {
            counts.next().map(|&(counter, _)| zone.get(counter)).into()
        };
        object.insert(family.name.to_owned(), value);
    }
    let buckets = cumulative(zone).map(|(bound, count)| (bound.to_string(), count.into()));
    object.insert(
        "lookup_seconds".to_owned(),
        json!({
            "buckets": Map::from_iter(buckets),
            "sum": zone.duration_sum as f64 / 1e6,
            "count": zone.lookups_timed(),
        }),
    );
    Value::Object(object)
}

fn shift_json(moves: &Moves<'_>) -> Value {
    let figures = SHIFT_GAUGES.map(|(name, _, _, read)| (name.to_owned(), read(moves).into()));
    Value::Object(Map::from_iter(figures))
}

/// Text format 0.0.4 (prometheus.io, "Exposition formats").
pub fn prometheus(zones: &[(&str, Snapshot)], shifts: &[Moves<'_>]) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_prometheus(&mut text, zones).and_then(|()| write_shifts(&mut text, shifts));
    text
}

fn write_prometheus(text: &mut String, zones: &[(&str, Snapshot)]) -> fmt::Result {
    for (name, help, read) in GAUGES {
        family(text, name, "gauge", help)?;
        for (zone, figures) in zones {
            writeln!(
                text,
                "matrix_user_hash_{name}{{zone=\"{}\"}} {}",
                Label(zone),
                read(figures)
            )?;
        }
    }
    for counted in FAMILIES {
        let name = format!("{}_total", counted.name);
        family(text, &name, "counter", counted.help)?;
        for (zone, figures) in zones {
            for &(counter, value) in counted.counters {
                write!(text, "matrix_user_hash_{name}{{zone=\"{}\"", Label(zone))?;
                if let Some(label) = counted.label {
                    write!(text, ",{label}=\"{value}\"")?;
                }
                writeln!(text, "}} {}", figures.get(counter))?;
            }
        }
    }
    histogram(text, zones)
}

fn write_shifts(text: &mut String, shifts: &[Moves<'_>]) -> fmt::Result {
    for (_, name, help, read) in SHIFT_GAUGES {
        let known = shifts
            .iter()
            .filter_map(|moves| Some((moves.variable, read(moves)?)));
        for (number, (variable, figure)) in known.enumerate() {
            if number == 0 {
                family(text, name, "gauge", help)?;
            }
            writeln!(
                text,
                "matrix_user_hash_{name}{{variable=\"{}\"}} {figure}",
                Label(variable)
            )?;
        }
    }
    Ok(())
}

fn histogram(text: &mut String, zones: &[(&str, Snapshot)]) -> fmt::Result {
    let name = "lookup_duration_seconds";
    family(
        text,
        name,
        "histogram",
        "How long lookups took, answered or not.",
    )?;
    for (zone, figures) in zones {
        let zone = Label(zone);
        for (bound, count) in cumulative(figures) {
            writeln!(
                text,
                "matrix_user_hash_{name}_bucket{{zone=\"{zone}\",le=\"{bound}\"}} {count}"
            )?;
        }
        let sum = figures.duration_sum as f64 / 1e6;
        writeln!(text, "matrix_user_hash_{name}_sum{{zone=\"{zone}\"}} {sum}")?;
        writeln!(
            text,
            "matrix_user_hash_{name}_count{{zone=\"{zone}\"}} {}",
            figures.lookups_timed()
        )?;
    }
    Ok(())
}

fn family(text: &mut String, name: &str, kind: &str, help: &str) -> fmt::Result {
    writeln!(text, "# HELP matrix_user_hash_{name} {help}")?;
    writeln!(text, "# TYPE matrix_user_hash_{name} {kind}")
}

/// The histogram's buckets as both formats want them: each holds all that were not longer than its bound.
fn cumulative(zone: &Snapshot) -> impl Iterator<Item = (Bound, u64)> {
    let bounds = BUCKETS.into_iter().map(Some).chain([None]);
    let mut sum = 0;
    bounds.zip(zone.durations).map(move |(bound, count)| {
        sum += count;
        (Bound(bound), sum)
    })
}

/// An upper bound in seconds: `0.0025`, `+Inf`.
struct Bound(Option<u64>);

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(micros) => write!(f, "{}", micros as f64 / 1e6),
            None => f.write_str("+Inf"),
        }
    }
}

/// A label's value: backslash, quote and line feed are escaped.
struct Label<'a>(&'a str);

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

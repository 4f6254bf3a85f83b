//! Figures as text: JSON for people and scripts, the Prometheus text format 0.0.4 for scrapers.
//!
//! Prometheus wants one HELP and TYPE for a family and then all its samples, so families are the outer loop and zones the
//! inner; counters end in `_total`, units are base units (seconds), and a zone is a label.

use std::fmt::{self, Write};

use serde_json::{Map, Value, json};

use super::{BUCKETS, Counter, Snapshot};
use crate::whoami::FailureKind;

/// The Content-Type of [`prometheus`].
pub const PROMETHEUS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The Content-Type of [`json()`].
pub const JSON_TYPE: &str = "application/json";

/// The counters that are a family of their own: name in JSON (with `matrix_user_hash_` before and `_total` behind, name
/// in Prometheus), and help.
const COUNTS: [(Counter, &str, &str); 15] = [
    (
        Counter::Hits,
        "hits",
        "Requests whose user was in the zone.",
    ),
    (
        Counter::Misses,
        "misses",
        "Requests that looked their user up.",
    ),
    (
        Counter::Shared,
        "shared",
        "Requests that waited for the lookup of another request.",
    ),
    (
        Counter::Stale,
        "stale",
        "Requests routed by an expired entry.",
    ),
    (
        Counter::Refused,
        "refused",
        "Requests with a token that the homeserver does not know.",
    ),
    (
        Counter::Errors,
        "failed",
        "Requests routed by the fallback because their lookup failed.",
    ),
    (
        Counter::Timeouts,
        "timeouts",
        "Requests routed by the fallback because time ran out.",
    ),
    (
        Counter::Anonymous,
        "anonymous",
        "Requests without a usable token.",
    ),
    (
        Counter::Lookups,
        "lookups",
        "Lookups sent to the homeserver.",
    ),
    (
        Counter::Refreshes,
        "refreshes",
        "Lookups sent in the background to refresh an expired entry.",
    ),
    (
        Counter::Queued,
        "queued",
        "Requests that waited for a turn because too many lookups were in flight.",
    ),
    (
        Counter::Suppressed,
        "suppressed",
        "Lookups not sent because the homeserver had failed repeatedly.",
    ),
    (
        Counter::Abandoned,
        "abandoned",
        "Requests whose client went away while they waited.",
    ),
    (
        Counter::Evictions,
        "evictions",
        "Entries in use that were replaced because the zone was full.",
    ),
    (
        Counter::Panics,
        "panics",
        "Panics caught in the module; each is a bug.",
    ),
];

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

/// One JSON object: `{"zones": {NAME: {…}}}`. Counts are numbers; `errors` counts lookups by kind of failure;
/// `lookup_seconds` holds the histogram, its buckets cumulative and keyed by their upper bound.
pub fn json(zones: &[(&str, Snapshot)]) -> String {
    let zones = zones
        .iter()
        .map(|(name, zone)| ((*name).to_owned(), zone_json(zone)));
    let mut text = json!({ "zones": Map::from_iter(zones) }).to_string();
    text.push('\n');
    text
}

fn zone_json(zone: &Snapshot) -> Value {
    let mut object = Map::new();
    for (name, _, read) in GAUGES {
        object.insert(name.to_owned(), read(zone).into());
    }
    object.insert("suspended".to_owned(), zone.suspended.into());
    for (counter, name, _) in COUNTS {
        object.insert(name.to_owned(), zone.get(counter).into());
    }
    let errors = FailureKind::ALL.into_iter().map(|kind| {
        let count = zone.get(Counter::of_failure(kind));
        (kind.as_str().to_owned(), count.into())
    });
    object.insert("errors".to_owned(), Value::Object(errors.collect()));
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

/// Text format 0.0.4 (prometheus.io, "Exposition formats").
pub fn prometheus(zones: &[(&str, Snapshot)]) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_prometheus(&mut text, zones);
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
    for (counter, name, help) in COUNTS {
        let name = format!("{name}_total");
        family(text, &name, "counter", help)?;
        for (zone, figures) in zones {
            let count = figures.get(counter);
            writeln!(
                text,
                "matrix_user_hash_{name}{{zone=\"{}\"}} {count}",
                Label(zone)
            )?;
        }
    }
    family(
        text,
        "errors_total",
        "counter",
        "Lookups that failed, by kind of failure.",
    )?;
    for (zone, figures) in zones {
        for kind in FailureKind::ALL {
            let (zone, count) = (Label(zone), figures.get(Counter::of_failure(kind)));
            let kind = kind.as_str();
            writeln!(
                text,
                "matrix_user_hash_errors_total{{zone=\"{zone}\",kind=\"{kind}\"}} {count}"
            )?;
        }
    }
    histogram(text, zones)
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

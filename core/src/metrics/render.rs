//! Figures as text: JSON for people and scripts, the Prometheus text format 0.0.4 for scrapers.
//!
//! Memory may run out while the text grows. There is no text then, and the process goes on.
//!
//! Prometheus wants one HELP and TYPE for a family and then all its samples, so families are the outer loop and zones the
//! inner; counters end in `_total`, units are base units (seconds), and a zone is a label.

use std::fmt::{self, Display, Write};
use std::io;

use serde::Serialize;
use serde::ser::{SerializeMap as _, Serializer};

use super::{BUCKETS, FAMILIES, Family, Snapshot};
use crate::shift::Shift;

/// The Content-Type of [`prometheus`].
pub const PROMETHEUS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The Content-Type of [`json()`].
pub const JSON_TYPE: &str = "application/json";

/// A name, a help and a way to read the figure.
type Gauge = (&'static str, &'static str, fn(&Snapshot) -> u64);

/// In JSON it is `true` or `false`.
const SUSPENDED: &str = "suspended";

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
        SUSPENDED,
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
/// failure; `lookup_seconds` holds the histogram, its buckets cumulative and keyed by their upper bound. `None` without memory.
pub fn json(zones: &[(&str, Snapshot)], shifts: &[Moves<'_>]) -> Option<Vec<u8>> {
    let mut text = Text::default();
    let object = Object {
        zones: Zones(zones),
        shifts: Shifts(shifts),
    };
    serde_json::to_writer(&mut text, &object).ok()?;
    text.push(b"\n");
    text.whole()
}

#[derive(Serialize)]
struct Object<'a> {
    zones: Zones<'a>,
    shifts: Shifts<'a>,
}

struct Zones<'a>(&'a [(&'a str, Snapshot)]);

impl Serialize for Zones<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, zone)| (name, zone)))
    }
}

impl Serialize for Snapshot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, _, read) in GAUGES {
            if name == SUSPENDED {
                map.serialize_entry(name, &self.suspended)?;
            } else {
                map.serialize_entry(name, &read(self))?;
            }
        }
        for family in FAMILIES {
            let counts = Counts { zone: self, family };
            if family.label.is_some() {
                map.serialize_entry(family.name, &counts)?;
            } else {
                map.serialize_entry(family.name, &counts.iter().next().map(|(_, count)| count))?;
            }
        }
        map.serialize_entry("lookup_seconds", &Histogram::of(self))?;
        map.end()
    }
}

/// The counters of a family, by the value of their label.
struct Counts<'a> {
    zone: &'a Snapshot,
    family: &'a Family,
}

impl Counts<'_> {
    fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counters = self.family.counters.iter();
        counters.map(|&(counter, value)| (value, self.zone.get(counter)))
    }
}

impl Serialize for Counts<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

#[derive(Serialize)]
struct Histogram<'a> {
    buckets: Buckets<'a>,
    sum: f64,
    count: u64,
}

impl<'a> Histogram<'a> {
    fn of(zone: &'a Snapshot) -> Self {
        Self {
            buckets: Buckets(zone),
            sum: zone.duration_sum as f64 / 1e6,
            count: zone.lookups_timed(),
        }
    }
}

struct Buckets<'a>(&'a Snapshot);

impl Serialize for Buckets<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(cumulative(self.0))
    }
}

struct Shifts<'a>(&'a [Moves<'a>]);

impl Serialize for Shifts<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|moves| (moves.variable, moves)))
    }
}

impl Serialize for Moves<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(SHIFT_GAUGES.map(|(name, _, _, read)| (name, read(self))))
    }
}

/// Text format 0.0.4 (prometheus.io, "Exposition formats"). `None` without memory.
pub fn prometheus(zones: &[(&str, Snapshot)], shifts: &[Moves<'_>]) -> Option<Vec<u8>> {
    let mut text = Text::default();
    write_prometheus(&mut text, zones).ok()?;
    write_shifts(&mut text, shifts).ok()?;
    text.whole()
}

/// Bytes that grow as long as there is memory.
#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    is_cut_off: bool,
}

impl Text {
    fn push(&mut self, more: &[u8]) {
        if self.is_cut_off || self.bytes.try_reserve(more.len()).is_err() {
            self.is_cut_off = true;
        } else {
            self.bytes.extend_from_slice(more);
        }
    }

    fn whole(self) -> Option<Vec<u8>> {
        (!self.is_cut_off).then_some(self.bytes)
    }
}

impl Write for Text {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        self.push(more.as_bytes());
        if self.is_cut_off {
            Err(fmt::Error)
        } else {
            Ok(())
        }
    }
}

impl io::Write for Text {
    /// Never says that it failed: serde_json would want memory for its error.
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        self.push(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_prometheus(text: &mut Text, zones: &[(&str, Snapshot)]) -> fmt::Result {
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
        let name = format_args!("{}_total", counted.name);
        family(text, name, "counter", counted.help)?;
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

fn write_shifts(text: &mut Text, shifts: &[Moves<'_>]) -> fmt::Result {
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

fn histogram(text: &mut Text, zones: &[(&str, Snapshot)]) -> fmt::Result {
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

fn family(text: &mut Text, name: impl Display + Copy, kind: &str, help: &str) -> fmt::Result {
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

impl Serialize for Bound {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
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

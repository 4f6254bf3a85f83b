//! The report as text.

use std::fmt::{Display, Formatter, Result, Write as _};

use super::{AtPlace, Even, Group, Heavy, Report, Worker};
use crate::log::tally::Measure;

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        self.head(f)?;
        for group in &self.groups {
            self.group(f, group)?;
        }
        self.slowest(f)?;
        self.lookups(f)?;
        if let Some(user) = &self.user {
            writeln!(f, "\nuser {}", user.user)?;
            if user.places.is_empty() {
                writeln!(f, "  has no request in this log")?;
            }
            user.places
                .iter()
                .try_for_each(|place| at_place(f, place))?;
        }
        Ok(())
    }
}

impl Report {
    fn head(&self, f: &mut Formatter<'_>) -> Result {
        let broken: u64 = self.broken.iter().map(|broken| broken.count).sum();
        writeln!(
            f,
            "lines      {} ({broken} broken, {} passed over)",
            number(self.lines),
            number(self.passed_over)
        )?;
        for why in self.broken.iter().filter(|broken| broken.count > 0) {
            writeln!(f, "           {} broken: {}", number(why.count), why.name)?;
        }
        if let (Some(from), Some(until)) = (&self.from, &self.until) {
            writeln!(f, "time       {from} to {until}")?;
        }
        let rate = self.requests as f64 / self.duration as f64;
        writeln!(
            f,
            "requests   {} ({rate:.1} a second), {} with errors, {}",
            number(self.requests),
            number(self.errors),
            bytes(self.bytes)
        )?;
        let about = if self.exact { "" } else { "about " };
        writeln!(f, "users      {about}{}", number(self.users))?;
        if !self.exact {
            writeln!(
                f,
                "           more than are counted exactly: see --exact-users. Those with \"<=\" may be too large by {}",
                self.amount(self.error)
            )?;
        }
        writeln!(
            f,
            "failovers  {} requests that one worker failed and nginx tried another",
            number(self.failovers)
        )
    }

    fn group(&self, f: &mut Formatter<'_>, group: &Group) -> Result {
        writeln!(f, "\ngroup {}", named(&group.group))?;
        if group.workers.is_empty() {
            return writeln!(
                f,
                "  {} requests that nginx answered itself",
                number(group.requests)
            );
        }
        let width = column("worker", group.workers.iter().map(|worker| &*worker.worker));
        writeln!(
            f,
            "  {:width$} {:>9} {:>12} {:>6} {:>12} {:>10} {:>8} {:>7}",
            "worker", "users", "requests", "share", "seconds", "sent", "errors", "failed"
        )?;
        for worker in &group.workers {
            writeln!(
                f,
                "  {:width$} {:>9} {:>12} {:>5.1}% {:>12.0} {:>10} {:>8} {:>7}{}",
                worker.worker,
                number(worker.users),
                number(worker.requests),
                worker.share * 100.0,
                worker.seconds,
                bytes(worker.bytes),
                number(worker.errors),
                number(worker.failed_attempts),
                if worker.has_share {
                    ""
                } else {
                    "  canary or pins alone"
                }
            )?;
        }
        if group.unserved > 0 {
            writeln!(
                f,
                "  {} requests that nginx answered itself",
                number(group.unserved)
            )?;
        }
        if let Some(evenness) = &group.evenness {
            writeln!(
                f,
                "  evenness, the largest over the mean (by lot: half below, 95% below)"
            )?;
            let loads = [
                ("users", &evenness.users),
                ("requests", &evenness.requests),
                ("seconds", &evenness.seconds),
            ];
            loads
                .iter()
                .try_for_each(|(name, load)| even(f, name, load))?;
        }
        for chosen in &group.chosen {
            writeln!(f, "  {chosen}")?;
        }
        self.moved(f, group)?;
        group
            .workers
            .iter()
            .try_for_each(|worker| self.heaviest(f, worker))
    }

    fn moved(&self, f: &mut Formatter<'_>, group: &Group) -> Result {
        let moved = &group.moved;
        if moved.users > 0 {
            writeln!(
                f,
                "  users on more than one worker: {} (worker down {}, shift {}, other {})",
                number(moved.users),
                number(moved.worker_down),
                number(moved.shift),
                number(moved.other)
            )?;
        }
        if moved.fallback_requests > 0 {
            writeln!(
                f,
                "  fallback: {} requests of about {} tokens whose user was not known; they may have reached another worker than their user's",
                number(moved.fallback_requests),
                number(moved.fallback_tokens_about)
            )?;
        }
        Ok(())
    }

    fn heaviest(&self, f: &mut Formatter<'_>, worker: &Worker) -> Result {
        if worker.heaviest.is_empty() {
            return Ok(());
        }
        writeln!(f, "  heaviest users of {}", worker.worker)?;
        worker
            .heaviest
            .iter()
            .try_for_each(|heavy| self.heavy(f, heavy, worker))
    }

    fn heavy(&self, f: &mut Formatter<'_>, heavy: &Heavy, worker: &Worker) -> Result {
        match (&heavy.exact, heavy.at_most) {
            (Some(amounts), _) => writeln!(
                f,
                "    {} {:>10} requests {:>5.1}% {:>10.0} s {:>9}",
                heavy.user,
                number(amounts.requests),
                amounts.requests as f64 * 100.0 / worker.requests.max(1) as f64,
                amounts.seconds,
                bytes(amounts.bytes)
            ),
            (None, at_most) => writeln!(
                f,
                "    {} <= {}",
                heavy.user,
                self.amount(at_most.unwrap_or(0))
            ),
        }
    }

    fn amount(&self, amount: u64) -> String {
        match self.by {
            Measure::Requests => format!("{} requests", number(amount)),
            Measure::Seconds => format!("{} s", number(amount / 1_000)),
            Measure::Bytes => bytes(amount),
        }
    }

    fn slowest(&self, f: &mut Formatter<'_>) -> Result {
        let timed: Vec<_> = self
            .groups
            .iter()
            .filter(|group| group.times.requests > 0)
            .collect();
        if timed.is_empty() {
            return Ok(());
        }
        let names = timed.iter().map(|group| named(&group.group));
        let width = column("slowest groups", names);
        writeln!(
            f,
            "\n{:width$} {:>12} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "slowest groups", "requests", "mean s", "half", "95%", "99%", "longest"
        )?;
        for group in timed {
            let times = &group.times;
            writeln!(
                f,
                "{:width$} {:>12} {:>9.3} {:>9.3} {:>9.3} {:>9.3} {:>9.3}",
                named(&group.group),
                number(times.requests),
                times.mean,
                times.p50,
                times.p95,
                times.p99,
                times.largest
            )?;
        }
        Ok(())
    }

    fn lookups(&self, f: &mut Formatter<'_>) -> Result {
        let all: u64 = self.lookups.iter().map(|lookup| lookup.count).sum();
        writeln!(f, "\nlookups         requests")?;
        for lookup in self.lookups.iter().filter(|lookup| lookup.count > 0) {
            let share = lookup.count as f64 * 100.0 / all.max(1) as f64;
            writeln!(
                f,
                "  {:9} {:>12} {share:>6.2}%",
                lookup.name,
                number(lookup.count)
            )?;
        }
        if self.held.requests > 0 {
            writeln!(
                f,
                "  {} requests were held: mean {:.3} s, half {:.3}, 95% {:.3}, 99% {:.3}, longest {:.3}",
                number(self.held.requests),
                self.held.mean,
                self.held.p50,
                self.held.p95,
                self.held.p99,
                self.held.largest
            )?;
        }
        Ok(())
    }
}

fn even(f: &mut Formatter<'_>, name: &str, even: &Even) -> Result {
    write!(f, "    {name:9} {:.3}", even.largest_over_mean)?;
    match &even.chance {
        Some(chance) => writeln!(f, " ({:.3}, {:.3})", chance.median, chance.p95),
        None => writeln!(f),
    }
}

fn at_place(f: &mut Formatter<'_>, place: &AtPlace) -> Result {
    write!(
        f,
        "  {} in {}: {} requests, {:.0} s, {}",
        place.worker,
        named(&place.group),
        number(place.amounts.requests),
        place.amounts.seconds,
        bytes(place.amounts.bytes)
    )?;
    match place.why {
        Some(why) => writeln!(f, " (more than one worker: {why})"),
        None => writeln!(f),
    }
}

/// The width of a column with that title.
pub(crate) fn column<'a>(title: &str, cells: impl Iterator<Item = &'a str>) -> usize {
    cells.map(str::len).fold(title.len(), usize::max)
}

/// A group's name; the log may have none.
pub(crate) fn named(group: &str) -> &str {
    if group.is_empty() {
        "(no name in the log)"
    } else {
        group
    }
}

/// With commas.
pub(crate) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// With the unit that fits.
pub(crate) fn bytes(bytes: u64) -> String {
    let mut amount = bytes as f64;
    let mut text = String::new();
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        if amount < 1_000.0 || unit == "TB" {
            let decimals = usize::from(unit != "B" && amount < 100.0);
            // Writing to a String cannot fail.
            let _ = write!(text, "{amount:.decimals$} {unit}");
            break;
        }
        amount /= 1_000.0;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_commas_and_bytes_units() {
        assert_eq!(
            [0, 999, 1_000, 1_234_567].map(number),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(
            [0, 999, 1_500, 250_000_000].map(bytes),
            ["0 B", "999 B", "1.5 kB", "250 MB"]
        );
    }
}

//! The answer as a page.

use super::{Report, Side};
use crate::balance::{named, number};
use crate::diagnostic::Diagnostic;
use crate::html::{Bars, Lines, Page};

impl Report {
    /// Makes it.
    ///
    /// # Errors
    /// A plot cannot be drawn.
    pub(crate) fn page(&self) -> Result<Page, Diagnostic> {
        let below = format!(
            "Group {}: {} requests of {} users",
            named(&self.group),
            number(self.requests),
            number(self.users)
        );
        let mut page = Page::new("What other workers would mean", &below);
        let check = &self.check;
        page.tiles(&[
            (
                "users move",
                format!(
                    "{} ({:.1}%)",
                    number(self.moved.users),
                    self.moved.share * 100.0
                ),
            ),
            (
                "of them in the busiest minute",
                number(self.moved.peak_in_a_minute),
            ),
            (
                "whoami, a second",
                format!("{:.2}", self.lookups.whoami_in_a_second),
            ),
            ("zone", format!("{}m", self.lookups.zone_mib)),
            (
                "workers at most, for evenness",
                format!("{}", self.recommended.most_workers),
            ),
        ]);
        page.paragraph(&format!(
            "Today's ring explains {} of {} requests that did not fail over.",
            number(check.as_predicted),
            number(check.requests)
        ));
        if check.sent > 0 {
            page.paragraph(&format!(
                "{} more were sent by a canary, a pin or a shift; below, all users are on the ring.",
                number(check.sent)
            ));
        }
        page.bars("Share of the requests", &shares(&self.today, &self.wanted))?;
        side(&mut page, "Today", &self.today);
        side(&mut page, "Then", &self.wanted);
        page.heading("Other numbers of workers");
        let points = self
            .numbers
            .iter()
            .map(|number| (number.workers as f64, number.evenness))
            .collect();
        page.lines(
            "The largest worker over the mean, by number of workers; the straight line is what was asked for",
            &Lines { lines: vec![("evenness".to_owned(), points)], moments: false, mark: Some(self.recommended.evenness) },
        )?;
        let row = |number: &super::Number| {
            vec![
                number.workers.to_string(),
                format!("{:.3}", number.evenness),
                format!("{:.1}%", number.largest_share * 100.0),
            ]
        };
        page.table(
            &["workers", "evenness", "largest share"],
            &self.numbers.iter().map(row).collect::<Vec<_>>(),
        );
        Ok(page)
    }
}

/// Every worker of either side, with its share in both.
fn shares(today: &Side, wanted: &Side) -> Bars {
    let mut labels: Vec<String> = today
        .workers
        .iter()
        .chain(&wanted.workers)
        .map(|worker| worker.worker.clone())
        .collect();
    labels.sort();
    labels.dedup();
    let of = |side: &Side| {
        let share = |name: &String| {
            side.workers
                .iter()
                .find(|worker| worker.worker == *name)
                .map_or(0.0, |worker| worker.share * 100.0)
        };
        labels.iter().map(share).collect()
    };
    Bars {
        values: vec![of(today), of(wanted)],
        names: vec!["today".to_owned(), "then".to_owned()],
        unit: "%",
        labels,
    }
}

fn side(page: &mut Page, title: &str, side: &Side) {
    page.heading(title);
    let row = |worker: &super::Share| {
        vec![
            worker.worker.clone(),
            worker.weight.to_string(),
            number(worker.users),
            number(worker.requests),
            format!("{:.1}%", worker.share * 100.0),
            format!("{:.0}", worker.seconds),
        ]
    };
    page.table(
        &["worker", "weight", "users", "requests", "share", "seconds"],
        &side.workers.iter().map(row).collect::<Vec<_>>(),
    );
    let even = &side.evenness;
    let chance = even.chance.as_ref().map_or(String::new(), |chance| {
        format!(
            " (by lot: half below {:.3}, 95% below {:.3})",
            chance.median, chance.p95
        )
    });
    page.paragraph(&format!("Evenness {:.3}{chance}.", even.largest_over_mean));
}

//! The report as a page.

use std::cmp::Reverse;

use super::text::{bytes, named, number};
use super::{Even, Group, Report, Worker};
use crate::diagnostic::Diagnostic;
use crate::html::{Bars, Lines, Page};

/// Points of a line: more of them are a band.
const POINTS: usize = 200;
/// Lines that can be told apart.
const LINES: usize = 10;

impl Report {
    /// Makes it.
    ///
    /// # Errors
    /// A plot cannot be drawn.
    pub(crate) fn page(&self, title: &str) -> Result<Page, Diagnostic> {
        let span = match (&self.from, &self.until) {
            (Some(from), Some(until)) => format!("{from} to {until}"),
            _ => "no request".to_owned(),
        };
        let mut page = Page::new(title, &span);
        let broken: u64 = self.broken.iter().map(|broken| broken.count).sum();
        let about = if self.exact { "" } else { "about " };
        page.tiles(&[
            ("requests", number(self.requests)),
            ("users", format!("{about}{}", number(self.users))),
            ("errors", number(self.errors)),
            ("failovers", number(self.failovers)),
            ("sent", bytes(self.bytes)),
            ("broken lines", number(broken)),
        ]);
        for group in self.groups.iter().filter(|group| !group.workers.is_empty()) {
            self.section(&mut page, group)?;
        }
        self.slowest_groups(&mut page);
        self.statuses(&mut page)?;
        Ok(page)
    }

    fn section(&self, page: &mut Page, group: &Group) -> Result<(), Diagnostic> {
        page.heading(&format!("Group {}", named(&group.group)));
        let columns = [
            "worker",
            "users",
            "requests",
            "share",
            "seconds",
            "sent",
            "errors",
            "failed attempts",
        ];
        let row = |worker: &Worker| {
            vec![
                worker.worker.clone(),
                number(worker.users),
                number(worker.requests),
                format!("{:.1}%", worker.share * 100.0),
                format!("{:.0}", worker.seconds),
                bytes(worker.bytes),
                number(worker.errors),
                number(worker.failed_attempts),
            ]
        };
        page.table(&columns, &group.workers.iter().map(row).collect::<Vec<_>>());
        for chosen in &group.chosen {
            page.paragraph(&format!("{chosen}."));
        }
        let moved = &group.moved;
        if moved.users > 0 {
            page.paragraph(&format!(
                "{} users were on more than one worker: worker down {}, shift {}, other {}.",
                number(moved.users),
                number(moved.worker_down),
                number(moved.shift),
                number(moved.other)
            ));
        }
        if let Some(evenness) = &group.evenness {
            let row = |name: &str, even: &Even| {
                let chance = |part: fn(&super::Chance) -> f64| {
                    even.chance
                        .as_ref()
                        .map_or("-".to_owned(), |chance| format!("{:.3}", part(chance)))
                };
                vec![
                    name.to_owned(),
                    format!("{:.3}", even.largest_over_mean),
                    chance(|chance| chance.median),
                    chance(|chance| chance.p95),
                ]
            };
            let rows = [
                row("users", &evenness.users),
                row("requests", &evenness.requests),
                row("seconds", &evenness.seconds),
            ];
            page.table(
                &[
                    "evenness",
                    "largest over mean",
                    "by lot, half below",
                    "by lot, 95% below",
                ],
                &rows,
            );
        }
        page.bars(
            "Requests of each worker",
            &Bars {
                labels: group
                    .workers
                    .iter()
                    .map(|worker| worker.worker.clone())
                    .collect(),
                names: vec!["requests".to_owned()],
                values: vec![
                    group
                        .workers
                        .iter()
                        .map(|worker| worker.requests as f64)
                        .collect(),
                ],
                unit: "",
            },
        )?;
        self.over_time(page, group)?;
        heaviest(page, group);
        Ok(())
    }

    fn over_time(&self, page: &mut Page, group: &Group) -> Result<(), Diagnostic> {
        let (start, step) = self.timeline;
        let mut workers: Vec<&Worker> = group
            .workers
            .iter()
            .filter(|worker| worker.timeline.len() > 1)
            .collect();
        if workers.is_empty() {
            return Ok(());
        }
        workers.sort_by_key(|worker| Reverse(worker.requests));
        workers.truncate(LINES);
        workers.sort_by(|a, b| a.worker.cmp(&b.worker));
        // Zeros at the end are there for the longest one.
        let length = workers
            .iter()
            .map(|worker| worker.timeline.len())
            .max()
            .unwrap_or(0);
        let joined = length.div_ceil(POINTS).max(1);
        let step = step * joined as i64;
        let points = |worker: &Worker| {
            let mean = |index: usize| {
                let end = ((index + 1) * joined).min(worker.timeline.len());
                let counts = worker.timeline.get(index * joined..end).unwrap_or_default();
                counts.iter().sum::<u64>() as f64 / step as f64
            };
            (0..length / joined)
                .map(|index| ((start + step * index as i64) as f64, mean(index)))
                .collect()
        };
        let lines = workers
            .iter()
            .map(|worker| (worker.worker.clone(), points(worker)))
            .collect();
        page.lines(
            &format!("Requests a second, means of {step} s"),
            &Lines {
                lines,
                moments: true,
                mark: None,
            },
        )
    }

    fn slowest_groups(&self, page: &mut Page) {
        page.heading("Slowest groups");
        let row = |group: &Group| {
            let times = &group.times;
            let figures = [times.mean, times.p50, times.p95, times.p99, times.largest];
            let mut row = vec![named(&group.group).to_owned(), number(times.requests)];
            row.extend(figures.map(|seconds| format!("{seconds:.3}")));
            row
        };
        let timed = self.groups.iter().filter(|group| group.times.requests > 0);
        page.table(
            &[
                "group", "requests", "mean s", "half", "95%", "99%", "longest",
            ],
            &timed.map(row).collect::<Vec<_>>(),
        );
    }

    fn statuses(&self, page: &mut Page) -> Result<(), Diagnostic> {
        page.heading("Lookups");
        let seen: Vec<_> = self
            .lookups
            .iter()
            .filter(|lookup| lookup.count > 0)
            .collect();
        page.bars(
            "Requests by status of the lookup (- is where there is none)",
            &Bars {
                labels: seen.iter().map(|lookup| lookup.name.to_owned()).collect(),
                names: vec!["requests".to_owned()],
                values: vec![seen.iter().map(|lookup| lookup.count as f64).collect()],
                unit: "",
            },
        )
    }
}

fn heaviest(page: &mut Page, group: &Group) {
    let mut rows = Vec::new();
    for worker in &group.workers {
        for heavy in &worker.heaviest {
            let mut row = vec![format!("{} on {}", heavy.user, worker.worker)];
            row.extend(match (&heavy.exact, heavy.at_most) {
                (Some(amounts), _) => [
                    number(amounts.requests),
                    format!("{:.0}", amounts.seconds),
                    bytes(amounts.bytes),
                ],
                (None, at_most) => [
                    format!("at most {}", number(at_most.unwrap_or(0))),
                    String::new(),
                    String::new(),
                ],
            });
            rows.push(row);
        }
    }
    if !rows.is_empty() {
        page.table(&["heaviest users", "requests", "seconds", "sent"], &rows);
    }
}

//! The screen of `top`: drawn at each look, and gone when one leaves.
//!
//! The terminal is restored however it ends: by a key, by a signal, by a panic (`ratatui::try_init` sees to that) or when the
//! terminal itself is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table};
use signal_hook::consts::{SIGHUP, SIGTERM};

use super::Look;
use crate::balance::{Group, Report, bytes, named, number};
use crate::diagnostic::Diagnostic;

/// How long a signal may have to wait for its effect.
const SOON: Duration = Duration::from_millis(100);
/// Width of the bar of a worker's share.
const BAR: usize = 20;

/// Looks, draws, and waits for a key, until one of `q`, Escape and Ctrl-C, or a signal.
///
/// # Errors
/// The terminal does not do what is asked of it.
pub(super) fn run(interval: Duration, mut look: impl FnMut() -> Look) -> Result<(), Diagnostic> {
    let failed = |error: std::io::Error| {
        Diagnostic::error(format!("the terminal failed: {error}"))
            .fix("say --once, which needs none")
    };
    let told = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&told)).map_err(failed)?;
    }
    let mut terminal = ratatui::try_init().map_err(failed)?;
    let mut view = View::default();
    let result = (|| {
        while !told.load(Ordering::Relaxed) {
            let now = look();
            let next = Instant::now() + interval;
            terminal.draw(|frame| view.draw(frame, &now))?;
            while Instant::now() < next && !told.load(Ordering::Relaxed) {
                if !event::poll(SOON.min(next.saturating_duration_since(Instant::now())))? {
                    continue;
                }
                match view.take(&event::read()?) {
                    Next::Leave => return Ok(()),
                    Next::Draw => terminal.draw(|frame| view.draw(frame, &now)).map(|_| ())?,
                    Next::Wait => {}
                }
            }
        }
        Ok(())
    })();
    let restored = ratatui::try_restore();
    result.and(restored).map_err(failed)
}

/// What follows a key.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Leave,
    Draw,
    Wait,
}

/// What is shown of a look.
#[derive(Debug, Default)]
struct View {
    /// Which group; one past the last is all of them again.
    group: usize,
    /// Workers above the first that is shown.
    scrolled: usize,
}

impl View {
    fn take(&mut self, event: &Event) -> Next {
        let Event::Key(key) = event else {
            return if matches!(event, Event::Resize(..)) {
                Next::Draw
            } else {
                Next::Wait
            };
        };
        if key.kind == KeyEventKind::Release {
            return Next::Wait;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Next::Leave,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                return Next::Leave;
            }
            KeyCode::Tab => (self.group, self.scrolled) = (self.group + 1, 0),
            KeyCode::Down => self.scrolled += 1,
            KeyCode::Up => self.scrolled = self.scrolled.saturating_sub(1),
            _ => return Next::Wait,
        }
        Next::Draw
    }

    fn draw(&mut self, frame: &mut Frame<'_>, look: &Look) {
        let figures = if look.figures.is_some() { 5 } else { 0 } + look.silent.len() as u16;
        let [head, nginx, body, foot] = Layout::vertical([
            Constraint::Length(3),
            Constraint::Length(figures),
            Constraint::Fill(1),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(Paragraph::new(summary(look)), head);
        frame.render_widget(Paragraph::new(of_nginx(look)), nginx);
        if let Some(report) = &look.log {
            self.groups(frame, body, report);
        }
        frame.render_widget(
            Paragraph::new("q leave   Tab next group   Up, Down workers").dim(),
            foot,
        );
    }

    fn groups(&mut self, frame: &mut Frame<'_>, area: Rect, report: &Report) {
        let mut groups: Vec<&Group> = report
            .groups
            .iter()
            .filter(|group| !group.workers.is_empty())
            .collect();
        groups.sort_by(|a, b| a.group.cmp(&b.group));
        if groups.is_empty() {
            frame.render_widget(Paragraph::new("no request of a worker in this time"), area);
            return;
        }
        let group = groups[self.group % groups.len()];
        let workers = u16::try_from(group.workers.len())
            .unwrap_or(u16::MAX)
            .saturating_add(3);
        let [above, below] =
            Layout::vertical([Constraint::Max(workers), Constraint::Min(4)]).areas(area);
        self.scrolled = self.scrolled.min(group.workers.len().saturating_sub(1));
        let even = group.evenness.as_ref().map_or(String::new(), |even| {
            format!(", evenness {:.2}", even.requests.largest_over_mean)
        });
        let title = format!(
            " {} ({} of {}){even} ",
            named(&group.group),
            self.group % groups.len() + 1,
            groups.len()
        );
        frame.render_widget(
            workers_of(group, report, self.scrolled).block(Block::bordered().title(title)),
            above,
        );
        frame.render_widget(
            heavy_of(group).block(Block::bordered().title(" heaviest users ")),
            below,
        );
    }
}

fn workers_of<'a>(group: &Group, report: &Report, scrolled: usize) -> Table<'a> {
    let row = |worker: &crate::balance::Worker| {
        let bar = "#".repeat((worker.share * BAR as f64).round() as usize);
        let errors = Cell::from(number(worker.errors));
        Row::new([
            Cell::from(worker.worker.clone()),
            Cell::from(number(worker.users)),
            Cell::from(format!(
                "{:.1}",
                worker.requests as f64 / report.duration as f64
            )),
            Cell::from(format!("{:>3.0}% {bar}", worker.share * 100.0)),
            Cell::from(format!("{:.1}", worker.seconds / report.duration as f64)),
            if worker.errors > 0 {
                errors.red()
            } else {
                errors
            },
            Cell::from(number(worker.failed_attempts)),
        ])
    };
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(9),
        Constraint::Length(10),
        Constraint::Length(BAR as u16 + 6),
        Constraint::Length(9),
        Constraint::Length(8),
        Constraint::Length(7),
    ];
    Table::new(group.workers.iter().skip(scrolled).map(row), widths).header(
        Row::new([
            "worker",
            "users",
            "requests/s",
            "share",
            "at once",
            "errors",
            "failed",
        ])
        .style(Style::new().add_modifier(Modifier::BOLD)),
    )
}

fn heavy_of<'a>(group: &Group) -> Table<'a> {
    let mut heavy: Vec<_> = group
        .workers
        .iter()
        .flat_map(|worker| {
            worker
                .heaviest
                .iter()
                .filter_map(move |heavy| Some((worker, heavy, heavy.exact.as_ref()?)))
        })
        .collect();
    heavy.sort_by(|a, b| {
        b.2.requests
            .cmp(&a.2.requests)
            .then_with(|| a.1.user.cmp(&b.1.user))
    });
    let rows = heavy.into_iter().map(|(worker, heavy, amounts)| {
        Row::new([
            heavy.user.clone(),
            worker.worker.clone(),
            number(amounts.requests),
            format!(
                "{:.1}%",
                amounts.requests as f64 * 100.0 / worker.requests.max(1) as f64
            ),
            bytes(amounts.bytes),
        ])
    });
    let widths = [
        Constraint::Length(18),
        Constraint::Fill(1),
        Constraint::Length(9),
        Constraint::Length(8),
        Constraint::Length(9),
    ];
    Table::new(rows.collect::<Vec<_>>(), widths).header(
        Row::new(["user", "worker", "requests", "of it", "sent"])
            .style(Style::new().add_modifier(Modifier::BOLD)),
    )
}

fn summary(look: &Look) -> Vec<Line<'static>> {
    let Some(report) = &look.log else {
        return Vec::new();
    };
    let count = |names: &[&str]| {
        report
            .lookups
            .iter()
            .filter(|lookup| names.contains(&lookup.name))
            .map(|lookup| lookup.count)
            .sum::<u64>()
    };
    let asked = count(&["HIT", "STALE", "MISS", "SHARED", "ERROR", "TIMEOUT"]);
    let hits = if asked > 0 {
        format!(
            "{:.1}%",
            count(&["HIT", "STALE"]) as f64 * 100.0 / asked as f64
        )
    } else {
        "-".to_owned()
    };
    let moved: u64 = report.groups.iter().map(|group| group.moved.users).sum();
    let broken: u64 = report.broken.iter().map(|broken| broken.count).sum();
    let bold = |text: String| Span::from(text).bold();
    vec![
        Line::from(vec![
            format!("last {} s   requests/s ", look.window).into(),
            bold(format!(
                "{:.1}",
                report.requests as f64 / look.window.max(1) as f64
            )),
            "   users ".into(),
            bold(number(report.users)),
            "   hit ratio ".into(),
            bold(hits),
        ]),
        Line::from(format!(
            "held by lookups: {} requests, half {:.3} s, 95% {:.3} s   errors {}   failovers {}   on two workers {moved}   broken lines {broken}",
            number(report.held.requests),
            report.held.p50,
            report.held.p95,
            number(report.errors),
            number(report.failovers)
        )),
        Line::from(if look.left_out > 0 {
            format!(
                "{} older lines did not fit into memory",
                number(look.left_out)
            )
        } else {
            String::new()
        }),
    ]
}

fn of_nginx(look: &Look) -> Vec<Line<'static>> {
    let text = look
        .figures
        .as_ref()
        .map_or(String::new(), ToString::to_string);
    let mut lines: Vec<Line<'static>> = text
        .lines()
        .map(|line| Line::from(line.to_owned()))
        .collect();
    lines.extend(
        look.silent
            .iter()
            .map(|silent| Line::from(format!("no figures from {silent}")).red()),
    );
    lines
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::KeyEvent;

    use super::*;
    use crate::log::tally::{Measure, Options, Tally};

    fn look() -> Look {
        let options = Options {
            since: None,
            until: None,
            group: None,
            watched: None,
            exact_users: 100,
            by: Measure::Requests,
        };
        let mut tally = Tally::new(options);
        for (number, worker) in ["a:1", "a:1", "a:1", "b:1"].into_iter().enumerate() {
            let line = format!(
                "2026-11-24T00:03:5{number}+00:00 /x 200 user=86f01aef21b1acd{} lookup=HIT worker={worker}",
                number / 3
            );
            tally.add(Some(line.as_bytes()));
        }
        let mut report = Report::new(&tally, 3);
        report.duration = 60;
        Look {
            log: Some(report),
            window: 60,
            left_out: 0,
            figures: None,
            silent: vec!["nginx:80/metrics: gone".to_owned()],
        }
    }

    fn drawn(width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal
            .draw(|frame| View::default().draw(frame, &look()))
            .unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn workers_users_and_the_hit_ratio_are_on_the_screen() {
        let screen = drawn(120, 24);
        for part in [
            "hit ratio 100.0%",
            "users 2",
            "a:1",
            " 75% ###############",
            "86f01aef21b1acd0",
            "no figures from nginx:80",
        ] {
            assert!(screen.contains(part), "{part}\n{screen}");
        }
    }

    #[test]
    fn no_screen_is_too_small() {
        for (width, height) in [(1, 1), (10, 3), (40, 8), (300, 100)] {
            drawn(width, height);
        }
    }

    #[test]
    fn three_keys_leave_and_others_do_not() {
        let mut view = View::default();
        let key = |code, modifiers| Event::Key(KeyEvent::new(code, modifiers));
        let none = KeyModifiers::NONE;
        assert_eq!(view.take(&key(KeyCode::Char('c'), none)), Next::Wait);
        assert_eq!(view.take(&key(KeyCode::Tab, none)), Next::Draw);
        for (code, modifiers) in [
            (KeyCode::Char('q'), none),
            (KeyCode::Esc, none),
            (KeyCode::Char('c'), KeyModifiers::CONTROL),
        ] {
            assert_eq!(view.take(&key(code, modifiers)), Next::Leave);
        }
    }
}

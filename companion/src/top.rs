//! `top`: the same as `balance`, live: from logs that grow, and from the figures of one or several nginx.
//!
//! `follow` reads what is new in a log, over rotation; `window` keeps the lines of the last minute; `figures` asks
//! nginx; `screen` draws. `--once` shows one look as text, for scripts.

mod figures;
mod follow;
mod screen;
mod window;

use std::fmt::{Display, Formatter};
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::balance::Report;
use crate::diagnostic::Diagnostic;
use crate::html::Page;
use crate::log::tally::Options;

pub(crate) use figures::{Figures, Source};
use follow::Follower;
use window::Window;

/// What is watched.
#[derive(Debug)]
pub(crate) struct Watch {
    /// Logs that grow.
    pub logs: Vec<PathBuf>,
    /// Where nginx answers with its figures.
    pub sources: Vec<Source>,
    /// Seconds that are looked at.
    pub window: i64,
    /// How often.
    pub interval: Duration,
    /// What is counted.
    pub options: Options,
    /// Heavy users of each worker.
    pub heavy: usize,
}

/// One look.
#[derive(Debug, Serialize)]
pub(crate) struct Look {
    /// What the logs say; none where none is watched.
    pub log: Option<Report>,
    /// Seconds that it is of.
    pub window: i64,
    /// Lines of that time that did not fit into memory.
    pub left_out: u64,
    /// What nginx says; none where none is asked.
    pub figures: Option<Figures>,
    /// Where nginx did not answer, and why.
    pub silent: Vec<String>,
}

/// Everything that is kept between two looks.
struct Watcher<'a> {
    watch: &'a Watch,
    followers: Vec<Follower>,
    window: Window,
    before: Option<(Instant, figures::Sums)>,
}

impl<'a> Watcher<'a> {
    fn new(watch: &'a Watch) -> Result<Self, Diagnostic> {
        let followers = watch
            .logs
            .iter()
            .map(|log| Follower::open(log))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            watch,
            followers,
            window: Window::new(watch.window),
            before: None,
        })
    }

    /// Looks; `now` is the end of the window, or none for the newest line.
    fn look(&mut self, now: Option<i64>) -> Look {
        for follower in &mut self.followers {
            follower.read(|line| self.window.push(line));
        }
        let (sums, silent) = figures::ask(&self.watch.sources);
        let before = self.before.take();
        let since = before.as_ref().map(|(at, sums)| (at.elapsed(), sums));
        let figures = (!self.watch.sources.is_empty()).then(|| Figures::new(&sums, since));
        self.before = Some((Instant::now(), sums));
        self.window.end(now);
        let tally = self.window.tally(&self.watch.options);
        let mut report = Report::new(&tally, self.watch.heavy);
        report.duration = self.watch.window;
        Look {
            log: (!self.followers.is_empty()).then_some(report),
            window: self.watch.window,
            left_out: self.window.left_out(),
            figures,
            silent,
        }
    }
}

/// One look. Rates of nginx's figures need two questions, one interval apart.
///
/// # Errors
/// A log cannot be read.
pub(crate) fn once(watch: &Watch) -> Result<Look, Diagnostic> {
    let mut watcher = Watcher::new(watch)?;
    if !watch.sources.is_empty() {
        watcher.look(None);
        std::thread::sleep(watch.interval);
    }
    Ok(watcher.look(None))
}

/// Looks again and again, until somebody wants to leave.
///
/// # Errors
/// A log cannot be read, or there is no terminal.
pub(crate) fn live(watch: &Watch) -> Result<(), Diagnostic> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err(Diagnostic::error("standard input or output is no terminal")
            .fix("say --once, which shows one look as text"));
    }
    let mut watcher = Watcher::new(watch)?;
    screen::run(watch.interval, || watcher.look(Some(now())))
}

fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl Look {
    /// Makes a page.
    ///
    /// # Errors
    /// A plot cannot be drawn.
    pub(crate) fn page(&self) -> Result<Page, Diagnostic> {
        let title = format!("The last {} seconds", self.window);
        let mut page = match &self.log {
            Some(report) => report.page(&title)?,
            None => Page::new(&title, "nginx's figures"),
        };
        if let Some(figures) = &self.figures {
            figures.on(&mut page)?;
        }
        self.silent
            .iter()
            .for_each(|silent| page.paragraph(&format!("No figures from {silent}.")));
        Ok(page)
    }
}

impl Display for Look {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        if let Some(figures) = &self.figures {
            write!(f, "{figures}")?;
        }
        for silent in &self.silent {
            writeln!(f, "no figures from {silent}")?;
        }
        if let Some(report) = &self.log {
            writeln!(f, "the last {} seconds of the log", self.window)?;
            if self.left_out > 0 {
                writeln!(
                    f,
                    "  without {} older lines that did not fit into memory",
                    self.left_out
                )?;
            }
            write!(f, "{report}")?;
        }
        Ok(())
    }
}

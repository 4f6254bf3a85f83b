//! The lines of the last minute, or however long one looks back.

use std::collections::VecDeque;

use crate::log::line::Parser;
use crate::log::tally::{Options, Tally};

/// Bytes of lines that are kept. More than that in a window is a log that nobody looks at line by line: the oldest go.
const KEPT: usize = 64 << 20;

/// Lines with their moments.
#[derive(Debug)]
pub(super) struct Window {
    seconds: i64,
    lines: VecDeque<(i64, Box<[u8]>)>,
    bytes: usize,
    /// The moment of the newest line, as soon as one has told its own.
    newest: Option<i64>,
    left_out: u64,
    parser: Parser,
}

impl Window {
    /// Nothing yet.
    pub(super) fn new(seconds: i64) -> Self {
        Self {
            seconds,
            lines: VecDeque::new(),
            bytes: 0,
            newest: None,
            left_out: 0,
            parser: Parser::default(),
        }
    }

    /// Takes a line in. A broken one has no moment; it counts as of the newest, or of the first that comes.
    pub(super) fn push(&mut self, line: &[u8]) {
        let time = self.parser.parse(line).map(|line| line.time).ok();
        if let Some(time) = time {
            self.begin(time);
        }
        self.newest = self.newest.max(time);
        let newest = self.newest.unwrap_or_default();
        let time = time.unwrap_or(newest);
        if time <= newest.saturating_sub(self.seconds) {
            return;
        }
        self.bytes += line.len();
        self.lines.push_back((time, line.into()));
        while self.bytes > KEPT {
            self.drop_first();
            self.left_out += 1;
        }
    }

    /// The first moment is known: the lines that had none were then.
    fn begin(&mut self, first: i64) {
        if self.newest.is_none() {
            self.lines.iter_mut().for_each(|(time, _)| *time = first);
            self.newest = Some(first);
        }
    }

    /// Lets go of what is older, seen from `now` or from the newest line.
    pub(super) fn end(&mut self, now: Option<i64>) {
        if let Some(now) = now {
            self.begin(now);
        }
        let Some(seen_from) = self.newest.max(now) else {
            return;
        };
        let from = seen_from.saturating_sub(self.seconds);
        while self.lines.front().is_some_and(|(time, _)| *time <= from) {
            self.drop_first();
        }
        if self.lines.is_empty() {
            self.left_out = 0;
        }
    }

    fn drop_first(&mut self) {
        if let Some((_, line)) = self.lines.pop_front() {
            self.bytes -= line.len();
        }
    }

    /// Adds them up.
    pub(super) fn tally(&self, options: &Options) -> Tally {
        let mut tally = Tally::new(options.clone());
        for (_, line) in &self.lines {
            tally.add(Some(line));
        }
        tally
    }

    /// Lines that did not fit.
    pub(super) const fn left_out(&self) -> u64 {
        self.left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(time: i64) -> Vec<u8> {
        let time = crate::log::time::format(time).replace('Z', "+00:00");
        format!("{time} /x 200 user=86f01aef21b1acd3 lookup=HIT worker=a:1").into_bytes()
    }

    #[test]
    fn only_the_last_seconds_are_kept() {
        let mut window = Window::new(60);
        for time in 1_000..1_200 {
            window.push(&line(time));
        }
        window.push(b"broken");
        window.end(None);
        assert_eq!(window.lines.len(), 61);
        // Nothing has come for half a minute.
        window.end(Some(1_229));
        assert_eq!(window.lines.len(), 31);
        window.end(Some(9_999));
        assert_eq!((window.lines.len(), window.bytes), (0, 0));
    }

    #[test]
    fn broken_lines_count_before_any_moment_is_known() {
        let mut window = Window::new(60);
        window.push(b"broken");
        window.end(None);
        assert_eq!(window.lines.len(), 1);
        // The first line that has a moment gives it to those before.
        window.push(&line(1_000));
        window.push(&line(1_061));
        window.end(None);
        assert_eq!(window.lines.len(), 1, "it went with its time");
        // Where somebody looks on, they go after their time, too.
        let mut window = Window::new(60);
        window.push(b"broken");
        window.end(Some(1_000));
        assert_eq!(window.lines.len(), 1);
        window.end(Some(1_060));
        assert_eq!(window.lines.len(), 0);
    }

    #[test]
    fn the_oldest_go_when_there_is_no_room() {
        let mut window = Window::new(60);
        let mut long = line(1_000);
        long.resize(1 << 20, b'x');
        (0..100).for_each(|_| window.push(&long));
        assert!(window.bytes <= KEPT);
        assert_eq!(window.left_out(), 36);
    }
}

//! Lines out of files, compressed or not, and standard input.
//!
//! One buffer is read into, and lines are handed out as slices of it: nothing is allocated for a line. Several files are
//! read in the order of the moments in them, whatever their order on the command line, because `access.log*` names the
//! newest first.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, IsTerminal as _, Read, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flate2::bufread::MultiGzDecoder;
use memchr::{memchr, memrchr};

use super::line::Parser;
use crate::diagnostic::Diagnostic;

/// Longer than any line that nginx writes: `large_client_header_buffers` bounds them by far less.
const LONGEST: usize = 1 << 20;
/// Lines of a file's beginning in which a moment is looked for.
const LOOKED_AT: usize = 100;

/// Calls `each` with every line of the inputs, without its line feed, and with nothing for one that is too long.
///
/// # Errors
/// An input cannot be read.
pub(crate) fn lines(
    inputs: &[PathBuf],
    progress: &mut Progress,
    mut each: impl FnMut(Option<&[u8]>),
) -> Result<(), Diagnostic> {
    for (path, file) in in_order(inputs)? {
        let refused = |error: io::Error| {
            let fix = match error.kind() {
                ErrorKind::UnexpectedEof | ErrorKind::InvalidInput | ErrorKind::InvalidData => {
                    "it is compressed, and cut off or damaged: name it when it is whole, or give what is left of it to standard input, as zcat FILE | synapse-companion balance -"
                }
                _ => {
                    "name an access log that exists and that you may read, or - for standard input"
                }
            };
            Diagnostic::error(format!("cannot read {}: {error}", path.display())).fix(fix)
        };
        let mut reader = open(&path, file).map_err(refused)?;
        of_reader(&mut reader, progress, &mut each).map_err(refused)?;
    }
    progress.end();
    Ok(())
}

/// The inputs by the first moment in each. What can be read only once keeps its place. The others are open already: a log
/// that is rotated in the meantime has another name then, and would be read twice or not at all.
fn in_order(inputs: &[PathBuf]) -> Result<Vec<(PathBuf, Option<File>)>, Diagnostic> {
    let mut dated = Vec::new();
    let mut latest = i64::MIN;
    for input in inputs {
        // A pipe can be read once only, as standard input can.
        let again = inputs.len() > 1 && std::fs::metadata(input).is_ok_and(|known| known.is_file());
        let file = again.then(|| File::open(input).ok()).flatten();
        let first = file.as_ref().and_then(first_moment);
        // What has no moment stays behind what it stood behind.
        latest = first.unwrap_or(latest);
        dated.push((latest, input.clone(), file));
    }
    if inputs.iter().filter(|input| is_stdin(input)).count() > 1 {
        return Err(Diagnostic::error("standard input is named twice").fix("name - once"));
    }
    dated.sort_by_key(|(moment, ..)| *moment);
    Ok(dated
        .into_iter()
        .map(|(_, input, file)| (input, file))
        .collect())
}

fn first_moment(file: &File) -> Option<i64> {
    let mut reader = plain(Box::new(file)).ok()?;
    let mut beginning = vec![0; 1 << 16];
    let mut filled = 0;
    while filled < beginning.len() {
        match reader.read(&mut beginning[filled..]) {
            Ok(0) | Err(_) => break,
            Ok(read) => filled += read,
        }
    }
    let mut parser = Parser::default();
    beginning[..filled]
        .split(|byte| *byte == b'\n')
        .take(LOOKED_AT)
        .find_map(|line| parser.parse(line).ok())
        .map(|line| line.time)
}

fn is_stdin(input: &Path) -> bool {
    input.as_os_str() == "-"
}

/// An input from its beginning.
fn open(input: &Path, file: Option<File>) -> io::Result<Box<dyn Read>> {
    if is_stdin(input) {
        return plain(Box::new(io::stdin().lock()));
    }
    let mut file = match file {
        Some(file) => file,
        None => return plain(Box::new(File::open(input)?)),
    };
    file.rewind()?;
    plain(Box::new(file))
}

/// What a file holds: its first bytes say whether it is compressed, because it may have any name.
fn plain<'a>(file: Box<dyn Read + 'a>) -> io::Result<Box<dyn Read + 'a>> {
    let mut file = BufReader::with_capacity(1 << 16, file);
    let beginning = io::BufRead::fill_buf(&mut file)?;
    Ok(if beginning.starts_with(&[0x1f, 0x8b]) {
        Box::new(MultiGzDecoder::new(file))
    } else {
        Box::new(file)
    })
}

/// Calls `each` with every line; the last one may have no line feed.
fn of_reader(
    reader: &mut dyn Read,
    progress: &mut Progress,
    each: &mut impl FnMut(Option<&[u8]>),
) -> io::Result<()> {
    let mut buffer = vec![0; LONGEST];
    let mut filled = 0;
    let mut skipping = false;
    loop {
        let read = match reader.read(&mut buffer[filled..]) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if read == 0 {
            if skipping {
                each(None);
            } else if filled > 0 {
                each(Some(&buffer[..filled]));
            }
            return Ok(());
        }
        progress.add(read as u64);
        let end = filled + read;
        let Some(last) = memrchr(b'\n', &buffer[filled..end]).map(|at| filled + at) else {
            filled = end;
            if filled == buffer.len() {
                skipping = true;
                filled = 0;
            }
            continue;
        };
        let mut start = 0;
        if skipping {
            each(None);
            skipping = false;
            start = memchr(b'\n', &buffer[..=last]).map_or(0, |at| at + 1);
        }
        while start <= last {
            let length = memchr(b'\n', &buffer[start..=last]).unwrap_or(last - start);
            each(Some(&buffer[start..start + length]));
            start += length + 1;
        }
        buffer.copy_within(last + 1..end, 0);
        filled = end - last - 1;
    }
}

/// How far it has come, on standard error: a line that is written over on a terminal, one every ten seconds elsewhere.
#[derive(Debug)]
pub(crate) struct Progress {
    bytes: u64,
    shown_at: u64,
    started: Instant,
    last: Instant,
    terminal: bool,
    quiet: bool,
}

impl Progress {
    /// Begins.
    pub(crate) fn new(quiet: bool) -> Self {
        Self {
            bytes: 0,
            shown_at: 0,
            started: Instant::now(),
            last: Instant::now(),
            terminal: io::stderr().is_terminal(),
            quiet,
        }
    }

    fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        // The clock is not asked for each read.
        if self.quiet || self.bytes - self.shown_at < 1 << 24 {
            return;
        }
        self.shown_at = self.bytes;
        let every = if self.terminal {
            Duration::from_millis(500)
        } else {
            Duration::from_secs(10)
        };
        if self.last.elapsed() >= every {
            self.last = Instant::now();
            self.show(
                if self.terminal { "\r" } else { "" },
                if self.terminal { "" } else { "\n" },
            );
        }
    }

    fn end(&mut self) {
        if !self.quiet {
            self.show(if self.terminal { "\r" } else { "" }, "\n");
        }
    }

    fn show(&self, before: &str, after: &str) {
        let megabytes = self.bytes as f64 / 1e6;
        let seconds = self.started.elapsed().as_secs_f64();
        // Nothing is left to do about a standard error that is gone.
        let _ = write!(
            io::stderr(),
            "{before}read {megabytes:.0} MB in {seconds:.1} s ({:.0} MB/s){after}",
            megabytes / seconds.max(0.001)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a few bytes at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let length = self.1.min(self.0.len()).min(into.len());
            into[..length].copy_from_slice(&self.0[..length]);
            self.0 = &self.0[length..];
            Ok(length)
        }
    }

    fn all(text: &[u8], at_once: usize) -> Vec<Option<Vec<u8>>> {
        let mut found = Vec::new();
        of_reader(
            &mut Slow(text, at_once),
            &mut Progress::new(true),
            &mut |line| {
                found.push(line.map(<[u8]>::to_vec));
            },
        )
        .unwrap();
        found
    }

    #[test]
    fn lines_are_whole_however_they_arrive() {
        let text = b"one\n\nthree\nfour";
        let wanted: Vec<_> = ["one", "", "three", "four"]
            .map(|line| Some(line.as_bytes().to_vec()))
            .into();
        for at_once in 1..text.len() + 1 {
            assert_eq!(all(text, at_once), wanted);
        }
    }

    #[test]
    fn a_log_that_is_rotated_before_its_turn_is_read_once() {
        let folder = crate::files::temporary().unwrap();
        let at = |name: &str| folder.path().join(name);
        let line =
            |hour: u8| format!("2026-11-24T{hour:02}:00:00+00:00 /x 200 user=- worker=a:1\n");
        std::fs::write(at("access.log"), line(2)).unwrap();
        std::fs::write(at("access.log.1"), line(1)).unwrap();
        let inputs = in_order(&[at("access.log"), at("access.log.1")]).unwrap();
        std::fs::rename(at("access.log.1"), at("access.log.2")).unwrap();
        std::fs::rename(at("access.log"), at("access.log.1")).unwrap();
        std::fs::write(at("access.log"), line(3)).unwrap();
        let mut text = String::new();
        for (path, file) in inputs {
            open(&path, file)
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
        }
        assert_eq!(text, line(1) + &line(2));
    }

    #[test]
    fn a_line_that_is_too_long_is_one_line() {
        let mut text = b"one\n".to_vec();
        text.resize(3 * LONGEST, b'x');
        text.extend_from_slice(b"\nthree\n");
        let wanted = [Some(b"one".to_vec()), None, Some(b"three".to_vec())];
        for at_once in [1 << 16, LONGEST, 2 * LONGEST] {
            assert_eq!(all(&text, at_once), wanted);
        }
        text.truncate(2 * LONGEST);
        assert_eq!(all(&text, LONGEST), wanted[..2]);
    }
}

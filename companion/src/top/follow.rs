//! A log that grows, and is taken away and made anew.
//!
//! logrotate renames the file, makes another, and tells nginx, whose processes open the new one a moment later. So what comes
//! into the old file is still read for some time. With `copytruncate` the file stays and becomes shorter.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use memchr::memchr_iter;

use crate::diagnostic::Diagnostic;

/// Bytes of the end of a log that are read first.
const BEGINNING: u64 = 64 << 20;
/// Bytes that are read at once.
const CHUNK: usize = 1 << 16;
/// How long an old file is read after there is a new one.
const OLD: Duration = Duration::from_secs(30);
/// A line that is longer is none of nginx's.
const LONGEST: usize = 1 << 20;

/// A log.
#[derive(Debug)]
pub(super) struct Follower {
    path: PathBuf,
    now: Open,
    old: Option<(Open, Instant)>,
}

#[derive(Debug)]
struct Open {
    file: File,
    at: u64,
    /// The beginning of a line whose end has not come.
    begun: Vec<u8>,
    /// Whether the first line is only the rest of one.
    cut: bool,
}

impl Follower {
    /// Opens it near its end.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn open(path: &Path) -> Result<Self, Diagnostic> {
        let refused = |error: std::io::Error| {
            Diagnostic::error(format!("cannot read {}: {error}", path.display()))
                .fix("name an access log that exists and that you may read")
        };
        let file = File::open(path).map_err(refused)?;
        let known = file.metadata().map_err(refused)?;
        if !known.is_file() {
            return Err(Diagnostic::error(format!("{} is no file", path.display()))
                .fix("name a log that grows; `balance` reads pipes"));
        }
        let mut beginning = [0; 2];
        let is_compressed =
            file.read_exact_at(&mut beginning, 0).is_ok() && beginning == [0x1f, 0x8b];
        if is_compressed {
            return Err(Diagnostic::error(format!(
                "{} is compressed, so it grows no more",
                path.display()
            ))
            .fix("name the log that nginx writes; `balance` reads compressed ones"));
        }
        let at = known.len().saturating_sub(BEGINNING);
        let now = Open {
            file,
            at,
            begun: Vec::new(),
            cut: at > 0,
        };
        Ok(Self {
            path: path.to_owned(),
            now,
            old: None,
        })
    }

    /// Calls `each` with every whole line that is new.
    pub(super) fn read(&mut self, mut each: impl FnMut(&[u8])) {
        if let Some((old, since)) = &mut self.old {
            old.read(&mut each);
            if since.elapsed() > OLD {
                self.old = None;
            }
        }
        self.now.read(&mut each);
        if let Some(next) = self.next() {
            let mut old = std::mem::replace(&mut self.now, next);
            // What came between the last look and the new file.
            old.read(&mut each);
            self.old = Some((old, Instant::now()));
            self.now.read(&mut each);
        }
    }

    /// The new file, if the path leads to another one.
    fn next(&self) -> Option<Open> {
        let known = self.now.file.metadata().ok()?;
        // While logrotate works there may be none for a moment.
        let file = File::open(&self.path).ok()?;
        let found = file.metadata().ok()?;
        let other = (known.dev(), known.ino()) != (found.dev(), found.ino());
        other.then_some(Open {
            file,
            at: 0,
            begun: Vec::new(),
            cut: false,
        })
    }
}

impl Open {
    fn read(&mut self, each: &mut impl FnMut(&[u8])) {
        // A file that became shorter was emptied, and begins anew.
        if self
            .file
            .metadata()
            .is_ok_and(|known| known.len() < self.at)
        {
            (self.at, self.cut) = (0, false);
            self.begun.clear();
        }
        let mut chunk = [0; CHUNK];
        // A file that cannot be read now may be readable at the next look.
        while self.file.seek(SeekFrom::Start(self.at)).is_ok() {
            match self.file.read(&mut chunk) {
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    self.at += length as u64;
                    self.take(&chunk[..length], each);
                }
            }
        }
    }

    fn take(&mut self, chunk: &[u8], each: &mut impl FnMut(&[u8])) {
        let mut start = 0;
        for end in memchr_iter(b'\n', chunk) {
            self.begun.extend_from_slice(&chunk[start..end]);
            if !std::mem::take(&mut self.cut) {
                each(&self.begun);
            }
            self.begun.clear();
            start = end + 1;
        }
        self.begun.extend_from_slice(&chunk[start..]);
        if self.begun.len() > LONGEST {
            self.begun.clear();
            self.cut = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write as _;

    use super::*;
    use crate::files::temporary;

    fn append(path: &Path, text: &str) {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }

    fn new(follower: &mut Follower) -> Vec<String> {
        let mut lines = Vec::new();
        follower.read(|line| lines.push(String::from_utf8_lossy(line).into_owned()));
        lines
    }

    #[test]
    fn a_line_comes_when_it_is_whole() {
        let folder = temporary().unwrap();
        let log = folder.path().join("access.log");
        append(&log, "one\ntw");
        let mut follower = Follower::open(&log).unwrap();
        assert_eq!(new(&mut follower), ["one"]);
        append(&log, "o\nthree\n");
        assert_eq!(new(&mut follower), ["two", "three"]);
        assert!(new(&mut follower).is_empty());
    }

    #[test]
    fn no_line_is_lost_and_none_comes_twice_when_the_log_is_rotated() {
        let folder = temporary().unwrap();
        let (log, old) = (
            folder.path().join("access.log"),
            folder.path().join("access.log.1"),
        );
        append(&log, "one\n");
        let mut follower = Follower::open(&log).unwrap();
        assert_eq!(new(&mut follower), ["one"]);
        append(&log, "two\n");
        std::fs::rename(&log, &old).unwrap();
        assert_eq!(new(&mut follower), ["two"]);
        append(&old, "three\n");
        append(&log, "four\n");
        // A process of nginx that has not opened the new one yet.
        append(&old, "five\n");
        assert_eq!(new(&mut follower), ["three", "five", "four"]);
        append(&old, "six\n");
        append(&log, "seven\n");
        assert_eq!(new(&mut follower), ["six", "seven"]);
    }

    #[test]
    fn a_log_that_is_emptied_begins_anew() {
        let folder = temporary().unwrap();
        let log = folder.path().join("access.log");
        append(&log, "one\ntwo\n");
        let mut follower = Follower::open(&log).unwrap();
        assert_eq!(new(&mut follower), ["one", "two"]);
        std::fs::write(&log, "new\n").unwrap();
        assert_eq!(new(&mut follower), ["new"]);
    }
}

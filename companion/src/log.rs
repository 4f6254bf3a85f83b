//! nginx's access log: from bytes to figures, for `balance`, `simulate` and `top`.
//!
//! `read` brings lines out of files, compressed or not, and standard input; `line` takes one apart; `tally` adds them up in
//! an amount of memory that does not depend on the length of the log. `time` reads the moments.

pub(crate) mod histogram;
pub(crate) mod line;
pub(crate) mod read;
pub(crate) mod tally;
pub(crate) mod time;

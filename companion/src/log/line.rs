//! One line of an access log, taken apart without copying.
//!
//! Three forms are read: the companion's own, as text and as JSON, and lines of `key=value` with a moment, a path, a
//! status and a worker, as the module's documentation shows them. Whatever else stands in a line is passed over. Nothing of
//! a path, a query, an address or a user agent leaves this file, but for a hash of the last two.

use std::hash::Hasher as _;

use matrix_user_hash_core::engine::Status;
use memchr::{memchr, memchr2, memmem};
use rustc_hash::FxHasher;

use super::time;

/// What the figures are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// When the request ended, in seconds since 1970.
    pub time: i64,
    /// What the client got.
    pub status: u16,
    /// Bytes of the body that the client got.
    pub bytes: u64,
    /// `$synapse_group`; empty where it is not logged.
    pub group: &'a [u8],
    /// The upstream that the request went to, where that is not its group for everybody; empty where it is not logged.
    pub upstream: &'a [u8],
    /// `$upstream_addr`: one address for each attempt.
    pub workers: &'a [u8],
    /// `$upstream_status`, in the same order.
    pub upstream_status: &'a [u8],
    /// `$upstream_response_time`, in the same order.
    pub upstream_time: &'a [u8],
    /// `$request_time` in milliseconds.
    pub request_ms: Option<u64>,
    /// `$matrix_user_hash`.
    pub user: Option<u64>,
    /// `$matrix_user_hash_status`.
    pub lookup: Lookup,
    /// `$matrix_user_hash_lookup_time` in milliseconds.
    pub lookup_ms: Option<u64>,
    /// A hash of the user agent, which tells most devices of a user apart.
    pub agent: u64,
}

/// `$matrix_user_hash_status`; `None` where the log has another word, such as `-`.
pub(crate) type Lookup = Option<Status>;

/// Each of them, as the log writes it; [`place_of`] is its place here.
pub(crate) const LOOKUPS: [(&str, Lookup); Status::ALL.len() + 1] = {
    let mut all = [("-", None); Status::ALL.len() + 1];
    let mut at = 0;
    while at < Status::ALL.len() {
        all[at] = (Status::ALL[at].as_str(), Some(Status::ALL[at]));
        at += 1;
    }
    all
};

/// Where a lookup is in [`LOOKUPS`].
pub(crate) fn place_of(lookup: Lookup) -> usize {
    lookup.map_or(Status::ALL.len(), |status| status as usize)
}

fn lookup(text: &[u8]) -> Lookup {
    let found = LOOKUPS.iter().find(|(name, _)| name.as_bytes() == text);
    found.and_then(|(_, lookup)| *lookup)
}

/// Whether the request went on by the hash of its token, because its user was not known.
pub(crate) fn is_fallback(lookup: Lookup) -> bool {
    matches!(
        lookup,
        Some(Status::Refused | Status::Error | Status::Timeout)
    )
}

/// How a request came to its workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By the ring of its group.
    Ring,
    /// By the ring that its group had before a shift.
    Before,
    /// By a canary or a pin.
    Chosen,
}

impl Line<'_> {
    /// How the request came to its workers, by the companion's names of upstreams.
    pub(crate) fn way(&self) -> Way {
        let rest = match self.upstream.strip_prefix(self.group) {
            Some(rest) if !self.group.is_empty() && !rest.is_empty() => rest,
            _ => return Way::Ring,
        };
        let chosen = rest.strip_prefix(b"_before").unwrap_or(rest);
        if chosen.is_empty() {
            Way::Before
        } else if chosen == b"_canary" || chosen.starts_with(b"_pin_") {
            Way::Chosen
        } else {
            Way::Ring
        }
    }
}

/// Why a line is not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// No moment where one should stand.
    Time,
    /// No status where one should stand.
    Status,
    /// No worker is named, not even `-`.
    Worker,
    /// A user's hash that is not 16 hexadecimal digits.
    User,
    /// A quotation mark, a bracket or a brace is missing: the line was cut.
    Cut,
    /// Longer than any line of nginx.
    Long,
}

impl Broken {
    /// All, each with what is shown.
    pub(crate) const ALL: [(&'static str, Self); 6] = [
        ("no time", Self::Time),
        ("no status", Self::Status),
        ("no worker", Self::Worker),
        ("a user's hash that is none", Self::User),
        ("cut off", Self::Cut),
        ("too long", Self::Long),
    ];
}

/// Remembers the last moment as text: a thousand lines of one second read it once.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    text: [u8; 25],
    time: i64,
}

impl Parser {
    /// Takes a line apart; it has no line feed at its end.
    ///
    /// # Errors
    /// Why it cannot be counted.
    pub(crate) fn parse<'a>(&mut self, line: &'a [u8]) -> Result<Line<'a>, Broken> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let mut found = Fields::default();
        if line.first() == Some(&b'{') {
            self.json(line, &mut found)?;
        } else {
            self.text(line, &mut found)?;
        }
        if !found.worker {
            return Err(Broken::Worker);
        }
        Ok(found.line)
    }

    fn json<'a>(&mut self, line: &'a [u8], found: &mut Fields<'a>) -> Result<(), Broken> {
        let mut rest = &line[1..];
        let (mut has_time, mut has_status) = (false, false);
        loop {
            let (key, after) = quoted(rest).ok_or(Broken::Cut)?;
            let after = after.strip_prefix(b":").ok_or(Broken::Cut)?;
            let (value, after) = quoted(after).ok_or(Broken::Cut)?;
            match key {
                b"time" => {
                    found.line.time = self.time(value)?;
                    has_time = true;
                }
                b"status" => {
                    found.line.status = status(value)?;
                    has_status = true;
                }
                b"bytes" => found.line.bytes = whole(value).unwrap_or(0),
                b"user_agent" => found.line.agent = hash(value),
                _ => found.set(key, value)?,
            }
            rest = match after {
                [b',', rest @ ..] => rest,
                [b'}', ..] => break,
                _ => return Err(Broken::Cut),
            };
        }
        match (has_time, has_status) {
            (true, true) => Ok(()),
            (false, _) => Err(Broken::Time),
            (true, false) => Err(Broken::Status),
        }
    }

    fn text<'a>(&mut self, line: &'a [u8], found: &mut Fields<'a>) -> Result<(), Broken> {
        // The moment is the first word or the second one.
        let (first, after_first) = word(line);
        let rest = match self.time(bare(first)) {
            Ok(time) => {
                found.line.time = time;
                after_first
            }
            Err(_) => {
                let (second, after_second) = word(after_first);
                found.line.time = self.time(bare(second))?;
                after_second
            }
        };
        let rest = match rest.first() {
            // The request stands in quotation marks, and nginx writes those in it as \x22.
            Some(b'"') => {
                let end = memchr(b'"', &rest[1..]).ok_or(Broken::Cut)?;
                let (text, rest) = word(rest[end + 2..].trim_ascii_start());
                found.line.status = status(text)?;
                rest
            }
            // A path without them may hold anything, also what looks like keys: the last ones are nginx's own.
            _ => {
                let keys = memmem::rfind(rest, b" user=")
                    .or_else(|| memmem::rfind(rest, b" worker="))
                    .ok_or(Broken::Worker)?;
                let before = &rest[..keys];
                let at = memchr::memrchr(b' ', before).ok_or(Broken::Status)?;
                found.line.status = status(&before[at + 1..])?;
                &rest[keys + 1..]
            }
        };
        // Bytes, where they are logged.
        let (text, after) = word(rest);
        let rest = whole(text).map_or(rest, |bytes| {
            found.line.bytes = bytes;
            after
        });
        pairs(rest, found)
    }

    fn time(&mut self, text: &[u8]) -> Result<i64, Broken> {
        if text == self.text {
            return Ok(self.time);
        }
        self.time = time::parse(text).ok_or(Broken::Time)?;
        self.text.copy_from_slice(text);
        Ok(self.time)
    }
}

/// A line while it is read.
#[derive(Default)]
struct Fields<'a> {
    line: Line<'a>,
    worker: bool,
}

impl<'a> Fields<'a> {
    fn set(&mut self, key: &[u8], value: &'a [u8]) -> Result<(), Broken> {
        let line = &mut self.line;
        match key {
            b"group" => line.group = some(value),
            b"upstream" => line.upstream = some(value),
            b"worker" => {
                self.worker = true;
                line.workers = some(value);
            }
            b"upstream_status" => line.upstream_status = some(value),
            b"upstream_time" => line.upstream_time = some(value),
            b"time" | b"request_time" => line.request_ms = milliseconds(value),
            b"user_hash" | b"user" => line.user = user(value)?,
            b"user_hash_status" | b"lookup" => line.lookup = lookup(value),
            b"lookup_time" | b"held" => line.lookup_ms = milliseconds(value),
            _ => {}
        }
        Ok(())
    }
}

/// `key=value` and user agents in quotation marks, to the end of the line.
fn pairs<'a>(mut rest: &'a [u8], found: &mut Fields<'a>) -> Result<(), Broken> {
    loop {
        match rest {
            [] => return Ok(()),
            [b' ', after @ ..] => rest = after,
            [b'"', after @ ..] => {
                let end = memchr(b'"', after).ok_or(Broken::Cut)?;
                found.line.agent = hash(&after[..end]);
                rest = &after[end + 1..];
            }
            _ => match memchr2(b'=', b' ', rest) {
                Some(at) if rest[at] == b'=' => {
                    let value = &rest[at + 1..];
                    let end = value_end(value);
                    found.set(&rest[..at], &value[..end])?;
                    rest = &value[end..];
                }
                Some(at) => rest = &rest[at..],
                None => return Ok(()),
            },
        }
    }
}

/// A value goes on over ", " and " : ", which separate what nginx tried in turn.
fn value_end(value: &[u8]) -> usize {
    let mut from = 0;
    while let Some(at) = memchr(b' ', &value[from..]).map(|at| from + at) {
        let goes_on = (at > 0 && value[at - 1] == b',')
            || value[at + 1..].starts_with(b": ")
            || value[..at].ends_with(b" :");
        if !goes_on {
            return at;
        }
        from = at + 1;
    }
    value.len()
}

/// The parts of a list: one for each attempt of nginx.
pub(crate) fn attempts(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(list).filter(|list| !list.is_empty());
    std::iter::from_fn(move || {
        let text = rest?;
        let end = memchr(b' ', text).unwrap_or(text.len());
        let part = text[..end].strip_suffix(b",").unwrap_or(&text[..end]);
        let after = text[end..].trim_ascii_start();
        let after = after.strip_prefix(b": ").unwrap_or(after);
        rest = Some(after).filter(|after| !after.is_empty());
        Some(part)
    })
}

fn word(text: &[u8]) -> (&[u8], &[u8]) {
    memchr(b' ', text).map_or((text, &[]), |at| (&text[..at], &text[at + 1..]))
}

fn bare(word: &[u8]) -> &[u8] {
    word.strip_prefix(b"[")
        .and_then(|word| word.strip_suffix(b"]"))
        .unwrap_or(word)
}

/// What stands in quotation marks at the start, still escaped, and what follows.
fn quoted(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.strip_prefix(b"\"")?;
    let mut from = 0;
    loop {
        let at = from + memchr2(b'"', b'\\', text.get(from..)?)?;
        if text[at] == b'"' {
            return Some((&text[..at], &text[at + 1..]));
        }
        from = at + 2;
    }
}

/// `-` and nothing are both nothing.
fn some(value: &[u8]) -> &[u8] {
    if value == b"-" { b"" } else { value }
}

/// Three digits.
pub(crate) fn status(text: &[u8]) -> Result<u16, Broken> {
    match *text {
        [a, b, c] if [a, b, c].iter().all(u8::is_ascii_digit) => {
            Ok(u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0'))
        }
        _ => Err(Broken::Status),
    }
}

fn whole(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |sum, byte| {
        byte.is_ascii_digit()
            .then(|| sum.checked_mul(10)?.checked_add(u64::from(byte - b'0')))
            .flatten()
    })
}

/// Seconds with three decimals, as nginx writes every time.
pub(crate) fn milliseconds(text: &[u8]) -> Option<u64> {
    let (seconds, [b'.', decimals @ ..]) = text.split_at_checked(text.len().checked_sub(4)?)?
    else {
        return None;
    };
    whole(seconds)?
        .checked_mul(1_000)?
        .checked_add(whole(decimals)?)
}

fn user(value: &[u8]) -> Result<Option<u64>, Broken> {
    if some(value).is_empty() {
        return Ok(None);
    }
    if value.len() != 16 {
        return Err(Broken::User);
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(u64::from(byte - b'0')),
        b'a'..=b'f' => Some(u64::from(byte - b'a') + 10),
        _ => None,
    };
    let hash = value.iter().try_fold(0_u64, |hash, byte| {
        digit(*byte).map(|digit| hash << 4 | digit)
    });
    hash.map(Some).ok_or(Broken::User)
}

fn hash(text: &[u8]) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(text);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Line<'_>, Broken> {
        Parser::default().parse(line.as_bytes())
    }

    const TEXT: &str = "203.0.113.7 [2026-11-25T17:20:00+00:00] \"GET /_matrix/client/v3/sync?since=s1\" 200 1234 time=30.125 \
        group=synapse_sync worker=127.0.0.1:8083, 127.0.0.1:8084 : unix:/run/s.sock upstream_status=502, 502 : 200 \
        upstream_time=0.001, 0.000 : 30.124 user_hash=86f01aef21b1acd3 user_hash_status=MISS lookup_time=0.003 \"Element\"";

    #[test]
    fn the_rendered_text_has_all_fields() {
        let line = parse(TEXT).unwrap();
        assert_eq!(
            (line.time, line.status, line.bytes),
            (1_795_627_200, 200, 1_234)
        );
        assert_eq!(line.group, b"synapse_sync");
        let attempted: Vec<_> = attempts(line.workers).collect();
        assert_eq!(
            attempted,
            [
                &b"127.0.0.1:8083"[..],
                b"127.0.0.1:8084",
                b"unix:/run/s.sock"
            ]
        );
        assert_eq!(
            attempts(line.upstream_time)
                .map(milliseconds)
                .collect::<Vec<_>>(),
            [Some(1), Some(0), Some(30_124)]
        );
        assert_eq!(
            (line.user, line.lookup),
            (Some(0x86f0_1aef_21b1_acd3), Some(Status::Miss))
        );
        assert_eq!(
            (line.request_ms, line.lookup_ms, line.agent),
            (Some(30_125), Some(3), hash(b"Element"))
        );
    }

    #[test]
    fn the_rendered_json_has_the_same() {
        let json = r#"{"time":"2026-11-25T17:20:00+00:00","client":"203.0.113.7","method":"GET","path":"/a\"b\\","query":"?since=s1","status":"200","bytes":"1234","request_time":"30.125","group":"synapse_sync","worker":"127.0.0.1:8083, 127.0.0.1:8084 : unix:/run/s.sock","upstream_status":"502, 502 : 200","upstream_time":"0.001, 0.000 : 30.124","user_hash":"86f01aef21b1acd3","user_hash_status":"MISS","lookup_time":"0.003","user_agent":"Element"}"#;
        assert_eq!(parse(json), parse(TEXT));
        for cut in 1..json.len() {
            assert!(parse(&json[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn the_forms_of_the_documentation_are_read() {
        let readme = parse("2026-11-24T00:03:56+00:00 /_matrix/client/v3/sync 200 user=86f01aef21b1acd3 lookup=HIT worker=127.0.0.1:23011").unwrap();
        assert_eq!(
            (readme.status, readme.lookup, readme.workers),
            (200, Some(Status::Hit), &b"127.0.0.1:23011"[..])
        );
        let variables = parse("::1 2026-11-24T00:03:56+00:00 \"GET /x\" 200 user=86f01aef21b1acd3 lookup=HIT held=0.002 worker=a:1, b:2 time=0.100").unwrap();
        assert_eq!(
            (variables.lookup_ms, variables.request_ms, variables.workers),
            (Some(2), Some(100), &b"a:1, b:2"[..])
        );
        let example = parse("::1 [2026-11-24T00:03:56+00:00] \"GET /x\" 200 77 \"curl/8\" user=- lookup=ANONYMOUS lookup_time=- worker=- time=0.000").unwrap();
        assert_eq!(
            (example.bytes, example.user, example.workers),
            (77, None, &b""[..])
        );
    }

    #[test]
    fn a_path_cannot_pass_for_fields() {
        let line = parse("2026-11-24T00:03:56+00:00 /x 500 user=aaaaaaaaaaaaaaaa lookup=HIT worker=evil:1 y 200 user=86f01aef21b1acd3 lookup=HIT worker=a:1").unwrap();
        assert_eq!(
            (line.status, line.user, line.workers),
            (200, Some(0x86f0_1aef_21b1_acd3), &b"a:1"[..])
        );
        let line = parse("::1 2026-11-24T00:03:56+00:00 \"GET / worker=evil:1 \\x22\" 200 worker=a:1 \"worker=evil:2\"").unwrap();
        assert_eq!(line.workers, b"a:1");
    }

    #[test]
    fn a_broken_line_says_why() {
        let whole = "2026-11-24T00:03:56+00:00 /x 200 user=86f01aef21b1acd3 lookup=HIT worker=a:1";
        assert!(parse(whole).is_ok());
        for (line, why) in [
            ("", Broken::Time),
            ("hello world", Broken::Time),
            (
                "2026-11-24T00:03:56+00:00 /x 2000 user=- worker=a:1",
                Broken::Status,
            ),
            (
                "2026-11-24T00:03:56+00:00 /x 200 user=@alice:example.org worker=a:1",
                Broken::User,
            ),
            (
                "2026-11-24T00:03:56+00:00 /x 200 user=86F01AEF21B1ACD3 worker=a:1",
                Broken::User,
            ),
            ("2026-11-24T00:03:56+00:00 /x 200 user=-", Broken::Worker),
            ("::1 2026-11-24T00:03:56+00:00 \"GET /x", Broken::Cut),
        ] {
            assert_eq!(parse(line), Err(why), "{line}");
        }
    }

    #[test]
    fn no_cut_and_no_byte_makes_it_panic() {
        for cut in 0..TEXT.len() {
            let _ = parse(&TEXT[..cut]);
            for byte in [b'"', b' ', b'=', b'\\', 0, 0xff] {
                let mut bytes = TEXT.as_bytes().to_vec();
                bytes[cut] = byte;
                let _ = Parser::default().parse(&bytes);
            }
        }
    }
}

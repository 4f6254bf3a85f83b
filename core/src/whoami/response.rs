//! Where whoami's response ends, and its body.
//!
//! In goes everything that the homeserver has sent so far, out comes a whole [`Response`], or what is missing, or
//! what is wrong with it. nginx's upstream calls this again with the whole buffer whenever more bytes have come
//! (`ngx_http_upstream_process_header`), so nothing is kept between calls; a call costs one pass over a buffer of a
//! few KiB, and copies only a body of several chunks.
//!
//! Framing is RFC 9112, section 6.3. What it lets a client repair is refused instead when it only occurs between
//! parties that misunderstand each other: that is one failed lookup, where a wrong boundary would be another user.

use std::borrow::Cow;

use memchr::memchr;

/// The most header lines, and the most trailer lines. Synapse sends about ten.
const HEADERS_MAX: usize = 64;

/// The shortest that can follow the data of a chunk: its line end, and a last chunk without trailers.
const AFTER_CHUNK: usize = b"\r\n0\r\n\r\n".len();

/// How far the response has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress<'a> {
    /// Right so far; more bytes must come. If the connection ends here, call again with `eof`.
    Incomplete,
    /// The head is complete, with this status, and the body ends with the connection: call again with `eof` then.
    UntilClose(u16),
    /// The response is whole.
    Complete(Response<'a>),
}

/// A whole response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    /// The three digits of the final status line: 200 to 999.
    pub status: u16,
    /// Whether another request may follow on the connection: the peer agrees, and not a byte came after the response.
    pub keepalive: bool,
    /// The body without its transfer coding.
    pub body: Cow<'a, [u8]>,
}

/// Why what came is no response that could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// No HTTP/1.0 or 1.1 head, one that ends early, or one that is ambiguous about the body.
    #[error("malformed response head")]
    Head,
    /// A body that ends early or breaks its chunked coding.
    #[error("malformed response body")]
    Body,
    /// The whole response does not fit the limit.
    #[error("response over the limit")]
    TooLarge,
    /// There is no memory to join the chunks of its body.
    #[error("no memory for the response body")]
    NoMemory,
}

/// Reads the response at the beginning of `buf`, which is all that the connection gave so far.
///
/// `limit` is how many bytes the response may have, head and body and chunk framing and 1xx responses before it
/// included. It is [`Malformed::TooLarge`] as soon as it is known that it has more. `eof` says that the connection
/// has ended: then the result is never [`Progress::Incomplete`] or [`Progress::UntilClose`].
///
/// # Errors
///
/// As soon as no further bytes could make a response of them that is of use.
pub fn parse(buf: &[u8], limit: usize, eof: bool) -> Result<Progress<'_>, Malformed> {
    let Some(head) = Head::parse(buf)? else {
        return more(buf, limit, eof, Malformed::Head);
    };
    if head.len > limit {
        return Err(Malformed::TooLarge);
    }
    // Of any other status, the body says nothing.
    if head.coded && matches!(head.status, 200 | 401) {
        return Err(Malformed::Body);
    }
    let (body, end) = match head.framing {
        Framing::Length(length) => {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let end = head.len.saturating_add(length);
            if end > limit {
                return Err(Malformed::TooLarge);
            }
            let Some(body) = buf.get(head.len..end) else {
                return more(buf, limit, eof, Malformed::Body);
            };
            (Cow::Borrowed(body), end)
        }
        Framing::Chunked => match chunked(buf, head.len, limit)? {
            Some(whole) => whole,
            None => return more(buf, limit, eof, Malformed::Body),
        },
        Framing::UntilClose if buf.len() > limit => return Err(Malformed::TooLarge),
        Framing::UntilClose if !eof => return Ok(Progress::UntilClose(head.status)),
        Framing::UntilClose => (Cow::Borrowed(&buf[head.len..]), buf.len()),
    };
    Ok(Progress::Complete(Response {
        status: head.status,
        keepalive: head.keepalive && !eof && end == buf.len(),
        body,
    }))
}

/// What to say of a response that needs at least one byte more than `buf`; `part` is where it would end.
fn more(
    buf: &[u8],
    limit: usize,
    eof: bool,
    part: Malformed,
) -> Result<Progress<'static>, Malformed> {
    if buf.len() >= limit {
        Err(Malformed::TooLarge)
    } else if eof {
        Err(part)
    } else {
        Ok(Progress::Incomplete)
    }
}

/// What matters of a response's head.
struct Head {
    status: u16,
    /// Bytes up to the body, interim responses included.
    len: usize,
    framing: Framing,
    /// Whether the body has a content coding, though none was asked for.
    coded: bool,
    keepalive: bool,
}

/// What says where the body ends.
enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

impl Head {
    /// The first final head in `buf`; `None` if it is not complete.
    fn parse(buf: &[u8]) -> Result<Option<Self>, Malformed> {
        let mut start = 0;
        loop {
            let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
            let mut response = httparse::Response::new(&mut headers);
            let status = match response.parse(&buf[start..]) {
                Ok(httparse::Status::Complete(len)) => {
                    start += len;
                    response.code.ok_or(Malformed::Head)?
                }
                Ok(httparse::Status::Partial) => return Ok(None),
                Err(_) => return Err(Malformed::Head),
            };
            match status {
                // Nobody asked for another protocol.
                101 => return Err(Malformed::Head),
                // Interim responses may precede any final one (RFC 9110, 15.2).
                100..=199 => {}
                200..=999 => return Self::read(&response, status, start).map(Some),
                _ => return Err(Malformed::Head),
            }
        }
    }

    fn read(
        response: &httparse::Response<'_, '_>,
        status: u16,
        len: usize,
    ) -> Result<Self, Malformed> {
        let recent = response.version == Some(1);
        let mut chunked = false;
        let mut length = None;
        let mut close = false;
        let mut keep = recent;
        let mut coded = false;
        for header in response.headers.iter() {
            if header.name.eq_ignore_ascii_case("Transfer-Encoding") {
                // HTTP/1.0 has none; then the framing is in doubt (RFC 9112, 6.1). Twice chunked is forbidden.
                let right = recent && !chunked && header.value.eq_ignore_ascii_case(b"chunked");
                chunked = right.then_some(true).ok_or(Malformed::Head)?;
            } else if header.name.eq_ignore_ascii_case("Content-Length") {
                length = Some(content_length(header.value, length)?);
            } else if header.name.eq_ignore_ascii_case("Content-Encoding") {
                coded |= list(header.value).any(|coding| !coding.eq_ignore_ascii_case(b"identity"));
            } else if header.name.eq_ignore_ascii_case("Connection") {
                for option in list(header.value) {
                    close |= option.eq_ignore_ascii_case(b"close");
                    keep |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
        }
        let framing = match (status, chunked, length) {
            (204 | 304, _, _) => Framing::Length(0),
            (_, true, _) => Framing::Chunked,
            (_, false, Some(length)) => Framing::Length(length),
            (_, false, None) => Framing::UntilClose,
        };
        // With both, the coding decides, but somebody on the way may have read the length (RFC 9112, 6.3).
        if chunked && length.is_some() {
            return Err(Malformed::Head);
        }
        Ok(Self {
            status,
            len,
            framing,
            coded,
            keepalive: keep && !close,
        })
    }
}

/// The length that a `Content-Length` states; every one of them, if it is a list, and `before`, if there was one,
/// must be the same (RFC 9112, 6.3).
fn content_length(value: &[u8], before: Option<u64>) -> Result<u64, Malformed> {
    let mut length = before;
    for member in list(value) {
        let stated = number(member, 10).ok_or(Malformed::Head)?;
        if length.is_some_and(|length| length != stated) {
            return Err(Malformed::Head);
        }
        length = Some(stated);
    }
    length.ok_or(Malformed::Head)
}

/// The members of a header's comma-separated value, without the white space around them.
fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

/// Digits of that radix and nothing else. What does not fit is the greatest number: no limit is near that.
fn number(digits: &[u8], radix: u32) -> Option<u64> {
    let mut value: u64 = 0;
    for &digit in digits {
        let digit = char::from(digit).to_digit(radix)?;
        value = value
            .saturating_mul(u64::from(radix))
            .saturating_add(u64::from(digit));
    }
    (!digits.is_empty()).then_some(value)
}

/// A body without its coding, and where the response ends.
type Decoded<'a> = (Cow<'a, [u8]>, usize);

/// Decodes the body that starts at `at`; `None` if it is not complete.
fn chunked(buf: &[u8], mut at: usize, limit: usize) -> Result<Option<Decoded<'_>>, Malformed> {
    let mut body = Cow::Borrowed(&buf[..0]);
    loop {
        let Some(newline) = memchr(b'\n', &buf[at..]) else {
            return Ok(None);
        };
        let size = chunk_size(&buf[at..at + newline])?;
        at += newline + 1;
        if size == 0 {
            return Ok(trailers(buf, at, limit)?.map(|end| (body, end)));
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let end = at.saturating_add(size);
        if end.saturating_add(AFTER_CHUNK) > limit {
            return Err(Malformed::TooLarge);
        }
        let Some(data) = buf.get(at..end) else {
            return Ok(None);
        };
        match &buf[end..] {
            [b'\r', b'\n', ..] => at = end + 2,
            [] | [b'\r'] => return Ok(None),
            _ => return Err(Malformed::Body),
        }
        if body.is_empty() {
            body = Cow::Borrowed(data);
        } else {
            body = Cow::Owned(joined(body, data)?);
        }
    }
}

/// `body` with `data` behind it.
fn joined(body: Cow<'_, [u8]>, data: &[u8]) -> Result<Vec<u8>, Malformed> {
    let (mut whole, before) = match body {
        Cow::Owned(whole) => (whole, &[][..]),
        Cow::Borrowed(before) => (Vec::new(), before),
    };
    whole
        .try_reserve(before.len() + data.len())
        .map_err(|_| Malformed::NoMemory)?;
    whole.extend_from_slice(before);
    whole.extend_from_slice(data);
    Ok(whole)
}

/// The size on a chunk's first line, which is given without its LF. Extensions are ignored (RFC 9112, 7.1.1).
fn chunk_size(line: &[u8]) -> Result<u64, Malformed> {
    let line = line.strip_suffix(b"\r").ok_or(Malformed::Body)?;
    let size = match memchr(b';', line) {
        Some(semicolon) => line[..semicolon].trim_ascii_end(),
        None => line,
    };
    if memchr(b'\r', line).is_some() {
        return Err(Malformed::Body);
    }
    number(size, 16).ok_or(Malformed::Body)
}

/// Where the response ends whose trailers start at `at`.
fn trailers(buf: &[u8], at: usize, limit: usize) -> Result<Option<usize>, Malformed> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    match httparse::parse_headers(&buf[at..], &mut headers) {
        Ok(httparse::Status::Complete((len, _))) if at + len > limit => Err(Malformed::TooLarge),
        Ok(httparse::Status::Complete((len, _))) => Ok(Some(at + len)),
        Ok(httparse::Status::Partial) => Ok(None),
        Err(_) => Err(Malformed::Body),
    }
}

#[cfg(test)]
mod tests;

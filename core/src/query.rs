//! Arguments of a query, read as Synapse reads them.
//!
//! In goes what nginx calls `r->args` (the query without `?`), out comes the decoded value of the first argument of
//! a name. [`crate::token`] asks it of every request; the border asks it for `user_id` and `device_id` of requests
//! whose token may masquerade.
//!
//! Synapse takes Twisted's `request.args` (synapse/api/auth/base.py, `get_access_token_from_request`), which is
//! `parse_qs(query, 1)` of twisted/web/http.py (read in Twisted 26.10.0): split at `&` and at `;`; a piece without `=`
//! is no argument; name and value are cut at the first `=`; in both a `+` is a space and then `%` with two hex digits
//! is a byte, while any other `%` stands for itself (Python's `urllib.parse.unquote_to_bytes`); an empty value counts
//! as a value; values of one name keep their order, and Synapse takes the first.

use memchr::{memchr, memchr2};

/// The value of the first argument called `name`, decoded.
///
/// `name` is the decoded name, not empty. `None` if there is no such argument; an empty value is `Some(b"")`.
/// `scratch` is used, and grown, only when the value has to be decoded; else the value is a slice of `args`.
pub fn first<'a>(args: &'a [u8], name: &[u8], scratch: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    let value = first_raw(args, name)?;
    if memchr2(b'%', b'+', value).is_none() {
        return Some(value);
    }
    scratch.clear();
    scratch.extend(Decode(value));
    Some(scratch)
}

/// Whether there is an argument called `name`, with whatever value.
pub fn has(args: &[u8], name: &[u8]) -> bool {
    first_raw(args, name).is_some()
}

/// The value of the first argument called `name`, as it stands in the query.
fn first_raw<'a>(args: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let initial = *name.first()?;
    let mut rest = args;
    loop {
        // Most arguments are somebody else's: their first byte says so, and only their end is looked for.
        let possible = rest
            .first()
            .is_some_and(|&b| b == initial || b == b'%' || b == b'+');
        let end = memchr2(b'&', b';', rest);
        if possible {
            let argument = &rest[..end.unwrap_or(rest.len())];
            if let Some(value) = value_if_called(argument, name) {
                return Some(value);
            }
        }
        rest = &rest[end? + 1..];
    }
}

/// The raw value of `argument`, if its name decodes to `name`.
fn value_if_called<'a>(argument: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let equals = memchr(b'=', argument)?;
    let (called, value) = (&argument[..equals], &argument[equals + 1..]);
    let same = called == name || Decode(called).eq(name.iter().copied());
    same.then_some(value)
}

/// Percent-decoding with `+` as a space; what is not an escape stands for itself.
struct Decode<'a>(&'a [u8]);

impl Iterator for Decode<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        match (byte, rest) {
            (b'+', _) => Some(b' '),
            (b'%', &[high, low, ref after @ ..]) => match (hex(high), hex(low)) {
                (Some(high), Some(low)) => {
                    self.0 = after;
                    Some(high << 4 | low)
                }
                _ => Some(b'%'),
            },
            _ => Some(byte),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.0.len().div_ceil(3), Some(self.0.len()))
    }
}

/// The value of a hex digit of either case.
fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Appends `bytes` so that [`first`] reads them back, whatever they are: all but RFC 3986's unreserved characters
/// become `%` and two hex digits.
pub fn encode(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte);
        } else {
            let (high, low) = (usize::from(byte >> 4), usize::from(byte & 15));
            out.extend_from_slice(&[b'%', DIGITS[high], DIGITS[low]]);
        }
    }
}

/// The most bytes that [`encode`] makes of `len` bytes.
pub const fn encoded_max(len: usize) -> usize {
    len.saturating_mul(3)
}

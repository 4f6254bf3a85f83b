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

use crate::wipe::Room;

/// The value of the first argument called `name`, decoded.
///
/// `name` is the decoded name. `None` if there is no such argument, or if its value has to be decoded and is longer than `N`
/// bytes then; an empty value is `Some(b"")`. The empty name is never found.
/// `room` is used only when the value has to be decoded; else the value is a slice of `args`.
pub fn first<'a, const N: usize>(
    args: &'a [u8],
    name: &[u8],
    room: &'a mut Room<N>,
) -> Option<&'a [u8]> {
    let value = first_raw(args, name)?;
    if memchr2(b'%', b'+', value).is_none() {
        return Some(value);
    }
    room.fill(Decode(value))
}

/// Whether there is an argument called `name`, with whatever value.
///
/// Almost every request asks this about an argument that it does not have, so the answer "no" is made cheap.
#[inline(always)]
pub fn has(args: &[u8], name: &[u8]) -> bool {
    let Some(&initial) = name.first() else {
        return false;
    };
    // A name is written with all of its letters, or with an escape. Few queries of clients have a `k` or an escape: one quick
    // look tells that `access_token` is not there.
    if name.contains(&b'k') && memchr2(b'k', b'%', args).is_none() {
        return false;
    }
    may_start(args, initial) && first_raw(args, name).is_some()
}

/// Whether a piece of `args` begins like a name that decodes to one with that first byte.
///
/// Reads 16 bytes at a time, in a form that the compiler turns into vector instructions of any x86-64 or ARMv8. Inlined, so
/// that it compares with constants.
#[inline(always)]
fn may_start(args: &[u8], initial: u8) -> bool {
    const WIDTH: usize = 16;
    let starts = |byte| may_decode_to(byte, initial);
    let new_piece = |two: &[u8]| ((two[0] == b'&') | (two[0] == b';')) & starts(two[1]);
    let any = |bytes: &[u8; WIDTH + 1]| {
        bytes
            .windows(2)
            .fold(false, |any, two| any | new_piece(two))
    };

    if args.first().is_some_and(|&byte| starts(byte)) {
        return true;
    }
    // The last one overlaps the one before, instead of a loop over what is left.
    let Some(last) = args.last_chunk() else {
        return args.windows(2).any(new_piece);
    };
    let mut rest = args;
    while let Some(chunk) = rest.first_chunk() {
        if any(chunk) {
            return true;
        }
        rest = &rest[WIDTH..];
    }
    any(last)
}

/// Whether a name beginning with `byte` may begin with `initial` when it is decoded.
#[inline(always)]
fn may_decode_to(byte: u8, initial: u8) -> bool {
    (byte == initial) | (byte == b'%') | ((initial == b' ') & (byte == b'+'))
}

/// The value of the first argument called `name`, as it stands in the query.
fn first_raw<'a>(args: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let initial = *name.first()?;
    let mut rest = args;
    loop {
        // Most arguments are somebody else's: their first byte says so, and only their end is looked for.
        let possible = rest
            .first()
            .is_some_and(|&byte| may_decode_to(byte, initial));
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

/// Gives `bytes` to `put` so that [`first`] reads them back, whatever they are: all but RFC 3986's unreserved characters
/// become `%` and two hex digits.
pub fn encode(bytes: &[u8], put: &mut dyn FnMut(&[u8])) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            put(&[byte]);
        } else {
            let (high, low) = (usize::from(byte >> 4), usize::from(byte & 15));
            put(&[b'%', DIGITS[high], DIGITS[low]]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model;
    use proptest::prelude::*;

    /// The first value, decoded, and whether it is a copy.
    fn value(args: &str, name: &str) -> Option<(Vec<u8>, bool)> {
        let mut room = Room::<64>::new();
        let value = first(args.as_bytes(), name.as_bytes(), &mut room)?;
        assert!(has(args.as_bytes(), name.as_bytes()));
        Some((
            value.to_vec(),
            !args.as_bytes().as_ptr_range().contains(&value.as_ptr()),
        ))
    }

    // Each expectation of the next four tests is what Twisted 26.10.0's parse_qs(query, 1) gives.

    #[test]
    fn the_first_argument_of_a_name_counts_even_if_it_is_empty() {
        for (args, expected) in [
            ("access_token=mat_a", Some("mat_a")),
            (
                "since=s72_1&access_token=mat_a&timeout=30000",
                Some("mat_a"),
            ),
            ("access_token=mat_a&access_token=mat_b", Some("mat_a")),
            ("access_token=&access_token=mat_b", Some("")),
            ("access_token=mat_a=b=", Some("mat_a=b=")),
            ("since=s72_1;access_token=mat_a;x=y", Some("mat_a")),
            ("&;&access_token=mat_a", Some("mat_a")),
        ] {
            let expected = expected.map(|value| (value.as_bytes().to_vec(), false));
            assert_eq!(value(args, "access_token"), expected, "{args:?}");
        }
    }

    #[test]
    fn a_piece_without_equals_sign_or_of_another_name_is_no_argument() {
        for args in [
            "",
            "&",
            "=",
            "=mat_a",
            "access_token",
            "access_token&x=mat_a",
            "access_token;=mat_a",
            "access_tokens=mat_a",
            "xaccess_token=mat_a",
            "Access_Token=mat_a",
            "access%20token=mat_a",
            " access_token=mat_a",
            "+access_token=mat_a",
            "x=access_token=mat_a",
            "access_token%3Dmat_a",
            "x=1%26access_token=mat_a",
        ] {
            assert_eq!(value(args, "access_token"), None, "{args:?}");
            assert!(!has(args.as_bytes(), b"access_token"), "{args:?}");
        }
    }

    #[test]
    fn names_and_values_are_percent_decoded_and_plus_is_a_space() {
        for (args, expected) in [
            ("user_id=%40bj%C3%B6rn%3Aexample.org", "@björn:example.org"),
            ("user_id=%40a%3ab", "@a:b"),
            ("%75ser_i%64=@a:b", "@a:b"),
            ("%75%73%65%72%5F%69%64=@a:b", "@a:b"),
            ("user%5fid=@a:b", "@a:b"),
            ("user_id=@a+b%2B:c", "@a b+:c"),
            ("user_id=%2540a", "%40a"),
            ("user_id=@a%26b%3Bc:d&x", "@a&b;c:d"),
        ] {
            assert_eq!(
                value(args, "user_id").unwrap().0,
                expected.as_bytes(),
                "{args:?}"
            );
        }
    }

    #[test]
    fn what_is_no_escape_stands_for_itself() {
        for (args, expected) in [
            ("t=%", "%"),
            ("t=%4", "%4"),
            ("t=%zz", "%zz"),
            ("t=%4g%41", "%4gA"),
            ("t=%%41", "%A"),
            ("t=%4%41", "%4A"),
            ("t=%+1", "% 1"),
            ("t=%&41", "%"),
        ] {
            assert_eq!(value(args, "t").unwrap().0, expected.as_bytes(), "{args:?}");
        }
    }

    #[test]
    fn only_a_value_that_must_be_decoded_is_copied() {
        assert_eq!(value("%74=mat_a", "t"), Some((b"mat_a".to_vec(), false)));
        assert_eq!(value("t=mat%5Fa", "t"), Some((b"mat_a".to_vec(), true)));
        assert_eq!(value("since=%20&x=%41", "t"), None);
    }

    #[test]
    fn an_argument_is_found_wherever_it_stands() {
        for before in 0..70 {
            for separator in ["&", ";"] {
                for name in ["t", "%74"] {
                    for after in [0, 40] {
                        let (before, after) = ("x".repeat(before), "x".repeat(after));
                        let args = format!("{before}{separator}{name}={after}");
                        assert!(value(&args, "t").is_some(), "{args:?}");
                    }
                    let args = format!("{}={name}=mat_a", "x".repeat(before));
                    assert!(!has(args.as_bytes(), b"t"), "{args:?}");
                }
            }
        }
    }

    #[test]
    fn a_value_that_is_longer_than_its_room_is_none_if_it_must_be_decoded() {
        for (args, expected) in [
            (&b"t=%41bc"[..], Some(&b"Abc"[..])),
            (b"t=%41%62%63", Some(b"Abc")),
            (b"t=%41bcd", None),
            (b"t=Abcd", Some(b"Abcd")),
            (b"t=", Some(b"")),
        ] {
            assert_eq!(first(args, b"t", &mut Room::<3>::new()), expected);
        }
    }

    /// Queries in which names nearly match, and escapes nearly are ones.
    fn queries() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            8 => "(ab|a|b|%61|%62|%6|%|=|=|&|;|\\+|%2b|%3D|%26|[a-f0-9]|x){1,3}".prop_map(String::into_bytes),
            1 => prop::collection::vec(any::<u8>(), 0..3),
        ];
        prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn the_first_value_is_the_one_that_twisted_finds(args in queries()) {
            let mut room = Room::<1024>::new();
            let mut arguments = model::parse_qs(&args).into_iter();
            let expected = arguments.find(|(name, _)| name == b"ab").map(|(_, value)| value);
            prop_assert_eq!(has(&args, b"ab"), expected.is_some());
            prop_assert_eq!(first(&args, b"ab", &mut room), expected.as_deref());
        }

        #[test]
        fn what_was_encoded_is_read_back(value: Vec<u8>, name in prop::collection::vec(any::<u8>(), 1..9), other in queries()) {
            let mut args = b"x=1&".to_vec();
            encode(&name, &mut |piece| args.extend_from_slice(piece));
            args.push(b'=');
            let start = args.len();
            encode(&value, &mut |piece| args.extend_from_slice(piece));
            prop_assert!(args[start..].iter().all(|b| b.is_ascii_alphanumeric() || b"%-._~".contains(b)));
            args.push(b'&');
            args.extend(other);
            prop_assume!(name != b"x");
            let mut room = Room::<1024>::new();
            prop_assert_eq!(first(&args, &name, &mut room), Some(&value[..]));
        }
    }
}

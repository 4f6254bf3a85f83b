//! The token that a request shows, if it shows one that Synapse would look at.
//!
//! In go the request's `Authorization` headers and its query, out comes a [`Token`] or nothing; nothing is
//! `ANONYMOUS`. It is the first step of every request, before the key and the table.
//!
//! The rules are Synapse's (synapse/api/auth/base.py, `get_access_token_from_request`, 1.163.2): any `Authorization`
//! header forbids any `access_token` argument; only one header is allowed; split at spaces it must give exactly
//! `Bearer` and the token. With no header the first `access_token` argument counts. What Synapse refuses without
//! looking it up is not looked up here either, so a stranger cannot make us ask what has only one answer.
//! (Synapse also reads arguments from a form body of a POST; no client sends its token so, and the body is not ours.)

use crate::query;
use crate::wipe::Room;

const ARGUMENT: &[u8] = b"access_token";
const SCHEME: &[u8] = b"Bearer ";

/// An access token in the only form in which one is looked up, sent or digested: 1 to 4096 bytes of visible ASCII.
///
/// A token has no `Display`, and its `Debug` shows nothing of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token<'a>(&'a [u8]);

impl std::fmt::Debug for Token<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

impl<'a> Token<'a> {
    /// The longest token that is looked up, in bytes.
    pub const MAX: usize = 4096;

    /// `None` if empty, longer than [`Self::MAX`] bytes, or with a byte outside `!` to `~`.
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let fits = (1..=Self::MAX).contains(&bytes.len());
        (fits && is_visible(bytes)).then_some(Self(bytes))
    }

    /// The token itself: for the digest and for the request to whoami, for nothing else.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }
}

/// Whether all bytes are visible ASCII, `!` to `~`.
///
/// Reads 16 bytes at a time, in a form that the compiler turns into vector instructions; the last 16 overlap those
/// before them, instead of a loop over what is left. (`all` on the whole slice costs ten instructions a byte.)
fn is_visible(bytes: &[u8]) -> bool {
    const WIDTH: usize = 16;
    let all = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(true, |all, byte| all & byte.is_ascii_graphic())
    };
    match bytes.last_chunk::<WIDTH>() {
        Some(last) => bytes.chunks_exact(WIDTH).all(all) && all(last),
        None => all(bytes),
    }
}

/// The token of a request with these values of `Authorization` headers and these query arguments (no `?`).
///
/// `None` where Synapse would answer `M_MISSING_TOKEN` anyway, and for a token that [`Token::new`] does not take.
/// `room` is used only to decode an argument that is percent-encoded. Nothing is allocated.
#[inline]
pub fn find<'a>(
    authorization: impl IntoIterator<Item = &'a [u8]>,
    args: &'a [u8],
    room: &'a mut Room<{ Token::MAX }>,
) -> Option<Token<'a>> {
    let mut headers = authorization.into_iter();
    let Some(header) = headers.next() else {
        return Token::new(query::first(args, ARGUMENT, room)?);
    };
    let token = bearer(header)?;
    let alone = headers.next().is_none() && !query::has(args, ARGUMENT);
    alone.then_some(token)
}

/// The token of a header's value.
///
/// White space around the value is no part of it (RFC 9110, 5.5): Twisted strips spaces and TABs (twisted/web/http.py,
/// `HTTPChannel.headerReceived`), nginx only some of them.
fn bearer(value: &[u8]) -> Option<Token<'_>> {
    let value = trim(value);
    let token = value.strip_prefix(SCHEME)?;
    Token::new(token)
}

/// Without spaces and TABs at both ends.
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model;
    use proptest::prelude::*;

    const ALICE: &str = "syt_YWxpY2U_kQzPvXwRtYuIoPlKjHgF_3fQx1a";

    /// The token of a request with those headers and that query.
    fn found(headers: &[&str], args: &str) -> Option<String> {
        let mut room = Room::new();
        let headers = headers.iter().map(|value| value.as_bytes());
        let token = find(headers, args.as_bytes(), &mut room)?;
        Some(String::from_utf8(token.as_bytes().to_vec()).unwrap())
    }

    #[test]
    fn one_bearer_header_is_a_token() {
        let header = format!("Bearer {ALICE}");
        assert_eq!(found(&[&header], "").as_deref(), Some(ALICE));
        let args = "since=s72594_4483_1934&timeout=30000&filter=0&set_presence=offline";
        assert_eq!(found(&[&header], args).as_deref(), Some(ALICE));
        assert_eq!(
            found(&["Bearer mat_a=b&c;d%41+,\"~!"], ""),
            Some("mat_a=b&c;d%41+,\"~!".into())
        );
    }

    #[test]
    fn white_space_around_a_header_value_is_no_part_of_it() {
        for header in [
            "Bearer mat_a ",
            "Bearer mat_a \t ",
            "\tBearer mat_a",
            " Bearer mat_a",
        ] {
            assert_eq!(found(&[header], "").as_deref(), Some("mat_a"), "{header:?}");
        }
    }

    #[test]
    fn any_other_header_is_none_and_hides_no_argument() {
        for header in [
            "",
            " ",
            "Bearer",
            "Bearer ",
            "bearer mat_a",
            "BEARER mat_a",
            "Bearer  mat_a",
            "Bearer\tmat_a",
            "Bearer mat_a mat_b",
            "Bearer mat_a, Bearer mat_b",
            "Bearermat_a",
            "Basic YWxpY2U6c2VjcmV0",
            "mat_a",
            "X-Matrix origin=example.org",
        ] {
            assert_eq!(found(&[header], ""), None, "{header:?}");
            assert_eq!(found(&[header], "access_token=mat_a"), None, "{header:?}");
        }
    }

    #[test]
    fn several_headers_are_none() {
        assert_eq!(found(&["Bearer mat_a", "Bearer mat_a"], ""), None);
        assert_eq!(found(&["Bearer mat_a", ""], ""), None);
        assert_eq!(found(&["", "Bearer mat_a"], ""), None);
    }

    #[test]
    fn header_and_argument_together_are_none() {
        for args in [
            "access_token=mat_a",
            "access_token=",
            "since=s72_1&access_token=mat_a",
            "since=s72_1;access_token=mat_a",
            "%61ccess%5Ftoken=mat_a",
        ] {
            assert_eq!(found(&["Bearer mat_a"], args), None, "{args:?}");
        }
        for args in [
            "access_token",
            "x=access_token=mat_a",
            "access_tokens=mat_a",
            "x=%26access_token=mat_a",
        ] {
            assert_eq!(
                found(&["Bearer mat_a"], args).as_deref(),
                Some("mat_a"),
                "{args:?}"
            );
        }
    }

    #[test]
    fn without_a_header_the_first_argument_is_the_token() {
        for (args, token) in [
            ("access_token=mat_a", Some("mat_a")),
            ("since=s72_1&access_token=mat_a&timeout=0", Some("mat_a")),
            ("access_token=mat_a&access_token=mat_b", Some("mat_a")),
            ("access%5ftoken=mat%5Fa", Some("mat_a")),
            ("access_token=mat%2Ba", Some("mat+a")),
            ("access_token=&access_token=mat_b", None),
            ("access_token=mat+a", None),
            ("access_token=mat%20a", None),
            ("access_token=mat_a%00", None),
            ("access_token=mat_a%0d%0aX-Admin:1", None),
            ("access_token=m%C3%A4t", None),
            ("access_token", None),
            ("", None),
        ] {
            assert_eq!(found(&[], args).as_deref(), token, "{args:?}");
        }
    }

    #[test]
    fn a_token_has_1_to_4096_visible_ascii_bytes() {
        let longest = "m".repeat(Token::MAX);
        assert_eq!(
            found(&[&format!("Bearer {longest}")], ""),
            Some(longest.clone())
        );
        assert_eq!(found(&[&format!("Bearer {longest}m")], ""), None);
        assert_eq!(
            found(&[], &format!("access_token={longest}")),
            Some(longest.clone())
        );
        assert_eq!(found(&[], &format!("access_token={longest}m")), None);
        for byte in 0..=u8::MAX {
            // At every place, so that none is skipped by the vectorised check.
            for at in 0..67 {
                let mut bytes = [b'm'; 67];
                bytes[at] = byte;
                assert_eq!(
                    Token::new(&bytes).is_some(),
                    (0x21..=0x7e).contains(&byte),
                    "{byte} at {at}"
                );
            }
        }
        assert_eq!(Token::new(b""), None);
    }

    #[test]
    fn a_token_is_not_printed() {
        let token = Token::new(ALICE.as_bytes());
        assert_eq!(format!("{token:?}"), "Some(Token(..))");
    }

    #[test]
    fn the_common_request_needs_no_room() {
        let mut room = Room::new();
        let headers = [format!("Bearer {ALICE}")];
        let filter = b"filter=%7B%22room%22%3A%7B%22timeline%22%3A%7B%22limit%22%3A20%7D%7D%7D&timeout=30000";
        let token = find(headers.iter().map(String::as_bytes), filter, &mut room);
        assert!(token.is_some());
        assert!(find([], b"access_token=mat_a", &mut room).is_some());
        assert!(!room.is_made());
        assert!(find([], b"access_token=mat%5Fa", &mut room).is_some());
        assert!(room.is_made());
    }

    fn headers() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let header = prop_oneof![
            4 => "Bearer [!-~]{1,9}",
            2 => "[ \t]?(Bearer|bearer|Basic)?[ \t]{0,2}[ -~]{0,9}[ \t]?",
            1 => "\\PC{0,9}",
        ];
        prop::collection::vec(header.prop_map(String::into_bytes), 0..3)
    }

    fn arguments() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
        let name = prop_oneof![
            1 => Just(ARGUMENT.to_vec()),
            2 => "(since|timeout|access|access_toke|access_tokenn|Access_token|a)".prop_map(String::into_bytes),
        ];
        let value = prop_oneof![
            2 => "[!-~]{0,9}".prop_map(String::into_bytes),
            1 => prop::collection::vec(any::<u8>(), 0..4),
        ];
        prop::collection::vec((name, value), 0..4)
    }

    /// The arguments as a client could write them: what need not be escaped is, or is not.
    fn written(args: &[(Vec<u8>, Vec<u8>)], escape: &[bool]) -> Vec<u8> {
        let mut escape = escape.iter().cycle();
        let mut write = |bytes: &[u8], out: &mut Vec<u8>| {
            for &byte in bytes {
                if b"&;=%+".contains(&byte) || *escape.next().unwrap_or(&true) {
                    out.extend(format!("%{byte:02x}").bytes());
                } else {
                    out.push(byte);
                }
            }
        };
        let mut out = Vec::new();
        for (name, value) in args {
            write(name, &mut out);
            out.push(b'=');
            write(value, &mut out);
            out.push(if value.len() % 2 == 0 { b'&' } else { b';' });
        }
        out
    }

    proptest! {
        #[test]
        fn the_token_is_the_one_that_synapse_takes(
            headers in headers(), args in arguments(), escape in prop::collection::vec(prop::bool::weighted(0.2), 7),
        ) {
            let query = written(&args, &escape);
            let mut room = Room::new();
            let token = find(headers.iter().map(Vec::as_slice), &query, &mut room);
            let expected = model::access_token(&headers, &args);
            prop_assert_eq!(token.map(|token| token.as_bytes().to_vec()), expected);
        }

        #[test]
        fn arbitrary_bytes_never_panic(headers: Vec<Vec<u8>>, args: Vec<u8>) {
            let mut room = Room::new();
            if let Some(token) = find(headers.iter().map(Vec::as_slice), &args, &mut room) {
                prop_assert!(Token::new(token.as_bytes()).is_some());
            }
        }
    }
}

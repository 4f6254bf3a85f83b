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

const ARGUMENT: &[u8] = b"access_token";
const SCHEME: &[u8] = b"Bearer ";

/// An access token in the only form in which one is looked up, sent or digested: 1 to 4096 bytes of visible ASCII.
///
/// It has no `Display`, and `Debug` shows nothing of it.
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
        (fits && bytes.iter().all(u8::is_ascii_graphic)).then_some(Self(bytes))
    }

    /// The token itself: for the digest and for the request to whoami, for nothing else.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }
}

/// The token of a request with these values of `Authorization` headers and these query arguments (no `?`).
///
/// `None` where Synapse would answer `M_MISSING_TOKEN` anyway, and for a token that [`Token::new`] does not take.
/// `scratch` is used only to decode an argument that is percent-encoded; nothing else is allocated.
pub fn find<'a>(
    authorization: impl IntoIterator<Item = &'a [u8]>,
    args: &'a [u8],
    scratch: &'a mut Vec<u8>,
) -> Option<Token<'a>> {
    let mut headers = authorization.into_iter();
    let Some(header) = headers.next() else {
        return Token::new(query::first(args, ARGUMENT, scratch)?);
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

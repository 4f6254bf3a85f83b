//! What a complete response says about a token.
//!
//! In goes a [`Response`], out comes a [`LookupResult`]. This is the last step of a lookup before the table; the body
//! ends here, only a hash and a flag are kept.

use std::borrow::Cow;

use serde::Deserialize;

use super::response::Response;
use super::{FailureKind, Identity, LookupError, LookupResult};
use crate::user::{Masquerade, UserHash, UserId};

/// The part of whoami's answer that matters (Matrix specification, `GET /account/whoami`).
#[derive(Deserialize)]
struct WhoAmI<'a> {
    #[serde(borrow)]
    user_id: Text<'a>,
    #[serde(borrow, default)]
    device_id: Option<Text<'a>>,
}

/// A text, borrowed from the body unless it has escapes. Within an `Option`, serde would copy a bare `Cow`.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// A standard error response (Matrix specification, "Standard error response").
#[derive(Deserialize)]
struct MatrixError<'a> {
    #[serde(borrow)]
    errcode: Cow<'a, str>,
}

impl Response<'_> {
    /// What this response says about the token that was asked about; `asked` is the user for whom an application service
    /// wants to speak.
    ///
    /// A body that is not one JSON object (nothing after it, none of our keys twice) with a user id for `user_id` is
    /// [`FailureKind::Body`] on a 200. Every other status is [`FailureKind::Status`], but for the 401 that refuses:
    /// `M_USER_LOCKED` and `M_MISSING_TOKEN` are no facts about the token.
    ///
    /// # Errors
    ///
    /// The token is refused, or the response is no answer.
    pub fn result(&self, asked: Option<&str>) -> LookupResult {
        match self.status {
            200 => self
                .identity(asked)
                .ok_or(LookupError::Failed(FailureKind::Body)),
            401 if self.refuses() => Err(LookupError::Refused),
            _ => Err(LookupError::Failed(FailureKind::Status)),
        }
    }

    fn identity(&self, asked: Option<&str>) -> Option<Identity> {
        let WhoAmI {
            user_id: Text(user_id),
            device_id,
        } = object(&self.body)?;
        let user = UserId::try_from(&*user_id).ok()?;
        let masquerade = match asked {
            // Tokens without a device are minted by admins or belong to application services, and only those may
            // masquerade.
            None if device_id.is_none() => Masquerade::Maybe,
            None => Masquerade::No,
            Some(asked) if asked == user_id => Masquerade::No,
            // Asked to speak for somebody else, it spoke for itself: it never will.
            Some(_) => Masquerade::Never,
        };
        Some(Identity {
            user: UserHash::of_user(&user),
            masquerade,
        })
    }

    fn refuses(&self) -> bool {
        object::<MatrixError<'_>>(&self.body)
            .is_some_and(|error| error.errcode == "M_UNKNOWN_TOKEN")
    }
}

/// `json` as a `T`, if it is an object: serde would fill a struct from an array, too.
fn object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Option<T> {
    let opened = json.trim_ascii_start().starts_with(b"{");
    opened.then(|| serde_json::from_slice(json).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAD_BODY: LookupError = LookupError::Failed(FailureKind::Body);
    const BAD_STATUS: LookupError = LookupError::Failed(FailureKind::Status);

    fn answer(status: u16, body: &str) -> LookupResult {
        asked(status, body, None)
    }

    fn asked(status: u16, body: &str, asked: Option<&str>) -> LookupResult {
        let response = Response {
            status,
            keepalive: true,
            body: Cow::Borrowed(body.as_bytes()),
        };
        response.result(asked)
    }

    fn is(user: &str, masquerade: Masquerade) -> LookupResult {
        Ok(Identity {
            user: UserHash::of_user(&UserId::try_from(user).unwrap()),
            masquerade,
        })
    }

    #[test]
    fn a_user_with_and_without_a_device() {
        let body = r#"{"user_id":"@alice:example.org","is_guest":false,"device_id":"GHTYAJCE"}"#;
        assert_eq!(answer(200, body), is("@alice:example.org", Masquerade::No));
        for body in [
            r#"{"user_id":"@_irc_bot:example.org","is_guest":false}"#,
            r#"{"user_id":"@_irc_bot:example.org","is_guest":false,"device_id":null}"#,
        ] {
            assert_eq!(
                answer(200, body),
                is("@_irc_bot:example.org", Masquerade::Maybe)
            );
        }
    }

    #[test]
    fn a_token_that_is_asked_to_speak_for_another_user_does_so_or_never_will() {
        let body = r#"{"user_id":"@_irc_bob:example.org"}"#;
        for (user, masquerade) in [
            ("@_irc_bob:example.org", Masquerade::No),
            ("@_irc_eve:example.org", Masquerade::Never),
        ] {
            assert_eq!(
                asked(200, body, Some(user)),
                is("@_irc_bob:example.org", masquerade)
            );
        }
    }

    #[test]
    fn a_user_is_read_through_escapes_white_space_and_unknown_keys() {
        let body = "\n { \"x\": [{\"user_id\": \"@eve:example.org\"}],\r\n\t\"user_id\" : \"@\\u0061lice:example\\u002eorg\" } \n";
        assert_eq!(
            answer(200, body),
            is("@alice:example.org", Masquerade::Maybe)
        );
        let escaped_key = r#"{"user\u005fid":"@alice:example.org"}"#;
        assert_eq!(
            answer(200, escaped_key),
            is("@alice:example.org", Masquerade::Maybe)
        );
    }

    #[test]
    fn only_an_unknown_token_is_refused() {
        let body = r#"{"errcode":"M_UNKNOWN_TOKEN","error":"Access token has expired","soft_logout":true}"#;
        assert_eq!(answer(401, body), Err(LookupError::Refused));
        for (status, body) in [
            (
                401,
                r#"{"errcode":"M_USER_LOCKED","error":"User account has been locked","soft_logout":true}"#,
            ),
            (
                401,
                r#"{"errcode":"M_MISSING_TOKEN","error":"Missing access token"}"#,
            ),
            (401, r#"["M_UNKNOWN_TOKEN"]"#),
            (401, r#"{"error":"M_UNKNOWN_TOKEN"}"#),
            (401, "<html>M_UNKNOWN_TOKEN</html>"),
            (401, ""),
            (403, r#"{"errcode":"M_UNKNOWN_TOKEN","error":"?"}"#),
            (
                403,
                r#"{"errcode":"M_FORBIDDEN","error":"Application service has not registered this user"}"#,
            ),
            (
                429,
                r#"{"errcode":"M_LIMIT_EXCEEDED","error":"Too Many Requests","retry_after_ms":2000}"#,
            ),
            (500, r#"{"user_id":"@alice:example.org"}"#),
            (204, ""),
            (302, ""),
        ] {
            assert_eq!(answer(status, body), Err(BAD_STATUS), "{status} {body}");
        }
    }

    #[test]
    fn a_200_that_is_not_whoamis_answer_is_a_bad_body() {
        let deep = format!(
            r#"{{"x":{}1{},"user_id":7}}"#,
            "[".repeat(3000),
            "]".repeat(3000)
        );
        for body in [
            "",
            "<html><body>Welcome to nginx!</body></html>",
            "\x1f\u{8b}\x08",
            "{}",
            "null",
            r#"["@alice:example.org","GHTYAJCE"]"#,
            r#""@alice:example.org""#,
            r#"{"user_id":null}"#,
            r#"{"user_id":7}"#,
            r#"{"user_id":{"user_id":"@alice:example.org"}}"#,
            r#"{"user_id":"alice"}"#,
            r#"{"user_id":"@alice"}"#,
            r#"{"user_id":"@al\u0000ice:example.org"}"#,
            r#"{"user_id":"@al\ud800ice:example.org"}"#,
            r#"{"user_id":"@alice:example.org","user_id":"@bob:example.org"}"#,
            r#"{"user_id":"@alice:example.org","device_id":7}"#,
            r#"{"user_id":"@alice:example.org"}{}"#,
            r#"{"user_id":"@alice:example.org"} 0"#,
            r#"{"user_id":"@alice:example.org""#,
            r#"{"user_id":"@alice:example.org",}"#,
            r#"{'user_id':'@alice:example.org'}"#,
            &deep,
        ] {
            assert_eq!(answer(200, body), Err(BAD_BODY), "{body}");
        }
    }

    #[test]
    fn a_user_id_that_is_not_utf_8_is_a_bad_body() {
        let body = Cow::Borrowed(&b"{\"user_id\":\"@al\xffice:example.org\"}"[..]);
        let response = Response {
            status: 200,
            keepalive: true,
            body,
        };
        assert_eq!(response.result(None), Err(BAD_BODY));
    }
}

//! What a complete response says about a token.
//!
//! In goes a [`Response`], out comes a user, a refusal, or the kind of failure. This is the last step of a lookup
//! before the table; the body ends here, only a hash and a flag are kept.

use std::borrow::Cow;

use serde::Deserialize;

use super::response::Response;
use crate::user::{UserHash, UserId};

/// What the homeserver knows about a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// It belongs to a user.
    User {
        /// What the table keeps.
        user_hash: UserHash,
        /// For comparison with the user that a masquerading application service asked for: then the strings are the
        /// same. It passes [`UserId`]'s checks.
        user_id: Cow<'a, str>,
        /// Whether the answer names a device. Tokens without one are minted by admins or belong to application
        /// services, and only those may masquerade.
        has_device: bool,
    },
    /// 401 with `M_UNKNOWN_TOKEN`: it belongs to nobody, or not any more.
    Refused,
}

/// Why a complete response is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Neither 200 nor a 401 that refuses the token. `M_USER_LOCKED` and `M_MISSING_TOKEN` are no facts about it.
    #[error("status that says nothing about the token")]
    Status,
    /// 200, but not what whoami answers.
    #[error("body that is no answer to whoami")]
    Body,
}

/// The part of whoami's answer that matters (Matrix specification, `GET /account/whoami`).
#[derive(Deserialize)]
struct WhoAmI<'a> {
    /// Borrowed from the body unless it has escapes.
    #[serde(borrow)]
    user_id: Cow<'a, str>,
    #[serde(borrow, default)]
    device_id: Option<Cow<'a, str>>,
}

/// A standard error response (Matrix specification, "Standard error response").
#[derive(Deserialize)]
struct MatrixError<'a> {
    #[serde(borrow)]
    errcode: Cow<'a, str>,
}

impl Response<'_> {
    /// What this response says about the token that was asked about.
    ///
    /// A body that is not one JSON object (nothing after it, none of our keys twice) with a user id for `user_id`
    /// is [`Failure::Body`] on a 200. Every other status is [`Failure::Status`], but for the 401 that refuses.
    pub fn answer(&self) -> Result<Answer<'_>, Failure> {
        match self.status {
            200 => self.user(),
            401 if self.refuses() => Ok(Answer::Refused),
            _ => Err(Failure::Status),
        }
    }

    fn user(&self) -> Result<Answer<'_>, Failure> {
        let WhoAmI { user_id, device_id } = object(&self.body).ok_or(Failure::Body)?;
        let user = UserId::try_from(&*user_id).map_err(|_| Failure::Body)?;
        Ok(Answer::User {
            user_hash: UserHash::of_user(&user),
            user_id,
            has_device: device_id.is_some(),
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

    fn answer(status: u16, body: &str) -> Result<(String, bool), Option<Failure>> {
        let response = Response {
            status,
            keepalive: true,
            body: Cow::Borrowed(body.as_bytes()),
        };
        match response.answer() {
            Ok(Answer::User {
                user_hash,
                user_id,
                has_device,
            }) => {
                assert_eq!(
                    user_hash,
                    UserHash::of_user(&UserId::try_from(&*user_id).unwrap())
                );
                Ok((user_id.into_owned(), has_device))
            }
            Ok(Answer::Refused) => Err(None),
            Err(failure) => Err(Some(failure)),
        }
    }

    #[test]
    fn a_user_with_and_without_a_device() {
        let body = r#"{"user_id":"@alice:example.org","is_guest":false,"device_id":"GHTYAJCE"}"#;
        assert_eq!(answer(200, body), Ok(("@alice:example.org".into(), true)));
        for body in [
            r#"{"user_id":"@_irc_bot:example.org","is_guest":false}"#,
            r#"{"user_id":"@_irc_bot:example.org","is_guest":false,"device_id":null}"#,
        ] {
            assert_eq!(
                answer(200, body),
                Ok(("@_irc_bot:example.org".into(), false))
            );
        }
    }

    #[test]
    fn a_user_is_read_through_escapes_white_space_and_unknown_keys() {
        let body = "\n { \"x\": [{\"user_id\": \"@eve:example.org\"}],\r\n\t\"user_id\" : \"@\\u0061lice:example\\u002eorg\" } \n";
        assert_eq!(answer(200, body), Ok(("@alice:example.org".into(), false)));
        let escaped_key = r#"{"user\u005fid":"@alice:example.org"}"#;
        assert_eq!(
            answer(200, escaped_key),
            Ok(("@alice:example.org".into(), false))
        );
    }

    #[test]
    fn only_an_unknown_token_is_refused() {
        let body = r#"{"errcode":"M_UNKNOWN_TOKEN","error":"Access token has expired","soft_logout":true}"#;
        assert_eq!(answer(401, body), Err(None));
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
            assert_eq!(
                answer(status, body),
                Err(Some(Failure::Status)),
                "{status} {body}"
            );
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
            assert_eq!(answer(200, body), Err(Some(Failure::Body)), "{body}");
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
        assert_eq!(response.answer(), Err(Failure::Body));
    }
}

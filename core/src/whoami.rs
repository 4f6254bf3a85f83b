//! The question to the homeserver, which asks who owns a token.
//!
//! [`request`] writes `GET /_matrix/client/v3/account/whoami`, [`response`] frames what comes back, and [`answer`]
//! says what it means. It runs once per lookup, in place of nginx's proxy module: the border gives the bytes to
//! nginx's upstream and calls [`response::parse`] whenever more of the answer has come.

pub mod answer;
pub mod request;
pub mod response;

use std::fmt;

use crate::user::{Masquerade as MaySpeak, UserHash};

pub use request::{DEVICE_MAX, DeviceParam, Masquerade, Request};
pub use response::{Malformed, Progress, Response, parse};

/// Why a lookup gave no answer: the kinds that figures and log lines tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum FailureKind {
    /// No connection, or it broke before the answer was complete.
    Connect,
    /// The homeserver took longer than one of the timeouts.
    Timeout,
    /// An answer with another status than 200 and 401, or a 401 that says nothing about the token.
    Status,
    /// Not an HTTP/1.0 or 1.1 response.
    Head,
    /// A body that is broken, or no answer to whoami.
    Body,
    /// An answer over `matrix_user_hash_buffer_size`.
    TooLarge,
    /// The nginx worker process had no connection, no descriptor or no memory to ask with: no fault of the homeserver.
    Local,
}

/// Whose a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub user: UserHash,
    /// Whether the token may speak for others.
    pub masquerade: MaySpeak,
}

/// Why there is no user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupError {
    /// The homeserver does not know the token (401 with `M_UNKNOWN_TOKEN`).
    Refused,
    /// There was no usable answer.
    Failed(FailureKind),
}

/// What came of a lookup.
pub type LookupResult = Result<Identity, LookupError>;

impl fmt::Display for LookupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("the homeserver does not know the token"),
            Self::Failed(kind) => kind.fmt(f),
        }
    }
}

impl std::error::Error for LookupError {}

impl fmt::Display for FailureKind {
    /// The failure in an operator's words, after "lookup failed:".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "no connection to any of its servers",
            Self::Timeout => "it took too long",
            Self::Status => "its status was neither 200 nor a 401 with M_UNKNOWN_TOKEN",
            Self::Head => "it closed the connection early, or what it sent was not HTTP",
            Self::Body => "its answer was not the JSON object of whoami",
            Self::TooLarge => "its answer was larger than matrix_user_hash_buffer_size",
            Self::Local => {
                "this worker process has no connection, descriptor or memory left for it"
            }
        })
    }
}

impl FailureKind {
    /// All kinds, in the order of their numbers (`kind as usize` is the index).
    pub const ALL: [Self; 7] = [
        Self::Connect,
        Self::Timeout,
        Self::Status,
        Self::Head,
        Self::Body,
        Self::TooLarge,
        Self::Local,
    ];

    /// The name in figures and log lines.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Status => "status",
            Self::Head => "head",
            Self::Body => "body",
            Self::TooLarge => "too_large",
            Self::Local => "local",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_listed_at_its_number_with_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> =
            FailureKind::ALL.iter().map(|kind| kind.as_str()).collect();
        assert_eq!(names.len(), FailureKind::ALL.len());
        for (number, kind) in FailureKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number);
        }
    }
}

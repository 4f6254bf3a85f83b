//! The question to the homeserver: whose token is this?
//!
//! [`request`] writes `GET /_matrix/client/v3/account/whoami`, [`response`] frames what comes back, and [`answer`]
//! says what it means. It runs once per lookup, in place of nginx's proxy module: the border gives the bytes to
//! nginx's upstream and calls [`response::parse`] whenever more of the answer has come.

pub mod answer;
pub mod request;
pub mod response;

pub use answer::{Answer, Failure};
pub use request::{DeviceParam, Masquerade, Request};
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
}

impl FailureKind {
    /// All kinds, in the order of their numbers (`kind as usize` is the index).
    pub const ALL: [Self; 6] = [
        Self::Connect,
        Self::Timeout,
        Self::Status,
        Self::Head,
        Self::Body,
        Self::TooLarge,
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
        }
    }
}

impl From<Malformed> for FailureKind {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::Head => Self::Head,
            Malformed::Body => Self::Body,
            Malformed::TooLarge => Self::TooLarge,
        }
    }
}

impl From<Failure> for FailureKind {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Status => Self::Status,
            Failure::Body => Self::Body,
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

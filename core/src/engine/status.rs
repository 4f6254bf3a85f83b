//! What `$matrix_user_hash_status` says: how a request came by its hash.

use crate::metrics::Counter;
use crate::whoami::{FailureKind, LookupError};

/// How a request came by its hash. The names are part of the public interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The user was known, and the answer fresh.
    Hit,
    /// This request's own lookup answered.
    Miss,
    /// Another request's lookup answered.
    Shared,
    /// The user was known, and the answer past its freshness.
    Stale,
    /// The homeserver does not know the token (`M_UNKNOWN_TOKEN`).
    Refused,
    /// The lookup failed.
    Error,
    /// The lookup, or the wait for it, took too long.
    Timeout,
    /// The request has no token that Synapse would accept.
    Anonymous,
}

impl Status {
    /// Each of them, in order.
    pub const ALL: [Self; 8] = [
        Self::Hit,
        Self::Miss,
        Self::Shared,
        Self::Stale,
        Self::Refused,
        Self::Error,
        Self::Timeout,
        Self::Anonymous,
    ];

    /// The value of the variable.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "HIT",
            Self::Miss => "MISS",
            Self::Shared => "SHARED",
            Self::Stale => "STALE",
            Self::Refused => "REFUSED",
            Self::Error => "ERROR",
            Self::Timeout => "TIMEOUT",
            Self::Anonymous => "ANONYMOUS",
        }
    }

    /// The counter of requests with this status.
    pub const fn counter(self) -> Counter {
        match self {
            Self::Hit => Counter::Hits,
            Self::Miss => Counter::Misses,
            Self::Shared => Counter::Shared,
            Self::Stale => Counter::Stale,
            Self::Refused => Counter::Refused,
            Self::Error => Counter::Errors,
            Self::Timeout => Counter::Timeouts,
            Self::Anonymous => Counter::Anonymous,
        }
    }

    /// The status of a request whose lookup gave no user.
    pub const fn of_error(error: LookupError) -> Self {
        match error {
            LookupError::Refused => Self::Refused,
            LookupError::Failed(FailureKind::Timeout) => Self::Timeout,
            LookupError::Failed(_) => Self::Error,
        }
    }
}

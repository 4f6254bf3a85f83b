//! Faults on demand, for the tests that show what a fault costs: only with the cargo feature `faults`.
//!
//! A request whose User-Agent is `matrix-user-hash-fault/PLACE` panics at that place. A build for production has none
//! of this.

/// Where a request may be made to panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// When it arrives.
    Arrive,
    /// When its lookup is written.
    Ask,
    /// When the answer to its lookup has come, in a callback of the upstream.
    #[cfg(feature = "faults")]
    Answer,
    /// When it goes on.
    Settle,
}

/// Panics if the agent asks for it.
#[cfg(feature = "faults")]
pub fn at(place: Place, agent: Option<&[u8]>) {
    let name = format!("matrix-user-hash-fault/{place:?}");
    assert!(agent != Some(name.as_bytes()), "a fault was asked for");
}

/// Does nothing.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub(crate) fn at(_place: Place, _agent: Option<&[u8]>) {}

//! Time, as everything that is shared between processes counts it.
//!
//! Nothing here reads a clock: every function that depends on time takes `now` from its caller. In nginx that is
//! `ngx_current_msec`, which the event loop reads once per turn from CLOCK_MONOTONIC: one clock for all processes of a
//! machine, which never goes back and which nobody sets. Two processes may still disagree by the length of a turn, so
//! whatever compares a stored time with `now` must bear a stored time slightly in the future.

/// A moment: milliseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(u64);

impl Millis {
    /// The moment `millis` after the clock's start (at most 2^63 of them; the machine boots at about 0).
    pub const fn new(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the clock's start.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The moment `millis` milliseconds later, or the last one there is.
    #[must_use]
    pub const fn plus(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// Milliseconds from `earlier` to here; 0 if `earlier` is not earlier.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Whole seconds since the clock's start.
    pub const fn seconds(self) -> u64 {
        self.0 / 1000
    }
}

/// A length of time in whole seconds, up to 136 years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seconds(u32);

impl Seconds {
    /// That many seconds.
    pub const fn new(seconds: u32) -> Self {
        Self(seconds)
    }

    /// How many seconds.
    pub const fn get(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_in_the_future_is_no_time_ago() {
        assert_eq!(Millis::new(1_000).since(Millis::new(1_250)), 0);
        assert_eq!(Millis::new(1_250).since(Millis::new(1_000)), 250);
    }

    #[test]
    fn the_last_moment_does_not_wrap() {
        assert_eq!(Millis::new(u64::MAX).plus(2_000), Millis::new(u64::MAX));
        assert_eq!(Millis::new(61_999).seconds(), 61);
    }
}

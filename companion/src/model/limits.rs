//! Limits of requests: how many a second a user may make, or an address of which no user is known.

/// Which requests of a user a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LimitGroup {
    /// `/sync`, `/events` and `initialSync`.
    Sync,
    /// Simplified sliding sync.
    SlidingSync,
    /// Events into rooms: `send`, `state` and `redact`.
    Send,
    /// The media repository, uploads and thumbnails alike.
    Media,
    /// All requests of the client API, those of the other groups among them.
    Everything,
}

impl LimitGroup {
    /// All, in the order in which they are written.
    pub(crate) const ALL: [Self; 5] = [
        Self::Sync,
        Self::SlidingSync,
        Self::Send,
        Self::Media,
        Self::Everything,
    ];

    /// The name in a deployment file, in zones and in the access log.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::SlidingSync => "sliding_sync",
            Self::Send => "send",
            Self::Media => "media",
            Self::Everything => "everything",
        }
    }
}

/// A rate, and how many requests may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// Requests a minute, in the long run. nginx knows whole requests a minute and nothing finer.
    pub per_minute: u32,
    /// Requests beyond the rate that may come at once.
    pub burst: u32,
}

impl Rate {
    /// As nginx's `rate=` takes it.
    pub(crate) fn nginx(self) -> String {
        if self.per_minute.is_multiple_of(60) {
            format!("{}r/s", self.per_minute / 60)
        } else {
            format!("{}r/m", self.per_minute)
        }
    }

    /// Milliseconds after which a refused client may ask again: until there is room for one request, and a second at the
    /// least, because `Retry-After` has whole seconds.
    pub(crate) fn retry_ms(self) -> u32 {
        (60_000 / self.per_minute.max(1)).max(1000)
    }
}

/// All limits.
#[derive(Clone, Debug, Default)]
pub(crate) struct RequestLimits {
    /// Rates of one user, by group, in the order of [`LimitGroup::ALL`].
    pub rates: Vec<(LimitGroup, Rate)>,
    /// Syncs of one user, sliding ones among them, that may wait at the same time.
    pub parallel_syncs: Option<u32>,
    /// Hashes of users that are not limited.
    pub exempt: Vec<String>,
    /// Addresses and networks that are not limited.
    pub exempt_addresses: Vec<String>,
    /// The rate of an address, of its requests without a known user.
    pub address: Option<Rate>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_written_as_nginx_reads_it() {
        let rate = |per_minute| Rate {
            per_minute,
            burst: 0,
        };
        assert_eq!(rate(300).nginx(), "5r/s");
        assert_eq!(rate(30).nginx(), "30r/m");
        assert_eq!(rate(90).nginx(), "90r/m");
        assert_eq!(rate(300).retry_ms(), 1000);
        assert_eq!(rate(30).retry_ms(), 2000);
    }
}

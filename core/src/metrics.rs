//! What is counted, and where.
//!
//! Every request and every lookup is counted in the zone; `matrix_user_hash_metrics` reads the counters. In go single
//! events from all worker processes, out comes a [`Snapshot`], which [`render`] writes as JSON or as Prometheus text.
//!
//! Each process counts in a slot of its own, in whole cache lines that no other process writes. If there are more processes
//! than slots, some share one, which costs time and no count. A reader adds the slots up. Nobody takes a lock: an event is
//! one relaxed addition, and reading disturbs no process. The counters live in the zone, so they survive a reload and the
//! death of processes, and begin at 0 with a new zone. A snapshot under load is not of one instant: the figures may differ
//! from each other by what happened while they were read.

pub mod render;

use crate::shm::breaker::Breaker;
use crate::shm::counters::MOST_COUNTERS;
pub use crate::shm::counters::{BUCKETS, Counters, SLOT_WORDS, Slot};
use crate::shm::zone::Zone;
use crate::time::{Millis, Seconds};
use crate::whoami::FailureKind;

/// Several counters of one kind, which a label tells apart.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// The name in JSON; in Prometheus `matrix_user_hash_` stands before it and `_total` behind.
    pub name: &'static str,
    /// What is counted.
    pub help: &'static str,
    /// The label's name, unless there is one counter only.
    pub label: Option<&'static str>,
    /// The counters, each with its value of the label.
    pub counters: &'static [(Counter, &'static str)],
}

/// Declares [`Counter`], the list of all, and [`FAMILIES`], so that no counter can be left out of a figure.
macro_rules! counters {
    ($($family:literal by $label:expr, $help:literal { $($name:ident $value:literal, $what:literal;)* })*) => {
        /// What is counted since the zone was made. A request counts as one of those that name a status, and no other.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum Counter { $($(#[doc = $what] $name,)*)* }

        impl Counter {
            /// All, in the order of their numbers (`counter as usize` is the index).
            pub const ALL: &[Self] = &[$($(Self::$name,)*)*];
        }

        /// All counters, as they are shown.
        pub const FAMILIES: &[Family] = &[$(Family {
            name: $family,
            help: $help,
            label: $label,
            counters: &[$((Counter::$name, $value),)*],
        },)*];
    };
}

counters! {
    "requests" by Some("status"), "Requests, by how they came by their hash." {
        Hits "hit", "The table knew the user: status `HIT`.";
        Misses "miss", "The request led a lookup to its answer: status `MISS`.";
        Shared "shared", "The request got the answer of somebody else's lookup: status `SHARED`.";
        Stale "stale", "The entry was expired and routed the request: status `STALE`.";
        Refused "refused", "The homeserver does not know the token: status `REFUSED`.";
        Errors "error", "The lookup gave no answer: status `ERROR`. The request went on by the fallback.";
        Timeouts "timeout", "`matrix_user_hash_timeout` let the request go: status `TIMEOUT`. It went on by the fallback.";
        Anonymous "anonymous", "The request had no usable token: status `ANONYMOUS`.";
    }
    "errors" by Some("kind"), "Lookups that failed, by kind of failure." {
        ErrorConnect "connect", "[`FailureKind::Connect`].";
        ErrorTimeout "timeout", "[`FailureKind::Timeout`].";
        ErrorStatus "status", "[`FailureKind::Status`].";
        ErrorHead "head", "[`FailureKind::Head`].";
        ErrorBody "body", "[`FailureKind::Body`].";
        ErrorTooLarge "too_large", "[`FailureKind::TooLarge`].";
        ErrorLocal "local", "[`FailureKind::Local`].";
    }
    "lookups" by None, "Lookups sent to the homeserver." {
        Lookups "", "Lookups sent, for requests and in the background.";
    }
    "refreshes" by None, "Lookups sent in the background to refresh an expired entry." {
        Refreshes "", "Those of `Lookups` that refresh an expired entry in the background.";
    }
    "queued" by None, "Times that a token had to wait for a place below matrix_user_hash_max_lookups." {
        Queued "", "A worker process had to wait with the lookup of a token, because `matrix_user_hash_max_lookups` were in flight or others waited already.";
    }
    "suppressed" by None, "Lookups not sent because the homeserver had failed repeatedly." {
        Suppressed "", "Lookups not sent, because the homeserver had failed repeatedly.";
    }
    "abandoned" by None, "Requests whose client went away while they waited." {
        Abandoned "", "Requests whose client went away while they waited.";
    }
    "evictions" by None, "Entries in use that were replaced because the zone was full." {
        Evictions "", "Entries in use that had to go for others: above 0 for long, the zone is small.";
    }
    "limited" by Some("limit"), "Requests that a limit refused, as `matrix_user_hash_limited` names the limit." {
        LimitedSync "sync", "A limit of syncs.";
        LimitedSlidingSync "sliding_sync", "A limit of sliding syncs.";
        LimitedSend "send", "A limit of events that are sent.";
        LimitedMedia "media", "A limit of requests to the media repository.";
        LimitedEverything "everything", "A limit of all requests of a user.";
        LimitedParallelSyncs "parallel_syncs", "A limit of syncs at a time.";
        LimitedAddress "address", "A limit by address.";
        LimitedOther "other", "A limit of another name.";
    }
    "panics" by None, "Panics caught in the module; each is a bug." {
        Panics "", "Panics caught at the border to nginx: each is a bug.";
    }
}

impl Counter {
    /// The counter of requests that a limit of that name refused. `None` if the name is empty: no limit did.
    pub fn of_limit(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"" => return None,
            b"sync" => Self::LimitedSync,
            b"sliding_sync" => Self::LimitedSlidingSync,
            b"send" => Self::LimitedSend,
            b"media" => Self::LimitedMedia,
            b"everything" => Self::LimitedEverything,
            b"parallel_syncs" => Self::LimitedParallelSyncs,
            b"address" => Self::LimitedAddress,
            _ => Self::LimitedOther,
        })
    }

    /// The counter of lookups that failed this way.
    pub const fn of_failure(kind: FailureKind) -> Self {
        match kind {
            FailureKind::Connect => Self::ErrorConnect,
            FailureKind::Timeout => Self::ErrorTimeout,
            FailureKind::Status => Self::ErrorStatus,
            FailureKind::Head => Self::ErrorHead,
            FailureKind::Body => Self::ErrorBody,
            FailureKind::TooLarge => Self::ErrorTooLarge,
            FailureKind::Local => Self::ErrorLocal,
        }
    }
}

const COUNTERS: usize = Counter::ALL.len();
const _: () = assert!(COUNTERS <= MOST_COUNTERS, "SLOT_WORDS must grow");

impl From<Counter> for usize {
    #[inline]
    fn from(counter: Counter) -> Self {
        counter as Self
    }
}

/// A zone's figures at about one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Entries in use, exact up to 131,072 of room; see [`crate::shm::table::Table::occupancy`].
    pub entries: u64,
    /// How many entries there is room for.
    pub capacity: u64,
    /// Lookups in flight, over all worker processes.
    pub in_flight: u64,
    /// Whether lookups are suspended because the homeserver failed repeatedly.
    pub suspended: bool,
    /// Lookups by duration: one for each of [`BUCKETS`] and one for those above, each counted once.
    pub durations: [u64; BUCKETS.len() + 1],
    /// The sum of all durations, in microseconds.
    pub duration_sum: u64,
    counts: [u64; COUNTERS],
}

impl Snapshot {
    /// Reads all figures of a zone whose entries go when unused for `inactive`. `alive` as for
    /// [`crate::shm::claims::Flights::claim`].
    pub fn read(
        zone: &Zone<'_>,
        now: Millis,
        inactive: Seconds,
        alive: impl Fn(u32) -> bool,
    ) -> Self {
        let counters = zone.counters();
        let breaker: Breaker<'_> = zone.breaker();
        let (entries, capacity) = zone.table().occupancy(now, inactive);
        Self {
            entries,
            capacity,
            in_flight: u64::from(zone.flights().in_flight(now, alive)),
            suspended: breaker.open_for(now).is_some(),
            durations: std::array::from_fn(|bucket| counters.in_bucket(bucket)),
            duration_sum: counters.duration_sum(),
            counts: std::array::from_fn(|counter| counters.count_of(counter)),
        }
    }

    /// How often that happened since the zone was made.
    pub fn get(&self, counter: Counter) -> u64 {
        self.counts[counter as usize]
    }

    /// How many lookups the histogram holds.
    pub fn lookups_timed(&self) -> u64 {
        self.durations.iter().sum()
    }
}

#[cfg(test)]
mod tests;

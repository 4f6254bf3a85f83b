//! Where a key goes that is stored, and what has to go for it.
//!
//! The key's place if it has one already; else an empty place in the emptier of its two sets; else the place of the entry
//! that can best be spared. That entry is looked for in both sets and, one step further, in the *other* sets of the
//! sixteen entries there: one of those may move to its other set, where something older or nothing at all stands, and make
//! way. Without that step a table that is nine tenths full drops entries although there is room elsewhere; with it the
//! table fills to the last percent and drops nearly what a true LRU would (`examples/hit_ratio.rs`).
//!
//! Only after a lookup of milliseconds does anything come here, so reading some sixteen lines more costs nothing that counts.

use super::recency::{EMPTY, TORN, is_live};
use super::set::{Set, Slot};
use super::{Inserted, PRESENT, TAG, Table};
use crate::sync::Ordering::Relaxed;
use crate::time::{Millis, Seconds};

/// Where to write.
pub(super) struct Place<'m> {
    pub(super) slot: Slot<'m>,
    /// What stands in `slot` moves there first.
    pub(super) makes_way_to: Option<Slot<'m>>,
    pub(super) inserted: Inserted,
}

/// A place, and how well what stands in it can be spared.
#[derive(Clone, Copy)]
struct Candidate<'m> {
    slot: Slot<'m>,
    rank: u64,
}

impl<'m> Table<'m> {
    /// Where a key goes that is stored now.
    pub(super) fn place(&self, low: u64, high: u64, now: Millis, inactive: Seconds) -> Place<'m> {
        let (first, second) = self.choices(low, high);
        if let Some(slot) = self.known_place(first, second, high) {
            return Place {
                slot,
                makes_way_to: None,
                inserted: Inserted {
                    evicted: false,
                    refreshed: true,
                },
            };
        }
        let best = self.best_of(first, now, inactive);
        let other = self.best_of(second, now, inactive);
        let (best, rank) = match (best, other) {
            ((a, x), (b, y)) if (b.rank, y) > (a.rank, x) => (b, b.rank),
            ((a, _), _) => (a, a.rank),
        };
        let (makes_way_to, slot, rank) = if is_live(rank) {
            match self.best_move([first, second], now, inactive, rank) {
                Some((from, to)) => (Some(to.slot), from, to.rank),
                None => (None, best.slot, rank),
            }
        } else {
            (None, best.slot, rank)
        };
        Place {
            slot,
            makes_way_to,
            inserted: Inserted {
                evicted: is_live(rank),
                refreshed: false,
            },
        }
    }

    /// The place that the key has already, told by the tag alone, so that a torn entry of this key is mended. Two
    /// processes that stored it at once may have made two of it: all but one go.
    fn known_place(&self, first: usize, second: usize, high: u64) -> Option<Slot<'m>> {
        let mut known = None;
        let sets = if first == second { 1 } else { 2 };
        for index in [first, second].into_iter().take(sets) {
            for slot in self.set(index).slots() {
                let tag = slot.tag().load(Relaxed);
                if tag & PRESENT != 0 && tag & TAG == high & TAG {
                    match known {
                        None => known = Some(slot),
                        Some(_) => slot.tag().store(0, Relaxed),
                    }
                }
            }
        }
        known
    }

    /// Of the entries of a set the one that can best be spared, and how many places are empty.
    fn best_of(&self, index: usize, now: Millis, inactive: Seconds) -> (Candidate<'m>, usize) {
        let set = self.set(index);
        let mut best = self.candidate(index, set, 0, now, inactive);
        let mut empty = usize::from(best.rank == EMPTY);
        for way in 1..super::WAYS {
            let candidate = self.candidate(index, set, way, now, inactive);
            empty += usize::from(candidate.rank == EMPTY);
            if candidate.rank > best.rank {
                best = candidate;
            }
        }
        (best, empty)
    }

    fn candidate(
        &self,
        index: usize,
        set: Set<'m>,
        way: usize,
        now: Millis,
        inactive: Seconds,
    ) -> Candidate<'m> {
        let slot = set.slot(way);
        let (low, tag, _) = slot.read();
        let rank = if tag & PRESENT == 0 {
            EMPTY
        } else if self.other_set(low, tag, index).is_none() {
            TORN
        } else {
            self.clock
                .dispensable(slot.uses().load(Relaxed), now, inactive)
        };
        Candidate { slot, rank }
    }

    /// An entry of those sets that may move, and where to, so that something goes that can be spared better than `rank`.
    fn best_move(
        &self,
        sets: [usize; 2],
        now: Millis,
        inactive: Seconds,
        rank: u64,
    ) -> Option<(Slot<'m>, Candidate<'m>)> {
        let mut best: Option<(Slot<'m>, Candidate<'m>)> = None;
        for index in sets {
            for slot in self.set(index).slots() {
                let (low, tag, _) = slot.read();
                let Some(other) = self.other_set(low, tag, index) else {
                    continue;
                };
                if sets.contains(&other) {
                    continue;
                }
                let (to, _) = self.best_of(other, now, inactive);
                if to.rank > best.as_ref().map_or(rank, |(_, to)| to.rank) {
                    best = Some((slot, to));
                }
            }
        }
        best
    }
}

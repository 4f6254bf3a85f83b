//! Eight entries in four cache lines: one of tags, one of checks, one of users, one of use words.

use super::{Masquerade, PRESENT, SET_WORDS, TAG, WAYS, masquerade_of};
use crate::sync::{AtomicU64, Ordering::Relaxed};
use crate::user::UserHash;

/// What a lookup found of a key.
#[derive(Clone, Copy)]
pub(super) struct Found {
    pub(super) user: UserHash,
    pub(super) masquerade: Masquerade,
}

/// A set. Copying it copies a reference.
#[derive(Clone, Copy)]
pub(super) struct Set<'m>(pub(super) &'m [AtomicU64; SET_WORDS]);

impl<'m> Set<'m> {
    #[inline]
    pub(super) fn slot(self, way: usize) -> Slot<'m> {
        Slot { set: self, way }
    }

    pub(super) fn slots(self) -> impl Iterator<Item = Slot<'m>> {
        (0..WAYS).map(move |way| self.slot(way))
    }

    /// The entry that certifies itself to be that key's.
    #[inline]
    pub(super) fn find(self, low: u64, high: u64) -> Option<(Slot<'m>, Found)> {
        for way in 0..WAYS {
            let slot = self.slot(way);
            let tag = slot.tag().load(Relaxed);
            if tag & TAG == high & TAG && tag & PRESENT != 0 {
                let user = slot.user().load(Relaxed);
                if slot.check().load(Relaxed) ^ tag ^ user == low {
                    let found = Found {
                        user: UserHash::from_bits(user),
                        masquerade: masquerade_of(tag),
                    };
                    return Some((slot, found));
                }
            }
        }
        None
    }
}

/// The place of one entry.
#[derive(Clone, Copy)]
pub(super) struct Slot<'m> {
    set: Set<'m>,
    way: usize,
}

impl<'m> Slot<'m> {
    /// The upper 60 bits of the key's second half, and the flags. 0 if the place is empty.
    #[inline]
    pub(super) fn tag(self) -> &'m AtomicU64 {
        &self.set.0[self.way]
    }

    /// The key's first half xor tag xor user.
    #[inline]
    pub(super) fn check(self) -> &'m AtomicU64 {
        &self.set.0[WAYS + self.way]
    }

    /// The user hash.
    #[inline]
    pub(super) fn user(self) -> &'m AtomicU64 {
        &self.set.0[2 * WAYS + self.way]
    }

    /// When it was looked up and used.
    #[inline]
    pub(super) fn uses(self) -> &'m AtomicU64 {
        &self.set.0[3 * WAYS + self.way]
    }

    /// The first half of the key that the words give, the tag, and the user. Of a torn entry, nobody's key.
    pub(super) fn read(self) -> (u64, u64, u64) {
        let tag = self.tag().load(Relaxed);
        let user = self.user().load(Relaxed);
        (self.check().load(Relaxed) ^ tag ^ user, tag, user)
    }

    /// Writes an entry, in whatever order its readers will see.
    pub(super) fn write(self, tag: u64, check: u64, user: u64, uses: u64) {
        self.uses().store(uses, Relaxed);
        pause();
        self.user().store(user, Relaxed);
        pause();
        self.check().store(check, Relaxed);
        pause();
        self.tag().store(tag, Relaxed);
    }

    /// Copies an entry as it stands, torn or not.
    pub(super) fn copy_to(self, other: Self) {
        let [tag, check, user, uses] =
            [self.tag(), self.check(), self.user(), self.uses()].map(|word| word.load(Relaxed));
        other.write(tag, check, user, uses);
    }
}

/// Between two stores nothing happens, but in a build that is made to be killed there.
#[cfg(not(feature = "slow-writes"))]
#[inline]
fn pause() {}

#[cfg(feature = "slow-writes")]
fn pause() {
    std::thread::sleep(std::time::Duration::from_millis(2));
}

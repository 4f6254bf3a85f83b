//! The bookkeeping of a small piece of memory that is lent for a short time, where the machine has none left.
//!
//! It is a bump allocator: a block is taken behind the last one, and the whole piece is free again once all blocks have been
//! given back. So a block costs one atomic operation, nothing is searched, and what stays long keeps all that was lent before it.
//! Several threads may borrow. The bytes themselves are the business of whoever has them: here are offsets only.

use crate::sync::{AtomicU64, Ordering};

/// Which part of a piece of memory is lent.
#[derive(Debug)]
pub struct Reserve {
    /// Bytes in the piece.
    size: u32,
    /// The number of blocks that are lent in the upper half, the first byte behind them in the lower one.
    state: AtomicU64,
}

impl Reserve {
    /// A piece of `size` bytes, of which nothing is lent.
    #[cfg(not(loom))]
    #[must_use]
    pub const fn new(size: u32) -> Self {
        let state = AtomicU64::new(0);
        Self { size, state }
    }

    /// A piece of `size` bytes, of which nothing is lent.
    #[cfg(loom)]
    #[must_use]
    pub fn new(size: u32) -> Self {
        let state = AtomicU64::new(0);
        Self { size, state }
    }

    /// Takes a block of `size` bytes; gives its offset, a multiple of `align`. `None` if there is not so much left.
    ///
    /// # Panics
    ///
    /// `align` is not a power of two.
    pub fn take(&self, size: usize, align: usize) -> Option<usize> {
        assert!(align.is_power_of_two(), "nothing is aligned to {align}");
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            let (lent, end) = split(state);
            let offset = usize::try_from(end).ok()?.checked_next_multiple_of(align)?;
            let behind = u32::try_from(offset.checked_add(size)?).ok()?;
            if behind > self.size {
                return None;
            }
            let next = join(lent.checked_add(1)?, behind);
            // Acquire: who gave the memory back has done with it.
            match self.state.compare_exchange_weak(
                state,
                next,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(offset),
                Err(found) => state = found,
            }
        }
    }

    /// Gives a block back, whichever it is.
    pub fn give_back(&self) {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            let (lent, end) = split(state);
            debug_assert!(lent > 0, "a block was given back that is not lent");
            let next = match lent {
                0 | 1 => 0,
                _ => join(lent - 1, end),
            };
            // Acquire as well: the last to give back hands on what all before it have done.
            match self
                .state
                .compare_exchange_weak(state, next, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(found) => state = found,
            }
        }
    }

    /// How many blocks are lent.
    pub fn lent(&self) -> u32 {
        split(self.state.load(Ordering::Relaxed)).0
    }
}

const fn split(state: u64) -> (u32, u32) {
    ((state >> 32) as u32, state as u32)
}

fn join(lent: u32, end: u32) -> u64 {
    u64::from(lent) << 32 | u64::from(end)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Take { size: usize, align: usize },
        GiveBack(prop::sample::Index),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let take = (0usize..300, 0u32..5).prop_map(|(size, align)| Step::Take {
            size,
            align: 1 << align,
        });
        let give_back = any::<prop::sample::Index>().prop_map(Step::GiveBack);
        prop::collection::vec(prop_oneof![take, give_back], 0..200)
    }

    proptest! {
        /// No two blocks share a byte, and each is where it may be; when all are back, everything is there again.
        #[test]
        fn blocks_are_apart(steps in steps()) {
            const SIZE: usize = 1000;
            let reserve = Reserve::new(SIZE as u32);
            let mut lent: Vec<(usize, usize)> = Vec::new();
            for step in steps {
                match step {
                    Step::Take { size, align } => {
                        let Some(offset) = reserve.take(size, align) else {
                            prop_assert!(!lent.is_empty() || size > SIZE);
                            continue;
                        };
                        prop_assert_eq!(offset % align, 0);
                        prop_assert!(offset + size <= SIZE);
                        for (other, length) in &lent {
                            prop_assert!(offset + size <= *other || other + length <= offset);
                        }
                        lent.push((offset, size));
                    }
                    Step::GiveBack(index) => {
                        if !lent.is_empty() {
                            lent.swap_remove(index.index(lent.len()));
                            reserve.give_back();
                        }
                    }
                }
                prop_assert_eq!(reserve.lent() as usize, lent.len());
                if lent.is_empty() {
                    prop_assert_eq!(reserve.take(SIZE, 1), Some(0));
                    reserve.give_back();
                }
            }
        }
    }

    #[test]
    fn what_is_too_large_is_not_lent() {
        let reserve = Reserve::new(64);
        for (size, align) in [(65, 1), (usize::MAX, 1), (usize::MAX - 7, 16)] {
            assert_eq!(reserve.take(size, align), None);
        }
        assert_eq!(reserve.take(1, 1), Some(0));
        assert_eq!(reserve.take(48, 16), Some(16));
        assert_eq!(reserve.take(1, 1), None);
    }
}

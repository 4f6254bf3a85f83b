//! A flight: a key that is being asked about, and the requests of this worker process that wait for it.

use std::collections::TryReserveError;

use super::client::Client;
use super::decide::Question;
use super::{Terms, WaitsFor};
use crate::time::Millis;

/// A key that is being asked about, and who waits for it.
pub(super) struct Flight<W> {
    pub(super) question: Question,
    pub(super) stage: Stage,
    pub(super) slots: Slots<W>,
    /// In whose queue it waits for a place.
    pub(super) client: Client,
    /// The deadline of our lookup.
    pub(super) until: Millis,
}

impl<W> Flight<W> {
    /// Whether it is in the queue: for a place, or for its word, so that it is not passed by for good.
    pub(super) fn is_queued(&self) -> bool {
        matches!(self.stage, Stage::Waiting(WaitsFor::Place | WaitsFor::Word))
    }

    pub(super) fn lacks_place(&self) -> bool {
        self.stage == Stage::Waiting(WaitsFor::Place)
    }
}

/// What a flight does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// That lookup of ours is on its way, for the request in that slot (or for none, in the background).
    Leading { job: u64, slot: Option<usize> },
    /// It waits for something else.
    Waiting(WaitsFor),
}

/// A request that waits.
#[derive(Clone, Copy)]
pub(super) struct Slot<W> {
    pub(super) waiter: W,
    pub(super) terms: Terms,
    pub(super) deadline: Millis,
}

/// The waiting requests of a flight. A slot that was left goes to the next who comes.
pub(super) struct Slots<W> {
    slots: Vec<Option<Slot<W>>>,
    left: Vec<usize>,
}

impl<W> Default for Slots<W> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            left: Vec::new(),
        }
    }
}

impl<W: Copy + Eq> Slots<W> {
    /// Puts a request into a slot, and gives its number.
    pub(super) fn take(&mut self, slot: Slot<W>) -> Result<usize, TryReserveError> {
        if let Some(index) = self.left.pop() {
            self.slots[index] = Some(slot);
            return Ok(index);
        }
        self.slots.try_reserve(1)?;
        // As many as there are slots, so that leaving one needs no memory.
        self.left.try_reserve(self.slots.len() + 1)?;
        self.slots.push(Some(slot));
        Ok(self.slots.len() - 1)
    }

    /// Empties the slot with that number, if that waiter is in it.
    pub(super) fn leave(&mut self, index: usize, waiter: W) -> bool {
        let Some(slot) = self.slots.get_mut(index) else {
            return false;
        };
        let is_its = slot.as_ref().is_some_and(|slot| slot.waiter == waiter);
        if is_its {
            *slot = None;
            self.left.push(index);
        }
        is_its
    }

    /// The first request, and its slot.
    pub(super) fn first(&self) -> Option<(usize, &Slot<W>)> {
        let mut taken = self.slots.iter().enumerate();
        taken.find_map(|(index, slot)| Some((index, slot.as_ref()?)))
    }

    /// Calls `body` for each request, and empties the slots for which it returns true.
    pub(super) fn drain(&mut self, mut body: impl FnMut(usize, &Slot<W>) -> bool) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.as_ref().is_some_and(|taken| body(index, taken)) {
                *slot = None;
                self.left.push(index);
            }
        }
    }
}

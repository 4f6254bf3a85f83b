//! The flights of a worker: who waits for which lookup.
//!
//! A request takes a seat in the flight of its key, and leaves it when it goes away or has its outcome. Whether the flight
//! has a lookup of its own is decided by the zone's array of flights, its breaker and its table, in that order.

use core::ptr::NonNull;
use std::collections::TryReserveError;
use std::time::Instant;

use matrix_user_hash_core::key::Key;
use matrix_user_hash_core::metrics::Counter;
use matrix_user_hash_core::negative::Verdict;
use matrix_user_hash_core::shm::breaker::Admit;
use matrix_user_hash_core::shm::claims::{Asker, Claim, Outcome as Ended, Permit};
use matrix_user_hash_core::shm::table::Masquerade;
use matrix_user_hash_core::time::Millis;
use matrix_user_hash_core::whoami::FailureKind;

use super::{Local, is_alive};
use crate::lookup::Order;
use crate::ngx::request::Request;
use crate::phase::{Question, Site};
use crate::status::Status;
use crate::waiter::{Answer, Outcome, Waiter};

/// The longest pause between polls, in milliseconds.
const LONGEST_PAUSE: u64 = 20;
/// By how much a lookup may land late: its alarm rings in its own time, and the event loop may be busy.
const GRACE: u64 = 1000;
/// Claims in one poll that find their word taken, before the rest must wait for the next.
const COLLISIONS: usize = 64;

/// A key that is being asked about, and who waits for it.
pub(super) struct Flight {
    question: Question,
    stage: Stage,
    seats: Seats,
    /// When a lookup of ours has ended, if nothing went wrong with it.
    until: Millis,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// That lookup of ours is on its way, for the request in that seat (or for nobody, in the background).
    Leading { lookup: u64, seat: Option<usize> },
    /// It is somebody else's turn.
    Waiting(Wait),
}

/// What a flight waits for that is not led from here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// Another worker's lookup of the same key.
    Lookup,
    /// The word of the key, which is held for another one.
    Word,
    /// A place below `matrix_user_hash_max_lookups`.
    Place,
}

/// The waiting requests of a flight. A seat that was left goes to the next who comes.
#[derive(Default)]
struct Seats {
    waiters: Vec<Option<NonNull<Waiter>>>,
    left: Vec<usize>,
}

impl Seats {
    fn take(&mut self, waiter: NonNull<Waiter>) -> Result<usize, TryReserveError> {
        if let Some(seat) = self.left.pop() {
            self.waiters[seat] = Some(waiter);
            return Ok(seat);
        }
        self.waiters.try_reserve(1)?;
        // As many as there are seats, so that leaving one needs no memory.
        self.left.try_reserve(self.waiters.len() + 1)?;
        self.waiters.push(Some(waiter));
        Ok(self.waiters.len() - 1)
    }

    fn leave(&mut self, seat: usize) {
        if self.waiters.get_mut(seat).and_then(Option::take).is_some() {
            self.left.push(seat);
        }
    }

    fn first(&self) -> Option<(usize, NonNull<Waiter>)> {
        let mut taken = self.waiters.iter().enumerate();
        taken.find_map(|(seat, waiter)| Some((seat, (*waiter)?)))
    }
}

/// A lookup to send: done outside of the borrow.
pub(super) struct Departure {
    pub(super) request: Request,
    pub(super) order: Order,
}

/// How a flight may begin.
enum Begun {
    Lead(Permit, Admit),
    Wait(Wait),
    Landed(Outcome),
}

impl Local {
    /// A request gives its seat in a flight back. True if that flight had no lookup yet.
    ///
    /// A flight that nobody waits for any more is forgotten when it is polled next, with its place in the line; who asks
    /// for its key before that takes it over.
    pub fn leave(&mut self, key: &Key, seat: usize) -> bool {
        let Some(flight) = self.flights.get_mut(key) else {
            return false;
        };
        flight.seats.leave(seat);
        match &mut flight.stage {
            Stage::Leading { seat: leader, .. } => {
                if *leader == Some(seat) {
                    *leader = None;
                }
                false
            }
            Stage::Waiting(wait) => *wait != Wait::Lookup,
        }
    }

    /// A lookup that a panic has cut short never lands; nobody should wait for it for ever.
    fn forget_if_lost(&mut self, key: &Key) {
        let now = self.now();
        let lost = |flight: &Flight| {
            matches!(flight.stage, Stage::Leading { .. }) && flight.until.plus(GRACE) < now
        };
        if self.flights.get(key).is_some_and(lost) {
            self.land(key, Outcome::Verdict(Verdict::Failed(FailureKind::Timeout)));
        }
    }

    /// Whether the key's flight may begin now, with a lookup that is given up at `deadline`.
    fn begin(&mut self, site: &Site, question: &Question, deadline: Millis, waited: bool) -> Begun {
        let now = self.now();
        let suspended = Begun::Landed(Outcome::Verdict(Verdict::Failed(FailureKind::Connect)));
        if self
            .zone
            .breaker()
            .open_for(now)
            .is_some_and(|left| left > 0)
        {
            self.count(Counter::Suppressed);
            return suspended;
        }
        // Nobody else asks before it has been told how this went: it may land late, and is still the only one then.
        let over = deadline.plus(GRACE);
        let asker = Asker {
            pid: self.pid,
            deadline: over,
            max_lookups: site.conf.most_lookups(),
            waited,
        };
        let permit = match self
            .zone
            .flights()
            .claim(question.key(), &asker, now, is_alive)
        {
            Claim::Leader(permit) => permit,
            Claim::Same => return Begun::Wait(Wait::Lookup),
            Claim::Turn | Claim::Published(Ended::Stored) => return Begun::Wait(Wait::Word),
            Claim::Full => {
                self.full_at = site.conf.most_lookups();
                return Begun::Wait(Wait::Place);
            }
            Claim::Published(Ended::Refused) => {
                return Begun::Landed(Outcome::Verdict(Verdict::Refused));
            }
            Claim::Published(Ended::Failed(kind)) => {
                return Begun::Landed(Outcome::Verdict(Verdict::Failed(kind)));
            }
        };
        if let Some(outcome) = self.known(site, question) {
            self.zone.flights().release(permit);
            return Begun::Landed(outcome);
        }
        let admitted = self.zone.breaker().admit(now, over);
        if admitted == Admit::No {
            self.zone.flights().release(permit);
            self.count(Counter::Suppressed);
            return suspended;
        }
        Begun::Lead(permit, admitted)
    }

    /// What another worker's lookup has left in the table.
    fn known(&self, site: &Site, question: &Question) -> Option<Outcome> {
        let fresh = |key| {
            let entry = self.zone.table().get(key, self.now(), site.zone.inactive)?;
            (entry.age < site.conf.valid.known()).then_some(entry)
        };
        let entry = match question {
            Question::Owner(key) => fresh(key)?,
            // It may have turned out meanwhile that the token never masquerades.
            Question::Masquerade { key, owner } => fresh(key)
                .or_else(|| fresh(owner).filter(|entry| entry.masquerade == Masquerade::Never))?,
        };
        Some(Outcome::User(
            Answer {
                user: entry.user,
                masquerade: entry.masquerade,
            },
            Status::Shared,
        ))
    }

    /// A request takes a seat. A lookup to send if it is to lead.
    ///
    /// # Errors
    ///
    /// There is no memory for a seat.
    pub(super) fn board(
        &mut self,
        waiter: &mut Waiter,
    ) -> Result<Option<Departure>, TryReserveError> {
        let question = waiter.question;
        let key = *question.key();
        let me = NonNull::from(&mut *waiter);
        self.forget_if_lost(&key);
        if let Some(flight) = self.flights.get_mut(&key) {
            waiter.seat = Some(flight.seats.take(me)?);
            return Ok(None);
        }
        self.reserve()?;
        let mut seats = Seats::default();
        let seat = seats.take(me)?;
        let (site, until) = (waiter.site, waiter.deadline());
        let begun = if site.conf.most_lookups() <= self.full_at {
            // Others wait for a place already.
            Begun::Wait(Wait::Place)
        } else {
            self.begin(&site, &question, until, false)
        };
        let (stage, order) = match begun {
            Begun::Landed(outcome) => {
                waiter.deliver(outcome);
                return Ok(None);
            }
            Begun::Lead(permit, admitted) => {
                let order = self.order(&site, question, (permit, admitted), until);
                (order.stage(Some(seat)), Some(order))
            }
            Begun::Wait(wait) => {
                if wait != Wait::Lookup {
                    self.count(Counter::Queued);
                }
                self.wait(key, wait);
                self.pause = 1;
                self.poll.reset(1);
                (Stage::Waiting(wait), None)
            }
        };
        waiter.seat = Some(seat);
        let flight = Flight {
            question,
            stage,
            seats,
            until,
        };
        self.flights.insert(key, flight);
        let request = waiter.request;
        Ok(order.map(|order| Departure { request, order }))
    }

    /// Room for one more flight.
    fn reserve(&mut self) -> Result<(), TryReserveError> {
        self.flights.try_reserve(1)?;
        self.following.try_reserve(1)?;
        self.turns.try_reserve(1)
    }

    /// Puts a flight in the line where it will be polled.
    fn wait(&mut self, key: Key, wait: Wait) {
        match wait {
            Wait::Lookup => self.following.push(key),
            Wait::Word | Wait::Place => self.turns.push_back(key),
        }
    }

    /// A flight for which nobody waits, if its lookup can be sent at once.
    pub(super) fn board_nobody(
        &mut self,
        request: Request,
        site: &Site,
        question: Question,
    ) -> Option<Departure> {
        let key = *question.key();
        self.forget_if_lost(&key);
        let known = self.flights.contains_key(&key) || self.refused.get(&key, self.now()).is_some();
        if known || self.reserve().is_err() {
            return None;
        }
        let deadline = self.now().plus(site.conf.hold());
        let Begun::Lead(permit, admitted) = self.begin(site, &question, deadline, false) else {
            return None;
        };
        self.count(Counter::Refreshes);
        let order = self.order(site, question, (permit, admitted), deadline);
        let flight = Flight {
            question,
            stage: order.stage(None),
            seats: Seats::default(),
            until: deadline,
        };
        self.flights.insert(key, flight);
        Some(Departure { request, order })
    }

    fn order(
        &mut self,
        site: &Site,
        question: Question,
        (permit, admitted): (Permit, Admit),
        deadline: Millis,
    ) -> Order {
        self.count(Counter::Lookups);
        self.lookups += 1;
        Order {
            id: self.lookups,
            site: *site,
            question,
            permit,
            admitted,
            deadline,
            sent: Instant::now(),
            is_fair: true,
        }
    }

    /// Tells everyone on the flight of that lookup how it ended, and forgets the flight. One that was taken for lost has
    /// none any more.
    pub(super) fn land_lookup(&mut self, order: &Order, outcome: Outcome) {
        let key = order.question.key();
        let is_its = |flight: &Flight| matches!(flight.stage, Stage::Leading { lookup, .. } if lookup == order.id);
        if self.flights.get(key).is_some_and(is_its) {
            self.land(key, outcome);
        }
    }

    /// Tells everyone on a flight how it ended, and forgets it.
    fn land(&mut self, key: &Key, outcome: Outcome) {
        let Some(flight) = self.flights.remove(key) else {
            return;
        };
        for (seat, waiter) in flight.seats.waiters.into_iter().enumerate() {
            let Some(mut waiter) = waiter else { continue };
            let leads =
                matches!(flight.stage, Stage::Leading { seat: leader, .. } if leader == Some(seat));
            let outcome = match outcome {
                Outcome::User(answer, Status::Miss) if !leads => {
                    Outcome::User(answer, Status::Shared)
                }
                other => other,
            };
            // SAFETY: a waiter leaves its seat before it is freed.
            unsafe { waiter.as_mut() }.deliver(outcome);
        }
    }

    /// Looks after the flights that are not led from here; gives the lookups that can be sent now.
    ///
    /// Who waits for a place keeps it in the line: the first in it is the first to go, unless it is too late for that. Who
    /// only waits for a word is passed by.
    pub(super) fn poll(&mut self) -> Vec<Departure> {
        let mut departures = Vec::new();
        let before = self.flights.len();
        for key in core::mem::take(&mut self.following) {
            if let Some(wait) = self.advance(key, &mut departures) {
                self.wait(key, wait);
            }
        }
        self.full_at = 0;
        let mut passed_by = Vec::new();
        while let Some((key, is_last)) = self.next_turn() {
            match self.advance(key, &mut departures) {
                Some(Wait::Word) => passed_by.push(key),
                Some(Wait::Place) if is_last => {
                    self.turns.push_back(key);
                    break;
                }
                Some(Wait::Place) => {
                    self.turns.push_front(key);
                    break;
                }
                Some(Wait::Lookup) => self.following.push(key),
                None => {}
            }
            if passed_by.len() == COLLISIONS {
                break;
            }
        }
        for key in passed_by.into_iter().rev() {
            self.turns.push_front(key);
        }
        let moved = !departures.is_empty() || self.flights.len() != before;
        self.pause = if moved {
            1
        } else {
            (self.pause * 2).min(LONGEST_PAUSE)
        };
        if !self.following.is_empty() || !self.turns.is_empty() {
            self.poll.reset(usize::try_from(self.pause).unwrap_or(1));
        }
        departures
    }

    /// Takes the next out of the line, and tells whether it was the last in it.
    ///
    /// That is the first in the line, but not if it would have gone on before an answer came: when more come than whoami
    /// can answer, all who are first are about to leave, and lookups for them help nobody in time. Then it is the last.
    fn next_turn(&mut self) -> Option<(Key, bool)> {
        while let Some(key) = self.turns.front() {
            let first = self
                .flights
                .get(key)
                .and_then(|flight| flight.seats.first());
            let Some((_, waiter)) = first else {
                self.flights.remove(key);
                self.turns.pop_front();
                continue;
            };
            // SAFETY: a waiter leaves its seat before it is freed.
            let deadline = unsafe { waiter.as_ref() }.deadline();
            if deadline >= self.now().plus(self.takes) {
                break;
            }
            return Some((self.turns.pop_back()?, true));
        }
        Some((self.turns.pop_front()?, false))
    }

    /// Moves one flight on that is not led from here; gives what it still waits for.
    fn advance(&mut self, key: Key, departures: &mut Vec<Departure>) -> Option<Wait> {
        let flight = self.flights.get(&key)?;
        let question = flight.question;
        let Some((seat, waiter)) = flight.seats.first() else {
            self.flights.remove(&key);
            return None;
        };
        // SAFETY: a waiter leaves its seat before it is freed.
        let waiter = unsafe { waiter.as_ref() };
        if let Some(outcome) = self.known(&waiter.site, &question) {
            self.land(&key, outcome);
            return None;
        }
        let until = self.now().plus(waiter.site.conf.hold());
        let mut waits = None;
        let stage = match self.begin(&waiter.site, &question, until, true) {
            Begun::Landed(outcome) => {
                self.remember(&waiter.site, &key, outcome);
                self.land(&key, outcome);
                return None;
            }
            Begun::Wait(wait) => {
                waits = Some(wait);
                Stage::Waiting(wait)
            }
            Begun::Lead(permit, admitted) => {
                let order = self.order(&waiter.site, question, (permit, admitted), until);
                let stage = order.stage(Some(seat));
                let request = waiter.request;
                departures.push(Departure { request, order });
                stage
            }
        };
        if let Some(flight) = self.flights.get_mut(&key) {
            (flight.stage, flight.until) = (stage, until);
        }
        waits
    }
}

impl Order {
    fn stage(&self, seat: Option<usize>) -> Stage {
        Stage::Leading {
            lookup: self.id,
            seat,
        }
    }
}

//! The flights of a worker: who waits for which lookup.
//!
//! A request takes a seat in the flight of its key, and leaves it when it goes away or has its outcome. Whether the flight
//! has a lookup of its own is decided by the zone's array of flights, its breaker and its table, in that order.

use core::ptr::NonNull;
use std::time::Instant;

use matrix_user_hash_core::breaker::Admit;
use matrix_user_hash_core::flight::{Asker, Claim, Outcome as Ended, Permit};
use matrix_user_hash_core::key::Key;
use matrix_user_hash_core::metrics::Counter;
use matrix_user_hash_core::refused::Verdict;
use matrix_user_hash_core::table::Masquerade;
use matrix_user_hash_core::time::Millis;
use matrix_user_hash_core::whoami::FailureKind;

use super::{Local, is_alive};
use crate::lookup::Order;
use crate::phase::{Question, Site};
use crate::request::Request;
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
    /// By seat; an empty one is of a request that has gone.
    waiters: Vec<Option<NonNull<Waiter>>>,
    /// How many seats are taken.
    taken: usize,
    /// When a lookup of ours has ended, if nothing went wrong with it.
    until: Millis,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Our lookup is on its way, for the request in that seat (or for nobody, in the background).
    Leading(Option<usize>),
    /// Another worker's lookup is.
    Following,
    /// There is no lookup yet.
    Turn,
}

/// A lookup to send: done outside of the borrow.
pub(super) struct Departure {
    pub(super) request: Request,
    pub(super) order: Order,
}

/// How a flight may begin.
enum Begun {
    Lead(Permit, Admit),
    Wait(Stage),
    Landed(Outcome),
}

impl Local {
    /// A request gives its seat in a flight back. True if that flight was still waiting for a turn.
    pub fn leave(&mut self, key: &Key, seat: usize) -> bool {
        let Some(flight) = self.flights.get_mut(key) else {
            return false;
        };
        if flight
            .waiters
            .get_mut(seat)
            .and_then(Option::take)
            .is_some()
        {
            flight.taken -= 1;
        }
        let turn = flight.stage == Stage::Turn;
        self.forget_if_empty(key);
        turn
    }

    /// A flight that is not ours to lead, and for which nobody waits any more, is of no use.
    fn forget_if_empty(&mut self, key: &Key) {
        let empty =
            |flight: &Flight| flight.taken == 0 && !matches!(flight.stage, Stage::Leading(_));
        if self.flights.get(key).is_some_and(empty) {
            self.flights.remove(key);
        }
    }

    /// A lookup that a panic has cut short never lands; nobody should wait for it for ever.
    fn forget_if_lost(&mut self, key: &Key) {
        let now = self.now();
        let lost = |flight: &Flight| {
            matches!(flight.stage, Stage::Leading(_)) && flight.until.plus(GRACE) < now
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
            Claim::Same => return Begun::Wait(Stage::Following),
            Claim::Turn => return Begun::Wait(Stage::Turn),
            Claim::Published(Ended::Stored) => return Begun::Wait(Stage::Turn),
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
    pub(super) fn board(&mut self, waiter: &mut Waiter) -> Option<Departure> {
        let question = waiter.question;
        let key = *question.key();
        let me = NonNull::from(&mut *waiter);
        self.forget_if_lost(&key);
        if let Some(flight) = self.flights.get_mut(&key) {
            waiter.seat = Some(flight.waiters.len());
            flight.waiters.push(Some(me));
            flight.taken += 1;
            return None;
        }
        let begun = self.begin(&waiter.site, &question, waiter.deadline(), false);
        let (stage, departure) = match begun {
            Begun::Landed(outcome) => {
                waiter.deliver(outcome);
                return None;
            }
            Begun::Lead(permit, admitted) => {
                let until = waiter.deadline();
                let order = self.order(&waiter.site, question, (permit, admitted), until);
                (
                    Stage::Leading(Some(0)),
                    Some(Departure {
                        request: waiter.request,
                        order,
                    }),
                )
            }
            Begun::Wait(stage) => (stage, None),
        };
        match stage {
            Stage::Following => self.following.push(key),
            Stage::Turn => {
                self.count(Counter::Queued);
                self.turns.push_back(key);
            }
            Stage::Leading(_) => {}
        }
        waiter.seat = Some(0);
        self.flights.insert(
            key,
            Flight {
                question,
                stage,
                waiters: vec![Some(me)],
                taken: 1,
                until: waiter.deadline(),
            },
        );
        if stage == Stage::Following || stage == Stage::Turn {
            self.pause = 1;
            self.poll.reset(1);
        }
        departure
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
        if self.flights.contains_key(&key) || self.refused.get(&key, self.now()).is_some() {
            return None;
        }
        let deadline = self.now().plus(site.conf.hold());
        let Begun::Lead(permit, admitted) = self.begin(site, &question, deadline, false) else {
            return None;
        };
        self.count(Counter::Refreshes);
        self.flights.insert(
            key,
            Flight {
                question,
                stage: Stage::Leading(None),
                waiters: Vec::new(),
                taken: 0,
                until: deadline,
            },
        );
        Some(Departure {
            request,
            order: self.order(site, question, (permit, admitted), deadline),
        })
    }

    fn order(
        &self,
        site: &Site,
        question: Question,
        (permit, admitted): (Permit, Admit),
        deadline: Millis,
    ) -> Order {
        self.count(Counter::Lookups);
        Order {
            site: *site,
            question,
            permit,
            admitted,
            deadline,
            sent: Instant::now(),
        }
    }

    /// Tells everyone on a flight how it ended, and forgets it.
    pub(super) fn land(&mut self, key: &Key, outcome: Outcome) {
        let Some(flight) = self.flights.remove(key) else {
            return;
        };
        for (seat, waiter) in flight.waiters.into_iter().enumerate() {
            let Some(mut waiter) = waiter else { continue };
            let outcome = match outcome {
                Outcome::User(answer, Status::Miss)
                    if flight.stage != Stage::Leading(Some(seat)) =>
                {
                    Outcome::User(answer, Status::Shared)
                }
                other => other,
            };
            // SAFETY: a waiter leaves its seat before it is freed.
            unsafe { waiter.as_mut() }.deliver(outcome);
        }
    }

    /// Looks after the flights that are not led from here; gives the lookups that can be sent now.
    pub(super) fn poll(&mut self) -> Vec<Departure> {
        let mut departures = Vec::new();
        let before = self.flights.len();
        for key in core::mem::take(&mut self.following) {
            self.advance(key, &mut departures);
        }
        let mut collisions = 0;
        for _ in 0..self.turns.len() {
            if collisions == COLLISIONS {
                break;
            }
            let Some(key) = self.turns.pop_front() else {
                break;
            };
            if self.advance(key, &mut departures) == Some(Stage::Turn) {
                collisions += 1;
            }
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

    /// Moves one flight on that is not led from here; gives the stage in which it still waits.
    fn advance(&mut self, key: Key, departures: &mut Vec<Departure>) -> Option<Stage> {
        self.forget_if_empty(&key);
        let flight = self.flights.get(&key)?;
        if matches!(flight.stage, Stage::Leading(_)) {
            return None;
        }
        let question = flight.question;
        let (seat, waiter) = flight
            .waiters
            .iter()
            .enumerate()
            .find_map(|(i, w)| w.map(|w| (i, w)))?;
        // SAFETY: a waiter leaves its seat before it is freed.
        let waiter = unsafe { waiter.as_ref() };
        if let Some(outcome) = self.known(&waiter.site, &question) {
            self.land(&key, outcome);
            return None;
        }
        let deadline = self.now().plus(waiter.site.conf.hold());
        let stage = match self.begin(&waiter.site, &question, deadline, true) {
            Begun::Landed(outcome) => {
                self.remember(&waiter.site, &key, outcome);
                self.land(&key, outcome);
                return None;
            }
            Begun::Lead(permit, admitted) => {
                let order = self.order(&waiter.site, question, (permit, admitted), deadline);
                departures.push(Departure {
                    request: waiter.request,
                    order,
                });
                Stage::Leading(Some(seat))
            }
            Begun::Wait(stage) => stage,
        };
        if let Some(flight) = self.flights.get_mut(&key) {
            flight.stage = stage;
            flight.until = deadline;
        }
        match stage {
            Stage::Following => self.following.push(key),
            Stage::Turn => self.turns.push_back(key),
            Stage::Leading(_) => return None,
        }
        Some(stage)
    }
}

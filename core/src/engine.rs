//! What a worker process of nginx does next about its requests: the decisions, without nginx.
//!
//! One [`Engine`] for each worker process and zone. A request comes in by [`Engine::arrive`], which knows its user or gives a
//! [`Question`]; with that it joins a *flight* ([`Engine::join`]), in which all requests of the process wait that ask about
//! the same key. A flight leads a lookup of its own, or waits: for another process's lookup of the same key, for a place
//! below `max_lookups`, or for the word of its key in the array of claims. What waits is looked after by [`Engine::poll`].
//! When a lookup has ended, [`Engine::done`] keeps what it says and wakes those who wait.
//!
//! The engine calls nothing and reads no clock. What is to be done it puts into a queue of [`Command`]s, which whoever calls
//! it carries out ([`Engine::next_command`]). `W` names a waiting request: a pointer in nginx, a number in a simulation
//! (`tests/simulation.rs`). Nothing here fails without memory but [`Engine::join`], which then changes nothing.

use std::collections::{HashMap, TryReserveError, VecDeque};

use crate::key::Key;
use crate::metrics::Counter;
use crate::negative::NegativeCache;
use crate::shm::breaker::Admit;
use crate::shm::claims::{Asker, Claim, Permit};
use crate::shm::counters::Slot as CounterSlot;
use crate::shm::places::Places;
use crate::shm::zone::Zone;
use crate::time::{Millis, Seconds};
use crate::user::Masquerade;
use crate::whoami::{FailureKind, Identity, LookupError, LookupResult};

mod client;
mod decide;
mod flight;
mod policy;
mod queue;
mod status;

pub use client::Client;
pub use decide::{Parts, Question, Resolution, Step};
pub use status::Status;

use flight::{Flight, Slot, Slots, Stage};
use queue::{Next, Queue, Standing};

/// The longest pause between polls, in milliseconds.
pub const LONGEST_PAUSE: u64 = 20;
/// The same while something waits for a place: this long may a place that another process gives back stay free.
const LONGEST_PLACE_PAUSE: u64 = 4;
/// By how much a lookup may end late, in milliseconds: its timer runs in its own time, and the event loop may be busy.
pub const GRACE: u64 = 1000;
/// How many that found no place are passed by in one poll, for others with higher limits.
const MOST_ASIDE: usize = 64;
/// Commands beside those for requests and flights: log lines and the poll.
const SPARE_COMMANDS: usize = 16;

/// What a location says about lookups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long an answer is fresh.
    pub fresh: Seconds,
    /// Whether an answer past its freshness still answers.
    pub serves_stale: bool,
    /// The longest time for which a refusal is remembered, in milliseconds.
    pub refused: u64,
    /// How long a failure is remembered, in milliseconds.
    pub failed: u64,
    /// How many lookups may be in flight in the zone.
    pub max_lookups: u32,
    /// How long a request may be held, and a lookup may take, in milliseconds.
    pub timeout: u64,
}

/// A request that asks.
#[derive(Clone, Copy, Debug)]
pub struct Ask<W> {
    /// The request.
    pub waiter: W,
    /// What it asks.
    pub question: Question,
    /// What its location says.
    pub terms: Terms,
    /// Whose request it is, for fairness.
    pub client: Client,
    /// When it goes on without an answer.
    pub deadline: Millis,
}

/// What became of a request that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// Its outcome is known already.
    Settled(Outcome),
    /// It waits, in the slot with that number, and goes on by [`Command::Wake`] or [`Engine::leave`].
    Waits(usize, WaitsFor),
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitsFor {
    /// A lookup of this worker process.
    Answer,
    /// Another worker process's lookup of the same key.
    Lookup,
    /// The word of its key, which is held for another key.
    Word,
    /// A place below `matrix_user_hash_max_lookups`.
    Place,
}

impl std::fmt::Display for WaitsFor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Answer => "the answer to a lookup of this worker process",
            Self::Lookup => "another worker process's lookup of the same token",
            Self::Word => "the word of its token, which another lookup holds",
            Self::Place => "a place below matrix_user_hash_max_lookups",
        })
    }
}

/// What a request waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whose the token is.
    pub result: LookupResult,
    /// How this request came by that.
    pub status: Status,
}

impl Outcome {
    /// The request's own time is up.
    pub const TIME_IS_UP: Self = Self {
        result: Err(LookupError::Failed(FailureKind::Timeout)),
        status: Status::Timeout,
    };

    fn shared(result: LookupResult) -> Self {
        let status = match result {
            Ok(_) => Status::Shared,
            Err(error) => Status::of_error(error),
        };
        Self { result, status }
    }
}

/// A lookup that is to be sent.
#[derive(Debug)]
#[must_use = "it holds its key and a place until the deadline"]
pub struct Job {
    /// Its number in this process.
    pub id: u64,
    /// What is asked.
    pub question: Question,
    /// When it is given up.
    pub deadline: Millis,
    /// How long that is, in milliseconds.
    pub given: u64,
    permit: Permit,
    admitted: Admit,
    terms: Terms,
}

/// How a lookup ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// What came of it.
    pub result: LookupResult,
    /// How long it took, in microseconds.
    pub micros: u64,
    /// Whether its failure would be the homeserver's: one that was given too little time says nothing.
    pub is_fair: bool,
}

/// What is to be done.
#[derive(Debug)]
pub enum Command<W> {
    /// A lookup is to be sent, built from that request. [`Engine::done`] tells how it ended, in any case.
    Send(Job, W),
    /// That request goes on.
    Wake(W, Outcome),
    /// [`Engine::poll`] is to be called in that many milliseconds, and not at any earlier time that was asked for before
    /// only if that is later; 0: as soon as this turn of the event loop is over.
    PollIn(u64),
    /// That is to be logged.
    Log(Event),
}

/// What an operator should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Lookups are suspended: they failed repeatedly.
    Suspended,
    /// The homeserver answers again.
    Resumed,
    /// An entry in use was evicted.
    ZoneSmall,
    /// A request went on without having had a place below that limit.
    Overloaded {
        /// `matrix_user_hash_max_lookups` of its location.
        limit: u32,
    },
}

/// What one worker process keeps beside a zone, and what it does next.
pub struct Engine<'m, W, A> {
    zone: Zone<'m>,
    inactive: Seconds,
    pid: u32,
    alive: A,
    counters: CounterSlot<'m>,
    places: Places<'m>,
    negative: NegativeCache,
    flights: HashMap<Key, Flight<W>>,
    /// The keys of flights that wait for another process's lookup.
    following: Vec<Key>,
    /// The flights that wait for a place or for their word.
    queue: Queue,
    /// How many those are.
    queued: usize,
    /// How many of them found no place.
    placeless: usize,
    commands: VecDeque<Command<W>>,
    /// How many requests wait.
    waiters: usize,
    /// How long lookups take that are answered, in milliseconds: the last counts an eighth.
    latency: u64,
    /// How many lookups this process has sent.
    jobs: u64,
    poll_at: Option<Millis>,
    pause: u64,
    failing_since: Option<Millis>,
}

/// How a flight may begin.
enum Begun {
    Lead(Permit, Admit),
    Wait(WaitsFor),
    Settled(Outcome),
}

/// What became of a flight that was looked after.
enum Moved {
    /// It is settled, or was forgotten.
    Ended,
    /// Its lookup is to be sent.
    Sent,
    /// It waits.
    Waits(WaitsFor),
}

impl<'m, W: Copy + Eq, A: Fn(u32) -> bool> Engine<'m, W, A> {
    /// For the process with that number (`ngx_worker`) and process id. Entries go when unused for `inactive`. `alive` tells
    /// whether a process exists.
    pub fn new(zone: Zone<'m>, inactive: Seconds, process: usize, pid: u32, alive: A) -> Self {
        Self {
            zone,
            inactive,
            pid,
            alive,
            counters: zone.counters().slot(process),
            places: zone.places(process),
            negative: NegativeCache::new(),
            flights: HashMap::new(),
            following: Vec::new(),
            queue: Queue::default(),
            queued: 0,
            placeless: 0,
            commands: VecDeque::new(),
            waiters: 0,
            latency: 0,
            jobs: 0,
            poll_at: None,
            pause: 1,
            failing_since: None,
        }
    }

    /// Adds one to `counter`.
    #[inline]
    pub fn count(&self, counter: Counter) {
        self.counters.count(counter);
    }

    /// How many requests wait.
    pub fn waiters(&self) -> usize {
        self.waiters
    }

    /// What is to be done next. Carrying one out may call the engine again, which puts more behind those that are left.
    pub fn next_command(&mut self) -> Option<Command<W>> {
        self.commands.pop_front()
    }

    /// A request takes a slot in the flight of its key.
    ///
    /// # Errors
    ///
    /// There is no memory to wait in.
    pub fn join(&mut self, ask: &Ask<W>, now: Millis) -> Result<Joined, TryReserveError> {
        let key = *ask.question.key();
        self.forget_if_lost(&key, now);
        self.commands
            .try_reserve(self.waiters + self.flights.len() + SPARE_COMMANDS)?;
        let waiting = Slot {
            waiter: ask.waiter,
            terms: ask.terms,
            deadline: ask.deadline,
        };
        if let Some(flight) = self.flights.get_mut(&key) {
            let slot = flight.slots.take(waiting)?;
            self.waiters += 1;
            let waits_for = match flight.stage {
                Stage::Leading { .. } => WaitsFor::Answer,
                Stage::Waiting(waits_for) => waits_for,
            };
            return Ok(Joined::Waits(slot, waits_for));
        }
        let time = self.places.time();
        self.reserve()?;
        self.queue.try_reserve(ask.client, time)?;
        let mut slots = Slots::default();
        let slot = slots.take(waiting)?;
        let tag = self.queue.tag(ask.client, time);
        let behind = self.is_behind(tag, ask.terms.max_lookups);
        let until = now.plus(ask.terms.timeout);
        let (stage, waits_for) =
            match self.begin(&ask.question, &ask.terms, tag, behind, false, now) {
                Begun::Settled(outcome) => return Ok(Joined::Settled(outcome)),
                Begun::Lead(permit, admitted) => {
                    self.places.serve(tag);
                    let job = self.job(ask.question, &ask.terms, permit, admitted, now);
                    let stage = Stage::Leading {
                        job: job.id,
                        slot: Some(slot),
                    };
                    self.commands.push_back(Command::Send(job, ask.waiter));
                    (stage, WaitsFor::Answer)
                }
                Begun::Wait(waits_for) => {
                    if waits_for == WaitsFor::Lookup {
                        self.following.push(key);
                    } else {
                        self.queue
                            .push(ask.client, key, ask.terms.max_lookups, time);
                    }
                    self.pause = 1;
                    self.poll_in(1, now);
                    (Stage::Waiting(waits_for), waits_for)
                }
            };
        self.waiters += 1;
        let flight = Flight {
            question: ask.question,
            stage: Stage::Waiting(WaitsFor::Lookup),
            slots,
            client: ask.client,
            until,
        };
        self.flights.insert(key, flight);
        self.set_stage(&key, stage);
        Ok(Joined::Waits(slot, waits_for))
    }

    /// A lookup that refreshes what is stale, if it can be sent at once; if not, the next request tries again.
    pub fn refresh(
        &mut self,
        question: Question,
        terms: &Terms,
        client: Client,
        now: Millis,
    ) -> Option<Job> {
        let key = *question.key();
        self.forget_if_lost(&key, now);
        let known = self.flights.contains_key(&key)
            || self.negative.get(&key, terms.timeout, now).is_some();
        if known || self.reserve().is_err() || self.commands.try_reserve(SPARE_COMMANDS).is_err() {
            return None;
        }
        let tag = self.queue.tag(client, self.places.time());
        let behind = self.placeless > 0;
        let Begun::Lead(permit, admitted) = self.begin(&question, terms, tag, behind, false, now)
        else {
            return None;
        };
        self.count(Counter::Refreshes);
        self.places.serve(tag);
        let job = self.job(question, terms, permit, admitted, now);
        let flight = Flight {
            question,
            stage: Stage::Leading {
                job: job.id,
                slot: None,
            },
            slots: Slots::default(),
            client,
            until: job.deadline,
        };
        self.flights.insert(key, flight);
        Some(job)
    }

    /// A request gives its slot back: its client has left. Nothing more is done for it.
    ///
    /// Tells what it waited for; `None` if it did not wait any more.
    pub fn leave(&mut self, key: &Key, slot: usize, waiter: W, now: Millis) -> Option<WaitsFor> {
        self.withdraw(waiter, now);
        let flight = self.flights.get_mut(key)?;
        if !flight.slots.leave(slot, waiter) {
            return None;
        }
        self.waiters -= 1;
        let waits_for = match &mut flight.stage {
            Stage::Leading { slot: leader, .. } => {
                if *leader == Some(slot) {
                    *leader = None;
                }
                return Some(WaitsFor::Answer);
            }
            Stage::Waiting(waits_for) => *waits_for,
        };
        if flight.slots.first().is_none() {
            let client = flight.client;
            self.remove(key);
            if waits_for != WaitsFor::Lookup {
                let flights = &self.flights;
                self.queue.leave(client, |key| {
                    flights.get(key).is_some_and(Flight::is_queued)
                });
            }
        }
        Some(waits_for)
    }

    /// A request's own time is up: as [`Self::leave`], and an operator hears of it if it never had a place.
    pub fn give_up(
        &mut self,
        key: &Key,
        slot: usize,
        waiter: W,
        limit: u32,
        now: Millis,
    ) -> Option<WaitsFor> {
        let waited_for = self.leave(key, slot, waiter, now);
        if waited_for == Some(WaitsFor::Place) {
            self.overloaded(limit, now);
        }
        waited_for
    }

    /// A lookup that was to be sent, and cannot be built from that request any more, which has left the location: nothing is
    /// learnt. The request leaves its slot, and another one that waits leads instead.
    pub fn give_back(&mut self, job: Job, slot: Option<usize>, waiter: W, now: Millis) {
        let key = *job.question.key();
        if let Some(slot) = slot {
            self.leave(&key, slot, waiter, now);
        }
        self.unsent(job, now);
    }

    /// As [`Self::give_back`], for a request that still waits, but does not ask any more what it asked: it goes on without an
    /// answer. The others of its flight still get one.
    pub fn reject(&mut self, job: Job, slot: Option<usize>, waiter: W, now: Millis) {
        self.give_back(job, slot, waiter, now);
        let outcome = Outcome::own(Err(LookupError::Failed(FailureKind::Local)));
        self.commands.push_back(Command::Wake(waiter, outcome));
    }

    fn unsent(&mut self, job: Job, now: Millis) {
        let key = *job.question.key();
        self.zone.flights().release(job.permit);
        self.zone.breaker().unsent(job.admitted, now);
        if self.leads(&key, job.id) {
            self.set_stage(&key, Stage::Waiting(WaitsFor::Lookup));
            self.following.push(key);
            self.pause = 1;
            self.poll_in(0, now);
        }
    }

    /// Looks after the flights that wait. To be called when [`Command::PollIn`] says so.
    pub fn poll(&mut self, now: Millis) {
        self.poll_at = None;
        let before = (self.flights.len(), self.jobs);
        self.poll_following(now);
        match self.poll_queue(now) {
            Some((tag, limit)) => self.places.wait(tag, limit, now),
            None => self.places.leave(),
        }
        let moved = (self.flights.len(), self.jobs) != before;
        let longest = if self.queued > 0 {
            LONGEST_PLACE_PAUSE
        } else {
            LONGEST_PAUSE
        };
        self.pause = if moved {
            1
        } else {
            (self.pause * 2).min(longest)
        };
        if self.queued > 0 || !self.following.is_empty() {
            self.poll_in(self.pause, now);
        }
    }

    fn poll_following(&mut self, now: Millis) {
        let (mut kept, end) = (0, self.following.len());
        for index in 0..end {
            let key = self.following[index];
            let Some(flight) = self.flights.get(&key) else {
                continue;
            };
            if flight.stage != Stage::Waiting(WaitsFor::Lookup) {
                continue;
            }
            let (client, time) = (flight.client, self.places.time());
            let limit = self.limit_of(&key);
            let tag = self.queue.tag(client, time);
            let behind = self.is_behind(tag, limit);
            let keep = match self.advance(&key, tag, behind, now) {
                Moved::Ended => false,
                Moved::Sent => {
                    self.places.serve(tag);
                    false
                }
                Moved::Waits(WaitsFor::Place | WaitsFor::Word) => {
                    let fits = self.queue.try_reserve(client, time).is_ok();
                    if fits {
                        self.queue.push(client, key, limit, time);
                    } else {
                        self.set_stage(&key, Stage::Waiting(WaitsFor::Lookup));
                    }
                    !fits
                }
                Moved::Waits(_) => true,
            };
            if keep {
                self.following[kept] = key;
                kept += 1;
            }
        }
        // Behind them may be some that came meanwhile.
        self.following.drain(kept..end);
    }

    /// Gives places to those who are next. Tells the start tag and the limit of the first who still waits for one.
    fn poll_queue(&mut self, now: Millis) -> Option<(u64, u32)> {
        // Those that found no place, while others with higher limits may, or whose word is held.
        let mut aside: [Option<Next>; MOST_ASIDE] = [None; MOST_ASIDE];
        let (mut passed, mut full_at, mut first) = (0, 0, None);
        while self.queued > passed && passed < MOST_ASIDE && full_at < self.queue.top_limit() {
            let time = self.places.time();
            let (flights, latency) = (&self.flights, self.latency);
            let next = self
                .queue
                .next(time, |key| standing(flights, key, latency, now));
            let Some(next) = next else { break };
            let limit = self.limit_of(&next.key);
            let moved = if limit > full_at {
                self.advance(&next.key, next.tag, false, now)
            } else {
                Moved::Waits(WaitsFor::Place)
            };
            match moved {
                Moved::Waits(WaitsFor::Lookup) => {
                    self.queue.passed(&next, time);
                    self.following.push(next.key);
                }
                Moved::Waits(waits_for) => {
                    if waits_for == WaitsFor::Place {
                        full_at = full_at.max(limit);
                        first = first.or(Some((next.tag, limit)));
                    }
                    aside[passed] = Some(next);
                    passed += 1;
                }
                Moved::Sent => {
                    self.places.serve(next.tag);
                    self.queue.served(&next, self.places.time());
                }
                Moved::Ended => self.queue.passed(&next, time),
            }
        }
        for next in aside.iter().rev().flatten() {
            self.queue.kept(next, self.places.time());
        }
        if self.queued == 0 {
            self.queue.clear(self.places.time());
        }
        first
    }

    /// How many lookups may be in flight, for the first who waits for that key.
    fn limit_of(&self, key: &Key) -> u32 {
        let first = self
            .flights
            .get(key)
            .and_then(|flight| flight.slots.first());
        first.map_or(0, |(_, slot)| slot.terms.max_lookups)
    }

    /// Moves one flight on that waits, with that start tag.
    fn advance(&mut self, key: &Key, tag: u64, behind: bool, now: Millis) -> Moved {
        let Some(flight) = self.flights.get(key) else {
            return Moved::Ended;
        };
        let question = flight.question;
        let Some((slot, first)) = flight.slots.first() else {
            self.remove(key);
            return Moved::Ended;
        };
        let Slot { waiter, terms, .. } = *first;
        if let Some(outcome) = self.known(&question, &terms, now) {
            self.settle(key, outcome, terms.timeout, now);
            return Moved::Ended;
        }
        match self.begin(&question, &terms, tag, behind, true, now) {
            Begun::Settled(outcome) => {
                if let Err(error) = outcome.result {
                    self.remember(key, error, &terms, terms.timeout, now);
                }
                self.settle(key, outcome, terms.timeout, now);
                Moved::Ended
            }
            Begun::Wait(waits_for) => {
                self.set_stage(key, Stage::Waiting(waits_for));
                Moved::Waits(waits_for)
            }
            Begun::Lead(permit, admitted) => {
                let job = self.job(question, &terms, permit, admitted, now);
                if let Some(flight) = self.flights.get_mut(key) {
                    flight.until = job.deadline;
                }
                let stage = Stage::Leading {
                    job: job.id,
                    slot: Some(slot),
                };
                self.set_stage(key, stage);
                self.commands.push_back(Command::Send(job, waiter));
                Moved::Sent
            }
        }
    }

    fn set_stage(&mut self, key: &Key, stage: Stage) {
        let Some(flight) = self.flights.get_mut(key) else {
            return;
        };
        let (was_queued, lacked) = (flight.is_queued(), flight.lacks_place());
        flight.stage = stage;
        let (is_queued, lacks) = (flight.is_queued(), flight.lacks_place());
        self.queued = self.queued + usize::from(is_queued) - usize::from(was_queued);
        self.placeless = self.placeless + usize::from(lacks) - usize::from(lacked);
        if lacks && !lacked {
            self.count(Counter::Queued);
        }
    }

    fn remove(&mut self, key: &Key) -> Option<Flight<W>> {
        let flight = self.flights.remove(key)?;
        self.queued -= usize::from(flight.is_queued());
        self.placeless -= usize::from(flight.lacks_place());
        Some(flight)
    }

    /// Whether something in the queue goes first.
    fn is_behind(&self, tag: u64, limit: u32) -> bool {
        self.placeless > 0
            && limit <= self.queue.top_limit()
            && self.queue.lowest_tag().is_some_and(|lowest| lowest <= tag)
    }

    /// Whether a lookup of the key may be sent now.
    fn begin(
        &mut self,
        question: &Question,
        terms: &Terms,
        tag: u64,
        behind: bool,
        waited: bool,
        now: Millis,
    ) -> Begun {
        let suspended =
            Begun::Settled(Outcome::own(Err(LookupError::Failed(FailureKind::Connect))));
        let (breaker, flights) = (self.zone.breaker(), self.zone.flights());
        if breaker.open_for(now).is_some_and(|left| left > 0) {
            self.count(Counter::Suppressed);
            return suspended;
        }
        // Nobody else asks before it has been told how this went: it may end late, and is still the only one then.
        let over = now.plus(terms.timeout).plus(GRACE);
        let has_room = |limit| flights.in_flight(now, |_| true) < limit;
        let asker = Asker {
            pid: self.pid,
            deadline: over,
            max_lookups: terms.max_lookups,
            waited,
            yields: behind || self.places.must_yield(tag, now, has_room),
            patience: terms.timeout,
        };
        let permit = match flights.claim(question.key(), &asker, now, &self.alive) {
            Claim::Leader(permit) => permit,
            Claim::Same => return Begun::Wait(WaitsFor::Lookup),
            Claim::Held => return Begun::Wait(WaitsFor::Word),
            Claim::Full => return Begun::Wait(WaitsFor::Place),
            Claim::Published(error) => return Begun::Settled(Outcome::shared(Err(error))),
        };
        if let Some(outcome) = self.known(question, terms, now) {
            flights.release(permit);
            return Begun::Settled(outcome);
        }
        let admitted = breaker.admit(now, over);
        if admitted == Admit::No {
            flights.release(permit);
            self.count(Counter::Suppressed);
            return suspended;
        }
        Begun::Lead(permit, admitted)
    }

    /// What another process's lookup has left in the table.
    fn known(&self, question: &Question, terms: &Terms, now: Millis) -> Option<Outcome> {
        let fresh = |key| {
            let entry = self.zone.table().get(key, now, self.inactive)?;
            (entry.age < terms.fresh).then_some(entry)
        };
        let entry = match question {
            Question::Owner(key) => fresh(key)?,
            // It may have turned out meanwhile that the token never masquerades.
            Question::Masquerade { key, owner } => fresh(key)
                .or_else(|| fresh(owner).filter(|entry| entry.masquerade == Masquerade::Never))?,
        };
        Some(Outcome::shared(Ok(Identity {
            user: entry.user,
            masquerade: entry.masquerade,
        })))
    }

    fn job(
        &mut self,
        question: Question,
        terms: &Terms,
        permit: Permit,
        admitted: Admit,
        now: Millis,
    ) -> Job {
        self.count(Counter::Lookups);
        self.jobs += 1;
        Job {
            id: self.jobs,
            question,
            deadline: now.plus(terms.timeout),
            given: terms.timeout,
            permit,
            admitted,
            terms: *terms,
        }
    }

    /// Whether the flight of that key waits for that lookup. One that was taken for lost has no flight any more.
    fn leads(&self, key: &Key, id: u64) -> bool {
        self.flights
            .get(key)
            .is_some_and(|flight| matches!(flight.stage, Stage::Leading { job, .. } if job == id))
    }

    /// Tells everyone in a flight how it ended, and forgets the flight. Requests that would wait longer than the `given`
    /// milliseconds stay if the lookup took too long: one of them asks again.
    fn settle(&mut self, key: &Key, outcome: Outcome, given: u64, now: Millis) {
        let Some(mut flight) = self.remove(key) else {
            return;
        };
        let leader = match flight.stage {
            Stage::Leading { slot, .. } => slot,
            Stage::Waiting(_) => None,
        };
        let too_long = outcome.result == Err(LookupError::Failed(FailureKind::Timeout));
        let (commands, waiters) = (&mut self.commands, &mut self.waiters);
        flight.slots.drain(|index, slot| {
            if too_long && slot.terms.timeout > given && slot.deadline > now {
                return false;
            }
            let outcome = if leader == Some(index) {
                outcome
            } else {
                Outcome::shared(outcome.result)
            };
            commands.push_back(Command::Wake(slot.waiter, outcome));
            *waiters -= 1;
            true
        });
        if flight.slots.first().is_some() {
            flight.stage = Stage::Waiting(WaitsFor::Lookup);
            self.flights.insert(*key, flight);
            self.following.push(*key);
            self.poll_in(0, now);
        }
    }

    /// A lookup that a panic has cut short never ends; nobody should wait for it for ever.
    fn forget_if_lost(&mut self, key: &Key, now: Millis) {
        let lost = |flight: &Flight<W>| {
            matches!(flight.stage, Stage::Leading { .. }) && flight.until.plus(GRACE) < now
        };
        if self.flights.get(key).is_some_and(lost) {
            self.settle(key, Outcome::TIME_IS_UP, u64::MAX, now);
        }
    }

    /// Takes back what was to be done for a request that leaves.
    fn withdraw(&mut self, waiter: W, now: Millis) {
        if self.commands.is_empty() {
            return;
        }
        // Each is taken out and put back: so none moves, and nothing is allocated.
        for _ in 0..self.commands.len() {
            match self.commands.pop_front() {
                Some(Command::Wake(woken, _)) if woken == waiter => {}
                Some(Command::Send(job, from)) if from == waiter => self.unsent(job, now),
                Some(other) => self.commands.push_back(other),
                None => {}
            }
        }
    }

    /// Asks to be polled in that many milliseconds, unless that will happen earlier: newcomers never push it later.
    fn poll_in(&mut self, milliseconds: u64, now: Millis) {
        let at = now.plus(milliseconds);
        if self.poll_at.is_some_and(|earlier| earlier <= at) {
            return;
        }
        self.poll_at = Some(at);
        self.commands.push_back(Command::PollIn(milliseconds));
    }

    /// Room for one more flight, and for all to be followed.
    fn reserve(&mut self) -> Result<(), TryReserveError> {
        self.flights.try_reserve(1)?;
        self.following.try_reserve(self.flights.len() + 1)
    }
}

/// What is known of a key in the queue.
fn standing<W: Copy + Eq>(
    flights: &HashMap<Key, Flight<W>>,
    key: &Key,
    latency: u64,
    now: Millis,
) -> Standing {
    let flight = flights.get(key).filter(|flight| flight.is_queued());
    match flight.and_then(|flight| flight.slots.first()) {
        None => Standing::Gone,
        Some((_, slot)) if slot.deadline < now.plus(latency) => Standing::Late,
        Some(_) => Standing::Waits,
    }
}

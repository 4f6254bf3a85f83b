//! What one worker process keeps beside a zone, and how its requests share lookups.
//!
//! For each key that is being asked about there is one [`Flight`] in the worker, with the requests that wait for it.
//! Its lookup is either our own (leading), another worker's (following), or has to wait for a turn. Leading ends with
//! a call of [`landed`]; following and waiting are polled, from 1 ms on with growing pauses.
//!
//! Nothing here calls nginx while the worker's state is borrowed: a lookup may end before its start has returned.

use core::ptr::NonNull;
use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use matrix_user_hash_core::breaker::Admit;
use matrix_user_hash_core::flight::{Asker, Claim, Outcome as Ended, Permit};
use matrix_user_hash_core::key::Key;
use matrix_user_hash_core::metrics::{Counter, Slot};
use matrix_user_hash_core::notice::Notice;
use matrix_user_hash_core::refused::{Refused, Verdict};
use matrix_user_hash_core::table::Masquerade;
use matrix_user_hash_core::time::Millis;
use matrix_user_hash_core::user::UserHash;
use matrix_user_hash_core::whoami::FailureKind;
use matrix_user_hash_core::zone::Zone;

use crate::event::{Alarm, Ring};
use crate::guard;
use crate::log;
use crate::lookup::{self, Order, Report};
use crate::phase::{Question, Site};
use crate::request::Request;
use crate::status::Status;
use crate::waiter::{Answer, Outcome, Waiter};
use crate::zone::{SharedZone, now};

/// How often the same thing is logged, in milliseconds.
const LOG_EVERY: u64 = 60_000;
/// The longest pause between polls, in milliseconds.
const LONGEST_PAUSE: u64 = 20;
/// By how much a lookup may land late: its alarm rings in its own time, and the event loop may be busy.
const GRACE: u64 = 1000;
/// Claims in one poll that find their word taken, before the rest must wait for the next.
const COLLISIONS: usize = 64;

/// What one worker keeps beside a zone.
pub struct Local {
    /// The shared part.
    pub zone: Zone<'static>,
    /// Tokens without a user.
    pub refused: Refused,
    /// Room to decode a token from a query; empty between requests.
    pub scratch: Vec<u8>,
    shared: &'static SharedZone,
    counters: Slot<'static>,
    pid: u32,
    flights: HashMap<Key, Flight>,
    following: Vec<Key>,
    turns: VecDeque<Key>,
    poll: Alarm,
    pause: u64,
    complained: Option<Millis>,
}

/// A key that is being asked about, and who waits for it.
struct Flight {
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
struct Departure {
    request: Request,
    order: Order,
}

/// How a flight may begin.
enum Begun {
    Lead(Permit),
    Wait(Stage),
    Landed(Outcome),
}

impl Local {
    /// For the worker that first uses the zone.
    pub fn new(shared: &'static SharedZone, zone: Zone<'static>) -> Self {
        // SAFETY: nginx sets both before a worker serves requests, and the cycle's log outlives the zone; `polled`
        // guards itself, and the alarm is dropped with what it belongs to.
        let (worker, pid, poll) = unsafe {
            let subject = core::ptr::from_ref(shared).cast_mut().cast();
            let poll = Alarm::new(log::cycle_log(), true, polled, subject);
            (nginx_sys::ngx_worker, nginx_sys::ngx_pid, poll)
        };
        Self {
            zone,
            refused: Refused::new(),
            scratch: Vec::new(),
            shared,
            counters: zone.counters().slot(worker),
            pid: u32::try_from(pid).unwrap_or(1),
            flights: HashMap::new(),
            following: Vec::new(),
            turns: VecDeque::new(),
            poll,
            pause: 1,
            complained: None,
        }
    }

    /// The moment of this turn of the event loop.
    pub fn now(&self) -> Millis {
        now()
    }

    /// Counts.
    pub fn count(&self, counter: Counter) {
        self.counters.count(counter);
    }

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

    /// Whether the key's flight may begin now.
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
        let asker = Asker {
            pid: self.pid,
            deadline,
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
        if self.zone.breaker().admit(now, deadline) == Admit::No {
            self.zone.flights().release(permit);
            self.count(Counter::Suppressed);
            return suspended;
        }
        Begun::Lead(permit)
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
    fn board(&mut self, waiter: &mut Waiter) -> Option<Departure> {
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
            Begun::Lead(permit) => {
                let order = self.order(&waiter.site, question, permit, waiter.deadline());
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

    fn order(&self, site: &Site, question: Question, permit: Permit, deadline: Millis) -> Order {
        self.count(Counter::Lookups);
        Order {
            site: *site,
            question,
            permit,
            deadline,
            sent: Instant::now(),
        }
    }

    /// Tells everyone on a flight how it ended, and forgets it.
    fn land(&mut self, key: &Key, outcome: Outcome) {
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
    fn poll(&mut self) -> Vec<Departure> {
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
            Begun::Lead(permit) => {
                let order = self.order(&waiter.site, question, permit, deadline);
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

    /// Keeps a verdict, so that this worker need not ask again for a while.
    fn remember(&mut self, site: &Site, key: &Key, outcome: Outcome) {
        let Outcome::Verdict(verdict) = outcome else {
            return;
        };
        let lasts = match verdict {
            Verdict::Refused => site.conf.valid.refused(),
            Verdict::Failed(_) => site.conf.valid.failed(),
        };
        if lasts > 0 {
            let until = self.now().plus(lasts);
            self.refused.put(key, verdict, until);
        }
    }

    /// Notes how our own lookup ended, tells everyone, and makes room for the next.
    fn note(&mut self, order: Order, report: &Report) {
        let now = self.now();
        let micros = u64::try_from(order.sent.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.counters.observe_lookup(micros);
        let key = *order.question.key();
        let (outcome, ended) = match report {
            Report::User {
                user,
                has_device,
                is_asked,
            } => {
                self.complained = None;
                let answer = self.store(&order.question, *user, *has_device, *is_asked);
                (Outcome::User(answer, Status::Miss), Ended::Stored)
            }
            Report::Refused => {
                self.zone.table().remove(&key);
                (Outcome::Verdict(Verdict::Refused), Ended::Refused)
            }
            Report::Failed(kind) => {
                self.count(Counter::of_failure(*kind));
                if !self.has_said_of_failures() {
                    self.complained = Some(now);
                }
                (
                    Outcome::Verdict(Verdict::Failed(*kind)),
                    Ended::Failed(*kind),
                )
            }
        };
        self.heed(report, now);
        self.remember(&order.site, &key, outcome);
        self.zone.flights().finish(order.permit, ended, now);
        self.land(&key, outcome);
        if !self.turns.is_empty() {
            // Its place is free: the next need not wait for the poll.
            self.poll.post();
        }
    }

    /// Lets the breaker know of what no client can bring about.
    fn heed(&self, report: &Report, now: Millis) {
        let breaker = self.zone.breaker();
        match report {
            Report::Failed(FailureKind::Connect | FailureKind::Timeout) => {
                if breaker.failure(now, u64::from(self.pid)) && self.is_due(Notice::Suspended) {
                    log::error!(
                        log::cycle_log(),
                        "matrix_user_hash: whoami fails repeatedly, zone \"{}\" asks less often until it answers",
                        self.shared.name
                    );
                }
            }
            Report::Failed(FailureKind::Head) => {}
            _ => {
                if breaker.success() {
                    log::notice!(
                        log::cycle_log(),
                        "matrix_user_hash: whoami answers again, zone \"{}\"",
                        self.shared.name
                    );
                }
            }
        }
    }

    /// Keeps an answer.
    fn store(
        &mut self,
        question: &Question,
        user: UserHash,
        has_device: bool,
        is_asked: bool,
    ) -> Answer {
        let now = self.now();
        let (key, masquerade) = match question {
            Question::Owner(key) if has_device => (key, Masquerade::No),
            Question::Owner(key) => (key, Masquerade::Maybe),
            Question::Masquerade { key, .. } if is_asked => (key, Masquerade::No),
            // Asked to speak for somebody else, it spoke for itself: it never will.
            Question::Masquerade { owner, .. } => (owner, Masquerade::Never),
        };
        self.refused.remove(key);
        let inserted = self
            .zone
            .table()
            .insert(key, user, masquerade, now, self.shared.inactive);
        if inserted.evicted {
            self.count(Counter::Evictions);
            if self.is_due(Notice::ZoneSmall) {
                log::notice!(
                    log::cycle_log(),
                    "matrix_user_hash: zone \"{}\" is full and evicts tokens in use, enlarge it",
                    self.shared.name
                );
            }
        }
        Answer { user, masquerade }
    }

    /// Whether nothing but failures has come for up to a minute, and nginx's own lines have said how.
    pub fn has_said_of_failures(&self) -> bool {
        self.complained
            .is_some_and(|at| self.now().since(at) < LOG_EVERY)
    }

    /// Whether something that would repeat should be logged by this worker now.
    pub fn is_due(&self, notice: Notice) -> bool {
        self.zone.notices().is_due(notice, self.now(), LOG_EVERY)
    }
}

/// Whether a process exists, whoever's it is.
pub fn is_alive(pid: u32) -> bool {
    let Ok(pid) = libc::pid_t::try_from(pid) else {
        return false;
    };
    // SAFETY: signal 0 is sent to nobody; it only asks (kill(2)).
    let missing = unsafe { libc::kill(pid, 0) } != 0
        && std::io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH);
    !missing
}

/// Lets a request wait for the answer to `question`, and sends a lookup if nobody has. False without memory to wait in.
pub fn ask(request: Request, site: &Site, question: Question) -> bool {
    let Some(mut waiter) = Waiter::seat(request, site, question) else {
        return false;
    };
    let departure = site.zone.with_local(|local| {
        // SAFETY: it lives, and nothing else refers to it now.
        local.board(unsafe { waiter.as_mut() })
    });
    match departure {
        Some(Some(departure)) => depart(departure),
        Some(None) => {}
        None => return false,
    }
    true
}

/// Refreshes what is stale in the background, if it can be done at once; if not, the next request tries again.
pub fn refresh(request: Request, site: &Site, question: Question) {
    let departure = site.zone.with_local(|local| {
        let key = *question.key();
        local.forget_if_lost(&key);
        if local.flights.contains_key(&key) || local.refused.get(&key, local.now()).is_some() {
            return None;
        }
        let deadline = local.now().plus(site.conf.hold());
        let Begun::Lead(permit) = local.begin(site, &question, deadline, false) else {
            return None;
        };
        local.count(Counter::Refreshes);
        local.flights.insert(
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
            order: local.order(site, question, permit, deadline),
        })
    });
    if let Some(Some(departure)) = departure {
        depart(departure);
    }
}

/// A request went on without having had a turn: says so now and then.
pub fn overloaded(site: &Site) {
    site.zone.with_local(|local| {
        if local.is_due(Notice::Overload) {
            log::warning!(
                log::cycle_log(),
                "matrix_user_hash: zone \"{}\": {} lookups are in flight and requests go on without a turn; whoami is \
                 slow, or matrix_user_hash_max_lookups is low",
                local.shared.name,
                site.conf.most_lookups()
            );
        }
    });
}

/// Sends a lookup with what the request gives to build it from.
fn depart(departure: Departure) {
    let Departure { request, order } = departure;
    if let Err(order) = lookup::send(request, order) {
        landed(order, &Report::Failed(FailureKind::Connect));
    }
}

/// Takes the outcome of a lookup of ours.
pub fn landed(order: Order, report: &Report) {
    let zone = order.site.zone;
    zone.with_local(|local| local.note(order, report));
}

/// The alarm of a worker's poll; posted, when a lookup has made room.
unsafe fn polled(subject: *mut core::ffi::c_void, _why: Ring) {
    guard::guard((), || {
        // SAFETY: the zone lives as long as the cycle, and its alarm no longer.
        let zone: &'static SharedZone = unsafe { &*subject.cast::<SharedZone>() };
        for departure in zone.with_local(Local::poll).unwrap_or_default() {
            depart(departure);
        }
    });
}

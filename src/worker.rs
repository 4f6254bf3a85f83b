//! What one worker process keeps beside a zone, and how its requests share lookups.
//!
//! For each key that is being asked about there is one [`Flight`] in the worker, with the requests that wait for it
//! (`worker/flights.rs`). Its lookup is either our own (leading), another worker's (following), or has to wait for a turn.
//! Leading ends with a call of [`landed`], which notes the outcome (`worker/outcome.rs`); following and waiting are polled,
//! from 1 ms on with growing pauses.
//!
//! Nothing here calls nginx while the worker's state is borrowed: a lookup may end before its start has returned.

use std::collections::{HashMap, VecDeque};

use matrix_user_hash_core::key::Key;
use matrix_user_hash_core::metrics::{Counter, Slot};
use matrix_user_hash_core::negative::Refused;
use matrix_user_hash_core::shm::throttle::Notice;
use matrix_user_hash_core::shm::zone::Zone;
use matrix_user_hash_core::time::Millis;
use matrix_user_hash_core::whoami::FailureKind;

use crate::lookup::{self, Order, Report};
use crate::ngx::event::{Alarm, Ring};
use crate::ngx::guard;
use crate::ngx::log;
use crate::ngx::request::Request;
use crate::phase::{Question, Site};
use crate::waiter::Waiter;
use crate::zone::{SharedZone, now};

use flights::{Departure, Flight};

mod flights;
mod outcome;

/// How often the same thing is logged, in milliseconds.
const LOG_EVERY: u64 = 60_000;

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
    /// In the order in which they came.
    turns: VecDeque<Key>,
    /// The first of them waits for a place below that many lookups; 0 if it does not.
    full_at: u32,
    /// How long lookups take that are answered, in milliseconds: the last counts an eighth.
    takes: u64,
    /// How many lookups this worker has ordered.
    lookups: u64,
    poll: Alarm,
    pause: u64,
    complained: Option<Millis>,
}

impl Local {
    /// For the worker that first uses the zone; nothing without memory.
    pub fn new(shared: &'static SharedZone, zone: Zone<'static>) -> Option<Self> {
        // SAFETY: nginx sets both before a worker serves requests, and the cycle's log outlives the zone; `polled`
        // guards itself, and the alarm is dropped with what it belongs to.
        let (worker, pid, poll) = unsafe {
            let subject = core::ptr::from_ref(shared).cast_mut().cast();
            let poll = Alarm::new(log::cycle_log(), true, polled, subject)?;
            (nginx_sys::ngx_worker, nginx_sys::ngx_pid, poll)
        };
        Some(Self {
            zone,
            refused: Refused::new(),
            scratch: Vec::new(),
            shared,
            counters: zone.counters().slot(worker),
            pid: u32::try_from(pid).unwrap_or(1),
            flights: HashMap::new(),
            following: Vec::new(),
            turns: VecDeque::new(),
            full_at: 0,
            takes: 0,
            lookups: 0,
            poll,
            pause: 1,
            complained: None,
        })
    }

    /// The moment of this turn of the event loop.
    pub fn now(&self) -> Millis {
        now()
    }

    /// Counts.
    pub fn count(&self, counter: Counter) {
        self.counters.count(counter);
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
    // SAFETY: it lives, and nothing else refers to it now.
    let waiter = unsafe { waiter.as_mut() };
    if waiter.outcome.is_some() {
        return true;
    }
    match site.zone.with_local(|local| local.board(waiter)) {
        Some(Ok(departure)) => {
            if let Some(departure) = departure {
                depart(departure);
            }
            true
        }
        Some(Err(_)) | None => false,
    }
}

/// Refreshes what is stale in the background, if it can be done at once; if not, the next request tries again.
pub fn refresh(request: Request, site: &Site, question: Question) {
    let departure = site
        .zone
        .with_local(|local| local.board_nobody(request, site, question));
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
    if let Err(mut order) = lookup::send(request, order) {
        order.is_fair = false;
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

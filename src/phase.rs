//! A request's life with us, from its arrival in the PRECONTENT phase to its variables.
//!
//! ```text
//!             ┌ no token ────────────────────────────────────────────────┐
//!  arrival ───┤                                                          ├─→ resolved
//!             └ token ─→ known? ─ yes ─→ (masquerades? its user known?) ─┤
//!                          │ no                                          │
//!                          └─→ waiting ─→ answer, refusal or failure ────┘
//!                                 └────→ time is up, or the client left
//! ```
//!
//! The phase comes after access control and rate limits, so a request that is refused there costs no lookup. It
//! returns DECLINED when done, never OK, which would skip `try_files` and `mirror`; AGAIN while waiting. Only the
//! client's own request is resolved; its subrequests share the result.

use core::ptr::NonNull;

use matrix_user_hash_core::key::Key;
use matrix_user_hash_core::metrics::Counter;
use matrix_user_hash_core::negative::Verdict;
use matrix_user_hash_core::query;
use matrix_user_hash_core::shm::table::Masquerade;
use matrix_user_hash_core::token::{self, Token};
use matrix_user_hash_core::user::{UserHash, UserId};
use matrix_user_hash_core::whoami::FailureKind;
use nginx_sys::{ngx_http_request_t, ngx_int_t};
use ngx::core::Status as Code;
use ngx::http::HttpModuleLocationConf;

use crate::Module;
use crate::conf::{LocationConf, Pass};
use crate::fault::{self, Place};
use crate::ngx::guard;
use crate::ngx::request::Request;
use crate::status::Status;
use crate::variables::{self, Resolution};
use crate::waiter::{Answer, Outcome, Waiter};
use crate::worker::{self, Local};
use crate::zone::SharedZone;

/// A location that asks, and the zone where it remembers.
#[derive(Clone, Copy)]
pub struct Site {
    /// The directives there.
    pub conf: &'static LocationConf,
    /// Its zone.
    pub zone: &'static SharedZone,
}

/// What is asked about a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Whose it is.
    Owner(Key),
    /// Whether it may speak for the user that the request names; `owner` is the key of the first question.
    Masquerade {
        /// The key of token and user together.
        key: Key,
        /// The key of the token alone.
        owner: Key,
    },
}

impl Question {
    /// What the table and the flights know it by.
    pub fn key(&self) -> &Key {
        match self {
            Self::Owner(key) | Self::Masquerade { key, .. } => key,
        }
    }
}

/// What is known so far.
enum Step {
    /// All there is to know.
    Done(Found),
    /// The homeserver must be asked.
    Ask(Question),
}

/// Whose the request is, and whether that is to be refreshed in the background.
struct Found {
    hash: Option<UserHash>,
    status: Status,
    refresh: Option<Question>,
}

impl Found {
    fn user(hash: UserHash, status: Status, question: Question) -> Self {
        let refresh = (status == Status::Stale).then_some(question);
        Self {
            hash: Some(hash),
            status,
            refresh,
        }
    }

    fn without_user(token: &Token<'_>, status: Status) -> Self {
        Self {
            hash: Some(UserHash::of_token(token)),
            status,
            refresh: None,
        }
    }
}

/// nginx's phase handler.
pub unsafe extern "C" fn handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    const DECLINED: ngx_int_t = Code::NGX_DECLINED.0;
    // SAFETY: nginx passes the live request.
    let request = unsafe { Request::from_ptr(r) };
    guard::guard_or(|| after_panic(request), || run(request).unwrap_or(DECLINED))
}

/// The fallback of a request in whose handling we panicked.
fn after_panic(request: Request) -> ngx_int_t {
    guard::guard((), || {
        Waiter::discard(request);
        if let Some(site) = site(request) {
            let panicked = site.zone.with_local(|local| local.count(Counter::Panics));
            let fallback = site.zone.with_local(|local| {
                let scratch = &mut local.scratch;
                token::find(request.authorization(), request.args(), scratch)
                    .map(|token| Found::without_user(&token, Status::Error))
            });
            if let (Some(()), Some(Some(found))) = (panicked, fallback) {
                finish(request, &found, None);
            }
        }
    });
    Code::NGX_DECLINED.0
}

/// The site of a request; nothing where the directive is off.
fn site(request: Request) -> Option<Site> {
    // SAFETY: a live request has the configurations of its location; our module's is a `LocationConf`.
    let conf = Module::location_conf(unsafe { &*request.as_ptr() })?;
    match conf.pass {
        Pass::On(target) => Some(Site {
            conf,
            zone: target.zone()?,
        }),
        Pass::Off | Pass::Unset => None,
    }
}

/// One pass of the phase. Nothing where there is nothing to do.
fn run(request: Request) -> Option<ngx_int_t> {
    if !request.is_main() {
        return None;
    }
    let waiter = parked(request);
    let (site, step) = if let Some(waiter) = waiter {
        let Some(next) = resume(request, waiter) else {
            return Some(Code::NGX_AGAIN.0);
        };
        next
    } else {
        let site = site(request)?;
        if variables::is_resolved(request, indexes(request)) {
            return None;
        }
        (
            site,
            site.zone
                .with_local(|local| arrive(request, &site, local))?,
        )
    };
    let question = match step {
        Step::Done(found) => {
            let held = waiter.and_then(|_| let_go(request));
            conclude(request, &site, &found, held);
            return None;
        }
        Step::Ask(question) => question,
    };
    if worker::ask(request, &site, question) {
        return Some(Code::NGX_AGAIN.0);
    }
    // No memory to wait in.
    let found = site.zone.with_local(|local| {
        let scratch = &mut local.scratch;
        let token = token::find(request.authorization(), request.args(), scratch)?;
        Some(Found::without_user(&token, Status::Error))
    })??;
    let held = let_go(request);
    conclude(request, &site, &found, held);
    None
}

/// The waiter of a request that was parked here. One that was sent elsewhere meanwhile is no waiter any more.
fn parked(request: Request) -> Option<NonNull<Waiter>> {
    let waiter = Waiter::of(request)?;
    // SAFETY: the waiter of a live request lives until `Waiter::discard`.
    if unsafe { waiter.as_ref() }.is_parked() {
        return Some(waiter);
    }
    Waiter::discard(request);
    None
}

/// First contact: no allocation, no lock, no system call if the user is known.
fn arrive(request: Request, site: &Site, local: &mut Local) -> Step {
    fault::at(Place::Arrive, request.user_agent());
    let mut scratch = core::mem::take(&mut local.scratch);
    let step = match token::find(request.authorization(), request.args(), &mut scratch) {
        None => Step::Done(Found {
            hash: None,
            status: Status::Anonymous,
            refresh: None,
        }),
        Some(token) => {
            let key = local.zone.secret().token(&token);
            match look(site, local, &key) {
                Look::Unknown => Step::Ask(Question::Owner(key)),
                Look::Verdict(verdict) => {
                    Step::Done(Found::without_user(&token, status_of(verdict)))
                }
                Look::User(answer, status) => {
                    for_whom(request, site, local, &token, key, answer, status)
                }
            }
        }
    };
    local.scratch = scratch;
    step
}

/// What is known of a key without asking.
enum Look {
    User(Answer, Status),
    Verdict(Verdict),
    Unknown,
}

fn look(site: &Site, local: &mut Local, key: &Key) -> Look {
    if let Some(entry) = local.zone.table().get(key, local.now(), site.zone.inactive) {
        let answer = Answer {
            user: entry.user,
            masquerade: entry.masquerade,
        };
        if entry.age < site.conf.valid.known() {
            return Look::User(answer, Status::Hit);
        }
        if site.conf.serves_stale() {
            return Look::User(answer, Status::Stale);
        }
    }
    match local.refused.get(key, local.now()) {
        Some(verdict) => Look::Verdict(verdict),
        None => Look::Unknown,
    }
}

/// For whom a token speaks whose owner is known: itself, or whom an application service names.
///
/// Only a token without a device may masquerade, so that nobody else fills the table by inventing users.
#[inline]
fn for_whom(
    request: Request,
    site: &Site,
    local: &mut Local,
    token: &Token<'_>,
    owner: Key,
    answer: Answer,
    status: Status,
) -> Step {
    let named = match answer.masquerade {
        Masquerade::Maybe => masquerade(request, site, local, token, owner),
        Masquerade::No | Masquerade::Never => None,
    };
    named.unwrap_or_else(|| Step::Done(Found::user(answer.user, status, Question::Owner(owner))))
}

/// What is known of the user whom the request names beside that token; nothing if it names none.
#[cold]
fn masquerade(
    request: Request,
    site: &Site,
    local: &mut Local,
    token: &Token<'_>,
    owner: Key,
) -> Option<Step> {
    let mut scratch = Vec::new();
    let named = named_user(request, &mut scratch)?;
    let key = local.zone.secret().masquerade(token, &named);
    let question = Question::Masquerade { key, owner };
    Some(match look(site, local, &key) {
        Look::Unknown => Step::Ask(question),
        Look::Verdict(verdict) => Step::Done(Found::without_user(token, status_of(verdict))),
        Look::User(named, status) => Step::Done(Found::user(named.user, status, question)),
    })
}

/// The user that an application service's request names, if it is one that a homeserver could have.
pub fn named_user<'a>(request: Request, scratch: &'a mut Vec<u8>) -> Option<UserId<'a>> {
    let named = query::first(request.args(), b"user_id", scratch)?;
    UserId::try_from(core::str::from_utf8(named).ok()?).ok()
}

const fn status_of(verdict: Verdict) -> Status {
    match verdict {
        Verdict::Refused => Status::Refused,
        Verdict::Failed(FailureKind::Timeout) => Status::Timeout,
        Verdict::Failed(_) => Status::Error,
    }
}

/// A request that waited goes on. Nothing if it still has no outcome.
fn resume(request: Request, mut waiter: NonNull<Waiter>) -> Option<(Site, Step)> {
    // SAFETY: the waiter of a live request lives until `Waiter::discard`, and nothing else refers to it now.
    let waiter = unsafe { waiter.as_mut() };
    let site = waiter.site;
    fault::at(Place::Settle, request.user_agent());
    let (question, outcome) = (waiter.question, waiter.outcome.take()?);
    let step = site.zone.with_local(|local| {
        let mut scratch = core::mem::take(&mut local.scratch);
        let step = token::find(request.authorization(), request.args(), &mut scratch)
            .map(|token| settle(request, &site, local, &token, question, outcome));
        local.scratch = scratch;
        step
    })??;
    Some((site, step))
}

fn settle(
    request: Request,
    site: &Site,
    local: &mut Local,
    token: &Token<'_>,
    question: Question,
    outcome: Outcome,
) -> Step {
    let without_user = |status| Step::Done(Found::without_user(token, status));
    match (outcome, question) {
        (Outcome::TimeIsUp, _) => without_user(Status::Timeout),
        (Outcome::Verdict(verdict), _) => without_user(status_of(verdict)),
        (Outcome::User(answer, status), Question::Owner(key)) => {
            for_whom(request, site, local, token, key, answer, status)
        }
        (Outcome::User(answer, status), Question::Masquerade { .. }) => {
            Step::Done(Found::user(answer.user, status, question))
        }
    }
}

/// Frees all that a wait needed, and tells how long it was.
fn let_go(request: Request) -> Option<u64> {
    let held = Waiter::of(request).map(|waiter| {
        // SAFETY: the waiter of a live request lives until `Waiter::discard`.
        unsafe { waiter.as_ref() }.held()
    });
    Waiter::discard(request);
    held
}

/// The end of a request's life with us: counted, its variables written, what is stale refreshed behind it.
fn conclude(request: Request, site: &Site, found: &Found, held: Option<u64>) {
    finish(request, found, held);
    site.zone
        .with_local(|local| local.count(counter_of(found.status)));
    if let Some(question) = found.refresh {
        worker::refresh(request, site, question);
    }
}

fn finish(request: Request, found: &Found, held: Option<u64>) {
    let resolution = Resolution {
        hash: found.hash,
        status: found.status,
        held,
    };
    variables::write(request, indexes(request), &resolution);
}

const fn counter_of(status: Status) -> Counter {
    match status {
        Status::Hit => Counter::Hits,
        Status::Miss => Counter::Misses,
        Status::Shared => Counter::Shared,
        Status::Stale => Counter::Stale,
        Status::Refused => Counter::Refused,
        Status::Error => Counter::Errors,
        Status::Timeout => Counter::Timeouts,
        Status::Anonymous => Counter::Anonymous,
    }
}

/// Where this cycle's requests keep our variables.
pub fn indexes<'c>(request: Request) -> &'c variables::Indexes {
    use ngx::http::HttpModuleMainConf as _;

    // SAFETY: a live request has the main configurations of its cycle; our module's is a `MainConf`.
    let main = Module::main_conf(unsafe { &*request.as_ptr() });
    &main
        .expect("a request has our module's configuration")
        .indexes
}

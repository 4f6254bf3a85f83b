//! What follows from the end of a lookup: kept in the table and the negative cache, told to the breaker and the figures.

use super::decide::Question;
use super::{Command, Ended, Engine, Event, Job, Outcome, Terms};
use crate::key::Key;
use crate::metrics::Counter;
use crate::shm::breaker::Admit;
use crate::shm::throttle::LogLine;
use crate::time::Millis;
use crate::whoami::{FailureKind, Identity, LookupError, LookupResult};

/// How often the same thing is logged, in milliseconds.
const LOG_EVERY: u64 = 60_000;

impl<W: Copy + Eq, A: Fn(u32) -> bool> Engine<'_, W, A> {
    /// A lookup of ours has ended: keeps what it says, tells those who wait, and makes room for the next.
    pub fn done(&mut self, job: Job, ended: &Ended, now: Millis) {
        let Job {
            id,
            question,
            permit,
            admitted,
            given,
            terms,
            ..
        } = job;
        let key = *question.key();
        let (result, flights) = (ended.result, self.zone.flights());
        self.counters.observe_lookup(ended.micros);
        if !matches!(result, Err(LookupError::Failed(_))) {
            self.latency = (self.latency * 7 + ended.micros.div_ceil(1000)) / 8;
        }
        self.judge_homeserver(ended, admitted, now);
        match result {
            Ok(identity) => {
                self.failing_since = None;
                self.store(&question, identity, now);
                flights.release(permit);
            }
            Err(error) => {
                match error {
                    LookupError::Refused => {
                        self.zone.table().remove(&key);
                    }
                    LookupError::Failed(kind) => {
                        self.count(Counter::of_failure(kind));
                        if !self.is_failing(now) {
                            self.failing_since = Some(now);
                        }
                    }
                }
                self.remember(&key, error, &terms, given, now);
                flights.publish(permit, error, given, now);
            }
        }
        if self.leads(&key, id) {
            self.settle(&key, Outcome::own(result), given, now);
        }
        if self.queued > 0 {
            // Its place is free: the next need not wait for the poll.
            self.poll_in(0, now);
        }
    }

    /// Keeps an error, so that this process need not ask again for a while.
    pub(super) fn remember(
        &mut self,
        key: &Key,
        error: LookupError,
        terms: &Terms,
        given: u64,
        now: Millis,
    ) {
        match error {
            LookupError::Refused if terms.refused > 0 => {
                self.negative.refuse(key, terms.refused, now);
            }
            // What this process lacked just now it may have again in a moment.
            LookupError::Failed(FailureKind::Local) | LookupError::Refused => {}
            LookupError::Failed(kind) if terms.failed > 0 => {
                self.negative.fail(key, kind, given, terms.failed, now);
            }
            LookupError::Failed(_) => {}
        }
    }

    /// Lets the breaker know of what no client can bring about.
    fn judge_homeserver(&mut self, ended: &Ended, admitted: Admit, now: Millis) {
        let (breaker, seed) = (self.zone.breaker(), u64::from(self.pid));
        match ended.result {
            Err(LookupError::Failed(FailureKind::Local)) => breaker.unsent(admitted, now),
            // It says nothing of the homeserver. But what a probe found must be told.
            Err(LookupError::Failed(_)) if !ended.is_fair && admitted != Admit::Probe => {}
            Err(LookupError::Failed(FailureKind::Connect | FailureKind::Timeout)) => {
                if breaker.failure(admitted, now, seed) && self.is_due(LogLine::Suspended, now) {
                    self.log(Event::Suspended);
                }
            }
            Err(LookupError::Failed(FailureKind::Head)) => {}
            _ => {
                if breaker.success() {
                    self.log(Event::Resumed);
                }
            }
        }
    }

    fn store(&mut self, question: &Question, identity: Identity, now: Millis) {
        let key = question.stored_as(identity.masquerade);
        self.negative.remove(key);
        let inserted =
            self.zone
                .table()
                .insert(key, identity.user, identity.masquerade, now, self.inactive);
        if inserted.evicted {
            self.count(Counter::Evictions);
            if self.is_due(LogLine::ZoneSmall, now) {
                self.log(Event::ZoneSmall);
            }
        }
    }

    /// Whether nothing but failures has come for up to a minute, and nginx's own lines have said how.
    pub fn is_failing(&self, now: Millis) -> bool {
        self.failing_since
            .is_some_and(|at| now.since(at) < LOG_EVERY)
    }

    /// Whether this process should log now what would repeat.
    pub fn is_due(&self, line: LogLine, now: Millis) -> bool {
        self.zone.log_throttle().is_due(line, now, LOG_EVERY)
    }

    fn log(&mut self, event: Event) {
        self.commands.push_back(Command::Log(event));
    }

    /// A request went on without having had a place: says so now and then.
    pub(super) fn overloaded(&mut self, limit: u32, now: Millis) {
        if self.is_due(LogLine::Overload, now) {
            self.log(Event::Overloaded { limit });
        }
    }
}

impl Outcome {
    /// What the request gets whose lookup ended so.
    pub(super) fn own(result: LookupResult) -> Self {
        use super::status::Status;
        let status = match result {
            Ok(_) => Status::Miss,
            Err(error) => Status::of_error(error),
        };
        Self { result, status }
    }
}

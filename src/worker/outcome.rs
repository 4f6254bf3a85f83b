//! How a lookup of ours ended: noted in the zone, in the figures and in the log, and told to those who wait.

use matrix_user_hash_core::key::Key;
use matrix_user_hash_core::metrics::Counter;
use matrix_user_hash_core::negative::Verdict;
use matrix_user_hash_core::shm::breaker::Admit;
use matrix_user_hash_core::shm::claims::Outcome as Ended;
use matrix_user_hash_core::shm::table::Masquerade;
use matrix_user_hash_core::shm::throttle::Notice;
use matrix_user_hash_core::time::Millis;
use matrix_user_hash_core::user::UserHash;
use matrix_user_hash_core::whoami::FailureKind;

use super::{LOG_EVERY, Local};
use crate::lookup::{Order, Report};
use crate::ngx::log;
use crate::phase::{Question, Site};
use crate::status::Status;
use crate::waiter::{Answer, Outcome};

impl Local {
    /// Notes how our own lookup ended, tells everyone, and makes room for the next.
    pub(super) fn note(&mut self, order: Order, report: &Report) {
        let now = self.now();
        let micros = u64::try_from(order.sent.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.counters.observe_lookup(micros);
        if !matches!(report, Report::Failed(_)) {
            self.takes = (self.takes * 7 + micros.div_ceil(1000)) / 8;
        }
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
        self.heed(report, &order, now);
        self.remember(&order.site, &key, outcome);
        self.land_lookup(&order, outcome);
        self.zone.flights().finish(order.permit, ended, now);
        if !self.turns.is_empty() {
            // Its place is free: the next need not wait for the poll.
            self.poll.post();
        }
    }

    /// Keeps a verdict, so that this worker need not ask again for a while.
    pub(super) fn remember(&mut self, site: &Site, key: &Key, outcome: Outcome) {
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

    /// Lets the breaker know of what no client can bring about.
    fn heed(&self, report: &Report, order: &Order, now: Millis) {
        let breaker = self.zone.breaker();
        let (admitted, seed) = (order.admitted, u64::from(self.pid));
        match report {
            // It says nothing of the homeserver. But what a probe found must be told.
            Report::Failed(_) if !order.is_fair && admitted != Admit::Probe => {}
            Report::Failed(FailureKind::Connect | FailureKind::Timeout) => {
                if breaker.failure(admitted, now, seed) && self.is_due(Notice::Suspended) {
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
}

//! `rollout`: how far users who are on the move have come.
//!
//! In come the groups that are installed and, if there are logs, the users of these. Out come each worker's share before,
//! now and after, and who moves when. Without a log the shares are those of all users who could be: nginx's ring, cut at
//! every point of both groups, and the order in which users move, cut at the canary's share. Pins are of so few users that
//! no share shows them.

use std::collections::BTreeMap;
use std::fmt;

use matrix_user_hash_core::shift::{Shift, Span};
use matrix_user_hash_core::user::UserHash;
use serde::Serialize;

use super::{Chosen, Installed, circle, length, moment};
use crate::plan::Server;

/// The users of a log, by their group.
pub(crate) type Users = BTreeMap<String, Vec<u64>>;

/// What `rollout` says.
#[derive(Debug, Serialize)]
pub(crate) struct Rollout {
    /// The moment that it is about.
    pub at: String,
    /// Each group that is on the move.
    pub groups: Vec<Group>,
    /// Whether every mover is listed as text.
    #[serde(skip)]
    pub listed: bool,
}

/// A group on the move.
#[derive(Debug, Serialize)]
pub(crate) struct Group {
    /// Its name.
    pub group: String,
    /// When the first may move.
    pub start: String,
    /// When the last has moved.
    pub end: String,
    /// Seconds until then.
    pub seconds_left: u64,
    /// The part of the time that is over, which is that of all users whose moment is.
    pub passed: f64,
    /// The part of all possible users who change their worker.
    pub movers: f64,
    /// The part of all possible users who have done so.
    pub moved: f64,
    /// Each worker's part of all users.
    pub workers: Vec<Worker>,
    /// The users of the logs.
    pub users: Option<Seen>,
}

/// A worker's part.
#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub(crate) struct Worker {
    pub worker: String,
    pub address: String,
    pub before: f64,
    pub now: f64,
    pub after: f64,
}

/// Users of a log.
#[derive(Debug, Serialize)]
pub(crate) struct Seen {
    /// How many.
    pub users: usize,
    /// Those of them who change their worker, the first first.
    pub movers: Vec<Mover>,
    /// How many of these have moved.
    pub moved: usize,
}

/// Who moves when.
#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub(crate) struct Mover {
    pub user: String,
    pub moment: String,
    pub from: String,
    pub to: String,
    #[serde(skip)]
    at: u64,
}

impl Rollout {
    /// Makes it.
    pub(crate) fn new(
        installed: &Installed,
        now: u64,
        users: Option<&Users>,
        listed: bool,
    ) -> Self {
        let groups = installed.shifts.iter().filter_map(|(name, shift)| {
            let before = Side {
                servers: &shift.before.servers,
                chosen: &installed.chosen(&shift.before.name),
            };
            let after = Side {
                servers: &installed.groups.get(name)?.servers,
                chosen: &installed.chosen(name),
            };
            let seen = users.map(|users| {
                let of_group = users.get(name).map_or(&[][..], Vec::as_slice);
                seen(of_group, &before, &after, shift.span, now)
            });
            let passed = Shift::Over(shift.span).moved(now);
            let (workers, movers, moved) = shares(&before, &after, passed);
            Some(Group {
                group: name.clone(),
                start: moment(shift.span.start()),
                end: moment(shift.span.end()),
                seconds_left: shift.span.end().saturating_sub(now).div_ceil(1000),
                passed,
                movers,
                moved,
                workers,
                users: seen,
            })
        });
        Self {
            at: moment(now),
            groups: groups.collect(),
            listed,
        }
    }
}

/// Where users are: before, or after.
struct Side<'a> {
    servers: &'a [Server],
    chosen: &'a Chosen,
}

impl<'a> Side<'a> {
    /// The server of a user, whose key on the ring has this one.
    fn server(&self, user: UserHash, on_ring: usize) -> &'a Server {
        let chosen = self.chosen.of_user(user);
        chosen.map_or(&self.servers[on_ring], |(single, _)| &single.server)
    }

    /// The canary's part of all users; they are the first to move.
    fn share(&self) -> f64 {
        let canary = self.chosen.canary.as_ref();
        canary.map_or(0.0, |canary| Shift::At(canary.share).moved(0))
    }

    /// The canary, if it has those who move at this place in the order of moves: from 0 to 1.
    fn canary(&self, place: f64) -> Option<&'a Server> {
        let canary = self.chosen.canary.as_ref()?;
        (place < self.share()).then_some(&canary.single.server)
    }
}

fn seen(users: &[u64], before: &Side<'_>, after: &Side<'_>, span: Span, now: u64) -> Seen {
    let (old, new) = (circle(before.servers), circle(after.servers));
    let mut movers: Vec<Mover> = users
        .iter()
        .filter_map(|user| {
            let user = UserHash::from_bits(*user);
            let digits = String::from_utf8_lossy(&user.hex()).into_owned();
            let from = before.server(user, old.pick(&digits)?);
            let to = after.server(user, new.pick(&digits)?);
            let at = Shift::Over(span).moment(user)?;
            (from.address != to.address).then(|| Mover {
                user: digits,
                moment: moment(at),
                from: from.worker.clone(),
                to: to.worker.clone(),
                at,
            })
        })
        .collect();
    movers.sort_by(|a, b| (a.at, &a.user).cmp(&(b.at, &b.user)));
    Seen {
        users: users.len(),
        moved: movers.iter().filter(|mover| mover.at <= now).count(),
        movers,
    }
}

/// Each worker's part before, now and after; the part of users who change, and of those who have.
fn shares(before: &Side<'_>, after: &Side<'_>, passed: f64) -> (Vec<Worker>, f64, f64) {
    let mut workers: BTreeMap<String, Worker> = BTreeMap::new();
    let mut add = |server: &Server, part: f64, when: fn(&mut Worker) -> &mut f64| {
        let worker = workers
            .entry(server.address.clone())
            .or_insert_with(|| Worker {
                worker: server.worker.clone(),
                address: server.address.clone(),
                before: 0.0,
                now: 0.0,
                after: 0.0,
            });
        *when(worker) += part;
    };
    let (mut movers, mut moved) = (0.0, 0.0);
    // All between two of these places in the order of moves are alike, but for the ring.
    let mut places = [0.0, before.share(), after.share(), passed, 1.0];
    places.sort_by(f64::total_cmp);
    let stretches = circle(before.servers).overlaid(&circle(after.servers));
    for place in places.windows(2) {
        let [from, to] = place else { continue };
        for (stretch, old, new) in &stretches {
            let part = (to - from) * stretch;
            let old = before.canary(*from).unwrap_or(&before.servers[*old]);
            let new = after.canary(*from).unwrap_or(&after.servers[*new]);
            let has_moved = *from < passed;
            add(old, part, |worker| &mut worker.before);
            add(if has_moved { new } else { old }, part, |worker| {
                &mut worker.now
            });
            add(new, part, |worker| &mut worker.after);
            if old.address != new.address {
                movers += part;
                moved += if has_moved { part } else { 0.0 };
            }
        }
    }
    let mut workers: Vec<Worker> = workers.into_values().collect();
    workers.sort_by(|a, b| (&a.worker, &a.address).cmp(&(&b.worker, &b.address)));
    (workers, movers, moved)
}

impl fmt::Display for Rollout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.groups.is_empty() {
            return writeln!(f, "no user is on the move");
        }
        for group in &self.groups {
            group.show(f, self.listed)?;
        }
        Ok(())
    }
}

impl Group {
    fn show(&self, f: &mut fmt::Formatter<'_>, listed: bool) -> fmt::Result {
        writeln!(f, "{}, from {} to {}", self.group, self.start, self.end)?;
        let state = match self.seconds_left {
            0 => "all have moved; `render` gives the configuration without the shift".to_owned(),
            left if self.passed > 0.0 => format!(
                "{:.1}% of the time is over, {} left",
                self.passed * 100.0,
                length(left)
            ),
            left => format!("nobody has moved yet, {} left", length(left)),
        };
        writeln!(f, "  {state}")?;
        writeln!(
            f,
            "  {:.1}% of all users change their worker: {:.1}% have, {:.1}% will",
            self.movers * 100.0,
            self.moved * 100.0,
            (self.movers - self.moved) * 100.0
        )?;
        let name = |worker: &Worker| {
            if worker.worker == worker.address {
                worker.worker.clone()
            } else {
                format!("{}  {}", worker.worker, worker.address)
            }
        };
        let width = self
            .workers
            .iter()
            .map(|worker| name(worker).chars().count())
            .max()
            .unwrap_or(0)
            .max(6);
        writeln!(
            f,
            "  {:width$}  {:>6}  {:>6}  {:>6}",
            "worker", "before", "now", "after"
        )?;
        for worker in &self.workers {
            writeln!(
                f,
                "  {:width$}  {:>5.1}%  {:>5.1}%  {:>5.1}%",
                name(worker),
                worker.before * 100.0,
                worker.now * 100.0,
                worker.after * 100.0
            )?;
        }
        let Some(seen) = &self.users else {
            return Ok(());
        };
        writeln!(
            f,
            "  of {} users in the logs {} change their worker: {} have, {} will",
            seen.users,
            seen.movers.len(),
            seen.moved,
            seen.movers.len() - seen.moved
        )?;
        for mover in seen.movers.iter().filter(|_| listed) {
            writeln!(
                f,
                "  {}  {}  {} to {}",
                mover.moment, mover.user, mover.from, mover.to
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(list: &[(&str, u16)]) -> Vec<Server> {
        list.iter()
            .map(|(address, weight)| Server {
                worker: (*address).to_owned(),
                address: (*address).to_owned(),
                service: None,
                weight: *weight,
                max_conns: None,
                resolve: false,
            })
            .collect()
    }

    #[test]
    fn shares_add_up_and_are_those_of_many_users() {
        let before = servers(&[("a:1", 1), ("b:1", 2), ("c:1", 1)]);
        let after = servers(&[("a:1", 1), ("b:1", 1), ("d:1", 1)]);
        let nobody = Chosen::nobody("");
        let side = |servers| Side {
            servers,
            chosen: &nobody,
        };
        let (workers, movers, have) = shares(&side(&before), &side(&after), 0.25);
        assert!((have - movers * 0.25).abs() < 1e-9, "{have} {movers}");
        for sum in [
            workers.iter().map(|w| w.before).sum::<f64>(),
            workers.iter().map(|w| w.now).sum(),
            workers.iter().map(|w| w.after).sum(),
        ] {
            assert!((sum - 1.0).abs() < 1e-9, "{sum}");
        }
        let (old, new) = (circle(&before), circle(&after));
        let users = 40_000_u64;
        let mut moved = 0;
        let mut at_a = 0;
        for user in 0..users {
            let key = String::from_utf8_lossy(
                &UserHash::from_bits(user.wrapping_mul(0x9e37_79b9_7f4a_7c15)).hex(),
            )
            .into_owned();
            let (old, new) = (old.pick(&key).unwrap(), new.pick(&key).unwrap());
            moved += u64::from(before[old].address != after[new].address);
            at_a += u64::from(after[new].address == "a:1");
        }
        assert!(
            (moved as f64 / users as f64 - movers).abs() < 0.01,
            "{moved} {movers}"
        );
        let a = workers.iter().find(|w| w.worker == "a:1").unwrap();
        assert!(
            (at_a as f64 / users as f64 - a.after).abs() < 0.01,
            "{at_a} {}",
            a.after
        );
        assert!((a.now - (a.before * 0.75 + a.after * 0.25)).abs() < 1e-9);
    }
}

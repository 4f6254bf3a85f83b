//! The workers of a group with nginx's ring over them.

use matrix_user_hash_core::user::UserHash;

use crate::diagnostic::Diagnostic;
use crate::hash::Circle;

/// A worker as its `server` line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    /// Host and port, or `unix:` and a path.
    pub name: String,
    /// `weight=`.
    pub weight: u16,
}

/// Workers, and who has which.
#[derive(Debug)]
pub(crate) struct Ring {
    servers: Vec<Server>,
    circle: Circle,
}

impl Ring {
    /// Lays it out.
    pub(crate) fn new(servers: Vec<Server>) -> Self {
        let circle = Circle::new(
            servers
                .iter()
                .map(|server| (server.name.as_str(), usize::from(server.weight))),
        );
        Self { servers, circle }
    }

    /// Reads `sync1:8083,sync2:8083=2`.
    ///
    /// # Errors
    /// A weight is no number, or a name is there twice.
    pub(crate) fn parse(list: &str) -> Result<Self, Diagnostic> {
        let mut servers: Vec<Server> = Vec::new();
        for text in list
            .split(',')
            .map(str::trim)
            .filter(|text| !text.is_empty())
        {
            let (name, weight) = text.rsplit_once('=').unwrap_or((text, "1"));
            let weight = weight
                .parse()
                .ok()
                .filter(|weight| (1..=1_000).contains(weight));
            let Some(weight) = weight else {
                return Err(Diagnostic::error(format!(
                    "{text}: the weight is no number from 1 to 1000"
                ))
                .fix("write sync1:8083=2"));
            };
            if servers.iter().any(|known| known.name == name) {
                return Err(Diagnostic::error(format!("{name} is there twice"))
                    .fix("name each worker once, with weight=N behind `=`"));
            }
            servers.push(Server {
                name: name.to_owned(),
                weight,
            });
        }
        if servers.is_empty() {
            return Err(Diagnostic::error("no worker is named")
                .fix("write sync1:8083,sync2:8083, as the `server` lines name them"));
        }
        Ok(Self::new(servers))
    }

    /// Its workers.
    pub(crate) fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// Their weights, in the same order.
    pub(crate) fn weights(&self) -> Vec<u64> {
        let weights = self.servers.iter().map(|server| server.weight.into());
        weights.collect()
    }

    /// The index of a user's worker.
    pub(crate) fn pick(&self, user: u64) -> Option<usize> {
        let digits = UserHash::from_bits(user).hex();
        std::str::from_utf8(&digits)
            .ok()
            .and_then(|key| self.circle.pick(key))
    }

    /// The first workers, or as many more with names that go on from these.
    pub(crate) fn of_size(&self, size: usize) -> Self {
        let mut servers: Vec<Server> = self.servers.iter().take(size).cloned().collect();
        while servers.len() < size {
            let name = next_name(&servers);
            servers.push(Server { name, weight: 1 });
        }
        Self::new(servers)
    }
}

/// `sync4:8083` after `sync3:8083`: the number in which the names differ counts on.
fn next_name(servers: &[Server]) -> String {
    let (Some(first), Some(last)) = (servers.first(), servers.last()) else {
        return "worker1:8083".to_owned();
    };
    let (runs, of_first) = (digits(&last.name), digits(&first.name));
    let number = |name: &str, run: Option<&std::ops::Range<usize>>| {
        run.map(|run| name[run.clone()].to_owned())
    };
    let differs = |index: &usize| {
        number(&last.name, runs.get(*index)) != number(&first.name, of_first.get(*index))
    };
    let differing = (0..runs.len())
        .rev()
        .find(differs)
        .map(|index| &runs[index]);
    // The port only if there is nothing else.
    let host = last.name.rfind(':').unwrap_or(last.name.len());
    let run = differing
        .or_else(|| runs.iter().rfind(|run| run.end <= host))
        .or(runs.last());
    let Some(run) = run else {
        return format!("{}-{}", last.name, servers.len() + 1);
    };
    let number: u64 = last.name[run.clone()].parse().unwrap_or(0);
    (number + 1..)
        .map(|number| {
            format!(
                "{}{number}{}",
                &last.name[..run.start],
                &last.name[run.end..]
            )
        })
        .find(|name| servers.iter().all(|server| server.name != *name))
        .unwrap_or_default()
}

/// Where digits stand.
fn digits(name: &str) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for (at, _) in name
        .bytes()
        .enumerate()
        .filter(|(_, byte)| byte.is_ascii_digit())
    {
        match runs.last_mut() {
            Some(run) if run.end == at => run.end = at + 1,
            _ => runs.push(at..at + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &str, size: usize) -> Vec<String> {
        let ring = Ring::parse(list).unwrap().of_size(size);
        ring.servers()
            .iter()
            .map(|server| server.name.clone())
            .collect()
    }

    #[test]
    fn more_workers_have_names_that_go_on() {
        assert_eq!(
            names("sync1:8083,sync2:8083", 3),
            ["sync1:8083", "sync2:8083", "sync3:8083"]
        );
        assert_eq!(
            names("127.0.0.1:8083,127.0.0.1:8084", 3)[2],
            "127.0.0.1:8085"
        );
        assert_eq!(names("10.0.0.1:8083", 2)[1], "10.0.0.2:8083");
        assert_eq!(names("unix:/run/sync9.sock", 2)[1], "unix:/run/sync10.sock");
        assert_eq!(
            names("alpha:8083", 3),
            ["alpha:8083", "alpha:8084", "alpha:8085"]
        );
        assert_eq!(
            names("10.0.0.1:8083,10.0.0.3:8083", 11)[9..],
            ["10.0.0.11:8083", "10.0.0.12:8083"]
        );
        assert_eq!(names("sync1:8083,sync2:8083", 1), ["sync1:8083"]);
    }

    #[test]
    fn a_list_has_weights_and_its_mistakes_are_named() {
        let ring = Ring::parse("sync1:8083=2, sync2:8083").unwrap();
        assert_eq!(
            ring.servers()[0],
            Server {
                name: "sync1:8083".to_owned(),
                weight: 2
            }
        );
        for list in ["", "a:1=x", "a:1=0", "a:1,a:1"] {
            assert!(Ring::parse(list).is_err(), "{list}");
        }
    }
}

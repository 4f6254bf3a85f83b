//! nginx's consistent hash, bit by bit, so that `route --user` can name the worker.
//!
//! In come the `server` lines of an upstream and a key, out comes the server that nginx picks when all are up. Written
//! after ngx_http_upstream_update_chash() and ngx_http_upstream_find_chash_point() (src/http/modules/
//! ngx_http_upstream_hash_module.c): 160 points for each unit of a server's weight, each the CRC32 of host, a zero byte,
//! port and the four bytes of the point before it, least byte first. Host and port are those of the `server` line, so
//! addresses do not matter.

/// Points that each server gets per unit of weight.
const POINTS: usize = 160;

/// The circle of an upstream.
#[derive(Debug)]
pub(crate) struct Circle {
    /// Points in their order, each with the index of its server.
    points: Vec<(u32, usize)>,
}

impl Circle {
    /// Lays out the points of servers, given as in their `server` lines, each with its weight.
    pub(crate) fn new<'a>(servers: impl IntoIterator<Item = (&'a str, usize)>) -> Self {
        let mut points = Vec::new();
        for (index, (server, weight)) in servers.into_iter().enumerate() {
            let (host, port) = host_and_port(server);
            let mut base = crc32fast::Hasher::new();
            base.update(host.as_bytes());
            base.update(b"\0");
            base.update(port.as_bytes());
            let mut previous = 0_u32;
            for _ in 0..POINTS * weight {
                let mut point = base.clone();
                point.update(&previous.to_le_bytes());
                previous = point.finalize();
                points.push((previous, index));
            }
        }
        // nginx sorts by the point alone and keeps the first of equals.
        points.sort_by_key(|(point, _)| *point);
        points.dedup_by_key(|(point, _)| *point);
        Self { points }
    }

    /// Whether two circles have every key on servers of the same name. The names come by index.
    pub(crate) fn is_same<'a>(
        &self,
        other: &Self,
        name: impl Fn(usize) -> &'a String,
        name_of_other: impl Fn(usize) -> &'a String,
    ) -> bool {
        let ours = self
            .points
            .iter()
            .map(|(point, index)| (point, name(*index)));
        let theirs = other
            .points
            .iter()
            .map(|(point, index)| (point, name_of_other(*index)));
        ours.eq(theirs)
    }

    /// Every stretch of keys that neither circle divides: its part of all keys, and the index of its server in each.
    pub(crate) fn overlaid(&self, other: &Self) -> Vec<(f64, usize, usize)> {
        let mut ends: Vec<u32> = self
            .points
            .iter()
            .chain(&other.points)
            .map(|(point, _)| *point)
            .collect();
        ends.sort_unstable();
        ends.dedup();
        let mut stretches = Vec::with_capacity(ends.len() + 1);
        let mut from = 0_u64;
        for end in ends.into_iter().chain([u32::MAX]) {
            let keys = (u64::from(end) + 1).saturating_sub(from);
            if let (Some(one), Some(two), true) = (self.at(end), other.at(end), keys > 0) {
                stretches.push((keys as f64 / (u64::from(u32::MAX) + 1) as f64, one, two));
            }
            from = u64::from(end) + 1;
        }
        stretches
    }

    /// The index of the server that a key goes to. An empty key goes to anyone, as an empty circle does to no one.
    pub(crate) fn pick(&self, key: &str) -> Option<usize> {
        if key.is_empty() {
            return None;
        }
        self.at(crc32fast::hash(key.as_bytes()))
    }

    /// The index of the server whose point is the next from there on.
    fn at(&self, hash: u32) -> Option<usize> {
        let at = self.points.partition_point(|(point, _)| *point < hash);
        let (_, server) = self.points.get(at).or(self.points.first())?;
        Some(*server)
    }
}

/// What nginx takes for host and port of a `server` line: all after the last colon is the port if it is all digits.
fn host_and_port(server: &str) -> (&str, &str) {
    if server
        .get(..5)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("unix:"))
    {
        return (&server[5..], "");
    }
    match server.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (host, port),
        _ => (server, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_are_those_of_the_server_line() {
        assert_eq!(host_and_port("sync1:8083"), ("sync1", "8083"));
        assert_eq!(host_and_port("[::1]:8083"), ("[::1]", "8083"));
        assert_eq!(
            host_and_port("unix:/run/sync1.sock"),
            ("/run/sync1.sock", "")
        );
        assert_eq!(
            host_and_port("sync-0.sync.matrix.svc"),
            ("sync-0.sync.matrix.svc", "")
        );
    }

    #[test]
    fn the_first_points_are_chained_as_nginx_chains_them() {
        // python3 -c 'import zlib; a=zlib.crc32(b"sync1\x008083\0\0\0\0"); print(a, zlib.crc32(b"sync1\x008083"+a.to_bytes(4,"little")))'
        let circle = Circle::new([("sync1:8083", 1)]);
        for point in [89_363_728, 1_332_626_060] {
            assert!(circle.points.contains(&(point, 0)), "{point}");
        }
        assert_eq!(circle.points.len(), POINTS);
    }

    #[test]
    fn a_key_past_the_last_point_goes_round_to_the_first() {
        let circle = Circle {
            points: vec![(10, 7), (20, 8)],
        };
        // The CRC32 of this key is 0x922126c8, far past 20.
        assert_eq!(circle.pick("86f01aef21b1acd3"), Some(7));
        assert_eq!(circle.pick(""), None);
    }

    #[test]
    fn a_worker_more_moves_only_its_share_of_the_users() {
        let users: Vec<String> = (0..4000)
            .map(|i| format!("{:016x}", i * 0x9e37_79b9_u64))
            .collect();
        let servers = ["sync1:8083", "sync2:8083", "sync3:8083", "sync4:8083"].map(|s| (s, 1));
        let before = Circle::new(servers[..3].to_vec());
        let after = Circle::new(servers);
        let moved: Vec<_> = users
            .iter()
            .filter(|user| before.pick(user) != after.pick(user))
            .collect();
        assert!(moved.iter().all(|user| after.pick(user) == Some(3)));
        assert!(
            (600..1400).contains(&moved.len()),
            "{} of 4000",
            moved.len()
        );
    }

    #[test]
    fn a_server_of_twice_the_weight_has_twice_the_users() {
        let circle = Circle::new([("sync1:8083", 1), ("sync2:8083", 2)]);
        let keys = (0..6000).map(|i| format!("{:016x}", i * 0x9e37_79b9_u64));
        let second = keys.filter(|key| circle.pick(key) == Some(1)).count();
        assert!((3600..4400).contains(&second), "{second} of 6000");
    }

    #[test]
    #[ignore = "scripts/companion-test gives it a real nginx's answers in NGINX_ANSWERS"]
    fn nginx_picks_the_same_server() {
        let answers = std::fs::read_to_string(std::env::var("NGINX_ANSWERS").unwrap()).unwrap();
        let mut compared = 0;
        for line in answers.lines() {
            let [servers, key, picked] = line.split('\t').collect::<Vec<_>>()[..] else {
                panic!("{line}");
            };
            let servers: Vec<(&str, usize)> = servers
                .split(' ')
                .map(|server| match server.split_once('*') {
                    Some((server, weight)) => (server, weight.parse().unwrap()),
                    None => (server, 1),
                })
                .collect();
            let ours = Circle::new(servers.iter().copied())
                .pick(key)
                .map(|index| servers[index].0);
            assert_eq!(ours, Some(picked), "{line}");
            compared += 1;
        }
        assert!(compared > 1000, "{compared}");
    }
}

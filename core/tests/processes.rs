//! Several processes on one mapping, killed at random: what loom cannot show, the real thing.
//!
//! The parent maps a file, starts children that map it too (this test binary again, told by the environment what to do),
//! kills some with SIGKILL at random moments and starts others in their place. Children that see a rule broken say so and
//! exit with a failure that the parent reports. `PROCESSES_SECONDS` makes it longer than the few seconds that it takes by
//! default; `--features slow-writes` makes nearly every kill of a writer hit it between two stores.

#![cfg(not(loom))]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "children report on stderr, figures go to stdout"
)]

use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use matrix_user_hash_core::shm::claims::{Asker, Claim, Flights};
use matrix_user_hash_core::shm::table::{Masquerade, SET_WORDS, Table};
use matrix_user_hash_core::time::{Millis, Seconds};
use matrix_user_hash_core::user::UserHash;
use matrix_user_hash_core::whoami::LookupError;
use memmap2::MmapMut;

#[path = "support/random.rs"]
mod random;

use random::{Random, key, scatter};

const ROLE: &str = "PROCESSES_ROLE";
const FILE: &str = "PROCESSES_FILE";

/// Few sets and more tokens than fit, so that writers collide all the time.
const SETS: usize = 4;
const TOKENS: u64 = 96;
const FLIGHT_WORDS: usize = 16;
/// More keys than words: they collide.
const KEYS: u64 = 24;
const MAX_LOOKUPS: u32 = 3;
/// Longer than a process is ever kept from running, so that no living leader is taken over.
const HOLD: u64 = 60_000;
const DAY: Seconds = Seconds::new(86_400);

const CLOCK_AT: usize = 0;
/// Violations, hits, leaderships, takeovers from the dead: for the parent to report.
const FIGURES_AT: usize = 8;
const TABLE_AT: usize = 64;
const FLIGHTS_AT: usize = TABLE_AT + SETS * SET_WORDS;
/// For each key, who leads it: what the flights are checked against.
const LEADERS_AT: usize = FLIGHTS_AT + FLIGHT_WORDS;
const WORDS: usize = LEADERS_AT + KEYS as usize;

const VIOLATIONS: usize = 0;
const HITS: usize = 1;
const LED: usize = 2;
const INHERITED: usize = 3;

/// The shared memory of parent and children.
struct Shared {
    words: &'static [AtomicU64],
}

impl Shared {
    fn map(file: &File) -> Self {
        // SAFETY: the file is this test's own and is not truncated while it is mapped.
        let map = unsafe { MmapMut::map_mut(file) }.unwrap();
        let map: &'static mut MmapMut = Box::leak(Box::new(map));
        assert!(map.len() >= WORDS * 8);
        // SAFETY: a mapping starts at a page, so it is aligned; it is long enough, lives as long as the process, and
        // every access to it, in this process and in the others, is atomic; any bits are a valid AtomicU64.
        let words = unsafe { std::slice::from_raw_parts(map.as_mut_ptr().cast(), WORDS) };
        Self { words }
    }

    fn table(&self) -> Table<'static> {
        let words = &self.words[TABLE_AT..TABLE_AT + SETS * SET_WORDS];
        Table::new(words, &self.words[CLOCK_AT]).unwrap()
    }

    fn flights(&self) -> Flights<'static> {
        Flights::new(&self.words[FLIGHTS_AT..FLIGHTS_AT + FLIGHT_WORDS]).unwrap()
    }

    fn leaders(&self) -> &'static [AtomicU64] {
        &self.words[LEADERS_AT..]
    }

    fn figure(&self, figure: usize) -> &'static AtomicU64 {
        &self.words[FIGURES_AT + figure]
    }

    fn violation(&self, what: &str) {
        self.figure(VIOLATIONS).fetch_add(1, Ordering::SeqCst);
        eprintln!("violation: {what}");
    }
}

fn user(n: u64) -> UserHash {
    UserHash::from_bits(scatter(n ^ 0x00a1_1ce0))
}

fn now() -> Millis {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is writable; CLOCK_MONOTONIC exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Millis::new(time.tv_sec as u64 * 1_000 + time.tv_nsec as u64 / 1_000_000)
}

fn alive(pid: u32) -> bool {
    // SAFETY: signal 0 only asks.
    let sent = unsafe { libc::kill(pid as libc::pid_t, 0) };
    sent == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

/// Where a child begins; the test harness of the parent passes by.
#[test]
fn child() {
    let (Ok(role), Ok(path)) = (std::env::var(ROLE), std::env::var(FILE)) else {
        return;
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let shared = Shared::map(&file);
    let mut random = Random(u64::from(std::process::id()) << 20);
    // The parent kills it; if the parent is gone, the end comes by itself.
    let end = Instant::now() + Duration::from_secs(120);
    while Instant::now() < end {
        for _ in 0..64 {
            match role.as_str() {
                "write" => write(&shared, &mut random),
                "read" => read(&shared, &mut random),
                "tear" => tear(&shared, &mut random),
                "fly" => fly(&shared, &mut random),
                other => panic!("{other}"),
            }
        }
    }
}

fn write(shared: &Shared, random: &mut Random) {
    let n = random.next() % TOKENS;
    shared
        .table()
        .insert(&key(n), user(n), Masquerade::No, now(), DAY);
    read(shared, random);
}

fn read(shared: &Shared, random: &mut Random) {
    let n = random.next() % TOKENS;
    if let Some(entry) = shared.table().get(&key(n), now(), DAY) {
        shared.figure(HITS).fetch_add(1, Ordering::Relaxed);
        if entry.user != user(n) {
            shared.violation("a request was told another user");
        }
    }
    for record in shared.table().records(now()).take(4) {
        let token = (0..TOKENS).find(|n| key(*n).words()[0] == record.key.words()[0]);
        if token.is_some_and(|n| user(n) != record.user) {
            shared.violation("the state file would hold another user");
        }
    }
}

/// Dies between two stores, which a random kill hits too seldom: makes an insertion in a copy, puts some of its words into
/// the shared table, and kills itself.
fn tear(shared: &Shared, random: &mut Random) {
    let words = &shared.words[TABLE_AT..FLIGHTS_AT];
    let before: Vec<u64> = words
        .iter()
        .map(|word| word.load(Ordering::Relaxed))
        .collect();
    let copy: Vec<_> = before.iter().map(|bits| AtomicU64::new(*bits)).collect();
    let clock = AtomicU64::new(shared.words[CLOCK_AT].load(Ordering::Relaxed));
    let n = random.next() % TOKENS;
    let table = Table::new(&copy, &clock).unwrap();
    table.insert(&key(n), user(n), Masquerade::No, now(), DAY);
    for (at, bits) in copy.iter().enumerate() {
        let bits = bits.load(Ordering::Relaxed);
        if bits != before[at] && random.next() % 2 == 0 {
            words[at].store(bits, Ordering::Relaxed);
        }
    }
    // SAFETY: ends this process and nothing else.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

/// Claims a key as a worker would, and checks by the words of leaders that nobody else leads it and that not too many lead.
fn fly(shared: &Shared, random: &mut Random) {
    let (n, pid, now) = (random.next() % KEYS, std::process::id(), now());
    let asker = Asker {
        pid,
        deadline: now.plus(HOLD),
        max_lookups: MAX_LOOKUPS,
        waited: random.next() % 2 == 0,
        yields: false,
        patience: HOLD,
    };
    let Claim::Leader(permit) = shared.flights().claim(&key(n), &asker, now, alive) else {
        std::thread::sleep(Duration::from_micros(random.next() % 200));
        return;
    };
    let leader = &shared.leaders()[n as usize];
    let mine = u64::from(pid) << 32 | random.next() >> 33 | 1;
    let before = leader.swap(mine, Ordering::SeqCst);
    if before != 0 {
        shared.figure(INHERITED).fetch_add(1, Ordering::Relaxed);
        if alive((before >> 32) as u32) {
            shared.violation("two led one key at once");
        }
    }
    check_cap(shared);
    if random.next() % 4 > 0 {
        std::thread::sleep(Duration::from_micros(random.next() % 500));
    }
    check_cap(shared);
    if leader
        .compare_exchange(mine, 0, Ordering::SeqCst, Ordering::SeqCst)
        .is_err()
    {
        shared.violation("somebody took over from the living");
    }
    shared.figure(LED).fetch_add(1, Ordering::Relaxed);
    let ended = if random.next() % 2 == 0 {
        shared.flights().release(permit)
    } else {
        let refused = LookupError::Refused;
        shared.flights().publish(permit, refused, HOLD, now)
    };
    if !ended {
        shared.violation("a permit was lost before its deadline");
    }
}

/// Two equal looks at all words of leaders mean that all of them led at the moment between.
fn check_cap(shared: &Shared) {
    let look = || -> Vec<u64> {
        shared
            .leaders()
            .iter()
            .map(|word| word.load(Ordering::SeqCst))
            .collect()
    };
    let first = look();
    let leaders = first
        .iter()
        .filter(|word| **word != 0 && alive((**word >> 32) as u32))
        .count();
    if leaders > MAX_LOOKUPS as usize && look() == first {
        shared.violation("more lookups in flight than max_lookups");
    }
}

/// A file, its mapping, and children that are killed and replaced.
struct Nursery {
    path: PathBuf,
    shared: Shared,
    children: Vec<(&'static str, Child)>,
    killed: u64,
}

impl Nursery {
    fn new(name: &str) -> Self {
        let name = format!("muh-processes-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        file.set_len(WORDS as u64 * 8).unwrap();
        Self {
            shared: Shared::map(&file),
            path,
            children: Vec::new(),
            killed: 0,
        }
    }

    fn start(&mut self, role: &'static str) {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture"])
            .stdout(std::process::Stdio::null())
            .env(ROLE, role)
            .env(FILE, &self.path)
            .spawn();
        self.children.push((role, child.unwrap()));
    }

    /// Kills a child every few milliseconds and starts another of its kind.
    fn rage(&mut self, seconds: u64) {
        let mut random = Random(7);
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            std::thread::sleep(Duration::from_micros(3_000 + random.next() % 30_000));
            let unlucky = (random.next() % self.children.len() as u64) as usize;
            let (role, child) = self.children.swap_remove(unlucky);
            self.reap(child);
            self.start(role);
        }
        while let Some((_, child)) = self.children.pop() {
            self.reap(child);
        }
    }

    fn reap(&mut self, mut child: Child) {
        use std::os::unix::process::ExitStatusExt;
        child.kill().unwrap();
        let status = child.wait().unwrap();
        self.killed += 1;
        assert_eq!(
            status.signal(),
            Some(libc::SIGKILL),
            "a child failed by itself: {status}"
        );
    }

    fn figure(&self, figure: usize) -> u64 {
        self.shared.figure(figure).load(Ordering::SeqCst)
    }
}

impl Drop for Nursery {
    fn drop(&mut self) {
        for (_, child) in &mut self.children {
            // On the way out of a failed test: what can be ended is ended.
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn seconds() -> u64 {
    std::env::var("PROCESSES_SECONDS").map_or(3, |seconds| seconds.parse().unwrap())
}

#[test]
fn writers_killed_at_any_moment_never_show_a_reader_another_user() {
    let mut nursery = Nursery::new("table");
    for role in ["write", "write", "read", "read", "tear"] {
        nursery.start(role);
    }
    nursery.rage(seconds());
    println!("{} kills, {} hits", nursery.killed, nursery.figure(HITS));
    assert_eq!(nursery.figure(VIOLATIONS), 0);
    assert!(
        nursery.figure(HITS) > 10_000,
        "{} hits",
        nursery.figure(HITS)
    );
    // And the table still works for who comes after.
    let table = nursery.shared.table();
    for n in 0..TOKENS {
        table.insert(&key(n), user(n), Masquerade::No, now(), DAY);
        assert_eq!(table.get(&key(n), now(), DAY).unwrap().user, user(n));
    }
}

#[test]
fn leaders_killed_at_any_moment_are_replaced_and_no_key_has_two() {
    let mut nursery = Nursery::new("flights");
    for _ in 0..6 {
        nursery.start("fly");
    }
    nursery.rage(seconds());
    let (led, inherited) = (nursery.figure(LED), nursery.figure(INHERITED));
    println!(
        "{} kills, {led} lookups led, {inherited} inherited from the dead",
        nursery.killed
    );
    assert_eq!(nursery.figure(VIOLATIONS), 0);
    assert!(led > 1_000, "{led} led");
    assert!(inherited > 0, "no leader died in flight");
    // All of them are dead: nothing is in flight, and every key can be led again.
    let flights = nursery.shared.flights();
    assert_eq!(flights.in_flight(now(), alive), 0);
}

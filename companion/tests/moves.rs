//! Users on the move: random pairs of deployments, and a shift from its beginning to its end, as an operator has it.
//!
//! The rendered files are read here by a small reader of its own, with a ring of its own, so that a mistake of the program is
//! not repeated by what judges it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use matrix_user_hash_core::shift::{Shift, Span, parse_percent, parse_time};
use matrix_user_hash_core::user::{UserHash, UserId};

/// 2100-01-01T00:00:00Z, when no test runs.
const START: u64 = 4_102_444_800_000;
const OVER: u64 = 1_800_000;

fn companion(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_synapse-companion"))
        .args(args)
        .output()
        .unwrap()
}

/// Runs it on `deployment.toml` of the folder, for an nginx of a version, with what is installed in the folder.
fn run(folder: &Path, command: &[&str], more: &[&str], expect: i32) -> (String, String) {
    let deployment = folder.join("deployment.toml");
    let input = [
        "-d",
        deployment.to_str().unwrap(),
        "--nginx-version",
        "1.28.3",
    ];
    let output = companion(&[command, &input, more].concat());
    let said = String::from_utf8(output.stderr).unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        output.status.code(),
        Some(expect),
        "{command:?} {more:?}\n{shown}{said}"
    );
    (shown, said)
}

fn render(folder: &Path, more: &[&str], expect: i32) -> String {
    let output = folder.to_str().unwrap();
    run(
        folder,
        &["render"],
        &[&["--output", output], more].concat(),
        expect,
    )
    .1
}

fn gradually(folder: &Path) -> String {
    render(
        folder,
        &["--gradually", "30m", "--start", "2100-01-01T00:00:00Z"],
        0,
    )
}

fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

fn write(folder: &Path, deployment: &str) {
    std::fs::write(folder.join("deployment.toml"), deployment).unwrap();
}

/// Rendered files by name.
fn files(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder.join("synapse")).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        found.insert(name, std::fs::read_to_string(entry.path()).unwrap());
    }
    found
}

/// A deployment with main and these workers: name, types, port, weight.
fn deployment(workers: &[(String, Vec<&str>, u16, u16)]) -> String {
    let mut text = "[main]\nhost = \"127.0.0.1\"\nport = 8008\n".to_owned();
    for (name, types, port, weight) in workers {
        text += &format!(
            "[[workers]]\nname = \"{name}\"\ntype = {types:?}\nhost = \"127.0.0.1\"\nport = {port}\nweight = {weight}\n"
        );
    }
    text
}

fn sync_workers(count: u16) -> String {
    let workers: Vec<_> = (1..=count)
        .map(|n| (format!("sync{n}"), vec!["sync"], 8080 + n, 1))
        .collect();
    deployment(&workers)
}

/// What the rendered files do with a user.
struct Nginx {
    /// Servers with weights, by upstream.
    upstreams: BTreeMap<String, Vec<(String, usize)>>,
    /// Their rings.
    rings: BTreeMap<String, Vec<(u32, String)>>,
    /// Old, new and time, by variable.
    shifts: BTreeMap<String, (String, String, Shift)>,
    /// Location by its comment's name: group, and what `proxy_pass` has.
    locations: BTreeMap<String, (String, String)>,
    /// Maps: variable, source and rows.
    maps: BTreeMap<String, (String, Vec<(String, String)>)>,
}

impl Nginx {
    fn read(files: &BTreeMap<String, String>) -> Self {
        let mut nginx = Self {
            upstreams: BTreeMap::new(),
            rings: BTreeMap::new(),
            shifts: BTreeMap::new(),
            locations: BTreeMap::new(),
            maps: BTreeMap::new(),
        };
        let mut comment = "";
        let mut block = Vec::new();
        for line in files.values().flat_map(|text| text.lines()) {
            let words: Vec<&str> = line.trim().trim_end_matches(';').split(' ').collect();
            match words.as_slice() {
                ["#", name, ..] if line.starts_with('#') => comment = name.trim_end_matches(':'),
                ["matrix_user_hash_shift", variable, old, new, share] => {
                    let share = share.strip_prefix("at=").unwrap();
                    let shift = Shift::At(parse_percent(share.as_bytes()).unwrap());
                    let words = ((*old).to_owned(), (*new).to_owned(), shift);
                    assert!(nginx.shifts.insert((*variable).to_owned(), words).is_none());
                }
                ["matrix_user_hash_shift", variable, old, new, start, over] => {
                    let start = parse_time(start.strip_prefix("start=").unwrap().as_bytes());
                    let over = over.strip_prefix("over=").unwrap().trim_end_matches('s');
                    let span = Span::new(start.unwrap(), over.parse::<u64>().unwrap() * 1000);
                    let shift = Shift::Over(span.unwrap());
                    let old = ((*old).to_owned(), (*new).to_owned(), shift);
                    assert!(nginx.shifts.insert((*variable).to_owned(), old).is_none());
                }
                ["upstream", name, "{"] => {
                    block = vec!["upstream", name];
                    assert!(
                        nginx
                            .upstreams
                            .insert((*name).to_owned(), Vec::new())
                            .is_none(),
                        "{name} twice"
                    );
                }
                ["map", source, variable, "{"] => {
                    block = vec!["map", variable];
                    let source = source.trim_matches('"').to_owned();
                    nginx
                        .maps
                        .insert((*variable).to_owned(), (source, Vec::new()));
                }
                ["location", "~", ..] => {
                    block = vec!["location", comment];
                    nginx
                        .locations
                        .insert(comment.to_owned(), Default::default());
                }
                ["}"] => block.clear(),
                [first, rest @ ..] => match (block.as_slice(), *first) {
                    (["upstream", name], "server") => {
                        let parameters = rest.join(" ");
                        let weight = parameters
                            .split(' ')
                            .find_map(|word| word.strip_prefix("weight="));
                        let weight = weight.map_or(1, |weight| weight.parse().unwrap());
                        let servers = nginx.upstreams.get_mut(*name).unwrap();
                        if !parameters.contains(" backup;") {
                            servers.push((rest[0].to_owned(), weight));
                        }
                    }
                    (["map", variable], key) if !rest.is_empty() && key != "#" => {
                        let rows = &mut nginx.maps.get_mut(*variable).unwrap().1;
                        let value = rest.last().unwrap().trim_end_matches(';');
                        rows.push((key.trim_matches('"').to_owned(), value.to_owned()));
                    }
                    (["location", id], "set") if rest[0] == "$synapse_group" => {
                        nginx.locations.get_mut(*id).unwrap().0 = rest[1].to_owned();
                    }
                    (["location", id], "proxy_pass") => {
                        let upstream = rest[0].trim_start_matches("http://").to_owned();
                        nginx.locations.get_mut(*id).unwrap().1 = upstream;
                    }
                    _ => {}
                },
                [] => {}
            }
        }
        let rings = nginx
            .upstreams
            .iter()
            .map(|(name, servers)| (name.clone(), ring(servers)));
        nginx.rings = rings.collect();
        nginx
    }

    /// The upstream of a user at a location; `initial` is the value of a map that asks the query.
    fn upstream(&self, id: &str, initial: bool, user: UserHash, at: u64) -> String {
        let Some((group, upstream)) = self.locations.get(id) else {
            return "synapse_main".to_owned();
        };
        let mut group = group.clone();
        if let Some((_, rows)) = self.maps.get(&group) {
            let row = rows.iter().find(|(key, _)| (key == "default") != initial);
            group = row.unwrap().1.clone();
        }
        if upstream != "$synapse_upstream" {
            return group;
        }
        let (source, rows) = &self.maps["$synapse_upstream"];
        assert_eq!(source, "$synapse_group");
        let value = rows.iter().find(|(key, _)| *key == group);
        let value = value.map_or(&group, |(_, value)| value);
        self.value(value, user, at)
    }

    /// A variable of a user, by the maps and shifts; or the word that it is.
    fn value(&self, word: &str, user: UserHash, at: u64) -> String {
        if let Some((old, new, shift)) = self.shifts.get(word) {
            return if shift.has_moved(user, at) { new } else { old }.clone();
        }
        let Some((source, rows)) = self.maps.get(word) else {
            assert!(self.upstreams.contains_key(word), "{word} is nothing");
            return word.to_owned();
        };
        let hash = String::from_utf8(user.hex().to_vec()).unwrap();
        let source = match source.strip_suffix(":$matrix_user_hash") {
            Some(share) => format!("{}:{hash}", self.value(share, user, at)),
            None if source == "$matrix_user_hash" => hash,
            None => self.value(source, user, at),
        };
        let fits = |key: &str| match key.strip_prefix("~^") {
            Some(start) => source.starts_with(start.trim_end_matches('.')),
            None => key == source,
        };
        let row = rows.iter().find(|(key, _)| fits(key));
        let row = row.or_else(|| rows.iter().find(|(key, _)| key == "default"));
        self.value(&row.unwrap().1, user, at)
    }

    /// The server of a user there.
    fn server(&self, id: &str, initial: bool, user: UserHash, at: u64) -> String {
        let upstream = self.upstream(id, initial, user, at);
        let hash = crc32fast::hash(&user.hex());
        let ring = &self.rings[&upstream];
        let next = ring
            .iter()
            .find(|(point, _)| *point >= hash)
            .or(ring.first());
        next.unwrap().1.clone()
    }
}

/// The points of nginx's consistent hash, by ngx_http_upstream_hash_module.c.
fn ring(servers: &[(String, usize)]) -> Vec<(u32, String)> {
    let mut ring = Vec::new();
    for (server, weight) in servers {
        let (host, port) = server.rsplit_once(':').unwrap();
        let mut previous = 0_u32;
        for _ in 0..160 * weight {
            let mut text = format!("{host}\0{port}").into_bytes();
            text.extend(previous.to_le_bytes());
            previous = crc32fast::hash(&text);
            ring.push((previous, server.clone()));
        }
    }
    ring.sort_by_key(|(point, _)| *point);
    ring
}

/// A little generator of random numbers: SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        UserHash::from_bits(self.0).to_bits()
            ^ self.0.rotate_left(31).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 7
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

fn random_workers(random: &mut Random) -> Vec<(String, Vec<&'static str>, u16, u16)> {
    let mut workers = Vec::new();
    for (role, base) in [
        ("sync", 8100),
        ("initial_sync", 8200),
        ("sliding_sync", 8300),
    ] {
        // Some types have no worker, and of those that have some come and go.
        let count = random.below(5).saturating_sub(u64::from(role != "sync"));
        for n in 0..count {
            let port = base + u16::try_from(n + random.below(2) * 4).unwrap();
            let weight = if random.below(4) == 0 { 2 } else { 1 };
            workers.push((format!("{role}{port}"), vec![role], port, weight));
        }
    }
    let mut ports = BTreeSet::new();
    workers.retain(|(_, _, port, _)| ports.insert(*port));
    for (n, role) in ["room", "client_reader", "federation_reader"]
        .into_iter()
        .enumerate()
    {
        if random.below(2) == 0 {
            let port = 8400 + u16::try_from(n).unwrap();
            workers.push((role.to_owned(), vec![role], port, 1));
        }
    }
    workers
}

/// A canary and pins that such a deployment may have, or nothing.
fn random_chosen(
    random: &mut Random,
    workers: &[(String, Vec<&str>, u16, u16)],
    users: &[UserHash],
) -> String {
    let by_user: Vec<_> = workers
        .iter()
        .filter(|(_, types, ..)| types[0].ends_with("sync"))
        .collect();
    let mut text = String::new();
    let worker = |random: &mut Random| {
        let at = random.below(by_user.len().max(1) as u64);
        by_user.get(usize::try_from(at).unwrap()).copied()
    };
    if let Some((name, types, ..)) = worker(random).filter(|_| random.below(4) != 0) {
        // Somebody has to be on the ring beside it.
        if by_user.iter().filter(|other| other.1 == *types).count() > 1 {
            let percent = [10, 50][usize::try_from(random.below(2)).unwrap()];
            text += &format!("[canary]\nworker = \"{name}\"\npercent = {percent}\n");
        }
    }
    for user in users.iter().take(4) {
        if let Some((name, ..)) = worker(random).filter(|_| random.below(4) == 0) {
            let user = String::from_utf8(user.hex().to_vec()).unwrap();
            text += &format!("[[pin]]\nuser = \"{user}\"\nworker = \"{name}\"\n");
        }
    }
    text
}

/// Locations by user, each with and without what makes a request an initial one.
const PLACES: [(&str, bool); 6] = [
    ("sync", false),
    ("sync", true),
    ("events", false),
    ("events", true),
    ("initial_sync", false),
    ("sliding_sync", false),
];

#[test]
fn between_two_random_deployments_each_user_moves_once_and_ends_where_the_plain_configuration_has_them()
 {
    let mut random = Random(20_261_125);
    let users: Vec<UserHash> = (0..60).map(|n| hash_of(&id_of(n))).collect();
    let mut moved = 0;
    let mut still = 0;
    let mut others_refused = 0;
    for case in 0..40 {
        let path = folder(&format!("moves-random-{case}"));
        let (one, other) = (random_workers(&mut random), random_workers(&mut random));
        let chosen = [&one, &other].map(|workers| random_chosen(&mut random, workers, &users));
        let other_text = deployment(&other) + &chosen[1];
        write(&path, &(deployment(&one) + &chosen[0]));
        render(&path, &[], 0);
        let before = files(&path);
        write(&path, &other_text);
        gradually(&path);
        let during = files(&path);
        // Rendering is idempotent while it runs, with and without the wish.
        for again in [render(&path, &[], 0), gradually(&path)] {
            assert_eq!(files(&path), during, "case {case}");
            assert_eq!(
                again.contains("are on the move until 2100-01-01T00:30:00Z"),
                during.contains_key("moving.conf"),
                "{again}"
            );
        }
        let nginx = Nginx::read(&during);
        let old = Nginx::read(&before);
        if during.contains_key("moving.conf") {
            // Another change is refused: there is another sync worker.
            let mut third = other.clone();
            third.push(("another".to_owned(), vec!["sync"], 8500, 1));
            write(&path, &deployment(&third));
            let mut changed = vec![deployment(&third) + &chosen[1]];
            // So is one of the canary alone.
            if chosen[1].contains("percent = ") {
                changed.push(other_text.replace("percent = ", "percent = 1."));
                others_refused += 1;
            }
            for changed in changed {
                write(&path, &changed);
                let said = render(&path, &[], 2);
                assert!(
                    said.contains("are on the move until 2100-01-01T00:30:00Z, another "),
                    "{said}"
                );
                assert!(said.contains("--now"), "{said}");
                assert_eq!(files(&path), during);
            }
            write(&path, &other_text);
        }
        render(&path, &["--now"], 0);
        let after = files(&path);
        assert_eq!(after.contains_key("moving.conf"), !chosen[1].is_empty());
        let plain = Nginx::read(&after);
        assert!(
            plain
                .shifts
                .values()
                .all(|(.., shift)| shift.span().is_none())
        );
        // Groups that are the same before and after are so during it, and groups that move are what they will be.
        for (name, servers) in &plain.upstreams {
            assert_eq!(
                Some(servers),
                nginx.upstreams.get(name),
                "case {case}: {name}"
            );
            let block = |files: &BTreeMap<String, String>| {
                let moving = files.get("moving.conf").map_or("", String::as_str);
                let text = format!("{}{moving}", files["upstreams.conf"]);
                let from = text.find(&format!("upstream {name} {{")).unwrap();
                text[from..].split("\n}").next().unwrap().to_owned()
            };
            assert_eq!(block(&during), block(&after), "case {case}");
        }
        for id in plain
            .locations
            .keys()
            .filter(|id| !PLACES.iter().any(|(place, _)| place == id))
        {
            assert_eq!(
                plain.locations[id], nginx.locations[id],
                "case {case}: {id}"
            );
        }
        for user in &users {
            let moment = Shift::Over(Span::new(START, OVER).unwrap())
                .moment(*user)
                .unwrap();
            for (id, initial) in PLACES {
                let at = |time| nginx.server(id, initial, *user, time);
                let (first, last) = (at(START - 1), at(START + OVER));
                let was = old.server(id, initial, *user, 0);
                let is = plain.server(id, initial, *user, 0);
                assert_eq!((&first, &last), (&was, &is), "case {case}: {id} {initial}");
                // Every device of the user changes at the same millisecond, and only then.
                assert_eq!(
                    (at(moment - 1), at(moment)),
                    (was, is),
                    "case {case}: {id} {initial}"
                );
                if first == last {
                    still += 1;
                } else {
                    moved += 1;
                }
            }
        }
    }
    assert!(moved > 3000 && still > 1000, "{moved} {still}");
    assert!(others_refused > 3, "{others_refused}");
}

/// The installed shift of a folder, moved in time: as if a day had passed, or had not.
fn set_start(folder: &Path, start: &str) {
    let path = folder.join("synapse/moving.conf");
    let text = std::fs::read_to_string(&path).unwrap();
    let changed = text.replace("start=2100-01-01T00:00:00Z", &format!("start={start}"));
    assert_ne!(text, changed);
    std::fs::write(path, changed).unwrap();
}

#[test]
fn after_its_end_a_shift_is_rendered_away_and_check_says_so() {
    let path = folder("moves-end");
    write(&path, &sync_workers(3));
    render(&path, &[], 0);
    write(&path, &sync_workers(4));
    let said = gradually(&path);
    assert!(
        said.contains(
            "users of synapse_sync move from 2100-01-01T00:00:00Z to 2100-01-01T00:30:00Z"
        ),
        "{said}"
    );
    set_start(&path, "2020-01-01T00:00:00Z");
    let installed = path.to_str().unwrap();
    let (rollout, _) = {
        let output = companion(&["rollout", "--installed", installed]);
        (String::from_utf8(output.stdout).unwrap(), ())
    };
    assert!(rollout.contains("all have moved"), "{rollout}");
    let (difference, _) = run(&path, &["diff"], &["--installed", installed], 1);
    assert!(
        difference.contains("-matrix_user_hash_shift "),
        "{difference}"
    );
    let said = render(&path, &[], 0);
    assert!(
        said.contains(
            "all users of synapse_sync have moved: the shift ended at 2020-01-01T00:30:00Z"
        ),
        "{said}"
    );
    let plain = files(&path);
    assert!(!plain.contains_key("moving.conf"));
    let fresh = folder("moves-end-fresh");
    write(&fresh, &sync_workers(4));
    render(&fresh, &[], 0);
    assert_eq!(files(&fresh), plain);
    assert_eq!(render(&path, &[], 0), "");
    // The next change may begin where the last one ended.
    write(&path, &sync_workers(5));
    gradually(&path);
    assert!(
        files(&path)["moving.conf"].contains("8084"),
        "the ring of four is the one before"
    );
}

#[test]
fn a_change_that_moves_nobody_renders_nothing_extra() {
    let path = folder("moves-nobody");
    write(&path, &sync_workers(3));
    render(&path, &[], 0);
    let before = files(&path);
    let said = gradually(&path);
    assert!(said.contains("nobody has to move"), "{said}");
    assert_eq!(files(&path), before);
    // Another order, another limit and another type elsewhere are no other ring.
    let text = sync_workers(3).replace("port = 8082\n", "port = 8082\nmax_conns = 7\n");
    let (head, workers) = text.split_at(text.find("[[workers]]").unwrap());
    let mut parts: Vec<&str> = workers.split_inclusive("weight = 1\n").collect();
    parts.reverse();
    write(&path, &format!("{head}{}", parts.concat()));
    gradually(&path);
    let after = files(&path);
    assert!(!after.contains_key("moving.conf"));
    assert!(
        after["upstreams.conf"].contains("server 127.0.0.1:8082 max_conns=7 max_fails=0; # sync2")
    );
}

#[test]
fn a_worker_is_drained_in_a_word() {
    let path = folder("moves-drain");
    let output = path.to_str().unwrap();
    let with_room = sync_workers(3)
        + "[[workers]]\nname = \"room1\"\ntype = \"room\"\nhost = \"127.0.0.1\"\nport = 8090\n\
           [[workers]]\nname = \"typing1\"\ntype = \"typing\"\nhost = \"127.0.0.1\"\nport = 8091\n";
    write(&path, &with_room);
    render(&path, &[], 0);
    let drain = |worker: &str, expect| {
        let more = ["--output", output, "--start", "2100-01-01T00:00:00Z"];
        run(&path, &["drain", worker], &more, expect).1
    };
    for (worker, words) in [
        ("snyc2", "write sync2"),
        ("typing1", "the only writer of typing"),
    ] {
        let said = drain(worker, 2);
        assert!(said.contains(words), "{said}");
    }
    let said = drain("sync2", 0);
    assert!(said.contains("take sync2 out of the deployment"), "{said}");
    let during = files(&path);
    assert!(!during["upstreams.conf"].contains("8082") && during["moving.conf"].contains("8082"));
    assert!(during["moving.conf"].contains("over=1800s"));
    // Once more is once; the deployment that still has the worker is another change.
    drain("sync2", 0);
    assert_eq!(files(&path), during);
    let said = render(&path, &[], 2);
    assert!(said.contains("on the move until"), "{said}");
    write(&path, &sync_workers(1));
    render(&path, &["--now"], 0);
    assert!(drain("sync1", 2).contains("only worker of the type sync"));
}

#[test]
fn a_start_that_is_over_and_a_folder_without_anything_are_refused() {
    let path = folder("moves-refused");
    write(&path, &sync_workers(3));
    let said = render(&path, &["--gradually", "30m"], 2);
    assert!(
        said.contains("nothing of synapse-companion's is installed"),
        "{said}"
    );
    render(&path, &[], 0);
    write(&path, &sync_workers(4));
    let said = render(
        &path,
        &["--gradually", "30m", "--start", "2020-01-01T00:00:00Z"],
        2,
    );
    assert!(said.contains("2020-01-01T00:00:00Z is over"), "{said}");
    let said = render(&path, &["--gradually", "9000h"], 2);
    assert!(said.contains("365 days"), "{said}");
    // Without a start, at the next whole minute that is a minute away.
    let said = render(&path, &["--gradually", "30m"], 0);
    assert!(said.contains(":00Z to "), "{said}");
}

/// What somebody does to a file's text.
type Change = Box<dyn Fn(String) -> String>;

/// Changes a rendered file, as an operator does with an editor.
fn edit(folder: &Path, name: &str, change: &dyn Fn(String) -> String) {
    let path = folder.join("synapse").join(name);
    let text = std::fs::read_to_string(&path).unwrap();
    let changed = change(text.clone());
    assert_ne!(text, changed, "{name}");
    std::fs::write(path, changed).unwrap();
}

#[test]
fn files_that_somebody_has_changed_are_not_read_as_if_nobody_were_on_the_move() {
    let canary = "[canary]\nworker = \"sync3\"\npercent = 5\n";
    let pin = "[[pin]]\nuser = \"86f01aef21b1acd3\"\nworker = \"sync1\"\n";
    let deployed = with_chosen(4, &format!("{canary}{pin}"));
    let without = |words: &'static str| {
        move |text: String| {
            let kept = text.lines().filter(|line| !line.contains(words));
            kept.fold(String::new(), |text, line| text + line + "\n")
        }
    };
    let instead = |old: &'static str, new: &'static str| move |text: String| text.replace(old, new);
    let shift = "matrix_user_hash_shift $synapse_sync_moving";
    let changes: [(&str, Change); 12] = [
        ("moving.conf", Box::new(without("Rendered by"))),
        ("upstreams.conf", Box::new(without("Rendered by"))),
        ("http.conf", Box::new(without("Rendered by"))),
        ("moving.conf", Box::new(without(shift))),
        (
            "moving.conf",
            Box::new(instead(
                shift,
                "#matrix_user_hash_shift $synapse_sync_moving",
            )),
        ),
        // As moving-users.md says of those who write their own configuration.
        (
            "moving.conf",
            Box::new(instead("start=2100-01-01T00:00:00Z over=1800s", "at=50%")),
        ),
        (
            "moving.conf",
            Box::new(instead("over=1800s", "over=forever")),
        ),
        (
            "moving.conf",
            Box::new(instead(
                "2100-01-01T00:00:00Z over",
                "2100-02-30T00:00:00Z over",
            )),
        ),
        (
            "moving.conf",
            Box::new(instead(
                "synapse_sync_before synapse_sync ",
                "synapse_sync_before synapse_snyc ",
            )),
        ),
        (
            "moving.conf",
            Box::new(instead(
                "upstream synapse_sync_before {",
                "upstream other {",
            )),
        ),
        (
            "moving.conf",
            Box::new(without("$synapse_sync_share ring canary")),
        ),
        ("moving.conf", Box::new(without("86f01aef21b1acd3"))),
    ];
    let path = folder("moves-by-hand");
    let installed = path.to_str().unwrap();
    let judge = |what: &str| {
        for gently in [&[][..], &["--gradually", "30m"]] {
            let said = render(&path, gently, 2);
            assert!(
                said.contains("put the file back as it was"),
                "{what}: {said}"
            );
        }
        let rollout = companion(&["rollout", "--installed", installed]);
        assert_eq!(rollout.status.code(), Some(2), "{what}");
        // What the message says helps. Somebody else's file is somebody else's.
        render(&path, &["--now", "--force"], 0);
        let moving = &files(&path)["moving.conf"];
        assert!(!moving.contains("synapse_sync_before"), "{what}: {moving}");
        assert_eq!(render(&path, &[], 0), "", "{what}");
    };
    let begin = || {
        let _ = std::fs::remove_dir_all(path.join("synapse"));
        write(&path, &with_chosen(3, &format!("{canary}{pin}")));
        render(&path, &[], 0);
        write(&path, &deployed);
        gradually(&path);
    };
    for (name, change) in &changes {
        begin();
        edit(&path, name, change);
        judge(name);
    }
    for name in ["http.conf", "upstreams.conf", "moving.conf"] {
        begin();
        std::fs::remove_file(path.join("synapse").join(name)).unwrap();
        judge(name);
    }
    // Where nothing at all is left, nothing is installed.
    std::fs::remove_dir_all(path.join("synapse")).unwrap();
    render(&path, &[], 0);
}

#[test]
fn a_group_on_the_move_cannot_be_spread_by_another_thing() {
    let path = folder("moves-turns");
    write(&path, &sync_workers(3));
    render(&path, &[], 0);
    write(&path, &sync_workers(4));
    gradually(&path);
    let during = files(&path);
    write(&path, &(sync_workers(4) + "[spread]\nsync = \"turns\"\n"));
    let said = render(&path, &[], 2);
    assert!(
        said.contains("until then synapse_sync cannot change again"),
        "{said}"
    );
    assert_eq!(files(&path), during);
    render(&path, &["--now"], 0);
    assert!(!files(&path).contains_key("moving.conf"));
}

#[test]
fn a_shift_keeps_its_time_and_can_be_taken_back_before_it_begins() {
    let path = folder("moves-back");
    write(&path, &sync_workers(3));
    render(&path, &[], 0);
    let before = files(&path);
    write(&path, &sync_workers(4));
    gradually(&path);
    let during = files(&path);
    for other in [
        &["--gradually", "31m"][..],
        &["--gradually", "30m", "--start", "2100-01-02T00:00:00Z"],
    ] {
        let said = render(&path, other, 0);
        assert!(said.contains("keeps its start and its length"), "{said}");
        assert_eq!(files(&path), during);
    }
    for same in [&[][..], &["--gradually", "30m"]] {
        let said = render(&path, same, 0);
        assert!(!said.contains("warning"), "{said}");
    }
    write(&path, &sync_workers(5));
    let said = render(&path, &[], 2);
    assert!(said.contains("nobody has moved yet"), "{said}");
    write(&path, &sync_workers(3));
    render(&path, &["--now"], 0);
    assert_eq!(files(&path), before);
    // Begun, it has moved some.
    write(&path, &sync_workers(4));
    gradually(&path);
    let now = std::time::SystemTime::now();
    let passed = now.duration_since(std::time::UNIX_EPOCH).unwrap();
    let begun = format!("start={} over=86400s", passed.as_secs() - 3600);
    edit(&path, "moving.conf", &|text| {
        text.replace("start=2100-01-01T00:00:00Z over=1800s", &begun)
    });
    write(&path, &sync_workers(5));
    let said = render(&path, &[], 2);
    assert!(said.contains("moves everybody at once"), "{said}");
    let said = {
        let end = ["--gradually", "30m", "--start", "9999-12-31T23:59:00Z"];
        render(&path, &["--now"], 0);
        write(&path, &sync_workers(6));
        render(&path, &end, 2)
    };
    assert!(said.contains("after the year 9999"), "{said}");
}

#[test]
fn a_new_name_does_not_lose_users_who_are_on_the_move() {
    let folder = folder("moves-renamed");
    write(&folder, &sync_workers(2));
    render(&folder, &[], 0);
    write(&folder, &sync_workers(3));
    gradually(&folder);
    // The same workers under another name.
    write(&folder, &format!("name = \"matrix\"\n{}", sync_workers(3)));
    let said = render(&folder, &[], 2);
    assert!(said.contains("under the name synapse"), "{said}");
    assert!(said.contains("keep name = \"synapse\""), "{said}");
    render(&folder, &["--now"], 0);
    // Another homeserver in the same nginx is another matter.
    let other = deployment(&[("sync1".to_owned(), vec!["sync"], 9081, 1)]).replace("8008", "9008");
    std::fs::remove_dir_all(folder.join("matrix")).unwrap();
    write(&folder, &format!("name = \"second\"\n{other}"));
    render(&folder, &[], 0);
}

#[test]
fn a_folder_that_is_named_must_be_there() {
    let path = folder("moves-nowhere");
    write(&path, &sync_workers(3));
    let route = ["route", "GET", "/_matrix/client/v3/sync"];
    let drain = ["drain", "sync1"];
    for command in [&["render"][..], &["check"], &["diff"], &route, &drain] {
        let said = run(&path, command, &["--installed", "/nowhere"], 2).1;
        assert!(said.contains("there is no such folder"), "{said}");
    }
    let rollout = companion(&["rollout", "--installed", "/nowhere"]);
    assert_eq!(rollout.status.code(), Some(2));
}

#[test]
fn a_folder_that_cannot_be_written_whole_stays_as_it_was() {
    let path = folder("moves-disk");
    write(&path, &sync_workers(3));
    render(&path, &[], 0);
    let before = files(&path);
    // The last file of all cannot be written.
    let last = path.join("synapse/upstreams.conf.new");
    std::fs::create_dir(&last).unwrap();
    write(&path, &sync_workers(4));
    let start = ["--gradually", "30m", "--start", "2100-01-01T00:00:00Z"];
    let said = render(&path, &start, 2);
    assert!(said.contains("cannot write"), "{said}");
    std::fs::remove_dir(&last).unwrap();
    assert_eq!(files(&path), before);
    gradually(&path);
    assert!(files(&path)["moving.conf"].contains("start=2100-01-01T00:00:00Z"));
}

/// The name of a user who is made up.
fn id_of(n: u32) -> String {
    format!("@user{n}:example.org")
}

fn hash_of(id: &str) -> UserHash {
    UserHash::of_user(&UserId::try_from(id).unwrap())
}

/// The line of the access log for a sync of a user, ten minutes into a shift.
fn sync_of(digits: &str) -> String {
    format!(
        "203.0.113.9 [2100-01-01T00:10:00+00:00] \"GET /_matrix/client/v3/sync\" 200 9 time=0.100 \
        group=synapse_sync worker=127.0.0.1:8081 user_hash={digits} user_hash_status=HIT\n"
    )
}

#[test]
fn route_and_rollout_say_who_moves_when() {
    let path = folder("moves-route");
    let installed = path.to_str().unwrap();
    write(&path, &sync_workers(3));
    render(&path, &[], 0);
    let ask = |user: &str, at: &str| {
        let command = ["route", "GET", "/_matrix/client/v3/sync?since=s1"];
        let more = ["--installed", installed, "--user", user, "--at", at];
        run(&path, &command, &more, 0).0
    };
    assert!(!ask("@a:b", "2100-01-01T00:00:00Z").contains("move"));
    write(&path, &sync_workers(4));
    gradually(&path);
    let nginx = Nginx::read(&files(&path));
    let shift = Shift::Over(Span::new(START, OVER).unwrap());
    let mut movers = 0;
    let mut log = String::new();
    for n in 0..200 {
        let id = id_of(n);
        let user = hash_of(&id);
        let digits = String::from_utf8(user.hex().to_vec()).unwrap();
        log += &sync_of(&digits);
        let moment = shift.moment(user).unwrap();
        let at = |time| nginx.server("sync", false, user, time);
        let (was, is) = (at(0), at(u64::MAX));
        movers += u32::from(was != is);
        // A few are asked for, for each is a process of its own.
        if n < 12 {
            let before = ask(&id, &((moment - 1000) / 1000).to_string());
            assert!(before.contains(&format!("  {was}\n")), "{before}");
            let after = ask(&id, &(moment / 1000 + 1).to_string());
            assert!(after.contains(&format!("  {is}\n")), "{after}");
            assert_eq!(
                before.contains("moves     at 2100-01-01T00:"),
                was != is,
                "{before}"
            );
            assert_eq!(
                after.contains("moved     at 2100-01-01T00:"),
                was != is,
                "{after}"
            );
        }
    }
    let file = path.join("access.log");
    std::fs::write(&file, log).unwrap();
    let rollout = |more: &[&str]| {
        let at = [
            "rollout",
            file.to_str().unwrap(),
            "--installed",
            installed,
            "--at",
            "2100-01-01T00:15:00Z",
        ];
        let output = companion(&[&at, more].concat());
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let text = rollout(&["--list"]);
    assert!(
        text.contains("50.0% of the time is over, 15m left"),
        "{text}"
    );
    assert!(
        text.contains(&format!(
            "of 200 users in the logs {movers} change their worker"
        )),
        "{text}"
    );
    assert_eq!(
        text.matches(" to sync4\n").count(),
        movers as usize,
        "{text}"
    );
    let json: serde_json::Value = serde_json::from_str(&rollout(&["--json"])).unwrap();
    let group = &json["groups"][0];
    assert_eq!(group["group"], "synapse_sync");
    let new = group["workers"]
        .as_array()
        .unwrap()
        .iter()
        .find(|w| w["worker"] == "sync4")
        .unwrap();
    let parts = ["before", "now", "after"].map(|key| new[key].as_f64().unwrap());
    assert_eq!(parts[0], 0.0);
    assert!(
        (0.1..0.4).contains(&parts[2]) && (parts[1] - parts[2] / 2.0).abs() < 1e-9,
        "{parts:?}"
    );
    assert!((group["movers"].as_f64().unwrap() - parts[2]).abs() < 1e-9);
    let moved = group["users"]["movers"].as_array().unwrap();
    let early = moved
        .iter()
        .filter(|m| m["moment"].as_str().unwrap() < "2100-01-01T00:15:00Z")
        .count();
    assert_eq!(group["users"]["moved"], early);
}

/// A deployment with a canary and pins, as operators write it.
fn with_chosen(count: u16, more: &str) -> String {
    format!("{}{more}", sync_workers(count))
}

#[test]
fn route_names_the_worker_of_a_pinned_user_and_of_one_in_the_canary() {
    let path = folder("moves-chosen");
    let installed = path.to_str().unwrap();
    let pinned = String::from_utf8(hash_of("@user7:example.org").hex().to_vec()).unwrap();
    let chosen = format!(
        "[canary]\nworker = \"sync4\"\npercent = 25\n[[pin]]\nuser = \"{pinned}\"\nworker = \"sync2\"\n"
    );
    write(&path, &with_chosen(4, &chosen));
    render(&path, &[], 0);
    let nginx = Nginx::read(&files(&path));
    assert_eq!(
        nginx.upstreams["synapse_sync"].len(),
        3,
        "the canary is in the ring"
    );
    let ring = &nginx.rings["synapse_sync"];
    let mut in_canary = 0;
    for n in 0..40 {
        let id = id_of(n);
        let command = ["route", "GET", "/_matrix/client/v3/sync?since=s1"];
        let shown = run(
            &path,
            &command,
            &["--installed", installed, "--user", &id],
            0,
        )
        .0;
        let user = hash_of(&id);
        let digits = crc32fast::hash(&user.hex());
        let on_ring = ring
            .iter()
            .find(|(point, _)| *point >= digits)
            .or(ring.first());
        let expected = if n == 7 {
            "worker    sync2  127.0.0.1:8082"
        } else if Shift::At(2500).has_moved(user, 0) {
            in_canary += 1;
            "worker    sync4  127.0.0.1:8084"
        } else {
            assert!(
                shown.contains("hash $matrix_user_hash consistent"),
                "{shown}"
            );
            on_ring.unwrap().1.as_str()
        };
        assert!(
            shown.contains(&format!("{expected}\n")),
            "{id}: {expected}\n{shown}"
        );
    }
    assert!((3..20).contains(&in_canary), "{in_canary}");
    let text = &files(&path)["moving.conf"];
    assert!(!text.contains("user7"), "{text}");
    // A fixed share has no end, so that a change is not refused, and users move beside the canary.
    write(&path, &with_chosen(5, &chosen));
    gradually(&path);
    let during = files(&path);
    let text = &during["moving.conf"];
    for line in [
        "matrix_user_hash_shift $synapse_sync_moving synapse_sync_before synapse_sync start=2100-01-01T00:00:00Z over=1800s;",
        "matrix_user_hash_shift $synapse_sync_share ring canary at=25.00%;",
        "matrix_user_hash_shift $synapse_sync_before_share ring canary at=25.00%;",
        "    default $synapse_sync_pin;",
        "    synapse_sync_before $synapse_sync_before_pin;",
        "    synapse_sync $synapse_sync_place;",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    render(&path, &[], 0);
    assert_eq!(files(&path), during);
    let block = |text: &str| {
        text.split("upstream synapse_sync_before {")
            .nth(1)
            .unwrap()
            .split('}')
            .next()
            .unwrap()
            .to_owned()
    };
    assert!(
        !block(text).contains("8084"),
        "the canary was no member of the ring before"
    );
}

#[test]
fn the_users_of_a_canary_that_joins_the_ring_move_once() {
    let path = folder("moves-canary-joins");
    let installed = path.to_str().unwrap();
    let canary = "[canary]\nworker = \"sync4\"\npercent = 30\n";
    write(&path, &with_chosen(4, canary));
    render(&path, &[], 0);
    // Drained it goes as gently, and its share with it.
    let more = ["--output", installed, "--start", "2100-01-01T00:00:00Z"];
    run(&path, &["drain", "sync4"], &more, 0);
    let nginx = Nginx::read(&files(&path));
    assert!(nginx.shifts["$synapse_sync_before_share"].2 == Shift::At(3000));
    assert!(!nginx.shifts.contains_key("$synapse_sync_share"));
    write(&path, &with_chosen(4, canary));
    render(&path, &["--now"], 0);
    write(&path, &sync_workers(4));
    let said = gradually(&path);
    assert!(said.contains("users of synapse_sync move from"), "{said}");
    let nginx = Nginx::read(&files(&path));
    let mut log = String::new();
    let mut expected = BTreeMap::new();
    let (mut in_canary, mut at_sync4) = (0, 0);
    for n in 0..400 {
        let id = id_of(n);
        let user = hash_of(&id);
        let digits = String::from_utf8(user.hex().to_vec()).unwrap();
        log += &sync_of(&digits);
        let [was, now, is] =
            [0, START + OVER / 5, u64::MAX].map(|at| nginx.server("sync", false, user, at));
        in_canary += u32::from(was.ends_with(":8084"));
        at_sync4 += u32::from(now.ends_with(":8084"));
        if was != is {
            expected.insert(digits, (was, is));
        }
    }
    // Who is in the canary and shall be on the same worker does not leave it.
    assert!((90..150).contains(&in_canary), "{in_canary}");
    let file = path.join("access.log");
    std::fs::write(&file, log).unwrap();
    let fifth = ["--installed", installed, "--at", "2100-01-01T00:06:00Z"];
    let output = companion(&[&["rollout", "--json", file.to_str().unwrap()][..], &fifth].concat());
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let group = &json["groups"][0];
    let movers = group["users"]["movers"].as_array().unwrap();
    let port =
        |worker: &serde_json::Value| worker.as_str().unwrap().replace("sync", "127.0.0.1:808");
    let told: BTreeMap<String, (String, String)> = movers
        .iter()
        .map(|m| {
            (
                m["user"].as_str().unwrap().to_owned(),
                (port(&m["from"]), port(&m["to"])),
            )
        })
        .collect();
    assert_eq!(told, expected);
    let of_all = |key: &str| group[key].as_f64().unwrap();
    assert!(
        (of_all("movers") - expected.len() as f64 / 400.0).abs() < 0.08,
        "{group}"
    );
    assert!(
        0.0 < of_all("moved") && of_all("moved") < of_all("movers"),
        "{group}"
    );
    let workers = group["workers"].as_array().unwrap();
    let share = |worker: &str, when: &str| {
        let row = workers.iter().find(|row| row["worker"] == worker);
        row.unwrap()[when].as_f64().unwrap()
    };
    assert!((share("sync4", "before") - 0.3).abs() < 1e-9, "{group}");
    assert!(
        (share("sync4", "now") - f64::from(at_sync4) / 400.0).abs() < 0.08,
        "{group}"
    );
}

#[test]
fn a_canary_that_is_a_dns_service_has_each_user_on_one_of_its_workers() {
    let path = folder("moves-service");
    let text = "[main]\nhost = \"127.0.0.1\"\nport = 8008\n\
        [[workers]]\nname = \"sync1\"\ntype = \"sync\"\nhost = \"127.0.0.1\"\nport = 8081\n\
        [[workers]]\nname = \"next\"\ntype = \"sync\"\nhost = \"next.matrix.test\"\nservice = \"http\"\n\
        [resolver]\naddresses = [\"192.0.2.53\"]\n";
    let rendered = |more: &str| {
        write(&path, &format!("{text}{more}"));
        let input = path.join("deployment.toml");
        let args = [
            "render",
            "-d",
            input.to_str().unwrap(),
            "--nginx-version",
            "1.27.3",
        ];
        let output = companion(&[&args[..], &["--output", path.to_str().unwrap()]].concat());
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        files(&path)
    };
    let files = rendered("[canary]\nworker = \"next\"\npercent = 5\n");
    let block = files["moving.conf"]
        .split("upstream synapse_sync_canary {")
        .nth(1)
        .unwrap();
    let block = block.split("\n}").next().unwrap();
    for line in [
        "    resolver 192.0.2.53;",
        "    hash $matrix_user_hash consistent;",
        "    server next.matrix.test service=http resolve weight=2 max_fails=0; # next",
    ] {
        assert!(block.contains(line), "{line} is not in\n{block}");
    }
    // nginx takes no `backup` beside `hash`.
    assert!(!block.contains("backup"), "{block}");
    // The ring is that of the one worker beside it, as if the service were not there.
    assert!(files["upstreams.conf"].contains("server 127.0.0.1:8081 max_fails=0; # sync1"));
    assert!(!files["upstreams.conf"].contains("resolver"));
}

#[test]
fn a_mistake_in_a_canary_or_a_pin_is_named() {
    let path = folder("moves-mistakes");
    let canary = |worker: &str, percent: &str| {
        format!("[canary]\nworker = \"{worker}\"\npercent = {percent}\n")
    };
    let pin = |user: &str| format!("[[pin]]\nuser = \"{user}\"\nworker = \"sync1\"\n");
    let hash = "ec8fb45a46bbc25b";
    for (workers, text, words) in [
        (
            2,
            canary("sync2", "101"),
            vec!["a share is from 0 to 100", "key canary.percent"],
        ),
        (
            2,
            canary("sync2", "0.001"),
            vec!["two digits behind the point"],
        ),
        (
            2,
            canary("snyc2", "1"),
            vec!["no worker whose requests", "write \"sync2\""],
        ),
        (
            1,
            canary("sync1", "1"),
            vec!["the only worker of the type sync", "key canary.worker"],
        ),
        (
            2,
            pin("@alice:example.org"),
            vec!["by hash", "key pin[0].user", "= \"86f01aef21b1acd3\""],
        ),
        (
            2,
            pin(hash) + &pin(hash),
            vec!["pinned twice", "key pin[1].user"],
        ),
        (
            2,
            "[spread]\nsync = \"turns\"\n".to_owned() + &canary("sync2", "1"),
            vec![
                "no worker whose requests are spread by user",
                "key canary.worker",
            ],
        ),
    ] {
        write(&path, &with_chosen(workers, &text));
        let said = run(&path, &["render"], &[], 2).1;
        for word in words {
            assert!(said.contains(word), "{word} is not in\n{said}");
        }
    }
}

#[test]
fn the_page_shows_what_rollout_says() {
    let path = folder("moves-page");
    let workers = |count: u16| {
        let workers: Vec<_> = (1..=count)
            .map(|n| (format!("sync{n}"), vec!["sync"], 8082 + n, 1))
            .collect();
        deployment(&workers)
    };
    write(&path, &workers(3));
    render(&path, &[], 0);
    write(&path, &workers(4));
    gradually(&path);
    set_start(&path, "2026-11-25T15:00:00Z");
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/moving-users.md");
    let page = std::fs::read_to_string(page).unwrap();
    let example = page
        .split("```console\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let (command, shown) = example.split_once('\n').unwrap();
    let words: Vec<&str> = command.split(' ').skip(2).collect();
    let output = companion(&[&words, &["--installed", path.to_str().unwrap()][..]].concat());
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        shown,
        "{words:?}"
    );
}

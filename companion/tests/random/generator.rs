//! Random deployments: what is true of them, and the files that say so.
//!
//! Most are without a fault: what a careful operator may write, in any form. The others have one of the faults of `FAULTS`;
//! these have to be refused or warned of, unless everything is served all the same.

use std::collections::BTreeMap;

use crate::text::{Dice, Yaml, file};

/// A deployment as it is, and as it is written down.
pub(crate) struct Deployment {
    /// Main is the first.
    pub processes: Vec<Process>,
    /// `stream_writers`.
    pub writers: BTreeMap<&'static str, Vec<String>>,
    /// `enable_media_repo` for all.
    pub shared_media: Option<bool>,
    /// What is wrong.
    pub faults: Vec<&'static str>,
    /// Paths and texts.
    pub files: Vec<(String, String)>,
    /// Of `render`.
    pub arguments: Vec<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub name: String,
    pub app: &'static str,
    /// `enable_media_repo` in its own file.
    pub own_media: Option<bool>,
    /// Hosts at which nginx reaches its ports.
    pub hosts: Vec<String>,
    pub listeners: Vec<Listener>,
    /// It has no file and is in the deployment file instead.
    pub declared: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Listener {
    pub kind: &'static str,
    pub tls: bool,
    pub place: Place,
    /// `bind_addresses`.
    pub bound: Vec<String>,
    pub resources: Vec<Vec<&'static str>>,
}

#[derive(Clone, Debug)]
pub(crate) enum Place {
    Port(u16),
    Socket(String),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// All on one machine, told apart by ports.
    Local,
    /// The same with sockets.
    Sockets,
    /// Each on a host of its own.
    Hosts,
}

const STREAMS: [&str; 9] = [
    "typing",
    "to_device",
    "account_data",
    "receipts",
    "presence",
    "push_rules",
    "device_lists",
    "thread_subscriptions",
    "quarantined_media_changes",
];
const SEVERAL: [&str; 4] = [
    "receipts",
    "device_lists",
    "thread_subscriptions",
    "quarantined_media_changes",
];
const FAULTS: [&str; 16] = [
    "a writer without the client resource",
    "a writer without a file",
    "two writers of a stream that takes one",
    "a role without its resource",
    "a worker with TLS only",
    "main has federation with TLS only",
    "nobody says where a worker is",
    "a pattern that fits nobody",
    "the deployment file gives a stream to another worker",
    "a placeholder",
    "media without its writers",
    "media nowhere",
    "a listener of an unknown type",
    "a resource that another entry replaces",
    "two processes at one address",
    "a writer called main",
];
const FORMER: [(&str, &[&str]); 6] = [
    ("synapse.app.synchrotron", &["client"]),
    ("synapse.app.client_reader", &["client"]),
    ("synapse.app.event_creator", &["client"]),
    ("synapse.app.federation_reader", &["federation"]),
    ("synapse.app.frontend_proxy", &["client"]),
    ("synapse.app.user_dir", &["client"]),
];
const IDLE: [&str; 3] = [
    "synapse.app.pusher",
    "synapse.app.federation_sender",
    "synapse.app.appservice",
];

impl Process {
    /// Whether it has a resource on a listener that nginx can use.
    fn has(&self, resource: &str) -> bool {
        self.listeners.iter().any(|listener| {
            listener.kind == "http"
                && !listener.tls
                && listener
                    .resources
                    .iter()
                    .flatten()
                    .any(|name| *name == resource)
        })
    }
}

struct Maker {
    dice: Dice,
    layout: Layout,
    port: u16,
    fault: Option<&'static str>,
    made: Deployment,
}

/// The deployment of a seed.
pub(crate) fn deployment(seed: u64) -> Deployment {
    let mut dice = Dice(seed);
    let layout = *dice.one(&[Layout::Local, Layout::Sockets, Layout::Hosts]);
    let fault = dice.percent(45).then(|| *dice.one(&FAULTS));
    let mut maker = Maker {
        dice,
        layout,
        port: 8008,
        fault,
        made: empty(),
    };
    maker.processes();
    maker.duties();
    maker.write();
    maker.made
}

fn empty() -> Deployment {
    Deployment {
        processes: Vec::new(),
        writers: BTreeMap::new(),
        shared_media: None,
        faults: Vec::new(),
        files: Vec::new(),
        arguments: Vec::new(),
    }
}

/// One that a person can check, for the oracle's own test.
pub(crate) fn sample() -> Deployment {
    let process = |name: &str, app, port, resources: &[&'static str]| Process {
        name: name.to_owned(),
        app,
        own_media: None,
        hosts: vec!["127.0.0.1".to_owned()],
        listeners: vec![Listener {
            kind: "http",
            tls: false,
            place: Place::Port(port),
            bound: Vec::new(),
            resources: vec![resources.to_vec()],
        }],
        declared: false,
    };
    Deployment {
        processes: vec![
            process(
                "main",
                "synapse.app.homeserver",
                8008,
                &["client", "federation"],
            ),
            process("writer1", "synapse.app.generic_worker", 8081, &["client"]),
            process("fed1", "synapse.app.generic_worker", 8082, &["federation"]),
            process("media1", "synapse.app.media_repository", 8083, &["media"]),
        ],
        writers: BTreeMap::from([("typing", vec!["writer1".to_owned()])]),
        shared_media: Some(false),
        ..empty()
    }
}

impl Maker {
    /// Whether this fault is to be made here. It is made once.
    fn fails(&mut self, fault: &'static str) -> bool {
        if self.fault != Some(fault) {
            return false;
        }
        self.fault = None;
        self.made.faults.push(fault);
        true
    }

    fn place(&mut self, name: &str, tls: bool) -> Place {
        self.port += 1;
        let socket = self.layout == Layout::Sockets && !tls && self.dice.percent(80);
        if socket {
            Place::Socket(format!("/run/matrix-synapse/{name}-{}.sock", self.port))
        } else {
            Place::Port(self.port)
        }
    }

    fn listener(&mut self, name: &str, resources: Vec<Vec<&'static str>>) -> Listener {
        let place = self.place(name, false);
        let bound: &[&[&str]] = match self.layout {
            Layout::Hosts => &[&["::"], &["0.0.0.0"], &["::", "0.0.0.0"], &[]],
            _ => &[
                &["127.0.0.1"],
                &["::1", "127.0.0.1"],
                &["0.0.0.0"],
                &["localhost"],
                &[],
            ],
        };
        let bound = self
            .dice
            .one(bound)
            .iter()
            .map(|b| (*b).to_owned())
            .collect();
        Listener {
            kind: "http",
            tls: false,
            place,
            bound,
            resources,
        }
    }

    /// Resources on one port, or on a port each; other ones among them.
    fn listeners(&mut self, name: &str, resources: &[&'static str]) -> Vec<Listener> {
        let mut listeners = Vec::new();
        if resources.len() > 1 && self.dice.percent(40) {
            for resource in resources {
                let one = self.listener(name, vec![vec![*resource]]);
                listeners.push(one);
            }
        } else if !resources.is_empty() {
            let mut names = resources.to_vec();
            for (other, chance) in [("health", 15), ("keys", 10), ("static", 5), ("openid", 5)] {
                if self.dice.percent(chance) {
                    let at = self.dice.below(names.len() + 1);
                    names.insert(at, other);
                }
            }
            // In an entry of its own it would replace federation.
            let names: Vec<&str> = names
                .iter()
                .copied()
                .filter(|name| *name != "openid" || names.contains(&"federation"))
                .collect();
            let separate =
                !names.contains(&"media") && !names.contains(&"openid") && self.dice.percent(20);
            let blocks = if separate {
                names.iter().map(|name| vec![*name]).collect()
            } else {
                vec![names]
            };
            let one = self.listener(name, blocks);
            listeners.push(one);
        }
        for (kind, names, chance) in [
            ("http", vec!["replication"], 50),
            ("metrics", vec![], 30),
            ("manhole", vec![], 10),
        ] {
            if self.dice.percent(chance) {
                self.port += 1;
                let at = self.dice.below(listeners.len() + 1);
                let other = Listener {
                    kind,
                    tls: false,
                    place: Place::Port(self.port),
                    bound: Vec::new(),
                    resources: if names.is_empty() {
                        Vec::new()
                    } else {
                        vec![names]
                    },
                };
                listeners.insert(at, other);
            }
        }
        if self.dice.percent(10) {
            let mut tls = self.listener(name, vec![vec!["client", "federation"]]);
            tls.place = self.place(name, true);
            tls.tls = true;
            listeners.insert(0, tls);
        }
        listeners
    }

    fn add(&mut self, name: &str, app: &'static str, resources: &[&'static str]) {
        let listeners = self.listeners(name, resources);
        let number = self.made.processes.len() + 1;
        let hosts = match self.layout {
            Layout::Hosts => vec![
                format!("{name}.matrix"),
                format!("10.0.0.{number}"),
                format!("[fd00::{number}]"),
            ],
            _ => vec!["127.0.0.1".to_owned(), "[::1]".to_owned()],
        };
        let mut listeners = listeners;
        if self.layout == Layout::Hosts && self.dice.percent(20) {
            let own = self
                .dice
                .one(&hosts[1..])
                .trim_matches(['[', ']'])
                .to_owned();
            for listener in &mut listeners {
                listener.bound = vec![own.clone()];
            }
        }
        self.made.processes.push(Process {
            name: name.to_owned(),
            app,
            own_media: None,
            hosts,
            listeners,
            declared: false,
        });
    }

    fn processes(&mut self) {
        self.add("main", "synapse.app.homeserver", &["client", "federation"]);
        if self.fails("main has federation with TLS only") {
            let main = &mut self.made.processes[0];
            for listener in &mut main.listeners {
                for block in &mut listener.resources {
                    block.retain(|name| *name != "federation");
                }
            }
        }
        let count = self.dice.below(8);
        for i in 1..=count {
            self.worker(i);
        }
        self.media();
        self.broken_listeners();
    }

    fn worker(&mut self, i: usize) {
        let app = "synapse.app.generic_worker";
        let dash = *self.dice.one(&["", "-", "_"]);
        match self.dice.below(10) {
            0..=3 => {
                let shapes: [&[&str]; 4] = [
                    &["client", "federation"],
                    &["client", "federation"],
                    &["client"],
                    &["federation"],
                ];
                let shape = *self.dice.one(&shapes);
                self.add(&format!("generic{dash}{i}"), app, shape);
            }
            4 | 5 => {
                let (app, resources) = *self.dice.one(&FORMER);
                let short = app.rsplit('.').next().unwrap_or_default();
                self.add(&format!("{short}{dash}{i}"), app, resources);
            }
            6 | 7 => self.add(&format!("writer{dash}{i}"), app, &["client"]),
            8 => {
                let idle = if self.dice.percent(50) {
                    app
                } else {
                    *self.dice.one(&IDLE)
                };
                self.add(&format!("idle{dash}{i}"), idle, &[]);
            }
            _ => self.add(&format!("client{dash}{i}"), app, &["client", "federation"]),
        }
    }

    fn media(&mut self) {
        let nowhere = self.fails("media nowhere");
        if nowhere || self.dice.percent(30) {
            self.made.shared_media = Some(false);
        }
        let needed = self.made.shared_media == Some(false);
        if nowhere || !(needed || self.dice.percent(15)) {
            return;
        }
        for i in 1..=1 + self.dice.below(2) {
            let former = self.dice.percent(50);
            let app = if former {
                "synapse.app.media_repository"
            } else {
                "synapse.app.generic_worker"
            };
            let shapes: [&[&str]; 3] = [&["media"], &["media"], &["client", "federation", "media"]];
            let shape = *self.dice.one(&shapes);
            self.add(&format!("media{i}"), app, shape);
            if !former {
                let last = self.made.processes.last_mut();
                last.unwrap().own_media = Some(true);
            }
        }
    }

    /// Faults of listeners, in a worker that has any.
    fn broken_listeners(&mut self) {
        let able: Vec<usize> = (1..self.made.processes.len())
            .filter(|i| self.made.processes[*i].has("client"))
            .collect();
        if able.is_empty() {
            return;
        }
        let chosen = *self.dice.one(&able);
        let tls = self.fails("a worker with TLS only");
        let unknown = self.fails("a listener of an unknown type");
        let replaced = self.fails("a resource that another entry replaces");
        // Under two names of one host nobody could see it.
        let same = self.layout != Layout::Hosts && self.fails("two processes at one address");
        let mains = self.made.processes[0].listeners.clone();
        let process = &mut self.made.processes[chosen];
        for listener in &mut process.listeners {
            let is_for_nginx = listener
                .resources
                .iter()
                .flatten()
                .any(|name| *name == "client");
            if !is_for_nginx || listener.tls {
                continue;
            }
            if tls {
                listener.tls = true;
                if let Place::Socket(_) = listener.place {
                    listener.place = Place::Port(9443);
                }
            }
            if unknown {
                listener.kind = "HTTP";
            }
            if replaced {
                listener.resources = vec![vec!["client"], vec!["media"]];
            }
            let of_main = mains
                .iter()
                .find(|l| !l.tls && l.resources.iter().flatten().any(|name| *name == "client"));
            if same && let Some(main) = of_main {
                listener.place = main.place.clone();
                listener.bound.clone_from(&main.bound);
            }
        }
    }

    fn duties(&mut self) {
        let named = |of: &Deployment, resource: &str| -> Vec<String> {
            let workers = of.processes.iter().skip(1);
            workers
                .filter(|p| p.has(resource))
                .map(|p| p.name.clone())
                .collect()
        };
        let able = named(&self.made, "client");
        for stream in STREAMS {
            if stream == "quarantined_media_changes" || able.is_empty() || !self.dice.percent(30) {
                continue;
            }
            let count = if SEVERAL.contains(&stream) {
                1 + self.dice.below(2)
            } else {
                1
            };
            let mut writers: Vec<String> =
                (0..count).map(|_| self.dice.one(&able).clone()).collect();
            writers.dedup();
            self.made.writers.insert(stream, writers);
        }
        let media: Vec<String> = {
            let repositories = self.made.processes.iter().skip(1);
            let repositories = repositories
                .filter(|p| p.own_media == Some(true) || p.app == "synapse.app.media_repository");
            repositories.map(|p| p.name.clone()).collect()
        };
        if !media.is_empty() && !self.fails("media without its writers") {
            self.made.writers.insert("quarantined_media_changes", media);
        }
        let unable: Vec<String> = {
            let workers = self.made.processes.iter().skip(1);
            workers
                .filter(|p| !p.has("client"))
                .map(|p| p.name.clone())
                .collect()
        };
        if !unable.is_empty() && self.fails("a writer without the client resource") {
            let writer = self.dice.one(&unable).clone();
            let stream = *self.dice.one(&STREAMS[..8]);
            self.made.writers.insert(stream, vec![writer]);
        }
        if self.fails("a writer without a file") {
            self.made
                .writers
                .insert("typing", vec!["elsewhere1".to_owned()]);
        }
        if self.fails("a writer called main") {
            self.made
                .writers
                .insert("to_device", vec!["main".to_owned()]);
        }
        if able.len() > 1 && self.fails("two writers of a stream that takes one") {
            self.made.writers.insert("presence", able);
        }
    }

    /// `instance_map`, or `[synapse.hosts]`, or both: which process is where.
    fn write(&mut self) {
        let processes = self.made.processes.clone();
        let toml = self.layout == Layout::Hosts || self.dice.percent(40);
        let mut hosts: Vec<(String, String)> = Vec::new();
        let mut instances: Vec<(String, Yaml)> = Vec::new();
        let by_pattern = self.layout == Layout::Hosts && self.dice.percent(30);
        let bound = |process: &Process| {
            process.listeners.iter().any(|l| {
                l.bound.iter().any(|b| {
                    process
                        .hosts
                        .iter()
                        .any(|h| h.trim_matches(['[', ']']) == b)
                })
            })
        };
        let lost = processes.len() > 1 && self.layout == Layout::Hosts && !by_pattern;
        let lost = (lost && self.fails("nobody says where a worker is"))
            .then(|| 1 + self.dice.below(processes.len() - 1));
        let main_in_toml = toml && self.dice.percent(15);
        for (i, process) in processes.iter().enumerate() {
            let host = match self.layout {
                Layout::Hosts => self.dice.one(&process.hosts[..2]).clone(),
                _ => (*self.dice.one(&["localhost", "127.0.0.1"])).to_owned(),
            };
            if Some(i) == lost {
                continue;
            }
            let mapped = Yaml::map(vec![
                ("host", Yaml::text(&host)),
                ("port", Yaml::Number(9100 + i as u64)),
            ]);
            let is_said = bound(process) && self.dice.percent(50);
            if i == 0 || self.dice.percent(60) {
                instances.push((process.name.clone(), mapped));
            } else if self.layout == Layout::Hosts && !by_pattern && !is_said {
                hosts.push((process.name.clone(), host));
            }
        }
        if by_pattern {
            hosts.push(("*".to_owned(), "{name}.matrix".to_owned()));
        }
        let roles = if toml {
            self.roles(&processes)
        } else {
            Vec::new()
        };
        let declared = if toml { self.declare() } else { Vec::new() };
        let homeserver = self.homeserver(instances);
        let workers = self.worker_files();
        if toml {
            self.deployment_file(
                &homeserver,
                &workers,
                &roles,
                &hosts,
                &declared,
                main_in_toml,
            );
        } else {
            let mut arguments = Vec::new();
            for path in homeserver {
                arguments.extend(["--homeserver".to_owned(), path]);
            }
            for path in workers {
                arguments.extend(["--worker".to_owned(), path]);
            }
            self.made.arguments = arguments;
        }
    }

    /// `[synapse.roles]`: names and patterns, with what all that they fit can serve.
    fn roles(&mut self, processes: &[Process]) -> Vec<(String, Vec<&'static str>)> {
        let mut roles = Vec::new();
        let client = [
            "sync",
            "initial_sync",
            "sliding_sync",
            "room",
            "client_reader",
            "user_dir",
            "event_creator",
        ];
        let federation = ["federation_reader", "federation_inbound"];
        for process in &processes[1..] {
            if !self.dice.percent(20) {
                continue;
            }
            let mut own = Vec::new();
            if process.has("client") {
                own.extend(self.dice.some(&client, 40));
            }
            if process.has("federation") {
                own.extend(self.dice.some(&federation, 40));
            }
            if process.has("client") && process.has("federation") && self.dice.percent(20) {
                own.push("generic");
            }
            if !own.is_empty() {
                roles.push((process.name.clone(), own));
            }
        }
        let given: Vec<String> = roles.iter().map(|(name, _)| name.clone()).collect();
        let fits = |part: &str, resource: &str| {
            let mut named = processes
                .iter()
                .filter(|p| p.name.starts_with(part))
                .peekable();
            named.peek().is_some() && named.all(|p| p.has(resource) || given.contains(&p.name))
        };
        if fits("writer", "client") && self.dice.percent(40) {
            roles.push((
                "writer*".to_owned(),
                self.dice.some(&["sync", "room", "client_reader"], 60),
            ));
        }
        if fits("client", "federation") && self.dice.percent(30) {
            roles.push(("client*".to_owned(), vec!["federation_reader"]));
        }
        roles.retain(|(_, roles)| !roles.is_empty());
        if self.fails("a pattern that fits nobody") {
            roles.push(("generic.worker*".to_owned(), vec!["sync"]));
        }
        let lacking = processes[1..].iter().find(|p| !p.has("federation"));
        if let Some(lacking) = lacking
            && !given.contains(&lacking.name)
            && self.fails("a role without its resource")
        {
            roles.push((lacking.name.clone(), vec!["federation_reader"]));
        }
        let other = processes[1..].iter().find(|p| {
            let writers = self.made.writers.get("push_rules");
            p.has("client")
                && !given.contains(&p.name)
                && writers.is_none_or(|w| !w.contains(&p.name))
        });
        if let Some(other) = other
            && self.fails("the deployment file gives a stream to another worker")
        {
            roles.push((other.name.clone(), vec!["push_rules"]));
        }
        roles
    }

    /// Workers that have no file and are declared under `[[workers]]`.
    fn declare(&mut self) -> Vec<String> {
        let mut tables = Vec::new();
        if self
            .made
            .faults
            .iter()
            .any(|fault| fault.starts_with("nobody"))
        {
            return tables;
        }
        for i in 1..self.made.processes.len() {
            let process = &self.made.processes[i];
            let usable: Vec<&Listener> = process
                .listeners
                .iter()
                .filter(|l| l.kind == "http" && !l.tls)
                .collect();
            let for_client: Vec<&&Listener> = usable
                .iter()
                .filter(|l| l.resources.iter().flatten().any(|name| *name == "client"))
                .collect();
            let [listener] = for_client.as_slice() else {
                continue;
            };
            // One port for all is all that the table of this worker will say.
            let is_repository = process.has("media");
            if listener.resources.len() > 1 || is_repository || !self.dice.percent(15) {
                continue;
            }
            let has = |name| listener.resources.iter().flatten().any(|n| *n == name);
            let mut types = vec![
                *self
                    .dice
                    .one(&["sync", "room", "client_reader", "user_dir"]),
            ];
            if has("federation") {
                types.push("federation_reader");
            }
            for (stream, writers) in &self.made.writers {
                // What it leaves out, Synapse's files say.
                if writers.contains(&process.name) && self.dice.percent(70) {
                    types.push(stream);
                }
            }
            let types: Vec<String> = types.iter().map(|name| format!("\"{name}\"")).collect();
            let place = match &listener.place {
                Place::Socket(path) => format!("socket = \"{path}\""),
                Place::Port(port) => format!("host = \"{}\"\nport = {port}", process.hosts[0]),
            };
            tables.push(format!(
                "[[workers]]\nname = \"{}\"\ntype = [{}]\n{place}\n",
                process.name,
                types.join(", ")
            ));
            self.made.processes[i].declared = true;
        }
        tables
    }

    fn listeners_yaml(&mut self, listeners: &[Listener]) -> Yaml {
        let list = listeners
            .iter()
            .map(|listener| {
                let mut entries = vec![("type", Yaml::text(listener.kind))];
                match &listener.place {
                    Place::Port(port) => entries.push(("port", Yaml::Number(u64::from(*port)))),
                    Place::Socket(path) => entries.push(("path", Yaml::text(path))),
                }
                if listener.tls || self.dice.percent(30) && matches!(listener.place, Place::Port(_))
                {
                    entries.push(("tls", Yaml::Bool(listener.tls)));
                }
                match listener.bound.as_slice() {
                    _ if matches!(listener.place, Place::Socket(_)) => {}
                    [] => {}
                    [one] if self.dice.percent(30) => {
                        entries.push(("bind_address", Yaml::text(one)))
                    }
                    many => entries.push(("bind_addresses", Yaml::texts(many))),
                }
                if listener.kind == "http" {
                    if self.dice.percent(80) {
                        entries.push(("x_forwarded", Yaml::Bool(true)));
                    }
                    let blocks = listener.resources.iter().map(|names| {
                        let mut block = vec![("names", Yaml::texts(names))];
                        if self.dice.percent(20) {
                            block.push(("compress", Yaml::Bool(false)));
                        }
                        Yaml::map(block)
                    });
                    let blocks: Vec<Yaml> = blocks.collect();
                    if !blocks.is_empty() {
                        entries.push(("resources", Yaml::List(blocks)));
                    }
                }
                Yaml::map(entries)
            })
            .collect();
        Yaml::List(list)
    }

    /// `homeserver.yaml`, and perhaps a folder of more. Returns what to name.
    fn homeserver(&mut self, instances: Vec<(String, Yaml)>) -> Vec<String> {
        let main = self.made.processes[0].clone();
        let mut keys = vec![
            ("server_name", Yaml::text("example.org")),
            ("report_stats", Yaml::Bool(false)),
            ("macaroon_secret_key", Yaml::text("4a7c1b0d")),
            ("listeners", self.listeners_yaml(&main.listeners)),
        ];
        let mut later = vec![("instance_map", Yaml::Map(instances))];
        let mut writers = Vec::new();
        for (stream, names) in &self.made.writers {
            let value = match names.as_slice() {
                [one] if self.dice.percent(50) => Yaml::text(one),
                many => Yaml::texts(many),
            };
            writers.push(((*stream).to_owned(), value));
        }
        if self.dice.percent(20) && !self.made.writers.contains_key("typing") {
            writers.push(("typing".to_owned(), Yaml::text("master")));
        }
        if !writers.is_empty() {
            later.push(("stream_writers", Yaml::Map(writers)));
        }
        if let Some(enabled) = self.made.shared_media {
            later.push(("enable_media_repo", Yaml::Bool(enabled)));
        }
        let idle: Vec<String> = {
            let all = self.made.processes.iter().skip(1);
            let idle = all.filter(|p| !p.has("client") && !p.has("federation") && !p.has("media"));
            idle.map(|p| p.name.clone()).collect()
        };
        if !idle.is_empty() {
            later.push(("pusher_instances", Yaml::texts(&idle)));
            if self.dice.percent(50) {
                later.push(("run_background_tasks_on", Yaml::text(&idle[0])));
            }
            if self.dice.percent(50) {
                later.push(("update_user_directory_from_worker", Yaml::text(&idle[0])));
            }
        }
        if !self.dice.percent(40) {
            keys.extend(later);
            let text = file(keys, &mut self.dice);
            self.made.files.push(("homeserver.yaml".to_owned(), text));
            return vec!["homeserver.yaml".to_owned()];
        }
        // What an earlier file says, a later one replaces as a whole.
        if self.dice.percent(50) {
            let old = Yaml::map(vec![("receipts", Yaml::text("long-gone"))]);
            if self.made.writers.is_empty() {
                later.push((
                    "stream_writers",
                    Yaml::map(vec![("typing", Yaml::text("master"))]),
                ));
            }
            if later.iter().any(|(key, _)| *key == "stream_writers") {
                keys.push(("stream_writers", old));
            }
        }
        let text = file(keys, &mut self.dice);
        self.made.files.push(("homeserver.yaml".to_owned(), text));
        let text = file(later, &mut self.dice);
        self.made
            .files
            .push(("conf.d/20-workers.yaml".to_owned(), text));
        let other = "max_upload_size: 200M\n".to_owned();
        self.made
            .files
            .push(("conf.d/10-uploads.yaml".to_owned(), other));
        let named = *self.dice.one(&["conf.d", "conf.d/", "conf.d/*.yaml"]);
        vec!["homeserver.yaml".to_owned(), named.to_owned()]
    }

    /// A file each, in a folder. Returns what to name.
    fn worker_files(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        let placeholder = self.made.processes.len() > 1 && self.fails("a placeholder");
        for (i, process) in self.made.processes.clone().iter().enumerate().skip(1) {
            if process.declared {
                continue;
            }
            let mut keys = vec![("worker_app", Yaml::text(process.app))];
            let name = if placeholder && i == 1 {
                "${WORKER_NAME}"
            } else {
                &process.name
            };
            keys.push(("worker_name", Yaml::text(name)));
            if !process.listeners.is_empty() {
                keys.push(("worker_listeners", self.listeners_yaml(&process.listeners)));
            }
            if let Some(own) = process.own_media {
                keys.push(("enable_media_repo", Yaml::Bool(own)));
            }
            keys.push((
                "worker_log_config",
                Yaml::text("/etc/matrix-synapse/log.yaml"),
            ));
            let extension = if self.dice.percent(20) { "yml" } else { "yaml" };
            let path = format!("workers/{}.{extension}", process.name);
            let text = self.worker_text(keys);
            self.made.files.push((path.clone(), text));
            names.push(path);
        }
        if names.is_empty() {
            return names;
        }
        if self.dice.percent(30) {
            let log =
                "version: 1\nhandlers: {console: {class: logging.StreamHandler}}\n".to_owned();
            self.made
                .files
                .push(("workers/log_config.yaml".to_owned(), log));
            return vec!["workers".to_owned()];
        }
        match self.dice.below(3) {
            0 => names,
            1 => vec!["workers".to_owned()],
            _ => vec!["workers/*.y*ml".to_owned()],
        }
    }

    /// The text of a worker's file; some have an anchor for what their listeners share.
    fn worker_text(&mut self, mut keys: Vec<(&str, Yaml)>) -> String {
        let mut head = String::new();
        if self.dice.percent(20) {
            head = "x-common: &common\n  x_forwarded: true\n  tls: false\n\n".to_owned();
            for (key, value) in &mut keys {
                let Yaml::List(listeners) = value else {
                    continue;
                };
                if *key != "worker_listeners" {
                    continue;
                }
                for listener in listeners {
                    let Yaml::Map(entries) = listener else {
                        continue;
                    };
                    let has_path = entries.iter().any(|(key, _)| key == "path");
                    entries.retain(|(key, _)| key != "x_forwarded");
                    if !has_path {
                        entries.push(("<<".to_owned(), Yaml::Raw("*common".to_owned())));
                    }
                }
            }
        }
        let body = file(keys, &mut self.dice);
        if self.dice.percent(5) {
            return format!("{head}{body}")
                .replace("---\n", "")
                .replace('\n', "\r\n");
        }
        match body.strip_prefix("---\n") {
            Some(rest) => format!("---\n{head}{rest}"),
            None => head + &body,
        }
    }

    /// Main under `[main]`, where that can say what it has.
    fn main_table(&self) -> Option<String> {
        let main = &self.made.processes[0];
        let of = |resource: &str| {
            let plain = main.listeners.iter().filter(|l| l.kind == "http" && !l.tls);
            let mut having =
                plain.filter(|l| l.resources.iter().flatten().any(|name| *name == resource));
            Some(&having.next()?.place)
        };
        match (of("client")?, of("federation")?) {
            (Place::Port(client), Place::Port(federation)) => Some(format!(
                "[main]\nhost = \"{}\"\nport = {client}\nfederation_port = {federation}\n",
                main.hosts[0]
            )),
            (Place::Socket(client), Place::Socket(federation)) if client == federation => {
                Some(format!("[main]\nsocket = \"{client}\"\n"))
            }
            _ => None,
        }
    }

    fn deployment_file(
        &mut self,
        homeserver: &[String],
        workers: &[String],
        roles: &[(String, Vec<&'static str>)],
        hosts: &[(String, String)],
        declared: &[String],
        main_in_toml: bool,
    ) {
        let list = |paths: &[String]| {
            let paths: Vec<String> = paths.iter().map(|path| format!("\"{path}\"")).collect();
            format!("[{}]", paths.join(", "))
        };
        let mut text = format!(
            "[synapse]\nhomeserver = {}\nworkers = {}\n",
            list(homeserver),
            list(workers)
        );
        if !roles.is_empty() {
            text += "\n[synapse.roles]\n";
            for (name, roles) in roles {
                let declares = self
                    .made
                    .processes
                    .iter()
                    .any(|p| p.declared && p.name == *name);
                if declares {
                    continue;
                }
                let roles: Vec<String> = roles.iter().map(|role| format!("\"{role}\"")).collect();
                text += &format!("\"{name}\" = [{}]\n", roles.join(", "));
            }
        }
        if !hosts.is_empty() {
            text += "\n[synapse.hosts]\n";
            for (name, host) in hosts {
                text += &format!("\"{name}\" = \"{host}\"\n");
            }
        }
        let main = self.main_table().filter(|_| main_in_toml);
        for table in main.iter().chain(declared) {
            text += &format!("\n{table}");
        }
        self.made.files.push(("deployment.toml".to_owned(), text));
        self.made.arguments = vec!["-d".to_owned(), "deployment.toml".to_owned()];
    }
}

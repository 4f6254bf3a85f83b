//! The program as an operator runs it, without nginx: goldens, messages, and each command.
//!
//! `golden/` has one file a deployment: all rendered files in one, each below a line `#### NAME`, as `render` shows them, and
//! `VERSION` where the program's own version stands. After a change that is meant:
//! `UPDATE_GOLDEN=1 cargo test -p synapse-companion`, and read the difference before committing it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn companion(args: &[&str]) -> Output {
    // No nginx of this machine has a say: the version is always given.
    Command::new(env!("CARGO_BIN_EXE_synapse-companion"))
        .args(args)
        .current_dir(tests())
        .output()
        .unwrap()
}

fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

fn files(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                let name = entry
                    .path()
                    .strip_prefix(folder)
                    .unwrap()
                    .display()
                    .to_string();
                found.insert(name, std::fs::read_to_string(entry.path()).unwrap());
            }
        }
    }
    found
}

/// The rendered files as one text without the program's version, so that a release changes no golden.
fn as_golden(rendered: &BTreeMap<String, String>) -> String {
    let banner = |version: &str| format!("# Rendered by synapse-companion {version};");
    rendered
        .iter()
        .map(|(name, text)| {
            let ours = banner(env!("CARGO_PKG_VERSION"));
            assert!(text.starts_with(&ours), "{name} begins otherwise");
            format!(
                "#### {name}\n{}\n",
                text.replacen(&ours, &banner("VERSION"), 1)
            )
        })
        .collect()
}

fn golden_path(deployment: &str) -> PathBuf {
    tests().join("golden").join(format!("{deployment}.conf"))
}

/// The files of a golden, by name.
fn golden(deployment: &str) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(golden_path(deployment)).unwrap();
    let files: BTreeMap<String, String> = text
        .split("#### ")
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (name, text) = part.split_once('\n').unwrap();
            (name.to_owned(), text.strip_suffix('\n').unwrap().to_owned())
        })
        .collect();
    assert!(files.len() >= 9, "{deployment}: {:?}", files.keys());
    files
}

fn deployments() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(tests().join("deployments"))
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            Some(
                entry
                    .file_name()
                    .to_str()?
                    .strip_suffix(".toml")?
                    .to_owned(),
            )
        })
        .collect();
    names.sort();
    names
}

/// Runs with a deployment of this text and returns what was said on standard error.
fn refused(name: &str, text: &str) -> String {
    let file = folder(name).join("deployment.toml");
    std::fs::write(&file, text).unwrap();
    let output = companion(&[
        "render",
        "-d",
        file.to_str().unwrap(),
        "--nginx-version",
        "1.28.3",
    ]);
    assert_eq!(
        output.status.code(),
        Some(2),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8(output.stderr)
        .unwrap()
        .replace(file.to_str().unwrap(), "deployment.toml")
}

fn said(args: &[&str]) -> String {
    let output = companion(args);
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The lines of all files that are rendered for a version of nginx, by file.
fn rendered_for(name: &str, version: &str) -> BTreeMap<String, String> {
    let output = folder(&format!("version-{name}-{version}"));
    let input = format!("deployments/{name}.toml");
    let output = output.to_str().unwrap();
    let arguments = [
        "render",
        "-d",
        &input,
        "--nginx-version",
        version,
        "--output",
        output,
    ];
    said(&arguments);
    files(output.as_ref())
}

#[test]
fn what_is_nginx_default_is_not_written() {
    const DEFAULTS: [&str; 2] = [
        "proxy_http_version 1.1;",
        "proxy_set_header Connection \"\";",
    ];
    let kept = |text: &str| {
        let lines = text
            .lines()
            .filter(|line| line.trim().starts_with("keepalive "));
        lines.count()
    };
    let mut fewer = 0;
    for name in deployments() {
        let (old, new) = (rendered_for(&name, "1.29.6"), rendered_for(&name, "1.29.7"));
        for (file, text) in &old {
            let newer = &new[file];
            assert!(
                DEFAULTS.iter().all(|line| !newer.contains(line)),
                "{name}: {file}"
            );
            // Nothing else differs.
            let rest = |text: &str| -> Vec<String> {
                let is_default = |line: &&str| {
                    let line = line.trim();
                    DEFAULTS.contains(&line) || line.starts_with("keepalive ")
                };
                text.lines()
                    .filter(|line| !is_default(line))
                    .map(str::to_owned)
                    .collect()
            };
            assert_eq!(rest(text), rest(newer), "{name}: {file}");
            if file.ends_with("/upstreams.conf") {
                assert!(kept(newer) <= kept(text), "{name}: {file}");
                fewer += kept(text) - kept(newer);
            }
        }
        let proxy = "synapse/proxy.conf";
        assert!(
            old.get(proxy)
                .is_none_or(|text| DEFAULTS.iter().all(|line| text.contains(line))),
            "{name}"
        );
        // Every request may go to the main process, from many locations: they share its connections.
        let main = &new
            .iter()
            .find(|(file, _)| file.ends_with("/upstreams.conf"))
            .unwrap()
            .1;
        let mut groups = main.split("upstream ");
        let group = groups
            .find(|group| {
                group
                    .lines()
                    .next()
                    .is_some_and(|line| line.ends_with("_main {"))
            })
            .unwrap();
        assert!(group.contains("keepalive "), "{name}: {group}");
    }
    assert!(fewer > 0, "some group has nginx's default");
}

#[test]
fn every_deployment_renders_to_its_golden_files() {
    let names = deployments();
    assert!(names.len() >= 12, "{names:?}");
    for name in names {
        let rendered = folder(&format!("golden-{name}"));
        let input = format!("deployments/{name}.toml");
        let output = rendered.to_str().unwrap();
        said(&[
            "render",
            "-d",
            &input,
            "--nginx-version",
            "1.28.3",
            "--output",
            output,
        ]);
        let rendered = as_golden(&files(&rendered));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(golden_path(&name), &rendered).unwrap();
        }
        let golden = std::fs::read_to_string(golden_path(&name)).unwrap_or_default();
        let differs = rendered
            .lines()
            .zip(golden.lines())
            .position(|(is, was)| is != was);
        assert!(
            rendered == golden,
            "{name} differs from its golden, first at line {:?}; see the head of this file",
            differs.map(|line| line + 1)
        );
    }
}

#[test]
fn there_is_no_golden_without_a_deployment() {
    let mut goldens: Vec<String> = files(&tests().join("golden"))
        .into_keys()
        .map(|name| name.trim_end_matches(".conf").to_owned())
        .collect();
    goldens.sort();
    assert_eq!(goldens, deployments());
}

#[test]
fn routes_shows_every_row_with_its_reason() {
    let json: serde_json::Value =
        serde_json::from_str(&said(&["routes", "--format", "json"])).unwrap();
    let rows = json.as_array().unwrap();
    let markdown = said(&["routes", "--format", "markdown"]);
    assert_eq!(markdown.lines().count(), rows.len() + 2);
    for row in rows {
        let text = |key: &str| row[key].as_str().unwrap();
        assert!(!text("why").is_empty() && text("pattern").starts_with('^'));
        let line = markdown
            .lines()
            .find(|line| line.starts_with(&format!("| {} |", text("id"))))
            .unwrap();
        assert!(line.ends_with(&format!("| {} |", text("why"))), "{line}");
        let cells = line.replace("\\|", "").matches('|').count();
        assert_eq!(cells, 7, "{line}");
    }
    let quarantine = rows
        .iter()
        .find(|row| row["id"] == "quarantined_media_changes");
    assert_eq!(
        quarantine.unwrap()["types"],
        serde_json::json!(["quarantined_media_changes", "media"])
    );
    let event = rows
        .iter()
        .find(|row| row["id"] == "delayed_event")
        .unwrap();
    assert_eq!(event["methods"], serde_json::json!(["GET", "HEAD"]));
}

#[test]
fn nothing_is_left_of_a_group_without_workers() {
    for (name, absent) in [
        (
            "none",
            vec![
                "matrix_user_hash",
                "load_module",
                "synapse_sync",
                "location ~",
                "resolver",
            ],
        ),
        (
            "writers",
            vec![
                "matrix_user_hash",
                "load_module",
                "synapse_sync",
                "synapse_room",
                "synapse_client_reader",
            ],
        ),
        (
            "one-sync",
            vec![
                "synapse_room",
                "synapse_client_reader",
                "synapse_federation",
                "$synapse_room",
            ],
        ),
        (
            "small",
            vec![
                "federation_sender",
                "synapse_media",
                "synapse_initial_sync",
                "synapse_typing",
            ],
        ),
    ] {
        let text: String = golden(name).into_values().collect();
        for word in absent {
            assert!(!text.contains(word), "{name} has {word}");
        }
    }
}

#[test]
fn every_rendered_line_is_whole() {
    for name in deployments() {
        for (file, text) in golden(&name) {
            assert!(
                !text.contains("{{") && !text.contains("{%"),
                "{name}/{file}"
            );
            assert_eq!(
                text.matches('{').count(),
                text.matches('}').count(),
                "{name}/{file}"
            );
            assert!(
                text.ends_with('\n') && !text.contains("\n\n\n"),
                "{name}/{file}"
            );
            assert!(
                !text.lines().any(|line| line.ends_with(' ')),
                "{name}/{file}"
            );
        }
    }
}

#[test]
fn the_example_renders_and_names_every_worker_type() {
    let file = folder("init").join("deployment.toml");
    let path = file.to_str().unwrap();
    said(&["init", path]);
    said(&["render", "-d", path, "--nginx-version", "1.28.3"]);
    let again = companion(&["init", path]);
    assert_eq!(
        again.status.code(),
        Some(2),
        "an existing file is not replaced"
    );
    said(&["init", path, "--force"]);
    // With every commented setting taken in, it is still a deployment.
    let text = std::fs::read_to_string(&file).unwrap();
    let (before, rest) = text.split_once("#: [synapse]\n").unwrap();
    let all = format!("{before}{}", rest.split_once("\n\n").unwrap().1).replace("#: ", "");
    std::fs::write(&file, all).unwrap();
    said(&["render", "-d", path, "--nginx-version", "1.28.3"]);
}

#[test]
fn a_mistake_is_named_with_file_line_key_and_fix() {
    let main = "[main]\nhost = \"127.0.0.1\"\nport = 8008\n\n";
    let worker = |rest: &str| format!("{main}[[workers]]\nname = \"sync1\"\n{rest}");
    for (name, text, expected) in [
        (
            "type",
            worker("type = \"synch\"\nhost = \"sync1\"\nport = 8083\n"),
            vec![
                "no such worker type: synch",
                "deployment.toml:7:8, key workers[0].type",
                "fix: write \"sync\"",
            ],
        ),
        (
            "key",
            worker("type = \"sync\"\nhost = \"sync1\"\nprot = 8083\n"),
            vec![
                "unknown field `prot`",
                "deployment.toml:9:1, key workers[0].prot",
                "fix: write port",
            ],
        ),
        (
            "port",
            worker("type = \"sync\"\nhost = \"sync1\"\nport = \"8083\"\n"),
            vec!["deployment.toml:9:8, key workers[0].port", "without quotes"],
        ),
        (
            "no-port",
            worker("type = \"sync\"\nhost = \"sync1\"\n"),
            vec![
                "needs either a port or a DNS service",
                "key workers[0]",
                "add port = 8083",
            ],
        ),
        (
            "url",
            worker("type = \"sync\"\nhost = \"http://sync1\"\nport = 8083\n"),
            vec!["not a host name", "key workers[0].host", "without http://"],
        ),
        (
            "syntax",
            format!("{main}[[workers]\n"),
            vec!["deployment.toml:5:", "fix:"],
        ),
        (
            "size",
            format!("{main}[limits]\nmax_upload_size = \"50MB\"\n"),
            vec![
                "not a size: 50MB",
                "deployment.toml:6:19, key limits.max_upload_size",
                "\"50M\"",
            ],
        ),
        (
            "inject",
            format!("{main}[paths]\npid = \"/run/x; user root\"\n"),
            vec!["one word", "key paths.pid"],
        ),
        (
            "listen",
            format!("{main}[listen]\nclient = [\"8008 ssl\"]\n"),
            vec!["not something to listen on", "key listen.client"],
        ),
        (
            "tls",
            format!("{main}[listen]\ncertificate = \"/a.pem\"\n"),
            vec!["a certificate without its key", "certificate_key"],
        ),
        (
            "twice",
            worker("type = \"sync\"\nhost = \"127.0.0.1\"\nport = 8008\n"),
            vec![
                "sync1 and main are both at 127.0.0.1:8008",
                "key workers[0]",
                "own port",
            ],
        ),
        (
            "listen-twice",
            format!(
                "{main}[listen]\nclient = [8080]\nfederation = [\"0.0.0.0:8443\", \"*:8443\"]\n"
            ),
            vec![
                "listen twice at *:8443",
                "deployment.toml:7:31, key listen.federation",
            ],
        ),
        (
            "status",
            format!("{main}[listen]\nclient = [8090]\n"),
            vec![
                "figures is at 127.0.0.1:8090",
                "key listen.client",
                "under [status]",
            ],
        ),
        (
            "zone",
            format!("{main}[user_hash]\nzone_size = \"4q\"\n"),
            vec!["not a size: 4q", "key user_hash.zone_size", "\"4m\""],
        ),
        (
            "resolver",
            format!("{main}[resolver]\naddresses = [\"udp://10.0.0.1\"]\n"),
            vec!["not a name server", "key resolver.addresses"],
        ),
        (
            "name",
            format!("{main}[listen]\nserver_names = [\"https://example.org\"]\n"),
            vec!["not the name of a host", "key listen.server_names"],
        ),
        (
            "http2",
            format!("{main}[listen]\nhttp2 = true\n"),
            vec!["no certificate", "key listen.http2"],
        ),
        (
            "rate",
            format!("{main}[limits.user]\nsync = {{ per_second = 0.001, burst = 20 }}\n"),
            vec![
                "nginx counts whole requests a minute",
                "key limits.user.sync",
                "fix: write per_second = 5",
            ],
        ),
        (
            "limit",
            format!("{main}[limits.user]\nsyncs = {{ per_second = 5 }}\n"),
            vec!["unknown field `syncs`", "fix: write sync"],
        ),
        (
            "parallel",
            format!("{main}[limits.user]\nparallel_syncs = 0\n"),
            vec!["1 at the least", "key limits.user.parallel_syncs"],
        ),
        (
            "exempt",
            format!(
                "{main}[limits.user]\neverything = {{ per_second = 50, burst = 500 }}\nexempt = [\"bot\"]\n"
            ),
            vec![
                "neither a user id nor a hash of one: bot",
                "key limits.user.exempt",
            ],
        ),
        (
            "spread-group",
            format!("{main}[spread]\nclient_readers = \"user\"\n"),
            vec!["no such group: client_readers", "fix: write client_reader"],
        ),
        (
            "spread-by",
            format!("{main}[spread]\nclient_reader = \"users\"\n"),
            vec![
                "nothing to spread by: users",
                "key spread.client_reader",
                "\"turns\"",
            ],
        ),
        (
            "spread-server",
            format!("{main}[spread]\nfederation_reader = \"user\"\n"),
            vec!["cannot be spread by user: other servers ask"],
        ),
        (
            "zero",
            format!("{main}[limits]\nclient_body = \"0\"\n"),
            vec!["not a size: 0", "key limits.client_body"],
        ),
        (
            "weight",
            worker("type = \"sync\"\nhost = \"sync1\"\nport = 8083\nweight = 0\n"),
            vec!["a weight is a number from 1", "key workers[0].weight"],
        ),
        (
            "replicas",
            worker("type = \"sync\"\nhost = \"sync1\"\nport = 8083\nreplicas = 3\n"),
            vec!["only a DNS service", "key workers[0].replicas"],
        ),
        (
            "other-port",
            worker("type = \"federation_reader\"\nsocket = \"/run/a.sock\"\nfederation_port = 3\n"),
            vec!["can have another port", "key workers[0].federation_port"],
        ),
        (
            "srv",
            worker("type = \"sync\"\nhost = \"10.0.0.7\"\nservice = \"http\"\n"),
            vec!["no SRV records", "key workers[0].host"],
        ),
        (
            "brackets",
            format!("{main}[workers]\nname = \"sync1\"\n"),
            vec!["key workers", "write [[workers]]"],
        ),
        (
            "no-main",
            "[[workers]]\nname = \"a\"\ntype = \"background\"\n".to_owned(),
            vec![
                "nobody says where the main process listens",
                "key main",
                "add [main]",
            ],
        ),
        (
            "override",
            format!("{main}[[override]]\npath = \"^/[\"\nto = \"main\"\n"),
            vec!["not a regular expression", "key override[0].path"],
        ),
        (
            "name-of-all",
            format!("name = \"Example.org\"\n{main}"),
            vec![
                "small letters",
                "deployment.toml:1:8, key name",
                "name = \"example\"",
            ],
        ),
        (
            "mas-scheme",
            format!("{main}[mas]\naddress = \"mas:8080\"\n"),
            vec![
                "begins with http://",
                "key mas.address",
                "\"http://127.0.0.1:8080\"",
            ],
        ),
        (
            "mas-override",
            format!("{main}[[override]]\npath = \"^/_matrix/client/(.*)/login\"\nto = \"mas\"\n"),
            vec!["no group of workers", "key override[0].to", "add [mas]"],
        ),
        (
            "external-path",
            format!("{main}[[external]]\npath = \"^/a\"\nto = \"http://bot:80/api\"\n"),
            vec!["a server has no path", "key external[0].to", "rewrite ="],
        ),
        (
            "external-port",
            format!("{main}[[external]]\npath = \"^/a\"\nto = \"https://bot:port\"\n"),
            vec!["not a host with a port: bot:port", "key external[0].to"],
        ),
        (
            "external-socket",
            format!("{main}[[external]]\npath = \"^/a\"\nto = \"unix:bot.sock\"\n"),
            vec!["an absolute path", "key external[0].to"],
        ),
        (
            "external-rewrite",
            format!(
                "{main}[[external]]\npath = \"^/a\"\nto = \"http://bot\"\nrewrite = \"/x/$uri\"\n"
            ),
            vec!["not a path with $1", "key external[0].rewrite"],
        ),
        (
            "external-pattern",
            format!("{main}[[external]]\npath = \"^/a{{2}}\"\nto = \"http://bot\"\n"),
            vec!["its own syntax", "key external[0].path"],
        ),
        (
            "admin",
            format!("{main}[listen]\nadmin_allow = [\"all\", \"10.0.0.1\"]\n"),
            vec!["not an address or a network: all", "key listen.admin_allow"],
        ),
        (
            "group",
            format!("{main}[[override]]\npath = \"^/a\"\nto = \"snyc\"\n"),
            vec!["no such group: snyc", "key override[0].to"],
        ),
    ] {
        let message = refused(&format!("mistake-{name}"), &text);
        for part in expected {
            assert!(
                message.contains(part),
                "{name}: {part} is not in\n{message}"
            );
        }
        assert!(
            message.contains("error: ") && message.contains("  = fix: "),
            "{name}:\n{message}"
        );
    }
}

#[test]
fn a_limit_that_an_ordinary_client_breaks_is_warned_about() {
    let warned = |name: &str, limits: &str| {
        let file = folder(name).join("deployment.toml");
        let main = "[main]\nhost = \"127.0.0.1\"\nport = 8008\n\n";
        std::fs::write(&file, format!("{main}{limits}")).unwrap();
        let output = companion(&[
            "render",
            "-d",
            file.to_str().unwrap(),
            "--nginx-version",
            "1.28.3",
        ]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    for (name, limits, expected) in [
        (
            "limits-rate",
            "sync = { per_second = 0.5, burst = 100 }",
            "0.5 requests a second may be too few for an ordinary person",
        ),
        (
            "limits-burst",
            "everything = { per_second = 50, burst = 5 }",
            "a burst of 5 at 50 requests a second may be too few",
        ),
        (
            "limits-no-burst",
            "media = { per_second = 50 }",
            "a burst of 0 at 50 requests a second may be too few",
        ),
        (
            "limits-parallel",
            "parallel_syncs = 2",
            "2 syncs at a time may be too few",
        ),
        (
            "limits-nothing",
            "exempt = [\"@bot:example.org\"]",
            "nothing is limited here",
        ),
        (
            "limits-without-address",
            "everything = { per_second = 50, burst = 500 }",
            "requests without a known user have no limit",
        ),
        (
            "limits-parallel-without-address",
            "parallel_syncs = 20",
            "requests without a known user have no limit",
        ),
    ] {
        let said = warned(name, &format!("[limits.user]\n{limits}\n"));
        assert!(
            said.contains(expected) && said.contains("key limits.user"),
            "{said}"
        );
    }
    // What `init` shows is enough for everybody.
    let example = said(&["init", "-"]);
    let (_, rest) = example.split_once("#: [limits.user]\n").unwrap();
    let (limits, _) = rest.split_once("\n\n").unwrap();
    let limits = format!("[limits.user]\n{limits}").replace("#: ", "");
    assert!(limits.contains("[limits.address]"), "{limits}");
    assert_eq!(warned("limits-example", &limits), "");
}

#[test]
fn syncs_in_turns_are_warned_about() {
    let file = folder("spread-syncs").join("deployment.toml");
    let text = std::fs::read_to_string(tests().join("deployments/small.toml")).unwrap();
    std::fs::write(&file, format!("{text}\n[spread]\nsync = \"turns\"\n")).unwrap();
    let output = companion(&[
        "render",
        "-d",
        file.to_str().unwrap(),
        "--nginx-version",
        "1.28.3",
    ]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("each worker of sync has to know every user"),
        "{said}"
    );
    // A sync in turns is a long poll all the same, and needs no lookup.
    let rendered = String::from_utf8(output.stdout).unwrap();
    assert!(
        rendered.contains("proxy_next_upstream_timeout 600s;"),
        "{rendered}"
    );
    assert!(!rendered.contains("matrix_user_hash "), "{rendered}");
}

#[test]
fn all_mistakes_are_named_in_one_run() {
    let message = refused(
        "many",
        "[main]\nhost = \"127.0.0.1\"\nport = 8008\n[limits]\nmax_upload_size = \"a\"\n[timeouts]\nsync = \"b\"\n",
    );
    assert_eq!(message.matches("error: ").count(), 2, "{message}");
}

#[test]
fn two_writers_where_synapse_takes_one_are_refused() {
    let message = refused(
        "writers",
        "[main]\nhost = \"127.0.0.1\"\nport = 8008\n[[workers]]\nname = \"a\"\ntype = \"typing\"\nhost = \"a\"\nport = 1\n\
         [[workers]]\nname = \"b\"\ntype = \"typing\"\nhost = \"b\"\nport = 1\n[resolver]\naddresses = [\"10.0.0.1\"]\n",
    );
    assert!(
        message.contains("one writer for the stream typing"),
        "{message}"
    );
}

/// Runs on Synapse's files, with one of them changed.
fn synapse_says(
    name: &str,
    file: &str,
    change: impl Fn(String) -> String,
) -> (Option<i32>, String) {
    let copy = folder(name);
    let from = tests().join("deployments");
    for (path, text) in files(&from.join("synapse")) {
        let text = if path == file { change(text) } else { text };
        let target = copy.join(&path);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::write(target, text).unwrap();
    }
    let at = |file: &str| copy.join(file).display().to_string();
    let output = companion(&[
        "render",
        "--homeserver",
        &at("homeserver.yaml"),
        "--homeserver",
        &at("streams.yaml"),
        "--worker",
        &at("workers"),
        "--nginx-version",
        "1.28.3",
    ]);
    let said = String::from_utf8(output.stderr).unwrap();
    (
        output.status.code(),
        said.replace(copy.to_str().unwrap(), ""),
    )
}

/// What is said about a deployment that renders.
fn warned(name: &str, homeserver: &str, toml: &str) -> String {
    let folder = folder(name);
    std::fs::write(
        folder.join("homeserver.yaml"),
        format!(
            "listeners:\n  - {{port: 8008, type: http, x_forwarded: true, bind_addresses: [\"127.0.0.1\"], \
             resources: [{{names: [client, federation]}}]}}\n{homeserver}"
        ),
    )
    .unwrap();
    let file = folder.join("deployment.toml");
    std::fs::write(
        &file,
        format!("{toml}\n[synapse]\nhomeserver = [\"homeserver.yaml\"]\n"),
    )
    .unwrap();
    let output = companion(&[
        "render",
        "-d",
        file.to_str().unwrap(),
        "--nginx-version",
        "1.28.3",
    ]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    said.replace(&format!("{}/", folder.display()), "")
}

#[test]
fn the_authentication_service_and_synapse_s_files_must_agree() {
    let enabled = "matrix_authentication_service: {enabled: true, endpoint: \"http://mas:8080/\", secret: hush}\n";
    let mas = "[mas]\naddress = \"http://127.0.0.1:8080\"\n";
    let nobody = warned("mas-nobody", enabled, "");
    for part in [
        "login, logout and refresh",
        "they will be 404",
        "homeserver.yaml:3:",
        "key matrix_authentication_service.enabled",
        "add [mas]",
    ] {
        assert!(nobody.contains(part), "{part} is not in\n{nobody}");
    }
    assert!(!nobody.contains("hush"));
    assert_eq!(nobody.matches("warning: ").count(), 1, "{nobody}");
    assert_eq!(warned("mas-both", enabled, mas), "");
    let off = "matrix_authentication_service: {enabled: false}\n";
    assert_eq!(warned("mas-neither", off, ""), "");
    for homeserver in ["", off] {
        let said = warned("mas-alone", homeserver, mas);
        assert!(
            said.contains("do not enable") && said.contains("key mas.address"),
            "{said}"
        );
    }
    // nginx knows addresses, and no names, of who calls.
    let name =
        "[mas]\naddress = \"https://auth.example.org\"\n[resolver]\naddresses = [\"10.0.0.1\"]\n";
    let said = warned("mas-name", enabled, name);
    assert!(
        said.contains("stays closed") && said.contains("add allow"),
        "{said}"
    );
    let open = name.replace(".org\"\n", ".org\"\nallow = []\n");
    assert_eq!(warned("mas-closed", enabled, &open), "");
}

#[test]
fn main_quarantines_media_where_it_has_them_and_writes_the_stream() {
    let folder = folder("quarantine");
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    write(
        "media1.yaml",
        "worker_app: synapse.app.media_repository\nworker_name: media1\nworker_listeners:\n  - {type: http, port: 8082, \
         x_forwarded: true, resources: [{names: [media]}]}\n",
    );
    let shared = "listeners:\n  - {port: 8008, type: http, x_forwarded: true, resources: [{names: [client, federation]}]}\n";
    let at = |name: &str| folder.join(name).display().to_string();
    let quarantine = "/_synapse/admin/v1/";
    for (more, worker, warns) in [
        ("", "main", false),
        ("enable_media_repo: false\n", "media1", true),
        (
            "enable_media_repo: false\nstream_writers: {quarantined_media_changes: [media1]}\ninstance_map: {media1: {host: localhost, port: 9101}}\n",
            "media1",
            false,
        ),
    ] {
        write("homeserver.yaml", &format!("{shared}{more}"));
        for path in [
            "quarantine_media/!a:b",
            "room/!a:b/media/quarantine",
            "user/@a:b/media/quarantine",
            "media/quarantine/b/c",
            "media/unquarantine/b/c",
        ] {
            let output = companion(&[
                "route",
                "POST",
                &format!("{quarantine}{path}"),
                "--homeserver",
                &at("homeserver.yaml"),
                "--worker",
                &at("media1.yaml"),
                "--nginx-version",
                "1.28.3",
            ]);
            let answer = String::from_utf8(output.stdout).unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(
                answer.contains(&format!("\nworker    {worker}  ")),
                "{more}{path}\n{answer}{said}"
            );
            assert!(
                answer.contains("access    403 for everybody: admin_allow"),
                "{answer}"
            );
            assert_eq!(
                said.contains("does not write the stream"),
                warns,
                "{more}{said}"
            );
            assert_eq!(
                answer.contains("no worker here has the type"),
                warns,
                "{answer}"
            );
        }
    }
}

#[test]
fn files_of_the_operator_s_own_are_left_alone() {
    let target = folder("own");
    let output = target.to_str().unwrap();
    let render = |deployment: &str| {
        said(&[
            "render",
            "-d",
            &format!("deployments/{deployment}.toml"),
            "--nginx-version",
            "1.28.3",
            "--output",
            output,
        ]);
    };
    render("everything");
    let own = target.join("synapse/own/banner.conf");
    std::fs::create_dir_all(own.parent().unwrap()).unwrap();
    // Even one that somebody copied from a rendered file.
    let text = "# Rendered by synapse-companion 0; but not this.\nlocation = /x { return 204; }\n";
    std::fs::write(&own, text).unwrap();
    render("none");
    assert!(!target.join("synapse/client.conf").exists());
    assert_eq!(std::fs::read_to_string(&own).unwrap(), text);
}

#[test]
fn synapse_s_own_files_are_enough() {
    let (code, said) = synapse_says("synapse-plain", "", |text| text);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        !said.contains("error: ") && !said.contains("warning: "),
        "{said}"
    );
    // What became of generic workers with duties is said.
    assert_eq!(said.matches("note: ").count(), 2, "{said}");
    assert!(
        said.contains("writer1 has the duty typing, to_device, receipts"),
        "{said}"
    );
}

#[test]
fn mistakes_in_synapse_s_files_are_named_with_line_and_fix_and_without_secrets() {
    let cases: [(&str, &str, &str, &str, &[&str]); 6] = [
        (
            "stream",
            "streams.yaml",
            "typing: writer1",
            "typng: writer1",
            &[
                "no such stream: typng",
                "/streams.yaml:2:10, key stream_writers.typng",
                "fix: write typing",
            ],
        ),
        (
            "writer",
            "streams.yaml",
            "events: writer1",
            "events: writer9",
            &[
                "writer9 writes a stream",
                "/streams.yaml:5:11",
                "worker_name is writer9",
            ],
        ),
        (
            "app",
            "workers/generic1.yaml",
            "app.generic_worker",
            "app.generic_wroker",
            &[
                "no such worker application",
                "/workers/generic1.yaml:1:13, key worker_app",
                "write synapse.app.generic_worker",
            ],
        ),
        (
            "size",
            "homeserver.yaml",
            "120M",
            "120MB",
            &[
                "not a size",
                "/homeserver.yaml:5:18, key max_upload_size",
                "50M",
            ],
        ),
        (
            "yaml",
            "homeserver.yaml",
            "listeners:",
            "listeners: [",
            &["/homeserver.yaml:", "fix: check the indentation"],
        ),
        (
            "secret",
            "homeserver.yaml",
            "registration_shared_secret: \"8f2b0c51d9e34a76\"",
            "registration_shared_secret: \"8f2b0c51d9e34a76",
            &["/homeserver.yaml:", "fix:"],
        ),
    ];
    for (name, file, from, to, expected) in cases {
        let (code, said) = synapse_says(&format!("synapse-{name}"), file, |text| {
            assert!(text.contains(from), "{name}");
            text.replace(from, to)
        });
        assert_eq!(code, Some(2), "{name}: {said}");
        for part in expected {
            assert!(said.contains(part), "{name}: {part} is not in\n{said}");
        }
        assert!(
            !said.contains("8f2b0c51") && !said.contains("e07d1f6a"),
            "{name}: {said}"
        );
    }
}

#[test]
fn a_listener_that_hides_the_client_s_address_is_warned_about() {
    let (code, said) = synapse_says("synapse-xff", "workers/generic1.yaml", |text| {
        text.replace("    x_forwarded: true\n", "")
    });
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("warning: ") && said.contains("x_forwarded: true"),
        "{said}"
    );
    assert!(
        said.contains("/workers/generic1.yaml:4:5, key worker_listeners[0].x_forwarded"),
        "{said}"
    );
}

#[test]
fn route_says_location_upstream_worker_and_why() {
    let route = |args: &[&str]| {
        let mut all = vec!["route"];
        all.extend(args);
        all.extend(["-d", "deployments/small.toml", "--nginx-version", "1.28.3"]);
        said(&all)
    };
    let sync = route(&[
        "GET",
        "/_matrix/client/v3/sync",
        "--user",
        "@alice:example.org",
    ]);
    assert!(
        sync.contains(
            "location  ~ ^/_matrix/client/(?:r0|v3|unstable)/sync$  (synapse/client.conf)"
        ),
        "{sync}"
    );
    assert!(
        sync.contains("upstream  synapse_sync, 2 servers, hash $matrix_user_hash consistent"),
        "{sync}"
    );
    assert!(
        sync.contains("key       86f01aef21b1acd3\nworker    sync"),
        "{sync}"
    );
    assert!(sync.contains("why       sync, by user"), "{sync}");
    let preflight = route(&["options", "/_matrix/client/v3/sync"]);
    assert!(
        preflight.contains("answer    204, by nginx itself"),
        "{preflight}"
    );
    let sso = route(&[
        "GET",
        "/_matrix/client/v3/login/sso/redirect/oidc?redirectUrl=x",
    ]);
    assert!(
        sso.contains("synapse_main") && sso.contains("single sign-on"),
        "{sso}"
    );
    let nobody = route(&["GET", "/_matrix/client/v3/unheard_of"]);
    assert!(
        nobody.contains("location  /  (") && nobody.contains("no group of workers serves it"),
        "{nobody}"
    );
    let metrics = route(&["GET", "/_synapse/metrics"]);
    assert!(metrics.contains("answer    404"), "{metrics}");
    let hidden = route(&["OPTIONS", "/_synapse/admin/..%2Fv3/login?a=b"]);
    assert!(
        hidden.contains("location  if ($synapse_hidden)  (synapse/server.conf)\nanswer    403"),
        "{hidden}"
    );
    for plain in ["/_matrix/client/v3/sync/../x", "/a?b=/../"] {
        let plain = route(&["GET", plain]);
        assert!(plain.contains("upstream  synapse_main"), "{plain}");
    }
}

#[test]
fn route_refuses_what_is_no_user_and_no_path() {
    for (args, expected) in [
        (
            ["GET", "/_matrix/client/v3/sync", "--user", "alice"],
            "not a user id",
        ),
        (
            [
                "GET",
                "_matrix/client/v3/sync",
                "--user",
                "@alice:example.org",
            ],
            "400",
        ),
    ] {
        let mut all = vec!["route"];
        all.extend(args);
        all.extend(["-d", "deployments/small.toml", "--nginx-version", "1.28.3"]);
        let output = companion(&all);
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains(expected));
    }
}

#[test]
fn route_picks_among_the_members_that_a_service_has() {
    let answer = said(&[
        "route",
        "GET",
        "/_matrix/client/v3/sync",
        "--user",
        "@alice:example.org",
        "-d",
        "deployments/kubernetes.toml",
        "--nginx-version",
        "1.28.3",
        "--member",
        "synapse-sync-0.synapse-sync.matrix.svc.cluster.local",
        "--member",
        "synapse-sync-1.synapse-sync.matrix.svc.cluster.local",
    ]);
    assert!(answer.contains("worker    synapse-sync-"), "{answer}");
}

#[test]
fn diff_is_silent_when_nothing_changes_and_shows_what_does() {
    let installed = folder("diff");
    let path = installed.to_str().unwrap();
    let small = ["-d", "deployments/small.toml", "--nginx-version", "1.28.3"];
    said(&[&["render", "--output", path], &small[..]].concat());
    let same = companion(&[&["diff", "--installed", path], &small[..]].concat());
    assert_eq!((same.status.code(), same.stdout.len()), (Some(0), 0));
    let other = [
        "diff",
        "--installed",
        path,
        "-d",
        "deployments/none.toml",
        "--nginx-version",
        "1.28.3",
    ];
    let changed = companion(&other);
    let text = String::from_utf8(changed.stdout).unwrap();
    assert_eq!(changed.status.code(), Some(1));
    assert!(
        text.contains("-load_module modules/ngx_http_matrix_user_hash_module.so;"),
        "{text}"
    );
    assert!(
        text.contains("synapse/client.conf"),
        "a file that goes away is shown: {text}"
    );
    said(&[
        "render",
        "--output",
        path,
        "-d",
        "deployments/none.toml",
        "--nginx-version",
        "1.28.3",
    ]);
    assert!(
        !installed.join("synapse/client.conf").exists(),
        "an include of an earlier rendering is gone"
    );
    assert_eq!(companion(&other).status.code(), Some(0));
}

#[test]
fn completions_exist_for_the_common_shells() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            said(&["completions", shell]).contains("synapse-companion"),
            "{shell}"
        );
    }
}

#[test]
fn an_nginx_without_resolve_is_refused_unless_told_otherwise() {
    let args = [
        "render",
        "-d",
        "deployments/compose.toml",
        "--nginx-version",
        "1.27.2",
    ];
    let output = companion(&args);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        message.contains("1.27.3") && message.contains("--no-resolve"),
        "{message}"
    );
    let plain = said(&[&args[..], &["--no-resolve"]].concat());
    assert!(
        plain.contains("server sync1:8083 max_fails=0;") && !plain.contains("resolver "),
        "{plain}"
    );
}

#[test]
fn the_narrowest_pattern_says_what_a_worker_is_for() {
    let at = tests().join("deployments/synapse");
    let text = format!(
        "[synapse]\nhomeserver = [\"{0}/homeserver.yaml\", \"{0}/streams.yaml\"]\nworkers = [\"{0}/workers\"]\n\
         [synapse.roles]\n\"sync*\" = \"sync\"\n\"sync_2\" = \"user_dir\"\n\"generic*\" = \"client_reader\"\n",
        at.display()
    );
    let file = folder("narrow").join("deployment.toml");
    std::fs::write(&file, text).unwrap();
    let path = file.to_str().unwrap();
    let search = said(&[
        "route",
        "POST",
        "/_matrix/client/v3/user_directory/search",
        "-d",
        path,
        "--nginx-version",
        "1.28.3",
    ]);
    assert!(search.contains("synapse_user_dir, 2 servers"), "{search}");
    let sync = said(&[
        "route",
        "GET",
        "/_matrix/client/v3/sync",
        "-d",
        path,
        "--nginx-version",
        "1.28.3",
    ]);
    assert!(sync.contains("worker    sync_1"), "{sync}");
}

/// The blocks of a language in a page of docs/companion.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    text.split(&fence)
        .skip(1)
        .filter_map(|rest| Some(rest.split_once("\n```")?.0.to_owned() + "\n"))
        .collect()
}

#[test]
fn every_deployment_in_the_documentation_renders() {
    let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/companion");
    let mut rendered = 0;
    for (page, text) in files(&pages) {
        for (i, toml) in blocks(&text, "toml").into_iter().enumerate() {
            let name = format!("docs-{}-{i}", page.replace('.', "-"));
            let file = folder(&name).join("deployment.toml");
            // Some show a few settings; what they belong to is another block's.
            let whole = toml.contains("[main]") || toml.contains("[synapse]");
            let main = "[main]\nhost = \"127.0.0.1\"\nport = 8008\n";
            let toml = if whole { toml } else { format!("{main}{toml}") };
            // Synapse's files are not where the page says.
            let here = tests().join("deployments/synapse").display().to_string();
            std::fs::write(&file, toml.replace("/etc/matrix-synapse", &here)).unwrap();
            let path = file.to_str().unwrap();
            said(&["render", "-d", path, "--nginx-version", "1.28.3"]);
            rendered += 1;
        }
    }
    assert!(rendered >= 4, "{rendered}");
}

#[test]
fn the_guide_shows_what_route_really_says() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/companion/guide.md");
    let text = std::fs::read_to_string(page).unwrap();
    let file = folder("guide").join("deployment.toml");
    std::fs::write(&file, &blocks(&text, "toml")[0]).unwrap();
    let answer = said(&[
        "route",
        "GET",
        "/_matrix/client/v3/sync?since=s1",
        "--user",
        "@alice:example.org",
        "-d",
        file.to_str().unwrap(),
        "--nginx-version",
        "1.28.3",
    ]);
    assert_eq!(blocks(&text, "text")[0], answer);
}

#[test]
fn an_nginx_conf_of_somebody_else_is_not_replaced_unless_told_so() {
    let target = folder("others");
    let conf = target.join("nginx.conf");
    std::fs::write(&conf, "# by hand\n").unwrap();
    let render = |more: &[&str]| {
        let target = target.to_str().unwrap();
        let mut args = vec![
            "render",
            "-d",
            "deployments/none.toml",
            "--nginx-version",
            "1.28.3",
            "--output",
            target,
        ];
        args.extend(more);
        companion(&args)
    };
    let refused = render(&[]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(
        said.contains("did not write it") && said.contains("fix: render into a folder of its own"),
        "{said}"
    );
    assert_eq!(std::fs::read_to_string(&conf).unwrap(), "# by hand\n");
    assert!(
        !target.join("synapse").exists(),
        "nothing is written by halves"
    );
    assert!(render(&["--force"]).status.success());
    assert!(
        render(&[]).status.success(),
        "what it wrote itself, it replaces"
    );
}

/// A worker file of Synapse's, for a deployment around it.
fn with_worker(name: &str, homeserver: &str, worker: &str) -> (Option<i32>, String, String) {
    let place = folder(name);
    let main = "listeners:\n  - {port: 8008, type: http, x_forwarded: true, resources: [{names: [client, federation]}]}\n";
    std::fs::write(place.join("homeserver.yaml"), format!("{main}{homeserver}")).unwrap();
    std::fs::write(place.join("worker.yaml"), worker).unwrap();
    let at = |file: &str| place.join(file).display().to_string();
    let output = companion(&[
        "render",
        "--homeserver",
        &at("homeserver.yaml"),
        "--worker",
        &at("worker.yaml"),
        "--nginx-version",
        "1.28.3",
    ]);
    let text = |bytes| {
        String::from_utf8(bytes)
            .unwrap()
            .replace(place.to_str().unwrap(), "")
    };
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn a_generic_worker_with_the_media_repository_gets_media() {
    let worker = "worker_app: synapse.app.generic_worker\nworker_name: media1\nenable_media_repo: true\nworker_listeners:\n\
                  \x20 - {type: http, port: 8085, x_forwarded: true, resources: [{names: [media]}]}\n";
    let writes =
        "stream_writers: {quarantined_media_changes: [media1]}\nenable_media_repo: false\n";
    let (code, out, said) = with_worker("media", writes, worker);
    assert_eq!((code, said.as_str()), (Some(0), ""));
    assert!(
        out.contains("server 127.0.0.1:8085 max_fails=0; # media1"),
        "{out}"
    );
    // Without the key in its file, Synapse loads no repository there, and main has none either.
    let (code, _, said) = with_worker(
        "no-media",
        "enable_media_repo: false\n",
        &worker.replace("enable_media_repo: true\n", ""),
    );
    assert_eq!(code, Some(0));
    assert!(
        said.contains("/homeserver.yaml:3:20, key enable_media_repo") && said.contains("404"),
        "{said}"
    );
}

#[test]
fn what_synapse_s_files_lack_is_said() {
    let worker = "worker_app: synapse.app.generic_worker\nworker_name: generic1\n";
    let listener = "worker_listeners:\n  - {type: http, port: 8083, x_forwarded: true}\n";
    let (code, _, said) = with_worker("no-resources", "", &format!("{worker}{listener}"));
    assert_eq!(code, Some(0));
    assert!(
        said.contains("generic1 gets no requests")
            && said.contains("/worker.yaml:4:5, key worker_listeners[0].resources"),
        "{said}"
    );
    let (code, _, said) = with_worker("type", "federation_sender_instances: sender1\n", worker);
    assert_eq!(code, Some(2));
    assert!(
        said.contains("/homeserver.yaml:3:30, key federation_sender_instances"),
        "{said}"
    );
    let place = folder("no-listeners");
    let file = place.join("homeserver.yaml");
    std::fs::write(&file, "server_name: example.org\n").unwrap();
    let output = companion(&[
        "render",
        "--homeserver",
        file.to_str().unwrap(),
        "--nginx-version",
        "1.28.3",
    ]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("homeserver.yaml, key listeners"), "{said}");
}

#[test]
fn a_file_that_is_named_twice_is_noticed() {
    let at = |file: &str| format!("deployments/synapse/{file}");
    let worker = at("workers/generic1.yaml");
    let output = companion(&[
        "render",
        "--homeserver",
        &at("homeserver.yaml"),
        "--worker",
        &worker,
        "--worker",
        &worker,
        "--nginx-version",
        "1.28.3",
    ]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said.contains("two workers are called generic1") && !said.contains("both at"),
        "{said}"
    );
}

#[test]
fn a_file_of_the_main_process_is_no_worker_file() {
    let (code, _, said) = with_worker("main-app", "", "worker_app: synapse.app.homeserver\n");
    assert_eq!(code, Some(2));
    assert!(
        said.contains("of the main process") && said.contains("/worker.yaml:1:13, key worker_app"),
        "{said}"
    );
}

#[test]
fn workers_on_other_machines_that_nobody_names_are_asked_for() {
    let worker = "worker_app: synapse.app.generic_worker\nworker_name: generic1\nworker_listeners:\n\
                  \x20 - {type: http, port: 8008, x_forwarded: true, resources: [{names: [client]}]}\n";
    let (code, _, said) = with_worker("hosts", "", worker);
    assert_eq!(code, Some(2));
    assert!(
        said.contains("both at 127.0.0.1:8008") && said.contains("[synapse.hosts]"),
        "{said}"
    );
}

#[test]
fn loopback_addresses_of_two_hosts_are_warned_of() {
    let listener = |port: u16| {
        format!(
            "  - {{port: {port}, bind_addresses: ['::1', 127.0.0.1], type: http, x_forwarded: true, resources: [{{names: [client, federation]}}]}}\n"
        )
    };
    let worker = format!(
        "worker_app: synapse.app.generic_worker\nworker_name: generic1\nworker_listeners:\n{}",
        listener(8083)
    );
    for (name, host, is_warned_of) in [
        ("loopbacks-of-two", "10.0.0.2", true),
        ("loopbacks-of-one", "10.0.0.1", false),
    ] {
        let shared = format!(
            "listeners:\n{}instance_map: {{main: {{host: 10.0.0.1, port: 9093}}, generic1: {{host: {host}, port: 9101}}}}\n",
            listener(8008)
        );
        let (code, _, said) = with_worker(name, &shared, &worker);
        assert_eq!(code, Some(0), "{said}");
        let warning =
            "main is on 10.0.0.1 and generic1 on 10.0.0.2, and both listen at a loopback address";
        assert_eq!(said.contains(warning), is_warned_of, "{said}");
    }
}

/// Renders `deployments/synapse` with a folder of further shared files.
fn with_folder(shared: &Path) -> String {
    let output = companion(&[
        "render",
        "--homeserver",
        "deployments/synapse/homeserver.yaml",
        "--homeserver",
        shared.to_str().unwrap(),
        "--worker",
        "deployments/synapse/workers",
        "--nginx-version",
        "1.28.3",
    ]);
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_hidden_file_of_a_folder_counts_as_in_synapse() {
    let shared = folder("hidden");
    let writers = "stream_writers: {typing: nobody-has-my-file}\n";
    std::fs::write(shared.join(".yaml"), writers).unwrap();
    assert!(with_folder(&shared).contains("nobody-has-my-file"));
    std::fs::write(
        shared.join(".later.yaml"),
        "stream_writers: {typing: nor-mine}\n",
    )
    .unwrap();
    // `.later.yaml` comes before `.yaml`, as Python sorts.
    assert!(with_folder(&shared).contains("nobody-has-my-file"));
}

#[test]
fn a_folder_that_nobody_may_read_is_not_taken_for_empty() {
    use std::os::unix::fs::PermissionsExt;
    let shared = folder("closed");
    let writers = "stream_writers: {typing: nobody-has-my-file}\n";
    std::fs::write(shared.join("writers.yaml"), writers).unwrap();
    // With 0o444 the names can be read and the files cannot. Root may read all of it.
    for mode in [0o000, 0o444] {
        std::fs::set_permissions(&shared, PermissionsExt::from_mode(mode)).unwrap();
        let said = with_folder(&shared);
        std::fs::set_permissions(&shared, PermissionsExt::from_mode(0o755)).unwrap();
        assert!(
            said.contains("cannot read") || said.contains("nobody-has-my-file"),
            "{said}"
        );
    }
}

#[test]
fn a_log_that_cannot_be_read_says_why() {
    let place = folder("odd-logs");
    let at = |name: &str| place.join(name).display().to_string();
    std::fs::write(at("cut.gz"), [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0x4b]).unwrap();
    let (cut, missing, here) = (at("cut.gz"), at("missing"), place.display().to_string());
    let simulate = |log| ["simulate", log, "--workers", "a:1,b:2"];
    for (arguments, why) in [
        (&["balance", &cut][..], "cut off or damaged"),
        (&["top", "--once", &cut], "is compressed"),
        (&simulate(&missing), "No such file"),
        (&simulate(&here), "Is a directory"),
    ] {
        let output = companion(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(why), "{arguments:?}: {said}");
    }
}

#[test]
fn every_yaml_in_the_documentation_is_yaml() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/companion");
    let mut documents = 0;
    for (page, text) in files(&folder) {
        for block in blocks(&text, "yaml") {
            for document in block.split("\n---\n") {
                let wrong = granit_parser::Parser::new_from_str(document).find_map(Result::err);
                assert!(wrong.is_none(), "{page}: {wrong:?}\n{document}");
                documents += 1;
            }
        }
    }
    assert!(documents >= 6, "{documents}");
}

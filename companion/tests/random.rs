//! Random deployments against an oracle of what each Synapse process can serve.
//!
//! `generator` invents a deployment: processes, listeners, duties, hosts, and the files that describe it, in all the forms
//! that Synapse reads. The program renders it, `nginx` finds out where nginx would send each endpoint of
//! `nginx/endpoints.tsv`, and `oracle` says what the process behind that address would make of it. Of each endpoint, every
//! server of its group must be able to serve it; or rendering was refused, or a warning names the cause. A deployment
//! without a fault must render and serve everything.
//!
//! `cargo test` tries 300. A campaign: `DEPLOYMENTS=10000 cargo test --release -p synapse-companion --test random`. `SEED` is
//! the first deployment's number, and `COMPANION` names another program to try.

#[path = "random/generator.rs"]
mod generator;
#[path = "random/nginx.rs"]
mod nginx;
#[path = "random/oracle.rs"]
mod oracle;
#[path = "random/text.rs"]
mod text;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use generator::Deployment;
use oracle::Endpoint;

/// What came of one deployment.
enum Outcome {
    Served { clean: bool },
    Warned,
    Refused,
}

fn number(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |text| text.parse().unwrap())
}

#[test]
fn every_endpoint_reaches_a_process_that_serves_it_or_the_cause_is_said() {
    let count = number("DEPLOYMENTS", 300);
    let first = number("SEED", 1);
    let endpoints = oracle::endpoints();
    let tally = Mutex::new(BTreeMap::<&str, u64>::new());
    let failures = Mutex::new(Vec::new());
    let next = AtomicU64::new(first);
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut matcher = nginx::Matcher::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    let deployment = generator::deployment(seed);
                    let outcome = try_one(seed, &deployment, &endpoints, &mut matcher);
                    let name = match outcome {
                        Ok(Outcome::Served { clean: true }) => "without a fault, all served",
                        Ok(Outcome::Served { clean: false }) => "with a fault, all served",
                        Ok(Outcome::Warned) => "warned of",
                        Ok(Outcome::Refused) => "refused",
                        Err(problem) => {
                            failures.lock().unwrap().push((seed, problem));
                            "failed"
                        }
                    };
                    *tally.lock().unwrap().entry(name).or_default() += 1;
                }
            });
        }
    });
    let tally = tally.into_inner().unwrap();
    // Told also where the test passes: what it tried is the figure.
    let _ = writeln!(
        std::io::stdout(),
        "{count} deployments, {} endpoints each: {tally:?}",
        endpoints.len()
    );
    let mut failures = failures.into_inner().unwrap();
    failures.sort();
    let shown: Vec<String> = failures
        .iter()
        .take(5)
        .map(|(seed, problem)| format!("SEED={seed} DEPLOYMENTS=1: {problem}"))
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {count} deployments failed\n{}",
        failures.len(),
        shown.join("\n\n")
    );
    // A program that refuses everything would never be wrong.
    if count >= 100 {
        let of = |name| tally.get(name).copied().unwrap_or_default();
        assert!(of("without a fault, all served") * 4 > count, "{tally:?}");
        assert!(of("refused") > 0 && of("warned of") > 0, "{tally:?}");
    }
}

fn folder(seed: u64) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("random-{seed}"));
    let _ = std::fs::remove_dir_all(&path);
    path
}

fn try_one(
    seed: u64,
    deployment: &Deployment,
    endpoints: &[Endpoint],
    matcher: &mut nginx::Matcher,
) -> Result<Outcome, String> {
    let folder = folder(seed);
    for (name, text) in &deployment.files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let program = std::env::var("COMPANION");
    let program = program.unwrap_or_else(|_| env!("CARGO_BIN_EXE_synapse-companion").to_owned());
    let output = Command::new(program)
        .arg("render")
        .args(&deployment.arguments)
        .args(["--nginx-version", "1.28.3", "--no-resolve"])
        .current_dir(&folder)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let rendered = String::from_utf8(output.stdout).unwrap();
    let explained = |problem: &str| {
        Err(format!(
            "{problem}\nfaults: {:?}\nfiles: {}\n{said}",
            deployment.faults,
            folder.display()
        ))
    };
    let result = match output.status.code() {
        Some(0) => judge(deployment, &rendered, &said, endpoints, matcher),
        Some(2) if !said.contains("error: ") => Err("refused without an error".to_owned()),
        Some(2) if deployment.faults.is_empty() => Err("refused without a fault".to_owned()),
        Some(2) => Ok(Outcome::Refused),
        code => Err(format!("ended with {code:?}")),
    };
    match result {
        Ok(outcome) => {
            let _ = std::fs::remove_dir_all(&folder);
            Ok(outcome)
        }
        Err(problem) => explained(&problem),
    }
}

fn judge(
    deployment: &Deployment,
    rendered: &str,
    said: &str,
    endpoints: &[Endpoint],
    matcher: &mut nginx::Matcher,
) -> Result<Outcome, String> {
    let nginx = nginx::Nginx::read(rendered);
    let warnings: Vec<&str> = said.split("warning: ").skip(1).collect();
    let mut warned = false;
    for endpoint in endpoints {
        for path in &endpoint.paths {
            let group = nginx.group(&endpoint.method, path, matcher);
            let servers = nginx.servers(&group);
            if servers.is_empty() {
                return Err(format!(
                    "{} {path}: the group {group} has no servers",
                    endpoint.method
                ));
            }
            for server in servers {
                let Err(reason) = oracle::serves(deployment, server, endpoint, path) else {
                    continue;
                };
                let cause = warnings.iter().any(|warning| {
                    reason
                        .words
                        .iter()
                        .all(|word| warning.contains(word.as_str()))
                });
                if !cause || deployment.faults.is_empty() {
                    return Err(format!(
                        "{} {path}: {group} at {server}: {}",
                        endpoint.method, reason.text
                    ));
                }
                warned = true;
            }
        }
    }
    Ok(if warned {
        Outcome::Warned
    } else {
        Outcome::Served {
            clean: deployment.faults.is_empty(),
        }
    })
}

#[test]
fn the_oracle_knows_what_a_process_cannot_serve() {
    let endpoints = oracle::endpoints();
    let find = |method: &str, part: &str| {
        let found = endpoints.iter().find(|endpoint| {
            endpoint.method == method && endpoint.paths.iter().any(|path| path.contains(part))
        });
        found.unwrap_or_else(|| panic!("no endpoint {method} {part}"))
    };
    let deployment = generator::sample();
    let serves = |server: &str, method: &str, part: &str| {
        let endpoint = find(method, part);
        let path = endpoint
            .paths
            .iter()
            .find(|path| path.contains(part))
            .unwrap();
        oracle::serves(&deployment, server, endpoint, path).is_ok()
    };
    // main: client and federation; writer1 writes typing, for client; fed1 for federation; media1 for media.
    for (server, method, part, expected) in [
        ("127.0.0.1:8008", "GET", "/_matrix/client/v3/sync", true),
        ("127.0.0.1:8008", "PUT", "/typing/", false),
        ("127.0.0.1:8081", "PUT", "/typing/", true),
        ("127.0.0.1:8081", "PUT", "/sendToDevice/", false),
        ("127.0.0.1:8081", "GET", "/_matrix/client/v3/sync", true),
        ("127.0.0.1:8081", "POST", "/_matrix/client/v3/logout", false),
        ("127.0.0.1:8082", "GET", "/_matrix/client/v3/sync", false),
        (
            "127.0.0.1:8082",
            "PUT",
            "/_matrix/federation/v1/send/",
            true,
        ),
        ("127.0.0.1:8008", "POST", "/_matrix/media/v3/upload", false),
        ("127.0.0.1:8083", "POST", "/_matrix/media/v3/upload", true),
        ("127.0.0.1:8083", "GET", "/_matrix/client/v3/sync", false),
        ("127.0.0.1:9999", "GET", "/_matrix/client/v3/sync", false),
    ] {
        assert_eq!(
            serves(server, method, part),
            expected,
            "{server} {method} {part}"
        );
    }
}

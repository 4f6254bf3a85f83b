//! `synapse-companion`: from a description of a Synapse deployment to the nginx configuration around `matrix_user_hash`.
//!
//! A command runs straight through: `input` reads files into a `model::Deployment`; `plan` lays it out by the rows of
//! `table`; `render` writes that down, `nginx` judges it, and `route` and `hash` explain it. Errors end up as one text
//! on standard error and an exit code: 0 done, 1 a difference (`diff`), 2 a mistake.

#![forbid(unsafe_code)]

mod balance;
mod cli;
mod diagnostic;
mod diff;
mod files;
mod hash;
mod html;
mod input;
mod log;
mod model;
mod moves;
mod nginx;
mod plan;
mod render;
mod route;
mod routes;
mod simulate;
mod table;
mod top;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser as _};
use matrix_user_hash_core::user::{UserHash, UserId};

use crate::cli::{Candidate, Cli, Command, Input};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::log::read::Progress;
use crate::log::tally::{Measure, Options, Tally};
use crate::model::Deployment;
use crate::moves::{Installed, Rollout, Wish};
use crate::plan::Plan;
use crate::render::Files;

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(found) => {
            // Nothing is left to do about a standard error that is gone.
            let _ = write!(std::io::stderr(), "{found}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode, Diagnostics> {
    match cli.command {
        Command::Render {
            input,
            output,
            force,
            moves,
            installed,
        } => {
            let installed = installed.as_ref().or(output.as_ref());
            let (deployment, plan) = moved(&input, moves.into(), installed, None)?;
            write(
                &render::render(&deployment, &plan)?,
                output.as_deref(),
                force,
            )?;
        }
        Command::Drain {
            leaving,
            input,
            output,
            gradually,
            start,
            installed,
        } => {
            let installed = installed.as_ref().or(output.as_ref());
            let wish = Wish {
                gradually: Some(gradually),
                start,
                now: false,
            };
            let (deployment, plan) = moved(&input, wish, installed, Some(&leaving))?;
            write(
                &render::render(&deployment, &plan)?,
                output.as_deref(),
                false,
            )?;
            note(format!(
                "take {leaving} out of the deployment before it is rendered again: it would come back"
            ));
        }
        Command::Check(candidate) => check(&candidate)?,
        Command::Rollout(arguments) => rollout(&arguments)?,
        Command::Route {
            method,
            path,
            input,
            user,
            origin,
            member,
            installed,
            at,
        } => {
            let plan = explained(&input, &installed.folder)?;
            let question = route::Question {
                method: method.to_ascii_uppercase(),
                target: path,
                user,
                origin,
                members: member,
                at: at.unwrap_or_else(moves::clock),
            };
            let answer = route::route(&plan, &question)
                .map_err(|message| Diagnostic::error(message).fix("see `route --help`"))?;
            say(&answer.to_string())?;
        }
        Command::Routes { format } => say(&routes::shown(format))?,
        Command::Diff(candidate) => {
            let rendered = rendered(&candidate)?.1;
            let difference = diff::diff(&candidate.installed.folder, &rendered)?;
            say(&difference)?;
            return Ok(ExitCode::from(u8::from(!difference.is_empty())));
        }
        Command::Init { file, force } if file.as_os_str() == "-" => {
            let _ = force;
            say(input::EXAMPLE)?;
        }
        Command::Init { file, force } => files::write_example(&file, input::EXAMPLE, force)?,
        Command::Balance { log, user, top, by } => {
            let watched = user.as_deref().map(user_hash).transpose()?;
            let tally = tally(&log, watched, by)?;
            let report = balance::Report::new(&tally, top);
            if let Some(file) = &log.html {
                report.page("Who is where, and who is heavy")?.write(file)?;
            }
            say(&if log.json {
                json(&report)?
            } else {
                report.to_string()
            })?;
        }
        Command::Simulate(arguments) => {
            let report = simulated(&arguments)?;
            if let Some(file) = &arguments.log.html {
                report.page()?.write(file)?;
            }
            say(&if arguments.log.json {
                json(&report)?
            } else {
                report.to_string()
            })?;
        }
        Command::Top(arguments) => {
            let watch = watched(&arguments)?;
            if arguments.once {
                let look = top::once(&watch)?;
                if let Some(file) = &arguments.html {
                    look.page()?.write(file)?;
                }
                say(&if arguments.json {
                    json(&look)?
                } else {
                    look.to_string()
                })?;
            } else {
                top::live(&watch)?;
            }
        }
        Command::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "synapse-companion",
                &mut std::io::stdout(),
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl From<cli::Moves> for Wish {
    fn from(moves: cli::Moves) -> Self {
        Self {
            gradually: moves.gradually,
            start: moves.start,
            now: moves.now,
        }
    }
}

/// Reads the input and lays it out; warnings go to standard error.
fn planned(input: &Input) -> Result<(Deployment, Plan), Diagnostics> {
    // An nginx that is not here is no mistake: the configuration may be for another machine.
    let here = nginx::Nginx::ask(&input.nginx)
        .ok()
        .map(|nginx| nginx.version);
    let request = input::Request {
        deployment: input.deployment.clone(),
        homeserver: input.homeserver.clone(),
        workers: input.worker.clone(),
        nginx: input.nginx_version,
        installed: here,
        no_resolve: input.no_resolve,
        resolv_conf: input.resolv_conf.clone(),
    };
    if request.deployment.is_none() && request.homeserver.is_empty() {
        return Err(Diagnostic::error("no deployment is given")
            .fix("write one with `synapse-companion init` and name it with -d, or name Synapse's files with --homeserver and --worker")
            .into());
    }
    let (deployment, warnings) = input::read(&request)?;
    let _ = write!(std::io::stderr(), "{warnings}");
    let plan = moves::laid_out(&deployment);
    Ok((deployment, plan))
}

/// Reads the input and lays it out, with users on the move if they are by what is installed, or shall be.
fn moved(
    input: &Input,
    wish: Wish,
    installed: Option<&PathBuf>,
    drained: Option<&str>,
) -> Result<(Deployment, Plan), Diagnostics> {
    let (mut deployment, _) = planned(input)?;
    if let Some(worker) = drained {
        moves::drain(&mut deployment, worker)?;
    }
    // `now` is for everybody: it does not matter who is where, nor whether that can be read.
    let folder = installed.filter(|_| !wish.now);
    let installed = folder
        .map(|folder| Installed::read(folder, &deployment.settings.name))
        .transpose()?
        .flatten();
    if let (Some(folder), None) = (folder, &installed) {
        moves::refuse_another_name(&moves::laid_out(&deployment), folder, moves::clock())?;
    }
    let (plan, notes) = moves::plan(&deployment, installed.as_ref(), &wish, moves::clock())?;
    for note in notes {
        let _ = write!(std::io::stderr(), "{note}");
    }
    Ok((deployment, plan))
}

/// The plan for an explanation: one of another deployment than what is installed is explained as well.
fn explained(input: &Input, installed: &Path) -> Result<Plan, Diagnostics> {
    let (deployment, plain) = planned(input)?;
    let installed = Installed::read(installed, &plain.name)?;
    let wish = Wish::default();
    match moves::plan(&deployment, installed.as_ref(), &wish, moves::clock()) {
        Ok((plan, _)) => Ok(plan),
        Err(_) => {
            note("the installed configuration has users on the move to other workers than these; this is without them".into());
            Ok(plain)
        }
    }
}

fn note(text: String) {
    let _ = write!(std::io::stderr(), "{}", Diagnostic::note(text));
}

/// Writes the files, or shows them.
fn write(rendered: &Files, output: Option<&Path>, force: bool) -> Result<(), Diagnostics> {
    match output {
        Some(folder) => {
            if !force {
                files::refuse_others(rendered, folder)?;
            }
            files::install(rendered, folder)?;
        }
        None => say(&files::shown(rendered))?,
    }
    Ok(())
}

fn rollout(arguments: &cli::RolloutArguments) -> Result<(), Diagnostics> {
    let folder = &arguments.installed.folder;
    let Some(installed) = Installed::read(folder, &arguments.name)? else {
        return Err(Diagnostic::error(format!(
            "{} has no configuration of synapse-companion's",
            folder.display()
        ))
        .fix("name the folder of the installed nginx.conf with --installed, and `name` of the deployment file with --name")
        .into());
    };
    let mut users: Option<moves::Users> = None;
    if !arguments.logs.is_empty() {
        let log = cli::Log::of_files(&arguments.logs);
        let tally = tally(&log, None, Measure::Requests)?;
        let mut of_groups = moves::Users::new();
        for (user, group, _) in tally.people() {
            let name = tally.groups[usize::from(group)].name.clone();
            of_groups.entry(name).or_default().push(user);
        }
        users = Some(of_groups);
    }
    let now = arguments.at.unwrap_or_else(moves::clock);
    let report = Rollout::new(&installed, now, users.as_ref(), arguments.list);
    say(&if arguments.json {
        json(&report)?
    } else {
        report.to_string()
    })?;
    Ok(())
}

/// The name of the deployment, and its files.
fn rendered(candidate: &Candidate) -> Result<(String, Files), Diagnostics> {
    let installed = Some(&candidate.installed.folder);
    let (deployment, plan) = moved(&candidate.input, candidate.moves.into(), installed, None)?;
    let rendered = render::render(&deployment, &plan)?;
    Ok((plan.name, rendered))
}

fn check(candidate: &Candidate) -> Result<(), Diagnostics> {
    let nginx = nginx::Nginx::ask(&candidate.input.nginx)?;
    let (name, rendered) = rendered(candidate)?;
    let text: String = rendered.values().map(String::as_str).collect();
    let mut found = Diagnostics::default();
    nginx
        .lacks(&text)
        .into_iter()
        .for_each(|lack| found.push(lack));
    if found.has_errors() {
        return Err(found);
    }
    let folder = files::temporary()?;
    files::install(&rendered, folder.path())?;
    let said = nginx::Nginx::test(
        &candidate.input.nginx,
        &folder.path().join(render::main_file(&name)),
    )?;
    say(&format!(
        "{said}\nnginx {}: {} files, all is well\n",
        nginx.version,
        rendered.len()
    ))?;
    Ok(())
}

/// A user by id or by hash. The text is never shown: it may be a token by mistake.
fn user_hash(text: &str) -> Result<u64, Diagnostic> {
    if let Ok(id) = UserId::try_from(text) {
        return Ok(UserHash::of_user(&id).to_bits());
    }
    let is_hash = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hash
        .then(|| u64::from_str_radix(text, 16).ok())
        .flatten()
        .ok_or_else(|| {
            Diagnostic::error("what --user has is neither a user id nor a hash")
                .fix("write @user:server, or the 16 digits of the log")
        })
}

/// Reads the log once to see which group and workers it has, if nobody says so, and once for what is asked.
fn simulated(arguments: &cli::Simulate) -> Result<simulate::Report, Diagnostics> {
    let mut log = arguments.log.clone();
    let named = arguments.today.is_some() || arguments.today_deployment.is_some();
    let (mut group, mut logged) = (log.group.clone(), Vec::new());
    if !named || group.is_none() {
        // What is missing or a folder is refused with its own reason when it is read.
        let is_pipe = |path: &PathBuf| {
            path.as_os_str() == "-"
                || path
                    .metadata()
                    .is_ok_and(|known| !known.is_file() && !known.is_dir())
        };
        if log.logs.iter().any(is_pipe) {
            return Err(Diagnostic::error("a pipe can be read only once, and the log has to be read to see its group and its workers")
                .fix("name them with --group and with --today or --today-deployment, or write the log to a file")
                .into());
        }
        let seen = tally(&log, None, Measure::Requests)?;
        (group, logged) = simulate::group_of(&seen, group).ok_or_else(|| {
            Diagnostic::error("no request of these logs has a user's hash and a worker").fix(
                "see `Formats` in docs/companion/planning.md, and --group, --since and --until",
            )
        })?;
    }
    let group = group.unwrap_or_default();
    let ring = |list: &Option<String>, file: &Option<PathBuf>| match (list, file) {
        (Some(list), _) => simulate::Ring::parse(list).map_err(Diagnostics::from),
        (None, Some(file)) => Ok(simulate::Ring::new(servers_of(file, &group)?)),
        (None, None) => Ok(simulate::Ring::new(logged.clone())),
    };
    let question = simulate::Question {
        today: ring(&arguments.today, &arguments.today_deployment)?,
        wanted: ring(&arguments.workers, &arguments.deployment)?,
        gradually: arguments.gradually,
        target: arguments.target,
        at_most: arguments.at_most.map(|percent| percent / 100.0),
        lookups: simulate::Wanted {
            valid: arguments.valid,
            inactive: arguments.inactive,
            rotation: arguments.rotation,
        },
    };
    log.group = Some(group.clone());
    let mut tally = new_tally(&log, None, Measure::Requests);
    let mut check = simulate::Check::new(ring(&arguments.today, &arguments.today_deployment)?);
    let mut lookups = simulate::Seen::new(&question.lookups);
    log::read::lines(&log.logs, &mut Progress::new(log.quiet), |line| {
        if let Some(line) = tally.add(line) {
            check.add(&line);
            lookups.add(&line);
        }
    })?;
    Ok(simulate::Report::new(
        &tally, &group, &check, lookups, &question,
    ))
}

fn watched(arguments: &cli::Top) -> Result<top::Watch, Diagnostic> {
    let sources = arguments.metrics.iter().map(|url| top::Source::parse(url));
    Ok(top::Watch {
        logs: arguments.logs.clone(),
        sources: sources.collect::<Result<_, _>>()?,
        window: i64::try_from(arguments.window).unwrap_or(i64::MAX),
        interval: Duration::from_secs(arguments.interval),
        options: Options {
            since: None,
            until: None,
            group: arguments.group.clone(),
            watched: None,
            exact_users: 1_000_000,
            by: arguments.by,
        },
        heavy: arguments.top,
    })
}

/// The servers of a group, as a deployment file's configuration would have them.
fn servers_of(file: &Path, group: &str) -> Result<Vec<simulate::Server>, Diagnostics> {
    let (_, plan) = planned(&Input::of_file(file))?;
    let Some(upstream) = plan.upstream(group) else {
        return Err(
            Diagnostic::error(format!("{} makes no upstream {group}", file.display()))
                .fix("name a group of the deployment with --group, such as synapse_sync")
                .into(),
        );
    };
    if upstream
        .servers
        .iter()
        .any(|server| server.service.is_some())
    {
        return Err(Diagnostic::error(format!(
            "the workers of {group} are a DNS service, whose names only DNS has"
        ))
        .fix("name them with --today and --workers, as the SRV records have them")
        .into());
    }
    let server = |server: &plan::Server| simulate::Server {
        name: server.address.clone(),
        weight: server.weight,
    };
    Ok(upstream.servers.iter().map(server).collect())
}

/// Adds up the lines of logs.
fn tally(log: &cli::Log, watched: Option<u64>, by: Measure) -> Result<Tally, Diagnostics> {
    let mut tally = new_tally(log, watched, by);
    log::read::lines(&log.logs, &mut Progress::new(log.quiet), |line| {
        tally.add(line);
    })?;
    Ok(tally)
}

fn new_tally(log: &cli::Log, watched: Option<u64>, by: Measure) -> Tally {
    Tally::new(Options {
        since: log.since,
        until: log.until,
        group: log.group.clone(),
        watched,
        exact_users: log.exact_users,
        by,
    })
}

fn json(value: &impl serde::Serialize) -> Result<String, Diagnostic> {
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .map_err(|error| Diagnostic::error(format!("cannot write JSON: {error}")))
}

/// To standard output. A reader that has gone (`| head`) is no mistake.
fn say(text: &str) -> Result<(), Diagnostic> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Diagnostic::error(
            format!("cannot write to standard output: {error}"),
        )),
        _ => Ok(()),
    }
}

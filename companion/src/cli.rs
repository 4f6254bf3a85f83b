//! The command line, as types that clap reads and documents.

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::log::tally::Measure;
use crate::log::time;
use crate::model::NginxVersion;

/// Renders, checks and explains the nginx configuration for a Synapse worker deployment.
#[derive(Debug, Parser)]
#[command(name = "synapse-companion", version)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What it can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write nginx.conf and its includes into a folder, or show them
    Render {
        #[command(flatten)]
        input: Input,
        /// The folder for nginx.conf and synapse/; without it, everything is shown
        #[arg(short, long, value_name = "DIR")]
        output: Option<PathBuf>,
        /// Replace an nginx.conf that somebody else wrote
        #[arg(long, requires = "output")]
        force: bool,
        #[command(flatten)]
        moves: Moves,
        /// The folder of the nginx.conf that runs, if it is not that of --output
        #[arg(long, value_name = "DIR", value_parser = folder)]
        installed: Option<PathBuf>,
    },
    /// Render as if a worker were not there: its users leave it one by one
    Drain {
        /// The worker's name
        #[arg(value_name = "NAME")]
        leaving: String,
        #[command(flatten)]
        input: Input,
        /// The folder for nginx.conf and synapse/; without it, everything is shown
        #[arg(short, long, value_name = "DIR")]
        output: Option<PathBuf>,
        /// Over how much time they leave
        #[arg(long, value_name = "TIME", default_value = "30m", value_parser = time::parse_length)]
        gradually: u64,
        /// When they begin to; without it, at the next whole minute that is at least a minute away
        #[arg(long, value_name = "TIME", value_parser = start)]
        start: Option<u64>,
        /// The folder of the nginx.conf that runs, if it is not that of --output
        #[arg(long, value_name = "DIR", required_unless_present = "output", value_parser = folder)]
        installed: Option<PathBuf>,
    },
    /// Render into a temporary folder and have `nginx -t` judge it
    Check(Candidate),
    /// Say how far users who are on the move have come, and who moves when
    Rollout(RolloutArguments),
    /// Say what nginx does with a request: location, upstream, worker, and why
    Route {
        /// The method
        method: String,
        /// The path, with its query if it has one
        path: String,
        #[command(flatten)]
        input: Input,
        /// The user who asks; the worker that their hash picks is shown
        #[arg(long, value_name = "@USER:SERVER")]
        user: Option<String>,
        /// The server that asks, for the federation API
        #[arg(long, value_name = "SERVER")]
        origin: Option<String>,
        /// Where workers are a DNS service: a name that its SRV records have now; repeatable
        #[arg(long, value_name = "NAME")]
        member: Vec<String>,
        #[command(flatten)]
        installed: InstalledFolder,
        /// When it is asked, where users are on the move; without it, now
        #[arg(long, value_name = "TIME", value_parser = start)]
        at: Option<u64>,
    },
    /// Show the table of all routes: pattern, worker types, and why
    Routes {
        /// How it is written
        #[arg(long, value_enum, default_value_t = Format::Markdown)]
        format: Format,
    },
    /// Show what rendering would change; exits with 1 if anything
    Diff(Candidate),
    /// Write a commented example of a deployment file
    Init {
        /// The file; `-` shows it
        #[arg(default_value = "deployment.toml")]
        file: PathBuf,
        /// Replace the file if it exists
        #[arg(long)]
        force: bool,
    },
    /// Say from access logs who is where, who is heavy, and how even it is
    Balance {
        #[command(flatten)]
        log: Log,
        /// Also show where this user was, named as @user:server or by their hash
        #[arg(long, value_name = "@USER:SERVER")]
        user: Option<String>,
        /// Heavy users to show of each worker
        #[arg(long, value_name = "NUMBER", default_value_t = 5)]
        top: usize,
        /// What makes a user heavy
        #[arg(long, value_enum, default_value_t = Measure::Requests)]
        by: Measure,
    },
    /// Say what other workers would mean for the users of access logs
    Simulate(Simulate),
    /// Show who is where as it happens, from logs that grow or from nginx's figures
    Top(Top),
    /// Write completions for a shell to standard output
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// How users get from the workers that they have to those that they shall have.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Moves {
    /// Let the users of groups that change move over this time, each at a moment of their own
    #[arg(long, value_name = "TIME", value_parser = time::parse_length)]
    pub gradually: Option<u64>,
    /// When they begin to; without it, at the next whole minute that is at least a minute away
    #[arg(long, value_name = "TIME", requires = "gradually", value_parser = start)]
    pub start: Option<u64>,
    /// End what is on the way: everybody who has not moved does so at once
    #[arg(long, conflicts_with = "gradually")]
    pub now: bool,
}

/// A configuration that shall replace the one that runs.
#[derive(Debug, Args)]
pub(crate) struct Candidate {
    #[command(flatten)]
    pub input: Input,
    #[command(flatten)]
    pub moves: Moves,
    #[command(flatten)]
    pub installed: InstalledFolder,
}

/// Where the configuration is that runs.
#[derive(Debug, Args)]
pub(crate) struct InstalledFolder {
    /// The folder of the installed nginx.conf
    #[arg(long = "installed", value_name = "DIR", default_value = DEFAULT_FOLDER, value_parser = folder)]
    pub folder: PathBuf,
}

/// Where Debian and the official images have it. A machine that only renders does not.
const DEFAULT_FOLDER: &str = "/etc/nginx";

/// A folder that is there. Of another one it would look as if nothing were installed, and nobody on the move.
fn folder(text: &str) -> Result<PathBuf, String> {
    let folder = PathBuf::from(text);
    if folder.is_dir() || text == DEFAULT_FOLDER {
        Ok(folder)
    } else {
        Err("there is no such folder".to_owned())
    }
}

/// Whose way is shown.
#[derive(Debug, Args)]
pub(crate) struct RolloutArguments {
    /// Access logs whose users are counted, also compressed with gzip
    #[arg(value_name = "LOG")]
    pub logs: Vec<PathBuf>,
    #[command(flatten)]
    pub installed: InstalledFolder,
    /// `name` of the deployment file
    #[arg(long, default_value = crate::plan::NAME)]
    pub name: String,
    /// The moment to look at; without it, now
    #[arg(long, value_name = "TIME", value_parser = start)]
    pub at: Option<u64>,
    /// List every user of the logs who moves, with the moment
    #[arg(long, requires = "logs")]
    pub list: bool,
    /// Write JSON
    #[arg(long)]
    pub json: bool,
}

/// What is watched.
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Access logs that grow; rotation is followed
    #[arg(value_name = "LOG", required_unless_present = "metrics")]
    pub logs: Vec<PathBuf>,
    /// Where nginx has `matrix_user_hash_metrics prometheus`; repeatable, and added up
    #[arg(long, value_name = "URL")]
    pub metrics: Vec<String>,
    /// How far to look back
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time::parse_length)]
    pub window: u64,
    /// How often to look
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = time::parse_length)]
    pub interval: u64,
    /// One group only, such as synapse_sync
    #[arg(long)]
    pub group: Option<String>,
    /// Heavy users to show of each worker
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    pub top: usize,
    /// What makes a user heavy
    #[arg(long, value_enum, default_value_t = Measure::Requests)]
    pub by: Measure,
    /// Show one look as text and end
    #[arg(long)]
    pub once: bool,
    /// Write that as JSON
    #[arg(long, requires = "once")]
    pub json: bool,
    /// Also write a page with plots
    #[arg(long, value_name = "FILE", requires = "once")]
    pub html: Option<PathBuf>,
}

/// What is simulated.
#[derive(Debug, Args)]
pub(crate) struct Simulate {
    #[command(flatten)]
    pub log: Log,
    /// The workers that may come, as their `server` lines would name them: sync1:8083,sync2:8083=WEIGHT
    #[arg(long, value_name = "LIST", required_unless_present = "deployment")]
    pub workers: Option<String>,
    /// A deployment file with the workers that may come, instead
    #[arg(short, long, value_name = "FILE", conflicts_with = "workers")]
    pub deployment: Option<PathBuf>,
    /// The workers of today; without it they are those of the log, by their addresses
    #[arg(long, value_name = "LIST")]
    pub today: Option<String>,
    /// The deployment file of today, instead
    #[arg(long, value_name = "FILE", conflicts_with = "today")]
    pub today_deployment: Option<PathBuf>,
    /// Let users move over this time, each at a moment of their own
    #[arg(long, value_name = "TIME", value_parser = time::parse_length)]
    pub gradually: Option<u64>,
    /// The largest over the mean that is even enough
    #[arg(long, value_name = "RATIO", default_value_t = 1.25)]
    pub target: f64,
    /// The largest part of all requests that one worker may get, in percent
    #[arg(long, value_name = "PERCENT")]
    pub at_most: Option<f64>,
    /// matrix_user_hash_valid
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = time::parse_length)]
    pub valid: u64,
    /// inactive= of the zone
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = time::parse_length)]
    pub inactive: u64,
    /// How long an access token lives; without it, as the log shows
    #[arg(long, value_name = "TIME", value_parser = time::parse_length)]
    pub rotation: Option<u64>,
}

/// How the table of routes is written.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Format {
    /// An array of objects, one a route
    Json,
    /// A table
    Markdown,
}

/// Where the deployment is described.
#[derive(Debug, Args)]
pub(crate) struct Input {
    /// The deployment file (see `init`)
    #[arg(short = 'd', long = "deployment", value_name = "FILE")]
    pub deployment: Option<PathBuf>,
    /// Synapse's homeserver.yaml, instead of a deployment file; repeatable if it has parts
    #[arg(long, value_name = "FILE")]
    pub homeserver: Vec<PathBuf>,
    /// A worker's file, a folder of them, or a pattern such as workers/*.yaml; repeatable
    #[arg(long, value_name = "FILE")]
    pub worker: Vec<PathBuf>,
    /// Resolve workers' names once, when nginx starts
    #[arg(long)]
    pub no_resolve: bool,
    /// The nginx that runs the configuration; its version decides what may be written
    #[arg(long, value_name = "PROGRAM", default_value = "nginx")]
    pub nginx: PathBuf,
    /// Its version, if it is not installed here
    #[arg(long, value_name = "VERSION", value_parser = version)]
    pub nginx_version: Option<NginxVersion>,
    /// Where the system's name servers stand
    #[arg(long, value_name = "FILE", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
}

impl Input {
    /// A deployment file and nothing else. No nginx is asked: what only new ones can do is no mistake in a simulation.
    pub(crate) fn of_file(file: &Path) -> Self {
        #[derive(Parser)]
        struct Alone {
            #[command(flatten)]
            input: Input,
        }
        let words = [
            "".as_ref(),
            "--nginx-version=1.30.0".as_ref(),
            "--deployment".as_ref(),
            file.as_os_str(),
        ];
        Alone::parse_from(words).input
    }
}

/// Which lines of which access logs.
#[derive(Clone, Debug, Args)]
pub(crate) struct Log {
    /// Access logs, also compressed with gzip, in any order; - is standard input
    #[arg(required = true, value_name = "LOG")]
    pub logs: Vec<PathBuf>,
    /// Leave out what ended before: 2026-11-25T15:00:00Z, 2026-11-25, or seconds since 1970
    #[arg(long, value_name = "TIME", value_parser = time::parse_argument)]
    pub since: Option<i64>,
    /// Leave out what ended then or later
    #[arg(long, value_name = "TIME", value_parser = time::parse_argument)]
    pub until: Option<i64>,
    /// One group only, such as synapse_sync
    #[arg(long)]
    pub group: Option<String>,
    /// Users whose figures are exact; each takes about 150 bytes
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000_000)]
    pub exact_users: usize,
    /// Write JSON
    #[arg(long)]
    pub json: bool,
    /// Also write a page with plots
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Say nothing of the progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// A moment as the module's directive takes it, in milliseconds since 1970.
fn start(text: &str) -> Result<u64, String> {
    matrix_user_hash_core::shift::parse_time(text.as_bytes())
        .ok_or_else(|| "write it as 2026-11-25T15:00:00Z, or in seconds since 1970".to_owned())
}

impl Log {
    /// Everything in these logs.
    pub(crate) fn of_files(files: &[PathBuf]) -> Self {
        #[derive(Parser)]
        struct Alone {
            #[command(flatten)]
            log: Log,
        }
        let words = ["".as_ref(), "--quiet".as_ref()]
            .into_iter()
            .chain(files.iter().map(|file| file.as_os_str()));
        Alone::parse_from(words).log
    }
}

fn version(text: &str) -> Result<NginxVersion, String> {
    NginxVersion::parse(text).ok_or_else(|| "write it as `nginx -v` shows it: 1.28.3".to_owned())
}

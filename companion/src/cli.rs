//! The command line, as types that clap reads and documents.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::model::NginxVersion;

/// Renders, checks and explains the nginx configuration for a Synapse worker deployment.
#[derive(Debug, Parser)]
#[command(name = "synapse-companion", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What it can do.
#[derive(Debug, Subcommand)]
pub enum Command {
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
    },
    /// Render into a temporary folder and have `nginx -t` judge it
    Check {
        #[command(flatten)]
        input: Input,
    },
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
    },
    /// Show what rendering would change; exits with 1 if anything
    Diff {
        #[command(flatten)]
        input: Input,
        /// The folder of the installed nginx.conf
        #[arg(long, value_name = "DIR", default_value = "/etc/nginx")]
        installed: PathBuf,
    },
    /// Write a commented example of a deployment file
    Init {
        /// The file; `-` shows it
        #[arg(default_value = "deployment.toml")]
        file: PathBuf,
        /// Replace the file if it exists
        #[arg(long)]
        force: bool,
    },
    /// Write completions for a shell to standard output
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Where the deployment is described.
#[derive(Debug, Args)]
pub struct Input {
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

fn version(text: &str) -> Result<NginxVersion, String> {
    NginxVersion::parse(text).ok_or_else(|| "write it as `nginx -v` shows it: 1.28.3".to_owned())
}

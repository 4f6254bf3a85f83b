//! From files to a [`Deployment`]: either a small TOML file, or Synapse's own configuration, or the first naming the second.
//!
//! The deployment file is read, then Synapse's files; both become one set of facts, of which one judge makes a deployment
//! that is whole (every role is served at an address that has what it needs), or diagnostics that say what to put right. Nothing here knows of nginx's syntax except what a value may look like.

mod deployment_file;
mod facts;
mod judge;
mod resolv;
mod synapse_files;
mod values;

use std::path::{Path, PathBuf};

pub(crate) use deployment_file::EXAMPLE;

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::model::{Deployment, NginxVersion};

/// What the command line says about the input.
#[derive(Debug, Default)]
pub(crate) struct Request {
    /// The deployment file.
    pub deployment: Option<PathBuf>,
    /// Synapse's `homeserver.yaml`, in parts if it has parts.
    pub homeserver: Vec<PathBuf>,
    /// Its worker files; `*` in the last part of a path stands for anything.
    pub workers: Vec<PathBuf>,
    /// The nginx that it is for, as the command line says.
    pub nginx: Option<NginxVersion>,
    /// The nginx that is on this machine, for which it is when nobody says otherwise.
    pub installed: Option<NginxVersion>,
    /// Names are resolved once, at the start.
    pub no_resolve: bool,
    /// Where the system's name servers stand.
    pub resolv_conf: PathBuf,
}

/// Reads the input.
///
/// # Errors
/// All that is wrong with it; never a part of a secret.
pub(crate) fn read(request: &Request) -> Result<(Deployment, Diagnostics), Diagnostics> {
    let mut found = Diagnostics::default();
    let deployment = deployment_file::read(request, &mut found);
    let deployment = deployment.map(|mut deployment| {
        settle_resolving(request, &mut deployment, &mut found);
        deployment
    });
    match deployment {
        Some(deployment) if !found.has_errors() => Ok((deployment, found)),
        _ => Err(found),
    }
}

/// Reads a file, or says why not.
fn text_of(path: &Path, found: &mut Diagnostics) -> Option<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) => {
            found.push(
                Diagnostic::error(format!("cannot read {}: {error}", path.display()))
                    .fix("name a file that exists and that you may read; `synapse-companion init` writes an example"),
            );
            None
        }
    }
}

/// Whether names are resolved while nginx runs, and by whom.
fn settle_resolving(request: &Request, deployment: &mut Deployment, found: &mut Diagnostics) {
    let settings = &deployment.settings;
    let wanted = settings.resolve && !request.no_resolve;
    let processes = || std::iter::once(&deployment.main).chain(&deployment.workers);
    let mas = deployment.mas.iter().map(|mas| &mas.server);
    let others = deployment
        .externals
        .iter()
        .map(|route| &route.to)
        .chain(mas);
    let addresses: Vec<_> = processes()
        .flat_map(|p| p.addresses())
        .chain(others.map(|other| &other.address))
        .collect();
    let named = addresses.iter().find_map(|address| address.dns_name());
    let service = addresses
        .iter()
        .any(|a| matches!(a, crate::model::Address::Srv { .. }));
    let Some(name) = named else {
        deployment.settings.resolve = false;
        return;
    };
    if service && !wanted {
        found.push(
            Diagnostic::error("a worker is named by a DNS service (SRV), which nginx can only resolve while it runs")
                .fix("take --no-resolve and `resolve = false` away, or give the worker a host and a port"),
        );
    }
    if wanted && settings.nginx < NginxVersion::RESOLVE {
        found.push(
            Diagnostic::error(format!(
                "nginx {} cannot follow {name} when its address changes: `resolve` in an upstream needs nginx {} or newer",
                settings.nginx,
                NginxVersion::RESOLVE
            ))
            .fix("install a newer nginx; or say --no-resolve (or `resolve = false` under [resolver]), and reload nginx whenever a worker moves"),
        );
    }
    if wanted && settings.resolver.is_empty() {
        match resolv::read(&request.resolv_conf) {
            Ok(system) => {
                if let Some(warning) = system.warns_about(&addresses) {
                    found.push(warning);
                }
                deployment.settings.resolver = system.nameservers;
            }
            Err(error) => found.push(error),
        }
    }
    deployment.settings.resolve = wanted;
}

//! The nginx of this machine: its version, and its judgement of a rendered configuration.

use std::path::Path;
use std::process::Command;

use crate::diagnostic::Diagnostic;
use crate::model::NginxVersion;

/// What `nginx -V` says.
#[derive(Debug)]
pub(crate) struct Nginx {
    /// Its version.
    pub version: NginxVersion,
    /// The arguments that it was configured with.
    arguments: String,
}

impl Nginx {
    /// Asks a program.
    ///
    /// # Errors
    /// It cannot be run, or is no nginx.
    pub(crate) fn ask(program: &Path) -> Result<Self, Diagnostic> {
        let output = Command::new(program).arg("-V").output().map_err(|error| {
            Diagnostic::error(format!("cannot run {}: {error}", program.display()))
                .fix("install nginx, or name it with --nginx /usr/sbin/nginx")
        })?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let version = text.lines().find_map(NginxVersion::parse).ok_or_else(|| {
            Diagnostic::error(format!(
                "{} does not say that it is nginx",
                program.display()
            ))
            .fix("name another program with --nginx")
        })?;
        // Angie names the nginx that it is based on, but none of its versions keeps connections by default.
        let version = if text.starts_with("Angie") {
            version.min(NginxVersion::KEEPS_NONE)
        } else {
            version
        };
        let arguments = text
            .lines()
            .find(|line| line.starts_with("configure arguments:"));
        Ok(Self {
            version,
            arguments: arguments.unwrap_or_default().to_owned(),
        })
    }

    /// The modules that a configuration needs and this nginx lacks, with what asks for them.
    pub(crate) fn lacks(&self, text: &str) -> Vec<Diagnostic> {
        const OPTIONAL: [(&str, &str, &str); 5] = [
            (
                "stub_status;",
                "--with-http_stub_status_module",
                "say listen = \"off\" under [status]",
            ),
            (
                "set_real_ip_from ",
                "--with-http_realip_module",
                "take trusted_proxies away",
            ),
            (
                "ssl_certificate ",
                "--with-http_ssl_module",
                "take certificate and certificate_key away",
            ),
            ("http2 on;", "--with-http_v2_module", "take http2 away"),
            (" ssl http2;", "--with-http_v2_module", "take http2 away"),
        ];
        OPTIONAL
            .iter()
            .filter(|(directive, option, _)| {
                text.contains(directive) && !self.arguments.contains(option)
            })
            .map(|(directive, option, fix)| {
                let directive = directive.trim().trim_end_matches(';');
                Diagnostic::error(format!(
                    "this nginx was built without {option}, which `{directive}` needs"
                ))
                .fix(format!("install an nginx that has it, or {fix}"))
            })
            .collect()
    }

    /// Runs `nginx -t` on a configuration.
    ///
    /// # Errors
    /// What nginx has against it, with what that mostly means.
    pub(crate) fn test(program: &Path, conf: &Path) -> Result<String, Diagnostic> {
        // What nginx says before it has read where its log is goes there too, not into the log of the one that runs.
        let output = Command::new(program)
            .args(["-e", "stderr", "-t", "-c"])
            .arg(conf)
            .output();
        let output = output.map_err(|error| {
            Diagnostic::error(format!("cannot run {}: {error}", program.display()))
                .fix("install nginx, or name it with --nginx /usr/sbin/nginx")
        })?;
        let said = String::from_utf8_lossy(&output.stderr)
            .trim_end()
            .to_owned();
        if output.status.success() {
            return Ok(said);
        }
        Err(
            Diagnostic::error(format!("nginx refuses the configuration:\n{said}"))
                .fix(meaning(&said)),
        )
    }
}

/// What a refusal mostly comes from.
fn meaning(said: &str) -> &'static str {
    let hints = [
        (
            "matrix_user_hash_module.so\" failed",
            "install the module for exactly this nginx, and name its file under [nginx] module",
        ),
        (
            "is not binary compatible",
            "the module was built for another nginx: install the package for this version",
        ),
        (
            "unknown directive \"matrix_user_hash",
            "the module is not loaded: name its file under [nginx] module",
        ),
        (
            "host not found in upstream",
            "a worker's name does not resolve here: check it, or take --no-resolve away so that nginx asks while it runs",
        ),
        (
            "no port in upstream",
            "give the worker a port, or a service without --no-resolve",
        ),
        (
            "mkdir()",
            "create the folder under [paths] temp; nginx creates only the last part of a path",
        ),
        (
            "Permission denied",
            "check as the user that nginx runs as, or choose ports over 1023 and paths that it may write",
        ),
        (
            "cannot load certificate",
            "name a certificate that exists and that may be read",
        ),
    ];
    hints.iter().find(|(part, _)| said.contains(part)).map_or(
        "change the input that this line comes from, and render again",
        |(_, hint)| hint,
    )
}

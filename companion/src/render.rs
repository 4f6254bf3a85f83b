//! Writes a plan down as nginx's files.
//!
//! In come a deployment and its plan, out come file names below the folder of `nginx.conf`, each with its text. The
//! templates are in the binary. A name that a template asks for and nobody gives is an error, never an empty string.

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, UndefinedBehavior, context};
use serde::Serialize;

use crate::diagnostic::Diagnostic;
use crate::model::{Deployment, NginxVersion, Settings};
use crate::plan::{Location, NAME, Plan};
use crate::table::Section;

/// Every template with its name.
const TEMPLATES: [(&str, &str); 14] = [
    ("nginx.conf.j2", include_str!("../templates/nginx.conf.j2")),
    ("http.conf.j2", include_str!("../templates/http.conf.j2")),
    ("log.conf.j2", include_str!("../templates/log.conf.j2")),
    ("maps.conf.j2", include_str!("../templates/maps.conf.j2")),
    (
        "upstreams.conf.j2",
        include_str!("../templates/upstreams.conf.j2"),
    ),
    (
        "location.conf.j2",
        include_str!("../templates/location.conf.j2"),
    ),
    (
        "locations.conf.j2",
        include_str!("../templates/locations.conf.j2"),
    ),
    (
        "moving.conf.j2",
        include_str!("../templates/moving.conf.j2"),
    ),
    ("proxy.conf.j2", include_str!("../templates/proxy.conf.j2")),
    (
        "errors.conf.j2",
        include_str!("../templates/errors.conf.j2"),
    ),
    (
        "server.conf.j2",
        include_str!("../templates/server.conf.j2"),
    ),
    (
        "limits.conf.j2",
        include_str!("../templates/limits.conf.j2"),
    ),
    (
        "limit_zones.conf.j2",
        include_str!("../templates/limit_zones.conf.j2"),
    ),
    (
        "servers.conf.j2",
        include_str!("../templates/servers.conf.j2"),
    ),
];

/// What stands at the head of a section's file.
const fn about(section: Section) -> &'static str {
    match section {
        Section::Client => "The client API. nginx takes the first pattern that fits.",
        Section::Admin => "Administration.",
        Section::Mas => "What the Matrix Authentication Service asks of Synapse.",
        Section::LegacyMedia => "Media from before authenticated media.",
        Section::Federation => "Other servers.",
        Section::Key => "Keys of other servers.",
    }
}

/// File names, relative to the folder of `nginx.conf`, with their text.
pub(crate) type Files = BTreeMap<String, String>;

/// The file that nginx is started with. A deployment with a name is there to be included beside others, in an
/// `nginx.conf` of the operator's own, so its file has another name.
pub(crate) fn main_file(name: &str) -> String {
    if name == NAME {
        "nginx.conf".to_owned()
    } else {
        format!("nginx-{name}.conf")
    }
}

/// The first line of every file.
const BANNER: &str = concat!(
    "Rendered by synapse-companion ",
    env!("CARGO_PKG_VERSION"),
    "; edit its input, not this."
);

/// [`Settings`] as the templates see them.
#[derive(Serialize)]
struct Shown<'a> {
    module: &'a str,
    user: Option<&'a str>,
    worker_processes: &'a str,
    worker_connections: u32,
    pid: &'a str,
    error_log: &'a str,
    error_level: &'a str,
    verbose_errors: bool,
    temp: &'a str,
    read_timeout: u32,
    sync_read_timeout: u32,
    trusted_proxies: &'a [String],
    user_hash: ShownUserHash<'a>,
    media_cache: Option<ShownCache<'a>>,
    log_json: bool,
    access_log: &'a str,
    client_listen: &'a [String],
    federation_listen: &'a [String],
    server_names: &'a [String],
    tls: Option<(&'a str, &'a str)>,
    http2: bool,
    http2_directive: bool,
    keeps_connections: bool,
    status_listen: Option<&'a str>,
    status_allow: &'a [String],
}

#[derive(Serialize)]
struct ShownUserHash<'a> {
    zone_size: &'a str,
    state: Option<&'a str>,
}

#[derive(Serialize)]
struct ShownCache<'a> {
    path: &'a str,
    size: &'a str,
}

impl<'a> Shown<'a> {
    fn new(s: &'a Settings) -> Self {
        Self {
            module: &s.module,
            user: s.user.as_deref(),
            worker_processes: &s.worker_processes,
            worker_connections: s.worker_connections,
            pid: &s.pid,
            error_log: &s.error_log,
            error_level: &s.error_level,
            verbose_errors: !["alert", "emerg"].contains(&s.error_level.as_str()),
            temp: &s.temp,
            read_timeout: s.read_timeout,
            sync_read_timeout: s.sync_read_timeout,
            trusted_proxies: &s.trusted_proxies,
            user_hash: ShownUserHash {
                zone_size: &s.user_hash.zone_size,
                state: s.user_hash.state.as_deref(),
            },
            media_cache: s.media_cache.as_ref().map(|cache| ShownCache {
                path: &cache.path,
                size: &cache.size,
            }),
            log_json: s.log_json,
            access_log: &s.access_log,
            client_listen: &s.client_listen,
            federation_listen: &s.federation_listen,
            server_names: &s.server_names,
            tls: s
                .tls
                .as_ref()
                .map(|(certificate, key)| (certificate.as_str(), key.as_str())),
            http2: s.http2,
            http2_directive: s.nginx >= NginxVersion::HTTP2_DIRECTIVE,
            keeps_connections: s.nginx >= NginxVersion::KEEPS_CONNECTIONS,
            status_listen: s.status_listen.as_deref(),
            status_allow: &s.status_allow,
        }
    }
}

/// Renders everything.
///
/// # Errors
/// Only when a template is broken, which is a mistake of this program; the tests render every construct.
pub(crate) fn render(deployment: &Deployment, plan: &Plan) -> Result<Files, Diagnostic> {
    render_all(deployment, plan).map_err(|error| {
        Diagnostic::error(format!(
            "a template of synapse-companion is broken: {error:#}"
        ))
        .fix("this is a bug of synapse-companion; please report it with the deployment file")
    })
}

fn render_all(deployment: &Deployment, plan: &Plan) -> Result<Files, minijinja::Error> {
    let env = environment()?;
    let shown = Shown::new(&deployment.settings);
    let context = context! {
        banner => BANNER,
        n => plan.name.as_str(),
        plan => Serde(plan),
        s => Serde(&shown),
        client_patterns => plan.section(Section::Client).next().is_some(),
        resolver => resolver(&deployment.settings, plan),
        client_body => size(deployment.settings.client_body),
        federation_body => size(deployment.settings.federation_body),
    };
    let mut files = Files::new();
    files.insert(
        main_file(&plan.name),
        env.get_template("nginx.conf.j2")?.render(&context)?,
    );
    let mut names = vec![
        "http",
        "log",
        "maps",
        "upstreams",
        "proxy",
        "errors",
        "server",
        "servers",
    ];
    if plan.limits.is_some() {
        names.extend(["limits", "limit_zones"]);
    }
    for name in names {
        let text = env
            .get_template(&format!("{name}.conf.j2"))?
            .render(&context)?;
        files.insert(format!("{}/{name}.conf", plan.name), text);
    }
    if !plan.moving.is_empty() {
        let text = env.get_template("moving.conf.j2")?.render(&context)?;
        files.insert(format!("{}/moving.conf", plan.name), text);
    }
    for section in Section::ALL {
        let locations: Vec<&Location> = plan.section(section).collect();
        if !locations.is_empty() {
            let locations = Value::from(Serde(&locations));
            let context = context! { locations, about => about(section), ..context.clone() };
            let text = env.get_template("locations.conf.j2")?.render(context)?;
            files.insert(format!("{}/{}.conf", plan.name, section.file()), text);
        }
    }
    files.values_mut().for_each(|text| *text = tidy(text));
    Ok(files)
}

fn environment() -> Result<Environment<'static>, minijinja::Error> {
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::SemiStrict);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?,
    );
    for (name, text) in TEMPLATES {
        env.add_template(name, text)?;
    }
    Ok(env)
}

/// The `resolver` line, when a name has to be asked for.
fn resolver(settings: &Settings, plan: &Plan) -> Option<String> {
    let groups = plan.upstreams.iter().flat_map(|upstream| &upstream.servers);
    let singles = plan
        .moving
        .iter()
        .flat_map(|moving| moving.chosen.singles())
        .flat_map(|single| single.spare.iter().chain([&single.server]));
    groups.chain(singles).any(|s| s.resolve).then(|| {
        let mut line = settings.resolver.join(" ");
        if let Some(valid) = settings.resolver_valid {
            line += &format!(" valid={valid}s");
        }
        if !settings.resolver_ipv6 {
            line += " ipv6=off";
        }
        line
    })
}

/// Bytes as nginx writes them: in mebibytes where that is exact.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        _ if bytes > 0 && bytes.is_multiple_of(1 << 20) => format!("{}m", bytes >> 20),
        _ if bytes > 0 && bytes.is_multiple_of(1 << 10) => format!("{}k", bytes >> 10),
        _ => bytes.to_string(),
    }
}

/// No line ends in a blank, no two lines in a row are empty, none before a closing brace or at either end.
fn tidy(text: &str) -> String {
    let mut lines: Vec<&str> = Vec::new();
    for line in text.lines().map(str::trim_end) {
        let closes = line.trim_start() == "}";
        while closes && lines.last().is_some_and(|last| last.is_empty()) {
            lines.pop();
        }
        let follows_opening = lines
            .last()
            .is_none_or(|last| last.is_empty() || last.ends_with('{'));
        if !(line.is_empty() && follows_opening) {
            lines.push(line);
        }
    }
    while lines.last().is_some_and(|last| last.is_empty()) {
        lines.pop();
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_exactly() {
        assert_eq!(size(50 * 1024 * 1024), "50m");
        assert_eq!(size(13_107_200), "12800k");
        assert_eq!(size(1001), "1001");
    }

    #[test]
    fn blank_lines_do_not_pile_up() {
        assert_eq!(
            tidy("\n\na {  \n\n    b;\n\n\n    c;\n\n}\n\n"),
            "a {\n    b;\n\n    c;\n}\n"
        );
    }
}

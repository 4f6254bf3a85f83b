//! `diff`: what rendering would change in an installed configuration, as a unified diff.

use std::path::Path;

use similar::TextDiff;

use crate::diagnostic::Diagnostic;
use crate::files;
use crate::render::Files;

/// Compares. Empty when nothing would change.
///
/// # Errors
/// An installed file is there and cannot be read.
pub(crate) fn diff(installed: &Path, rendered: &Files) -> Result<String, Diagnostic> {
    let mut text = String::new();
    for (name, new) in rendered {
        let path = installed.join(name);
        let old = read(&path)?.unwrap_or_default();
        text += &unified(&path, &old, new);
    }
    for path in files::stale(rendered, installed) {
        let old = read(&path)?.unwrap_or_default();
        text += &unified(&path, &old, "");
    }
    Ok(text)
}

fn unified(path: &Path, old: &str, new: &str) -> String {
    let name = path.display().to_string();
    TextDiff::from_lines(old, new)
        .unified_diff()
        .context_radius(3)
        .header(&name, &format!("{name} (rendered)"))
        .to_string()
}

fn read(path: &Path) -> Result<Option<String>, Diagnostic> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(
            Diagnostic::error(format!("cannot read {}: {error}", path.display()))
                .fix("name the folder of the installed nginx.conf with --installed"),
        ),
    }
}

//! Files on disk: the rendered ones, the example, and a temporary folder for `check`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::diagnostic::Diagnostic;
use crate::render::Files;

/// Writes all files below a folder. Each appears whole or not at all, and none before all are written: a full disk leaves the
/// folder as it was. What was there under another name stays, but includes that are no longer rendered are taken away, for nginx
/// would not miss them and an operator might edit them.
///
/// # Errors
/// The folder or a file cannot be written.
pub(crate) fn install(files: &Files, folder: &Path) -> Result<(), Diagnostic> {
    let mut written = Written(Vec::new());
    for (name, text) in files {
        let path = folder.join(name);
        let parent = path.parent().unwrap_or(folder);
        std::fs::create_dir_all(parent).map_err(|error| refused(parent, &error))?;
        let new = path.with_extension("conf.new");
        written.0.push(new.clone());
        std::fs::write(&new, text).map_err(|error| refused(&new, &error))?;
    }
    for name in files.keys() {
        let path = folder.join(name);
        let new = path.with_extension("conf.new");
        std::fs::rename(&new, &path).map_err(|error| refused(&path, &error))?;
    }
    for stale in stale(files, folder) {
        std::fs::remove_file(&stale).map_err(|error| refused(&stale, &error))?;
    }
    Ok(())
}

/// New files that go away with the value, unless they have got their names.
struct Written(Vec<PathBuf>);

impl Drop for Written {
    fn drop(&mut self) {
        for path in &self.0 {
            // Most are no longer there, and nothing else can be done about one that cannot be removed.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Refuses to replace what the companion did not write: an nginx.conf may be somebody's work of years.
///
/// # Errors
/// Such a file is there.
pub(crate) fn refuse_others(files: &Files, folder: &Path) -> Result<(), Diagnostic> {
    let other = files
        .keys()
        .map(|name| folder.join(name))
        .find(|path| path.exists() && !is_ours(path));
    match other {
        None => Ok(()),
        Some(path) => Err(Diagnostic::error(format!(
            "{} is there, and synapse-companion did not write it",
            path.display()
        ))
        .fix("render into a folder of its own and include its http.conf; or move the file away; or say --force")),
    }
}

/// Files that an earlier rendering left and this one has not. Only such as carry our banner.
/// What is deeper, the folder `own` among it, is the operator's.
pub(crate) fn stale(files: &Files, folder: &Path) -> Vec<PathBuf> {
    let Some((includes, _)) = files.keys().find_map(|name| name.split_once('/')) else {
        return Vec::new();
    };
    let mut stale: Vec<PathBuf> = std::fs::read_dir(folder.join(includes))
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = format!("{includes}/{}", entry.file_name().to_string_lossy());
            !files.contains_key(&name) && is_ours(&entry.path())
        })
        .map(|entry| entry.path())
        .collect();
    stale.sort();
    stale
}

fn is_ours(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "conf")
        && std::fs::read_to_string(path)
            .is_ok_and(|text| text.starts_with("# Rendered by synapse-companion"))
}

fn refused(path: &Path, error: &std::io::Error) -> Diagnostic {
    Diagnostic::error(format!("cannot write {}: {error}", path.display()))
        .fix("choose a folder that you may write")
}

/// All files as one text, each under its name.
pub(crate) fn shown(files: &Files) -> String {
    files
        .iter()
        .map(|(name, text)| format!("#### {name}\n{text}\n"))
        .collect()
}

/// Writes the example.
///
/// # Errors
/// The file is there already, or cannot be written.
pub(crate) fn write_example(path: &Path, text: &str, force: bool) -> Result<(), Diagnostic> {
    let mut options = std::fs::OpenOptions::new();
    options
        .write(true)
        .create_new(!force)
        .create(force)
        .truncate(force);
    let written = options
        .open(path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()));
    written.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => {
            Diagnostic::error(format!("{} is there already", path.display()))
                .fix("name another file, or say --force")
        }
        _ => refused(path, &error),
    })
}

/// A folder that goes away with the value, and that nobody else may read.
///
/// # Errors
/// The system's temporary folder cannot be written.
pub(crate) fn temporary() -> Result<tempfile::TempDir, Diagnostic> {
    tempfile::Builder::new()
        .prefix("synapse-companion-")
        .tempdir()
        .map_err(|error| refused(&std::env::temp_dir(), &error))
}

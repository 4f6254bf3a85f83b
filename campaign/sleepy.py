"""A module that sleeps while it writes the zone: between the stores that make an entry, for up to 2 ms each.

A random SIGKILL hits a write of some nanoseconds about never. With this build about every kill under a load of misses
does. The sources are copied, the copy's one function is edited, and scripts/build builds it; the project's own
sources hold nothing of it. In goes the checkout, out comes the path of a module.
"""

import os
import re
import shutil
import subprocess
import sys

from .bed import ROOT, WORK, CampaignError

COPY = WORK / "sleepy"
MODULE = WORK / "sleepy.so"
PARTS = ("Cargo.toml", "Cargo.lock", "build.rs", "src", "core", "companion", "layout-check", "scripts")
# The four stores of Table::store. Every one of them is followed by a nap.
STORES = re.compile(r"^( +)(place\.slot\.(?:uses|user|check|tag)\(\)\.store\(.*\);)$", re.MULTILINE)
NAP = """
/// Dead for longer: up to 2 ms, other each time.
fn nap() {
    static NAPS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let seed = NAPS.fetch_add(0x9e37_79b9_7f4a_7c15, std::sync::atomic::Ordering::Relaxed);
    std::thread::sleep(std::time::Duration::from_micros((seed >> 32) % 2000));
}
"""


def module():
    """The path of the module that sleeps, built if it is older than the sources."""
    newest = max(path.stat().st_mtime for part in ("src", "core/src") for path in (ROOT / part).rglob("*.rs"))
    if MODULE.is_file() and MODULE.stat().st_mtime > newest:
        return MODULE
    copy_sources()
    edit(COPY / "core/src/table.rs")
    environment = {**os.environ, "OUTPUT": str(MODULE)}
    subprocess.run([COPY / "scripts/build"], check=True, env=environment, stdout=sys.stderr)
    return MODULE


def copy_sources():
    COPY.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        source, copy = ROOT / part, COPY / part
        if source.is_dir():
            # Times are kept, so that cargo builds only what has changed.
            shutil.copytree(source, copy, dirs_exist_ok=True)
        elif source.is_file():
            shutil.copy2(source, copy)


def edit(path):
    text, edits = STORES.subn(r"\1\2\n\1nap();", path.read_text())
    if edits != 4:
        raise CampaignError(f"{path}: {edits} stores found where Table::store should have four. Fix: campaign/sleepy.py")
    path.write_text(text.replace("#[cfg(test)]", NAP + "\n#[cfg(test)]", 1) if "#[cfg(test)]" in text else text + NAP)

"""Builds of the module that are made to be hurt: cargo features that no build for people has.

    slow-writes     sleeps 2 ms between the stores of an entry, where a random SIGKILL else hits about never
    other-layout    has structures and a zone of its own, as an older or newer version might
"""

import os
import subprocess
import sys

from tests.bed.processes import ROOT, BedError

from .bed import WORK


def module(feature):
    """The path of the module with that feature, built anew if it is older than the sources."""
    library = WORK / f"{feature}.so"
    sources = [path for part in ("src", "core/src") for path in (ROOT / part).rglob("*.rs")]
    newest = max(path.stat().st_mtime for path in [*sources, ROOT / "Cargo.toml", ROOT / "core/Cargo.toml"])
    if not library.is_file() or library.stat().st_mtime < newest:
        print(f"        building a module with {feature}", flush=True)
        environment = {**os.environ, "FEATURES": feature, "OUTPUT": str(library)}
        if subprocess.call([ROOT / "scripts/build"], env=environment, stdout=sys.stderr):
            raise BedError(f"the module does not build with {feature}. Fix: FEATURES={feature} scripts/build")
    return library

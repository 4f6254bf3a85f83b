"""The crate's own benchmarks, by criterion: the digest of a token alone, and with the look into the table."""

import json
import os
import subprocess

from .bed import ROOT, BenchError, undisturbed
from .results import Result

ENTRIES = (100, 1_000, 10_000, 100_000, 1_000_000)
# In which the table stays in the processor's caches, as it does where requests follow each other.
CACHED = 1_000


def micro(part):
    result = Result(part, "the digest alone, and with the look into the table: criterion's medians, in ns")
    target = ROOT / "target"
    cargo(target, "--no-run")
    with undisturbed():
        cargo(target, "--", "request/", "--noplot", "--warm-up-time", "0.5", "--measurement-time", "2")
    for entries in ENTRIES:
        figures = {name: estimate(target, folder, entries) for name, folder in
                   (("digest", "digest alone"), ("hit", "digest, hit"), ("miss", "digest, miss"))}
        result.figure(str(entries), **figures, ratio=figures["hit"] / figures["digest"])
    ratio = result.figures[str(CACHED)]["ratio"]
    result.check("digest and look take at most 1.5 × the digest alone, with 1,000 tokens", f"{ratio:.2f} ×", ratio <= 1.5)
    result.save()
    return result.passed


def cargo(target, *arguments):
    command = ["cargo", "bench", "--locked", "-q", "-p", "matrix-user-hash-core", "--bench", "table", *arguments]
    run = subprocess.run(command, cwd=ROOT, env={**os.environ, "CARGO_TARGET_DIR": str(target)}, capture_output=True, text=True,
                         check=False)
    if run.returncode:
        raise BenchError(f"{' '.join(command)} failed:\n{run.stderr[-2000:]}")


def estimate(target, name, entries):
    path = target / "criterion/request" / name / str(entries) / "new/estimates.json"
    return json.loads(path.read_text())["median"]["point_estimate"]

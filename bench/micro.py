"""The crate's own benchmarks, by criterion: the digest of a token alone, and with the look into the table. And what the look
takes by cachegrind, which shows what it waits for."""

import json
import os
import re
import subprocess

from .bed import ROOT, BenchError, tool, undisturbed
from .results import Result, median

ENTRIES = (100, 1_000, 10_000, 100_000, 1_000_000)
# In which the table stays in the processor's caches, as it does where requests follow each other.
CACHED = 1_000
ROUNDS, LOOKS = 5, 100_000
NAMES = {"digest": "digest alone", "hit": "digest, hit", "miss": "digest, miss"}


def micro(part):
    result = Result(part, f"the digest alone, and with the look into the table: medians of {ROUNDS} runs of criterion, in ns")
    target = ROOT / "target"
    cargo(target, "bench", "--bench", "table", "--no-run")
    cargo(target, "build", "--release", "--example", "hit_path")
    rounds = []
    for _ in range(ROUNDS):
        with undisturbed():
            cargo(target, "bench", "--bench", "table", "--", "request/", "--noplot", "--warm-up-time", "0.5",
                  "--measurement-time", "1")
        rounds.append({entries: {name: estimate(target, folder, entries) for name, folder in NAMES.items()}
                       for entries in ENTRIES})
    for entries in ENTRIES:
        runs = [run[entries] for run in rounds]
        figures = {name: median(run[name] for run in runs) for name in NAMES}
        ratio = median(run["hit"] / run["digest"] for run in runs)
        result.figure(str(entries), **figures, ratio=ratio, **profile(target, entries))
    ratio = result.figures[str(CACHED)]["ratio"]
    result.check("digest and look take at most 1.5 × the digest alone, with 1,000 tokens", f"{ratio:.2f} ×", ratio <= 1.5)
    result.save()
    return result.passed


def cargo(target, command, *arguments):
    words = ["cargo", command, "--locked", "-q", "-p", "matrix-user-hash-core", *arguments]
    run = subprocess.run(words, cwd=ROOT, env={**os.environ, "CARGO_TARGET_DIR": str(target)}, capture_output=True, text=True,
                         check=False)
    if run.returncode:
        raise BenchError(f"{' '.join(words)} failed:\n{run.stderr[-2000:]}")


def estimate(target, name, entries):
    path = target / "criterion/request" / name / str(entries) / "new/estimates.json"
    return json.loads(path.read_text())["median"]["point_estimate"]


def profile(target, entries):
    """Of one look that finds its token: instructions, and lines that the processor's first cache has not got."""
    without, with_looks = (cachegrind(target, entries, looks) for looks in (0, LOOKS))
    return {name: (with_looks[name] - without[name]) / LOOKS for name in without}


def cachegrind(target, entries, looks):
    """A process that fills a table, makes as many digests in any case, and so many looks."""
    program = target / "release/examples/hit_path"
    command = [tool("valgrind", "valgrind"), "--tool=cachegrind", "--cache-sim=yes", "--cachegrind-out-file=/dev/null", program,
               str(entries), str(LOOKS), str(looks)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    found = {name: re.search(rf"{words}: +([\d,]+)", run.stderr)
             for name, words in (("look_instructions", "I +refs"), ("look_lines", "D1 +misses"))}
    if run.returncode or None in found.values():
        raise BenchError(f"{program} under cachegrind failed:\n{run.stderr[-2000:]}")
    return {name: int(match[1].replace(",", "")) for name, match in found.items()}

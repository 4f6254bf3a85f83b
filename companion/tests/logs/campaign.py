#!/usr/bin/env python3
"""`balance` and `simulate` on logs that are too long for scripts/companion-test.

    companion/tests/logs/campaign.py figures [--lines 1000000] [--form text]   every figure against a plain computation, in three forms, also compressed
    companion/tests/logs/campaign.py memory [--gigabytes 10]                   a log that is made on the fly: memory does not grow with it
    companion/tests/logs/campaign.py speed [--lines 2000000]                   megabytes a second of one core, from a file in memory

It wants the release build (cargo build --release -p synapse-companion), and for `speed` a machine that does nothing else.
Speed is told next to `wc -l` over the same file, because machines differ: that only looks for line feeds.
"""

import argparse
import gzip
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import compare
import generate
import recompute

ROOT = Path(__file__).resolve().parents[3]
COMPANION = Path(os.environ.get("COMPANION", Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "synapse-companion"))

FORMS = ["text", "json", "readme"]


def figures(lines, forms):
    for form in forms:
        made = list(generate.log(lines=lines, users=lines // 50, days=7, form=form))
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "access.log")
            text = "".join(line + "\n" for line in made).encode()
            log.write_bytes(text)
            packed = Path(folder, "access.log.gz")
            packed.write_bytes(gzip.compress(text, 1))
            got = balance(log)
            assert balance(packed) == got, "compressed"
            assert balance("-", text) == got, "standard input"
        compare.same(got, recompute.figures(made), timed=form != "readme")
        print(f"{form}: {lines:,} lines, every figure is the same, of a file, compressed and through standard input", flush=True)


def balance(log, text=None):
    return json.loads(subprocess.run([COMPANION, "balance", "--json", log], input=text, capture_output=True, check=True).stdout)


# A process begins with the memory of the one that it was forked from, in the kernel's eyes: this one has little.
MEASURED = """
import json, resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"kib": used.ru_maxrss, "seconds": used.ru_utime + used.ru_stime}), file=sys.stderr)
"""


def with_others(block, number):
    """The block with other people: the first digits of each hash are changed by its number, so that most are new."""
    change = number * 40_503 % 65_536
    return re.sub(rb"user_hash=([0-9a-f]{4})", lambda found: b"user_hash=%04x" % (int(found[1], 16) ^ change), block)


def memory(gigabytes):
    """Other people in each part, more by far than are kept exactly."""
    block = "".join(line + "\n" for line in generate.log(lines=200_000, users=20_000, days=0.5, add_after=0)).encode()
    peaks = []
    for part in (0.1, 0.5, 1.0):
        wanted = int(gigabytes * part * 1e9)
        command = [sys.executable, "-c", MEASURED, COMPANION, "balance", "--json", "--quiet", "--exact-users", "100000", "-"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            written = number = 0
            # The output is short, so it waits in the pipe until all is written.
            while written < wanted:
                text = with_others(block, number)
                process.stdin.write(text)
                written, number = written + len(text), number + 1
            process.stdin.close()
            out = process.stdout.read()
            usage = json.loads(process.stderr.read())
        assert process.returncode == 0
        got = json.loads(out)
        peaks.append(usage["kib"] / 1024)
        print(f"{written / 1e9:.2f} GB, {got['lines']:,} lines, {got['users']:,} users: {peaks[-1]:.0f} MiB at most, {usage['seconds']:.1f} s of CPU", flush=True)
    assert max(peaks) <= peaks[0] * 1.1 + 8, "memory grew with the log"


def speed(lines):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        log = Path(folder, "access.log")
        with log.open("w") as file:
            file.writelines(line + "\n" for line in generate.log(lines=lines, users=lines // 100, days=7))
        size = log.stat().st_size / 1e6
        for name, command in (("balance", [COMPANION, "balance", "--quiet", log]), ("wc -l", ["wc", "-l", log])):
            taken = []
            for _ in range(5):
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            print(f"{name}: {size / sorted(taken)[2]:.0f} MB a second of CPU, the median of five", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["figures", "memory", "speed"])
    parser.add_argument("--lines", type=int)
    parser.add_argument("--form", choices=FORMS)
    parser.add_argument("--gigabytes", type=float, default=10)
    args = parser.parse_args()
    started = time.monotonic()
    if args.what == "figures":
        figures(args.lines or 1_000_000, [args.form] if args.form else FORMS)
    elif args.what == "memory":
        memory(args.gigabytes)
    else:
        speed(args.lines or 2_000_000)
    print(f"done in {time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()

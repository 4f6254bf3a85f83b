#!/usr/bin/env python3
"""Runs nginx's own tests with and without the module and compares them file by file.

In:  what scripts/nginx-suite gives: nginx, the module, the checkout of nginx-tests, the runs.
Out: a line for each check, the tests that ended otherwise, and RUN.json with how each test ended.
"""
import argparse
import concurrent.futures
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.bed.homeserver import Homeserver  # noqa: E402 # pylint: disable=wrong-import-position
from tests.bed.processes import running, title  # noqa: E402 # pylint: disable=wrong-import-position
from tests.bed.report import Report, step  # noqa: E402 # pylint: disable=wrong-import-position

PORT = int(os.environ.get("SUITE_PORT", "23980"))
# Localparts that the stand-in homeserver knows, in base64: alice; revoked; hang and alice in turn.
USERS = {"answer": ["YWxpY2U"], "refuse": ["cmV2b2tlZA"], "hang": ["aGFuZw", "YWxpY2U"]}
# As much as a lookup that hangs may take from a test that waits for its answer.
HOLD = "150ms"
# A file's own limit. The longest takes a minute on a quiet machine.
SECONDS = 300
# How often a file that ends otherwise is tried again, with and without.
AGAIN = 3
LINE = re.compile(r"^(not )?ok \d+(?: - (.*?))?\s*(?:# (TODO|skip)\b.*)?$", re.IGNORECASE)


class Suite:
    """What a file needs to be run: nginx, the module, the tests, a folder for temporary files."""

    def __init__(self, args, folder):
        self.args = args
        self.folder = folder

    def environment(self, run):
        """The environment that nginx's Test::Nginx builds its configurations from."""
        phase, _, kind = run.partition("-")
        http = f"suite_token {' '.join(USERS[kind or 'answer'])};\n"
        if run != "without":
            timeout = f"matrix_user_hash_timeout {HOLD};\n" if kind == "hang" else ""
            http += f"matrix_user_hash http://127.0.0.1:{PORT}/as-token/whoami;\nmatrix_user_hash_phase {phase};\n{timeout}"
        # Otherwise the worker processes could not read the test's folder.
        user = "user root;\n" if os.geteuid() == 0 else ""
        environment = {**os.environ, "TEST_NGINX_BINARY": self.args.nginx, "TMPDIR": self.folder, "LC_ALL": "C",
                       "TEST_NGINX_GLOBALS": f"{user}load_module {os.path.abspath(self.args.module)};\n",
                       "TEST_NGINX_GLOBALS_HTTP": http}
        if self.args.asan:
            environment["ASAN_OPTIONS"] = ("detect_leaks=0:abort_on_error=0:exitcode=99:detect_odr_violation=0:"
                                           f"log_path={self.reports(run)}/asan")
        return environment

    def reports(self, run):
        """Where AddressSanitizer writes in that run."""
        folder = Path(self.args.results).resolve() / "reports" / run
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def run(self, file, run):
        """One file: a dict of its tests and how each ended, or of one line that says why there are none."""
        with subprocess.Popen(["perl", "-I", "lib", file], cwd=self.args.tests, env=self.environment(run), text=True,
                              errors="replace", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              start_new_session=True) as process:
            try:
                said, _ = process.communicate(timeout=SECONDS)
            except subprocess.TimeoutExpired:
                said = ""
            # A file that died leaves its children. Its nginx is a daemon: `stop_nginx`.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return results(said)


def stop_nginx(binary, folder):
    """Ends every nginx that a file left in the folder."""
    for pid in running(Path(binary).resolve()):
        if folder in title(pid):
            os.kill(pid, signal.SIGKILL)


def results(said):
    """What a file's TAP says. Tests that nginx expects to fail are left out: they promise nothing."""
    skipped = re.search(r"^1\.\.0 # skip (.*)$", said, re.IGNORECASE | re.MULTILINE)
    if skipped:
        return {"skipped": skipped[1]}
    found, seen = {}, {}
    for line in said.splitlines():
        match = LINE.match(line)
        if not match or (match[3] or "").upper() == "TODO":
            continue
        name = match[2] or "?"
        seen[name] = seen.get(name, 0) + 1
        found[f"{name} ({seen[name]})" if seen[name] > 1 else name] = "failed" if match[1] else "passed"
    return found or {"ended": "without a test"}


def unlike(before, after):
    """The tests that ended otherwise."""
    return sorted(name for name in {**before, **after} if before.get(name) != after.get(name))


def known_differences():
    """File → runs in which it may end otherwise, from the table in docs/compatibility.md."""
    page = (ROOT / "docs" / "compatibility.md").read_text()
    rows = re.findall(r"^\| `(\w+\.t)` \| ([^|]+) \|", page, re.MULTILINE)
    return {file: runs.replace("`", "").strip().split(", ") for file, runs in rows}


def measure(suite, homeserver, run, files):
    """One run of all files: file → what it said, and how many lookups that took."""
    homeserver.forget()
    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(suite.args.jobs) as pool:
        said = dict(zip(files, pool.map(lambda file: suite.run(file, run), files)))
    seconds, seen = round(time.monotonic() - start), homeserver.seen()
    skipped = sum("skipped" in found for found in said.values())
    tests = sum(len(found) for found in said.values() if "skipped" not in found)
    failed = sum("failed" in found.values() or "ended" in found for found in said.values())
    step(f"{run}: {len(files)} files, {skipped} skipped, {tests} tests; {failed} files with failures; "
         f"{seen['requests']} lookups of {seen['tokens']} tokens; {seconds} s")
    record = {"lookups": seen["requests"], "seconds": seconds, "files": said}
    Path(suite.args.results, f"{run}.json").write_text(json.dumps(record, indent=1) + "\n")
    return said, seen["requests"]


def difference(suite, file, run):
    """The tests that end otherwise in `run` each time that the file is tried again, with how they ended."""
    for _ in range(AGAIN):
        before, after = suite.run(file, "without"), suite.run(file, run)
        tests = unlike(before, after)
        if not tests:
            return []
    return [f"{test}: {before.get(test, '-')} without, {after.get(test, '-')} with" for test in tests]


def compare(suite, report, run, plain, said):
    """Says which files end otherwise in `run`."""
    known = known_differences()
    suspects = [file for file, found in said.items() if unlike(plain[file], found)]
    unexplained, explained = [], []
    for file in suspects:
        tests = difference(suite, file, run)
        if not tests:
            continue
        reason = {run, "all"} & set(known.get(file, ()))
        print(f"  {file}: {'explained in docs/compatibility.md' if reason else 'NOT EXPLAINED'}", *tests[:8], sep="\n    ", flush=True)
        (explained if reason else unexplained).append(file)
    steady = len(suspects) - len(explained) - len(unexplained)
    report.check(f"{run}: each of {len(said)} files ends as it does without the module, or docs/compatibility.md says why not",
                 ", ".join(unexplained),
                 note=f"{len(said) - len(suspects)} do, {steady} do when tried again, {len(explained)} do not: "
                      + (", ".join(explained) or "none"))


def runs(suite, report, homeserver, files):
    """All runs, the one without the module first."""
    args = suite.args
    plain, _ = measure(suite, homeserver, "without", files)
    for run in args.runs:
        if run == "without":
            continue
        said, asked = measure(suite, homeserver, run, files)
        if not args.files:
            report.check(f"{run}: requests were parked", "" if asked > 1000 else f"{asked} lookups", note=f"{asked} lookups")
        compare(suite, report, run, plain, said)
        if args.asan:
            report.check(f"{run}: AddressSanitizer reports nothing",
                         ", ".join(str(path) for path in sorted(suite.reports(run).iterdir())[:5]))
    if args.asan:
        own = len(list(suite.reports("without").iterdir()))
        step(f"without: AddressSanitizer reports {own} times")


def main():
    parser = argparse.ArgumentParser()
    for name in ("nginx", "module", "tests", "results"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--asan", action="store_true")
    parser.add_argument("--runs", nargs="+", required=True)
    parser.add_argument("--files", nargs="*", required=True)
    args = parser.parse_args()
    files = args.files or sorted(path.name for path in Path(args.tests).glob("*.t"))
    report = Report("nginx-suite")
    folder = tempfile.mkdtemp(prefix="suite-")
    os.chmod(folder, 0o755)
    shutil.rmtree(Path(args.results, "reports"), ignore_errors=True)
    try:
        with Homeserver([PORT], PORT + 1, Path(folder, "homeserver")) as homeserver:
            runs(Suite(args, folder), report, homeserver, files)
    finally:
        stop_nginx(args.nginx, folder)
        shutil.rmtree(folder, ignore_errors=True)
    print(report.closing_line())
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    main()

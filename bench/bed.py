"""Processes under measurement: a variant, the sync workers behind it, and what the kernel says of them.

In: a `Variant` from variants.py. Out: a running nginx with one or more workers, and their processor time and memory. `NGINX_BINARY`,
`MODULE` and `NGINX_MODULES` (the folder of the script engines' modules) say which nginx; everything listens on loopback, from the
port that BENCH_PORTS names (25000), and lives in build/bench.
"""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

from tests.bed import nginx as bed
from tests.bed.processes import ROOT
from tests.bed.processes import BedError as BenchError

WORK = ROOT / "build/bench"
PORTS = int(os.environ.get("BENCH_PORTS", "25000"))
# Of its own for each run at a time, as the ports are.
RUN = WORK / f"run-{PORTS}"
FRONT, SILENT = PORTS, PORTS + 1
WORKERS = tuple(PORTS + n for n in range(2, 6))
TEMPORARY = bed.temporary_paths(RUN)

WORKERS_CONFIGURATION = f"""\
user root;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    keepalive_requests 100000000;
    keepalive_time 24h;
    {TEMPORARY}
    server {{
        {" ".join(f"listen 127.0.0.1:{port} backlog=4096;" for port in WORKERS)}
        default_type application/json;
        return 200 '{{"next_batch":"s72594_4483_1934_109_23_1_42_7_0_12","rooms":{{}}}}';
    }}
}}
"""


class Nginx(bed.Nginx):
    """A running nginx. Use as a context: whatever happens, its processes end."""

    def __init__(self, name, configuration, port, workers=1, wrapper=(), first=None):
        """With `first`, it starts with that configuration and reloads to the other."""
        # A large zone is restored, slowly under valgrind, before nginx listens.
        super().__init__(RUN, first or configuration, port=port, workers=workers, wrapper=wrapper, name=name, patience=300,
                         options=f"worker_processes {workers}; pid {RUN}/{name}.pid;")
        self.error_log_path = RUN / f"{name}.log"
        self.second = configuration if first else None

    def start(self):
        self.error_log_path.unlink(missing_ok=True)
        super().start()
        if self.second:
            try:
                self.reload(self.second)
            except BaseException:
                self.__exit__()
                raise

    def resident(self, field="RssAnon"):
        """Bytes that are resident of all workers."""
        return sum(self.memory(field).values())


def sync_workers():
    """Answers every sync at once."""
    return Nginx("workers", WORKERS_CONFIGURATION, WORKERS[0])


class SilentWorker:
    """A sync worker that never answers: what a long poll looks like for most of its life."""

    def __enter__(self):
        self.process = subprocess.Popen([sys.executable, "-m", "bench.silent", str(SILENT)], cwd=ROOT, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.process.stdout.readline()
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(20)

    def pending(self):
        """How many requests it has got and not answered."""
        self.process.stdin.write("how many?\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


def tool(name, package):
    path = shutil.which(name)
    if path is None:
        raise BenchError(f"there is no {name}. Fix: apt-get install {package}")
    return path


@contextmanager
def undisturbed():
    """What is required is required of an idle machine. A high priority is the next best thing on one that has other work, and
    whoever runs this as a user does without."""
    try:
        os.nice(-15)
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.nice(15)

"""Processes under measurement: a front, the sync workers behind it, and what the kernel says of them.

In: a `Front` from fronts.py. Out: a running nginx with one or more workers, and their processor time and memory. `NGINX_BINARY`,
`MODULE` and `NGINX_MODULES` (the folder of the script engines' modules) say which nginx; everything listens on loopback, from the
port that BENCH_PORTS names (25000), and lives in build/bench.
"""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from tests.bed.processes import ROOT, children, existing, listens, status, title, wait_for
from tests.bed.processes import BedError as BenchError

WORK = ROOT / "build/bench"
PORTS = int(os.environ.get("BENCH_PORTS", "25000"))
# Of its own for each run at a time, as the ports are.
RUN = WORK / f"run-{PORTS}"
FRONT, SILENT = PORTS, PORTS + 1
WORKERS = tuple(PORTS + n for n in range(2, 6))
TEMPORARY = " ".join(f"{name}_temp_path {RUN}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))

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


class Nginx:
    """A running nginx. Use as a context: whatever happens, its processes end."""

    def __init__(self, name, configuration, port, workers=1, wrapper=(), first=None):
        """With `first`, it starts with that configuration and reloads to the other."""
        self.name, self.port, self.count, self.wrapper = name, port, workers, list(wrapper)
        self.configuration, self.first = configuration, first

    def __enter__(self):
        RUN.mkdir(parents=True, exist_ok=True)
        path = RUN / f"{self.name}.conf"
        path.write_text(self.first or self.configuration)
        options = f"daemon off; worker_processes {self.count}; pid {RUN}/{self.name}.pid;"
        error_log = RUN / f"{self.name}.log"
        error_log.unlink(missing_ok=True)
        if listens(self.port):
            raise BenchError(f"something listens on port {self.port} already. Fix: BENCH_PORTS=another")
        command = [*self.wrapper, nginx(), "-p", RUN, "-e", error_log, "-c", path, "-g", options]
        self.process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=(RUN / f"{self.name}.stderr").open("w"))
        try:
            # A large zone is restored, slowly under valgrind, before nginx listens.
            wait_for(self.is_up, 300, f"nginx did not start: see {error_log} and {RUN}/{self.name}.stderr")
            if self.first:
                self.reload(path)
        except BaseException:
            self.__exit__()
            raise
        return self

    def reload(self, path):
        before = set(self.workers())
        path.write_text(self.configuration)
        self.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(self.workers()) == self.count and not before & set(self.workers()), 300,
                 f"nginx did not reload: see {RUN}/{self.name}.log")

    def is_up(self):
        if self.process.poll() is not None:
            raise BenchError(f"nginx ended: see {RUN}/{self.name}.log and .stderr")
        return listens(self.port) and len(self.workers()) == self.count

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            for pid in [*children(self.process.pid), self.process.pid]:
                os.kill(pid, 9)
            self.process.wait(10)

    def workers(self):
        return [pid for pid in children(self.process.pid) if self.wrapper or "worker" in title(pid)]

    def processor_seconds(self):
        """Of all workers, in user space and in the kernel; in nanoseconds' resolution, which /proc/PID/stat has not."""
        return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in self.workers()) / 1e9

    def memory(self, field="RssAnon"):
        """Bytes that are resident of all workers."""
        return sum(status(pid, field) * 1024 for pid in self.workers())


def nginx():
    return existing("NGINX_BINARY", ROOT / "build/nginx")


def module():
    return existing("MODULE", ROOT / "build/ngx_http_matrix_user_hash_module.so")


def version():
    """Such as `nginx/1.30.6`."""
    out = subprocess.run([nginx(), "-v"], capture_output=True, text=True, check=True).stderr
    return out.partition("version: ")[2].strip()


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

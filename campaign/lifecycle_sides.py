"""The two nginx of the campaign `lifecycle`, the one with the module and the plain one, and what may happen to either.

Both have the same locations before the same sync workers, and get the same events: reloads, binary upgrades, SIGKILLs of worker
processes, another size of the zone (a reload where there is none), rotated logs. Before a worker is killed it is stopped, and
its connections are written down: only requests on these have an excuse when they are cut off.
"""

import os
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from tests.bed import nginx as bed
from tests.bed.processes import BedError, Process, children, wait_for

from .bed import PORTS, WHOAMI, WORK

WORKERS = 2
SYNC = [PORTS + n for n in (20, 21, 22, 23)]
SYNC_CONTROL = PORTS + 24
BRIEF = "matrix_user_hash http://whoami zone=users; matrix_user_hash_valid 200 1s; matrix_user_hash_stale off;"
# The line of the log, at level notice, by which a request has been read.
READ = re.compile(r'"\^/never\$" does not match .* request: "GET [^ ]*\?n=(\d+) ')
SIZES = ("1m", "2m", "512k")


@dataclass(frozen=True)
class Kill:
    """A worker process that was killed: when, and the clients' ports of its TCP connections."""

    moment: float
    pid: int
    ports: frozenset


class Side(bed.Nginx):
    """One of the two. Use as a context."""

    def __init__(self, name, port, has_module, certificate, http3):
        directory = WORK / f"run/lifecycle-{name}-{PORTS}"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        shutil.copy2(bed.nginx_binary(), directory / "nginx")
        super().__init__(directory, "", port=port, workers=WORKERS, binary=directory / "nginx", daemon=True, name=name)
        self.quic_port = port + 1
        self.certificate, self.http3 = certificate, http3
        self.module = directory / "module.so" if has_module else None
        if has_module:
            shutil.copy2(bed.module(), self.module)
        self.size, self.rotations = SIZES[0], 0
        self.kills, self.held = [], []
        self.text = self.render()

    def render(self):
        ours, directory = self.module, self.directory
        quic = f"""listen 127.0.0.1:{self.quic_port} quic reuseport;
        ssl_certificate {self.certificate}; ssl_certificate_key {self.certificate};""" if self.http3 else ""
        return f"""\
{f"load_module {ours};" if ours else ""}
{bed.user_root()}
worker_processes {WORKERS};
worker_rlimit_nofile 20000;
pid {directory}/nginx.pid;
error_log {directory}/error.log notice;
events {{ worker_connections 8192; }}
http {{
    access_log {directory}/access.log;
    {bed.temporary_paths(directory)}
    keepalive_requests 100000000;
    keepalive_time 24h;
    # How long a worker that is to end keeps a QUIC connection whose client does not hear it any more.
    keepalive_timeout 5s;
    {f"matrix_user_hash_zone users:{self.size} state={directory}/users.state; matrix_user_hash_valid 200 24h;" if ours else ""}
    upstream whoami {{ server 127.0.0.1:{WHOAMI} max_fails=0; keepalive 16; }}
    upstream sync_workers {{
        hash {"$matrix_user_hash" if ours else "$http_authorization"} consistent;
        {" ".join(f"server 127.0.0.1:{port} max_fails=0;" for port in SYNC)}
        keepalive 16;
    }}
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    add_header X-Pid $pid always;
    add_header X-Upstream $upstream_addr always;
    {"add_header X-Hash $matrix_user_hash always; add_header X-Status $matrix_user_hash_status always;" if ours else ""}
    http2 on;
    server {{
        listen 127.0.0.1:{self.port} reuseport backlog=4096;
        {quic}
        # This writes a line when a request has been read, before anything else is done for it.
        rewrite_log on;
        rewrite ^/never$ /;
        location / {{
            {"matrix_user_hash http://whoami zone=users;" if ours else ""}
            proxy_pass http://sync_workers;
        }}
        # What is known here is known for a second, so that there are always lookups in flight.
        location /brief/ {{
            {BRIEF if ours else ""}
            proxy_pass http://sync_workers/_matrix/client/v3/sync;
        }}
        {"location = /figures { matrix_user_hash_metrics; access_log off; }" if ours else ""}
    }}
}}
"""

    def event(self, name, dice):
        """One event, as its name says; returns when it has happened."""
        getattr(self, name.replace(" ", "_"))(dice)

    def reload(self, _=None):
        """Returns when all new worker processes are there. Old ones may still have requests to answer."""
        before = set(self.workers())
        self.configure()
        self.send(signal.SIGHUP)
        wait_for(lambda: len(set(self.workers()) - before) == WORKERS and len(self.workers()) == WORKERS, 60,
                 f"nginx did not reload: see {self.error_log_path}")

    def resize(self, dice):
        """Reloads with another size of the zone."""
        self.size = dice.choice([size for size in SIZES if size != self.size])
        self.text = self.render()
        self.reload()

    def upgrade(self, _=None):
        """USR2; when the new processes are there, WINCH to the old master, which ends its workers, and QUIT."""
        old = self.master()
        os.kill(old, signal.SIGUSR2)
        wait_for(lambda: self.master() not in (None, old) and len(self.workers()) == WORKERS, 60,
                 f"the new binary did not start: see {self.error_log_path}")
        os.kill(old, signal.SIGWINCH)
        new = self.master()
        wait_for(lambda: not set(children(old)) - {new}, 60, f"the old worker processes do not end: see {self.error_log_path}")
        os.kill(old, signal.SIGQUIT)
        Process(old).wait(60)

    def kill_worker(self, dice):
        """Kills one, whether it is to end anyway or not, and returns when there are all workers again."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            pid = dice.choice(sorted(children(self.master())))
            if self.stopped(pid):
                self.kills.append(Kill(time.monotonic(), pid, self.client_ports(pid)))
                os.kill(pid, signal.SIGKILL)
                self.replaced(pid)
                return
        raise BedError("no worker process could be stopped")

    def replaced(self, pid):
        """Waits until a worker process that was killed is gone, and there are all again."""
        wait_for(lambda: pid not in children(self.master()) and len(self.workers()) == WORKERS, 60,
                 f"no worker in the place of the killed one: see {self.error_log_path}")

    @staticmethod
    def stopped(pid):
        """Stops it; False if it has ended before."""
        try:
            os.kill(pid, signal.SIGSTOP)
            while True:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                if state in "TZX":
                    return state == "T"
        except (ProcessLookupError, FileNotFoundError):
            return False

    def client_ports(self, pid):
        """The clients' ports of its connections."""
        inodes = set()
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            inodes.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
        local = f"0100007F:{self.port:04X}"
        rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
        return frozenset(int(row[2].partition(":")[2], 16) for row in rows if row[1] == local and row[9] in inodes)

    def rotate(self, _=None):
        """Moves both logs away, and USR1. Whoever writes to the old ones a while later has not heard it."""
        self.rotations += 1
        for name in ("access", "error"):
            (self.directory / f"{name}.log").rename(self.directory / f"{name}.log.{self.rotations}")
        self.send(signal.SIGUSR1)
        end = time.monotonic() + 10
        while held := self.old_logs_held():
            if time.monotonic() > end:
                self.held.append(f"rotation {self.rotations}: {', '.join(held)}")
                return
            time.sleep(0.02)

    def old_logs_held(self):
        """Logs that were moved away and are open in a process, but in one that is to end and hears no USR1."""
        held = []
        for pid in [self.master(), *self.workers()]:
            try:
                names = [os.path.basename(os.readlink(file)) for file in Path(f"/proc/{pid}/fd").iterdir()]
            except (ProcessLookupError, FileNotFoundError):
                continue
            held += [f"{name} in {pid}" for name in names if re.fullmatch(r"(access|error)\.log\.\d+", name)]
        return held

    @property
    def error_log(self):
        """All of it, whatever was rotated."""
        parts = sorted(self.directory.glob("error.log*"), key=lambda path: path.stat().st_mtime)
        return "".join(path.read_text(errors="replace") for path in parts)

    def read(self):
        """The numbers of the requests that nginx has read, answered or not."""
        found = set()
        for path in self.directory.glob("error.log*"):
            with path.open(errors="replace") as lines:
                found.update(int(said[1]) for said in map(READ.search, lines) if said)
        return found

"""The nginx in front, under test: its configuration, its processes, and what can be read of them from outside.

In: a `Front` that says what a campaign needs of the configuration. Out: the module's figures, workers' memory and
descriptors, log lines. Everything listens on loopback, from the port that CAMPAIGN_PORTS names (24000), and lives in
build/campaign. `NGINX_BINARY` and `MODULE` name other files than those in build/.
"""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build/campaign"
PORTS = int(os.environ.get("CAMPAIGN_PORTS", "24000"))
FRONT, WHOAMI, CONTROL, DEAD, SILENT = (PORTS + n for n in (0, 1, 2, 3, 4))


class CampaignError(Exception):
    """The campaign could not be run; says what to do about it."""


@dataclass(frozen=True)
class Front:
    """What a campaign needs of nginx."""

    workers: int = 4
    zone: str = "users:1m"
    # What stands in the location beside `matrix_user_hash`.
    directives: str = ""
    # The whoami group.
    whoami: str = f"server 127.0.0.1:{WHOAMI} max_fails=0; keepalive 64;"
    # True: requests go on to one of four sync workers by the hash; False: they are answered in place, which is faster.
    routed: bool = False
    log: bool = False
    user: str = "root"

    def render(self, directory, module):
        workers = "\n".join(f"        server unix:{directory}/sync{n}.sock;" for n in range(1, 5))
        sync = "\n".join(
            f'    server {{ listen unix:{directory}/sync{n}.sock; access_log off; location / {{ return 200 "sync{n}"; }} }}'
            for n in range(1, 5))
        content = "proxy_pass http://sync_workers;" if self.routed else "empty_gif;"
        log = f"access_log {directory}/access.log held buffer=64k flush=1s;" if self.log else "access_log off;"
        return f"""\
load_module {module};
{f"user {self.user};" if os.geteuid() == 0 else ""}
worker_processes {self.workers};
worker_rlimit_nofile 20000;
pid {directory}/nginx.pid;
error_log {directory}/error.log notice;
events {{ worker_connections 16384; }}
http {{
    log_format held '$pid $status $matrix_user_hash_status $matrix_user_hash_lookup_time $request_time';
    {log}
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 100000000;
    keepalive_time 24h;
    matrix_user_hash_zone {self.zone};
    upstream whoami {{ {self.whoami} }}
    # Without `zone`: its lock is nginx's, and a worker that is killed while it holds it stops the others.
    upstream sync_workers {{
        hash $matrix_user_hash consistent;
{workers}
        keepalive 16;
    }}
    proxy_http_version 1.1;
    proxy_set_header Connection "";
{sync if self.routed else ""}
    server {{
        # A socket for each worker, so that the kernel spreads connections over all of them.
        listen 127.0.0.1:{FRONT} reuseport backlog=4096;
        location / {{
            matrix_user_hash http://whoami zone={self.zone.split(":")[0]};
            {self.directives}
            add_header X-Hash $matrix_user_hash always;
            add_header X-Status $matrix_user_hash_status always;
            add_header X-Lookup-Time $matrix_user_hash_lookup_time always;
            add_header X-Pid $pid always;
            {content}
        }}
        location = /figures {{ matrix_user_hash_metrics; }}
        location = /prometheus {{ matrix_user_hash_metrics prometheus; }}
    }}
}}
"""


class Nginx:
    """A running front. Use as a context: whatever happens, its processes end."""

    def __init__(self, front, name, module=None, fresh=True):
        self.front = front
        # Another campaign of that name may run on other ports.
        self.directory = WORK / f"run/{name}-{PORTS}"
        if fresh:
            shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.binary = existing("NGINX_BINARY", ROOT / "build/nginx")
        source = module or existing("MODULE", ROOT / "build/ngx_http_matrix_user_hash_module.so")
        # A copy: who rebuilds the module meanwhile does not change what is measured.
        self.module = self.directory / "module.so"
        shutil.copy2(source, self.module)
        shutil.copy2(self.binary, self.directory / "nginx")
        self.process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.kill()

    @property
    def error_log(self):
        path = self.directory / "error.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def lines(self, level, about=""):
        return [line for line in self.error_log.splitlines() if f"[{level}]" in line and about in line]

    def configure(self, front=None):
        self.front = front or self.front
        (self.directory / "nginx.conf").write_text(self.front.render(self.directory, self.module))

    def start(self):
        self.configure()
        # One that was killed has left it behind.
        (self.directory / "nginx.pid").unlink(missing_ok=True)
        # As a daemon, like everybody's: a master in the foreground refuses to be upgraded (ngx_signal_handler).
        stderr = self.directory / "stderr"
        with stderr.open("w") as errors:
            status = subprocess.call(
                [self.directory / "nginx", "-p", self.directory, "-e", self.directory / "error.log",
                 "-c", self.directory / "nginx.conf"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
        if status:
            raise CampaignError(f"nginx did not start: {stderr.read_text().strip()}")
        wait_for(lambda: self.master(), 20, f"no {self.directory}/nginx.pid")
        self.process = Process(self.master())
        wait_for(lambda: listens(FRONT) and len(self.workers()) == self.front.workers, 20,
                 f"nginx did not start: see {self.directory}/error.log")

    def master(self):
        """Of the newest generation: after a binary upgrade it is not the process that we started."""
        try:
            return int((self.directory / "nginx.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def workers(self):
        master = self.master()
        return [pid for pid in children(master) if "worker" in title(pid) and "shutting" not in title(pid)] if master else []

    def send(self, number):
        os.kill(self.master(), number)

    def reload(self, front=None):
        before = set(self.workers())
        self.configure(front)
        self.send(signal.SIGHUP)
        # The old ones share the sockets with the new until they are gone, and close a connection that has not asked yet.
        wait_for(lambda: len(set(self.workers()) - before) == self.front.workers and not before & set(children(self.master())),
                 20, "nginx did not reload: see error.log")

    def upgrade(self):
        """USR2 to the old master, QUIT when the new one has its workers."""
        old, process = self.master(), self.process
        os.kill(old, signal.SIGUSR2)
        wait_for(lambda: self.master() not in (None, old) and len(self.workers()) == self.front.workers, 20,
                 "the new binary did not start: see error.log")
        os.kill(old, signal.SIGQUIT)
        process.wait(30)
        self.process = Process(self.master())

    def stop(self, number=signal.SIGQUIT):
        """Ends it in an orderly way, and waits until it has."""
        self.send(number)
        self.process.wait(30)

    def kill(self):
        """Ends master and workers at once, as an out-of-memory killer or a power cut would."""
        # By the binary, which is this campaign's own copy: workers may have outlived their master.
        for pid in running(self.directory / "nginx"):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        wait_for(lambda: not listens(FRONT), 10, f"something else listens on port {FRONT}")

    def figures(self):
        connection = http.client.HTTPConnection("127.0.0.1", FRONT, timeout=5)
        connection.request("GET", "/figures")
        zones = json.loads(connection.getresponse().read())["zones"]
        connection.close()
        return zones[self.front.zone.split(":")[0]]

    def memory(self):
        """Bytes of each worker that are its own: shared memory grows as it is first touched, and is bounded anyway."""
        return {pid: status(pid, "RssAnon") * 1024 for pid in self.workers()}

    def descriptors(self):
        return {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in self.workers()}

    def owner_of(self, port):
        """The worker with the connection from that local port."""
        row = f"0100007F:{port:04X}"
        inodes = {fields[9] for fields in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:])
                  if fields[1] == row}
        for pid in self.workers():
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    if os.readlink(fd)[8:-1] in inodes:
                        return pid
                except OSError:
                    continue
        return None


class Process:
    """A process that is not our child."""

    def __init__(self, pid):
        self.pid = pid

    def wait(self, seconds):
        def gone():
            try:
                return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except OSError:
                return True

        wait_for(gone, seconds, f"process {self.pid} does not end")


def existing(variable, default):
    path = Path(os.environ.get(variable) or default)
    if not path.is_file():
        raise CampaignError(f"there is no {path}. Fix: scripts/build, or {variable}=/path/to/another")
    return path.resolve()


def listens(port):
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition, seconds, otherwise):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise CampaignError(otherwise)
        time.sleep(0.02)


def children(pid):
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            # Behind the name in parentheses, which may hold anything: state, parent.
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(directory.name))
    return found


def running(binary):
    """Processes that run that file."""
    found = []
    for link in Path("/proc").glob("[0-9]*/exe"):
        try:
            # A file that was replaced meanwhile is said to be deleted.
            if os.readlink(link).removesuffix(" (deleted)") == str(binary):
                found.append(int(link.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def title(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def status(pid, field):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise CampaignError(f"/proc/{pid}/status has no {field}")

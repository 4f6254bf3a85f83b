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
from dataclasses import dataclass
from pathlib import Path

from tests.bed import homeserver
from tests.bed import nginx as bed
from tests.bed.processes import ROOT

WORK = ROOT / "build/campaign"
PORTS = int(os.environ.get("CAMPAIGN_PORTS", "24000"))
FRONT, WHOAMI, CONTROL, DEAD, SILENT = (PORTS + n for n in (0, 1, 2, 3, 4))


class Whoami(homeserver.Homeserver):
    """The stand-in homeserver, on these ports."""

    def __init__(self):
        super().__init__([WHOAMI], CONTROL, WORK / f"run/homeserver-{PORTS}")


class FastWhoami(homeserver.FastHomeserver):
    """The one that is fast."""

    def __init__(self):
        super().__init__(WHOAMI, WORK / f"run/whoami-{PORTS}")


@dataclass(frozen=True)
class Front:
    """What a campaign needs of nginx."""

    workers: int = 4
    zone: str = "users:1m"
    # What stands in `http` beside the zone.
    http: str = ""
    # What stands in the location beside `matrix_user_hash`.
    directives: str = ""
    # The whoami group.
    whoami: str = f"server 127.0.0.1:{WHOAMI} max_fails=0; keepalive 64;"
    # True: requests go on to one of four sync workers by the hash; False: they are answered in place, which is faster.
    routed: bool = False
    log: bool = False
    # Where it is, if not in the folder of nginx.
    log_file: Path | None = None
    connections: int = 16384
    user: str = "root"

    def render(self, directory, module):
        workers = "\n".join(f"        server unix:{directory}/sync{n}.sock;" for n in range(1, 5))
        sync = "\n".join(
            f'    server {{ listen unix:{directory}/sync{n}.sock; access_log off; location / {{ return 200 "sync{n}"; }} }}'
            for n in range(1, 5))
        content = "proxy_pass http://sync_workers;" if self.routed else "empty_gif;"
        log = f"access_log {self.log_file or directory / 'access.log'} held buffer=64k flush=1s;" if self.log else "access_log off;"
        return f"""\
load_module {module};
{f"user {self.user};" if os.geteuid() == 0 else ""}
worker_processes {self.workers};
worker_rlimit_nofile 20000;
pid {directory}/nginx.pid;
error_log {directory}/error.log notice;
events {{ worker_connections {self.connections}; }}
http {{
    log_format held '$pid $status $matrix_user_hash_status $matrix_user_hash_lookup_time $request_time';
    {log}
    {bed.temporary_paths(directory)}
    keepalive_requests 100000000;
    keepalive_time 24h;
    matrix_user_hash_zone {self.zone};
    {self.http}
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


class Nginx(bed.Nginx):
    """A running front. Use as a context: whatever happens, its processes end.

    It is a daemon like everybody's: a master in the foreground refuses to be upgraded (ngx_signal_handler).
    """

    def __init__(self, front, name, module=None, fresh=True, preload=None):
        self.front = front
        # Another campaign of that name may run on other ports.
        directory = WORK / f"run/{name}-{PORTS}"
        if fresh:
            shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True, exist_ok=True)
        # Copies: who rebuilds the module meanwhile does not change what is measured.
        self.module = directory / "module.so"
        shutil.copy2(module or bed.module(), self.module)
        shutil.copy2(bed.nginx_binary(), directory / "nginx")
        super().__init__(directory, "", port=FRONT, workers=front.workers, binary=directory / "nginx", daemon=True,
                         preload=preload)

    def configure(self, front=None):
        self.front = front or self.front
        self.count = self.front.workers
        super().configure(self.front.render(self.directory, self.module))

    def stop(self, number=signal.SIGQUIT):
        super().stop(number)

    def figures(self):
        connection = http.client.HTTPConnection("127.0.0.1", FRONT, timeout=5)
        connection.request("GET", "/figures")
        zones = json.loads(connection.getresponse().read())["zones"]
        connection.close()
        return zones[self.front.zone.split(":")[0]]

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

"""The nginx in front: its configuration, its process, and what its access log says.

A `Variant` says how requests choose their worker. `MODULE` is the product. The others are controls: they must fail the
same assertions, or the assertions prove nothing.
"""

import os
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tests.bed import nginx as bed
from tests.bed.nginx import module, nginx_binary
from tests.bed.processes import BedError

from .synapse import Synapse

WORKER_PROCESSES = 2


class Variant(Enum):
    """What the workers' upstream is hashed by."""

    MODULE = "matrix_user_hash on: workers are chosen by user"
    OFF = "matrix_user_hash off: the key is empty"
    STOCK = "nginx without the module: workers are chosen by the Authorization header"


@dataclass(frozen=True)
class LogLine:
    """One request as nginx saw it. `hash` and `status` are empty where no module is loaded."""

    pid: int
    upstream: str
    hash: str
    status: str
    lookup_time: str


class Nginx(bed.Nginx):
    def __init__(self, directory: Path, synapse: Synapse, variant: Variant):
        self.synapse = synapse
        self.variant = variant
        self.module = None if variant is Variant.STOCK else module()
        super().__init__(directory, "", port=synapse.base, workers=WORKER_PROCESSES, binary=binary(variant))

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.configure(self.render())
        self.test()
        super().start()

    def access_log(self) -> dict[str, LogLine]:
        """Every finished request, by its User-Agent."""
        pattern = re.compile(r'(\d+) "([^"]*)" (\S+) hash=(\S*) status=(\S*) lookup_time=(\S*)')
        found = {}
        for line in (self.directory / "access.log").read_text().splitlines():
            pid, agent, *rest = pattern.fullmatch(line).groups()
            found[agent] = LogLine(int(pid), *rest)
        return found

    def render(self) -> str:
        servers = "\n".join(f"        server 127.0.0.1:{port} max_fails=0;"
                            for port in self.synapse.worker_ports.values())
        loaded = self.module is not None
        directive = {
            Variant.MODULE: "matrix_user_hash http://whoami zone=users;",
            Variant.OFF: "matrix_user_hash off;",
            Variant.STOCK: "",
        }[self.variant]
        figures = ("hash=$matrix_user_hash status=$matrix_user_hash_status lookup_time=$matrix_user_hash_lookup_time"
                   if loaded else "hash= status= lookup_time=")
        return f"""\
# {self.variant.value}
{f"load_module {self.module};" if loaded else ""}
{bed.user_root()}
worker_processes {WORKER_PROCESSES};
pid {self.directory}/nginx.pid;
error_log {self.error_log_path} info;
events {{ worker_connections 512; }}

http {{
    log_format requests '$pid "$http_user_agent" $upstream_addr {figures}';
    access_log {self.directory}/access.log requests;
    {bed.temporary_paths(self.directory)}

    {"matrix_user_hash_zone users:1m;" if loaded else ""}

    upstream whoami {{
        zone whoami 256k;
        server 127.0.0.1:{self.synapse.main_port} max_fails=1;
        keepalive 8;
    }}
    upstream sync_workers {{
        zone sync_workers 256k;
        hash {"$matrix_user_hash" if loaded else "$http_authorization"} consistent;
{servers}
        keepalive 16;
    }}
    # The oracle: nginx's own consistent hash over the same servers, of a key that the test names.
    upstream workers_by_key {{
        zone workers_by_key 256k;
        hash $arg_key consistent;
{servers}
    }}

    proxy_http_version 1.1;
    proxy_read_timeout 60s;
    proxy_set_header Connection "";
    proxy_set_header Host $host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    proxy_set_header X-Forwarded-Proto $scheme;

    server {{
        listen 127.0.0.1:{self.port};

        location ~ ^/_matrix/client/(r0|v3|unstable/org\\.matrix\\.simplified_msc3575)/sync$ {{
            {directive}
            proxy_pass http://sync_workers;
        }}
        location = /worker-by-key {{
            access_log off;
            proxy_pass http://workers_by_key/health;
            add_header X-Worker $upstream_addr;
        }}
        location / {{
            proxy_pass http://127.0.0.1:{self.synapse.main_port};
        }}
    }}
}}
"""


def binary(variant: Variant) -> Path:
    """The nginx under test; for the variant without the module any nginx does."""
    try:
        return nginx_binary()
    except BedError:
        debian = Path("/usr/sbin/nginx")
        if variant is Variant.STOCK and os.access(debian, os.X_OK):
            return debian
        raise

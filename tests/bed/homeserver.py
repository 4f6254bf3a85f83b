"""The stand-in homeserver, for tests in Python: one that can be told how to behave, and one that is fast.

`Homeserver` starts `standin.py` and gives it orders. `FastHomeserver` is an nginx that knows users by their tokens alone, for
floods of millions; what it was asked is in the module's figures. Use both as contexts.
"""

import shutil
import sys
from pathlib import Path
from urllib.parse import urlencode

from .client import Client
from .nginx import Nginx, temporary_paths, user_root
from .people import DEVICE, SERVER
from .processes import ROOT, BedError, Processes, listens, require_free


class Homeserver:
    """Answers on `ports`, and takes orders on `control`. Its output goes to `directory`."""

    def __init__(self, ports, control: int, directory: Path):
        self.ports, self.control, self.directory = ports, control, Path(directory)

    def __enter__(self):
        require_free([*self.ports, self.control])
        self.directory.mkdir(parents=True, exist_ok=True)
        self.processes = Processes(self.directory)
        ports = ",".join(map(str, self.ports))
        self.processes.start("homeserver", [sys.executable, "-m", "tests.bed.standin", ports, "--control", self.control],
                             cwd=ROOT)
        try:
            # This is the last that it opens.
            self.processes.wait_until("the stand-in homeserver", lambda: listens(self.control), 30)
        except BaseException:
            self.processes.stop()
            raise
        self.client = Client(self.control, timeout=30)
        return self

    def __exit__(self, *_):
        self.client.close()
        self.processes.stop()

    def order(self, what: str, **query) -> dict:
        """One order, as standin.py has them, and what it says to that."""
        answer = self.client.ask("GET", f"/__{what}?{urlencode(query)}")
        if answer.status != 200:
            raise BedError(f"the stand-in homeserver refuses {what}: {answer.text.decode()}")
        return answer.json()

    def set(self, **behaviour) -> None:
        """What it does from now on: `kind`, `delay`, `rate`, `listen`."""
        self.order("set", **{name: int(value) if isinstance(value, bool) else value for name, value in behaviour.items()})

    def forget(self) -> None:
        """Forgets what it has seen; it goes on as it was told."""
        self.order("forget")

    def seen(self) -> dict:
        """What it has seen since it forgot."""
        return self.order("seen")


class FastHomeserver(Nginx):
    """Ordinary users have a device; `bridge` and `puppet` tokens have none, `stranger` tokens no user."""

    def __init__(self, port: int, directory: Path):
        shutil.rmtree(directory, ignore_errors=True)
        super().__init__(directory, f"""\
worker_processes 1;
{user_root()}
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
worker_rlimit_nofile 20000;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    {temporary_paths(directory)}
    keepalive_requests 100000000;
    keepalive_time 24h;
    default_type application/json;
    map $http_authorization $name {{ "~^Bearer mat_(?<n>[^_]+)_" $n; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            if ($name ~ ^stranger) {{
                return 401 '{{"errcode":"M_UNKNOWN_TOKEN","error":"Invalid access token passed.","soft_logout":false}}';
            }}
            if ($name ~ ^(puppet|bridge)) {{ return 200 '{{"user_id":"@$name:{SERVER}","is_guest":false}}'; }}
            return 200 '{{"user_id":"@$name:{SERVER}","is_guest":false,"device_id":"{DEVICE}"}}';
        }}
    }}
}}
""", port=port, workers=1)

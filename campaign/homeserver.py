"""Two stand-ins for the homeserver: one that can be told how to behave, and one that is fast.

`Whoami` starts campaign/whoami.py and talks to it. `FastWhoami` is an nginx that knows users by their tokens alone, for
floods of millions; what it was asked is in the module's figures.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys

from tests.bed.processes import ROOT, existing, listens, wait_for

from .bed import CONTROL, WHOAMI, WORK


class Whoami:
    def __enter__(self):
        self.process = subprocess.Popen([sys.executable, "-m", "campaign.whoami", str(WHOAMI), str(CONTROL)], cwd=ROOT,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.process.stdout.readline()
        self.socket = socket.create_connection(("127.0.0.1", CONTROL), 30)
        self.lines = self.socket.makefile("rb")
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.process.terminate()
        self.process.stdin.close()
        self.process.wait(10)

    def order(self, **order):
        self.socket.sendall(json.dumps(order).encode() + b"\n")
        return json.loads(self.lines.readline())

    def set(self, **behaviour):
        self.order(set=behaviour)

    def reset(self):
        self.order(reset=True)

    def seen(self):
        return self.order(get=True)


class FastWhoami:
    """Ordinary users have a device; `bridge` and `puppet` tokens have none, `stranger` tokens no user."""

    CONFIGURATION = """\
worker_processes {workers};
{user}
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
worker_rlimit_nofile 20000;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
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
            if ($name ~ ^(puppet|bridge)) {{ return 200 '{{"user_id":"@$name:example.org","is_guest":false}}'; }}
            return 200 '{{"user_id":"@$name:example.org","is_guest":false,"device_id":"QJTGFCNZFH"}}';
        }}
    }}
}}
"""

    def __enter__(self):
        directory = WORK / f"run/whoami-{WHOAMI}"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        user = "user root;" if os.geteuid() == 0 else ""
        (directory / "nginx.conf").write_text(
            self.CONFIGURATION.format(directory=directory, port=WHOAMI, workers=1, user=user))
        self.process = subprocess.Popen(
            [existing("NGINX_BINARY", ROOT / "build/nginx"), "-p", directory, "-e", directory / "error.log", "-c",
             directory / "nginx.conf", "-g", "daemon off;"], stdin=subprocess.DEVNULL)
        wait_for(lambda: listens(WHOAMI), 20, f"the nginx that stands in for whoami did not start: see {directory}")
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)

"""One Synapse: a main process and three generic workers, with the logs that say who served what."""

import base64
import os
import shutil
import sys
from pathlib import Path

import yaml

from tests.bed.processes import Processes, listens, require_free

from .database import Database, start_redis

SERVER_NAME = "example.org"
WORKERS = 3

# The secrets of a bed that lives for a minute on loopback.
REGISTRATION_SECRET = "e2e-registration-secret"
MAS_SECRET = "e2e-mas-secret"
AS_TOKEN = "irc-bridge-4f0c1c1b0d6f5c2a9e"  # application services' tokens are whatever their admin chose
NO_LIMIT = {"per_second": 100_000, "burst_count": 100_000}


class Synapse:
    """Ports are `base` (kept for nginx) to `base` + 13, all on 127.0.0.1."""

    def __init__(self, directory: Path, base: int, *, mas: bool = False):
        self.directory = directory
        self.base = base
        self.mas = mas
        self.processes = Processes(directory)
        self.database = Database(self.processes, base + 1, directory.with_suffix(".postgresql"))
        self.redis_port = base + 2
        self.mas_port = base + 3
        self.main_port = base + 8
        self.replication_port = base + 9
        self.worker_ports = {f"sync{n}": base + 10 + n for n in range(1, WORKERS + 1)}

    @property
    def ports(self) -> dict[str, int]:
        """Client listeners of all Synapse processes, by instance name."""
        return {"main": self.main_port, **self.worker_ports}

    def access_log(self, instance: str) -> Path:
        return self.directory / f"{instance}.access.log"

    def start(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        require_free([self.base + 1, self.redis_port, self.replication_port, *self.ports.values()])
        self.write_configuration()
        self.database.start()
        start_redis(self.processes, self.redis_port)
        # Main first and alone: it makes the schema, and workers refuse to run without one.
        self.start_process("main", "synapse.app.homeserver")
        self.processes.wait_until("Synapse's main process", lambda: listens(self.main_port))
        for worker in self.worker_ports:
            self.start_process(worker, "synapse.app.generic_worker", self.directory / f"{worker}.yaml")
        self.processes.wait_until("Synapse's workers", lambda: all(map(listens, self.worker_ports.values())))

    def stop(self) -> None:
        self.processes.stop()
        self.database.remove()

    def start_process(self, name: str, application: str, *more_configuration: Path) -> None:
        argv = [sys.executable, "-m", application, "-c", self.directory / "homeserver.yaml"]
        for path in more_configuration:
            argv += ["-c", path]
        self.processes.start(name, argv)

    def write_configuration(self) -> None:
        self.write_yaml("homeserver.yaml", self.homeserver())
        self.write_yaml("irc-bridge.yaml", irc_bridge())
        for name in self.ports:
            self.write_yaml(f"{name}.log.yaml", self.logging(name))
        for name, port in self.worker_ports.items():
            self.write_yaml(f"{name}.yaml", {
                "worker_app": "synapse.app.generic_worker",
                "worker_name": name,
                "worker_listeners": [client_listener(port)],
                "worker_log_config": str(self.directory / f"{name}.log.yaml"),
            })
        seed = base64.b64encode(os.urandom(32)).decode().rstrip("=")
        (self.directory / "signing.key").write_text(f"ed25519 a_e2e {seed}\n")

    def write_yaml(self, name: str, content: dict) -> None:
        (self.directory / name).write_text(yaml.safe_dump(content, sort_keys=False))

    def homeserver(self) -> dict:
        replication = {
            "port": self.replication_port, "bind_addresses": ["127.0.0.1"], "type": "http",
            "resources": [{"names": ["replication"]}],
        }
        return {
            "server_name": SERVER_NAME,
            "public_baseurl": f"http://127.0.0.1:{self.base}/",
            "listeners": [client_listener(self.main_port), replication],
            "instance_map": {"main": {"host": "127.0.0.1", "port": self.replication_port}},
            "database": {"name": "psycopg2", "args": {
                "user": "synapse", "dbname": "synapse", "host": "127.0.0.1", "port": self.database.port,
                "cp_min": 1, "cp_max": 5}},
            "redis": {"enabled": True, "host": "127.0.0.1", "port": self.redis_port},
            "log_config": str(self.directory / "main.log.yaml"),
            "signing_key_path": str(self.directory / "signing.key"),
            "media_store_path": str(self.directory / "media"),
            "pid_file": str(self.directory / "main.pid"),
            "app_service_config_files": [str(self.directory / "irc-bridge.yaml")],
            "registration_shared_secret": REGISTRATION_SECRET,
            "bcrypt_rounds": 4,
            "presence": {"enabled": False},
            "report_stats": False,
            "trusted_key_servers": [],
            "suppress_key_server_warning": True,
            **self.rate_limits(),
            **(self.delegated_auth() if self.mas else {"allow_guest_access": True}),
        }

    def delegated_auth(self) -> dict:
        return {
            "matrix_authentication_service": {
                "enabled": True, "endpoint": f"http://127.0.0.1:{self.mas_port}/", "secret": MAS_SECRET},
            "password_config": {"enabled": False},
        }

    def rate_limits(self) -> dict:
        return {
            "rc_message": NO_LIMIT, "rc_registration": NO_LIMIT, "rc_joins": {"local": NO_LIMIT, "remote": NO_LIMIT},
            "rc_login": {"address": NO_LIMIT, "account": NO_LIMIT, "failed_attempts": NO_LIMIT},
        }

    def logging(self, name: str) -> dict:
        """The access log alone in one file, everything else that matters on the process's output."""
        return {
            "version": 1,
            "formatters": {"access": {"format": "%(message)s"},
                           "precise": {"format": "%(asctime)s %(name)s %(levelname)s %(message)s"}},
            "handlers": {
                "access": {"class": "logging.FileHandler", "formatter": "access",
                           "filename": str(self.access_log(name))},
                "output": {"class": "logging.StreamHandler", "formatter": "precise"},
            },
            "loggers": {"synapse.access": {"level": "INFO", "handlers": ["access"], "propagate": False}},
            "root": {"level": "WARNING", "handlers": ["output"]},
            "disable_existing_loggers": False,
        }


def client_listener(port: int) -> dict:
    # x_forwarded: the address in the session list is the client's, as the proxy hands it on.
    return {
        "port": port, "bind_addresses": ["127.0.0.1"], "type": "http", "tls": False, "x_forwarded": True,
        "resources": [{"names": ["client"]}],
    }


def irc_bridge() -> dict:
    """An application service that owns the users @irc_….

    It is never called back: `url` is null.
    """
    return {
        "id": "irc-bridge", "url": None, "as_token": AS_TOKEN, "hs_token": "unused", "sender_localpart": "irc_bot",
        "rate_limited": False,
        "namespaces": {"users": [{"exclusive": True, "regex": f"@irc_.*:{SERVER_NAME}"}], "rooms": [], "aliases": []},
    }

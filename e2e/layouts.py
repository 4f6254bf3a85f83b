"""The layouts: how a deployment's processes are cut, and the files that say so to Synapse and to the companion alike.

Each is a `Layout`. `Deployment` writes its files, starts its processes and renders nginx's configuration from them.
"""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.bed.nginx import Nginx, module, nginx_binary
from tests.bed.processes import ROOT, BedError, Processes, accepts, existing, listens

from .database import Database, start_redis
from .synapse import NO_LIMIT, Synapse

# Every process has them: what Synapse serves only when it is asked to is among its endpoints too.
FEATURES = {
    "enable_registration": True,
    "enable_registration_without_verification": True,
    "presence": {"enabled": True},
    "max_event_delay_duration": "24h",
    "retention": {"enabled": True},
    "server_notices": {"system_mxid_localpart": "notices"},
    "allow_public_rooms_over_federation": True,
    "room_list_publication_rules": [{"action": "allow"}],
    "enable_authenticated_media": False,
    "account_validity": {"enabled": True, "period": "520w"},
    "user_directory": {"search_all_users": True},
    "experimental_features": {
        "msc1763_enabled": True, "msc3720_enabled": True, "msc3814_enabled": True, "msc3391_enabled": True,
        "msc3575_enabled": True, "msc3983_appservice_otk_claims": True, "msc4133_enabled": True,
        "msc4143_enabled": True, "msc4306_enabled": True, "msc4370_enabled": True,
        "msc4502_enabled": True,
    },
    **{limit: NO_LIMIT for limit in (
        "rc_admin_redaction", "rc_3pid_validation", "rc_user_directory", "rc_room_creation", "rc_reports",
"rc_delayed_event_mgmt", "rc_media_create", "rc_registration_token_validity")},
    "rc_invites": {"per_room": NO_LIMIT, "per_user": NO_LIMIT, "per_issuer": NO_LIMIT},
    "rc_key_requests": NO_LIMIT,
    "rc_presence": {"per_user": NO_LIMIT},
    "rc_federation": {"window_size": 1, "sleep_limit": 100_000, "sleep_delay": 1, "reject_limit": 100_000,
                      "concurrent": 1000},
}
# So that one database serves all layouts.
SIGNING_KEY = "ed25519 a_e2e bWF0cml4LXVzZXItaGFzaC1lMmUtbGF5b3V0cy1rZXk\n"

CLIENT, FEDERATION, MEDIA = "client", "federation", "media"
SYNC = ("sync1", "sync2")
STREAMS = ("typing", "to_device", "account_data", "receipts", "presence", "push_rules", "device_lists",
           "thread_subscriptions")


@dataclass(frozen=True)
class Worker:
    """A worker: what its listeners serve, which streams it writes, and what else its file says."""

    name: str
    resources: tuple[str, ...] = (CLIENT,)
    writes: tuple[str, ...] = ()
    more: dict = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Layout:
    """A cut of a deployment. `sync` names the workers that must share the users among them."""

    name: str
    title: str
    workers: tuple[Worker, ...]
    sync: tuple[str, ...]
    # A listener of its own for each resource.
    split: bool = False
    # Unix sockets instead of ports, between the processes too.
    sockets: bool = False
    # Further keys of homeserver.yaml, and lines of the deployment file.
    shared: dict = field(default_factory=dict, hash=False)
    deployment: str = ""


SINGLE = Layout("single", "one process", (), ())

GENERIC = Layout(
    "generic", "everything generic: three workers that serve what any worker can",
    tuple(Worker(f"generic{n}", (CLIENT, FEDERATION)) for n in (1, 2, 3)),
    ("generic1", "generic2", "generic3"))

SPECIALISED = Layout(
    "specialised", "a worker for each duty and each stream; client, federation and media on ports of their own",
    (
        *(Worker(name) for name in SYNC),
        Worker("reader1"),
        Worker("room1"),
        Worker("directory1"),
        Worker("federation_reader1", (FEDERATION,)),
        Worker("federation_inbound1", (FEDERATION,)),
        Worker("media1", (MEDIA,), ("quarantined_media_changes",), {"enable_media_repo": True}),
        *(Worker(f"{stream}1", (CLIENT,), (stream,)) for stream in STREAMS),
        Worker("events1", (), ("events",)),
        Worker("sender1", ()),
    ),
    SYNC, split=True,
    shared={
        "enable_media_repo": False, "media_instance_running_background_jobs": "media1",
        "update_user_directory_from_worker": "directory1", "federation_sender_instances": ["sender1"],
        "pusher_instances": ["sender1"], "notify_appservices_from_worker": "sender1",
        "run_background_tasks_on": "sender1",
    },
    deployment="""
[synapse.roles]
"sync*" = "sync"
"reader*" = "client_reader"
"room*" = "room"
"directory*" = "user_dir"
"federation_reader*" = "federation_reader"
"federation_inbound*" = "federation_inbound"
""")

SOCKETS = Layout(
    "sockets", "Unix sockets, between the processes too",
    (
        *(Worker(name) for name in SYNC),
        Worker("generic1", (CLIENT, FEDERATION)),
        Worker("writer1", (CLIENT,), STREAMS),
    ),
    SYNC, sockets=True,
    deployment="""
[synapse.roles]
"sync*" = "sync"
"generic*" = ["room", "client_reader", "federation_reader"]
""")

LAYOUTS = (GENERIC, SPECIALISED, SOCKETS)


class Deployment(Synapse):
    """The processes of one layout, on a database and in a folder of their own. Ports are `base` to `base` + 99."""

    def __init__(self, layout: Layout, directory: Path, base: int, database: Database, schema: str):
        self.layout, self.directory, self.base, self.database, self.schema = layout, directory, base, database, schema
        self.mas, self.mas_port = False, 0
        self.processes = Processes(directory)
        self.redis_port = base + 1
        # A socket's path has at most 107 bytes.
        self.sockets = Path(tempfile.mkdtemp(prefix="mx-")) if layout.sockets else None
        if self.sockets:
            self.sockets.chmod(0o755)
        without_media = layout.shared.get("enable_media_repo") is False
        main = Worker("main", (CLIENT, FEDERATION) if without_media else (CLIENT, FEDERATION, MEDIA))
        self.all = {one.name: one for one in (main, *layout.workers)}
        self.first_port = {name: base + 2 + 4 * number for number, name in enumerate(self.all)}
        self.main_port, self.replication_port = base + 2, base + 5
        self.nginx = None

    # --- files ---

    def listener(self, name: str, resources, port: int, place: str) -> dict:
        where = {"path": f"{self.sockets}/{name}.{place}"} if self.sockets else {
            "port": port, "bind_addresses": ["127.0.0.1"], "tls": False}
        forwarded = {} if place == "replication" else {"x_forwarded": True}
        return {**where, "type": "http", **forwarded, "resources": [{"names": list(resources)}]}

    def listeners(self, name: str) -> list[dict]:
        """Replication is where others send what this process shall write."""
        port, resources = self.first_port[name], self.all[name].resources
        replicates = self.layout.workers if name == "main" else self.all[name].writes
        found = [self.listener(name, ["replication"], port + 3, "replication")] if replicates else []
        if self.layout.split:
            found += [self.listener(name, [resource], port + number, resource)
                      for number, resource in enumerate((CLIENT, FEDERATION, MEDIA)) if resource in resources]
        elif resources:
            found.append(self.listener(name, resources, port, "http"))
        return found

    def homeserver(self) -> dict:
        layout = self.layout
        writers: dict[str, list[str]] = {}
        for worker in layout.workers:
            for stream in worker.writes:
                writers.setdefault(stream, []).append(worker.name)
        places = {"main", *(worker.name for worker in layout.workers if worker.writes)}
        replicated = {
            "instance_map": {name: self.place(name) for name in sorted(places)},
            "stream_writers": writers,
            "redis": {"enabled": True, "host": "127.0.0.1", "port": self.redis_port},
        } if layout.workers else {"redis": {"enabled": False}}
        return {
            **super().homeserver(),
            "listeners": self.listeners("main"),
            "instance_map": {},
            **replicated,
            "database": {"name": "psycopg2", "args": {
                "user": "synapse", "dbname": self.schema, "host": "127.0.0.1", "port": self.database.port,
                "cp_min": 1, "cp_max": 5}},
            **FEATURES,
            **layout.shared,
        }

    def place(self, name: str) -> dict:
        if self.sockets:
            return {"path": f"{self.sockets}/{name}.replication"}
        return {"host": "127.0.0.1", "port": self.first_port[name] + 3}

    def write_configuration(self) -> None:
        super().write_configuration()
        (self.directory / "signing.key").write_text(SIGNING_KEY)
        for worker in self.layout.workers:
            self.write_yaml(f"workers/{worker.name}.yaml", {
                "worker_app": "synapse.app.generic_worker",
                "worker_name": worker.name,
                "worker_listeners": self.listeners(worker.name),
                "worker_log_config": str(self.directory / f"{worker.name}.log.yaml"),
                **worker.more,
            })

    @property
    def ports(self) -> dict[str, int]:
        """Where each process logs, by name; see `Synapse.ports`."""
        return self.first_port

    @property
    def worker_ports(self) -> dict[str, int]:
        """None: this layout's workers have files of their own making."""
        return {}

    # --- processes ---

    def start(self) -> None:
        """Starts main, and then all workers at the same time: the database has its schema already."""
        shutil.rmtree(self.directory, ignore_errors=True)
        (self.directory / "workers").mkdir(parents=True)
        self.write_configuration()
        if self.layout.workers:
            start_redis(self.processes, self.redis_port)
        self.start_process("main", "synapse.app.homeserver")
        # Each process takes away who does not write a stream any more, and Synapse fails if two do it at once.
        self.wait_for_process("main")
        for worker in self.layout.workers:
            file = self.directory / f"workers/{worker.name}.yaml"
            self.start_process(worker.name, "synapse.app.generic_worker", file)
        for name in self.all:
            self.wait_for_process(name)

    def wait_for_process(self, name: str) -> None:
        self.processes.wait_until(f"Synapse's {name} of layout {self.layout.name}", lambda: self.answers(name), 180)

    def answers(self, name: str) -> bool:
        """Whether every listener of a process accepts connections."""
        for listener in self.listeners(name):
            if not (accepts(listener["path"]) if "path" in listener else listens(listener["port"])):
                return False
        return True

    def stop(self) -> None:
        if self.nginx:
            self.nginx.stop()
        self.processes.stop(timeout=20)
        if self.sockets:
            shutil.rmtree(self.sockets, ignore_errors=True)

    # --- nginx ---

    def deployment_file(self, more: str = "") -> Path:
        """What an operator writes for the companion."""
        path = self.directory / "deployment.toml"
        path.write_text(f"""\
[synapse]
homeserver = ["{self.directory}/homeserver.yaml"]
workers = ["{self.directory}/workers/*.yaml"]
{self.layout.deployment}{more}
[listen]
client = ["127.0.0.1:{self.base}"]
admin_allow = ["127.0.0.1"]

[log]
access = "{self.directory}/nginx/access.log"
error = "stderr"
error_level = "warn"

[paths]
temp = "{self.directory}/nginx/temp"
pid = "{self.directory}/nginx/nginx.pid"

[status]
listen = "127.0.0.1:{self.base + 99}"

[nginx]
module = "{module()}"
""")
        return path

    def start_nginx(self, more: str = "") -> None:
        """Renders the configuration from the files that the processes were started from, and starts nginx with it."""
        prefix = self.directory / "nginx"
        if self.nginx:
            self.nginx.stop()
        shutil.rmtree(prefix, ignore_errors=True)
        (prefix / "temp").mkdir(parents=True)
        self.companion("render", "-d", self.deployment_file(more), "--output", prefix)
        self.nginx = Nginx(prefix, prefix / "nginx.conf", port=self.base)
        self.nginx.start()

    def companion(self, *arguments) -> str:
        """What the companion writes to standard output."""
        command = [companion(), *arguments, "--nginx", nginx_binary()]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BedError(f"synapse-companion {arguments} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout


def companion() -> Path:
    """The companion under test."""
    return existing("COMPANION", ROOT / "target/debug/synapse-companion")

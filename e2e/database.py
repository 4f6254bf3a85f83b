"""PostgreSQL and Redis of one bed, from Debian's packages, in a directory that goes with them."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psycopg2

from tests.bed.processes import BedError, Processes, as_user, listens


class Database:
    """A PostgreSQL cluster for one run. It may lose its data: nothing is flushed to disk."""

    def __init__(self, processes: Processes, port: int, remembered: Path):
        self.processes = processes
        self.port = port
        self.binaries = postgresql_binaries()
        # PostgreSQL refuses to run as root, and its user cannot look into every checkout: hence a directory of its own.
        self.user = "postgres" if os.geteuid() == 0 else None
        self.directory: Path | None = None
        self.remembered = remembered  # a file with the directory's name, for the run after one that was killed

    def start(self) -> None:
        if self.remembered.exists():
            shutil.rmtree(self.remembered.read_text(), ignore_errors=True)
        self.directory = Path(tempfile.mkdtemp(prefix="matrix-user-hash-postgresql-"))
        self.remembered.write_text(str(self.directory))
        if self.user:
            shutil.chown(self.directory, self.user, self.user)
        made = subprocess.run(
            [self.binaries / "initdb", "-D", self.directory / "data", "-A", "trust", "--locale=C", "-E", "UTF8", "-N",
             "-U", "synapse"],
            check=False, capture_output=True, text=True, cwd="/", **as_user(self.user),
        )
        if made.returncode != 0:
            raise BedError(f"initdb failed: {made.stderr.strip()}")
        settings = [
            "listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "synchronous_commit=off",
            "full_page_writes=off", "max_connections=400", "shared_buffers=64MB",
        ]
        self.processes.start(
            "postgresql",
            [self.binaries / "postgres", "-D", self.directory / "data", "-p", self.port]
            + [word for setting in settings for word in ("-c", setting)],
            user=self.user, stop_signal=signal.SIGQUIT,  # immediate shutdown: the data is thrown away
        )
        self.processes.wait_until("PostgreSQL", self._answers)
        self.execute("CREATE DATABASE synapse", database="postgres")

    def copy(self, name: str, template: str) -> None:
        """Makes the database `name` as `template` is; nobody may be connected to that."""
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}", database="postgres")

    def remove(self) -> None:
        if self.directory:
            shutil.rmtree(self.directory, ignore_errors=True)
            self.remembered.unlink(missing_ok=True)

    def execute(self, statement: str, values=(), database: str = "synapse") -> list[tuple]:
        """Runs one statement in its own transaction and returns its rows, if it has any."""
        connection = psycopg2.connect(host="127.0.0.1", port=self.port, user="synapse", dbname=database)
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement, values)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1", database="postgres")
        except psycopg2.OperationalError:
            return False
        return True


def start_redis(processes: Processes, port: int) -> None:
    server = shutil.which("redis-server")
    if not server:
        raise BedError("redis-server is missing. Fix: apt-get install redis-server")
    processes.start("redis", [server, "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
    processes.wait_until("Redis", lambda: listens(port))


def postgresql_binaries() -> Path:
    """The newest PostgreSQL that Debian's packages installed; its servers are not on PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if not found:
        raise BedError("PostgreSQL is missing. Fix: apt-get install postgresql")
    if os.geteuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            raise BedError("there is no user postgres. Fix: apt-get install --reinstall postgresql-common") from None
    return found[-1].parent

"""The launcher of nginx: starts one with a given configuration, and tells what it does.

`NGINX_BINARY` and `MODULE` name other files than those that scripts/build makes.
"""

import os
import signal
import subprocess
from pathlib import Path

from .processes import ROOT, BedError, Process, Processes, children, existing, listens, running, status, title, wait_for

TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def nginx_binary() -> Path:
    """The nginx under test."""
    return existing("NGINX_BINARY", ROOT / "build/nginx")


def module() -> Path:
    """The module under test."""
    return existing("MODULE", ROOT / "build/ngx_http_matrix_user_hash_module.so")


def version(binary: Path | None = None) -> str:
    """Such as `nginx/1.30.6`."""
    out = subprocess.run([binary or nginx_binary(), "-v"], capture_output=True, text=True, check=True).stderr
    return out.partition("version: ")[2].strip()


def temporary_paths(directory: Path) -> str:
    """Directives that keep nginx's temporary files in a folder."""
    return " ".join(f"{kind}_temp_path {directory}/{kind};" for kind in TEMPORARY)


def user_root() -> str:
    """Worker processes that may write where the test may."""
    return "user root;" if os.geteuid() == 0 else ""


class Nginx:
    """An nginx in a folder of its own. Use as a context: whatever happens, its processes end.

    In the foreground it is a child, which ends with the test. As a `daemon` it is what an operator has: only then
    it may be upgraded, and its folder holds copies of the binary, by which its processes are found.
    """

    def __init__(self, directory: Path, configuration: str | Path, *, port: int | None = None,
                 workers: int | None = None, binary: Path | None = None, daemon: bool = False, wrapper=(),
                 options: str = "", patience: float = 20, name: str = "nginx", preload: Path | None = None):
        self.directory = Path(directory)
        self.name = name
        # A path is a file that somebody else has written.
        self.configuration = configuration if isinstance(configuration, Path) else self.directory / f"{name}.conf"
        self.text = None if isinstance(configuration, Path) else configuration
        self.port, self.count = port, workers
        self.binary = Path(binary or nginx_binary())
        self.daemon, self.wrapper, self.options, self.patience = daemon, list(wrapper), options, patience
        # What it is started with; a binary upgrade inherits it.
        self.environment = {**os.environ, "LD_PRELOAD": str(preload)} if preload else None
        self.error_log_path = self.directory / "error.log"
        self.pid_path = self.directory / "nginx.pid"
        self.processes = Processes(self.directory)
        self.child = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        if self.daemon:
            self.kill()
        else:
            self.stop()

    def command(self) -> list:
        """nginx with its folder, its error log and its configuration."""
        return [self.binary, "-p", self.directory, "-e", self.error_log_path, "-c", self.configuration]

    def configure(self, text: str | None = None) -> None:
        """Writes the configuration, another one if it is given."""
        self.text = self.text if text is None else text
        if self.text is not None:
            self.configuration.write_text(self.text)

    def test(self) -> str:
        """`nginx -t`: what it says of a configuration that it takes."""
        done = subprocess.run([*self.command(), "-t"], check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise BedError(f"nginx refuses {self.configuration}:\n{done.stderr.strip()}")
        return done.stderr

    def start(self) -> None:
        """Starts it, and returns when it answers and has all its worker processes."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.configure()
        # One that was killed has left it behind.
        self.pid_path.unlink(missing_ok=True)
        if self.port and listens(self.port):
            raise BedError(f"something listens on port {self.port} already")
        if self.daemon:
            stderr = self.directory / f"{self.name}.out"
            with stderr.open("w") as out:
                ended = subprocess.call([*self.command(), *self.global_options("")],
                                        stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.environment)
            if ended:
                raise BedError(f"nginx did not start: {stderr.read_text().strip()}")
        else:
            self.child = self.processes.start(
                self.name, [*self.wrapper, *self.command(), *self.global_options("daemon off; ")],
                environment=self.environment)
        try:
            self.processes.wait_until(f"nginx ({self.configuration})", self.is_up, self.patience)
        except BaseException:
            self.__exit__()
            raise

    def global_options(self, more: str) -> list[str]:
        """The option -g, if it has to say something."""
        text = (more + self.options).strip()
        return ["-g", text] if text else []

    def is_up(self) -> bool:
        """Whether it answers, and has all its worker processes."""
        if self.port and not listens(self.port):
            return False
        if self.count:
            return len(self.workers()) == self.count
        return bool(self.workers())

    def master(self) -> int | None:
        """The master process: of the newest generation, after a binary upgrade."""
        if self.child:
            return self.child.process.pid
        try:
            return int(self.pid_path.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def workers(self) -> list[int]:
        """Worker processes that are not shutting down. Under a wrapper, a process has the wrapper's title."""
        master = self.master()
        return [pid for pid in children(master) if self.wrapper or
                "worker" in title(pid) and "shutting" not in title(pid)] if master else []

    def send(self, number: signal.Signals) -> None:
        """Sends the master a signal."""
        os.kill(self.master(), number)

    def reload(self, text: str | None = None) -> None:
        """Rereads the configuration, and returns when none of the old worker processes is left."""
        before = set(self.workers())
        self.configure(text)
        count = self.count or len(before)
        self.send(signal.SIGHUP)
        # Until they are gone, the old ones share the sockets and close a connection that has not asked yet.
        wait_for(lambda: len(set(self.workers()) - before) == count and not before & set(children(self.master())),
                 max(self.patience, 20), f"nginx did not reload: see {self.error_log_path}")

    def upgrade(self) -> None:
        """USR2 to the old master, QUIT when the new one has its workers."""
        old = self.master()
        os.kill(old, signal.SIGUSR2)
        wait_for(lambda: self.master() not in (None, old) and len(self.workers()) == self.count, 20,
                 f"the new binary did not start: see {self.error_log_path}")
        os.kill(old, signal.SIGQUIT)
        Process(old).wait(30)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends it in an orderly way, and waits until it has."""
        if self.daemon:
            master = self.master()
            os.kill(master, number)
            Process(master).wait(30)
        elif self.child:
            if self.child.process.poll() is None:
                self.child.process.send_signal(number)
            self.processes.stop(timeout=60)
            self.child = None

    def kill(self) -> None:
        """Ends master and workers at once, as an out-of-memory killer or a power cut would."""
        if self.child:
            pids = [*children(self.child.process.pid), self.child.process.pid]
        else:
            # By the binary, which is this folder's own copy: workers may have outlived their master.
            pids = running(self.binary)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self.child:
            self.child.process.wait(10)
            self.child = None
        if self.port:
            wait_for(lambda: not listens(self.port), 10, f"something else listens on port {self.port}")

    @property
    def error_log(self) -> str:
        """The whole error log."""
        return self.error_log_path.read_text(errors="replace") if self.error_log_path.exists() else ""

    def lines(self, level: str, about: str = "") -> list[str]:
        """The lines of the error log that have that level and those words."""
        return [line for line in self.error_log.splitlines() if f"[{level}]" in line and about in line]

    def processor_seconds(self) -> float:
        """Of all workers, in user space and in the kernel; in nanoseconds' resolution, which /proc/PID/stat has not."""
        return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in self.workers()) / 1e9

    def memory(self, field: str = "RssAnon") -> dict[int, int]:
        """Bytes of each worker that are its own: shared memory grows as it is first touched, and is bounded anyway."""
        return {pid: status(pid, field) * 1024 for pid in self.workers()}

    def descriptors(self) -> dict[int, int]:
        """How many files and sockets each worker has open."""
        return {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in self.workers()}

"""Processes: children that are started together, stopped together and never left behind, and what /proc says of any.

Every child asks the kernel for a signal when its parent dies (prctl(2), PR_SET_PDEATHSIG), so that even a SIGKILL of
the test leaves nothing running.
"""

import ctypes
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)


class BedError(Exception):
    """Something that the test stands on is missing or did not start; the text names the fix."""


@dataclass
class Child:
    name: str
    process: subprocess.Popen
    log: Path
    stop_signal: signal.Signals

    def log_tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Processes:
    """The children of one run, in the order of their start."""

    def __init__(self, logs: Path):
        self.logs = logs
        self.children: list[Child] = []

    def start(self, name, argv, *, user=None, stop_signal=signal.SIGTERM, environment=None, cwd=None) -> Child:
        """Starts `argv`, output to `<logs>/<name>.out`, as `user` if given (which takes root)."""

        def in_child():
            LIBC.prctl(PR_SET_PDEATHSIG, stop_signal)
            os.setpgid(0, 0)  # Ctrl-C goes to the test alone, which then stops its children in order.

        log = self.logs / f"{name}.out"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                preexec_fn=in_child, env=environment, cwd=cwd, **as_user(user),
            )
        child = Child(name, process, log, stop_signal)
        self.children.append(child)
        return child

    def wait_until(self, what: str, ready, timeout: float = 60.0) -> None:
        """Polls `ready()` until it is true; a child that died meanwhile is an error with the end of its log."""
        deadline = time.monotonic() + timeout
        while not ready():
            self.check_alive()
            if time.monotonic() > deadline:
                tails = "\n".join(f"--- {child.name}\n{child.log_tail(5)}" for child in self.children)
                raise BedError(f"{what} was not ready within {timeout:.0f} s\n{tails}")
            time.sleep(0.05)

    def check_alive(self) -> None:
        for child in self.children:
            if child.process.poll() is not None:
                raise BedError(f"{child.name} ended with status {child.process.returncode}:\n{child.log_tail()}")

    def stop(self, children: list[Child] | None = None, timeout: float = 8.0) -> None:
        """Signals `children` (all, if none are named), last started first, and waits; kills what stays."""
        stopping = list(reversed(children if children is not None else self.children))
        for child in stopping:
            if child.process.poll() is None:
                child.process.send_signal(child.stop_signal)
        deadline = time.monotonic() + timeout
        for child in stopping:
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
            if child in self.children:
                self.children.remove(child)


def as_user(user: str | None) -> dict:
    """The arguments that make subprocess run as `user`, with that user's own group only."""
    return {"user": user, "group": user, "extra_groups": []} if user else {}


def listens(port: int) -> bool:
    """Whether something on loopback accepts connections on `port`."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def accepts(path) -> bool:
    """Whether something accepts connections on the Unix socket `path`."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        return probe.connect_ex(str(path)) == 0


def require_free(ports) -> None:
    """An error if something listens on one of `ports`."""
    taken = [port for port in ports if listens(port)]
    if taken:
        raise BedError(
            f"ports {taken} are in use on 127.0.0.1. Fix: stop what uses them (scripts/synapse stop?), "
            "or choose another range (E2E_PORT, CAMPAIGN_PORTS, BENCH_PORTS: the first port)"
        )


def existing(variable: str, default: Path) -> Path:
    """The file that the environment variable names, or the default."""
    path = Path(os.environ.get(variable) or default)
    if not path.is_file():
        raise BedError(f"there is no {path}. Fix: scripts/build, or {variable}=/path/to/another")
    return path.resolve()


def wait_for(condition, seconds: float, otherwise: str) -> None:
    """Polls until `condition()` is true; an error that says `otherwise` if it is not in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise BedError(otherwise)
        time.sleep(0.02)


class Process:
    """A process that is not our child."""

    def __init__(self, pid: int):
        self.pid = pid

    def wait(self, seconds: float) -> None:
        """Waits until it has ended."""
        def gone():
            try:
                return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except OSError:
                return True

        wait_for(gone, seconds, f"process {self.pid} does not end")


def children(pid: int) -> list[int]:
    """The processes that `pid` started and that have not ended."""
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


def running(binary: Path) -> list[int]:
    """The processes that run that file."""
    found = []
    for link in Path("/proc").glob("[0-9]*/exe"):
        try:
            # A file that was replaced meanwhile is said to be deleted.
            if os.readlink(link).removesuffix(" (deleted)") == str(binary):
                found.append(int(link.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def title(pid: int) -> str:
    """What `ps` shows of it."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def status(pid: int, field: str) -> int:
    """A number out of /proc/PID/status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise BedError(f"/proc/{pid}/status has no {field}")

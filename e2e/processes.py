"""Child processes: started together, stopped together, and never left behind.

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

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)
# NGINX names the binary under test here; to nginx itself it means sockets to inherit (ngx_add_inherited_sockets).
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "NGINX"}


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

    def start(self, name, argv, *, user=None, stop_signal=signal.SIGTERM) -> Child:
        """Starts `argv`, output to `<logs>/<name>.out`, as `user` if given (which takes root)."""

        def in_child():
            LIBC.prctl(PR_SET_PDEATHSIG, stop_signal)
            os.setpgid(0, 0)  # Ctrl-C goes to the test alone, which then stops its children in order.

        log = self.logs / f"{name}.out"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                preexec_fn=in_child, env=ENVIRONMENT, **as_user(user),
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


def require_free(ports) -> None:
    taken = [port for port in ports if listens(port)]
    if taken:
        raise BedError(
            f"ports {taken} are in use on 127.0.0.1. Fix: stop what uses them (scripts/synapse stop?), "
            "or choose another range with E2E_PORT=<first port>"
        )

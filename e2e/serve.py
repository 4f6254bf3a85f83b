"""scripts/synapse: the same Synapse as in scripts/e2e, kept running for other programs.

  scripts/synapse start            starts it and prints SYNAPSE=… and WORKERS=…, as scripts/run takes them
  scripts/synapse env              prints them again
  scripts/synapse login NAME DEVICE    makes the user if need be, and prints an access token of the device
  scripts/synapse stop             stops it

SYNAPSE_PORT is the first of its 14 ports on 127.0.0.1 (default 18200). Logs: build/e2e/synapse.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.bed.processes import ROOT, BedError

from .homeserver import Homeserver, Refused
from .synapse import Synapse

DIRECTORY = ROOT / "build/e2e/synapse"
PID = DIRECTORY.with_suffix(".pid")
OUTPUT = DIRECTORY.with_suffix(".out")


def main() -> int:
    commands = {"start": start, "stop": stop, "env": env, "login": login, "run": run}
    name, *words = sys.argv[1:] or [""]
    if name not in commands or (name == "login") != (len(words) == 2):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        commands[name](*words)
        return 0
    except (BedError, Refused) as error:
        print(f"scripts/synapse: {error}", file=sys.stderr)
        return 1


def bed() -> Synapse:
    return Synapse(DIRECTORY, int(os.environ.get("SYNAPSE_PORT", "18200")))


def start() -> None:
    if running_pid():
        raise BedError("it is running already. Fix: scripts/synapse env, or scripts/synapse stop")
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    with OUTPUT.open("wb") as output:
        keeper = subprocess.Popen([sys.executable, "-m", "e2e.serve", "run"], stdin=subprocess.DEVNULL, stdout=output,
                                  stderr=output, start_new_session=True)
    deadline = time.monotonic() + 90
    while not running_pid():
        if keeper.poll() is not None or time.monotonic() > deadline:
            raise BedError(f"it did not start:\n{OUTPUT.read_text()}")
        time.sleep(0.1)
    env()


def run() -> None:
    """Holds the bed up in the foreground until a signal; its pid file appears when Synapse answers."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    synapse = bed()
    try:
        synapse.start()
        PID.write_text(str(os.getpid()))
        while True:
            synapse.processes.check_alive()
            time.sleep(1)
    finally:
        PID.unlink(missing_ok=True)
        synapse.stop()


def stop() -> None:
    pid = running_pid()
    if not pid:
        return
    os.kill(pid, signal.SIGTERM)
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.1)


def env() -> None:
    if not running_pid():
        raise BedError("it is not running. Fix: scripts/synapse start")
    synapse = bed()
    workers = " ".join(f"127.0.0.1:{port}" for port in synapse.worker_ports.values())
    print(f'SYNAPSE=http://127.0.0.1:{synapse.main_port}\nWORKERS="{workers}"')


def login(name: str, device: str) -> None:
    if not running_pid():
        raise BedError("it is not running. Fix: scripts/synapse start")
    homeserver = Homeserver(bed())
    try:
        homeserver.register(name)
    except Refused as refused:
        if "M_USER_IN_USE" not in str(refused):
            raise
    print(homeserver.login(name, device)["access_token"])


def running_pid() -> int | None:
    """The keeper's pid, if it is one: a stale file may name anybody's process."""
    try:
        pid = int(PID.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if b"e2e.serve\0run" in command else None


if __name__ == "__main__":
    sys.exit(main())

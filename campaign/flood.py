"""Floods: millions of requests, made by wrk with campaign/flood.lua; it is fast where Python is not."""

import json
import shutil
import signal
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

from tests.bed.processes import BedError

from .bed import FRONT


@dataclass(frozen=True)
class Flood:
    statuses: dict
    seconds: float
    broken: int

    @property
    def answers(self):
        return sum(self.statuses.values())

    @property
    def ok(self):
        """Answers that are no error: all that the front gives to a request is 200."""
        return sum(number for status, number in self.statuses.items() if status.startswith("200 "))

    def __str__(self):
        counts = ", ".join(f"{number:,} {status[4:]}" for status, number in sorted(self.statuses.items()))
        return f"{counts} in {self.seconds:.1f} s ({self.answers / max(self.seconds, 0.1):,.0f}/s)"


def flood(mix, first, count, connections=64, watch=None, every=1.0):
    """Sends `count` requests; calls `watch` every so many seconds meanwhile."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise BedError("there is no wrk. Fix: apt-get install wrk")
    script = Path(__file__).with_name("flood.lua")
    process = subprocess.Popen(
        [wrk, "-t1", f"-c{connections}", "-d3600s", "--timeout", "30s", "-s", script, f"http://127.0.0.1:{FRONT}", "--",
         mix, str(first), str(count)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    over = threading.Event()

    def watching():
        while not over.wait(every):
            watch()

    watcher = threading.Thread(target=watching)
    if watch:
        watcher.start()
    try:
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate()
    finally:
        over.set()
        if watch:
            watcher.join()
    if process.returncode != 0:
        raise BedError(f"wrk failed:\n{out}")
    last = json.loads(out.strip().splitlines()[-1])
    return Flood(last["statuses"], last["seconds"], last["broken"])

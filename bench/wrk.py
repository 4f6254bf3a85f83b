"""Load: wrk, with bench/load.lua."""

import json
import signal
import subprocess
from pathlib import Path

from .bed import BenchError, tool

SCRIPT = Path(__file__).with_name("load.lua")


def wrk(port, mix, users, connections=64, seconds=0, count=0, rate=0):
    """So many seconds, or so many requests. Gives requests, seconds, errors, and percentiles of the latency in ms."""
    process = subprocess.Popen(
        [tool("wrk", "wrk"), "-t1", f"-c{connections}", f"-d{seconds or 600}s", "--timeout", "30s", "-s", SCRIPT,
         f"http://127.0.0.1:{port}", "--", mix, str(users), str(count), str(connections / rate if rate else 0)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        if count:
            process.stderr.readline()
            process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=600)
    except BaseException:
        process.kill()
        raise
    if process.returncode != 0:
        raise BenchError(f"wrk failed:\n{out}{errors}")
    figures = json.loads(out.strip().splitlines()[-1])
    if figures["broken"]:
        raise BenchError(f"{figures['broken']} requests failed")
    return figures

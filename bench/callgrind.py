"""Instructions in user space for each request, counted by callgrind in the variant's workers alone.

The counts do not depend on the machine's load, so they can be compared when times cannot. The first requests are not
counted: they make the tokens known, and connections.
"""

import re
import subprocess

from .bed import FRONT, RUN, BenchError, tool
from .client import Client, head


def instructions(variant, tokens=1000, requests=4000, length=41, workers=1, numbers=None):
    """Per request. `numbers` are the users that ask, in turn; else those below `tokens` do, round and round."""
    numbers = numbers or range(tokens)
    asked = [head(n, length=length) for n in numbers]
    for old in RUN.glob("callgrind.*"):
        old.unlink()
    # Without counting until the zone is restored and the tokens are known: that is several times as fast.
    wrapper = [tool("valgrind", "valgrind"), "--tool=callgrind", "--trace-children=yes", "--instr-atstart=no",
               f"--callgrind-out-file={RUN}/callgrind.%p"]
    with variant.start(workers, wrapper) as nginx:
        # Enough connections that each worker has its share.
        clients = [Client(FRONT) for _ in range(1 if workers == 1 else 8 * workers)]
        for number, request in enumerate(asked):
            clients[number % len(clients)].get(request)
        for number in range(max(200, 4 * len(clients))):
            clients[number % len(clients)].get(asked[number % len(asked)])
        order(nginx, "--instr=on")
        # What is translated and mapped only once is behind us after some requests.
        for number in range(max(200, 4 * len(clients))):
            clients[number % len(clients)].get(asked[number % len(asked)])
        order(nginx, "--zero")
        for number in range(requests):
            clients[number % len(clients)].get(asked[number % len(asked)])
        order(nginx, "--dump")
        totals = [total(pid) for pid in nginx.workers()]
        for client in clients:
            client.socket.close()
    return sum(totals) / requests


def order(nginx, what):
    """To those processes only: others may run callgrind too."""
    pids = [str(pid) for pid in nginx.workers()]
    subprocess.run([tool("callgrind_control", "valgrind"), what, *pids], check=True, capture_output=True, timeout=60)


def total(pid):
    dumps = sorted(RUN.glob(f"callgrind.{pid}.*"))
    if not dumps:
        raise BenchError(f"callgrind wrote no dump of process {pid}: see {RUN}/variant.out")
    found = re.search(r"^totals: (\d+)", dumps[-1].read_text(), re.MULTILINE)
    return int(found.group(1))

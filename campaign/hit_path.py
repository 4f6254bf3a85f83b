"""What a request whose user is known costs inside the module: every function that it runs, every system call.

nginx runs under callgrind, which collects only while the module's phase handler is on the stack. So the profile lists all
that a hit does there, in the module, in nginx and in the C library, and the counter of system calls counts its own.
"""

import asyncio
import re
import signal
import subprocess

from tests.bed.people import token
from tests.bed.processes import listens, wait_for

from .bed import FRONT, Front, Nginx, Whoami
from .client import Clients

HANDLER = "ngx_http_matrix_user_hash_module::phase::handle"
# By what name memory is taken or given back, and locks are taken.
MEMORY = re.compile(r"^(__libc_)?(malloc|calloc|realloc|free|memalign|posix_memalign|aligned_alloc|mmap|munmap|brk|sbrk)$|"
                    r"^_int_(malloc|free)|^ngx_(alloc|calloc|palloc_block|palloc_large|slab_\w+)$|__rust_alloc|alloc::alloc")
LOCKS = re.compile(r"^ngx_(shmtx|rwlock|spinlock|rwlock_\w+|shmtx_\w+|thread_mutex_\w+)$|lll_lock|futex|sem_(wait|post)|"
                   r"pthread_(mutex|rwlock|spin|cond)_")


class Watched(Nginx):
    """One process under callgrind, which waits with collecting until the handler runs."""

    def start(self):
        self.configure()
        self.out = self.directory / "callgrind.out"
        self.valgrind = subprocess.Popen(
            ["valgrind", "--tool=callgrind", "--collect-systime=yes", f"--toggle-collect={HANDLER}",
             f"--callgrind-out-file={self.out}", "--compress-strings=no", "--separate-threads=no",
             self.directory / "nginx", "-p", self.directory, "-e", self.directory / "error.log", "-c",
             self.directory / "nginx.conf", "-g", "daemon off; master_process off;"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=(self.directory / "stderr").open("w"))
        wait_for(lambda: listens(FRONT), 120, f"nginx did not start under valgrind: see {self.directory}/stderr")

    def kill(self):
        self.valgrind.send_signal(signal.SIGKILL)
        self.valgrind.wait(10)

    def control(self, *options):
        subprocess.run(["callgrind_control", *options, str(self.valgrind.pid)], check=True, capture_output=True)

    def profile(self):
        """Names of the functions that ran, instructions, system calls: since the last `zero`."""
        before = set(self.directory.glob("callgrind.out.*"))
        self.control("-d")
        wait_for(lambda: set(self.directory.glob("callgrind.out.*")) - before, 20, "callgrind dumps nothing")
        (dump,) = set(self.directory.glob("callgrind.out.*")) - before
        wait_for(lambda: "totals:" in dump.read_text(), 20, f"{dump} is not whole")
        text = dump.read_text()
        events = re.search(r"^events: (.*)$", text, re.MULTILINE)[1].split()
        totals = [int(n) for n in re.search(r"^totals: (.*)$", text, re.MULTILINE)[1].split()]
        cost = dict(zip(events, totals + [0] * len(events), strict=False))
        return set(re.findall(r"^fn=(.*?)(?:'\d+)?$", text, re.MULTILINE)), cost["Ir"], cost["sysCount"]


def hit_path(report):
    """A hit takes no lock, no memory and makes no system call: all that it runs, by callgrind"""
    front = Front(workers=1)
    with Whoami(), Watched(front, report.name) as nginx:
        asyncio.run(look(report, nginx, 500 if report.short else 5000))


async def look(report, nginx, number):
    clients = Clients()
    users = [token(f"u{n}") for n in range(50)]
    await clients.all(users, at_once=4)
    nginx.control("-z")
    answers = [await clients.get(users[n % len(users)]) for n in range(number)]
    functions, instructions, calls = nginx.profile()
    report.equal("requests that were hits", number, sum(a.status == "HIT" and a.right for a in answers), key=False)
    report.check(f"in {number:,} hits the handler ran", f"{len(functions)} functions", any("phase::handle" in f for f in functions),
                 key=False)
    report.check("functions that take or free memory: none", names(MEMORY, functions) or "none", not names(MEMORY, functions))
    report.check("functions that take a lock: none", names(LOCKS, functions) or "none", not names(LOCKS, functions))
    report.equal("system calls", 0, calls)
    report.note(f"{instructions / number:,.0f} instructions in the handler for each hit", key=True)
    nginx.control("-z")
    await clients.all([token(f"cold{n}") for n in range(20)], at_once=1)
    functions, _, calls = nginx.profile()
    # The same look at misses finds what it looks for.
    report.check("the same of 20 misses finds memory and system calls", f"{names(MEMORY, functions)}; {calls} calls",
                 names(MEMORY, functions) and calls > 0, key=False)
    clients.close()


def names(pattern, functions):
    return " ".join(sorted(name for name in functions if pattern.search(name)))

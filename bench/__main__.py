"""python3 -m bench [--list | --page | --short | PART...]: see scripts/bench."""

import resource
import shutil
import signal
import sys

from . import growth, hit, memory, micro, miss, page, shift, throughput
from .bed import RUN, BenchError

# In the order in which a failure is worth knowing.
PARTS = {
    "hit": hit.hit,
    "shift": shift.shift,
    "micro": micro.micro,
    "memory": memory.pending,
    "million": memory.million,
    "tokens": memory.tokens,
    "miss": miss.miss,
    "calls": miss.calls,
    "length": growth.length,
    "workers": growth.workers,
    "population": growth.population,
    "waiters": growth.waiters,
    "load": throughput.load,
}


def main():
    # So that every context ends what it has started.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit("interrupted"))
    # Of the processes that are started too.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    names = sys.argv[1:]
    if names == ["--list"]:
        print("\n".join(PARTS))
        return 0
    if names == ["--page"]:
        page.write()
        return 0
    if names == ["--short"]:
        return 0 if run("hit", hit.short) else 1
    unknown = set(names) - set(PARTS)
    if unknown:
        print(f"no part {', '.join(sorted(unknown))}; --list names them", file=sys.stderr)
        return 2
    passed = [run(name, PARTS[name]) for name in names or PARTS]
    print(f"\nscripts/bench: {sum(passed)} of {len(passed)} parts reach what they must")
    return 0 if all(passed) else 1


def run(name, part):
    try:
        return part(name)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return False
    finally:
        shutil.rmtree(RUN, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())

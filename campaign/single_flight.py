"""Single flight: one whoami for one token, whatever becomes of the request that asked first."""

import asyncio
import os
import signal

from tests.bed.people import token

from .bed import Front, Nginx, Whoami
from .client import Clients
from .report import Noise, spread

WHOAMI_TAKES = 0.3
TIMEOUT = 2.0


async def crowd(clients, bearer, number):
    return await asyncio.gather(*(clients.get(bearer) for _ in range(number)))


async def until_asked(whoami, bearer):
    """Waits until whoami is asked about a token; gives the port of the lookup's connection."""
    for _ in range(500):
        seen = whoami.seen()
        if dict(seen["asked"]).get(bearer) and seen["ports"]:
            return seen["ports"][-1]
        await asyncio.sleep(0.005)
    return None


async def one_lookup(report, whoami, clients, rounds):
    """500 at once."""
    asked, excess, pids = [], [], set()
    wrong = 0
    with Noise() as noise:
        for number in range(rounds):
            whoami.forget()
            answers = await crowd(clients, token(f"cold{number}"), 500)
            asked.append(whoami.seen()["requests"])
            leader = max((a.held for a in answers if a.status == "MISS"), default=0.0)
            excess += [(a.held - leader) * 1000 for a in answers]
            wrong += sum(not a.right or a.status not in ("MISS", "SHARED", "HIT") for a in answers)
            pids |= {a.pid for a in answers}
    report.equal(f"whoami calls for 500 requests with one cold token over 4 workers, each of {rounds} rounds", "1",
                 "1" if set(asked) == {1} else str(asked))
    report.equal("worker processes that took part", 4, len(pids), key=False)
    report.equal("answers without the user's hash", 0, wrong)
    report.at_most("the longest wait beyond the leader's", 50, max(excess), " ms", noise.worst)
    report.note(f"wait beyond the leader's: {spread(excess, factor=1)}", key=True)


async def leader_leaves(report, whoami, clients):
    whoami.forget()
    bearer = token("leaver")
    leader = asyncio.create_task(clients.get(bearer))
    await until_asked(whoami, bearer)
    waiters = asyncio.create_task(crowd(clients, bearer, 200))
    await asyncio.sleep(0.05)
    leader.cancel()
    answers = await waiters
    report.equal("the leader's client goes away: waiters with the user's hash, of 200", 200,
                 sum(a.right and a.status in ("SHARED", "MISS", "HIT") for a in answers))
    report.equal("whoami calls then", 1, whoami.seen()["requests"])


async def leader_dies(report, whoami, clients, nginx):
    """SIGKILL to the worker whose lookup is on its way; others wait on all workers."""
    whoami.forget()
    bearer = token("orphaned")
    leader = asyncio.create_task(clients.get(bearer))
    port = await until_asked(whoami, bearer)
    victim = nginx.owner_of(port)
    waiters = asyncio.create_task(crowd(clients, bearer, 200))
    await asyncio.sleep(0.05)
    with Noise() as noise:
        killed = asyncio.get_running_loop().time()
        os.kill(victim, signal.SIGKILL)
        takeover = await until_second(whoami)
        taken = asyncio.get_running_loop().time() - killed
        answers = await waiters
    await leader
    survivors = [a for a in answers if a.code]
    report.check("the leader's worker is killed: every waiter of the other workers gets the user's hash",
                 f"{sum(a.right and a.status in ('SHARED', 'MISS', 'HIT') for a in survivors)} of {len(survivors)}",
                 survivors and all(a.right and a.status in ("SHARED", "MISS", "HIT") for a in survivors))
    report.at_most("its mark is taken over after", 100, taken * 1000 if takeover else 1e9, " ms", noise.worst)
    report.at_most("the longest that one of them was held", (TIMEOUT + 0.05) * 1000,
                   max((a.held for a in survivors), default=0) * 1000, " ms", noise.worst)
    report.equal("whoami calls then (the dead leader's, and one)", 2, whoami.seen()["requests"])


async def until_second(whoami):
    for _ in range(1000):
        if whoami.seen()["requests"] >= 2:
            return True
        await asyncio.sleep(0.002)
    return False


async def leader_fails(report, whoami, clients):
    failures = {"status-500": "500", "close": "the connection is closed", "hang": "no answer in time"}
    for kind, words in failures.items():
        whoami.forget()
        whoami.set(kind=kind)
        with Noise() as noise:
            answers = await crowd(clients, token(f"failed{kind}"), 200)
        whoami.set(kind="ok")
        report.equal(f"the lookup fails ({words}): waiters with the token's hash, of 200", 200,
                     sum(a.right and a.code == 200 for a in answers))
        report.at_most("the longest that one was held", (TIMEOUT + 0.05) * 1000, max(a.held for a in answers) * 1000,
                       " ms", noise.worst, key=False)
        # A lookup that was closed on is tried once more by nginx's own rules.
        seen = whoami.seen()
        report.at_most("whoami calls then", 2, seen["requests"], key=False)
        report.equal("of which at a time", 1, seen["most_of_one"], key=False)


def single_flight(report):
    """500 requests with one cold token over 4 workers make one whoami; waiters survive their leader"""
    # The read timeout is longer than the whole, so that it is the module's own that ends a lookup.
    front = Front(directives=f"matrix_user_hash_timeout {TIMEOUT:g}s; matrix_user_hash_read_timeout 20s;")

    async def run(nginx, whoami):
        clients = Clients()
        # Every connection is accepted and every worker warm before the clock runs.
        await clients.warm(520)
        await crowd(clients, token("warm"), 520)
        whoami.set(delay=WHOAMI_TAKES)
        await one_lookup(report, whoami, clients, 3 if report.short else 20)
        await leader_leaves(report, whoami, clients)
        await leader_dies(report, whoami, clients, nginx)
        await leader_fails(report, whoami, clients)
        clients.close()

    with Whoami() as whoami, Nginx(front, report.name) as nginx:
        asyncio.run(run(nginx, whoami))
        report.equal("lines of [alert] beside the killed worker's, [crit] and [emerg]", 0,
                     len([line for level in ("alert", "crit", "emerg") for line in nginx.lines(level)
                          if "on signal 9" not in line]), key=False)

"""Users on the move, in a real nginx: `rollout` and `route` say beforehand who will be where, and nginx does it."""

import collections
import datetime
import hashlib
import json
import re
import threading
import time

import bed
from moving import SYNC, token

USERS = 120
PORTS = {"main": 20108, "sync1": 20111, "sync2": 20112, "sync3": 20113, "sync4": 20114}


def deployment(*names):
    workers = "".join(f'[[workers]]\nname = "{name}"\ntype = "sync"\nhost = "127.0.0.1"\nport = {PORTS[name]}\n' for name in names)
    return f'[main]\nhost = "127.0.0.1"\nport = {PORTS["main"]}\n{workers}[listen]\nclient = [20000]\n'


class Run:
    """nginx with a deployment that changes, and workers for all that it may name."""

    def __init__(self, nginx):
        self.nginx, self.prefix = nginx, nginx.directory
        self.source = self.prefix / "deployment.toml"
        self.settings = bed.own_paths(self.prefix)

    def change(self, text, command="render", *args):
        """Renders into the folder, has nginx -t judge it, and reloads."""
        self.source.write_text(text + self.settings)
        _, said = bed.companion(*command.split(), "-d", self.source, "--output", self.prefix, "--nginx", bed.NGINX, *args)
        bed.companion("check", "-d", self.source, "--nginx", bed.wrapped_nginx(self.prefix), "--installed", self.prefix,
                      expect=2 if command != "render" else 0)
        self.nginx.reload()
        return said

    @staticmethod
    def everyone(client):
        """Where each user is, with the time before and after they were asked."""
        return {n: (time.time(), client.ask("GET", SYNC, token(n)).worker, time.time()) for n in range(USERS)}

    def rollout(self, *args):
        return json.loads(bed.companion("rollout", "--json", "--installed", self.prefix, *args)[0])


def run(check):
    bench = bed.Workers()
    for name, port in PORTS.items():
        bench.start(name, port=port)
    try:
        with bed.running(deployment("sync1", "sync2", "sync3")) as nginx:
            return check(Run(nginx))
    finally:
        bench.stop_all()


def check_users_move_as_rollout_says():
    """from three workers to four and back by `drain`: each user moves once, when `rollout` says, and no request fails"""
    return run(there_and_back)


def there_and_back(run):
    moved = []
    over = 4
    four = ("sync1", "sync2", "sync3", "sync4")
    for names, command in ((four, "render"), (four, "drain sync2")):
        start = int(time.time()) + 10
        before = {n: worker for n, (_, worker, _) in run.everyone(bed.Client()).items()}
        run.change(deployment(*names), command, "--gradually", f"{over}s", "--start", start)
        assert time.time() < start, "the machine was too slow: nginx has it too late"
        movers = {mover["user"]: mover for mover in run.rollout(run.prefix / "access.log")["groups"][0]["users"]["movers"]}
        client, seen = bed.Client(), {}
        while time.time() < start + over + 1:
            for n, visit in run.everyone(client).items():
                seen.setdefault(n, []).append(visit)
        log = run.nginx.log()
        hashes = {n: user_hash(n) for n in range(USERS)}
        for n, visits in seen.items():
            mover = movers.get(hashes[n])
            workers = [worker for _, worker, _ in visits]
            assert None not in workers and workers[0] == before[n], (n, workers)
            changes = [(a, b) for a, b in zip(visits, visits[1:]) if a[1] != b[1]]
            if mover is None:
                assert not changes, (n, workers)
                continue
            assert len(changes) == 1, (n, workers)
            last, first = changes[0]
            assert (last[1], first[1]) == (mover["from"], mover["to"]), (n, changes, mover)
            # The report has whole seconds.
            moment = moment_of(mover["moment"])
            assert last[0] < moment + 1.1 and first[2] > moment - 0.1, (n, changes, mover)
        assert movers and "upstream=synapse_sync_before" in log and "upstream=synapse_sync " in log, log[-500:]
        moved.append(len(movers))
        # Afterwards the plain configuration has everybody where they are.
        at_end = {n: visits[-1][1] for n, visits in seen.items()}
        left = [name for name in names if f"drain {name}" != command]
        said = run.change(deployment(*left))
        assert "have moved: the shift ended at" in said, said
        assert not (run.prefix / "synapse" / "moving.conf").exists()
        assert {n: worker for n, (_, worker, _) in run.everyone(bed.Client()).items()} == at_end
    return f"{moved[0]} and {moved[1]} of {USERS} users moved"


def user_hash(n):
    return hashlib.sha256(f"@user{n}:example.org".encode()).hexdigest()[:16]


def moment_of(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def check_a_full_worker_passes_users_on():
    """a worker with max_conns has no more requests at a time: a further one of its users goes to the next on the ring"""
    text = deployment("sync1", "sync2").replace(f'port = {PORTS["sync1"]}\n', f'port = {PORTS["sync1"]}\nmax_conns = 1\n')
    bench = bed.Workers()
    for name in ("main", "sync1", "sync2"):
        bench.start(name, port=PORTS[name])
    try:
        with bed.running(text):
            home = {n: bed.Client().ask("GET", SYNC, token(n)).worker for n in range(20)}
            n = next(n for n, worker in home.items() if worker == "sync1")
            bench.delay = {"sync1": 3}
            poll = threading.Thread(target=lambda: bed.Client().ask("GET", SYNC, token(n)))
            poll.start()
            time.sleep(0.7)
            assert bed.Client().ask("GET", SYNC, token(n)).worker == "sync2"
            poll.join(10)
            bench.delay = {}
            assert bed.Client().ask("GET", SYNC, token(n)).worker == "sync1"
    finally:
        bench.stop_all()


def check_a_canary_and_a_pin_have_their_users():
    """the users of the canary and a pinned one are where `route` has them, with all their devices; the log says why"""
    pinned = user_hash(7)
    text = deployment("sync1", "sync2", "sync3") + (
        '[canary]\nworker = "sync3"\npercent = 25\n' f'[[pin]]\nuser = "{pinned}"\nworker = "sync2"\n'
        '[status]\nlisten = "127.0.0.1:20003"\n')
    bench = bed.Workers()
    for name in ("main", "sync1", "sync2", "sync3"):
        bench.start(name, port=PORTS[name])
    try:
        with bed.running(text) as nginx:
            client, seen = bed.Client(), {}
            for n in range(60):
                seen[n] = client.ask("GET", SYNC, token(n)).worker
                other = {"Authorization": f"Bearer syt_user{n}_zyxwvutsrqponmlkjihg_1bc2de"}
                assert client.ask("GET", SYNC, other).worker == seen[n], n
                shown, _ = bed.companion("route", "GET", SYNC, "-d", nginx.directory / "deployment.toml", "--nginx", bed.NGINX,
                                         "--installed", nginx.directory, "--user", f"@user{n}:example.org")
                assert f"worker    {seen[n]}  " in shown, (n, seen[n], shown)
            assert seen[7] == "sync2"
            canary = [n for n, worker in seen.items() if worker == "sync3"]
            # Nobody without a user is in the canary, and its users have another worker while it is down.
            assert {client.ask("GET", SYNC).worker for _ in range(20)} == {"sync1", "sync2"}
            bench.stop("sync3")
            assert {client.ask("GET", SYNC, token(n)).worker for n in canary} == {"sync1"}
            log = nginx.log()
            figures = bed.Client(20003).ask("GET", "/metrics").text.decode()
            assert re.search(r'^matrix_user_hash_shift_moved_ratio\{variable="synapse_sync_share"\} 0\.25', figures, re.M), figures
            shown, _ = bed.companion("balance", "--json", nginx.directory / "access.log")
            group = next(group for group in json.loads(shown)["groups"] if group["group"] == "synapse_sync")
            told = {chosen["upstream"]: chosen["requests"] for chosen in group["chosen"]}
            logged = re.findall(r" upstream=(synapse_sync_(?:canary|pin_\d+)) ", log)
            assert told == collections.Counter(logged) and len(told) == 2, (told, logged)
            for upstream, n in (("synapse_sync_canary", canary[0]), ("synapse_sync_pin_1", 7)):
                assert any(f"upstream={upstream} " in line and user_hash(n) in line for line in log.splitlines()), upstream
    finally:
        bench.stop_all()
    return f"{len(canary)} of 60 users in a canary of 25%"

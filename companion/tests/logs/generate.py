#!/usr/bin/env python3
"""A log of a homeserver that does not exist, as the companion's nginx would have written it.

    generate.py [--lines 100000] [--users 2000] [--days 3] [--form text|json|readme] [--seed 1] [--workers 4]
                [--add-after 0.6] [--no-trouble] [--rotation 300] [--valid 3600]

People sleep at night; few of them are very active, and some have several devices. Access tokens live for --rotation
seconds, as those of the Matrix Authentication Service do. A part of the way through, a sync worker is added (--add-after);
one is down for ten minutes. Some lines are broken. The same arguments give the same log.
"""

import argparse
import bisect
import hashlib
import math
import random
import sys
import zlib
from datetime import datetime, timezone

START = 1_795_564_800  # 2026-11-25T00:00:00Z, a Wednesday
AGENTS = ["Element/1.11.85 (Windows NT 10.0; Win64; x64)", "Element X/26.11.1 (Pixel 9; Android 16)",
          "Element X/26.11.0 (iPhone17,1; iOS 19.1)", "Fractal/12", "nheko/0.13.0", "matrix-js-sdk"]
READERS = ["/_matrix/client/v3/profile/u", "/_matrix/client/v3/keys/query", "/_matrix/client/v3/pushrules/",
           "/_matrix/client/v3/capabilities"]


class Ring:
    """nginx's consistent hash, after the description of its points: 160 for each server, chained CRC32."""

    def __init__(self, servers):
        points = {}
        for server, weight in servers:
            host, port = server.rsplit(":", 1)
            point = b"\0\0\0\0"
            for _ in range(160 * weight):
                value = zlib.crc32(host.encode() + b"\0" + port.encode() + point)
                points.setdefault(value, server)
                point = value.to_bytes(4, "little")
        self.points = sorted(points)
        self.servers = [points[point] for point in self.points]

    def pick(self, key):
        at = bisect.bisect_left(self.points, zlib.crc32(key.encode()))
        return self.servers[at % len(self.points)]


class Device:
    def __init__(self, chance, number):
        self.agent = chance.choice(AGENTS) + f" d{number}"
        self.client = f"203.0.113.{chance.randrange(1, 255)}"
        self.issued = self.asked = -10**9


def sync_workers(count):
    return [(f"10.0.0.{n}:8083", 1) for n in range(1, count + 1)]


def log(lines=100_000, users=2_000, days=3.0, form="text", seed=1, workers=4, add_after=0.6, trouble=True, rotation=300, valid=3_600):
    """Yields the lines, without line feeds, in the order of their ends."""
    chance = random.Random(seed)
    hashes = [hashlib.sha256(f"@user{n}:example.org".encode()).hexdigest()[:16] for n in range(users)]
    weights = [min(chance.paretovariate(1.2), 200.0) for _ in range(users)]
    total, cumulated = 0.0, []
    for weight in weights:
        total += weight
        cumulated.append(total)
    devices = [[Device(chance, d) for d in range(1 + min(int(chance.expovariate(0.8)), 5))] for _ in range(users)]
    before = Ring(sync_workers(workers))
    after = Ring(sync_workers(workers + 1)) if add_after else before
    homes = [(before.pick(h), after.pick(h)) for h in hashes]
    change = START + days * 86_400 * (add_after or 2)
    down = (START + days * 86_400 * 0.3, START + days * 86_400 * 0.3 + 600, "10.0.0.2:8083") if trouble else (0, 0, "")
    minutes = max(1, round(days * 1_440))
    curve = [0.25 + 0.75 * max(0.0, math.sin((minute % 1_440) / 1_440 * 2 * math.pi - math.pi / 2)) for minute in range(minutes)]
    scale = lines / sum(curve)
    made, owed = 0, 0.0
    for minute, height in enumerate(curve):
        owed += height * scale
        count = lines - made if minute == minutes - 1 else int(owed)
        owed -= count
        made += count
        for second in sorted(chance.random() * 60 for _ in range(count)):
            time = START + minute * 60 + second
            if trouble and chance.random() < 0.0005:
                yield chance.choice(["", "not a line", "203.0.113.9 [2026-11-25T00:0", '{"time":"2026-11-25', "\x16\x03\x01"])
                continue
            yield one(chance, time, form, hashes, cumulated, total, devices, homes, (before, after), change, down, trouble, rotation, valid)


def one(chance, time, form, hashes, cumulated, total, devices, homes, rings, change, down, trouble, rotation, valid):
    user = bisect.bisect_left(cumulated, chance.random() * total)
    key, device = hashes[user], chance.choice(devices[user])
    kind = chance.random()
    if kind < 0.70:
        group, path = "synapse_sync", f"/_matrix/client/v3/sync?since=s{int(time)}&timeout=30000"
        took = 30.0 + chance.random() * 0.05 if chance.random() < 0.6 else chance.random() * 30
    elif kind < 0.97:
        group, path, took = "synapse_client_reader", chance.choice(READERS), chance.lognormvariate(-4, 1)
    else:
        group, path, took = "edge", "/_matrix/client/versions", 0.0
    status = 200
    lookup, held = "-", None
    if group == "synapse_sync":
        if time - device.issued >= rotation:
            device.issued, device.asked, lookup, held = time, time, "MISS", chance.lognormvariate(-5.5, 0.6)
        elif time - device.asked >= valid:
            device.asked, lookup = time, "STALE"
        else:
            lookup = "HIT"
        began = time - took
        worker = homes[user][began >= change]
        if trouble and chance.random() < 0.003:
            lookup = chance.choice(["REFUSED", "ERROR", "TIMEOUT", "ANONYMOUS"])
            key = "" if lookup == "ANONYMOUS" else hashlib.sha256(f"token {chance.random()}".encode()).hexdigest()[:16]
            worker, status = rings[began >= change].pick(key) if key else "10.0.0.1:8083", 401 if lookup in ("REFUSED", "ANONYMOUS") else 200
        attempts = [(worker, status, took)]
        if down[0] <= began < down[1] and worker == down[2]:
            other = "10.0.0.1:8083" if chance.random() < 0.5 else "10.0.0.3:8083"
            attempts = [(worker, 502, 0.0), (other, status, took)]
        elif trouble and chance.random() < 0.001:
            status = chance.choice([500, 504])
            attempts = [(worker, status, took)]
    elif group == "edge":
        attempts, key = [], ""
    else:
        attempts, key = [(f"10.0.1.{chance.randrange(1, 3)}:8083", status, took)], ""
    size = int(chance.lognormvariate(6, 1.5))
    return written(form, time, device, path, status, size, took, group, attempts, key, lookup, held)


def written(form, time, device, path, status, size, took, group, attempts, key, lookup, held):
    stamp = datetime.fromtimestamp(int(time), timezone.utc).strftime("%Y-%m-%dT%H:%M:%S+00:00")
    workers = ", ".join(attempt[0] for attempt in attempts) or "-"
    statuses = ", ".join(str(attempt[1]) for attempt in attempts) or "-"
    times = ", ".join(f"{attempt[2]:.3f}" for attempt in attempts) or "-"
    waited = "-" if held is None else f"{held:.3f}"
    request_time = took + (held or 0)
    if form == "readme":
        path = path.split("?")[0]
        return f"{stamp} {path} {status} user={key or '-'} lookup={lookup} worker={workers}"
    if form == "json":
        path, _, query = path.partition("?")
        query, seen = ("?" + query if query else ""), "" if lookup == "-" else lookup
        return (f'{{"time":"{stamp}","client":"{device.client}","method":"GET","path":"{path}","query":"{query}",'
                f'"status":"{status}","bytes":"{size}","request_time":"{request_time:.3f}","group":"{group}","worker":"{workers}",'
                f'"upstream_status":"{statuses}","upstream_time":"{times}","user_hash":"{key}","user_hash_status":"{seen}",'
                f'"lookup_time":"{waited}","user_agent":"{device.agent}"}}')
    return (f'{device.client} [{stamp}] "GET {path}" {status} {size} time={request_time:.3f} group={group} worker={workers} '
            f"upstream_status={statuses} upstream_time={times} user_hash={key or '-'} user_hash_status={lookup} "
            f'lookup_time={waited} "{device.agent}"')


def arguments(parser):
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--days", type=float, default=3.0)
    parser.add_argument("--form", choices=["text", "json", "readme"], default="text")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--add-after", type=float, default=0.6, help="part of the time after which a worker is added; 0 for never")
    parser.add_argument("--no-trouble", dest="trouble", action="store_false")
    parser.add_argument("--rotation", type=float, default=300)
    parser.add_argument("--valid", type=float, default=3_600)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    for line in log(**vars(parser.parse_args())):
        sys.stdout.write(line + "\n")

#!/usr/bin/env python3
"""The figures of `balance`, computed again: plainly, slowly, with everything kept, and sharing nothing with the companion.

    recompute.py LOG > figures.json
"""

import collections
import hashlib
import json
import re
import sys
from datetime import datetime

TEXT = re.compile(
    r'^(?P<client>\S+) \[(?P<time>[^\]]+)\] "(?P<request>[^"]*)" (?P<status>\d{3}) (?P<bytes>\d+) time=(?P<request_time>\S+) '
    r"group=(?P<group>\S+) worker=(?P<worker>.+) upstream_status=(?P<upstream_status>.+) upstream_time=(?P<upstream_time>.+) "
    r'user_hash=(?P<user_hash>\S+) user_hash_status=(?P<user_hash_status>\S+) lookup_time=(?P<lookup_time>\S+) "(?P<agent>[^"]*)"$')
README = re.compile(r"^(?P<time>\S+) (?P<path>.*) (?P<status>\d{3}) user=(?P<user_hash>\S+) lookup=(?P<user_hash_status>\S+) worker=(?P<worker>.+)$")


def parse(line):
    if line.startswith("{"):
        try:
            return json.loads(line)
        except ValueError:
            return None
    found = TEXT.match(line) or README.match(line)
    return found and found.groupdict()


def parts(text):
    return [] if text in (None, "", "-") else re.split(r", | : ", text)


def milliseconds(text):
    return None if text in (None, "", "-") else round(float(text) * 1_000)


class Sum:
    def __init__(self):
        self.requests = self.ms = self.bytes = 0


def figures(lines):
    lines = list(lines)
    rows = [parse(line) for line in lines]
    good = [row for row in rows if row]
    workers = collections.defaultdict(lambda: collections.Counter())
    users = collections.defaultdict(Sum)
    reached = collections.defaultdict(list)
    tokens, lookups, groups = set(), collections.Counter(), collections.defaultdict(list)
    failovers = errors = 0
    for row in good:
        group = "" if row.get("group") in (None, "-") else row["group"]
        attempts, statuses, times = parts(row["worker"]), parts(row.get("upstream_status")), parts(row.get("upstream_time"))
        lookups[row["user_hash_status"] or "-"] += 1
        errors += int(row["status"]) >= 500
        waited = milliseconds(row.get("request_time"))
        groups[group].append((waited, len(attempts)))
        failovers += len(attempts) > 1
        for index, worker in enumerate(attempts):
            own = workers[group, worker]
            own["ms"] += milliseconds(times[index]) if times else (waited or 0)
            own["errors"] += int(statuses[index]) >= 500 if statuses else int(row["status"]) >= 500 and index == len(attempts) - 1
            own["failed"] += index < len(attempts) - 1
        if not attempts:
            continue
        last = attempts[-1]
        size = int(row.get("bytes") or 0)
        workers[group, last]["requests"] += 1
        workers[group, last]["bytes"] += size
        user = row["user_hash"]
        if user in ("", "-"):
            continue
        if row["user_hash_status"] in ("REFUSED", "ERROR", "TIMEOUT"):
            tokens.add(user)
            continue
        own = users[user, group, last]
        own.requests += 1
        own.ms += milliseconds(times[-1]) if times else (waited or 0)
        own.bytes += size
        reached[user, group].append((last, len(attempts) > 1))
    moments = [int(datetime.fromisoformat(row["time"]).timestamp()) for row in good]
    return {"lines": len(lines), "broken": len(rows) - len(good), "requests": len(good), "errors": errors, "failovers": failovers,
            "from": min(moments), "until": max(moments), "users": len({user for user, _ in reached}), "tokens": len(tokens),
            "lookups": dict(lookups), "groups": {name: of_group(name, times, workers, users, reached) for name, times in groups.items()}}


def of_group(name, times, workers, users, reached):
    known = sorted(ms for ms, _ in times if ms is not None)
    own = {}
    for (group, worker), counts in workers.items():
        if group != name:
            continue
        here = {user: counts for (user, of, at), counts in users.items() if of == group and at == worker}
        heaviest = sorted(here.items(), key=lambda item: (-item[1].requests, item[0]))[:5]
        own[worker] = {"users": len(here), "requests": counts["requests"], "ms": counts["ms"], "bytes": counts["bytes"],
                       "errors": counts["errors"], "failed": counts["failed"],
                       "heaviest": [[user, sums.requests, sums.ms, sums.bytes] for user, sums in heaviest]}
    moved = collections.Counter()
    for (_, group), visits in reached.items():
        if group == name and len({worker for worker, _ in visits}) > 1:
            moved["users"] += 1
            moved[why(visits)] += 1
    return {"requests": len(times), "unserved": sum(attempts == 0 for _, attempts in times), "times": known, "workers": own,
            "moved": dict(moved)}


def why(visits):
    if any(failed for _, failed in visits):
        return "worker_down"
    runs = [worker for index, (worker, _) in enumerate(visits) if index == 0 or visits[index - 1][0] != worker]
    return "shift" if len(runs) == len(set(runs)) else "other"


def hash_of(user):
    return hashlib.sha256(user.encode()).hexdigest()[:16]


def amounts(lines):
    """Requests of each user in each group at each worker."""
    found = collections.Counter()
    for row in filter(None, map(parse, lines)):
        known = row["user_hash"] not in ("", "-") and row["user_hash_status"] not in ("REFUSED", "ERROR", "TIMEOUT")
        if known and (attempts := parts(row["worker"])):
            found[row["user_hash"], row["group"], attempts[-1]] += 1
    return found


def places_of(lines, user):
    return {(group, worker): count for (of, group, worker), count in amounts(lines).items() if of == user}


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8", errors="replace", newline="\n") as log:
        json.dump(figures(line.rstrip("\n") for line in log), sys.stdout)

"""scripts/limits pattern: what matrix-js-sdk asks of a real Synapse: a start, a tour of rooms, messages, listening in busy rooms.

Printed for each part: requests in all, the most at once within a second, and syncs at a time. From the whole it
reckons the burst that a rate needs.

LIMITS_PORT is the first of its 14 ports on 127.0.0.1 (default 18400). Logs: build/e2e/limits.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from tests.bed.processes import ROOT, BedError

from .homeserver import Homeserver, Refused
from .synapse import NO_LIMIT, Synapse

HERE = Path(__file__).resolve().parent
ROOMS, MEMBERS = 15, 30
# Messages a second in the rooms that a client listens to.
BUSY = 5
RATES = {"sync": (1, 2, 5, 10), "sliding_sync": (1, 2, 5, 10), "send": (1, 2, 5), "media": (1, 5, 10, 20),
         "everything": (5, 10, 20, 50)}


def main() -> int:
    bed = Bed(ROOT / "build/e2e/limits", int(os.environ.get("LIMITS_PORT", "18400")))
    try:
        bed.start()
        pattern(bed)
        return 0
    except (BedError, Refused) as error:
        print(f"scripts/limits: {error}", file=sys.stderr)
        return 1
    finally:
        bed.stop()


class Bed(Synapse):
    """A Synapse that limits nobody itself."""

    def rate_limits(self) -> dict:
        return {**super().rate_limits(), "rc_room_creation": NO_LIMIT, "rc_joins_per_room": NO_LIMIT}


def group(method: str, path: str) -> str:
    """The group of the deployment file that counts a request."""
    if path.endswith("/sync"):
        return "sliding_sync" if method == "POST" else "sync"
    if "/media/" in path:
        return "media"
    if method in ("PUT", "POST") and any(f"/{what}/" in path for what in ("send", "state", "redact")):
        return "send"
    return "everything"


def install() -> Path:
    """The client's folder, with matrix-js-sdk in it."""
    folder = ROOT / "build/e2e/pattern"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "client.mjs"):
        (folder / name).write_text((HERE / "pattern" / name).read_text())
    if not (folder / "node_modules/matrix-js-sdk").exists():
        done = subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=folder, check=False)
        if done.returncode:
            raise BedError("npm install failed. Fix: install Node.js 20 or newer with npm")
    return folder


def pattern(bed: Synapse) -> None:
    """A person with an account in ROOMS rooms of MEMBERS members each."""
    folder = install()
    homeserver = Homeserver(bed)
    names = ["alice", *(f"member{n}" for n in range(MEMBERS))]
    with ThreadPoolExecutor(6) as pool:
        users = list(pool.map(homeserver.register, names))
        tokens = list(pool.map(lambda user: homeserver.login(user, "PHONE")["access_token"], users))
    rooms = [homeserver.call("POST", "/_matrix/client/v3/createRoom", {"preset": "public_chat", "name": f"Room {n}"},
                             token=tokens[0])["room_id"] for n in range(ROOMS)]

    def inhabit(room: str) -> None:
        for number, token in enumerate(tokens[1:]):
            homeserver.call("POST", f"/_matrix/client/v3/join/{quote(room)}", {}, token=token)
            say(homeserver, room, token, f"{number}")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(inhabit, rooms))
    for kind in ("sync", "sliding"):
        login = homeserver.login(users[0], f"ELEMENT{kind.upper()}")
        count(bed, homeserver, folder, kind, users[0], login, rooms, tokens[1:])


def say(homeserver: Homeserver, room: str, token: str, what: str) -> None:
    path = f"/_matrix/client/v3/rooms/{quote(room)}/send/m.room.message/{time.monotonic_ns()}"
    homeserver.call("PUT", path, {"msgtype": "m.text", "body": what}, token=token)


def count(bed, homeserver, folder, kind, user, login, rooms, tokens) -> None:
    """Runs the client once, and reads what it says."""
    url = f"http://127.0.0.1:{bed.main_port}"
    command = ["node", "client.mjs", url, user, login["access_token"], login["device_id"], kind,
               "start", "rooms", "write", "listen"]
    stopped = threading.Event()

    def chatter():
        started = time.monotonic()
        for number in range(20 * BUSY):
            if stopped.wait(max(0, started + number / BUSY - time.monotonic())):
                return
            say(homeserver, rooms[number % len(rooms)], tokens[number % len(tokens)], "news")

    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as client:
        lines = []
        for text in client.stdout:
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
            if lines[-1].get("listens"):
                threading.Thread(target=chatter, daemon=True).start()
        stopped.set()
    if client.returncode or lines[-1].get("part") != "end":
        raise BedError(f"the client ended with {client.returncode} in part {[line['part'] for line in lines if 'part' in line][-1]}")
    report(kind, lines)


def report(kind: str, lines: list[dict]) -> None:
    """The figures of each part, and the burst that a rate needs."""
    part, waiting, most_waiting = "", {}, Counter()
    times: dict[tuple[str, str], list[float]] = {}
    refused = Counter()
    everything: dict[str, list[float]] = {}
    for line in lines:
        if "part" in line:
            part = line["part"]
        elif "request" in line:
            name = group(line["method"], line["path"])
            times.setdefault((part, name), []).append(line["at"])
            everything.setdefault(name, []).append(line["at"])
            if name != "everything":
                everything.setdefault("everything", []).append(line["at"])
            if name in ("sync", "sliding_sync"):
                waiting[line["request"]] = line["at"]
                most_waiting[part] = max(most_waiting[part], len(waiting))
        elif "ends" in line:
            waiting.pop(line["ends"], None)
            refused[line["status"]] += 1
    print(f"matrix-js-sdk, {kind}: answers by status {dict(sorted(refused.items()))}")
    for (part, name), found in times.items():
        print(f"  {part:<7} {name:<13} {len(found):>4} requests, at most {most_within(found, 1)} in a second"
              + (f", {most_waiting[part]} at a time" if "sync" in name else ""))
    for name, found in everything.items():
        needs = ", ".join(f"{burst_for(sorted(found), rate)} at {rate}/s" for rate in RATES[name])
        print(f"  burst that {name} needs: {needs}")


def most_within(times: list[float], seconds: float) -> int:
    return max(sum(start <= at < start + seconds for at in times) for start in times)


def burst_for(times: list[float], rate: float) -> int:
    """The least burst with which nginx's limit_req refuses none of these: ngx_http_limit_req_lookup()'s reckoning."""
    excess, most, last = 0.0, 0.0, None
    for at in times:
        excess = 0.0 if last is None else max(0.0, excess - rate * (at - last) + 1)
        most, last = max(most, excess), at
    return -(-int(most * 1000) // 1000)


if __name__ == "__main__":
    sys.exit(main())

"""What `balance` and its relatives say of logs, held against a plain computation and against a real nginx."""

import collections
import gzip
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import bed
import moving
from dns import NameServer

sys.path.insert(0, str(bed.TESTS / "logs"))

import compare  # noqa: E402 - it stands in the folder named above
import generate  # noqa: E402
import recompute  # noqa: E402

# The campaign has a million; see companion/tests/logs/campaign.py.
LINES = 30_000


def balance(*args):
    out, err = bed.companion("balance", "--json", *args)
    return json.loads(out), err


def check_balance_equals_a_plain_computation():
    """`balance` gives the figures that a plain computation gives, for each form of log, with trouble in it"""
    with tempfile.TemporaryDirectory() as folder:
        for form in ("text", "json", "readme"):
            lines = list(generate.log(lines=LINES, form=form, users=500))
            log = Path(folder, f"{form}.log")
            log.write_text("".join(line + "\n" for line in lines))
            got, _ = balance(log)
            compare.same(got, recompute.figures(lines), timed=form != "readme")
    return f"{LINES} lines of each"


def check_balance_reads_parts_in_any_order():
    """rotated parts, compressed or not and named newest first, and standard input give the same figures as one log"""
    lines = [line + "\n" for line in generate.log(lines=LINES, users=300)]
    with tempfile.TemporaryDirectory() as folder:
        whole, new, old = (Path(folder, name) for name in ("whole.log", "access.log", "access.log.1.gz"))
        whole.write_text("".join(lines))
        old.write_bytes(gzip.compress("".join(lines[:LINES // 2]).encode()))
        new.write_text("".join(lines[LINES // 2:]))
        wanted, _ = balance(whole)
        assert balance(new, old)[0] == wanted
        piped = subprocess.run([bed.COMPANION, "balance", "--json", "-"], input=gzip.compress("".join(lines).encode()),
                               capture_output=True, check=True)
        assert json.loads(piped.stdout) == wanted
        assert b"MB/s" in piped.stderr, piped.stderr


def check_balance_takes_a_part_of_the_log():
    """--since, --until, --group and --user count what they say"""
    lines = list(generate.log(lines=LINES, users=300))
    since, until = generate.START + 86_400, generate.START + 2 * 86_400
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "access.log")
        log.write_text("".join(line + "\n" for line in lines))
        part = [line for line in lines if (row := recompute.parse(line)) and row["group"] == "synapse_sync"
                and "2026-11-26" in row["time"]]
        user = "@user7:example.org"
        got, _ = balance(log, "--since", since, "--until", "2026-11-27", "--group", "synapse_sync", "--user", user)
        wanted = recompute.figures(part)
        got["lines"] -= got["passed_over"] + sum(broken["count"] for broken in got["broken"])
        got["broken"] = []
        compare.same(got, wanted)
        assert until - since == 86_400
        digest = recompute.hash_of(user)
        places = {(place["group"], place["worker"]): place["requests"] for place in got["user"]["places"]}
        assert places == recompute.places_of(part, digest) and places, (places, digest)
        assert got["user"]["user"] == digest and user not in json.dumps(got)


def check_balance_stays_within_its_error():
    """with room for a tenth of the users, figures of workers stay exact, and those of users within the stated error"""
    lines = list(generate.log(lines=LINES, users=4_000, add_after=0))
    wanted = recompute.figures(lines)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "access.log")
        log.write_text("".join(line + "\n" for line in lines))
        got, _ = balance(log, "--exact-users", 400)
    assert not got["exact"]
    assert math.isclose(got["users"], wanted["users"], rel_tol=0.05), (got["users"], wanted["users"])
    compare.workers(got, wanted)
    everyone = recompute.amounts(lines)
    checked = 0
    for group in got["groups"]:
        for worker in group["workers"]:
            for heavy in worker["heaviest"]:
                true = everyone[heavy["user"], group["group"], worker["worker"]]
                if "at_most" in heavy:
                    assert true <= heavy["at_most"] <= true + got["error"], (heavy, true)
                    checked += 1
                else:
                    assert heavy["requests"] == true, (heavy, true)
    assert checked, "nobody heavy was in the sketch"
    return f"{checked} heavy users out of the sketch, error {got['error']}"


def check_nothing_secret_is_shown():
    """no user id and no token of a log or of an argument is shown, also where it is wrong"""
    token = "syt_YWxpY2U_abcdefghijklmnopqrst_0ab1cd"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "access.log")
        log.write_text(f"2026-11-24T00:03:56+00:00 /x?access_token={token} 200 user=@alice:example.org lookup=HIT worker=a:1\n"
                       f"{token}\n"
                       f"2026-11-24T00:03:57+00:00 /x?access_token={token} 200 user=86f01aef21b1acd3 lookup=HIT worker=a:1\n")
        for args in (["--user", "@alice:example.org"], ["--json", "--user", "86f01aef21b1acd3"]):
            out, err = bed.companion("balance", log, *args)
            assert "syt_" not in out + err and "alice" not in out + err, out + err
            assert "86f01aef21b1acd3" in out, out
        out, err = bed.companion("balance", log, "--user", token, expect=2)
        assert "syt_" not in out + err, err


def rendered_by_a_browser(page, picture=None):
    """The text of a page after a browser has laid it out, and a picture of it among the artefacts."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert browser, "no chromium: scripts/companion-test installs it"
    with tempfile.TemporaryDirectory() as profile:
        args = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}",
                "--window-size=1100,1800"]
        if picture:
            picture.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run([*args, f"--screenshot={picture}", page.as_uri()], capture_output=True, check=True, timeout=60)
        done = subprocess.run([*args, "--dump-dom", page.as_uri()], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def check_pages_are_whole_and_have_the_figures():
    """the pages of --html need nothing from elsewhere, open in a browser, and have the figures of the report and a plot"""
    pictures = bed.ROOT / "build" / "insight"
    with tempfile.TemporaryDirectory() as folder:
        log, page = Path(folder, "access.log"), Path(folder, "page.html")
        log.write_text("".join(line + "\n" for line in generate.log(lines=LINES, users=300)))
        got, _ = balance(log, "--html", page)
        seen = rendered_by_a_browser(page, pictures / "balance.png")
        whole(page, seen, plots=(5,))
        workers = [worker for group in got["groups"] for worker in group["workers"]]
        for worker in workers:
            assert f'<td>{worker["worker"]}</td>' in seen and f'<td>{worker["requests"]:,}</td>' in seen, worker
            assert worker["heaviest"] == [] or worker["heaviest"][0]["user"] in seen
        got = simulate(log, "--workers", "10.0.0.1:8083,10.0.0.2:8083=2", "--html", page)
        seen = rendered_by_a_browser(page, pictures / "simulate.png")
        whole(page, seen, plots=(2,))
        assert f'{got["moved"]["users"]:,} ({got["moved"]["share"]:.1%})' in seen
        for share in got["wanted"]["workers"]:
            assert f'<td>{share["requests"]:,}</td>' in seen, share
    return "pictures in build/insight"


def whole(page, seen, plots):
    text = page.read_text()
    # A browser that has parsed a plot has its elements; the file alone could hold anything.
    assert seen.count("<svg") in plots and seen.count("<polyline") + seen.count("<rect") > max(plots), seen[:500]
    assert "prefers-color-scheme: dark" in text
    for foreign in ("<script", "<link", "<img", "@import", "src=", "href="):
        assert foreign not in text, foreign
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {"http://www.w3.org/2000/svg"}, text[:500]


def check_the_worked_example_is_true():
    """what docs/companion/planning.md shows of its commands is what they show"""
    text = (bed.ROOT / "docs" / "companion" / "planning.md").read_text()
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    shown = [(command.split(), output) for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", "".join(blocks), re.MULTILINE)]
    with tempfile.TemporaryDirectory() as folder:
        for (program, *args), output in shown:
            if program.endswith("generate.py"):
                command = [sys.executable, bed.ROOT / program, *args[:args.index(">")]]
                target = Path(folder, args[args.index(">") + 1])
                target.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
                continue
            done = subprocess.run([bed.COMPANION, *args], capture_output=True, text=True, check=True, cwd=folder)
            # An ellipsis at the end stands for more.
            wanted = output.removesuffix("…\n")
            same = done.stdout.startswith(wanted) if wanted != output else done.stdout == wanted
            assert same and wanted, f"{' '.join(args)} shows\n{done.stdout}"
    assert len(shown) == 3, shown


def simulate(*args):
    return json.loads(bed.companion("simulate", "--json", *args)[0])


def check_simulate_equals_a_plain_computation():
    """`simulate` gives the shares, the moves and the evenness that a plain computation with a ring of its own gives"""
    lines = list(generate.log(lines=LINES, users=800, add_after=0))
    requests = collections.Counter()
    for (user, group, _), count in recompute.amounts(lines).items():
        if group == "synapse_sync":
            requests[user] += count
    today, then = generate.sync_workers(4), [("10.0.0.1:8083", 2), *generate.sync_workers(6)[2:]]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "access.log")
        log.write_text("".join(line + "\n" for line in lines))
        got = simulate(log, "--workers", ",".join(f"{name}={weight}" for name, weight in then), "--gradually", "2h",
                       "--target", "1.3", "--at-most", "30")
    assert got["group"] == "synapse_sync" and got["check"]["otherwise"] == 0, got["check"]
    assert got["check"]["failed_over"] == recompute.figures(lines)["failovers"] > 0
    homes = {}
    for side, servers in (("today", today), ("wanted", then)):
        ring = generate.Ring(servers)
        homes[side] = {user: ring.pick(user) for user in requests}
        for worker, weight in servers:
            own = [user for user, home in homes[side].items() if home == worker]
            found = next(share for share in got[side]["workers"] if share["worker"] == worker)
            assert (found["users"], found["requests"], found["weight"]) == (len(own), sum(requests[user] for user in own), weight), found
    movers = [user for user in requests if homes["today"][user] != homes["wanted"][user]]
    assert got["moved"]["users"] == len(movers)
    assert math.isclose(got["moved"]["share_of_requests"], sum(requests[user] for user in movers) / requests.total())
    # Evenly over 120 minutes, and by chance more in one of them.
    assert len(movers) / 120 <= got["moved"]["peak_in_a_minute"] <= len(movers) / 120 + 6 * math.sqrt(len(movers) / 120), got["moved"]
    for number in got["numbers"]:
        servers = [*then[:number["workers"]], *((f"10.0.0.{n}:8083", 1) for n in range(7, 7 + max(0, number["workers"] - len(then))))]
        ring = generate.Ring(servers)
        loads = collections.Counter({name: 0 for name, _ in servers})
        for user, count in requests.items():
            loads[ring.pick(user)] += count
        assert math.isclose(number["largest_share"], max(loads.values()) / requests.total()), (number, loads)
        even = max(loads[name] / weight for name, weight in servers) * sum(weight for _, weight in servers) / requests.total()
        assert math.isclose(number["evenness"], even), (number, even)
    keeping = [number["workers"] for number in got["numbers"] if number["evenness"] <= 1.3]
    assert got["recommended"]["most_workers"] == max(keeping)
    assert got["recommended"]["fewest_workers"] == min(n["workers"] for n in got["numbers"] if n["largest_share"] <= 0.3)


RINGS = {
    "addresses": ("", ["127.0.0.1", "127.0.0.1", "127.0.0.1"], (1, 1, 1)),
    "weights": ("", ["127.0.0.1", "127.0.0.1", "127.0.0.1"], (3, 1, 2)),
    "names": ('\n[resolver]\naddresses = ["127.0.0.1:20053"]\nipv6 = false\n', ["one.test", "two.test", "three.test"], (1, 2, 1)),
}


def check_todays_ring_explains_a_real_log():
    """what `simulate` takes for today's ring is where nginx sent every request that did not fail over: by address, by weight, by name"""
    names = NameServer(20053)
    workers = bed.Workers()
    counted = {}
    for name, port in [("main", 20108), ("sync1", 20111), ("sync2", 20112), ("sync3", 20113)]:
        workers.start(name, port=port)
    for name in ("one", "two", "three"):
        names.a(f"{name}.test", "127.0.0.1")
    try:
        for kind, (resolver, hosts, weights) in RINGS.items():
            counted[kind] = ring_of_a_real_log(workers, resolver, hosts, weights)
    finally:
        workers.stop_all()
        names.close()
    return ", ".join(f"{kind} {checked}" for kind, checked in counted.items())


def ring_of_a_real_log(workers, resolver, hosts, weights):
    toml = '[main]\nhost = "127.0.0.1"\nport = 20108\n[listen]\nclient = [20000]\n' + "".join(
        f'[[workers]]\nname = "sync{i + 1}"\ntype = "sync"\nhost = "{host}"\nport = {20111 + i}\nweight = {weight}\n'
        for i, (host, weight) in enumerate(zip(hosts, weights, strict=True))) + resolver
    with bed.running(toml) as nginx:
        client = bed.Client()
        # Names are resolved after the start.
        moving.until(10, lambda: ask(client, 0).status == 200, "the workers are not there")
        for n in range(300):
            assert ask(client, n).status == 200
        workers.stop("sync3")
        for n in range(60):
            assert ask(client, n).status == 200
        workers.start("sync3", port=20113)
        log = nginx.directory / "access.log"
        moving.until(5, lambda: nginx.log().count("\n") >= 361, "nginx did not log everything")
        attempts = [recompute.parts(recompute.parse(line)["worker"]) for line in nginx.log().splitlines()]
        args = ["simulate", log, "--json", "--today-deployment", nginx.directory / "deployment.toml", "--workers", "a:1,b:1"]
        got = json.loads(bed.companion(*args)[0])
        assert got["check"]["otherwise"] == 0, got["check"]
        # Nothing was left out but what failed over, and what came before the names were known.
        single = [tried for tried in attempts if len(tried) == 1 and ":" in tried[0]]
        assert got["check"]["requests"] == len(single) > 300, (got["check"], len(single))
        assert got["check"]["failed_over"] == len(attempts) - len(single) > 0, got["check"]
        # With other weights it does not fit: the check can fail.
        other = simulate(log, "--today", ",".join(f"{host}:{20111 + i}={4 - weight}" for i, (host, weight) in enumerate(zip(hosts, weights, strict=True))),
                         "--workers", "a:1")
        assert other["check"]["otherwise"] > 0, other["check"]
        return f"{len(single)} requests, {len(attempts) - len(single)} failed over"


def ask(client, n):
    """Every tenth token is one that whoami does not answer for, so that the token's own hash chooses."""
    token = f"mat_{n}_unknown" if n % 10 == 9 else f"syt_user{n}_abcdefghijklmnopqrst_0ab1cd"
    return client.ask("GET", "/_matrix/client/v3/sync?since=s1", {"Authorization": f"Bearer {token}"})

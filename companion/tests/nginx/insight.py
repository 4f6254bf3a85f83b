"""What `balance` and its relatives say of logs, held against a plain computation and against a real nginx."""

import gzip
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import bed

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

"""Whether what `balance --json` says is what `recompute` says."""

import math


def same(got, wanted, timed=True):
    assert got["exact"], "the table of users was too small"
    for key in ("lines", "requests", "errors", "failovers", "users"):
        assert got[key] == wanted[key], (key, got[key], wanted[key])
    assert sum(broken["count"] for broken in got["broken"]) == wanted["broken"], (got["broken"], wanted["broken"])
    lookups = {lookup["name"]: lookup["count"] for lookup in got["lookups"] if lookup["count"]}
    assert lookups == wanted["lookups"], (lookups, wanted["lookups"])
    tokens = sum(group["moved"]["fallback_tokens_about"] for group in got["groups"])
    assert math.isclose(tokens, wanted["tokens"], rel_tol=0.05, abs_tol=2), (tokens, wanted["tokens"])
    workers(got, wanted)
    for group in got["groups"]:
        of_group(group, wanted["groups"][group["group"]], timed)
    means = [group["times"]["mean"] for group in got["groups"]]
    assert means == sorted(means, reverse=True), means


def workers(got, wanted):
    """What is exact however many users there are."""
    assert {group["group"] for group in got["groups"]} == set(wanted["groups"])
    for group in got["groups"]:
        plain = wanted["groups"][group["group"]]
        assert group["requests"] == plain["requests"] and group["unserved"] == plain["unserved"], group
        assert {worker["worker"] for worker in group["workers"]} == set(plain["workers"])
        for worker in group["workers"]:
            own = plain["workers"][worker["worker"]]
            found = {"requests": worker["requests"], "ms": round(worker["seconds"] * 1_000), "bytes": worker["bytes"],
                     "errors": worker["errors"], "failed": worker["failed_attempts"]}
            assert found == {key: own[key] for key in found}, (worker, own)


def of_group(group, plain, timed):
    for worker in group["workers"]:
        own = plain["workers"][worker["worker"]]
        assert worker["users"] == own["users"], (worker, own)
        heaviest = [[heavy["user"], heavy["requests"], round(heavy["seconds"] * 1_000), heavy["bytes"]] for heavy in worker["heaviest"]]
        assert heaviest == own["heaviest"], (heaviest, own["heaviest"])
    moved = {key: count for key, count in group["moved"].items() if count and not key.startswith("fallback")}
    assert moved == plain["moved"], (moved, plain["moved"])
    if group["evenness"]:
        loads = {"users": "users", "requests": "requests", "seconds": "ms"}
        for key, figure in loads.items():
            amounts = [worker[figure] for worker in plain["workers"].values()]
            even = max(amounts) * len(amounts) / sum(amounts) if sum(amounts) else 1
            assert math.isclose(group["evenness"][key]["largest_over_mean"], even), (key, group["evenness"], even)
    times, known = group["times"], plain["times"]
    assert times["requests"] == len(known) and bool(known) == timed, (times, len(known))
    if known:
        assert math.isclose(times["mean"], sum(known) / len(known) / 1_000, abs_tol=1e-9), times
        assert times["largest"] == known[-1] / 1_000
        for part in (50, 95, 99):
            true = known[max(math.ceil(len(known) * part / 100) - 1, 0)] / 1_000
            # The width of a bucket.
            assert true <= times[f"p{part}"] <= true * 33 / 32 + 1e-9, (part, times, true)

"""Limits by user and by address, and what is spread otherwise than usual, in a real nginx."""

import functools
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import bed
from edge import CORS, small
from endpoints import all_workers, everything

SYNC = "/_matrix/client/v3/sync?since=s1"
SLIDING = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
# No check here takes a minute, so no refused request is let in by the rate: it is the burst that counts, and one more.
SLOW = "{ per_second = 0.01666666666666666666, burst = 2 }"


def token(user, device="phone"):
    """A token of a user; the stand-in for whoami reads the name in it."""
    return {"Authorization": f"Bearer syt_{user}_{device}"}


def limited(more):
    return small().replace("[listen]\nclient = [20000]", '[listen]\nclient = [20000]\ntrusted_proxies = ["127.0.0.1"]') + more


def logged(nginx, wanted):
    """The access log, when it has so many lines: nginx writes a line when the client has its answer already."""
    for _ in range(250):
        if nginx.log().count("\n") >= wanted:
            break
        time.sleep(0.02)
    assert nginx.log().count("\n") == wanted, nginx.log()
    return nginx.log()


def statuses(headers, method="GET", path=SYNC, times=5):
    client = bed.Client()
    return [client.ask(method, path, headers).status for _ in range(times)]


def check_a_user_is_refused_in_synapse_s_words():
    """what is over a user's limit gets 429, M_LIMIT_EXCEEDED with retry_after_ms, Retry-After and CORS; other devices count"""
    all_workers()
    with bed.running(limited(f"[limits.user]\nsync = {SLOW}\n")) as nginx:
        assert statuses(token("alice"), times=2) == [200] * 2
        assert statuses(token("alice", "laptop"), times=2) == [200, 429], "every device of a user counts"
        answer = bed.Client().ask("GET", SYNC, token("alice", "tablet"))
        told = answer.json()
        assert (answer.status, told["errcode"], told["error"]) == (429, "M_LIMIT_EXCEEDED", "Too Many Requests"), told
        assert told["retry_after_ms"] == 60_000 and answer.headers["retry-after"] == "60", (told, answer.headers)
        assert CORS.items() <= answer.headers.items() and answer.headers["content-type"] == "application/json"
        assert "Retry-After" in answer.headers["access-control-expose-headers"]
        assert statuses(token("bob"), times=3) == [200] * 3, "others are not limited by it"
        assert statuses(token("alice"), path="/_matrix/client/v3/joined_rooms") == [200] * 5, "nor is what is no sync"
        assert bed.Client().ask("OPTIONS", SYNC, token("alice")).status == 204
        log = logged(nginx, 14)
    assert log.count("group=synapse_sync") == 8 and log.count("refused=user_rate limit=sync") == 2, log
    assert len(re.findall(r"refused=- limit=everything", log)) == 5, log


def check_each_group_has_its_limit():
    """sync, sliding_sync, send and media are counted apart, and everything counts them all"""
    all_workers()
    room = "/_matrix/client/v3/rooms/!a:b"
    kinds = [("GET", SYNC, "sync"), ("GET", "/_matrix/client/r0/events?from=s1", "sync"), ("POST", SLIDING, "sliding_sync"),
             ("PUT", f"{room}/send/m.room.message/1", "send"), ("PUT", f"{room}/state/m.room.name/", "send"),
             ("GET", "/_matrix/client/v1/media/thumbnail/a/b", "media"), ("POST", "/_matrix/media/v3/upload", "media")]
    groups = ["sync", "sliding_sync", "send", "media"]
    lines = 0
    with bed.running(limited("[limits.user]\n" + "".join(f"{group} = {SLOW}\n" for group in groups))) as nginx:
        for number, (method, path, group) in enumerate(kinds):
            assert statuses(token(f"user{number}"), method, path, 4) == [200] * 3 + [429], path
            for other, there, elsewhere in kinds:
                if elsewhere != group:
                    assert bed.Client().ask(other, there, token(f"user{number}x{elsewhere}")).status == 200
            groups_so_far = [kind[2] for kind in kinds[: number + 1]]
            # Four of this kind, and one of each kind of the other groups.
            lines += 4 + len([kind for kind in kinds if kind[2] != group])
            assert logged(nginx, lines).count(f"refused=user_rate limit={group}") == groups_so_far.count(group)
        # Reading a room's state is no event that is sent.
        assert statuses(token("reader"), "GET", f"{room}/state/m.room.name/") == [200] * 5
    with bed.running(limited(f"[limits.user]\neverything = {SLOW}\n")):
        client = bed.Client()
        got = [client.ask(method, path, token("alice")).status for method, path, _ in kinds]
        assert got == [200] * 3 + [429] * 4, got
        assert client.ask("GET", "/_matrix/client/v3/unheard_of", token("alice")).status == 429, "what main serves counts too"
        assert client.ask("GET", "/_matrix/federation/v1/version", token("alice")).status == 200, "other servers do not"


def check_syncs_at_a_time_are_exact():
    """of a user's parallel syncs, whatever their tokens and addresses, exactly as many wait as may; others are not held up"""
    workers = all_workers()
    got, lock = [], threading.Lock()

    def sync(n):
        who = {**token("alice", f"device{n % 20}"), "X-Forwarded-For": f"192.0.2.{n % 20}"}
        method, path = ("POST", SLIDING) if n % 2 else ("GET", SYNC)
        answer = bed.Client().ask(method, path, who)
        with lock:
            got.append((answer.status, answer.headers.get("retry-after")))

    try:
        with bed.running(limited("[limits.user]\nparallel_syncs = 10\n")) as nginx:
            # All tokens are known before, so that no lookup is late on a busy machine.
            for n in range(20):
                bed.Client().ask("GET", "/_matrix/client/v3/joined_rooms", token("alice", f"device{n}"))
            workers.delay["sync1"] = workers.delay["sync2"] = 6
            threads = [threading.Thread(target=sync, args=(n,)) for n in range(60)]
            for thread in threads:
                thread.start()
            assert bed.Client().ask("GET", SYNC, token("bob")).status == 200
            for thread in threads:
                thread.join()
            assert got.count((200, None)) == 10 and got.count((429, "5")) == 50, got
            assert logged(nginx, 81).count("refused=user_parallel") == 50
            workers.delay.clear()
            assert bed.Client().ask("GET", SYNC, token("alice")).status == 200, "when they are over, there is room"
    finally:
        workers.delay.clear()


def check_an_address_is_limited_where_no_user_is_known():
    """without a known user the address is limited; known users from there are not, and tokens that nobody knows are"""
    all_workers()
    with bed.running(limited("[limits.address]\nper_second = 0.01666666666666666666\nburst = 2\n")) as nginx:
        here, there = {"X-Forwarded-For": "192.0.2.1"}, {"X-Forwarded-For": "192.0.2.2"}
        login = "/_matrix/client/v3/login"
        assert statuses(here, "POST", login, 4) == [200] * 3 + [429]
        assert statuses({**here, **token("alice")}, path=login) == [200] * 5, "a known user is not an address"
        invented = [bed.Client().ask("GET", SYNC, {**here, "Authorization": f"Bearer invented{n}"}).status for n in range(3)]
        assert invented == [429] * 3, invented
        assert statuses(there, "POST", login, 4) == [200] * 3 + [429]
        log = logged(nginx, 16)
    assert log.count("refused=address_rate limit=everything") == 2 and log.count("refused=address_rate limit=sync") == 3, log


def check_an_ipv6_network_is_limited_as_one_address():
    """the addresses of an IPv6 network of 64 bits count as one, however they are written; other networks have their own"""
    all_workers()
    networks = [
        ["2001:db8:1:2::1", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::9:1", "2001:db8:1:2:9::"],
        ["2001:db8:1:3::1", "2001:db8:1:3::2", "2001:db8:1:3::3", "2001:db8:1:3::4"],
        ["2001:db8::1", "2001:db8::1:2", "2001:db8::1:2:3", "2001:db8::1:2:3:4"],
        ["2001:db8:1::1", "2001:db8:1::1:2", "2001:db8:1:0::3", "2001:db8:1:0::4"],
        ["2001:0:0:1::1", "2001:0:0:1::2", "2001:0:0:1::3", "2001:0:0:1::4"],
        ["fe80::1", "fe80::2:1", "fe80::3:2:1", "fe80::4:3:2:1"],
        ["::1", "::2", "::2:1", "::3:2:1"],
        ["::ffff:192.0.2.1"] * 4,
        ["::ffff:192.0.2.2"] * 4,
        ["192.0.2.3"] * 4,
    ]
    with bed.running(limited("[limits.address]\nper_second = 0.01666666666666666666\nburst = 2\n")):
        for network in networks:
            got = [bed.Client().ask("GET", SYNC, {"X-Forwarded-For": address}).status for address in network]
            assert got == [200] * 3 + [429], (network, got)


def check_whose_lookup_fails_is_limited_by_address():
    """a token that is refused, one whose lookup fails and one whose lookup is late have no user: the address alone limits them"""
    workers = all_workers()
    by_user = f"[limits.user]\neverything = {SLOW}\nsync = {SLOW}\n"
    by_address = "[limits.address]\nper_second = 0.01666666666666666666\nburst = 2\n"
    kinds = {"REFUSED": ("invented", 0), "ERROR": ("nonsense", 0), "TIMEOUT": ("syt_late", 10)}

    def ask(number, status, n):
        name, _ = kinds[status]
        who = {"Authorization": f"Bearer {name}_{n}", "X-Forwarded-For": f"192.0.2.{number}"}
        return bed.Client().ask("GET", SYNC, who).status

    try:
        for more, expected in ((by_user + by_address, [200] * 3 + [429] * 3), (by_user, [200] * 6)):
            with bed.running(limited(more)) as nginx:
                for number, (status, (_, late)) in enumerate(kinds.items()):
                    workers.late_lookups = late
                    with ThreadPoolExecutor(6) as pool:
                        got = sorted(pool.map(functools.partial(ask, number, status), range(6)))
                    assert got == expected, (status, got)
                log = logged(nginx, 18)
            for number, status in enumerate(kinds):
                lines = [line for line in log.splitlines() if line.startswith(f"192.0.2.{number} ")]
                found = {re.search(r"user_hash_status=(\w+)", line)[1] for line in lines}
                # After lookups that were late, the module may ask no more for a moment.
                assert len(lines) == 6 and status in found and found <= {status, "ERROR"}, (found, log)
            assert log.count("refused=address_rate limit=sync") == 3 * expected.count(429), log
    finally:
        workers.late_lookups = 0


def check_some_are_not_limited():
    """listed users, by id and by hash, and listed addresses have no limit, not even as an address"""
    all_workers()
    more = (f'[limits.user]\neverything = {SLOW}\nexempt = ["@bot:example.org", "86f01aef21b1acd3"]\n'
            'exempt_addresses = ["192.0.2.0/28"]\n[limits.address]\nper_second = 0.01666666666666666666\nburst = 2\n')
    with bed.running(limited(more)):
        for user in ("alice", "bot"):
            assert statuses(token(user)) == [200] * 5, user
        assert statuses(token("carol"), times=4) == [200] * 3 + [429]
        for exempt in (token("carol"), {}):
            assert statuses({**exempt, "X-Forwarded-For": "192.0.2.7"}) == [200] * 5, exempt
        assert statuses({"X-Forwarded-For": "192.0.2.17"}, times=4) == [200] * 3 + [429]


def check_a_refusal_is_in_the_json_log():
    """the JSON log has the same words, and a path that main alone serves is counted as everything"""
    all_workers()
    with bed.folder() as prefix:
        (prefix / "deployment.toml").write_text(limited(
            f'[limits.user]\neverything = {SLOW}\n[log]\nformat = "json"\nerror = "stderr"\naccess = "{prefix}/access.log"\n'
            f'[paths]\ntemp = "{prefix}"\npid = "{prefix}/nginx.pid"\n'))
        bed.companion("render", "-d", prefix / "deployment.toml", "--output", prefix, "--nginx", bed.NGINX)
        with bed.Nginx(prefix / "nginx.conf", prefix) as nginx:
            assert statuses(token("alice"), path="/_matrix/client/v3/unheard_of", times=4) == [200] * 3 + [429]
            rows = [json.loads(line) for line in logged(nginx, 4).splitlines()]
            errors = nginx.errors()
    assert [row["refused"] for row in rows] == ["-", "-", "-", "user_rate"], rows
    assert rows[-1]["limit"] == "everything" and rows[-1]["user_hash"] == "86f01aef21b1acd3", rows
    assert "limiting" not in errors, "the error log is not flooded"


def check_client_readers_can_be_spread_by_user():
    """[spread] client_reader = "user": a user has one reader, users are spread over both, and lookups take turns"""
    workers = all_workers()
    more = '\n[[workers]]\nname = "generic2"\ntype = "client_reader"\nhost = "127.0.0.1"\nport = 20114\n'
    more += '\n[spread]\nclient_reader = "user"\n'
    text = small() + more
    workers.seen.clear()
    with bed.running(text) as nginx:
        homes = {}
        for n in range(40):
            answer = bed.Client().ask("GET", "/_matrix/client/v3/joined_rooms", token(f"user{n % 10}", f"device{n}"))
            homes.setdefault(n % 10, set()).add(answer.worker)
        out, _ = bed.companion("route", "GET", "/_matrix/client/v3/joined_rooms", "--user", "@user3:example.org", "-d",
                               nginx.directory / "deployment.toml", "--nginx", bed.NGINX)
    assert all(len(home) == 1 for home in homes.values()) and len(set().union(*homes.values())) == 2, homes
    # The stand-ins have names of another deployment: its ports say which they are.
    names = dict(re.findall(r'name = "(\w+)"\ntype = .*\nhost = .*\nport = (\d+)', everything()))
    named = re.search(r"^worker +\S+ +127.0.0.1:(\d+)", out, re.M)
    assert {names[worker] for worker in homes[3]} == {named[1]}, (homes, out)
    asked = {name for name, _, target in workers.seen if "whoami" in target}
    assert asked == set().union(*homes.values()), asked


def check_refusals_are_in_the_figures():
    """what was refused is in the module's figures, by group and by address, and costs no lookup of its own"""
    all_workers()
    more = f"[limits.user]\nsync = {SLOW}\nmedia = {SLOW}\n[limits.address]\nper_second = 0.01666666666666666666\nburst = 2\n"
    with bed.running(limited(more + '[status]\nlisten = "127.0.0.1:20003"\n')):
        assert statuses(token("alice"), times=5) == [200] * 3 + [429] * 2
        assert statuses(token("alice"), path="/_matrix/client/v1/media/thumbnail/a/b", times=4) == [200] * 3 + [429]
        assert statuses({}, "POST", "/_matrix/client/v3/login", 6) == [200] * 3 + [429] * 3
        text = bed.Client(20003).ask("GET", "/metrics").text.decode()
    found = dict(re.findall(r'^matrix_user_hash_limited_total\{zone="synapse_users",limit="(\w+)"\} (\d+)$', text, re.M))
    assert {limit: int(count) for limit, count in found.items() if count != "0"} == {"sync": 2, "media": 1, "address": 3}, found
    counts = dict(re.findall(r'^matrix_user_hash_requests_total\{zone="synapse_users",status="(\w+)"\} (\d+)$', text, re.M))
    assert sum(map(int, counts.values())) == 15 and counts["miss"] == "1", counts

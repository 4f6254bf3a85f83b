"""Workers that move and workers that restart, with nginx running all the while."""

import collections
import contextlib
import signal
import threading
import time

import bed
from dns import NameServer

DNS = 20053
RESOLVER = f'\n[resolver]\naddresses = ["127.0.0.1:{DNS}"]\nipv6 = false\n'
SYNC = "/_matrix/client/v3/sync?since=s1"


def token(n):
    return {"Authorization": f"Bearer syt_user{n}_abcdefghijklmnopqrst_0ab1cd"}


@contextlib.contextmanager
def workers(*started):
    """Workers for one check, each (name, host, port)."""
    bench = bed.Workers()
    for name, host, port in started:
        bench.start(name, host=host, port=port)
    try:
        yield bench
    finally:
        bench.stop_all()


@contextlib.contextmanager
def name_server():
    server = NameServer(DNS)
    try:
        yield server
    finally:
        server.close()


def until(seconds, condition, message):
    """Waits for a condition; returns how long it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, message
        time.sleep(0.1)
    return time.monotonic() - started


def check_traffic_follows_dns():
    """when a worker's address changes in DNS, its users follow without a reload, and keep their worker's name"""
    toml = ('[main]\nhost = "main.test"\nport = 20208\n'
            '[[workers]]\nname = "sync1"\ntype = "sync"\nhost = "sync1.test"\nport = 20211\n'
            '[[workers]]\nname = "sync2"\ntype = "sync"\nhost = "sync2.test"\nport = 20211\n'
            "[listen]\nclient = [20000]" + RESOLVER)
    with name_server() as names, workers(("main", "127.0.0.1", 20208), ("one", "127.0.0.2", 20211),
                                         ("two", "127.0.0.3", 20211), ("moved", "127.0.0.4", 20211)) as bench:
        for name, address in (("main", "127.0.0.1"), ("sync1", "127.0.0.2"), ("sync2", "127.0.0.3")):
            names.a(f"{name}.test", address)
        with bed.running(toml) as nginx:
            client = bed.Client()
            until(10, lambda: client.ask("GET", SYNC, token(0)).status == 200, "names were not resolved")
            before = {n: client.ask("GET", SYNC, token(n)).worker for n in range(40)}
            assert set(before.values()) == {"one", "two"}, before
            out, _ = bed.companion("route", "GET", SYNC, "-d", nginx.directory / "deployment.toml", "--nginx", bed.NGINX,
                                   "--user", "@user0:example.org")
            assert ("sync1.test" if before[0] == "one" else "sync2.test") in out, out
            bench.stop("two")
            names.a("sync2.test", "127.0.0.4")
            mover = next(n for n, worker in before.items() if worker == "two")
            took = until(15, lambda: client.ask("GET", SYNC, token(mover)).worker == "moved", "nobody followed")
            for n, worker in before.items():
                assert client.ask("GET", SYNC, token(n)).worker == {"one": "one", "two": "moved"}[worker], n
        return f"followed after {took:.1f}s, the time to live being {names.ttl}s"


def check_a_service_gains_and_loses_pods():
    """SRV records bring workers and take them away; only their share of users moves, whatever weights CoreDNS gives"""
    toml = ('[main]\nhost = "127.0.0.1"\nport = 20208\n'
            '[[workers]]\nname = "sync"\ntype = "sync"\nhost = "sync.matrix.test"\nservice = "http"\n'
            "[listen]\nclient = [20000]" + RESOLVER)
    pods = [(f"sync-{i}.sync.matrix.test", 20211) for i in range(3)]
    with name_server() as names, workers(("main", "127.0.0.1", 20208), *((f"pod{i}", f"127.0.0.{i + 2}", 20211) for i in range(3))):
        for i, (host, _) in enumerate(pods):
            names.a(host, f"127.0.0.{i + 2}")
        names.srv("_http._tcp.sync.matrix.test", *pods[:2])
        with bed.running(toml) as nginx:
            client = bed.Client()
            until(10, lambda: client.ask("GET", SYNC, token(0)).status == 200, "the service was not resolved")

            def everyone():
                return {n: client.ask("GET", SYNC, token(n)).worker for n in range(60)}

            two = everyone()
            assert set(two.values()) == {"pod0", "pod1"}, two
            names.srv("_http._tcp.sync.matrix.test", *pods)
            took = until(15, lambda: "pod2" in everyone().values(), "the third pod got nobody")
            three = everyone()
            assert all(three[n] in (two[n], "pod2") for n in two), "somebody moved between old pods"
            for n in range(0, 60, 7):
                # As dig prints them, with a dot at the end.
                members = [part for host, _ in pods for part in ("--member", f"{host}.")]
                out, _ = bed.companion("route", "GET", SYNC, "-d", nginx.directory / "deployment.toml", "--nginx", bed.NGINX,
                                       "--user", f"@user{n}:example.org", *members)
                assert f"worker    sync-{three[n][-1]}.sync.matrix.test" in out, (n, three[n], out)
            names.srv("_http._tcp.sync.matrix.test", *pods[:2])
            until(15, lambda: "pod2" not in everyone().values(), "the third pod kept its users")
            assert everyone() == two
        return f"a new pod had users after {took:.1f}s"


def check_a_restarting_worker_costs_nobody_anything():
    """while a sync worker restarts its users are served by another; no client sees an error without CORS headers"""
    toml = (bed.TESTS / "deployments" / "small.toml").read_text()
    seen = collections.Counter()
    bad = []
    stop = threading.Event()
    started = [("main", "127.0.0.1", 20108), ("sync1", "127.0.0.1", 20111), ("sync2", "127.0.0.1", 20112), ("generic1", "127.0.0.1", 20113)]

    def load(first):
        client = bed.Client()
        while not stop.is_set():
            for n in range(first, first + 10):
                for method, path in (("GET", SYNC), ("PUT", "/_matrix/client/v3/rooms/!a:example.org/send/m.room.message/1")):
                    answer = client.ask(method, path, token(n), b"{}" if method == "PUT" else None)
                    seen[answer.status, path == SYNC] += 1
                    if answer.status != 200 and (
                            answer.headers.get("access-control-allow-origin") != "*" or "retry-after" not in answer.headers
                            or answer.json()["errcode"] != "M_UNKNOWN"):
                        bad.append((answer.status, answer.headers))

    with workers(*started) as bench, bed.running(toml) as nginx:
        threads = [threading.Thread(target=load, args=(first,)) for first in (0, 10, 20)]
        for thread in threads:
            thread.start()
        for name, host, port in started[1:] + started[:1]:
            bench.stop(name)
            time.sleep(0.4)
            bench.start(name, host=host, port=port)
            time.sleep(0.2)
        stop.set()
        for thread in threads:
            thread.join(20)
        failures = [line for line in nginx.log().splitlines() if '"GET ' in line and '" 200 ' not in line]
    assert not bad, bad[:3]
    syncs_failed = sum(count for (status, sync), count in seen.items() if sync and status != 200)
    # A request that a worker had already read when it went cannot always be repeated, but a GET can.
    assert syncs_failed == 0, (seen, failures[:5])
    # The one room worker was gone for a while, so its clients did get errors: each was as it should be.
    assert any(status == 502 for status, sync in seen if not sync), seen
    return f"{sum(seen.values())} requests, {sum(c for (s, _), c in seen.items() if s == 502)} of them 502 with CORS"


def check_nothing_is_sent_twice_that_must_not_be():
    """a worker that hangs up gets a GET, a PUT and a sliding sync to the next one, but no other POST; that client gets a Matrix error"""
    toml = (bed.TESTS / "deployments" / "small.toml").read_text()
    sliding = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
    with workers(("main", "127.0.0.1", 20108), ("sync1", "127.0.0.1", 20111), ("sync2", "127.0.0.1", 20112),
                 ("generic1", "127.0.0.1", 20113)) as bench, bed.running(toml):
        client = bed.Client()
        home = client.ask("GET", SYNC, token(1)).worker
        other = {"sync1": "sync2", "sync2": "sync1"}[home]
        bench.hanging_up.add(home)
        assert client.ask("GET", SYNC, token(1)).worker == other
        bench.seen.clear()
        # In the same group, with another path.
        events = "/_matrix/client/v3/events?from=s1"
        answer = client.ask("POST", events, token(1), b"{}")
        assert answer.status == 502 and answer.headers["access-control-allow-origin"] == "*", answer.status
        assert [name for name, method, _ in bench.seen if method == "POST"] == [home], bench.seen
        bench.seen.clear()
        answer = client.ask("POST", sliding, token(1), b'{"lists":{}}')
        # MSC4186 lets it be asked again with the same pos; the whole body is sent again.
        assert (answer.worker, answer.json()["body"]) == (other, 12), answer.text
        assert [name for name, method, _ in bench.seen if method == "POST"] == [home, other], bench.seen
        bench.stop(home)
        # One that is not there has not got it, so another may.
        assert client.ask("POST", events, token(1), b"{}").worker == other


def check_a_poll_outlives_its_worker():
    """a sync and a sliding sync that have waited for a while when their worker goes are taken on by the next one"""
    sliding = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?pos=5"
    toml = (bed.TESTS / "deployments" / "small.toml").read_text()
    with workers(("main", "127.0.0.1", 20108), ("sync1", "127.0.0.1", 20111), ("sync2", "127.0.0.1", 20112),
                 ("generic1", "127.0.0.1", 20113)) as bench, bed.running(toml):
        home = bed.Client().ask("GET", SYNC, token(1)).worker
        other = {"sync1": "sync2", "sync2": "sync1"}[home]
        bench.delay = {home: 30}
        waited = []
        asks = [("GET", SYNC, None), ("POST", sliding, b'{"lists":{}}')]
        polls = [threading.Thread(target=lambda ask=ask: waited.append(bed.Client().ask(ask[0], ask[1], token(1), ask[2])))
                 for ask in asks]
        for poll in polls:
            poll.start()
        # As long as a poll waits on average.
        time.sleep(15)
        assert not waited
        bench.stop(home)
        for poll in polls:
            poll.join(10)
        assert [(answer.status, answer.worker) for answer in waited] == [(200, other)] * 2, [(a.status, a.worker) for a in waited]


def check_a_reload_keeps_everybody_in_place():
    """after a reload of the same configuration every user is where they were, and who waited gets their answer"""
    toml = (bed.TESTS / "deployments" / "small.toml").read_text()
    with workers(("main", "127.0.0.1", 20108), ("sync1", "127.0.0.1", 20111), ("sync2", "127.0.0.1", 20112),
                 ("generic1", "127.0.0.1", 20113)) as bench, bed.running(toml) as nginx:
        before = {n: bed.Client().ask("GET", SYNC, token(n)).worker for n in range(30)}
        bench.delay = {"sync1": 2, "sync2": 2}
        waited = []
        poll = threading.Thread(target=lambda: waited.append(bed.Client().ask("GET", SYNC, token(0))))
        poll.start()
        time.sleep(0.3)
        bench.delay = {}
        nginx.send(signal.SIGHUP)
        time.sleep(1)
        assert {n: bed.Client().ask("GET", SYNC, token(n)).worker for n in range(30)} == before
        assert not waited, "the poll did not outlast the reload"
        poll.join(10)
        assert waited[0].status == 200 and waited[0].worker == before[0], waited
        assert len(set(before.values())) == 2

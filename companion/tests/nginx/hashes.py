"""What the companion computes as nginx and the module do: the consistent hash of `route`, and the room of a zone."""

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

import bed

# Every kind of `server` line that the companion writes; `localhost` stands for a name.
CIRCLES = [
    ["127.0.0.1:20111", "127.0.0.1:20112"],
    ["127.0.0.1:20111", "127.0.0.1:20112", "127.0.0.1:20113", "127.0.0.1:20114", "127.0.0.1:20115"],
    ["localhost:20111", "localhost:20112", "127.0.0.1:20113"],
    ["[::1]:20111", "[::1]:20112", "127.0.0.1:20113"],
    ["unix:/tmp/synapse-companion-test/sync1.sock", "unix:/tmp/synapse-companion-test/sync2.sock", "127.0.0.1:20113"],
    # With weights, as `server … weight=2`.
    ["127.0.0.1:20111", "127.0.0.1:20112*2", "127.0.0.1:20113*5"],
]
KEYS = 3000


def bare(server):
    """A server without its weight."""
    return server.partition("*")[0]


def check_the_hash_is_nginx_s_own():
    """thousands of keys go where nginx's consistent hash sends them"""
    upstreams = "".join(
        f"upstream circle{i} {{ zone circle{i} 256k; hash $arg_key consistent; "
        + "".join(f"server {server.replace('*', ' weight=')} max_fails=0;" for server in servers) + " }\n"
        for i, servers in enumerate(CIRCLES))
    # An answer without a worker: nginx says which it would have tried. Only the circles' own names would tell `localhost`
    # apart from its address, so every server has a port or a path of its own.
    locations = "".join(f"location /{i} {{ proxy_pass http://circle{i}; }}\n" for i in range(len(CIRCLES)))
    backends = "".join(
        f"server {{ listen 127.0.0.1:{port}; listen [::1]:{port}; return 200 {port}; }}\n" for port in range(20111, 20116)
    ) + "".join(
        f"server {{ listen unix:/tmp/synapse-companion-test/sync{i}.sock; return 200 sync{i}; }}\n" for i in (1, 2))
    bed.fixed_folder()
    # A run that was killed leaves its sockets, and nginx does not bind to a name that exists.
    for left in bed.FIXED.glob("sync*.sock"):
        left.unlink()
    with bed.folder() as prefix:
        conf = prefix / "nginx.conf"
        conf.write_text(
            f"pid {prefix}/nginx.pid; events {{}} http {{ access_log off; {upstreams} {backends}"
            f" server {{ listen 127.0.0.1:20000; keepalive_requests 1000000; {locations} }} }}")
        lines = []
        with bed.Nginx(conf, prefix):
            client = bed.Client()
            for n in range(KEYS):
                user = f"@user{n}:example.org"
                key = hashlib.sha256(user.encode()).hexdigest()[:16]
                for i, servers in enumerate(CIRCLES):
                    # Fewer keys for the circles that differ in spelling only.
                    if i > 1 and n >= 1000:
                        continue
                    said = client.ask("GET", f"/{i}?key={key}").text.decode()
                    picked = next(s for s in map(bare, servers) if s.endswith((f":{said}", f"/{said}.sock")))
                    lines.append(f"{' '.join(servers)}\t{key}\t{picked}")
        answers = Path(prefix / "answers.tsv")
        answers.write_text("\n".join(lines))
        done = subprocess.run(
            ["cargo", "test", "-q", "-p", "synapse-companion", "--", "--ignored", "nginx_picks_the_same_server"],
            cwd=bed.ROOT, env={**os.environ, "NGINX_ANSWERS": str(answers)}, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
    return f"{len(lines)} answers"


def check_route_names_the_worker_of_a_user():
    """`route --user` names the worker that nginx and the module send that user to"""
    deployment = bed.TESTS / "deployments" / "small.toml"
    workers = bed.Workers()
    for name, port in [("main", 20108), ("sync1", 20111), ("sync2", 20112), ("generic1", 20113)]:
        workers.start(name, port=port)
    counts = {}
    try:
        with bed.running(deployment.read_text()):
            client = bed.Client()
            for n in range(200):
                user = f"u{n}" if n else "alice"
                token = f"syt_{user}_abcdefghijklmnopqrst_0ab1cd"
                got = client.ask("GET", "/_matrix/client/v3/sync?since=s1", {"Authorization": f"Bearer {token}"}).worker
                out, _ = bed.companion("route", "GET", "/_matrix/client/v3/sync?since=s1", "-d", deployment,
                                       "--nginx", bed.NGINX, "--user", f"@{user}:example.org")
                assert f"worker    {got}  " in out, (user, got, out)
                counts[got] = counts.get(got, 0) + 1
    finally:
        workers.stop_all()
    assert set(counts) == {"sync1", "sync2"}, counts
    return f"{counts}"


def check_route_names_the_worker_of_a_room():
    """`route` names the worker of a room, of old and of version 12, however it is encoded"""
    text = "\n".join(
        ['[main]\nhost = "127.0.0.1"\nport = 20108\n[listen]\nclient = [20000]'] +
        [f'[[workers]]\nname = "room{i}"\ntype = "room"\nhost = "127.0.0.1"\nport = {20110 + i}' for i in (1, 2, 3)])
    workers = bed.Workers()
    for name, port in [("main", 20108), ("room1", 20111), ("room2", 20112), ("room3", 20113)]:
        workers.start(name, port=port)
    try:
        with bed.running(text) as nginx:
            client = bed.Client()
            for n in range(60):
                room = f"!room{n}xyz:example.org" if n % 2 else f"!{hashlib.sha256(str(n).encode()).hexdigest()[:43]}"
                encoded = room.replace("!", "%21").replace(":", "%3A")
                paths = [f"/_matrix/client/v3/rooms/{room}/messages?dir=b",
                         f"/_matrix/client/r0/rooms/{encoded}/messages",
                         f"/_matrix/client/v3/rooms/{encoded}/send/m.room.message/txn1",
                         f"/_matrix/client/v3/join/{encoded}"]
                got = {client.ask("GET", path).worker for path in paths}
                assert len(got) == 1 and not got & {None, "main"}, (room, got)
                out, _ = bed.companion("route", "GET", paths[1], "-d", nginx.directory / "deployment.toml",
                                       "--nginx", bed.NGINX)
                assert f"worker    {got.pop()}  " in out, (room, out)
    finally:
        workers.stop_all()


def check_a_zone_has_the_room_that_is_written_down():
    """a zone of each size in docs/operations.md has room for as many tokens as stand there, and as `simulate` reckons with"""
    table = (bed.ROOT / "docs" / "operations.md").read_text().partition("| size | tokens |\n")[2].partition("\n\n")[0]
    written = {size: int(tokens.replace(",", "")) for size, tokens in re.findall(r"^\| (\d+[km])\b.* \| ([\d,]+) \|$", table, re.M)}
    zones = "".join(f"matrix_user_hash_zone zone{size}:{size}; " for size in written)
    with bed.folder() as prefix:
        conf = prefix / "nginx.conf"
        conf.write_text(
            f"load_module modules/{bed.MODULE.name}; pid {prefix}/nginx.pid; events {{}} http {{ access_log off; {zones}"
            " server { listen 127.0.0.1:20000; location / { matrix_user_hash_metrics; } } }")
        with bed.Nginx(conf, prefix):
            figures = json.loads(bed.Client().ask("GET", "/").text)
    room = {size: figures["zones"][f"zone{size}"]["capacity"] for size in written}
    assert room == written and len(written) == 5, (room, written)
    one = written["1m"]
    assert f"1m has room for {one:,} tokens" in (bed.ROOT / "docs" / "directives.md").read_text()
    return f"{one:,} tokens in 1m"

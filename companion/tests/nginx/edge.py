"""What nginx does itself: limits, preflights, errors, addresses, logs, figures, and the cache of public media."""

import contextlib
import http.client
import http.server
import json
import re
import socket
import ssl
import threading
from pathlib import Path

import bed
from endpoints import all_workers, everything

SYNC = "/_matrix/client/v3/sync?since=s1"
CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "GET, HEAD, POST, PUT, DELETE, OPTIONS",
    "access-control-allow-headers": "X-Requested-With, Content-Type, Authorization, Date",
}


def small(more=""):
    return (bed.TESTS / "deployments" / "small.toml").read_text() + more


def check_preflights_are_answered_as_synapse_answers_them():
    """OPTIONS is answered at the edge with Synapse's headers, those of QR-code login included"""
    all_workers().seen.clear()
    with bed.running(small()):
        client = bed.Client()
        for path in ["/_matrix/client/v3/sync", "/_matrix/client/v3/login", "/_matrix/media/v3/upload", "/",
                     "/_matrix/federation/v1/version", "/_matrix/client/unstable/io.element.msc4388/rendezvous"]:
            answer = client.ask("OPTIONS", path)
            assert answer.status == 204 and not answer.text, (path, answer.status)
            assert CORS.items() <= answer.headers.items(), (path, answer.headers)
            assert answer.headers["access-control-expose-headers"] == "Synapse-Trace-Id, Server"
        for path in ["/_matrix/client/unstable/org.matrix.msc4108/rendezvous", "/_synapse/client/rendezvous/abc"]:
            answer = client.ask("OPTIONS", path)
            assert answer.headers["access-control-allow-headers"] == "Content-Type, If-Match, If-None-Match", path
            assert answer.headers["access-control-expose-headers"] == "Synapse-Trace-Id, Server, ETag", path
        assert not all_workers().seen, all_workers().seen
        answer = client.ask("GET", "/_matrix/client/versions")
        assert "access-control-allow-methods" not in answer.headers, "an answer of Synapse's is left as it is"


def check_the_limit_is_exact():
    """a body of exactly the limit passes, one byte more is a Matrix error; federation has its own limit"""
    all_workers()
    more = '[limits]\nclient_body = "1M"\nfederation_body = "3M"\n'
    federation = small(more).replace("client = [20000]", "client = [20000]\nfederation = [20002]")
    with bed.running(federation):
        for port, path, limit in [
            (20000, "/_matrix/media/v3/upload", 1 << 20), (20000, "/_matrix/client/v3/keys/upload", 1 << 20),
            (20000, "/_matrix/federation/v1/send/1", 3 << 20), (20002, "/_matrix/federation/v1/send/1", 3 << 20),
        ]:
            exact = bed.Client(port).ask("PUT", path, body=b"x" * limit)
            assert (exact.status, exact.json()["body"]) == (200, limit), (path, exact.status)
            over = bed.Client(port).ask("PUT", path, body=b"x" * (limit + 1))
            assert over.status == 413 and over.json()["errcode"] == "M_TOO_LARGE", (path, over.status, over.text)
            assert CORS.items() <= over.headers.items(), over.headers


def check_a_full_disk_tells_no_token():
    """when nginx itself cannot go on, the client gets a Matrix error, and the error log does not quote the request"""
    all_workers()
    token = "syt_YWxpY2U_vGhWQpBTLkuZsXoNrYmC_3fKq7z"
    # Once as it is rendered; once with errors asked for, which shows that nginx would have quoted it.
    for level, quoted in (("", 0), ('error_level = "error"\n', 1)):
        with bed.folder() as prefix:
            (prefix / "temp").mkdir()
            toml = prefix / "deployment.toml"
            toml.write_text(small(f'[log]\naccess = "{prefix}/access.log"\n{level}'
                                  f'[paths]\ntemp = "{prefix}/temp"\npid = "{prefix}/nginx.pid"\n'))
            bed.companion("render", "-d", toml, "--output", prefix, "--nginx", bed.NGINX)
            with bed.Nginx(prefix / "nginx.conf", prefix) as nginx:
                for kind in ("client_body", "proxy"):
                    (prefix / "temp" / kind).rename(prefix / "temp" / f"{kind}.gone")
                answer = bed.Client().ask("POST", f"/_matrix/media/v3/upload?access_token={token}", body=b"x" * 500_000)
                assert answer.status == 500 and answer.json()["errcode"] == "M_UNKNOWN", answer.status
                assert CORS.items() <= answer.headers.items()
            assert nginx.errors().count(token) == quoted, nginx.errors()
            assert token not in nginx.log() and '" 500 ' in nginx.log(), nginx.log()


def check_the_host_keeps_its_port():
    """Synapse hears the host and the port that the client asked for, which single sign-on compares with public_baseurl"""
    all_workers()
    with bed.running(small()):
        for given, heard in [("matrix.example.org", "matrix.example.org"), ("Matrix.Example.Org:8443", "matrix.example.org:8443"),
                             ("[::1]:8443", "[::1]:8443"), ("[::1]", "[::1]")]:
            got = bed.Client().ask("GET", "/_matrix/client/versions", {"Host": given}).json()["headers"]["host"]
            assert got == heard, (given, got)


def check_a_large_head_passes():
    """an answer with the cookies of single sign-on, larger than nginx's default for a head, passes"""
    all_workers()
    with bed.running(small()):
        answer = bed.Client().ask("GET", "/_synapse/client/oidc/callback?code=x&state=y")
        assert answer.status == 200 and len(answer.headers["set-cookie"]) > 12_000, answer.status


def check_a_sync_may_wait_where_there_are_no_sync_workers():
    """without sync workers a long poll at main outlasts the timeout of other requests"""
    workers = all_workers()
    workers.delay["main"] = 2
    text = (bed.TESTS / "deployments" / "none.toml").read_text() + '[timeouts]\nread = "1s"\nsync = "60s"\n'
    try:
        with bed.running(text):
            assert bed.Client().ask("GET", SYNC).status == 200
            assert bed.Client().ask("GET", "/_matrix/federation/v1/version").status == 504
    finally:
        workers.delay.clear()


def check_an_override_holds_wherever_it_can():
    """an override whose pattern spans parts of the API holds in each of them, and `route` says so"""
    all_workers()
    text = everything() + '\n[[override]]\npath = "^/_matrix/(?:media|client/v1/media)/.*config$"\nto = "main"\n'
    with bed.running(text) as nginx:
        for path, worker in [("/_matrix/media/v3/config", "main"), ("/_matrix/client/v1/media/config", "main"),
                             ("/_matrix/media/v3/download/a/b", "media1")]:
            assert bed.Client().ask("GET", path).worker == worker, path
            out, _ = bed.companion("route", "GET", path, "-d", nginx.directory / "deployment.toml", "--nginx", bed.NGINX)
            assert f"worker    {worker}  " in out, (path, out)


def check_limits_follow_max_upload_size():
    """the client limit is max_upload_size, the federation limit three times it and 100 MiB at the least"""
    for upload, client, federation in [("50M", "50m", "150m"), ("20M", "20m", "100m"), ("200M", "200m", "600m"), ("1M", "12800k", "100m")]:
        with bed.folder() as prefix:
            file = prefix / "deployment.toml"
            file.write_text(small(f'[limits]\nmax_upload_size = "{upload}"\n'))
            out, _ = bed.companion("render", "-d", file, "--nginx-version", "1.28.3")
        assert re.findall(r"client_max_body_size (\w+);", out) == [client, federation], (upload, out)


def check_a_dead_homeserver_is_a_matrix_error():
    """500, 502 and 504 of nginx are JSON with CORS headers and Retry-After; Synapse's own errors are left alone"""
    workers = all_workers()
    workers.stop("main")
    try:
        with bed.running(small()):
            answer = bed.Client().ask("GET", "/_matrix/client/v3/unheard_of", {"Origin": "https://app.element.io"})
            assert answer.status == 502, answer.status
            assert answer.json()["errcode"] == "M_UNKNOWN" and answer.headers["content-type"] == "application/json"
            assert CORS.items() <= answer.headers.items() and answer.headers["retry-after"] == "5", answer.headers
    finally:
        workers.start("main", port=20108)
    workers.delay["generic1"] = workers.delay["sync3"] = 3
    try:
        with bed.running(small('[timeouts]\nread = "1s"\n')):
            answer = bed.Client().ask("GET", "/_matrix/client/versions")
            assert answer.status == 504 and answer.json()["errcode"] == "M_UNKNOWN", answer.status
            assert CORS.items() <= answer.headers.items()
    finally:
        workers.delay.clear()


def check_nobody_can_lie_about_their_address():
    """X-Forwarded-For and -Proto of strangers are dropped, those of trusted proxies are believed"""
    all_workers()
    lie = {"X-Forwarded-For": "203.0.113.9, 198.51.100.7", "X-Forwarded-Proto": "https", "Host": "matrix.example.org"}
    with bed.running(small()):
        got = bed.Client().ask("GET", "/_matrix/client/versions", lie).json()["headers"]
        assert (got["x-forwarded-for"], got["x-forwarded-proto"]) == ("127.0.0.1", "http"), got
        assert got["host"] == "matrix.example.org" and "connection" not in got
    trusted = small().replace("client = [20000]", 'client = [20000, "unix:/tmp/synapse-companion-test/edge.sock"]\n'
                              'trusted_proxies = ["127.0.0.0/8", "198.51.100.0/24", "unix:"]')
    # A run that was killed leaves its socket, and nginx does not bind to a name that exists.
    (bed.FIXED / "edge.sock").unlink(missing_ok=True)
    with bed.running(trusted):
        for client in (bed.Client(), bed.Client(path="/tmp/synapse-companion-test/edge.sock")):
            got = client.ask("GET", "/_matrix/client/versions", lie).json()["headers"]
            assert (got["x-forwarded-for"], got["x-forwarded-proto"]) == ("203.0.113.9", "https"), got


def check_what_is_not_for_everybody_is_closed():
    """/_synapse/admin and /_synapse/mas answer a Matrix error unless they are opened, and metrics and replication always do"""
    all_workers()
    elsewhere = small().replace("client = [20000]", 'client = [20000]\nadmin_allow = ["192.0.2.1"]')
    for closed in (small(), elsewhere):
        with bed.running(closed) as nginx:
            client = bed.Client()
            deployment = nginx.directory / "deployment.toml"
            for path in ["/_synapse/admin/v1/rooms/!a:example.org", "/_synapse/admin/v2/users", "/_synapse/admin//v2/users",
                         "/_synapse/%61dmin/v2/users", "//_synapse/./admin", "/_synapse/mas/query_user", "/_synapse/mas",
                         "/_synapse/%6Das/query_user", "/_matrix/../_synapse/mas/query_user"]:
                answer = client.ask("GET", path)
                assert answer.status == 403 and answer.json()["errcode"] == "M_FORBIDDEN", (path, answer.status)
            for path in ["/_synapse/metrics", "/_synapse/replication/x", "/_synapse/%6detrics"]:
                assert client.ask("GET", path).status == 404, path
            # Synapse reads these as paths of what is closed, with an odd last name; nginx resolves them to others.
            for path in ["/_synapse/admin", "/_synapse/admin/v2/users/..%2F..%2F..%2F..%2Fx", "/_synapse/admin/../x",
                         "/_synapse/admin/v1/rooms/%2E%2E/../../../y?a=b", "/_synapse/mas/query_user/../../client/x",
                         "/_synapse/%6das/query_user/%2e%2e/../client/x", "/%5Fsynapse/mas/query_user/.%2e/../client/x"]:
                answer = client.ask("GET", path)
                assert answer.status == 403 and answer.json()["errcode"] == "M_FORBIDDEN", (path, answer.status)
                out, _ = bed.companion("route", "GET", path, "-d", deployment, "--nginx", bed.NGINX)
                assert "answer    403" in out or "access    " in out and "403 for" in out, (path, out)
            assert client.ask("GET", "/_matrix/client/v3/x?next=/_synapse/admin/../y").worker == "main"
            assert client.ask("GET", "/_matrix/client/v3/rooms/!a:b/state/x/..").worker, "a state key of two dots"
            assert client.ask("OPTIONS", "/_synapse/admin/v2/users").status == 204
    for opening in ('admin_allow = ["127.0.0.1"]', 'admin_allow = ["all"]'):
        with bed.running(small().replace("client = [20000]", f"client = [20000]\n{opening}")):
            # Open, it is a path like others; nginx would redirect a prefix that ended in a slash to itself.
            for path in ("/_synapse/admin", "/_matrix/federation", "/_matrix/key"):
                assert bed.Client().ask("GET", path).worker == "main", path
            assert bed.Client().ask("GET", "/_synapse/mas/query_user").status == 403


def check_logins_go_to_the_authentication_service():
    """with [mas], login, logout and refresh of every version go to it, it alone may call /_synapse/mas, and the rest is Synapse's"""
    workers = all_workers()
    bed.fixed_folder()
    toml = (bed.TESTS / "deployments" / "mas.toml").read_text()
    toml = toml[: toml.index("[paths]")]
    bridge = "/tmp/synapse-companion-test/bridge.sock"
    Path(bridge).unlink(missing_ok=True)
    workers.start("mas", port=20140)
    workers.start("bot", port=20141)
    workers.start("bridge", path=bridge)
    # nginx that root started works as nobody.
    Path(bridge).chmod(0o666)
    try:
        with bed.running(toml) as nginx:
            client = bed.Client()
            room = "%21abc%3Aexample.org"
            expected = [("POST", f"/_matrix/client/{version}/{what}", "mas")
                        for version in ("r0", "v3", "v1", "v4", "unstable", "api/v1", "unstable/org.example")
                        for what in ("login", "logout", "logout/all", "refresh", "login/sso/redirect", "login/sso/redirect/google")]
            expected += [
                ("GET", "/_matrix/client/v3/login", "mas"), ("GET", "/_matrix/client/v3/login/", "mas"),
                ("POST", "/_matrix/client/v3/register", "generic"), ("GET", "/_matrix/client/v1/auth_metadata", "generic"),
                ("PUT", f"/_matrix/client/v3/rooms/{room}/state/m.room.name/login", "generic"),
                ("GET", "/_matrix/client/v3/user/@a:b/account_data/refresh", "main"),
                ("GET", "/_synapse/mas/query_user?localpart=a", "generic"), ("POST", "/_synapse/mas/upsert_device", "generic"),
                ("POST", f"/_matrix/client/v3/rooms/{room}/report/$e:f", "bot"),
                ("POST", f"/_matrix/client/v3/rooms/{room}/report", "main"),
                ("GET", "/_matrix/client/unstable/org.example.bridge/x", "bridge"),
            ]
            for method, path, worker in expected:
                got = client.ask(method, path).worker or "nobody"
                got = "generic" if got in ("initial_sync1", "sync3") else got
                assert got == worker, (method, path, got)
                out, _ = bed.companion("route", method, path, "-d", nginx.directory / "deployment.toml", "--nginx", bed.NGINX)
                group = {"generic": "client_reader|synapse_room", "bot": "external_0", "bridge": "external_1"}.get(worker, worker)
                assert re.search(rf"^upstream  synapse_(?:{group.replace('synapse_', '')}),", out, re.M), (path, out)
            report = client.ask("POST", f"/_matrix/client/v3/rooms/{room}/report/$e:f?a=b").json()
            assert report["target"].startswith("/api/1/report/!abc:example.org/$e:f"), report
            # Who ends TLS elsewhere is asked by the name that its certificate has.
            with tls_server(20142) as asked:
                answer = bed.Client().ask("GET", "/_matrix/client/unstable/org.example.elsewhere/x", {"X-Forwarded-For": "192.0.2.9"})
                # Its certificate is for matrix.example.org, and nginx was told to check it for 127.0.0.1.
                assert answer.status == 502 and not asked, (answer.status, asked)
            unchecked = toml.replace('authorities = "/tmp/synapse-companion-test/matrix.pem"', "")
        with bed.running(unchecked), tls_server(20142) as asked:
            assert bed.Client().ask("GET", "/_matrix/client/unstable/org.example.elsewhere/x").status == 200
            assert asked == [("/_matrix/client/unstable/org.example.elsewhere/x", "127.0.0.1", "127.0.0.1")], asked
        with bed.running(toml.replace("20140\"", "20140\"\nallow = [\"192.0.2.1\"]")):
            assert bed.Client().ask("GET", "/_synapse/mas/query_user").status == 403
            assert bed.Client().ask("POST", "/_matrix/client/v3/login").worker == "mas"
    finally:
        for name in ("mas", "bot", "bridge"):
            workers.stop(name)


@contextlib.contextmanager
def tls_server(port):
    """A server with TLS; yields a list of what it is asked: path, Host, X-Forwarded-For."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["Host"], self.headers["X-Forwarded-For"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_):
            """A client that refuses the certificate is expected."""

    server = Server(("127.0.0.1", port), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(bed.FIXED / "matrix.pem", bed.FIXED / "matrix.key")
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield asked
    finally:
        server.shutdown()
        server.server_close()


def check_no_log_holds_a_token():
    """the access log redacts tokens in every form that Synapse reads, and shows group, worker and how the user was found"""
    all_workers()
    token = "syt_YWxpY2U_vGhWQpBTLkuZsXoNrYmC_3fKq7z"
    forms = [
        f"{SYNC}&access_token={token}", f"/_matrix/client/v3/sync?access_token={token}",
        f"{SYNC}&%61ccess_token={token}", f"{SYNC}&access%5Ftoken={token}", f"{SYNC};access_token={token}",
        f"{SYNC}&timeout=0;access_token={token}", f"/_matrix/client/v3/sync%3Faccess_token={token}",
        f"/_matrix/client/v3/unheard_of?loginToken={token}", f"/_matrix/client/v3/x?ACCESS_TOKEN={token}",
        f"{SYNC}%26access_token={token}", f"/_matrix/client/v3/sync%253Faccess%255Ftoken={token}",
        f"/_matrix/client/v3/sync;access_token={token}", f"/_matrix/client/v3/sync%3Baccess%5Ftoken={token}",
        f"/_synapse/admin/v1/registration_tokens/{token}", f"/_matrix/client/v3/sync?a=b&&access_token={token}",
        f"{SYNC}&access_token={token.replace('_', '%5F')}", f"/_matrix//client/v3/sync?since=1&access_token={token}#x",
    ]
    for log_format in ("text", "json"):
        settings = f'[log]\nformat = "{log_format}"\naccess = "PREFIX/access.log"\n'
        with bed.folder() as prefix:
            toml = small(settings.replace("PREFIX", str(prefix)) + f'[paths]\ntemp = "{prefix}"\npid = "{prefix}/nginx.pid"\n')
            (prefix / "deployment.toml").write_text(toml)
            bed.companion("render", "-d", prefix / "deployment.toml", "--output", prefix, "--nginx", bed.NGINX)
            with bed.Nginx(prefix / "nginx.conf", prefix) as nginx:
                client = bed.Client()
                for path in forms:
                    client.ask("GET", path)
                all_workers().stop("sync2")
                all_workers().stop("sync1")
                for path in forms[:3]:
                    client.ask("GET", path, {"Referer": f"https://example.org/?access_token={token}"})
                for name, port in (("sync1", 20111), ("sync2", 20112)):
                    all_workers().start(name, port=port)
                client.ask("GET", SYNC, {"Authorization": f"Bearer {token}"})
                client.ask("GET", SYNC, {"Authorization": f"Bearer {token}"})
                client.ask("GET", f"{SYNC}&timeout=30000&set_presence=offline", {"Authorization": f"Bearer {token}"})
            log, errors = nginx.log(), nginx.errors()
        for part in (token, "YWxpY2U", "vGhWQpBTLkuZsXoNrYmC", "vGhWQ"):
            assert part not in log and part not in errors, (log_format, part, log, errors)
        assert log.count("[redacted]") >= len(forms), log
        last = log.strip().splitlines()[-1]
        if log_format == "json":
            row = json.loads(last)
            assert row["group"] == "synapse_sync" and row["worker"].startswith("127.0.0.1:2011"), row
            assert row["user_hash_status"] == "HIT" and len(row["user_hash"]) == 16 and row["lookup_time"], row
            assert row["query"] == "?since=s1&timeout=30000&set_presence=offline" and row["status"] == "200", row
        else:
            assert re.search(r'"GET /_matrix/client/v3/sync\?since=s1&timeout=30000&set_presence=offline" 200 \d+ '
                             r"time=[\d.]+ group=synapse_sync worker=127.0.0.1:2011[12] upstream_status=200 "
                             r"upstream_time=[\d.]+ user_hash=[0-9a-f]{16} user_hash_status=HIT lookup_time=", last), last
        # One status before: the first request with the token looked its user up, or knew it from the query.
        assert "synapse_main" in log, log


def check_figures_are_private():
    """stub_status and the module's figures are on the private listener, and nowhere else"""
    all_workers()
    with bed.running(small('[status]\nlisten = "127.0.0.1:20003"\n')):
        bed.Client().ask("GET", SYNC, {"Authorization": "Bearer syt_alice_abcdefghijklmnopqrst_0ab1cd"})
        private = bed.Client(20003)
        assert b"Active connections" in private.ask("GET", "/nginx_status").text
        assert b"matrix_user_hash_" in private.ask("GET", "/metrics").text
        assert private.ask("GET", "/health").status == 204
        for path in ("/metrics", "/nginx_status"):
            assert bed.Client().ask("GET", path).worker == "main", "outside, it is a path like any other"


def check_figures_are_for_those_who_may():
    """[status] allow says who may read the figures; a probe of /health needs no leave"""
    all_workers()
    with bed.running(small('[status]\nlisten = "127.0.0.1:20003"\nallow = ["192.0.2.1"]\n')):
        private = bed.Client(20003)
        assert [private.ask("GET", path).status for path in ("/metrics", "/nginx_status", "/health")] == [403, 403, 204]


def check_a_federation_listener_serves_nothing_else():
    """a federation listener of its own serves the federation API, keys and old media; anything else is 404 in JSON"""
    all_workers()
    with bed.running(everything()):
        client = bed.Client(20002)
        for path, worker in [("/_matrix/federation/v1/version", "federation_reader"), ("/_matrix/key/v2/server", "main"),
                             ("/_matrix/media/v3/download/example.org/abc", "media"), ("/.well-known/matrix/server", "main")]:
            assert client.ask("GET", path).worker.startswith(worker), path
        for path in ("/_matrix/client/v3/login", "/_synapse/admin/v2/users", "/"):
            answer = client.ask("GET", path)
            assert answer.status == 404 and answer.json()["errcode"] == "M_UNRECOGNIZED", (path, answer.status)


def check_one_server_stays_on_one_federation_worker():
    """requests of one federating server stay on one worker, whatever address they come from"""
    all_workers()
    with bed.running(everything()):
        client = bed.Client(20002)
        picked = {}
        for n in range(40):
            origin = f"server{n % 20}.example.net"
            header = [f'X-Matrix origin={origin},destination="example.org",key="ed25519:a_test",sig="a"',
                      f'X-Matrix destination="example.org", origin="{origin}", key="ed25519:a_test",sig="b"'][n // 20]
            got = client.ask("GET", "/_matrix/federation/v1/version", {"Authorization": header, "X-Forwarded-For": f"203.0.113.{n}"})
            assert picked.setdefault(origin, got.worker) == got.worker, origin
            out, _ = bed.companion("route", "GET", "/_matrix/federation/v1/version", "-d",
                                   bed.TESTS / "deployments" / "everything.toml", "--nginx", bed.NGINX, "--origin", origin)
            assert f"worker    {got.worker}  " in out, out
        assert len(set(picked.values())) == 2, picked
        # A header made to be slow to match is answered like any other.
        slow = client.ask("GET", "/_matrix/federation/v1/version", {"Authorization": "X-Matrix " + "a, " * 2000})
        assert slow.status == 200


def check_only_public_media_are_kept():
    """the cache keeps media that anybody may fetch, and nothing that was asked for with a token"""
    workers = all_workers()
    cache = everything() + '\n[media_cache]\npath = "/tmp/synapse-companion-test/media"\nsize = "10m"\n'
    with bed.running(cache):
        client = bed.Client()

        def fetched(path, headers=None):
            workers.seen.clear()
            for _ in range(3):
                assert client.ask("GET", path, headers).status == 200
            return len(workers.seen)

        stamp = str(id(cache))
        assert fetched(f"/_matrix/media/v3/download/example.org/public{stamp}") == 1
        token = {"Authorization": "Bearer syt_alice_abcdefghijklmnopqrst_0ab1cd"}
        assert fetched(f"/_matrix/media/v3/download/example.org/header{stamp}", token) == 3
        assert fetched(f"/_matrix/media/v3/download/example.org/query{stamp}?access_token=syt_alice") == 3
        assert fetched(f"/_matrix/media/v3/download/example.org/name{stamp}?%61ccess_token=syt_alice") == 3
        assert fetched(f"/_matrix/client/v1/media/download/example.org/client{stamp}", token) == 3
        assert fetched(f"/_matrix/media/v3/thumbnail/example.org/small{stamp}?width=32&height=32&method=crop") == 1
    kept = [path.read_bytes() for path in Path("/tmp/synapse-companion-test/media").rglob("*") if path.is_file()]
    assert kept and not any(b"syt_alice" in one for one in kept), len(kept)


def check_a_body_and_a_token_in_the_query():
    """a body reaches the worker whole and a token in the query finds its user"""
    all_workers()
    with bed.running(small()):
        client = bed.Client()
        by_header = client.ask("GET", SYNC, {"Authorization": "Bearer syt_carol_abcdefghijklmnopqrst_0ab1cd"}).worker
        by_query = client.ask("GET", f"{SYNC}&access_token=syt_carol_zyxwvutsrqponmlkjihg_0ab1cd").worker
        assert by_header == by_query and by_header.startswith("sync")
        answer = client.ask("POST", "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync",
                            {"Authorization": "Bearer syt_carol_abcdefghijklmnopqrst_0ab1cd"}, b"{" + b" " * 300_000 + b"}")
        assert answer.json()["body"] == 300_002 and answer.worker == by_header


def check_tls_with_http2():
    """nginx can end TLS itself"""
    bed.fixed_folder()
    all_workers()
    text = (bed.TESTS / "deployments" / "tls.toml").read_text()
    with bed.running(text):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", 20000, context=context)
        connection.request("GET", "/_matrix/client/versions")
        got = json.loads(connection.getresponse().read())["headers"]
        assert got["x-forwarded-proto"] == "https"
        context.set_alpn_protocols(["h2"])
        with context.wrap_socket(socket.create_connection(("127.0.0.1", 20000))) as stream:
            assert stream.selected_alpn_protocol() == "h2"

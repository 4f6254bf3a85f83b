"""Every endpoint of an installed Synapse, and every path of its worker documentation, through a real nginx.

`endpoints.tsv` holds what the pinned Synapse serves, with the group that shall answer; `documented.tsv` what its
documentation lists. An endpoint or a pattern that Synapse has and these have not fails the check by name: somebody must
decide.
"""

import concurrent.futures
import contextlib
import json
import os
import re
import subprocess
import tarfile
import time
from functools import lru_cache
from pathlib import Path

import bed

HERE = Path(__file__).parent
SYNAPSE = "1.163.2"
# What stands in a path where Synapse has a name; two rooms, for version 12 has no domain.
SAMPLES = {
    "room_id": ["!uzLBTLkGVZKdvvBcGi:example.org", "!31hneApxJ_1o-63DmFrpeqnkFFWppnzWj1avkuCY7lA"],
    "room_identifier": ["%23matrix:example.org", "!31hneApxJ_1o-63DmFrpeqnkFFWppnzWj1avkuCY7lA"],
    "room_alias": ["%23matrix:example.org"],
    "user_id": ["@alice:example.org", "%40alice%3Aexample.org"],
    "target_user_id": ["@bob:example.org"],
    "event_id": ["$acR1l0raoZnm60CBwAVgqbZqoO%2FmYU81xysh1u7XcJk"],
    "parent_id": ["$acR1l0raoZnm60CBwAVgqbZqoO%2FmYU81xysh1u7XcJk"],
    "thread_root_id": ["$acR1l0raoZnm60CBwAVgqbZqoO%2FmYU81xysh1u7XcJk"],
    "event_type": ["m.room.message"],
    "account_data_type": ["m.direct"],
    "server_name": ["example.com"],
    "path": ["pushrules/global/override/.m.rule.master"],
    "stagetype": ["m.login.recaptcha"],
    "field_name": ["displayname"],
}


@lru_cache
def python():
    """A Python that has Synapse."""
    candidates = [os.environ.get("SYNAPSE_VENV"), bed.ROOT / "build/e2e/venv", bed.ROOT / "build/companion/venv"]
    for venv in filter(None, candidates):
        program = Path(venv) / "bin" / "python"
        if program.exists() and subprocess.run([program, "-c", "import synapse"], capture_output=True, check=False).returncode == 0:
            return program
    venv = bed.ROOT / "build/companion/venv"
    subprocess.run(["python3", "-m", "venv", venv], check=True)
    subprocess.run([venv / "bin/pip", "install", "-q", f"matrix-synapse=={SYNAPSE}"], check=True)
    return venv / "bin" / "python"


@lru_cache
def documentation():
    """The installed Synapse's version, and the patterns that its worker documentation lists: wheels come without it."""
    code = "import importlib.metadata as m; print(m.version('matrix-synapse'))"
    version = subprocess.run([python(), "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    folder = bed.ROOT / "build" / "companion" / "source"
    source = folder / f"matrix_synapse-{version}.tar.gz"
    if not source.exists():
        subprocess.run([python(), "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "matrix-synapse",
                        f"matrix-synapse=={version}", "-d", folder], check=True)
    with tarfile.open(source) as archive:
        text = archive.extractfile(f"matrix_synapse-{version}/docs/workers.md").read().decode()
    return version, set(re.findall(r"(?m)^ {4}(\^?/_(?:matrix|synapse)/\S+)$", text))


@lru_cache
def registry():
    """(method, pattern) with where Synapse serves it: main, worker or media."""
    done = subprocess.run([python(), HERE / "registry.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {(method, pattern): kind for method, pattern, kind in json.loads(done.stdout[done.stdout.index("[["):])}


def table(name):
    rows = [line.split("\t") for line in (HERE / name).read_text().splitlines() if line and not line.startswith("#")]
    return rows


def expanded(pattern):
    """Paths that a pattern of Synapse's matches: each alternative, and optional parts with and without."""
    parser = re._parser
    names = {}
    parsed = parser.parse(pattern)
    names = {index: name for name, index in parsed.state.groupdict.items()}

    def parts(tokens):
        results = [""]
        for kind, value in tokens:
            name = str(kind)
            if name == "LITERAL":
                options = [chr(value)]
            elif name in ("AT", "ASSERT_NOT"):
                options = [""]
            elif name == "SUBPATTERN":
                group = names.get(value[0])
                if group in SAMPLES:
                    options = SAMPLES[group]
                elif group:
                    options = parts(value[3])
                    options = options if all(options) and len(options) > 1 else [group.upper()]
                else:
                    options = parts(value[3])
            elif name == "BRANCH":
                options = [option for branch in value[1] for option in parts(branch)]
            elif name in ("MAX_REPEAT", "MIN_REPEAT"):
                low, high, inner = value
                options = [""] + parts(inner) if low == 0 and high == 1 else ["x" * max(low, 1)]
            elif name == "IN":
                options = [chr(value[0][1])] if str(value[0][0]) == "LITERAL" else ["x"]
            elif name == "ANY":
                # A dot of an identifier that Synapse did not escape.
                options = ["."]
            else:
                raise AssertionError(f"{pattern}: no sample for {name}")
            results = [head + tail for head in results for tail in options]
        return results

    return sorted(set(parts(parsed)))


def group_of(worker):
    return re.sub(r"\d+$", "", worker or "nobody")


@lru_cache
def all_workers():
    """Workers of the deployment `everything`, started once for the checks of a file."""
    text = (bed.TESTS / "deployments" / "everything.toml").read_text()
    workers = bed.Workers()
    workers.start("main", port=20108)
    workers.start("main_federation", port=20109)
    for name, port in re.findall(r'name = "(\w+)"\ntype = .*\nhost = .*\nport = (\d+)', text):
        workers.start(name, port=int(port))

    def end():
        workers.stop_all()
        all_workers.cache_clear()

    bed.SHARED.append(end)
    return workers


def everything():
    """The deployment `everything` with this run's paths, and without what would keep loopback out."""
    text = (bed.TESTS / "deployments" / "everything.toml").read_text()
    for section in ("log", "paths", "user_hash", "media_cache"):
        text = re.sub(rf"\[{section}\]\n(?:[^\[\n].*\n|\n)*", "", text)
    return text


def opened(toml):
    """With what is closed by default open to this machine."""
    return toml if "admin_allow" in toml else toml.replace("client = [20000", 'admin_allow = ["127.0.0.1"]\nclient = [20000')


# It takes logins away from Synapse, so only what asks about it has it.
MAS = '\n[mas]\naddress = "http://127.0.0.1:20140"\nallow = ["127.0.0.1"]\n'


def ask_everything(rows):
    """As `ask_all` with the deployment `everything`, and with the Matrix Authentication Service for what that asks."""
    answers = {}
    for is_mas, more in ((False, ""), (True, MAS)):
        indices = [i for i, (_, path) in enumerate(rows) if path.startswith("/_synapse/mas/") == is_mas]
        answers |= dict(zip(indices, ask_all([rows[i] for i in indices], everything() + more)))
    return [answers[i] for i in range(len(rows))]


def ask_all(rows, toml):
    """Asks nginx for each (method, path) and returns the group that answered."""
    all_workers()
    with bed.running(toml) as nginx:
        client = bed.Client()
        for method, path in rows:
            yield group_of(client.ask(method, path).worker), nginx


def check_every_endpoint_of_synapse():
    """every endpoint and method that the installed Synapse registers is answered by its group"""
    known = {(method, pattern): (where, group) for method, where, group, pattern in table("endpoints.tsv")}
    found = registry()
    problems = [
        f"Synapse has a new endpoint, {where}: {method} {pattern}: decide its group and add it to endpoints.tsv"
        for (method, pattern), where in found.items() if (method, pattern) not in known]
    problems += [
        f"Synapse has moved an endpoint from {known[key][0]} to {where}: {key}"
        for key, where in found.items() if key in known and known[key][0] != where]
    rows = [(key, path) for key in found if key in known for path in expanded(key[1])]
    for (key, path), (got, _) in zip(rows, ask_everything([(key[0], path) for key, path in rows])):
        where, group = known[key]
        if got != group:
            problems.append(f"{key[0]} {path}: {got} answered, not {group}")
        if where == "main" and got not in ("main", "main_federation", "push_rules"):
            problems.append(f"{key[0]} {path}: {got} answered, but only main registers it")
    assert not problems, "\n".join(problems)
    return f"{len(found)} endpoints, {len(rows)} requests"


def routed(deployment, paths):
    """The upstream that `route` names for each (method, path)."""
    def ask(row):
        out, _ = bed.companion("route", *row, "-d", deployment, "--nginx", bed.NGINX)
        return re.search(r"^upstream  (\w+),", out, re.M)[1]

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(ask, paths))


def check_route_agrees_with_nginx():
    """`route` names the group that nginx sends every endpoint to"""
    deployment = bed.TESTS / "deployments" / "everything.toml"
    problems = []
    rows = table("endpoints.tsv")
    paths = [(method, expanded(pattern)[0]) for method, _, _, pattern in rows]
    for (method, path), (_, _, group, _), named in zip(paths, rows, routed(deployment, paths)):
        if named != f"synapse_{group}":
            problems.append(f"{method} {path}: route says {named}, not {group}")
    assert not problems, "\n".join(problems)
    return f"{len(rows)} endpoints"


def check_route_agrees_on_every_deployment():
    """in every golden deployment `route` names the group that nginx logs, for a sample of the endpoints that together is all"""
    rows = table("endpoints.tsv")
    deployments = sorted((bed.TESTS / "deployments").glob("*.toml"))
    problems, asked = [], 0
    bed.fixed_folder()
    for i, deployment in enumerate(deployments):
        sample = rows[i % 6::6]
        paths = [(method, expanded(pattern)[-1]) for method, _, _, pattern in sample]
        paths += [("GET", f"/_matrix/client/v3/sync{query}") for query in ("", "?since=s1", "?since=s1&full_state=true")]
        with logged(deployment) as (nginx, ask):
            for n, (method, path) in enumerate(paths):
                ask(method, path, f"request-{n}")
            groups = {}
            # nginx logs a request after it has answered.
            for _ in range(100):
                groups = dict(re.findall(r'"user_agent":"request-(\d+)","group":"(\w+)"', nginx.log()))
                if len(groups) == len(paths):
                    break
                time.sleep(0.02)
        for n, ((method, path), named) in enumerate(zip(paths, routed(deployment, paths))):
            asked += 1
            if named != groups[str(n)]:
                problems.append(f"{deployment.stem}: {method} {path}: route says {named}, nginx {groups[str(n)]}")
    assert not problems, "\n".join(problems)
    return f"{asked} requests, {len(deployments)} deployments"


@contextlib.contextmanager
def logged(deployment):
    """nginx with a golden deployment as it is, but for where it logs and listens; nobody is behind it."""
    with bed.folder() as prefix:
        bed.companion("render", "-d", deployment, "--output", prefix, "--nginx", bed.NGINX)
        conf = prefix / "nginx.conf"
        conf.write_text(re.sub(r"(?m)^pid .*", f"pid {prefix}/nginx.pid;", conf.read_text()))
        server = prefix / "synapse" / "server.conf"
        text = re.sub(r"(?m)^access_log .*", f"access_log {prefix}/access.log logged;", server.read_text())
        # To addresses that are nowhere, Linux takes three seconds to say so.
        server.write_text(re.sub(r"(?m)^proxy_connect_timeout .*", "proxy_connect_timeout 20ms;", text))
        log = prefix / "synapse" / "log.conf"
        form = '"user_agent":"$http_user_agent","group":"$synapse_group"'
        log.write_text(f"{log.read_text()}log_format logged escape=json '{form}';\n")
        servers = prefix / "synapse" / "servers.conf"
        first = servers.read_text().index("listen ")
        servers.write_text(servers.read_text()[:first] + "listen 127.0.0.1:20007;\n    " + servers.read_text()[first:])
        with bed.Nginx(conf, prefix) as nginx:
            client = bed.Client(20007)
            yield nginx, lambda method, path, agent: client.ask(method, path, {"User-Agent": agent})


def check_the_documentation_is_the_one_that_is_known():
    """documented.tsv is of the installed Synapse's version, and has every pattern of its worker documentation"""
    version, listed = documentation()
    known_version = re.search(r"(?m)^# synapse: (.+)$", (HERE / "documented.tsv").read_text())[1]
    assert known_version == version, f"documented.tsv is of Synapse {known_version}, and {version} is installed: read its docs/workers.md"
    known = {row[-1] for row in table("documented.tsv")}
    assert len(listed) > 80, listed
    problems = [f"Synapse's documentation has a new pattern: {pattern}" for pattern in sorted(listed - known)]
    problems += [f"Synapse's documentation has no longer: {pattern}" for pattern in sorted(known - listed)]
    assert not problems, "\n".join(problems)
    return f"{len(listed)} patterns of Synapse {version}"


def check_every_documented_path():
    """every path of Synapse's worker documentation is answered by its group"""
    rows = [(method, path, group) for method, group, pattern, *_ in table("documented.tsv") for path in expanded(pattern)]
    problems = []
    for (method, path, group), (got, _) in zip(rows, ask_everything([row[:2] for row in rows])):
        if got != group:
            problems.append(f"{method} {path}: {got} answered, not {group}")
    assert not problems, "\n".join(problems)
    return f"{len(rows)} requests"


def check_without_workers_everything_is_main_s():
    """without workers, main answers every endpoint"""
    rows = [(method, path) for method, _, _, pattern in table("endpoints.tsv") for path in expanded(pattern)
            if not path.startswith("/_synapse/mas/")]
    toml = opened((bed.TESTS / "deployments" / "none.toml").read_text())
    got = {group for group, _ in ask_all(rows, toml)}
    assert got == {"main"}, got
    return f"{len(rows)} requests"


def check_main_only_endpoints_stay_with_main():
    """in the usual small deployment no worker gets what only main registers"""
    rows = [(method, path) for method, where, _, pattern in table("endpoints.tsv") if where in ("main", "media")
            for path in expanded(pattern)]
    # 20111 to 20113 are the three sync workers of `everything`: whoever they are, they are not main.
    for deployment in ("small", "generic"):
        toml = opened((bed.TESTS / "deployments" / f"{deployment}.toml").read_text()).replace('[log]\nformat = "json"', "")
        for (method, path), (got, _) in zip(rows, ask_all(rows, toml)):
            assert got == "main", (deployment, method, path, got)
    return f"{len(rows)} requests, twice"


def check_paths_of_nobody_reach_main():
    """what no group claims reaches main, as it was written"""
    paths = ["/", "/health", "/.well-known/matrix/client", "/_matrix/client/v3/unheard_of", "/_synapse/admin/v1/server_version",
             "/_synapse/client/unsubscribe", "/_matrix/client/v3/rooms/!a:b/unheard_of", "/_matrix/static/", "/a%2Fb//c?d=%20e"]
    for path, (got, _) in zip(paths, ask_all([("GET", path) for path in paths], everything())):
        assert got == "main", (path, got)
        assert bed.Client().ask("GET", path).json()["target"] == path
    for path in ["/_matrix/federation/v3/unheard_of", "/_matrix/key/v2/server"]:
        assert next(ask_all([("GET", path)], everything()))[0] == "main_federation", path


def check_initial_syncs_go_apart():
    """a sync from nothing goes to the initial_sync workers, one that goes on to the sync workers"""
    sync = "/_matrix/client/v3/sync"
    expected = [
        (sync, "initial_sync"), (f"{sync}?timeout=0", "initial_sync"), (f"{sync}?since=", "initial_sync"),
        (f"{sync}?since=s72594_4483_1934", "sync"), (f"{sync}?since=s1&full_state=false", "sync"),
        (f"{sync}?full_state=true&since=s1", "initial_sync"), (f"{sync}?since=s1&full_state=true", "initial_sync"),
        ("/_matrix/client/r0/events", "initial_sync"), ("/_matrix/client/r0/events?from=s1&timeout=30000", "sync"),
        ("/_matrix/client/v3/initialSync", "initial_sync"),
    ]
    deployment = bed.TESTS / "deployments" / "everything.toml"
    for (path, group), (got, _) in zip(expected, ask_all([("GET", path) for path, _ in expected], everything())):
        assert got == group, (path, got, group)
        out, _ = bed.companion("route", "GET", path, "-d", deployment, "--nginx", bed.NGINX)
        assert f"upstream  synapse_{group}," in out, (path, out)
    pos = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?pos=5"
    assert next(ask_all([("POST", pos)], everything()))[0] == "sliding_sync"

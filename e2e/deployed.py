"""Third part: in each layout, every endpoint is answered as one process answers it, and every user has one worker.

One process without nginx in front is asked first. Its answers are what is right.
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from tests.bed.client import Client
from tests.bed.processes import Processes
from tests.bed.report import some, step

from . import writes
from .client import SLIDING_SYNC, SLIDING_SYNC_BODY, SYNC
from .database import Database
from .endpoints import Outcome, Question, converse
from .homeserver import Homeserver
from .layouts import LAYOUTS, SINGLE, SPECIALISED, Deployment, Layout
from .report import Group, Report
from .log_oracle import served_by_agent
from .world import ADMIN, BOB, Login, World

PREPARED = "prepared"
# The API of the authentication service is for that alone, and this deployment has none: nginx itself refuses it.
MAS_API, CLOSED = "/_synapse/mas/", Outcome(403, "M_FORBIDDEN", "")
# Users are made until every worker has one, but not fewer and not more than these.
FEWEST, MOST, DEVICES = 6, 40, 2
# A fault that the companion would make if it took typing for what any worker can serve.
WRONG = """
[[override]]
path = "^/_matrix/client/.*/typing/"
to = "room"
"""


def layouts(report: Report, directory: Path, base: int, names: list[str]) -> None:
    """All layouts, or those that are named."""
    directory.mkdir(parents=True, exist_ok=True)
    processes = Processes(directory)
    database = Database(processes, base, directory / "postgresql")
    chosen = [layout for layout in (SINGLE, *LAYOUTS) if layout is SINGLE or not names or layout.name in names]
    deployments = [Deployment(layout, directory / layout.name, base + 100 * number, database, layout.name)
                   for number, layout in enumerate(chosen, 1)]
    starting = None
    try:
        step("starting PostgreSQL, and making a database that all layouts begin with")
        database.start()
        admin, bob = prepare(directory / PREPARED, base + 100, database)
        expected: dict[Question, Outcome] = {}
        with ThreadPoolExecutor(1) as pool:
            starting = pool.submit(start, deployments[0])
            for number, deployment in enumerate(deployments):
                starting.result()
                door = deployment.main_port if deployment.layout is SINGLE else deployment.base
                w = World(door, admin, bob)
                if deployment.layout is not SINGLE:
                    step(f"asking: {deployment.layout.title}")
                    one_worker(report, deployment, w)
                # The next one starts while this one is asked: starting takes one core and more, asking hardly one. Not
                # before the syncs, for a lookup has two seconds, and a worker that waits for a core takes longer.
                if number + 1 < len(deployments):
                    starting = pool.submit(start, deployments[number + 1])
                if deployment.layout is SINGLE:
                    step("asking one process")
                    expected = dict(converse(w))
                    served = sum(outcome.status < 300 for outcome in expected.values())
                    expected |= {question: CLOSED for question in expected if question.path.startswith(MAS_API)}
                    report.about(Group.ENDPOINTS, f"one process carries out {served} of {len(expected)} questions",
                                 served < 0.8 * len(expected) and "most are refused at first sight, and prove little")
                else:
                    examine(report, deployment, w, expected)
                deployment.stop()
    finally:
        if starting:
            starting.exception()
        for deployment in deployments:
            deployment.stop()
        processes.stop()
        database.remove()


def start(deployment: Deployment) -> None:
    deployment.database.copy(deployment.schema, PREPARED)
    deployment.start()
    if deployment.layout.workers:
        deployment.start_nginx()


def prepare(directory: Path, base: int, database: Database) -> tuple[Login, Login]:
    """A database with Synapse's schema, an administrator and a user, who are logged in."""
    database.execute(f"CREATE DATABASE {PREPARED}", database="postgres")
    first = Deployment(SINGLE, directory, base, database, PREPARED)
    try:
        first.start()
        homeserver = Homeserver(first)
        homeserver.register("root", admin=True)
        homeserver.register("bob")
        return tuple(Login(user, homeserver.login(user, device)["access_token"], device)
                     for user, device in ((ADMIN, "CONSOLE"), (BOB, "PHONE")))
    finally:
        first.stop()


def examine(report: Report, deployment: Deployment, w: World, expected: dict[Question, Outcome]) -> None:
    """What is written, and every endpoint, in one layout."""
    name = deployment.layout.name
    writes.check(report, w, name)
    outcomes = dict(converse(w, expected))
    astray, others = [], []
    for question, outcome in outcomes.items():
        if outcome.key != expected[question].key:
            told = f"{question}: {outcome} {outcome.text}, not {expected[question]}"
            (astray if outcome.astray else others).append(told)
    report.about(Group.ENDPOINTS, f"{name}: {len(outcomes)} questions, none goes to a process that cannot answer it",
                 some(astray, 20))
    report.about(Group.ENDPOINTS, f"{name}: each is answered as one process answers it", some(others, 20))
    if deployment.layout is SPECIALISED:
        control(report, deployment, w)


def control(report: Report, deployment: Deployment, w: World) -> None:
    """The assertion must fail where the routing is wrong."""
    deployment.start_nginx(WRONG)
    path = f"/_matrix/client/v3/rooms/{quote(w.room)}/typing/{quote(w.admin.user)}"
    answer = w.ask("PUT", path, {"typing": True, "timeout": 1000}, w.admin.token)
    report.about(Group.ENDPOINTS, "control: a worker that does not write typing answers 5xx or M_UNRECOGNIZED",
                 answer.status < 500 and b"M_UNRECOGNIZED" not in answer.text and f"{answer.status} {answer.text}")


def one_worker(report: Report, deployment: Deployment, w: World) -> None:
    """All devices of a user are served by one process, the one that the companion names, as Synapse's logs say."""
    layout: Layout = deployment.layout
    scattered, elsewhere, late = [], [], []
    homes: dict[str, set[str]] = {}
    while len(homes) < FEWEST or set().union(*homes.values()) != set(layout.sync):
        if len(homes) + len(late) >= MOST:
            break
        user = w.new_user()
        agents = set().union(*(sync_everywhere(deployment, w, w.new_login(user)) for _ in range(DEVICES)))
        if late_lookups(deployment, agents):
            late.append(user)
            continue
        seen = served_by_agent(deployment, agents)
        lines = [line for agent in agents for line in seen[agent] if line.is_sync]
        homes[user] = {line.instance for line in lines}
        if len(homes[user]) != 1 or len(lines) != len(agents):
            scattered.append(f"{len(lines)} of {len(agents)} requests of {user} at {sorted(homes[user])}")
        said = deployment.companion("route", "GET", SYNC, "-d", deployment.deployment_file(), "--user", user)
        named = re.search(r"^worker +(\S+)", said, re.MULTILINE)
        if not named or {named[1]} != homes[user]:
            elsewhere.append(f"{user} at {sorted(homes[user])}, not {said}")
    report.about(Group.ONE_WORKER, f"{layout.name}: every sync of {DEVICES} devices each of {len(homes)} users reaches "
                 "one worker a user", some(scattered))
    report.about(Group.CHOICE, f"{layout.name}: it is the worker that `synapse-companion route` names", some(elsewhere))
    report.about(Group.LOOKUPS, f"{layout.name}: whoami was in time for {len(homes)} users, too late for {len(late)}",
                 len(late) > len(homes) / 2 and "the machine is too busy to say anything")
    used = set().union(*homes.values())
    report.about(Group.SPREAD, f"{layout.name}: the users are spread over {', '.join(layout.sync)}",
                 used != set(layout.sync) and f"they are at {sorted(used)}")


def late_lookups(deployment: Deployment, agents: set[str]) -> list[str]:
    """Lookups that did not come back in time, as on a busy machine: then the token decides, as it should."""
    lines = (deployment.directory / "nginx/access.log").read_text().splitlines()
    return [line for line in lines if "user_hash_status=TIMEOUT" in line and line.rsplit('"', 2)[-2] in agents]


def sync_everywhere(deployment: Deployment, w: World, login: Login) -> set[str]:
    """A first sync, one that goes on from it, and a sliding one, each under a name by which its log line is found."""
    agents = set()
    since = ""
    with Client(deployment.base) as client:
        for method, target, body in (("GET", f"{SYNC}?timeout=0", None), ("GET", f"{SYNC}?timeout=0&since=", None),
                                     ("POST", f"{SLIDING_SYNC}?timeout=0", SLIDING_SYNC_BODY)):
            agent = w.name("e2e-layouts-agent-")
            target += since if target.endswith("since=") else ""
            answer = client.ask(method, target, {"User-Agent": agent, "Authorization": f"Bearer {login.token}",
                                                 "Content-Type": "application/json"},
                                None if body is None else json.dumps(body).encode())
            since = since or quote(answer.json().get("next_batch", ""))
            agents.add(agent)
    return agents

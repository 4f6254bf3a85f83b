"""The assertions. Each takes what was asked and what the log oracle saw, and reports in one line what holds."""

import hashlib
import time
from collections import Counter, defaultdict

from tests.bed.report import some

from .client import AGENT, Answer, comparable, user_key
from .homeserver import Homeserver
from .nginx import WORKER_PROCESSES, Nginx
from .people import PROXIED_ONLY, People, seen
from .report import Group, Report
from .traffic import Traffic
from .log_oracle import Served, served, served_by_agent

RESOLVED = {"HIT", "MISS", "SHARED"}
# Synapse does not implement /sync for an application service itself (handlers/sync.py): its own answer is a 500.
SENDER = "application service"


def routing(report: Report, traffic: Traffic) -> None:
    """From the workers' access logs: every user on one worker, on the right one, and not all on the same."""
    seen = served_by_agent(traffic.synapse, traffic.agents())
    by_user: dict[str, list[Answer]] = defaultdict(list)
    for answer in traffic.proxied:
        by_user[answer.session.user].append(answer)
    for user, answers in by_user.items():
        one_worker(report, traffic, user, answers, seen)
    requesters(report, traffic, seen)
    homes = Counter(traffic.choose(user) for user in by_user)
    report.about(Group.SPREAD, f"{len(by_user)} users spread over the workers: {dict(sorted(homes.items()))}",
                 set(homes) != set(traffic.synapse.worker_ports) and "a worker has nobody")


def one_worker(report: Report, traffic: Traffic, user: str, answers: list[Answer], seen: dict[str, list[Served]]):
    workers = Counter(line.instance for answer in answers for line in seen[answer.agent] if line.is_sync)
    kinds = ", ".join(dict.fromkeys(answer.session.kind for answer in answers))
    where = ", ".join(f"{count} at {name}" for name, count in sorted(workers.items()))
    wrong = len(workers) != 1 or workers.total() != len(answers)
    report.about(Group.ONE_WORKER, f"{user} ({kinds}): {len(answers)} requests reach one worker: {where}",
                 wrong and f"{len(workers)} workers served {workers.total()} of {len(answers)} requests")
    report.about(Group.CHOICE, f"{user}: it is the one that nginx's hash of {user_key(user)} gives",
                 set(workers) != {traffic.choose(user)} and f"that would be {traffic.choose(user)}")


def routing_of(report: Report, traffic: Traffic, user: str) -> None:
    """The same for one user alone."""
    one_worker(report, traffic, user, traffic.proxied, served_by_agent(traffic.synapse, traffic.agents()))


def requesters(report: Report, traffic: Traffic, seen: dict[str, list[Served]]) -> None:
    wrong = []
    for answer in traffic.proxied:
        for line in seen[answer.agent]:
            # A puppet is logged as "admin|user". (whoami may ask about a masquerading token's owner first.)
            if line.is_sync and line.requester.rsplit("|", 1)[-1] != answer.session.user:
                wrong.append(f"{line.instance} served {answer.session.user} as {line.requester}")
    report.about(Group.ANSWERS, "Synapse took every request for its user's", some(wrong))


def answers(report: Report, title: str, traffic: Traffic, status: int | None = 200) -> None:
    """Status, type and body are those that a worker gives when it is asked directly."""
    wrong = []
    for through, direct in zip(traffic.proxied, traffic.direct, strict=True):
        name = f"{through.session.user or through.session.kind} ({through.session.kind}), {through.question.title}"
        if (through.status, through.content_type) != (direct.status, direct.content_type):
            wrong.append(f"{name}: {through.status} {through.content_type}, not {direct.status} {direct.content_type}")
        elif comparable(through.body) != comparable(direct.body):
            wrong.append(f"{name}: the body differs")
        elif status and through.status != status and through.session.kind != SENDER:
            wrong.append(f"{name}: {through.status} {through.body}")
    report.about(Group.ANSWERS, f"{title}: {len(traffic.proxied)} answers equal Synapse's own", some(wrong))


def session_lists(report: Report, homeserver: Homeserver, people: People) -> None:
    """What users and administrators are shown: the client's address and agent, and no row of the proxy's making."""
    users = sorted({session.user for session in people.sessions if session.kind in ("native", "guest")})
    expected = {user: {s.address for s in people.of(user) if s.kind != "puppet"} for user in users}
    shown: dict[str, list[dict]] = {}
    deadline = time.monotonic() + 12  # each process writes its list to the database every 5 s
    while time.monotonic() < deadline:
        shown = {user: homeserver.session_list(user, people.admin_token) for user in users}
        if all({row["ip"] for row in rows} >= expected[user] for user, rows in shown.items()):
            break
        time.sleep(0.5)
    for user, rows in shown.items():
        wrong = [f"{row['ip']} {row['user_agent']}" for row in rows
                 if row["ip"] not in expected[user] or not row["user_agent"].startswith(AGENT)]
        missing = expected[user] - {row["ip"] for row in rows}
        report.about(Group.SESSIONS, f"{user}: the session list shows {len(expected[user])} client(s), nobody else",
                     wrong and f"also {some(wrong)}" or missing and f"without {sorted(missing)}")
    device_list(report, homeserver, people)
    report.about(Group.SESSIONS, "no row of Synapse's table is the proxy's, nor by another agent",
                 some(people.strange_rows(homeserver)))


def device_list(report: Report, homeserver: Homeserver, people: People) -> None:
    """The user's own view. It shows one address a device, the last: hence a user who only came through nginx."""
    sessions = {session.device: session for session in people.of(PROXIED_ONLY) if session.device}
    laptop = sessions["LAPTOP"]
    shown = homeserver.devices(laptop.token, **seen(laptop.address))
    expected = {device: session.address for device, session in sessions.items()}
    report.about(Group.SESSIONS, f"{PROXIED_ONLY}: GET /devices shows each device with its own address",
                 shown != expected and f"{shown}, not {expected}")


def lookups(report: Report, traffic: Traffic, title: str, most: int = 1) -> None:
    """Synapse's log of whoami: whose address and agent it carried, and how often each token was asked about."""
    asked_by = {answer.agent: answer for answer in traffic.proxied}
    calls = [line for line in served(traffic.synapse) if line.is_whoami and line.agent in asked_by]
    foreign = [f"{line.agent} from {line.address}" for line in calls
               if line.address != asked_by[line.agent].session.address]
    report.about(Group.LOOKUPS, f"{title}: {len(calls)} lookups carried the client's address and agent",
                 "there was none" if not calls else some(foreign))
    by_question = Counter((asked_by[line.agent].session.token, line.path) for line in calls)
    often = [f"{count} times for one {asked_by_token(traffic, token)} token" for (token, _), count
             in by_question.items() if count > most]
    report.about(Group.LOOKUPS, f"{title}: {len(traffic.proxied)} requests with {len(by_question)} questions made "
                 f"{len(calls)} lookups, at most {most} each", some(often))


def asked_by_token(traffic: Traffic, token: str) -> str:
    return next(answer.session.kind for answer in traffic.proxied if answer.session.token == token)


def no_stray_lookups(report: Report, traffic_agents: set[str], traffic: Traffic) -> None:
    stray = [f"{line.agent} from {line.address}" for line in served(traffic.synapse)
             if line.is_whoami and line.agent not in traffic_agents]
    report.about(Group.LOOKUPS, "every lookup belongs to a client's request", some(stray))


def variables(report: Report, traffic: Traffic) -> None:
    """nginx's access log: the key is the user's, and the lookup's outcome a good one."""
    log = traffic.nginx.access_log()
    wrong = []
    for answer in traffic.proxied:
        line = log[answer.agent]
        if line.hash != user_key(answer.session.user) or line.status not in RESOLVED:
            wrong.append(f"{answer.session.user} ({answer.session.kind}, {answer.question.title}): "
                         f"hash={line.hash} status={line.status} lookup_time={line.lookup_time}")
    statuses = Counter(log[answer.agent].status for answer in traffic.proxied)
    report.about(Group.LOGS, f"$matrix_user_hash is the user's own in every line: {dict(sorted(statuses.items()))}",
                 some(wrong))


def processes(report: Report, traffic: Traffic) -> None:
    log = traffic.nginx.access_log()
    processes = {log[answer.agent].pid for answer in traffic.proxied}
    report.about(Group.LOGS, f"all {WORKER_PROCESSES} worker processes of nginx took part",
                 len(processes) != WORKER_PROCESSES and f"only {processes} did")


def refused_variables(report: Report, traffic: Traffic) -> None:
    """An unknown token is hashed itself; a request that Synapse will refuse for its form is nobody's."""
    log = traffic.nginx.access_log()
    wrong = []
    for answer in traffic.proxied:
        line, token = log[answer.agent], answer.session.token
        expected = (hashlib.sha256(token.encode()).hexdigest()[:16], "REFUSED") if token else ("", "ANONYMOUS")
        if (line.hash, line.status) != expected:
            wrong.append(f"{answer.question.title}: hash={line.hash} status={line.status}, not {expected}")
    report.about(Group.LOGS, "a refused token keys by itself, a malformed request by nothing", some(wrong))


def error_log(report: Report, nginx: Nginx, tokens: list[str], expected: str | None = None) -> None:
    """No token, and nothing loud but one line of what is `expected`."""
    text = nginx.error_log
    leaked = sum(token in text for token in tokens)
    report.about(Group.LOGS, f"none of {len(tokens)} tokens is in error.log", leaked and f"{leaked} are")
    loud = [line for line in text.splitlines()
            if any(f"[{level}]" in line for level in ("error", "crit", "alert", "emerg"))]
    if expected:
        found = [line for line in loud if expected in line]
        report.about(Group.LOGS, f"error.log says once: {expected}", len(found) != 1 and f"{len(found)} times")
        loud = [line for line in loud if expected not in line]
    report.about(Group.LOGS, "error.log has nothing else above a warning", some(loud))

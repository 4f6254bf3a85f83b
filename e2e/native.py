"""First part: Synapse that issues its own tokens, with tokens of every kind."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bed.report import step

from . import checks
from .client import Answer, Carrier, Session, ask, sync
from .homeserver import Homeserver
from .nginx import Variant, Nginx
from .people import PROXIED_ONLY, People, populate, refresh, seen
from .report import Report
from .synapse import Synapse
from .traffic import NOBODY, STRANGERS, Traffic, everything, just_one, refused

BURST = 24


def native(report: Report, directory: Path, base: int, variant: Variant) -> None:
    synapse = Synapse(directory, base)
    nginx = Nginx(directory, synapse, variant)
    try:
        step(f"starting PostgreSQL, Redis, Synapse (main and {len(synapse.worker_ports)} workers)")
        synapse.start()
        homeserver = Homeserver(synapse)
        step("making users, devices and tokens of every kind")
        people = populate(homeserver)
        step(f"starting {nginx.binary}; {variant.value}")
        nginx.start()
        assert_all(report, homeserver, people, nginx)
    finally:
        nginx.stop()
        synapse.stop()


def assert_all(report: Report, homeserver: Homeserver, people: People, nginx: Nginx) -> None:
    module = nginx.variant is Variant.MODULE
    step("asking: tokens of every kind, by header and query, sync and sliding sync")
    traffic = Traffic(homeserver.synapse, nginx)
    traffic.send([session for session in people.sessions if session.kind == "refreshable"
                  and session.user != PROXIED_ONLY], just_one)
    refresh(homeserver, people)
    traffic.send([session for session in people.sessions if session.user != PROXIED_ONLY], everything)
    checks.routing(report, traffic)
    checks.answers(report, "every kind of token", traffic)
    agents = traffic.agents() | through_nginx_alone(report, people, homeserver.synapse, nginx)
    if module:
        checks.variables(report, traffic)
        checks.processes(report, traffic)
        checks.lookups(report, traffic, "every kind of token")
    step("asking: what Synapse refuses")
    agents |= refusals(report, homeserver.synapse, nginx)
    if module:
        step(f"asking: {BURST} at once with a new token, then the same after logout")
        agents |= new_device(report, homeserver, people, nginx)
        checks.no_stray_lookups(report, agents, traffic)
        checks.error_log(report, nginx, [session.token for session in people.sessions])
    step("reading the session lists")
    checks.session_lists(report, homeserver, people)


def through_nginx_alone(report: Report, people: People, synapse: Synapse, nginx: Nginx) -> set[str]:
    """One user of whom Synapse hears through nginx only, so that the list of devices is nginx's doing."""
    traffic = Traffic(synapse, nginx)
    traffic.proxied = [ask(session, question, nginx.port) for session in people.of(PROXIED_ONLY)
                       for question in everything(session)]
    checks.routing_of(report, traffic, PROXIED_ONLY)
    return traffic.agents()


def refusals(report: Report, synapse: Synapse, nginx: Nginx) -> set[str]:
    traffic = Traffic(synapse, nginx)
    traffic.send([STRANGERS, NOBODY], refused)
    checks.answers(report, "unknown, missing and malformed tokens", traffic, status=401)
    if nginx.variant is Variant.MODULE:
        checks.refused_variables(report, traffic)
        unknown = Traffic(synapse, nginx, [answer for answer in traffic.proxied if answer.session.token])
        # Refused tokens are remembered by each worker process of nginx for itself.
        checks.lookups(report, unknown, "unknown token", most=2)
    return traffic.agents()


def new_device(report: Report, homeserver: Homeserver, people: People, nginx: Nginx) -> set[str]:
    """A client that opens many connections at once with a token nobody has seen yet, and then logs out."""
    user, address = homeserver.register("ida"), "127.0.30.1"
    token = homeserver.login(user, "WATCH", **seen(address))["access_token"]
    watch = Session(user, "new", token, address, device="WATCH")
    people.sessions.append(watch)
    question = sync(Carrier.HEADER)
    burst = Traffic(homeserver.synapse, nginx)
    worker = homeserver.synapse.worker_ports[burst.choose(user)]
    with ThreadPoolExecutor(BURST) as pool:
        burst.proxied = list(pool.map(lambda _: ask(watch, question, nginx.port), range(BURST)))
    burst.direct = [ask(watch, question, worker, direct=True)] * BURST
    checks.routing_of(report, burst, user)
    checks.answers(report, "a burst with a new token", burst)
    checks.lookups(report, burst, "a burst with a new token")

    homeserver.call("POST", "/_matrix/client/v3/logout", {}, token=token, **seen(address))
    after = Traffic(homeserver.synapse, nginx, direct=[refusal(watch, worker)])
    after.proxied = [ask(watch, question, nginx.port)]
    checks.answers(report, "after logout, whatever nginx remembers", after, status=401)
    checks.routing_of(report, after, user)
    return burst.agents() | after.agents()


def refusal(session: Session, worker: int) -> Answer:
    """The worker's own answer after a logout, of which it hears a moment after the main process."""
    for _ in range(50):
        answer = ask(session, sync(Carrier.HEADER), worker, direct=True)
        if answer.status == 401:
            break
        time.sleep(0.1)
    return answer
